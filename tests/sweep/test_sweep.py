"""A sweep against plain forwards: the same logits for every question and condition, and the work it says it does."""

import re
import warnings
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hookedvid.sweep.run as sweeping
from hookedvid import LV_K, VS_K, VT_K, EarlyExit, Edit, HookedVideoLLM, LayerRange, Patch
from hookedvid.errors import InputError, InterventionError
from hookedvid.families.registry import FAMILIES
from hookedvid.study import protocols
from hookedvid.sweep.run import Rows, Sweep, sweep
from hookedvid.sweep.session import Session
from hookedvid.sweep.tree import shareable
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import PATHWAYS, Intervention, Knockout, RandomEdges
from models import UNLIKE
from sweep_cases import QUESTIONS, N, asked, full_study, model, noise

pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]

EXACT = 1e-12  # float64: the same sums in another order, of logits of order 1
ROUNDED = 2e-5  # float32: two plain kernels of attention already differ by 1e-5 on such logits


def worst(m: HookedVideoLLM, inputs: Sequence[VideoInputs], conditions: Sequence[Sequence[Intervention]]) -> float:
    """The largest difference of a logit to plain forwards under dense masks, which `masks` alone defines.

    Of three questions, computed together, each condition is compared at one.
    """
    found = sweep(m, inputs, conditions)
    off = 0.0
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("hookedvid.model.run_plan.structures", lambda *_: None)
        for q, (x, row) in enumerate(zip(map(m.encoded, inputs), found, strict=True)):
            for i, (condition, logits) in enumerate(zip(conditions, row, strict=True)):
                if len(inputs) > 2 and i % len(inputs) != q:
                    continue
                whole = m(x, interventions=condition, logits_to_keep=1)[0, -1]
                off = max(off, (whole - logits).abs().max().item())
    return off


OTHERS: list[tuple[Intervention, ...]] = [
    (EarlyExit(0),),
    (EarlyExit(2),),
    (EarlyExit(2, "video[1:3]"),),
    (EarlyExit(1, "patches"), LV_K.at(LayerRange(3))),
    (EarlyExit(3), VT_K.at(LayerRange(0, 2))),
    (RandomEdges(LV_K),),
    (RandomEdges(VT_K.at(LayerRange(1, 3)), 3), LV_K.at(LayerRange(2))),
    (VS_K.at(LayerRange(1)), RandomEdges(LV_K)),
    (Knockout("video", "video", relation="same_frame", keep_self=False),),
    (PATHWAYS["video→last"], PATHWAYS["video→question"].at(LayerRange(0, 3))),
    (Knockout("system", "video[2:5]"), Knockout("video[1]", "last")),
    (Knockout("question", "last"), Knockout("system+question", "template", LayerRange(1, 2))),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_study_and_odd_conditions_equal_plain_forwards(family):
    """All of it for each kind of sequence; other families part with them in towers, norms and rotations alone."""
    questions, conditions = asked(family), [*full_study(N, 2), *OTHERS]
    if family not in UNLIKE:
        questions, conditions = questions[:2], [*full_study(N, 2)[::4], *OTHERS[1::3]]
    assert worst(model(family), questions, conditions) <= EXACT


@pytest.mark.usefixtures("shapes_checked")
def test_shapes_are_those_stated():
    assert worst(model("llava-video"), asked("llava-video"), [*full_study(N, 4)[::3], *OTHERS[::2]]) <= EXACT


def test_many_states_may_ride_behind_the_stream(monkeypatch):
    """Of several questions, under knockouts and edits of their own; usually so few do that they look alike."""
    m, ridden = model("internvideo2.5"), []
    x = tuple(m.prepare(noise(m.cfg.vision.image_size, 64), q, o, n_frames=64) for q, o in QUESTIONS[:2])
    edits = [(Edit("z", i, lambda z: z * 0.5, at),) for i, at in ((1, "question"), (2, "last"), (2, "video[3]"))]
    whole = Rows.stream_step

    def counted(self, layer, changes, rows, kv, beside=()):
        ridden.append(len(beside))
        return whole(self, layer, changes, rows, kv, beside)

    monkeypatch.setattr(sweeping, "BESIDE", 3 / 2)
    monkeypatch.setattr(sweeping, "APART", 3 / 2)
    monkeypatch.setattr(Rows, "stream_step", counted)
    assert worst(m, x, [(), *((LV_K.at(LayerRange(i)),) for i in (1, 3)), (VT_K.at(LayerRange(2)),), *edits]) <= EXACT
    assert max(ridden) >= 6


def test_markers_that_are_language_change_the_stream_and_are_told_apart():
    inputs = asked("internvideo2.5", markers=True)
    assert worst(model("internvideo2.5"), inputs, [*full_study(N, 2)[::3], *OTHERS]) <= EXACT


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_float32_differs_by_rounding(kernel):
    m = model("llava-video", torch.float32, kernel=kernel)
    assert worst(m, asked("llava-video", torch.float32), full_study(N, 2)[::2]) <= ROUNDED


@pytest.mark.parametrize("gives_lse", [True, False])
def test_bfloat16_is_as_near_to_float32_as_plain_forwards_are(gives_lse, monkeypatch):
    """Rows apart and merged parts of attention may not cost precision, on a GPU (whose kernels keep their
    log-sum-exps) as on a CPU. The ratio is 1.03 to 1.05 with and without AVX-512; log-sum-exps kept in bfloat16 would
    make it 1.13 or 1.14, and few conditions of few questions anything from 1.00 to 1.11."""
    if not gives_lse:
        monkeypatch.setattr("hookedvid.nn.structured._gives_lse", lambda *_: False)
    exact = model("llava-video", torch.float32)
    half = HookedVideoLLM.from_config(exact.cfg, tokenizer=exact.tokenizer)
    half.load_state_dict(exact.state_dict())
    half = half.to(torch.bfloat16)
    conditions, x = full_study(N, 2), asked("llava-video", torch.float32)
    errors: dict[str, list[torch.Tensor]] = {"sweep": [], "plain": []}
    for q, row in zip(x, sweep(half, x, conditions), strict=True):
        for c, logits in zip(conditions, row, strict=True):
            true = exact(q, interventions=c, logits_to_keep=1)[0, -1]
            plain = half(q, interventions=c, logits_to_keep=1)[0, -1]
            errors["sweep"].append((logits.float() - true).square().mean())
            errors["plain"].append((plain.float() - true).square().mean())
    rms = {k: torch.stack(v).mean().sqrt().item() for k, v in errors.items()}
    assert 0 < rms["sweep"] <= 1.1 * rms["plain"], rms


def halved(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5


def averaged(x: torch.Tensor) -> torch.Tensor:
    """Mixes the rows it is given, as the mean over a frame does."""
    return x.mean(1, keepdim=True).expand_as(x)


SELECTORS = ("video", "video[0]", "video[2:5]", "system", "question", "text", "last", "all", "template", "patches")
knockouts = st.builds(
    lambda src, dst, start, length, relation, keep: Knockout(
        src, dst, LayerRange(start, min(N, start + length)), relation, keep
    ),
    st.sampled_from(SELECTORS),
    st.sampled_from(SELECTORS),
    st.integers(0, N - 1),
    st.integers(1, N),
    st.sampled_from(["any", "other_frame", "same_frame"]),
    st.booleans(),
)
known = st.sampled_from([LV_K, VT_K, VS_K]).flatmap(
    lambda k: st.tuples(st.integers(0, N - 1), st.integers(1, N)).map(lambda r: k.at(LayerRange(r[0], min(N, sum(r)))))
)


def edits(*at: str) -> st.SearchStrategy[Edit]:
    points = st.sampled_from(["resid_pre", "q", "rot_k", "v", "z", "attn_out", "mlp.hook_post", "resid_post"])
    fns = st.sampled_from([halved, averaged])
    return st.builds(Edit, points, st.integers(0, N - 1), fns, st.sampled_from(at))


cuts = st.one_of(known, knockouts)
edited = st.lists(st.one_of(cuts, edits("video[1]", "patches", "question", "last")), max_size=3).map(tuple)
# What an exit took from the sequence cannot be edited after it.
left = st.builds(
    lambda some, exit: (*some, exit), st.lists(st.one_of(cuts, edits("question", "last")), max_size=2),
    st.builds(EarlyExit, st.integers(0, N - 1)),
)  # fmt: skip
random = st.builds(lambda some, seed: (*some, RandomEdges(LV_K, seed)), st.lists(cuts, max_size=1), st.integers(0, 3))
mixes = st.lists(st.one_of(edited, left, random), min_size=1, max_size=8)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), mixes)
def test_random_mixes_equal_plain_forwards(family, conditions):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert worst(model(family), asked(family)[:2], conditions) <= EXACT


# Writes to the stream, to the text, before and after an exit, at every kind of hook point, in the last block too.
EDITS: list[tuple[Intervention, ...]] = [
    (Edit("resid_post", 0, halved, "video[2]"),),
    (Edit("resid_post", 0, halved, "video[2]"), VT_K.at(LayerRange(0, 2))),
    (Edit("resid_pre", N - 1, averaged, "video[1:4]"),),
    (Edit("v", N - 1, halved, "video"), LV_K.at(LayerRange(0, 2))),
    (Edit("rot_k", 2, averaged, "video[0]"), VS_K.at(LayerRange(1, 4))),
    (Edit("z", 1, averaged, "question"), Edit("mlp_out", 3, halved, "last")),
    (Edit("mlp.hook_post", 2, halved, "patches"), EarlyExit(4)),
    (EarlyExit(2), Edit("resid_mid", 3, averaged, "text")),
    (Edit("ln1.hook_normalized", 1, halved, "system"),),
    (Edit("q_input", 2, halved, "video[3]"), Edit("result", 2, halved, "last")),
]


@pytest.mark.parametrize("family", ["llava-video", "internvideo2.5"])
def test_edits_part_the_stream_where_they_write_to_it(family):
    m, x = model(family), asked(family)
    conditions = [*EDITS, (), (LV_K,), (VT_K.at(LayerRange(0, 2)),)]
    assert worst(m, x, conditions) <= EXACT
    edited, intact = sweep(m, x[:1], [EDITS[0], ()])[0]
    assert (edited - intact).abs().max() > 1e-6


def test_equal_edits_in_two_conditions_are_one_divergence_and_unlike_ones_are_two():
    x, same = asked("longva")[:1], Edit("resid_post", 1, halved, "video[2]")
    equal, other = Edit("resid_post", 1, halved, "video[2]"), Edit("resid_post", 1, torch.abs, "video[2]")
    one, two = (Sweep(N, x, [(), (same,), (edit, LV_K.at(LayerRange(3)))]).counts for edit in (equal, other))
    assert (one.stream, two.stream) == (N - 1 + N - 2, N - 1 + 2 * (N - 2))


def test_patches_from_another_run_equal_plain_forwards():
    m, x = model("llava-video"), asked("llava-video")[:1]
    assert m.cfg.vision is not None
    other = m.prepare(noise(m.cfg.vision.image_size, 8)[::-1].copy(), *QUESTIONS[0], n_frames=8)
    _, cache = m.run_with_cache(other, names_filter=["resid_post", "k"])
    conditions = [
        (Patch("resid_post", 1, "video[2]", cache),),
        (Patch("k", N - 1, "video", "theirs"), LV_K.at(LayerRange(0, 2))),
        (Patch("resid_post", 2, "last", cache), VT_K),
    ]
    found = sweep(m, x, conditions, sources={"theirs": cache})[0]
    for condition, logits in zip(conditions, found, strict=True):
        whole = m(x[0], interventions=condition, sources={"theirs": cache}, logits_to_keep=1)[0, -1]
        assert (whole - logits).abs().max() <= EXACT


# ---- a session -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava-onevision", "internvideo2.5"])
def test_a_session_equals_plain_forwards_and_its_memory_changes_no_bit(family):
    m = model(family)
    x = m.encoded(asked(family)[0])
    whole = Session(m, x)
    assert whole.kept.residuals == dict.fromkeys(range(1, N), "device")
    size = whole.kept.device_bytes
    scarce = [
        Session(m, x, device_memory=0),
        Session(m, x, device_memory=size // 2),
        Session(m, x, device_memory=size // 8, cpu_memory=size // 3),
        Session(m, x, device_memory=0, cpu_memory=None),
    ]
    assert scarce[0].kept.device_bytes == scarce[0].kept.cpu_bytes == 0
    assert {p for s in scarce for p in s.kept.keys_values.values()} == {"device", "cpu"}
    for s in scarce:
        assert s.kept.device_bytes <= size and set(s.kept.residuals) <= set(range(1, N))
    for i, condition in enumerate([*full_study(N, 2)[::4], *OTHERS, *EDITS]):
        logits = whole.logits(condition)
        plain = m(x, interventions=condition, logits_to_keep=1)[0, -1]
        assert (plain - logits).abs().max() <= EXACT
        assert torch.equal(scarce[i % len(scarce)].logits(condition), logits)
    assert whole.answer([LV_K]).probs == pytest.approx(m.answer(x, [LV_K]).probs, rel=1e-9)


def test_a_session_runs_the_stream_only_where_it_changes(monkeypatch):
    m, x = model("llava-video"), asked("llava-video")[0]
    kept, scarce = Session(m, x), Session(m, x, device_memory=0)
    ran = []
    block = type(m.blocks[0])
    whole = block.after_attn
    monkeypatch.setattr(block, "after_attn", lambda self, r, *a: ran.append(r.shape[1]) or whole(self, r, *a))
    n = Sweep(N, [x], [()]).n_stream
    kept.logits([LV_K.at(LayerRange(2))])
    assert n not in ran and len(ran) == N - 2
    ran.clear()
    kept.logits([VT_K.at(LayerRange(2, 3))])
    assert ran.count(n) == 1
    ran.clear()
    scarce.logits([VT_K.at(LayerRange(2, 3))])
    assert ran.count(n) == N - 1  # up to the changed block; of the last one keys and values alone
    ran.clear()
    scarce.logits([LV_K])
    assert ran.count(n) == N - 1


def test_an_mlp_takes_some_rows_at_a_time_and_all_where_something_writes_to_them(monkeypatch):
    m, x = model("llava-video"), asked("llava-video")[:1]
    n, ran = Sweep(N, x, [()]).n_stream, []
    whole = type(m.blocks[0].mlp).forward
    monkeypatch.setattr(type(m.blocks[0].mlp), "forward", lambda self, r: ran.append(r.shape[1]) or whole(self, r))
    sweep(m, x, [()])
    # Pieces of about a quarter: what is less than one and a half of them stays whole. The last block makes a text row.
    assert max(ran) <= 1.5 * n / 4 and sum(ran) == (N - 1) * x[0].layout.n_tokens + 1
    ran.clear()
    sweep(m, x, [(Edit("mlp_out", 2, lambda z: z * 0.5, "video[1]"),)])
    assert sum(r >= n for r in ran) == 1


# ---- what it evaluates -----------------------------------------------------------------------------------------


def test_the_full_study_at_28_layers_is_the_predicted_work():
    """823 stream blocks and 53 last blocks' keys and values, instead of 107 forwards of 28 blocks."""
    m = model("llava-onevision", n_layers=28)
    assert m.cfg.vision is not None
    x = m.prepare(noise(m.cfg.vision.image_size), "what is it ?", ["a", "b"], n_frames=8)
    conditions = full_study(28, 4)
    assert len(conditions) == 107  # the baseline is not repeated as a cut after layer 28
    counts = Sweep(28, [x], conditions).counts
    assert (counts.stream, counts.keys_values) == (823, 53)
    three = Sweep(28, [x, x, x], conditions).counts
    assert (three.stream, three.keys_values) == (823, 53)
    assert three.text_states == 3 * counts.text_states


def test_knockouts_of_text_rows_alone_cost_one_stream():
    x = asked("llava-onevision")[0]
    conditions = [c.interventions for c in (*protocols.cumulative(LV_K, N), *protocols.windows(LV_K, N, 2))]
    counts = Sweep(N, [x], [(), *conditions, (EarlyExit(2),), (PATHWAYS["video→last"],)]).counts
    assert (counts.stream, counts.keys_values) == (N - 1, 1)


def test_what_only_the_last_block_does_to_the_video_is_not_evaluated():
    counts = Sweep(N, [asked("longva")[0]], [(), (VT_K.at(LayerRange(N - 1, N)),)]).counts
    assert (counts.stream, counts.keys_values) == (N - 1, 1)


def test_the_blocks_run_are_those_counted(monkeypatch):
    m, x = model("llava-video"), asked("llava-video")
    plan = Sweep(N, x, full_study(N, 2))
    ran, n_text = {"stream": 0, "text": 0}, max(one.layout.n_tokens for one in x) - plan.n_stream
    whole = type(m.blocks[0]).after_attn

    def counted(self, resid, ctx, kv=None):
        stream = resid.shape[1] >= plan.n_stream  # calls of text alone, an item a state, are shorter
        ran["stream"] += stream
        ran["text"] += (resid.shape[1] - plan.n_stream) // n_text if stream else len(resid)
        return whole(self, resid, ctx, kv)

    monkeypatch.setattr(type(m.blocks[0]), "after_attn", counted)
    cells = []
    sweep(m, x, full_study(N, 2), cells.append)
    assert ran == {"stream": plan.counts.stream, "text": plan.counts.text_states}
    assert sum(cells) == len(x) * len(full_study(N, 2))


# ---- what cannot be swept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop", ["options", "question", "text", "all", "last", "video+last"])
def test_exits_that_a_run_refuses_are_refused_by_sweeps_and_sessions(drop):
    m, x = model("longva"), asked("longva")
    session = Session(m, x[0])
    exit, said = EarlyExit(1, drop), f"cannot drop {re.escape(repr(drop))}: it holds text"
    for run in (
        lambda: m.answer(x[0], exit),
        lambda: session.answer(exit),
        lambda: sweep(m, x, [exit]),
        lambda: shareable([exit], x[0].layout, N),
    ):
        with pytest.raises(InterventionError, match=said):
            run()


def test_what_cannot_be_shared_is_refused():
    m, x = model("longva"), asked("longva")
    with pytest.raises(InterventionError, match=r"cannot share .* it writes to an attention map"):
        sweep(m, x, [(Edit("pattern", 1, torch.zeros_like, "last"),)])
    with pytest.raises(InterventionError, match="it writes to the video and to the text after it"):
        sweep(m, x, [(Edit("resid_post", 1, torch.zeros_like),)])
    with pytest.raises(InterventionError, match="takes its activation from 'other'"):
        sweep(m, x, [(Patch("resid_post", 1, "last", "other"),)])
    with pytest.raises(InterventionError, match="left the sequence by an early exit"):
        sweep(m, x, [(EarlyExit(1), Edit("z", 2, torch.zeros_like, "video[0]"))])
    other = m.prepare(noise(70, 4), "what is it ?", n_frames=4)
    with pytest.raises(InputError, match="must share their video and everything before it"):
        sweep(m, [x[0], other], [()])
    timed = [m.prepare(noise(70, 4), "what ?", n_frames=4, folder_fps=fps) for fps in (2, 8)]
    with pytest.raises(InputError, match="the same frames at other times"):
        sweep(m, timed, [()])
    with pytest.raises(InputError, match="needs a video with a question after it"):
        sweep(m, [m.prepare(None, "what ?")], [()])
    session = Session(m, x[0])
    for name in ("blocks.1.hook_resid_post", "blocks.1.mlp", "blocks.1"):
        handle = m.get_submodule(name).register_forward_hook(lambda *_: None)
        try:
            for run in (lambda: sweep(m, x, [()]), session.logits):
                with pytest.raises(InputError, match=rf"hooks would see parts of them: \['{name}'\]"):
                    run()
        finally:
            handle.remove()
