"""Figures of a study: each function takes its table and returns a matplotlib Figure; FIGURES names their files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from hookedvid.study.definition import brief
from hookedvid.study.protocols import EFFICIENCY
from hookedvid.study.protocols.protocol import Reading
from hookedvid.study.protocols.registry import REGISTRY
from hookedvid.study.results.charts import Chart, Curves, HeatMap
from hookedvid.study.results.efficiency import front
from hookedvid.study.results.summary import OURS, Summary
from hookedvid.study.run.manifest import Manifest
from hookedvid.values.texts import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"LV-K": "#c1432e", "VT-K": "#2b6cb0", "VS-K": "#2f855a"}
MOST_CELLS = 16  # along one side of a map, of those that hold numbers one can read
MOST_TICKS = 32  # of a map's side that are named
LONGEST = 100  # characters of a label or a title's line
GROUPS = ("#c1432e", "#2b6cb0", "#2f855a", "#b7791f", "#6b46c1", "#4a5568")
STYLES = tuple((colour, line) for line in ("-", "--", ":", "-.") for colour in GROUPS)  # of groups, one after another


def layer_curve(summaries: Sequence[Summary], n_layers: int, about: str = "") -> "Figure":
    """Global 1, as in the paper: what is kept against layer ratio, one line a group of items.

    The layer ratio i/L is the share of layers in which text still sees the video; bars are 95 % intervals.

    Args:
        about: Model, frames, dtype and n, printed under the title.
    """
    scoring = summaries[0].scoring
    figure, axes = _figure()
    for (colour, line), (group, points) in zip(cycle(STYLES), _grouped(summaries, "cumulative").items(), strict=False):
        xs = [*((s.condition.layer or 0) / n_layers for s in points), 1.0]
        ratios = [s.kept for s in (*points, _baseline(summaries, group))]
        axes.plot(xs, [r.value for r in ratios], f"o{line}", ms=4, color=colour, label=_drawn(group))
        axes.fill_between(xs, [r.low for r in ratios], [r.high for r in ratios], color=colour, alpha=0.12, lw=0)
    axes.axhline(scoring.baseline_kept, color="0.5", lw=1)
    axes.set(xlabel="layer ratio i/L (text sees the video in layers 1…i)", ylabel=scoring.kept_label)
    axes.set(ylim=(0 if scoring.baseline_kept else None, None))
    return _titled(figure, axes, "LV-K in all layers after i", about)


def all_layers(summaries: Sequence[Summary], about: str = "") -> "Figure":
    """Global 2: score of each group, intact and with each knockout in every layer; bars carry 95 % intervals."""
    scoring = summaries[0].scoring
    figure, axes = _figure()
    groups = list(dict.fromkeys(s.group for s in summaries))
    names = list(dict.fromkeys(s.condition.knockout for s in summaries if s.condition.protocol == "all layers"))
    width = 0.8 / (len(names) + 1)
    for k, name in enumerate(["", *names]):
        bars = [_one(summaries, g, "all layers" if name else "baseline", name) for g in groups]
        xs = [i + (k - len(names) / 2) * width for i in range(len(groups))]
        scores = [s.score for s in bars]
        heights, error = [x.value for x in scores], _error(scores)
        style: Any = {"color": COLOURS.get(name, "0.65"), "label": _drawn(name) or "intact", "ecolor": "0.3"}
        axes.bar(xs, heights, width, yerr=error, **style)
    for i, g in enumerate(groups if scoring.level_name else ()):
        level = _baseline(summaries, g).level
        axes.hlines(level, i - 0.45, i + 0.45, color="k", lw=1, ls=":", label=scoring.level_name if i == 0 else None)
    axes.set_xticks(range(len(groups)), [_drawn(g) for g in groups])
    # Room for the legend above full bars, or above the axis that bars of log-likelihoods hang from.
    top = 1.2 if scoring.bounds else -0.2 * axes.get_ylim()[0]
    axes.set(ylabel=scoring.label, ylim=(0 if scoring.bounds else None, top))
    return _titled(figure, axes, "Knockout in every layer", about, columns=5)


def window_curves(summaries: Sequence[Summary], about: str = "") -> "Figure":
    """Sliding windows of one group: score with each knockout against the window's last layer, counted from 1."""
    scoring = summaries[0].scoring
    figure, axes = _figure()
    group = summaries[0].group
    base = _baseline(summaries, group)
    windows = _grouped(summaries, "windows")[group]
    axes.axhline(base.score.value, color="0.4", lw=1, label="intact")
    if scoring.level_name:
        axes.axhline(base.level, color="k", lw=1, ls=":", label=scoring.level_name)
    for name in dict.fromkeys(s.condition.knockout for s in windows):
        points = [s for s in windows if s.condition.knockout == name]
        xs = [s.condition.layer or 0 for s in points]
        scores = [s.score for s in points]
        style: Any = {"fmt": "o-", "ms": 4, "capsize": 2, "color": COLOURS.get(name), "label": _drawn(name)}
        axes.errorbar(xs, [x.value for x in scores], yerr=_error(scores), **style)
    width = min((s.condition.layer or 0 for s in windows), default=0)
    axes.set(xlabel="last layer of the window, counted from 1", ylabel=scoring.label)
    if scoring.bounds:
        axes.set(ylim=(0, 1.02))
    return _titled(figure, axes, f"Knockout in windows of {width} layers, {group} questions", about)


def window_heatmap(summaries: Sequence[Summary], knockout: str, about: str = "") -> "Figure":
    """What is kept under one knockout's windows: groups down, the window's last layer (from 1) across."""
    scoring = summaries[0].scoring
    figure, axes = _figure()
    grouped = _grouped(summaries, "windows")
    rows = {g: [s for s in points if s.condition.knockout == knockout] for g, points in grouped.items()}
    layers = [s.condition.layer or 0 for s in next(iter(rows.values()))]
    values = [[s.kept.value for s in points] for points in rows.values()]
    limits = {"vmin": 0, "vmax": 1} if scoring.baseline_kept else {"vmax": 0}
    image = axes.imshow(values, **limits, cmap="RdYlGn", aspect="auto")
    axes.set_xticks(range(len(layers)), [str(x) for x in layers])
    axes.set_yticks(range(len(rows)), [_drawn(g) for g in rows])
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, ax=axes, label=scoring.kept_label)
    axes.set(xlabel="last layer of the window, counted from 1")
    return _titled(figure, axes, f"{knockout} windows", about, columns=0)


def pareto(summaries: Sequence[Summary], keep: float, chosen: str = "", about: str = "") -> "Figure":
    """What exits and windows of one group cost and keep: accuracy against operations left, decoder and attention.

    The line joins what no other condition beats on these items; a star marks the one `chosen` (its label) by the
    search, the dashed line what it has to keep. Colours: layers that see the video.
    """
    figure, panels = _figure(2)
    points = [s for s in summaries if s.condition.protocol in ("baseline", EFFICIENCY)]
    base = points[0]
    values = [s.score.value for s in points]
    depths = [float("nan"), *(float(s.condition.layer or 0) for s in points[1:])]
    image = None
    for axes, part in zip(panels, ("decoder", "attention"), strict=True):
        costs = [100 * getattr(s, f"{part}_share") for s in points]
        best = front(costs, values)
        _steps(axes, [costs[i] for i in best], [values[i] for i in best], color="0.5", lw=1, zorder=1)
        image = axes.scatter(costs[1:], values[1:], c=depths[1:], cmap="viridis", s=16, zorder=2)
        axes.errorbar(
            [costs[i] for i in best], [values[i] for i in best], yerr=_error(points[i].score for i in best),
            fmt="none", ecolor="0.6", capsize=2, lw=0.8, zorder=1,
        )  # fmt: skip
        axes.plot(costs[0], values[0], "ks", ms=5, label="intact")
        for i, s in enumerate(points):
            if s.condition.label == chosen:
                axes.plot(costs[i], values[i], "*", ms=15, mfc="none", mec="#c1432e", mew=1.3, label=_drawn(chosen))
        axes.axhline(keep * base.score.value, color="0.4", lw=1, ls="--", label=f"{keep:.0%} of intact")
        axes.axhline(base.level, color="k", lw=1, ls=":", label="chance")
        axes.set(xlabel=f"{part} operations left, %", ylim=(0, 1.05), xlim=(0, 104))
    panels[0].set(ylabel="accuracy")
    figure.colorbar(image, ax=list(panels), label="layers that see the video", pad=0.01)
    panels[0].legend(frameon=False, fontsize=7, loc="lower right")
    figure.suptitle(_title(f"Exits and windows, {base.group} questions", about), fontsize=9)
    return _literal(figure)


def pareto_by_group(summaries: Sequence[Summary], chosen: Mapping[str, str], about: str = "") -> "Figure":
    """The front of each group, as in `pareto`: performance ratio against decoder operations left, choices starred."""
    figure, axes = _figure()
    for (colour, line), (group, points) in zip(cycle(STYLES), _grouped(summaries, EFFICIENCY).items(), strict=False):
        points = [_baseline(summaries, group), *points]
        costs, values = [100 * s.decoder_share for s in points], [s.kept.value for s in points]
        best = front(costs, values)
        axes.plot([costs[i] for i in best], [values[i] for i in best], "o", ms=4, color=colour)
        _steps(axes, [costs[i] for i in best], [values[i] for i in best], color=colour, ls=line, label=_drawn(group))
        star = [i for i, s in enumerate(points) if s.condition.label == chosen.get(group)]
        axes.plot([costs[i] for i in star], [values[i] for i in star], "*", ms=15, mfc="none", mec=colour, mew=1.3)
    axes.axhline(1.0, color="0.5", lw=1)
    axes.set(xlabel="decoder operations left, %", ylabel="performance ratio", ylim=(0, None), xlim=(0, 104))
    return _titled(figure, axes, "Exits and windows that no other beats, by group", about)


def chart(shown: Chart, about: str = "") -> "Figure":
    """A protocol's curves or map."""
    return _heat_map(shown, about) if isinstance(shown, HeatMap) else _curves(shown, about)


def _heat_map(shown: HeatMap, about: str) -> "Figure":
    """Cells coloured about zero; their numbers stand in them where there is room."""
    from matplotlib.patches import Rectangle

    figure, axes = _figure()
    n_rows, n_columns = shown.values.shape
    most = max((abs(x) for x in shown.values.flat if x == x), default=0.0) or 1.0
    image = axes.imshow(shown.values, vmin=-most, vmax=most, cmap="RdBu", aspect="auto", origin="lower")
    for ticks, names in ((axes.set_xticks, shown.columns), (axes.set_yticks, shown.rows)):
        every = -(-len(names) // MOST_TICKS)
        ticks(range(0, len(names), every), [_drawn(x) for x in names[::every]])
    if sum(map(len, shown.columns[: MOST_TICKS + 1])) > LONGEST // 2:  # names that would stand over each other
        axes.tick_params(axis="x", labelrotation=90)
    if n_rows <= MOST_CELLS and n_columns <= MOST_CELLS:
        for (y, x), value in np.ndenumerate(shown.values):
            colour = "white" if abs(value) > 0.6 * most else "black"
            axes.text(x, y, f"{value:z.2f}", ha="center", va="center", fontsize=7, color=colour)
    for y, x in shown.marked:
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, ec="k", lw=1.2, clip_on=False))
    figure.colorbar(image, ax=axes, label=shown.label)
    axes.set(xlabel=shown.x, ylabel=shown.y)
    return _titled(figure, axes, "; ".join(filter(None, (shown.title, shown.note))), about, columns=0)


def _curves(shown: Curves, about: str) -> "Figure":
    """Lines with bars of 95 % intervals, and levels straight across."""
    figure, axes = _figure()
    for (name, y), line in zip(shown.levels.items(), cycle(("--", ":", "-.")), strict=False):
        axes.axhline(y, color="0.4", lw=1, ls=line, label=_drawn(name))
    xs = sorted({x for line in shown.lines for x in line.xs})
    gap = (xs[-1] - xs[0]) / 80 if shown.apart else 0.0
    for n, ((colour, style), line) in enumerate(zip(cycle(STYLES), shown.lines, strict=False)):
        look: Any = {"fmt": "ks--", "ms": 5} if line.control else {"fmt": f"o{style}", "ms": 4, "color": colour}
        at = [x + gap * (n - (len(shown.lines) - 1) / 2) for x in line.xs]
        bars = _error(line.ys)
        axes.errorbar(at, [y.value for y in line.ys], bars, capsize=2, elinewidth=0.8, label=_drawn(line.name), **look)
    axes.set(xlabel=shown.x, ylabel=shown.y)
    if shown.straight_to is not None:
        axes.set_xscale("symlog", linthresh=shown.straight_to)
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.minorticks_off()
    if shown.falling:
        axes.invert_xaxis()
    return _titled(figure, axes, shown.title, about)


def _steps(axes: Any, costs: Sequence[float], values: Sequence[float], **style: Any) -> None:
    """What can be had at each cost up to the intact model's: nothing in between two points is better than the left."""
    axes.step([*costs, 100], [*values, values[-1]] if values else [float("nan")], where="post", **style)


def _figure(n_panels: int = 1) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.6 if n_panels == 1 else 10.0, 4.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, n_panels, sharey=True)
    for axes in [panels] if n_panels == 1 else panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _titled(figure: Any, axes: Any, title: str, about: str, columns: int = 2) -> Any:
    axes.set_title(_title(title, about), fontsize=9)
    if columns and len(axes.get_legend_handles_labels()[1]) > len(GROUPS):  # too many to lie over the lines
        axes.legend(frameon=False, fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    elif columns:
        axes.legend(frameon=False, fontsize=8, ncols=columns)
    return _literal(figure)


def _title(title: str, about: str) -> str:
    return "\n".join(_drawn(line) for line in (title, about) if line)


def _literal(figure: Any) -> Any:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # what stands between two dollars is no formula
    return figure


@cache
def _characters(font: str) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    return frozenset(get_font(font).get_charmap())


def _drawn(text: str) -> str:
    r"""A text as labels show it: one line, not long, what the font lacks as its escape (`\u7aef`)."""
    from matplotlib.font_manager import FontProperties, findfont

    known = _characters(findfont(FontProperties()))
    shown = "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in one_line(text))
    shown = shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"
    return f" {shown}" if shown.startswith("_") else shown  # matplotlib leaves labels out that begin so


def _grouped(summaries: Sequence[Summary], protocol: str) -> dict[str, list]:
    groups: dict[str, list] = {}
    for s in summaries:
        if s.condition.protocol == protocol:
            groups.setdefault(s.group, []).append(s)
    return groups


def _one(summaries: Sequence[Summary], group: str, protocol: str, knockout: str) -> Any:
    return next(
        s for s in summaries if (s.group, s.condition.protocol, s.condition.knockout) == (group, protocol, knockout)
    )


def _baseline(summaries: Sequence[Summary], group: str) -> Any:
    return _one(summaries, group, "baseline", "")


def _error(intervals: Any) -> list[list[float]]:
    bars = list(intervals)
    # A bound on the wrong side of its value (possible at the edge of a percentile interval) draws no bar.
    return [[max(0.0, i.value - i.low) for i in bars], [max(0.0, i.high - i.value) for i in bars]]


# ---- a study's figures -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """What a study's figures are drawn from.

    Args:
        run: What was asked.
        tables: Summaries by group.
        main: The group whose findings are printed.
        chosen: Labels of the cheapest conditions that keep enough, by group.
        readings: What the rows of protocols say of the main group, by the protocol.
    """

    run: Manifest
    tables: Mapping[str, Sequence[Summary]]
    main: str
    chosen: Mapping[str, str]
    readings: Mapping[str, Reading] = field(default_factory=dict[str, Reading])

    @property
    def families(self) -> list[Summary]:
        """Those of families; of all items where there are none."""
        groups = [g for g in self.tables if g not in OURS] or ["all"]
        return [s for g in groups for s in self.tables[g]]

    def about(self, summaries: Sequence[Summary]) -> str:
        """Model, frames, dtype and how many questions."""
        return brief(self.run.settings, sum(s.n for s in summaries if s.condition.protocol == "baseline"))

    def knockout(self, protocol: str) -> str:
        """The first knockout of a protocol."""
        return next(s.condition.knockout for s in self.families if s.condition.protocol == protocol)


def _pareto(r: Results) -> "Figure | None":
    if not r.run.scoring.chooses:
        return None
    return pareto(r.tables[r.main], r.run.study.keep, r.chosen.get(r.main, ""), r.about(r.tables[r.main]))


def _pareto_by_family(r: Results) -> "Figure | None":
    if not r.run.scoring.chooses or len(r.tables) < 2:
        return None
    return pareto_by_group(r.families, r.chosen, r.about(r.families))


def _chart(name: str) -> "Callable[[Results], Figure | None]":
    def draw(r: Results) -> "Figure | None":
        return chart(r.readings[name].chart, r.about(r.tables[r.main])) if name in r.readings else None

    return draw


# The protocol that each figure shows and how it is drawn of a study, by its file's name.
FIGURES: dict[str, tuple[str, Callable[[Results], "Figure | None"]]] = {
    "cumulative": ("cumulative", lambda r: layer_curve(r.families, r.run.n_layers, r.about(r.families))),
    "all-layers": ("all layers", lambda r: all_layers(r.families, r.about(r.families))),
    "windows": ("windows", lambda r: window_curves(r.tables[r.main], r.about(r.tables[r.main]))),
    "windows-by-family": (
        "windows", lambda r: window_heatmap(r.families, r.knockout("windows"), r.about(r.families))
    ),
    "pareto": (EFFICIENCY, _pareto),
    "pareto-by-family": (EFFICIENCY, _pareto_by_family),
    **{name: (name, _chart(name)) for name in REGISTRY},
}  # fmt: skip


def draw(results: Results) -> dict[str, "Figure"]:
    """The figures of the protocols that were run, by file name."""
    ran = {c.protocol for c in results.run.conditions}
    drawn = {name: figure(results) for name, (protocol, figure) in FIGURES.items() if protocol in ran}
    return {name: figure for name, figure in drawn.items() if figure is not None}
