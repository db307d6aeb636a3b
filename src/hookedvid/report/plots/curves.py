"""Curves with their 95 % intervals: over the weight of a soft cut, over layers."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from hookedvid.errors import InputError
from hookedvid.report.plots.style import COLUMN, FULL, STYLES, canvas, drawn, titled
from hookedvid.study.results.charts import Curves, Line
from hookedvid.study.results.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def dose_curves(table: "DataFrame", y: str, *, title: str = "", about: str = "", width: float = COLUMN) -> "Figure":
    """What is measured against the weight of soft cuts, from intact (1) to cut (0), one line a name.

    The weight is drawn by its logarithm down to the least above 0, and straight from there to 0.

    Args:
        table: Long, with the columns name, weight, value and, where they are known, low and high (95 %).
        y: What was measured, with its unit.
        title: Above it.
        about: Model, frames, dtype and n.
        width: In inches, `COLUMN` or `FULL` of a paper.

    Raises:
        InputError: For a table without these columns.
    """
    lines = _lines(table, "weight", 0)
    above = [x for line in lines for x in line.xs if x > 0]
    shown = Curves(title, "weight of the edges", y, lines, straight_to=min(above, default=None), falling=True)
    return curves(shown, about, width)


def tracing_curves(table: "DataFrame", y: str, *, title: str = "", about: str = "", width: float = COLUMN) -> "Figure":
    """What is measured with one place put back after each layer (causal tracing), one line a place.

    Args:
        table: Long, with the columns name, layer (0-based), value and, where they are known, low and high (95 %).
        y: What was measured, with its unit.
        title: Above it.
        about: Model, frames, dtype and n.
        width: In inches, `COLUMN` or `FULL` of a paper.

    Raises:
        InputError: For a table without these columns.
    """
    return curves(Curves(title, "put back after layer", y, _lines(table, "layer", 1)), about, width)


def curves(shown: Curves, about: str = "", width: float = FULL) -> "Figure":
    """Lines with bars of 95 % intervals, and levels straight across."""
    figure, (axes,) = canvas(width, 4.2 if width > COLUMN else 2.6)
    for (name, y), line in zip(shown.levels.items(), cycle(("--", ":", "-.")), strict=False):
        axes.axhline(y, color="0.4", lw=1, ls=line, label=drawn(name))
    xs = sorted({x for line in shown.lines for x in line.xs})
    gap = (xs[-1] - xs[0]) / 80 if shown.apart else 0.0
    for n, ((colour, style), line) in enumerate(zip(cycle(STYLES), shown.lines, strict=False)):
        look: Any = {"fmt": "ks--", "ms": 5} if line.control else {"fmt": f"o{style}", "ms": 4, "color": colour}
        at = [x + gap * (n - (len(shown.lines) - 1) / 2) for x in line.xs]
        bars = error_bars(line.ys)
        axes.errorbar(at, [y.value for y in line.ys], bars, capsize=2, elinewidth=0.8, label=drawn(line.name), **look)
    axes.set(xlabel=shown.x, ylabel=shown.y)
    if shown.straight_to is not None:
        axes.set_xscale("symlog", linthresh=shown.straight_to)
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.minorticks_off()
    if shown.falling:
        axes.invert_xaxis()
    return titled(figure, axes, shown.title, about)


def error_bars(intervals: Iterable[Interval]) -> list[list[float]]:
    """Lengths of bars below and above the values, as matplotlib takes them."""
    bars = list(intervals)
    # A bound on the wrong side of its value (possible at the edge of a percentile interval) draws no bar.
    return [[max(0.0, i.value - i.low) for i in bars], [max(0.0, i.high - i.value) for i in bars]]


def _lines(table: Any, x: str, first: int) -> list[Line]:
    """A line a name, in the order of the table; x counts from `first`."""
    if missing := [c for c in ("name", x, "value") if c not in table]:
        raise InputError(f"this table has {', '.join(map(str, table.columns))}; it lacks {', '.join(missing)}")
    made: list[Line] = []
    for name in dict.fromkeys(table["name"]):
        own = table[table["name"] == name].sort_values(x)
        low, high = (own[c] if c in own else np.full(len(own), np.nan) for c in ("low", "high"))
        ys: Sequence[Interval] = [Interval(*map(float, v)) for v in zip(own["value"], low, high, strict=True)]
        made.append(Line(str(name), [float(v) + first for v in own[x]], ys))
    return made
