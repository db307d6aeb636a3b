"""What conditions cost and what is settled of them, of an adaptive study."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hookedvid.report.plots.curves import error_bars
from hookedvid.report.plots.style import FULL, NAME, SMALL, canvas, drawn, titled
from hookedvid.study.results.adaptive import Decision
from hookedvid.study.results.sequential import CRITICAL, NOT_CRITICAL, OPEN
from hookedvid.study.results.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 60  # conditions; of more, those that cost most
STYLES = {CRITICAL: ("#d55e00", "o"), NOT_CRITICAL: ("#0072b2", "s"), OPEN: ("0.5", "D")}


def verdicts(
    decisions: Sequence[Decision], smallest: float, title: str, unit: str, about: str = "", times: float = 1
) -> "Figure":
    """The cost of each condition with its confidence sequence, one line a condition, the first on top.

    Args:
        decisions: The last of each condition.
        smallest: The smallest cost of interest, drawn as a dotted line.
        title: Above it.
        unit: Of costs.
        about: Model, frames, dtype and n.
        times: What costs are multiplied by to be in it.
    """
    most = sorted(decisions, key=lambda d: math.inf if math.isnan(d.cost.value) else -d.cost.value)[:MOST]
    shown = [d for d in decisions if d in most]
    figure, (axes,) = canvas(FULL, 1.3 + 0.16 * len(shown))
    for verdict, (colour, marker) in STYLES.items():
        own = [(i, Interval(*(times * x for x in d.cost))) for i, d in enumerate(shown) if d.verdict == verdict]
        style: Any = {"fmt": marker, "ms": 3.5, "color": colour, "capsize": 2, "elinewidth": 0.8}
        bars = error_bars(cost for _, cost in own)
        if own:
            axes.errorbar([cost.value for _, cost in own], [i for i, _ in own], xerr=bars, label=verdict, **style)
    axes.axvline(0, color="0.4", lw=1)
    axes.axvline(times * smallest, color="k", lw=1, ls=":", label="smallest of interest")
    axes.set_yticks(range(len(shown)), [drawn(d.condition.label, NAME) for d in shown])
    axes.tick_params(axis="y", labelsize=SMALL - 1)
    axes.set(xlabel=f"cost, {unit}", ylim=(len(shown) - 0.5, -0.5))
    axes.legend(frameon=False, fontsize=SMALL, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    part = f"; the {len(shown)} that cost most of {len(decisions)}" if len(shown) < len(decisions) else ""
    return titled(figure, axes, title + part, about, columns=0)
