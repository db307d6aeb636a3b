"""Operations of a run: against pairs counted one by one, the paper's table, formulas, and torch's own counter."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from hookedvid import Flops, edge_share
from hookedvid.errors import InterventionError
from hookedvid.model.flops import Costs, n_pairs, patch_grid
from hookedvid.nn.grids import windows
from hookedvid.values.interventions import (
    LV_K,
    PATHWAYS,
    VS_K,
    VT_K,
    EarlyExit,
    Intervention,
    Knockout,
    LayerRange,
    RandomEdges,
)
from hookedvid.values.masks import allowed, blocked
from memory_use import measure
from models import LAW, SEVEN_B, UNLIKE, VIDEO_MODELS, laid_out, layouts, random_model, rich_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]

KNOCKOUTS = st.sampled_from([LV_K, VT_K, VS_K]) | st.builds(
    Knockout,
    st.sampled_from(["video", "patches", "text", "last", "all", "video[0]"]),
    st.sampled_from(["video", "patches", "text", "last", "all", "question+last"]),
    st.sampled_from([LayerRange(), LayerRange(1), LayerRange(0, 2), LayerRange(1, 3, outside=True)]),
    st.sampled_from(["any", "same_frame", "other_frame"]),
    st.booleans(),
)
# Qwen2-7B's decoder and SigLIP so400m, as LLaVA-OneVision joins them.
PAPERS = [EarlyExit(18), VT_K.at(LayerRange(0, 8))]


@LAW
@given(layouts(), st.lists(KNOCKOUTS, max_size=2), st.none() | st.integers(0, 3))
def test_the_edge_share_is_what_counting_every_pair_gives(layout, knockouts, exit_layer):
    n_layers, n = 3, layout.n_tokens
    exits = [] if exit_layer is None else [EarlyExit(exit_layer)]
    video = layout.mask("video").tolist()
    cuts = {k: blocked(layout, k.cut).tolist() for k in knockouts}
    left = 0
    for layer in range(n_layers):
        here = [cuts[k] for k in knockouts if layer in k.layers.layers(n_layers)]
        gone = video if exits and layer >= exit_layer else [False] * n
        left += sum(not (gone[i] or gone[j] or any(cut[i][j] for cut in here)) for i in range(n) for j in range(i + 1))
    assert edge_share(layout, [*knockouts, *exits], n_layers) == left / (n_layers * n * (n + 1) / 2)


@LAW
@given(layouts(), KNOCKOUTS, st.lists(KNOCKOUTS, max_size=1), st.integers(0, 3))
def test_random_edges_are_counted_without_being_drawn(layout, like, others, seed):
    cuts = [k.cut for k in (RandomEdges(like, seed), *others)]
    try:
        counted = int(allowed(layout, cuts).sum())
    except InterventionError:  # more to cut than there are to draw from
        with pytest.raises(InterventionError, match="edges to cut, but the prompt has"):
            n_pairs(layout, cuts)
        return
    assert n_pairs(layout, cuts) == counted


@pytest.mark.parametrize(
    ("newline", "side", "both"), [("once", 14, 37.52), ("row", 13, 37.59)], ids=["LLaVA-OneVision", "LLaVA-Video"]
)
def test_exit_and_window_leave_the_papers_share_of_attention(newline, side, both):
    # 14 tokens of system, 32 frames, 90 of text, 28 layers; the table prints one decimal, the facts two.
    layout = laid_out(32, side, newline)
    assert round(100 * edge_share(layout, PAPERS[:1], 28), 1) == 64.3
    assert round(100 * edge_share(layout, PAPERS, 28), 2) == both


def test_a_model_of_seven_billion_by_hand():
    layout = laid_out(32, 14, "none", 15, 100)
    n, rows_left = 15 + 32 * 196 + 100, 15 + 100
    assert n == layout.n_tokens == 6387
    intact = Flops.of(SEVEN_B, layout)
    row = 2 * 3584 * (2 * 3584 + 2 * 512 + 3 * 18944)
    assert intact.linear == 28 * n * row + 2 * 3584 * 152064
    assert intact.attention == 28 * (n * (n + 1) // 2) * 4 * 3584
    rounded = [round(x / 1e12, 1) for x in (intact.linear, intact.attention, intact.tower, intact.projector)]
    assert rounded == [83.4, 8.2, 20.5, 0.8]  # 10^12
    assert intact.total == intact.decoder + intact.tower + intact.projector
    left = Flops.of(SEVEN_B, layout, PAPERS)
    assert left.linear == (18 * n + 10 * rows_left) * row + 2 * 3584 * 152064
    shares = left.shares(intact)
    assert [round(100 * s, 1) for s in shares[:3]] == [64.9, 37.6, 62.5]
    assert shares.attention == edge_share(layout, PAPERS, 28)
    assert (left.tower, left.projector) == (intact.tower, intact.projector) and shares.total > shares.decoder


def test_a_run_that_starts_later_is_what_the_blocks_before_leave():
    costs = Costs(SEVEN_B, laid_out(4, 14, "once"))
    for given_ in ((), PAPERS, (LV_K.at(LayerRange(20)),)):
        whole, late, early = costs.of(given_), costs.of(given_, 20), costs.of(given_, 28)
        assert late.tower == late.projector == early.attention == 0
        assert early.linear == 2 * 3584 * 152064, "the unembedding alone"
        assert early.linear < late.linear < whole.linear and late.attention < whole.attention
    assert costs.of((), 20).attention * 28 == costs.of().attention * 8


LINEARS = (".attn.q", ".attn.k", ".attn.v", ".attn.o", ".mlp", ".unembed")


@torch.no_grad()
def counted(name: str, given_: list[Intervention]) -> tuple[dict[str, int], Flops, Flops]:
    """Torch's count by part and ours, of a model that builds every pair; and ours intact."""
    model = random_model(name, kernel="eager")
    inputs = rich_inputs(model)
    with FlopCounterMode(display=False) as counter:
        model(inputs, interventions=given_, logits_to_keep=1)
    by_module = {m: sum(ops.values()) for m, ops in counter.get_flop_counts().items()}
    decoder = {m: n for m, n in by_module.items() if ".vision" not in m}
    projections = sum(n for m, n in decoder.items() if m.endswith(LINEARS[:4]))
    parts = {
        "linear": sum(n for m, n in decoder.items() if m.endswith(LINEARS)),
        "attention": sum(n for m, n in decoder.items() if m.endswith(".attn")) - projections,
        "tower": next(n for m, n in by_module.items() if m.endswith(".vision")),
        "projector": sum(n for m, n in by_module.items() if ".projector." in m and m.endswith((".inp", ".out"))),
    }
    return parts, Flops.of(model.cfg, inputs.layout, given_), Flops.of(model.cfg, inputs.layout)


def beside_windows(name: str) -> int:
    """Operations of the explicit kernel on pairs of patches that windows part."""
    cfg, layout = random_model(name).cfg, rich_inputs(random_model(name)).layout
    if not cfg.vision.window:
        return 0
    height, width = patch_grid(cfg, layout)
    pairs = (height * width) ** 2 - windows([(1, height, width)], cfg.vision.window).edges
    layers = cfg.vision.n_layers - len(cfg.vision.full_blocks)
    return len(layout.steps) * layers * 4 * pairs * cfg.vision.d_model


@pytest.mark.parametrize(
    ("name", "given_"),
    [(n, []) for n in VIDEO_MODELS] + [(n, g) for n in UNLIKE for g in ([EarlyExit(1)], [VT_K, LV_K.at(1)])],
)
def test_torchs_counter_finds_the_same(name, given_):
    theirs, ours, intact = counted(name, given_)
    theirs["tower"] -= beside_windows(name)
    assert (ours.linear, ours.tower, ours.projector) == tuple(theirs[k] for k in ("linear", "tower", "projector"))
    if not given_:
        # The explicit kernel computes the pairs after the query too: n^2 where n (n + 1) / 2 are allowed.
        n = rich_inputs(random_model(name)).layout.n_tokens
        assert theirs["attention"] * (n + 1) == ours.attention * 2 * n
    else:
        assert ours.attention < intact.attention


@pytest.mark.parametrize("given_", [PAPERS, [LV_K, VS_K], [PATHWAYS["cross-frame"]], [RandomEdges(LV_K)]])
def test_twenty_thousand_tokens_need_no_mask(given_):
    layout = laid_out(100, 14, "row")
    n = layout.n_tokens
    assert n > 20_000
    assert measure(lambda: Costs(SEVEN_B, layout).of(given_)).numel < n * n / 100


@pytest.mark.parametrize("name", UNLIKE)
def test_text_alone_runs_no_tower(name):
    model = random_model(name)
    layout = model.inputs_from_tensors(torch.arange(30, 42)).layout
    found = Flops.of(model.cfg, layout)
    assert found.tower == found.projector == 0 < found.linear
    assert found == Flops.of(replace(model.cfg, vision=None, projector=None), layout)
