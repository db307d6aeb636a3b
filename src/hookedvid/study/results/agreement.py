"""How well estimates of effects agree with the exact ones: of one item by ranks, of all by means, over videos.

Arrays are [place, item], NaN where a value is missing; a place is what was cut. Ranks are taken of signed effects,
equal ones sharing their mean rank; "largest" is by size, whatever its sign.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hookedvid.study.results.statistics import Interval, Resamples

Effects = Float[np.ndarray, "place item"]


@dataclass(frozen=True)
class Agreement:
    """Estimates against exact effects of some places.

    Attributes:
        ranks: Spearman's correlation of an item's places, mean over items.
        ranks_of_means: That of the places' mean effects.
        overlap: Share of an item's `n_largest` largest effects that are among as many largest estimates, mean over
            items.
        sign_errors: Share of those effects whose estimate has the other sign, or none.
        slope: Of the exact effects on the estimates, through 0: how many times the real effects are what they say.
        n: Items.
        each: Spearman's correlation of each item.
    """

    ranks: Interval
    ranks_of_means: Interval
    overlap: Interval
    sign_errors: Interval
    slope: Interval
    n_places: int
    n_largest: int
    n: int
    n_videos: int
    each: Float[np.ndarray, " item"]


def agreement(exact: Effects, estimate: Effects, resamples: Resamples) -> Agreement:
    """Of the items that have every value, with intervals over videos.

    Ranks are of no item whose effects, or whose estimates, are all one.
    """
    known = np.isfinite(exact + estimate).min(axis=0)
    exact, estimate = np.where(known, exact, np.nan), np.where(known, estimate, np.nan)
    n_places = len(exact)
    n_largest = -(-n_places // 10)
    each, found, wrong = np.full((3, exact.shape[1]), np.nan)
    each[known] = spearman_of_rows(exact.T[known], estimate.T[known])
    for i in np.flatnonzero(known):
        x, y = exact[:, i], estimate[:, i]
        top = largest(x, n_largest)
        found[i] = np.isin(top, largest(y, n_largest)).mean()
        wrong[i] = (np.sign(x[top]) != np.sign(y[top])).mean()
    return Agreement(
        resamples.mean(each, (-1.0, 1.0)),
        _of_means(exact[:, known], estimate[:, known], known, resamples),
        resamples.mean(found, (0.0, 1.0)),
        resamples.mean(wrong, (0.0, 1.0)),
        resamples.quotient((exact * estimate).sum(0), (estimate**2).sum(0)),
        n_places,
        n_largest,
        int(known.sum()),
        resamples.n_videos(known),
        each,
    )


def spearman(x: Float[np.ndarray, " place"], y: Float[np.ndarray, " place"]) -> float:
    """Spearman's rank correlation; NaN where either is constant."""
    return float(spearman_of_rows(x[None], y[None])[0])


def spearman_of_rows(x: Float[np.ndarray, "row place"], y: Float[np.ndarray, "row place"]) -> Float[np.ndarray, " row"]:
    """`spearman` of each row."""
    a, b = (_ranks(values) - (values.shape[-1] + 1) / 2 for values in (x, y))
    size = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return (a * b).sum(-1) / np.where(size > 0, size, np.nan)


def _ranks(x: Float[np.ndarray, "row place"]) -> Float[np.ndarray, "row place"]:
    """From 1 up; scipy.stats has it, and imports for a second."""
    n: int = x.shape[-1]
    at = np.arange(n)
    order = np.argsort(x, axis=-1)
    ordered = np.take_along_axis(x, order, -1)
    same, edge = ordered[:, 1:] == ordered[:, :-1], np.zeros((len(x), 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, same], -1), 0, at), -1)
    after = np.where(np.concatenate([same, edge], -1), n, at)
    last = np.minimum.accumulate(after[:, ::-1], -1)[:, ::-1]
    ranks = np.empty(x.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, -1)
    return ranks


def largest(x: Float[np.ndarray, " place"], n: int) -> np.ndarray:
    """The places [n] of the largest effects, whatever their sign; of equal ones the first."""
    return np.argsort(-np.abs(x), kind="stable")[:n]


def _of_means(
    exact: Float[np.ndarray, "place known"],
    estimate: Float[np.ndarray, "place known"],
    known: np.ndarray,
    resamples: Resamples,
) -> Interval:
    """Of sums, which rank as means do."""
    x, y = (resamples.totals(values, known) for values in (exact, estimate))
    return resamples.percentiles(spearman_of_rows(x, y))
