"""Attention of one layer under knockouts as kernel calls against the dense mask."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.measuring import timed
from benchmarks.printing import over, spread, table
from hookedvid.nn.attention import attend
from hookedvid.nn.hooks import HookPoint
from hookedvid.nn.structured import structure
from hookedvid.values.interventions import LV_K, VS_K, VT_K, Knockout
from hookedvid.values.layout import Segment, TokenLayout
from hookedvid.values.masks import allowed

TITLE = "Attention under knockouts: kernel calls against the dense mask"
QUIET = HookPoint()


class Shape(NamedTuple):
    """A decoder layer and the tokens of a frame; 32 frames, 15 tokens before them, 100 after."""

    name: str
    per_frame: int
    heads: int
    kv_heads: int
    d_head: int
    rounds: int


TOY = Shape("4/2 heads of 8", 2, 4, 2, 8, 1)
SHAPES = (Shape("14/2 heads of 64", 64, 14, 2, 64, 7), Shape("28/4 heads of 128", 196, 28, 4, 128, 1))


class Row(NamedTuple):
    """What one line of the table says: seconds of each round, and how far the two outputs are apart."""

    what: str
    dense: list[float]
    fast: list[float]
    build_dense: float
    build_fast: float
    apart: float


def layout_of(shape: Shape) -> TokenLayout:
    video = [Segment("video", 0, shape.per_frame, frame=f) for f in range(32)]
    return TokenLayout.of([Segment("system", 0, 15), *video, Segment("question", 0, 100)])


def masked(q: Tensor, k: Tensor, v: Tensor, may: Tensor | None) -> Tensor:
    return attend(q, k, v, may, causal=may is None, kernel="sdpa", on_scores=QUIET, on_pattern=QUIET)


def paired(what: str, rounds: int, dense: tuple[Callable, Callable], fast: tuple[Callable, Callable]) -> Row:
    """`dense` and `fast`: what builds the mask or the plan, and attention given what was built."""
    built = [x[0]() for x in (dense, fast)]
    builds = [min(timed(x[0])[0] for _ in range(3)) for x in (dense, fast)]
    runs = [lambda x=x, b=b: x[1](b) for x, b in zip((dense, fast), built, strict=True)]
    if rounds > 1:
        [run() for run in runs]
    out: list[Tensor] = []
    times = [[timed(lambda run=run: out.append(run()))[0] for run in runs] for _ in range(rounds)]
    apart = (out[0] - out[1]).abs().max().item()
    return Row(what, [t[0] for t in times], [t[1] for t in times], builds[0], builds[1], apart)


def one_layer(shape: Shape, layout: TokenLayout, knockout: Knockout | None, text_only: bool) -> Row:
    n = layout.n_tokens
    query = torch.arange(n - 100 if text_only else 0, n)
    q, k, v = random_qkv(shape, len(query), n)
    cuts = [] if knockout is None else [knockout.cut]
    what = (knockout.name if knockout else "intact") + (", text rows" if text_only else "")
    key = torch.arange(n)
    return paired(
        what,
        shape.rounds * (5 if text_only else 1),
        (lambda: allowed(layout, cuts, query, key)[None, None], lambda may: masked(q, k, v, may)),
        (lambda: structure(layout, cuts, query, key), lambda plan: plan.attend(q, k, v)),
    )


def random_qkv(shape: Shape, n_query: int, n_key: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    sizes = ((n_query, shape.heads), (n_key, shape.kv_heads), (n_key, shape.kv_heads))
    q, k, v = (torch.randn(1, n, h, shape.d_head, generator=g) for n, h in sizes)
    return q * 2, k, v


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section."""
    rows = []
    for shape in (TOY,) if quick else SHAPES:
        shape = shape if rounds is None else shape._replace(rounds=rounds)
        layout = layout_of(shape)
        found = [one_layer(shape, layout, k, False) for k in (VT_K, VS_K, LV_K)]
        found += [one_layer(shape, layout, k, True) for k in (None, LV_K)]
        for r in found:
            ms = (f"{statistics.median(x) * 1e3:,.1f}" for x in (r.dense, r.fast))
            built = (f"{x * 1e3:.1f}" for x in (r.build_dense, r.build_fast))
            ratio = spread(over(r.fast, r.dense), 3)
            rows.append(
                [f"{layout.n_tokens:,}", shape.name, r.what, *ms, ratio, *built, f"{r.apart:.1e}", len(r.dense)]
            )
    head = [
        "tokens",
        "layer",
        "knockout",
        "dense, ms",
        "calls, ms",
        "ratio",
        "make mask, ms",
        "make plan, ms",
        "apart",
        "n",
    ]
    return [
        "One layer on random tensors, float32: 15 tokens, 32 frames, 100 tokens of text. The two paths alternate and a "
        "ratio is of one round. Making the mask or the plan is beside it: once for each set of knockouts, not for each "
        "layer. The last column but one is the largest difference of the two outputs.",
        "",
        *table(head, rows),
    ]
