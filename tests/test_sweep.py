"""A sweep against plain forwards: the same logits for every question and condition, and the work it says it does."""

import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookedvid import LV_K, VS_K, VT_K, EarlyExit, HookedVideoLLM, LayerRange, Patch, small_config
from hookedvid.errors import InputError, InterventionError
from hookedvid.families import FAMILIES
from hookedvid.inputs import VideoInputs
from hookedvid.interventions import PATHWAYS, Intervention, Knockout, RandomEdges
from hookedvid.study import protocols
from hookedvid.sweep import Sweep, sweep

pytestmark = pytest.mark.filterwarnings("ignore::hookedvid.layout.FrameBlendWarning")

N = 5
EXACT = 1e-12  # float64: the same sums in another order, of logits of order 1
ROUNDED = 2e-5  # float32: two plain kernels of attention already differ by 1e-5 on such logits
QUESTIONS = (
    ("what is it ?", ["a", "bb"]),
    ("where does the thing go ?", ["left", "right", "up"]),
    ("why ?", ["x", "y", "z", "w"]),
)


def noise(size: int, n: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@cache
def model(family: str, dtype: torch.dtype = torch.float64, n_layers: int = N, kernel: str = "sdpa") -> HookedVideoLLM:
    """A small model away from its initial weights."""
    m = HookedVideoLLM.from_config(small_config(family, n_layers=n_layers), kernel=kernel)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return m.to(dtype)


@cache
def asked(family: str, dtype: torch.dtype = torch.float64, markers: bool = False) -> tuple[VideoInputs, ...]:
    """Questions of unequal length, with and without options, on one video."""
    m = model(family, dtype)
    assert m.cfg.vision is not None
    frames = noise(m.cfg.vision.image_size)
    return tuple(m.prepare(frames, q, o, n_frames=8, markers_are_language=markers) for q, o in QUESTIONS)


def full_study(n: int, width: int) -> list[tuple[Intervention, ...]]:
    """Baseline, cumulative at every layer, all layers and windows of three knockouts."""
    cuts = (LV_K, VT_K, VS_K)
    conditions = [protocols.BASELINE, *protocols.cumulative(LV_K, n), *protocols.everywhere(cuts)]
    conditions += [c for k in cuts for c in protocols.windows(k, n, width)]
    return [c.interventions for c in conditions]


def worst(m: HookedVideoLLM, inputs: Sequence[VideoInputs], conditions: Sequence[Sequence[Intervention]]) -> float:
    """The largest difference of a logit to plain forwards."""
    found = sweep(m, inputs, conditions)
    off = 0.0
    with torch.no_grad():
        for x, row in zip(inputs, found, strict=True):
            for condition, logits in zip(conditions, row, strict=True):
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
    (Knockout("video", "video", relation="same_frame", keep_self=False),),
    (PATHWAYS["video→last"], PATHWAYS["video→question"].at(LayerRange(0, 3))),
    (Knockout("system", "video[2:5]"), Knockout("video[1]", "last")),
    (Knockout("question", "last"), Knockout("system+question", "template", LayerRange(1, 2))),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_study_and_odd_conditions_equal_plain_forwards(family):
    assert worst(model(family), asked(family), [*full_study(N, 2), *OTHERS]) <= EXACT


def test_markers_that_are_language_change_the_stream_and_are_told_apart():
    inputs = asked("internvideo2.5", markers=True)
    assert worst(model("internvideo2.5"), inputs, [*full_study(N, 2), *OTHERS]) <= EXACT


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_float32_differs_by_rounding(kernel):
    m = model("llava-video", torch.float32, kernel=kernel)
    assert worst(m, asked("llava-video", torch.float32), full_study(N, 2)) <= ROUNDED


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
mixes = st.lists(st.lists(st.one_of(known, knockouts), max_size=3).map(tuple), min_size=1, max_size=8)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["longva", "llava-onevision", "llava-video", "internvideo2.5"]), mixes)
def test_random_mixes_of_knockouts_equal_plain_forwards(family, conditions):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert worst(model(family), asked(family)[:2], conditions) <= EXACT


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
    ran = {"stream": 0, "text": 0}
    whole = type(m.blocks[0]).forward

    def counted(self, resid, ctx, kv=None):
        ran["stream" if resid.shape[1] == plan.n_stream else "text"] += 1
        return whole(self, resid, ctx, kv)

    monkeypatch.setattr(type(m.blocks[0]), "forward", counted)
    cells = []
    sweep(m, x, full_study(N, 2), cells.append)
    assert ran == {"stream": plan.counts.stream, "text": plan.counts.text_states}
    assert sum(cells) == len(x) * len(full_study(N, 2))


# ---- what cannot be swept ---------------------------------------------------------------------------------------


def test_what_cannot_be_shared_is_refused():
    m, x = model("longva"), asked("longva")
    with pytest.raises(InterventionError, match="cannot share patches of activations"):
        sweep(m, x, [(Patch("resid_post", 1, "last", "other"),)])
    other = m.prepare(noise(70, 4), "what is it ?", n_frames=4)
    with pytest.raises(InputError, match="must share their video and everything before it"):
        sweep(m, [x[0], other], [()])
    with pytest.raises(InputError, match="needs a video with a question after it"):
        sweep(m, [m.prepare(None, "what ?")], [()])
    handle = m.blocks[1].hook_resid_post.register_forward_hook(lambda *_: None)
    try:
        with pytest.raises(InputError, match=r"hooks would see parts of them: \['blocks.1.hook_resid_post'\]"):
            sweep(m, x, [()])
    finally:
        handle.remove()
