"""A score by what the items say of themselves: duration, domain, task; with the mean over items and over groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from hookedvid.data.item import Item
from hookedvid.data.registry import AXES
from hookedvid.study.protocols import Condition
from hookedvid.study.results.statistics import Interval, Resamples
from hookedvid.study.results.summary import Outcomes, named
from hookedvid.values.files import write_text
from hookedvid.values.texts import csv_text

OURS = ("micro", "macro")  # means over items and over an axis's values, in the values' column


@dataclass(frozen=True)
class Part:
    """One condition on the items that share a value of one axis.

    Attributes:
        value: As `named` says it; or `micro`, all items alike, and `macro`, the plain mean of the values' means.
        n: Items scored.
        accuracy: Unparsed answers are wrong.
        as_printed: As the convention counts, NaN without one.
        chance: Of guessing, on the items that the baseline has a score of.
    """

    axis: str
    value: str
    condition: Condition
    n: int
    chance: float
    accuracy: Interval
    as_printed: Interval


def axes(items: Sequence[Item]) -> dict[str, np.ndarray]:
    """Values [item] by axis, of those that every item has and that part the items in a way of their own."""
    by_axis: dict[str, np.ndarray] = {}
    seen: set[tuple[int, ...]] = set()
    for axis in ("family", *AXES):
        values = [item.family if axis == "family" else item.meta.get(axis) for item in items]
        if not all(isinstance(v, str) and v for v in values) or len(set(values)) < 2:
            continue
        order = {v: i for i, v in enumerate(dict.fromkeys(values))}
        if (parts := tuple(order[v] for v in values)) not in seen:
            seen.add(parts)
            by_axis[axis] = np.array(values)
    return by_axis


def breakdown(o: Outcomes, n_resamples: int = 2000, seed: int = 0) -> list[Part]:
    """Every axis, every condition: its values in the items' order, then micro and macro."""
    resamples = Resamples.of([item.video for item in o.items], n_resamples, seed)
    return [part for axis, values in axes(o.items).items() for part in _parts(o, axis, values, resamples)]


def _parts(o: Outcomes, axis: str, values: np.ndarray, resamples: Resamples) -> list[Part]:
    names = list(dict.fromkeys(values.tolist()))
    known = ~np.isnan(o.score)
    chances = [o.level(values == v) for v in names]
    averaged = [c for c, v in zip(chances, names, strict=True) if known[0, values == v].any()]
    chances += [o.level(np.ones(len(values), dtype=bool)), float(np.mean(averaged or chances))]
    insides = [*(known & (values == v) for v in names), known, known]
    scores = [_means(s, values, names, resamples) for s in (o.score, o.values["as_printed"])]
    labels = [*(named(v, OURS) for v in names), *OURS]
    return [
        Part(axis, value, condition, int(inside[i].sum()), by_chance, accuracy[i], counted[i])
        for i, condition in enumerate(o.conditions)
        for value, inside, by_chance, accuracy, counted in zip(labels, insides, chances, *scores, strict=True)
    ]


def _means(
    scores: Float[np.ndarray, "condition item"], values: np.ndarray, names: Sequence[str], resamples: Resamples
) -> list[list[Interval]]:
    """Means of each group, of all items and of the groups' means, each for every condition."""
    share = (0.0, 1.0)
    apart = [np.where(values == v, scores, np.nan) for v in names]
    weights = np.zeros(scores.shape)
    for inside in (~np.isnan(x) for x in apart):  # each group that has a score weighs the same
        weights += inside / np.maximum(inside.sum(1, keepdims=True), 1)
    each = [resamples.means(x, share) for x in (*apart, scores)]
    return [*each, resamples.means(scores, share, weights)]


def write_csv(parts: Sequence[Part], path: Path) -> None:
    """One line per part."""
    names = ["axis", "value", "condition", "n", "chance"]
    names += [f"{name}{end}" for name in ("accuracy", "as_printed") for end in ("", "_low", "_high")]
    rows = ([p.axis, p.value, p.condition.label, p.n, p.chance, *p.accuracy, *p.as_printed] for p in parts)
    write_text(path, csv_text([dict(zip(names, row, strict=True)) for row in rows]))
