"""Figures of a study: each function takes its table and returns a matplotlib Figure; FIGURES names their files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from hookedvid.report.plots.cells import cells
from hookedvid.report.plots.curves import curves, error_bars
from hookedvid.report.plots.scatters import scatters
from hookedvid.report.plots.style import (
    COLOURS,
    FULL,
    GROUPS,
    NAME,
    SEQUENTIAL,
    SMALL,
    STYLES,
    canvas,
    colour_bar,
    drawn,
    fit_names,
    head,
    literal,
    titled,
)
from hookedvid.study.definition import brief
from hookedvid.study.protocols import EFFICIENCY
from hookedvid.study.protocols.protocol import Reading
from hookedvid.study.protocols.registry import REGISTRY
from hookedvid.study.results.charts import Chart, HeatMap, Scatters
from hookedvid.study.results.efficiency import front
from hookedvid.study.results.summary import OURS, Summary
from hookedvid.study.run.manifest import Manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def layer_curve(summaries: Sequence[Summary], n_layers: int, about: str = "") -> "Figure":
    """Global 1, as in the paper: what is kept against layer ratio, one line a group of items.

    The layer ratio i/L is the share of layers in which text still sees the video; bars are 95 % intervals.

    Args:
        about: Model, frames, dtype and n, printed under the title.
    """
    scoring = summaries[0].scoring
    figure, (axes,) = canvas()
    for (colour, line), (group, points) in zip(cycle(STYLES), _grouped(summaries, "cumulative").items(), strict=False):
        xs = [*((s.condition.layer or 0) / n_layers for s in points), 1.0]
        ratios = [s.kept for s in (*points, _baseline(summaries, group))]
        axes.plot(xs, [r.value for r in ratios], f"o{line}", ms=4, color=colour, label=drawn(group))
        axes.fill_between(xs, [r.low for r in ratios], [r.high for r in ratios], color=colour, alpha=0.12, lw=0)
    axes.axhline(scoring.baseline_kept, color="0.5", lw=1)
    axes.set(xlabel="layer ratio i/L (text sees the video in layers 1…i)", ylabel=scoring.kept_label)
    axes.set(ylim=(0 if scoring.baseline_kept else None, None))
    return titled(figure, axes, "LV-K in all layers after i", about)


def all_layers(summaries: Sequence[Summary], about: str = "") -> "Figure":
    """Global 2: score of each group, intact and with each knockout in every layer; bars carry 95 % intervals."""
    scoring = summaries[0].scoring
    figure, (axes,) = canvas()
    groups = list(dict.fromkeys(s.group for s in summaries))
    names = list(dict.fromkeys(s.condition.knockout for s in summaries if s.condition.protocol == "all layers"))
    width = 0.8 / (len(names) + 1)
    for k, name in enumerate(["", *names]):
        bars = [_one(summaries, g, "all layers" if name else "baseline", name) for g in groups]
        xs = [i + (k - len(names) / 2) * width for i in range(len(groups))]
        scores = [s.score for s in bars]
        heights, error = [x.value for x in scores], error_bars(scores)
        style: Any = {"color": COLOURS.get(name, "0.65"), "label": drawn(name) or "intact", "ecolor": "0.3"}
        axes.bar(xs, heights, width, yerr=error, **style)
    for i, g in enumerate(groups if scoring.level_name else ()):
        level = _baseline(summaries, g).level
        axes.hlines(level, i - 0.45, i + 0.45, color="k", lw=1, ls=":", label=scoring.level_name if i == 0 else None)
    axes.set_xticks(range(len(groups)), [drawn(g, NAME) for g in groups])
    fit_names(axes, groups, FULL)
    # Room for the legend above full bars, or above the axis that bars of log-likelihoods hang from.
    top = 1.2 if scoring.bounds else -0.2 * axes.get_ylim()[0]
    axes.set(ylabel=scoring.label, ylim=(0 if scoring.bounds else None, top))
    return titled(figure, axes, "Knockout in every layer", about, columns=5)


def window_curves(summaries: Sequence[Summary], about: str = "") -> "Figure":
    """Sliding windows of one group: score with each knockout against the window's last layer, counted from 1."""
    scoring = summaries[0].scoring
    figure, (axes,) = canvas()
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
        style: Any = {"fmt": "o-", "ms": 4, "capsize": 2, "color": COLOURS.get(name), "label": drawn(name)}
        axes.errorbar(xs, [x.value for x in scores], yerr=error_bars(scores), **style)
    width = min((s.condition.layer or 0 for s in windows), default=0)
    axes.set(xlabel="last layer of the window, counted from 1", ylabel=scoring.label)
    if scoring.bounds:
        axes.set(ylim=(0, 1.02))
    return titled(figure, axes, f"Knockout in windows of {width} layers, {group} questions", about)


def window_heatmap(summaries: Sequence[Summary], knockout: str, about: str = "") -> "Figure":
    """What is kept under one knockout's windows: groups down, the window's last layer (from 1) across."""
    scoring, grouped = summaries[0].scoring, _grouped(summaries, "windows")
    rows = {g: [s for s in points if s.condition.knockout == knockout] for g, points in grouped.items()}
    layers = [s.condition.layer or 0 for s in next(iter(rows.values()))]
    values = np.array([[s.kept.value for s in points] for points in rows.values()])
    limits = (0, 1) if scoring.baseline_kept else (None, 0)
    return cells(
        values, list(rows), list(map(str, layers)), scoring.kept_label, limits=limits, down=True, width=FULL,
        x="last layer of the window, counted from 1", title=f"{knockout} windows", about=about,
    )  # fmt: skip


def pareto(summaries: Sequence[Summary], keep: float, chosen: str = "", about: str = "") -> "Figure":
    """What exits and windows of one group cost and keep: accuracy against operations left, decoder and attention.

    The line joins what no other condition beats on these items; a star marks the one `chosen` (its label) by the
    search, the dashed line what it has to keep. Colours: layers that see the video.
    """
    figure, panels = canvas(panels=2)
    points = [s for s in summaries if s.condition.protocol in ("baseline", EFFICIENCY)]
    base = points[0]
    values = [s.score.value for s in points]
    depths = [float("nan"), *(float(s.condition.layer or 0) for s in points[1:])]
    image = None
    for axes, part in zip(panels, ("decoder", "attention"), strict=True):
        costs = [100 * getattr(s, f"{part}_share") for s in points]
        best = front(costs, values)
        _steps(axes, [costs[i] for i in best], [values[i] for i in best], color="0.5", lw=1, zorder=1)
        image = axes.scatter(costs[1:], values[1:], c=depths[1:], cmap=SEQUENTIAL, s=16, zorder=2)
        axes.errorbar(
            [costs[i] for i in best], [values[i] for i in best], yerr=error_bars(points[i].score for i in best),
            fmt="none", ecolor="0.6", capsize=2, lw=0.8, zorder=1,
        )  # fmt: skip
        axes.plot(costs[0], values[0], "ks", ms=5, label="intact")
        for i, s in enumerate(points):
            if s.condition.label == chosen:
                axes.plot(costs[i], values[i], "*", ms=15, mfc="none", mec=GROUPS[0], mew=1.3, label=drawn(chosen))
        axes.axhline(keep * base.score.value, color="0.4", lw=1, ls="--", label=f"{keep:.0%} of intact")
        axes.axhline(base.level, color="k", lw=1, ls=":", label="chance")
        axes.set(xlabel=f"{part} operations left, %", ylim=(0, 1.05), xlim=(0, 104))
    panels[0].set(ylabel="accuracy")
    colour_bar(figure, image, list(panels), "layers that see the video")
    panels[0].legend(frameon=False, fontsize=SMALL, loc="lower right")
    head(figure, f"Exits and windows, {base.group} questions", about)
    return literal(figure)


def pareto_by_group(summaries: Sequence[Summary], chosen: Mapping[str, str], about: str = "") -> "Figure":
    """The front of each group, as in `pareto`: performance ratio against decoder operations left, choices starred."""
    figure, (axes,) = canvas()
    for (colour, line), (group, points) in zip(cycle(STYLES), _grouped(summaries, EFFICIENCY).items(), strict=False):
        points = [_baseline(summaries, group), *points]
        costs, values = [100 * s.decoder_share for s in points], [s.kept.value for s in points]
        best = front(costs, values)
        axes.plot([costs[i] for i in best], [values[i] for i in best], "o", ms=4, color=colour)
        _steps(axes, [costs[i] for i in best], [values[i] for i in best], color=colour, ls=line, label=drawn(group))
        star = [i for i, s in enumerate(points) if s.condition.label == chosen.get(group)]
        axes.plot([costs[i] for i in star], [values[i] for i in star], "*", ms=15, mfc="none", mec=colour, mew=1.3)
    axes.axhline(1.0, color="0.5", lw=1)
    axes.set(xlabel="decoder operations left, %", ylabel="performance ratio", ylim=(0, None), xlim=(0, 104))
    return titled(figure, axes, "Exits and windows that no other beats, by group", about)


def chart(shown: Chart, about: str = "") -> "Figure":
    """A protocol's curves, map or points."""
    if isinstance(shown, Scatters):
        return scatters(shown, about)
    if not isinstance(shown, HeatMap):
        return curves(shown, about)
    title = "; ".join(filter(None, (shown.title, shown.note)))
    return cells(
        shown.values, shown.rows, shown.columns, shown.label, centre=0.0, marked=shown.marked, width=FULL,
        x=shown.x, y=shown.y, title=title, about=about,
    )  # fmt: skip


def _steps(axes: Any, costs: Sequence[float], values: Sequence[float], **style: Any) -> None:
    """What can be had at each cost up to the intact model's: nothing in between two points is better than the left."""
    axes.step([*costs, 100], [*values, values[-1]] if values else [float("nan")], where="post", **style)


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
