"""Points about a diagonal: what was guessed against what is."""

from itertools import cycle
from typing import TYPE_CHECKING, Any

from hookedvid.report.plots.style import FULL, GROUPS, LABEL, SMALL, canvas, drawn, head, literal
from hookedvid.study.results.charts import Panel, Scatters

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACROSS = 4  # panels in a row at most
MARKS = ("o", "^", "s", "D")


def scatters(shown: Scatters, about: str = "") -> "Figure":
    """A panel for each kind of place, with a scale of its own; on the dashed line y is x."""
    rows = -(-len(shown.panels) // ACROSS)
    figure, panels = canvas(FULL, 0.5 + 2.2 * rows, len(shown.panels), shared=False, rows=rows)
    for axes, panel in zip(panels, shown.panels, strict=True):
        _draw(axes, panel)
    figure.supxlabel(drawn(shown.x), fontsize=LABEL)
    figure.supylabel(drawn(shown.y), fontsize=LABEL)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=SMALL, ncols=len(names), loc="outside lower right")
    head(figure, shown.title, about)
    return literal(figure)


def _draw(axes: Any, panel: Panel) -> None:
    axes.axline((0, 0), slope=1, color="0.5", lw=0.8, ls="--", zorder=0)
    axes.axhline(0, color="0.85", lw=0.6, zorder=0)
    axes.axvline(0, color="0.85", lw=0.6, zorder=0)
    for points, colour, mark in zip(panel.points, GROUPS, cycle(MARKS), strict=False):
        look: Any = {"ms": 3.5, "mfc": "none", "mec": colour, "mew": 0.9, "ls": "none"}
        axes.plot(points.xs, points.ys, mark, label=drawn(points.name), **look)
    axes.set_title("\n".join(map(drawn, filter(None, (panel.name, panel.note)))), fontsize=SMALL)
