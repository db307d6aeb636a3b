"""A score by what the items say of themselves: duration, domain, task; with the mean over items and over groups."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from hookedvid.data.item import Item
from hookedvid.study import statistics
from hookedvid.study.protocols import Condition
from hookedvid.study.scoring import chance
from hookedvid.study.statistics import Interval
from hookedvid.study.summary import Outcomes

# Keys of an item's meta that the three benchmarks report by; `family` is the item's own.
AXES = ("duration", "domain", "sub_category", "task_type", "task")


@dataclass(frozen=True)
class Part:
    """One condition on the items that share a value of one axis.

    value: or `micro`, all items alike, and `macro`, the plain mean of the values' means. n: items scored.
    accuracy: unparsed answers are wrong. as_printed: as the convention counts, NaN without one. chance: of guessing.
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
    found: dict[str, np.ndarray] = {}
    seen = set()
    for axis in ("family", *AXES):
        values = [item.family if axis == "family" else item.meta.get(axis) for item in items]
        if not all(isinstance(v, str) and v for v in values) or len(set(values)) < 2:
            continue
        order = {v: i for i, v in enumerate(dict.fromkeys(values))}
        if (parts := tuple(order[v] for v in values)) not in seen:
            seen.add(parts)
            found[axis] = np.array(values)
    return found


def breakdown(o: Outcomes, n_resamples: int = 2000, seed: int = 0) -> list[Part]:
    """Every axis, every condition: its values in the items' order, then micro and macro."""
    weights = statistics.video_weights([item.video for item in o.items], n_resamples, seed)
    guess = np.array([chance(item) for item in o.items])
    return [
        part
        for axis, values in axes(o.items).items()
        for i, condition in enumerate(o.conditions)
        for part in _parts(axis, values, condition, weights, guess, (o.correct[i], o.counted[i]))
    ]


def _parts(
    axis: str,
    values: np.ndarray,
    condition: Condition,
    weights: Float[np.ndarray, "resample item"],
    guess: Float[np.ndarray, " item"],
    scores: Sequence[Float[np.ndarray, " item"]],
) -> list[Part]:
    names = list(dict.fromkeys(values.tolist()))
    means = [[statistics.resampled_mean(weights, np.where(values == v, s, np.nan)) for v in names] for s in scores]
    known = ~np.isnan(scores[0])
    rows = [(v, known & (values == v), [statistics.interval(m[i]) for m in means]) for i, v in enumerate(names)]
    rows.append(("micro", known, [statistics.mean(weights, s) for s in scores]))
    rows.append(("macro", known, [statistics.interval(_mean(np.stack(m))) for m in means]))
    chances = [float(guess[values == v].mean()) for v in names] + [float(guess.mean())]
    chances.append(float(np.mean(chances[:-1])))
    return [
        Part(axis, value, condition, int(inside.sum()), by_chance, *intervals)
        for (value, inside, intervals), by_chance in zip(rows, chances, strict=True)
    ]


def _mean(means: Float[np.ndarray, "group resample"]) -> Float[np.ndarray, " resample"]:
    """Over the groups of which a resample drew some."""
    n = (~np.isnan(means)).sum(0)
    return np.where(n > 0, np.nansum(means, 0) / np.maximum(n, 1), np.nan)


def write_csv(parts: Sequence[Part], path: Path) -> None:
    """One line per part."""
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        spread = [f"{name}{end}" for name in ("accuracy", "as_printed") for end in ("", "_low", "_high")]
        writer.writerow(["axis", "value", "condition", "n", "chance", *spread])
        for p in parts:
            writer.writerow([p.axis, p.value, p.condition.label, p.n, p.chance, *p.accuracy, *p.as_printed])
