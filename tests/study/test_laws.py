"""Laws of interventions on whole models, in float64: two ways to the same answer, and what never happens."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hookedvid.nn.attention import attend
from hookedvid.nn.hooks import HookPoint
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import LV_K, VS_K, VT_K, EarlyExit, Knockout, LayerRange
from hookedvid.values.layout import TokenLayout
from models import LAW, MODELS, ROUNDING, UNLIKE, VIDEO_MODELS, apart, random_inputs, random_model, rich_inputs

# Knockouts between frames of InternVideo2.5 warn that its tokens mix them; these laws hold for them all the same.
# So do those that cut nothing.
pytestmark = [
    pytest.mark.shapes_unchecked,
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.filterwarnings("ignore::hookedvid.values.masks.NoEdgeWarning"),
]

CUT_LAST_OFF = Knockout("all", "last", keep_self=False)
SELECTORS = st.sampled_from(["video", "text", "last", "all", "question+last", "options", "patches"])
KNOCKOUTS = st.sampled_from([LV_K, VT_K, VS_K, replace(VS_K, keep_self=False), CUT_LAST_OFF]) | st.builds(
    Knockout,
    SELECTORS,
    SELECTORS,
    st.sampled_from([LayerRange(), LayerRange(1), LayerRange(0, 2), ~LayerRange(1, 2)]),
    st.sampled_from(["any", "same_frame", "other_frame"]),
    st.booleans(),
)
NAMES = st.sampled_from(UNLIKE)
GIVEN = {
    "intact": [],
    "LV-K": [LV_K.at(LayerRange(1))],
    "VT-K, VS-K": [VT_K.at(0), VS_K.at(LayerRange(1))],
    "emptied row": [CUT_LAST_OFF.at(1)],
    "exit": [EarlyExit(1)],
    "exit, window": [EarlyExit(2), VT_K.at(LayerRange(0, 2))],
}


@cache
def case(name: str) -> tuple:
    """Encoded, so that no run pays the tower."""
    model = random_model(name)
    return model, model.encoded(rich_inputs(model))


def cut_by_hand(layout: TokenLayout, knockout: Knockout, mask: Tensor) -> None:
    """The definition, pair by pair: queries in dst, keys in src, of the relation, oneself kept or not."""
    frames = layout.frames.tolist()
    for q in layout.positions(knockout.dst).tolist():
        for k in layout.positions(knockout.src).tolist():
            in_frames = frames[q] >= 0 and frames[k] >= 0
            related = {
                "any": True,
                "same_frame": in_frames and frames[q] == frames[k],
                "other_frame": in_frames and frames[q] != frames[k],
            }[knockout.relation]
            if related and not (knockout.keep_self and q == k):
                mask[:, :, q, k] = False


@torch.no_grad()
@LAW
@given(NAMES, KNOCKOUTS, st.integers(0, 2))
def test_a_knockout_is_a_hand_written_edit_of_the_mask(name, knockout, layer):
    model, inputs = case(name)

    def cut(mask, hook):
        cut_by_hand(inputs.layout, knockout, mask)
        return mask

    by_hand = model.run_with_hooks(inputs, fwd_hooks=[(f"blocks.{layer}.attn.hook_mask", cut)])
    assert apart(model(inputs, interventions=knockout.at(layer)), by_hand) <= ROUNDING  # kernel calls against a mask


@torch.no_grad()
@pytest.mark.parametrize("knockout", [LV_K, VT_K, VS_K], ids=lambda k: k.name)
@pytest.mark.parametrize("name", UNLIKE)
def test_every_layer_is_the_union_of_its_layers_and_each_of_them_counts(name, knockout):
    model, inputs = case(name)
    everywhere = model(inputs, interventions=knockout)
    each = [knockout.at(i) for i in range(3)]
    assert torch.equal(model(inputs, interventions=each), everywhere)
    assert torch.equal(model(inputs, interventions=[knockout.at(1), knockout.at(~LayerRange(1, 2))]), everywhere)
    last = [model(inputs, interventions=g)[:, -1] for g in ([], each[:1], each[:2], each)]
    # What video rows read in the last block reaches no text any more: only LV-K counts there.
    n_counting = 3 if knockout is LV_K else 2
    assert all(apart(last[i], last[i + 1]) > 1e-4 for i in range(n_counting))


@torch.no_grad()
@pytest.mark.parametrize("name", VIDEO_MODELS)
def test_an_exit_is_language_cut_off_from_there_on(name):
    model, inputs = case(name)
    kept = (~inputs.layout.mask("video")).nonzero().flatten()
    for k in range(3):
        left = model(inputs, interventions=EarlyExit(k))
        cut = model(inputs, interventions=LV_K.at(LayerRange(k)))
        masked = model(inputs, interventions=EarlyExit(k).as_knockout())
        assert left.shape[1] == len(kept) and apart(left, masked[:, kept]) < ROUNDING, k
        assert apart(left[:, -1], cut[:, -1]) < ROUNDING, k
    assert torch.equal(model(inputs, interventions=EarlyExit(3)), model(inputs)), "after the last block nothing is left"


@torch.no_grad()
def test_markers_that_are_not_language_carry_video_past_the_knockout():
    model = random_model("internvideo2.5")
    inputs = rich_inputs(model, markers_are_language=False)
    left, cut = (model(inputs, interventions=g)[:, -1] for g in (EarlyExit(0), LV_K))
    assert apart(left, cut) > 1e-3


@torch.no_grad()
@LAW
@given(NAMES, KNOCKOUTS, KNOCKOUTS)
def test_kernels_agree_whatever_is_cut(name, a, b):
    model, inputs = case(name)
    eager = random_model(name, kernel="eager")
    other = eager.encoded(rich_inputs(eager))
    assert apart(model(inputs, interventions=[a, b]), eager(other, interventions=[a, b])) < ROUNDING


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", UNLIKE)
def test_an_emptied_row_outputs_zero_and_its_gradients_are_finite(name, kernel, dtype):
    model = random_model(name, dtype, kernel).requires_grad_()
    inputs = rich_inputs(model)
    z = {}
    listen = [(f"blocks.{i}.attn.hook_z", lambda a, hook: z.update({hook.layer(): a.detach()})) for i in range(3)]
    logits = model.run_with_hooks(inputs, interventions=CUT_LAST_OFF.at(1), fwd_hooks=listen)
    assert not z[1][:, -1].any() and z[1][:, :-1].any(-1).all()
    assert z[0][:, -1].any() and z[2][:, -1].any()
    assert logits.isfinite().all()
    logits[:, -1].float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model.blocks[0].attn.q.weight.grad.any()
    model.zero_grad()
    model.requires_grad_(False)


@LAW
@given(st.integers(0, 2**32 - 1))
def test_attend_gives_zero_for_emptied_rows_and_the_formula_for_others(seed):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 5, h, 4, generator=g, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2))
    may = torch.rand(2, 1, 5, 5, generator=g) < 0.3
    kk, vv = (x.repeat_interleave(2, 2).detach() for x in (k, v))
    weights = torch.einsum("bqhd,bkhd->bhqk", q.detach(), kk).div(2).exp() * may  # sqrt(d_head) = 2
    wanted = torch.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdim=True).clamp(min=1e-300), vv)
    for kernel in ("sdpa", "eager"):
        z = attend(q, k, v, may, causal=False, kernel=kernel, on_scores=HookPoint(), on_pattern=HookPoint())
        assert torch.allclose(z, wanted, rtol=0, atol=1e-13)
        assert not z.transpose(1, 2)[(~may.any(-1)).expand(-1, 4, -1)].any()
        grads = torch.autograd.grad(z.square().sum(), (q, k, v))
        assert all(x.isfinite().all() for x in grads)
        assert not grads[0].transpose(1, 2)[(~may.any(-1)).expand(-1, 4, -1)].any()


@torch.no_grad()
@LAW
@given(NAMES, st.lists(KNOCKOUTS, max_size=2), st.data())
def test_no_knockout_lets_a_later_token_move_an_earlier_logit(name, knockouts, data):
    model, inputs = case(name)
    at = data.draw(st.integers(0, inputs.layout.n_tokens - 1).filter(lambda i: inputs.tokens[0, i] >= 0))
    tokens = inputs.tokens.clone()
    tokens[0, at] = (tokens[0, at] + 1) % model.cfg.d_vocab
    changed = model(inputs.with_tokens(tokens), interventions=knockouts)
    logits = model(inputs, interventions=knockouts)
    assert torch.equal(changed[:, :at], logits[:, :at])
    assert not torch.equal(changed[:, at], logits[:, at])


@torch.no_grad()
@pytest.mark.parametrize("name", UNLIKE)
def test_interventions_shift_no_position(name):
    model, inputs = case(name)
    _, intact = model.run_with_cache(inputs, names_filter="rot_k")
    for knockout in (LV_K, VT_K, EarlyExit(0).as_knockout()):
        _, cut = model.run_with_cache(inputs, names_filter="rot_k", interventions=knockout)
        assert torch.equal(cut["rot_k", 0], intact["rot_k", 0]), "the first keys, turned by the same angles"
    _, left = model.run_with_cache(inputs, names_filter="rot_k", interventions=EarlyExit(0))
    kept = (~inputs.layout.mask("video")).nonzero().flatten()
    # The same sums over fewer rows.
    assert apart(left["rot_k", 0], intact["rot_k", 0][:, kept]) < ROUNDING


@torch.no_grad()
@pytest.mark.parametrize("name", VIDEO_MODELS)
def test_cutting_what_is_not_there_is_the_identity(name):
    model, inputs = case(name)
    logits = model(inputs)
    # No earlier position attends to a later one anyway.
    assert apart(model(inputs, interventions=Knockout("question", "video")), logits) < ROUNDING
    if name not in ("llava-onevision", "internvideo2.5"):  # whose trailing newline, whose clips, need other frames
        one = rich_inputs(model, n_frames=1)
        assert apart(model(one, interventions=VT_K), model(one)) < ROUNDING


@torch.no_grad()
# Who is hidden from whom hangs on the kind of sequence, padding on the family's own positions too.
@pytest.mark.parametrize(
    ("name", "given"), [(n, g) for n in VIDEO_MODELS for g in (GIVEN if n in UNLIKE else list(GIVEN)[:2])]
)
def test_an_item_in_a_batch_is_what_it_is_alone(name, given):
    model = random_model(name)
    items = [rich_inputs(model, 4, seed=1, n_text=8), rich_inputs(model, 8, seed=2, n_text=12)]
    for order in (items, items[::-1]):
        batch = model(VideoInputs.stack(order), interventions=GIVEN[given])
        for row, item in zip(batch, order, strict=True):
            alone = model(item, interventions=GIVEN[given])[0]
            assert apart(row[-len(alone) :], alone) < ROUNDING


@torch.no_grad()
def test_text_and_video_share_a_batch():
    model = random_model("llava-onevision")
    text = model.inputs_from_tensors(torch.arange(30, 42))
    video = rich_inputs(model)
    for row, item in zip(model(VideoInputs.stack([text, video])), (text, video), strict=True):
        alone = model(item)[0]
        assert apart(row[-len(alone) :], alone) < ROUNDING


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_a_blind_row_knows_its_own_token_alone(name):
    model = random_model(name)
    a, b = (random_inputs(model, seed=s) for s in (1, 2))
    b.tokens[0, -1] = a.tokens[0, -1]
    intact = [model(x)[:, -1] for x in (a, b)]
    blind = [model(x, interventions=Knockout("all", "last"))[:, -1] for x in (a, b)]
    assert apart(*intact) > 0.1 and torch.equal(*blind)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-video", "llava-onevision", "longva"])
def test_a_video_that_leaves_at_once_was_never_there(name):
    model = random_model(name)
    inputs = random_inputs(model, n_prefix=0)
    text = model.inputs_from_tensors(inputs.tokens[inputs.tokens >= 0])
    # Rotary positions are relative, so text alone starts at 0; but their angles are float32 (as in transformers), and
    # those of shifted positions round to other numbers: 1e-6 in an angle, through peaked softmaxes.
    assert apart(model(inputs, interventions=EarlyExit(0)), model(text)) < 1e-4
