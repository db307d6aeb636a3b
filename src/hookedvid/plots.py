"""Figures of a study: each function takes its table and returns a matplotlib Figure, and reads nothing else."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hookedvid.study.study import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"LV-K": "#c1432e", "VT-K": "#2b6cb0", "VS-K": "#2f855a"}


def layer_curve(summaries: Sequence[Summary], chance: float | None = None) -> "Figure":
    """Global 1: accuracy and probability of the right letter against how many layers still see the video.

    The point at the right end is the intact model. chance: accuracy of guessing, drawn as a line.
    """
    base = _baseline(summaries)
    points = [s for s in summaries if s.condition.protocol == "cumulative"]
    n_layers = _n_layers(summaries)
    figure, axes = _figure()
    xs = [*(s.condition.layer or 0 for s in points), n_layers]
    for name, values, style in (
        ("accuracy", [*(s.accuracy for s in points), base.accuracy], "o-"),
        ("p(right letter)", [*(s.prob for s in points), base.prob], "s--"),
    ):
        axes.plot(xs, values, style, color=COLOURS["LV-K"], alpha=1.0 if style == "o-" else 0.55, label=name)
    _chance(axes, chance)
    axes.set(
        xlabel="layers in which text still sees the video (counted from 1)",
        ylabel="accuracy, probability",
        title=f"LV-K in all later layers (n = {base.n})",
        ylim=(0, 1.02),
    )
    axes.legend(frameon=False)
    return figure


def window_curves(summaries: Sequence[Summary], chance: float | None = None) -> "Figure":
    """Sliding windows: accuracy with each knockout against the window's last layer, counted from 1."""
    base = _baseline(summaries)
    figure, axes = _figure()
    axes.axhline(base.accuracy, color="0.4", lw=1, label="intact")
    _chance(axes, chance)
    windows = [s for s in summaries if s.condition.protocol == "windows"]
    for name in dict.fromkeys(s.condition.knockout for s in windows):
        points = [s for s in windows if s.condition.knockout == name]
        axes.plot(
            [s.condition.layer or 0 for s in points],
            [s.accuracy for s in points],
            "o-",
            color=COLOURS.get(name),
            label=name,
        )
    width = min((s.condition.layer or 0 for s in windows), default=0)
    axes.set(
        xlabel="last layer of the window (counted from 1)",
        ylabel="accuracy",
        title=f"Knockout in windows of {width} layers (n = {base.n})",
        ylim=(0, 1.02),
    )
    axes.legend(frameon=False)
    return figure


def all_layers(summaries: Sequence[Summary], chance: float | None = None) -> "Figure":
    """Global 2: accuracy with each knockout in every layer, beside the intact model."""
    base = _baseline(summaries)
    bars = [base, *(s for s in summaries if s.condition.protocol == "all layers")]
    figure, axes = _figure()
    names = [s.condition.knockout or "intact" for s in bars]
    axes.bar(names, [s.accuracy for s in bars], color=[COLOURS.get(n, "0.6") for n in names], width=0.6)
    for i, s in enumerate(bars):
        axes.text(i, s.accuracy + 0.02, f"{s.accuracy:.0%}", ha="center")
    _chance(axes, chance)
    axes.set(ylabel="accuracy", title=f"Knockout in every layer (n = {base.n})", ylim=(0, 1.1))
    if chance is not None:
        axes.legend(frameon=False)
    return figure


def _figure():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _chance(axes, chance: float | None) -> None:
    if chance is not None:
        axes.axhline(chance, color="0.6", lw=1, ls=":", label=f"chance {chance:.0%}")


def _baseline(summaries: Sequence[Summary]) -> Summary:
    return next(s for s in summaries if s.condition.protocol == "baseline")


def _n_layers(summaries: Sequence[Summary]) -> int:
    return 1 + max(s.condition.layer or 0 for s in summaries if s.condition.protocol == "cumulative")
