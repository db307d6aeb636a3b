"""Intervals and tests for accuracies of many conditions on the same items, items grouped by video.

Questions on one video are not independent, so resampling draws whole videos; conditions answer the same
items, so every comparison is paired.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats


class Interval(NamedTuple):
    """A value with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


class McNemar(NamedTuple):
    """Items that only one of two conditions answers rightly, and the exact two-sided p of that split."""

    only_first: int
    only_second: int
    p: float


def video_weights(videos: Sequence[str], n_resamples: int, seed: int) -> Float[np.ndarray, "resample item"]:
    """How often each item is in each resample of videos; the first row is the sample itself."""
    names, index = np.unique(np.asarray(videos), return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), n_resamples)
    counts = np.vstack([np.ones((1, len(names))), draws])
    return counts[:, index].astype(float)


def mean(weights: Float[np.ndarray, "resample item"], values: Float[np.ndarray, " item"]) -> Interval:
    """A weighted mean over items with its percentile interval; items that are NaN take no part."""
    return interval(resampled_mean(weights, values))


def known_mean(values: Float[np.ndarray, " item"]) -> float:
    """The mean of the values that are not NaN; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def resampled_mean(
    weights: Float[np.ndarray, "resample item"], values: Float[np.ndarray, " item"]
) -> Float[np.ndarray, " resample"]:
    """The mean of each resample, NaN where none of its items has a value."""
    known = ~np.isnan(values)
    total = weights[:, known].sum(1)
    with np.errstate(invalid="ignore"):
        return (weights[:, known] @ values[known]) / np.where(total > 0, total, np.nan)


def ratio(above: Float[np.ndarray, " resample"], below: Float[np.ndarray, " resample"], floor: float = 0.0) -> Interval:
    """(above - floor) / (below - floor), paired resample by resample.

    With floor 0 this is the paper's performance ratio, with chance as floor the chance-corrected one. NaN
    where the baseline does not exceed the floor; resamples where it does not are left out of the interval.
    """
    rise = below - floor
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(rise > 1e-12, (above - floor) / rise, np.nan)
    return interval(values)


def interval(values: Float[np.ndarray, " resample"]) -> Interval:
    """First value, with the 2.5 and 97.5 percentiles of the others."""
    rest = values[1:][~np.isnan(values[1:])]
    low, high = np.percentile(rest, [2.5, 97.5]) if len(rest) else (np.nan, np.nan)
    return Interval(float(values[0]), float(low), float(high))


def mcnemar(first: Bool[np.ndarray, " item"], second: Bool[np.ndarray, " item"]) -> McNemar:
    """The exact McNemar test: are the items only one condition gets right split evenly between the two?"""
    a, b = int((first & ~second).sum()), int((~first & second).sum())
    p = stats.binomtest(a, a + b).pvalue if a + b else 1.0
    return McNemar(a, b, float(p))


def holm(ps: Sequence[float]) -> Float[np.ndarray, " test"]:
    """P values adjusted for making all these tests at once (Holm's step-down method)."""
    values = np.asarray(ps, dtype=float)
    order: Int[np.ndarray, " test"] = np.argsort(values)
    stepped = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted
