"""Attention as a list of kernel calls against the dense mask: the same pairs and sums, nothing token x token."""

import math
import tracemalloc
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import hookedvid.nn.structured as structured
from hookedvid.nn.attention import attend
from hookedvid.nn.hooks import HookPoint
from hookedvid.nn.structured import Structure, n_edges, structure
from hookedvid.values.config import ProjectorConfig
from hookedvid.values.interventions import LV_K, PATHWAYS, VS_K, VT_K, Knockout, RandomEdges
from hookedvid.values.layout import FrameBlendWarning, Segment, TokenLayout
from hookedvid.values.masks import allowed, mask_of, same_type, visible
from memory_use import measure
from models import LAW, apart, blended_layout, layouts, square_video

SELECTORS = st.sampled_from(
    ["video", "patches", "text", "last", "all", "question+last", "video[0]", "video[-1]", "system+question"]
)
NAMED = [LV_K, VT_K, VS_K, replace(VS_K, keep_self=False), *PATHWAYS.values(), Knockout("all", "last", keep_self=False)]
KNOCKOUTS = st.lists(
    st.sampled_from(NAMED)
    | st.builds(
        Knockout,
        SELECTORS,
        SELECTORS,
        relation=st.sampled_from(["any", "same_frame", "other_frame"]),
        keep_self=st.booleans(),
        weight=st.sampled_from([0.0, 0.0, 0.5, 3.0]),
    ),
    max_size=3,
)


def usable(layout: TokenLayout, knockouts: list[Knockout]) -> list[Knockout]:
    """Those whose selectors select something here."""
    roles = set(layout.roles)
    needs = {"system": "system", "options": "options", "newlines": "newline", "template": "template"}
    return [k for k in knockouts if all(r in roles for w, r in needs.items() if w in k.src + k.dst)]


def built(layout: TokenLayout, knockouts: list[Knockout], *positions: Tensor | None) -> Structure:
    made = structure(layout, [k.cut for k in knockouts], *positions)
    assert made is not None
    return made


def some_of(data, layout: TokenLayout) -> Tensor:
    return torch.tensor(data.draw(st.lists(st.integers(0, layout.n_tokens - 1), min_size=1, unique=True).map(sorted)))


def qkv(n_query: int, n_key: int, n_heads: int, n_kv: int, seed: int, batch: int = 2, d: int = 4) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = ((n_query, n_heads), (n_key, n_kv), (n_key, n_kv))
    return [torch.randn(batch, n, h, d, generator=g, dtype=torch.float64) * 2 for n, h in sizes]


def dense(q: Tensor, k: Tensor, v: Tensor, may: Tensor) -> Tensor:
    return attend(q, k, v, may[None, None], causal=False, kernel="eager", on_scores=HookPoint(), on_pattern=HookPoint())


def sdpa(q: Tensor, k: Tensor, v: Tensor, may: Tensor | None, causal: bool = False) -> Tensor:
    return attend(q, k, v, may, causal=causal, kernel="sdpa", on_scores=HookPoint(), on_pattern=HookPoint())


def video_layout(n_frames: int, per_frame: int, newline: str) -> TokenLayout:
    """Three tokens, a video, twenty tokens."""
    video = square_video(ProjectorConfig(d_in=1, d_out=1, newline=newline), math.isqrt(per_frame), n_frames)
    return TokenLayout.of([Segment("system", 0, 3), *video, Segment("question", 0, 18), Segment("template", 0, 2)])


# Groups as they are, or cut every few rows as only long ones are; and the kernel's normaliser at hand or not.
CUT = st.sampled_from([{"ROWS": structured.ROWS}, {"ROWS": 3, "WASTE": 2, "COPIES": 1}])
NO_LSE = {"_gives_lse": lambda *tensors: False, "SCORES": 64}
LSE = st.sampled_from([{"SCORES": structured.SCORES}, NO_LSE])


@LAW
@given(layouts(), KNOCKOUTS, CUT, st.data())
def test_the_calls_are_the_mask(layout, knockouts, cut, data):
    knockouts = usable(layout, knockouts)
    query, key = some_of(data, layout), some_of(data, layout)
    with patch.multiple(structured, **cut):
        for positions in ((None, None), (query, key), (key, key), (torch.tensor([layout.n_tokens - 1]), None)):
            cuts = [k.cut for k in knockouts]
            plan, may = built(layout, knockouts, *positions), mask_of(layout, cuts, *positions)
            assert torch.equal(*same_type([plan.dense(), may]))
            assert plan.edges == n_edges(layout, cuts, *positions) == int(visible(may).sum())
            assert max((c.local.numel() for c in plan.calls if c.local is not None), default=0) <= may.numel()


@LAW
@given(layouts(), KNOCKOUTS, CUT, LSE, st.data(), st.sampled_from([(4, 4), (4, 2), (4, 1)]), st.booleans())
def test_attention_is_that_of_the_mask(layout, knockouts, cut, lse, data, heads, grad):
    knockouts = usable(layout, knockouts)
    query, key = (some_of(data, layout), some_of(data, layout)) if data.draw(st.booleans()) else (None, None)
    may = mask_of(layout, [k.cut for k in knockouts], query, key)
    q, k, v = (x.requires_grad_(grad) for x in qkv(*may.shape, *heads, seed=layout.n_tokens))
    with patch.multiple(structured, **cut, **lse):
        z = built(layout, knockouts, query, key).to(torch.device("cpu")).attend(q, k, v)
    wanted = dense(q, k, v, may)
    assert z.shape == wanted.shape and (z - wanted).abs().max() <= 1e-12
    assert not z[:, ~visible(may).any(-1)].any()
    if grad and bool(visible(may).any()):
        found, right = (torch.autograd.grad(x.square().sum(), (q, k, v), materialize_grads=True) for x in (z, wanted))
        assert all((a - b).abs().max() <= 1e-11 for a, b in zip(found, right, strict=True))


# Rows that see only themselves beside rows of their kind that see more; frames of one shape and two masks.
HARD = [[Knockout("video[0]", "video")], [VT_K, Knockout("video[0]", "video[0]")]]


@torch.no_grad()
@pytest.mark.parametrize("knockouts", HARD, ids=["self beside causal", "two masks"])
def test_masks_within_a_call_are_the_rows_own(knockouts):
    layout = video_layout(n_frames=3, per_frame=9, newline="none")
    plan, may = built(layout, knockouts), allowed(layout, [k.cut for k in knockouts])
    assert torch.equal(plan.dense(), may)
    q, k, v = qkv(*may.shape, 4, 2, seed=0)
    assert (plan.attend(q, k, v) - dense(q, k, v, may)).abs().max() <= 1e-12


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_knockouts_it_is_the_present_kernel_bit_for_bit(dtype):
    layout = video_layout(n_frames=4, per_frame=49, newline="frame")
    kept = (~layout.mask("video")).nonzero().flatten()
    last = torch.tensor([layout.n_tokens - 1])
    for query, key in ((None, None), (kept, kept), (last, None)):
        plan = built(layout, [], query, key)
        q, k, v = (x.to(dtype) for x in qkv(plan.n_query, plan.n_key, 4, 2, seed=0, d=16))
        present = sdpa(q, k, v, None, causal=plan.n_query == plan.n_key)
        assert torch.equal(plan.attend(q, k, v), present)


@torch.no_grad()
@pytest.mark.parametrize("knockout", [VT_K, VS_K, LV_K], ids=lambda k: k.name)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_calls_are_as_near_the_formula_as_the_dense_kernel(knockout, dtype, near):
    layout = video_layout(n_frames=6, per_frame=100, newline="once")
    may = allowed(layout, [knockout.cut])
    exact = qkv(*may.shape, 4, 2, seed=0, d=16)
    q, k, v = (x.to(dtype) for x in exact)
    wanted = dense(*(x.double() for x in (q, k, v)), may)
    assert apart(sdpa(q, k, v, may[None, None]).double(), wanted) < near
    assert apart(built(layout, [knockout]).attend(q, k, v).double(), wanted) < near


def test_frames_of_one_size_share_one_call_and_text_has_its_own():
    for n_frames in (2, 32):
        layout = video_layout(n_frames, per_frame=9, newline="none")
        calls = built(layout, [VT_K]).calls
        assert [(c.n, c.n_rows, c.n_keys) for c in calls] == [
            (1, 3, 3), (n_frames, 9, 12), (1, 20, layout.n_tokens),
        ]  # fmt: skip
        assert calls[0].causal and len(built(layout, [LV_K]).calls) == 2
        assert sum(c.n for c in built(layout, [VS_K]).calls) == n_frames + 2


def test_newlines_among_patches_do_not_make_a_call_for_each_row():
    layout = video_layout(n_frames=32, per_frame=196, newline="row")
    assert len(built(layout, [PATHWAYS["cross-frame"]]).calls) < 64


@torch.no_grad()
@pytest.mark.parametrize("knockout", [VT_K, VS_K, replace(VS_K, keep_self=False), LV_K], ids=str)
@pytest.mark.parametrize("fast", [True, False], ids=["op", "mask"])
def test_neither_plan_nor_attention_holds_anything_near_a_square(knockout, fast):
    layout = video_layout(n_frames=32, per_frame=121, newline="once")
    n = layout.n_tokens
    tracemalloc.start()
    plan = built(layout, [knockout])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * n / 8, "bytes, of numpy's arrays"
    held = [x.numel() for c in plan.calls for x in (c.rows, c.keys, c.local) if isinstance(x, torch.Tensor)]
    assert sum(held) < n * n / 20
    q, k, v = (x.float() for x in qkv(n, n, 4, 2, seed=0, batch=1, d=4))
    with patch.multiple(structured, **({"SCORES": structured.SCORES} if fast else NO_LSE)):
        seen = measure(lambda: plan.attend(q, k, v))
    # Without the kernel's normaliser a frame's mask spans the keys before it; it is expanded to all heads.
    assert seen.numel <= (n * 4 * 4 + 121**2 if fast and knockout is not LV_K else 4 * 121 * n)
    assert seen.n_square == 0


def test_what_has_no_structure_says_so():
    layout = video_layout(n_frames=2, per_frame=4, newline="none")
    some = torch.arange(3)
    assert structure(layout, [RandomEdges(VT_K).cut]) is None
    for wrong in (torch.tensor([-1, 0, 1]), torch.tensor([1, 0]), torch.tensor([1, 1]), some[:0]):
        assert structure(layout, [VT_K.cut], wrong, some) is None
        assert structure(layout, [VT_K.cut], some, wrong) is None


def test_blended_frames_warn_as_the_mask_does_and_are_cut_as_it_cuts():
    layout = blended_layout()
    for make in (lambda: structure(layout, [VT_K.cut]), lambda: allowed(layout, [VT_K.cut])):
        with pytest.warns(FrameBlendWarning, match="VT-K on tokens that mix 4 frames each cannot separate") as caught:
            make()
        assert len(caught) == 1
    with pytest.warns(FrameBlendWarning):
        assert torch.equal(built(layout, [VS_K]).dense(), allowed(layout, [VS_K.cut]))
