"""Time attention under knockouts as kernel calls against the dense mask, one layer, on one CPU thread; write the table.

    python benchmarks/structured.py            # a Qwen2-0.5B and a Qwen2-7B layer, 32 frames; about two minutes
    python benchmarks/structured.py --small    # the first alone

Processor time of this process; the two paths alternate and a ratio is the median over rounds of one round's quotient.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hookedvid.interventions import LV_K, VS_K, VT_K, Knockout
from hookedvid.layout import Segment, TokenLayout
from hookedvid.masks import allowed
from hookedvid.nn.attention import attend
from hookedvid.nn.hooks import HookPoint
from hookedvid.nn.structured import structure

ROOT = Path(__file__).resolve().parents[1]
QUIET = HookPoint()


class Shape(NamedTuple):
    """A decoder layer and the tokens of a frame; 32 frames, 15 tokens before them, 100 after."""

    name: str
    per_frame: int
    heads: int
    kv_heads: int
    d_head: int
    rounds: int


SHAPES = (Shape("14/2 heads of 64", 64, 14, 2, 64, 7), Shape("28/4 heads of 128", 196, 28, 4, 128, 1))


class Row(NamedTuple):
    """What one line of the table says: seconds of each round, and how far the two outputs are apart."""

    what: str
    dense: list[float]
    fast: list[float]
    build_dense: float
    build_fast: float
    apart: float


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def layout_of(shape: Shape) -> TokenLayout:
    video = [Segment("video", 0, shape.per_frame, frame=f) for f in range(32)]
    return TokenLayout.of([Segment("system", 0, 15), *video, Segment("question", 0, 100)])


def masked(q: Tensor, k: Tensor, v: Tensor, may: Tensor | None) -> Tensor:
    return attend(q, k, v, may, causal=may is None, kernel="sdpa", on_scores=QUIET, on_pattern=QUIET)


def paired(what: str, rounds: int, dense: tuple[Callable, Callable], fast: tuple[Callable, Callable]) -> Row:
    """`dense` and `fast`: what builds the mask or the plan, and attention given what was built."""
    built = [x[0]() for x in (dense, fast)]
    builds = [min(seconds(x[0]) for _ in range(3)) for x in (dense, fast)]
    runs = [lambda x=x, b=b: x[1](b) for x, b in zip((dense, fast), built, strict=True)]
    if rounds > 1:
        [run() for run in runs]
    out: list[Tensor] = []
    times = [[seconds(lambda run=run: out.append(run())) for run in runs] for _ in range(rounds)]
    apart = (out[0] - out[1]).abs().max().item()
    return Row(what, [t[0] for t in times], [t[1] for t in times], builds[0], builds[1], apart)


def one_layer(shape: Shape, layout: TokenLayout, knockout: Knockout | None, text_only: bool) -> Row:
    n = layout.n_tokens
    query = torch.arange(n - 100 if text_only else 0, n)
    q, k, v = random_qkv(shape, len(query), n)
    knockouts = [] if knockout is None else [knockout]
    what = (knockout.name if knockout else "intact") + (", text rows" if text_only else "")
    key = torch.arange(n)
    return paired(
        what,
        shape.rounds * (5 if text_only else 1),
        (lambda: allowed(layout, knockouts, query, key)[None, None], lambda may: masked(q, k, v, may)),
        (lambda: structure(layout, knockouts, query, key), lambda plan: plan.attend(q, k, v)),
    )


def random_qkv(shape: Shape, n_query: int, n_key: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    sizes = ((n_query, shape.heads), (n_key, shape.kv_heads), (n_key, shape.kv_heads))
    q, k, v = (torch.randn(1, n, h, shape.d_head, generator=g) for n, h in sizes)
    return q * 2, k, v


def lines(shape: Shape) -> list[str]:
    layout = layout_of(shape)
    rows = [one_layer(shape, layout, k, False) for k in (VT_K, VS_K, LV_K)]
    rows += [one_layer(shape, layout, k, True) for k in (None, LV_K)]
    table = []
    for r in rows:
        ratios = [b / a for a, b in zip(r.dense, r.fast, strict=True)]
        spread = f" ({min(ratios):.2f}–{max(ratios):.2f})" if len(ratios) > 1 else ""
        a, b = (statistics.median(x) * 1e3 for x in (r.dense, r.fast))
        table.append(
            f"| {layout.n_tokens:,} | {shape.name} | {r.what} | {a:,.1f} | {b:,.1f} | {statistics.median(ratios):.3f}"
            f"{spread} | {r.build_dense * 1e3:.1f} | {r.build_fast * 1e3:.1f} | {r.apart:.1e} | {len(ratios)} |"
        )
        print(table[-1], flush=True)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--small", action="store_true", help="the smaller shape alone; prints, writes nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "structured.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with torch.no_grad():
        table = [line for shape in SHAPES[: 1 if args.small else 2] for line in lines(shape)]
    if args.small:
        return
    about = (
        f"{os.cpu_count()} cores ({platform.machine()}), one thread, Python {platform.python_version()}, "
        f"torch {torch.__version__}, float32"
    )
    head = [
        "# Attention under knockouts: kernel calls against the dense mask", "",
        f"`python benchmarks/structured.py`; {about}. One layer on random tensors: 15 tokens, 32 frames, 100 tokens of "
        "text. Process CPU time in ms, medians; the two paths alternate and the ratio is the median of each round's "
        "quotient, in brackets its range (n rounds). Making the mask or the plan is beside it: once for each set of "
        "knockouts, not for each layer. The last column but one is the largest difference of the two outputs.",
        "",
        "| tokens | layer | knockout | dense, ms | calls, ms | ratio | make mask, ms | make plan, ms | apart | n |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    args.out.write_text("\n".join([*head, *table]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
