"""Intervals and tests for many conditions on the same items, items grouped by video.

Questions on one video are not independent: resampling draws whole videos, and a test turns whole videos round.
Conditions answer the same items, so every comparison is paired. docs/statistics.md has the method and how often it
errs.
"""

# What has no stubs of its own: scipy.
# pyright: reportMissingTypeStubs=false
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

LEVEL = 0.05  # of tests; intervals are of 1 - LEVEL
ENDS = (100 * LEVEL / 2, 100 * (1 - LEVEL / 2))  # percentiles
# Scores that are no counts are rounded so that all changes together are this many steps: more than needed to tell
# apart what a thousand videos say, few enough that a test takes milliseconds.
STEPS = 2**13

Bounds = tuple[float, float]


class Interval(NamedTuple):
    """A value with the bounds of its 95 % interval; NaN bounds are not known."""

    value: float
    low: float
    high: float

    def __neg__(self) -> "Interval":
        """Of what is lost, where this is of what is gained."""
        return Interval(-self.value, -self.high, -self.low)


class McNemar(NamedTuple):
    """Items that score more under the first and under the second of two conditions, and the p of no change.

    It is exact, two-sided and over videos (`sign_flips`).
    """

    only_first: int
    only_second: int
    p: float


UNKNOWN = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Resamples:
    """Draws of whole videos, from which every interval is read.

    A bootstrap over few videos that agree has no spread, and the normal's width is too narrow for few. So two videos
    are added to those that were seen, of mean size, one at either end of the scale (Laplace's rule; of a difference
    of two conditions, one video that only gains and one that only loses), and resamples are stretched about their
    centre by Student's t over the normal's quantile, at one degree of freedom less than there are n videos, and by
    sqrt(n / (n - 1)), which a bootstrap's spread lacks. Scores without ends get no such videos.

    Attributes:
        video: 0-based, of each item.
        draws: How often each video and the two added ones are in each resample; the first row is the sample itself.
    """

    video: Int[np.ndarray, " item"]
    draws: Float[np.ndarray, "resample video_and_two"]

    @classmethod
    def of(cls, videos: Sequence[str], n_resamples: int, seed: int) -> "Resamples":
        """Resamples of the videos of these items."""
        names, index = np.unique(np.asarray(videos, dtype=str), return_inverse=True)
        n = len(names) + 2
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples)
        return cls(index, np.vstack([np.ones((1, n)), draws]))

    def means(
        self,
        values: Float[np.ndarray, "line item"],
        bounds: Bounds | None = None,
        weights: Float[np.ndarray, "line item"] | None = None,
    ) -> list[Interval]:
        """Means over items, line by line; NaN takes no part.

        Args:
            bounds: Of the values.
            weights: Equal unless given.
        """
        some = np.logical_not(np.isnan(values).all(1))
        if not some.all():  # as of probabilities where answers are texts
            few = iter(self.means(values[some], bounds, None if weights is None else weights[some]))
            return [next(few) if known else UNKNOWN for known in some]
        sums, sizes = self._sums(values, weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            value = sums.sum(1) / sizes.sum(1)
            resampled = self._drawn(sums, sizes, bounds) / self._weighed(sizes, bounds is not None)
        low, high = self._stretched(resampled, sizes)
        if bounds is not None:  # one video has no spread: anything may be
            ends = [np.where(np.isnan(x), end, x) for x, end in zip((low, high), bounds, strict=True)]
            low, high = (np.clip(x, *bounds) for x in ends)
        return _intervals(value, low, high)

    def mean(self, values: Float[np.ndarray, " item"], bounds: Bounds | None = None) -> Interval:
        """As in `means`, of one line."""
        return self.means(values[None], bounds)[0]

    def ratios(
        self, above: Float[np.ndarray, "line item"], below: Float[np.ndarray, " item"], floor: float = 0.0
    ) -> list[Interval]:
        """(mean of above - floor) / (mean of below - floor) of shares of right answers, on the items both have.

        With floor 0 this is the paper's performance ratio, with chance as floor the chance-corrected one. NaN where
        the baseline does not exceed the floor; bounds are NaN where resamples of it often do not.
        """
        both = ~np.isnan(above) & ~np.isnan(below)
        tops, sizes = self._sums(np.where(both, above, np.nan))
        bases, _ = self._sums(np.where(both, below, np.nan))
        with np.errstate(invalid="ignore", divide="ignore"):
            whole = self._weighed(sizes, True)
            # One added video answers under the condition alone, the other intact alone.
            rises = self._drawn(bases, sizes, (0.0, 1.0)) / whole - floor
            resampled = np.where(rises > 1e-12, (self._drawn(tops, sizes, (1.0, 0.0)) / whole - floor) / rises, np.nan)
            rise = bases.sum(1) / sizes.sum(1) - floor
            value = np.where(rise > 1e-12, (tops.sum(1) / sizes.sum(1) - floor) / rise, np.nan)
        low, high = self._stretched(resampled, sizes)
        return _intervals(value, np.maximum(low, 0.0) if floor == 0 else low, high)

    def quotient(self, above: Float[np.ndarray, " item"], below: Float[np.ndarray, " item"]) -> Interval:
        """Sum of above / sum of below, on the items that both have, with percentiles over resampled videos.

        NaN where what is below comes to nothing, bounds also where it often does so in resamples.
        """
        known = np.isfinite(above + below)
        top, bottom = self.totals(np.stack([above, below])[:, known], known).T
        if not bottom[0] > 0:
            return UNKNOWN
        return self.percentiles(np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1.0), np.nan))

    def totals(
        self, values: Float[np.ndarray, "line known"], known: Bool[np.ndarray, " item"]
    ) -> Float[np.ndarray, "resample line"]:
        """Sums over the items that are known, of each resample, the sample itself first; without the added videos."""
        n_videos = self.draws.shape[1] - 2
        return self.draws[:, :n_videos] @ by_video(values, self.video[known], n_videos).T

    @staticmethod
    def percentiles(each: Float[np.ndarray, " resample"]) -> Interval:
        """What the sample says, the first, between percentiles of what resamples say; unknown where those often are."""
        rest = each[1:]
        if np.isnan(each[0]):
            return UNKNOWN
        if not len(rest) or np.isnan(rest).mean() > LEVEL / 2:
            return Interval(float(each[0]), np.nan, np.nan)
        low, high = np.nanpercentile(rest, ENDS)
        return Interval(float(each[0]), float(min(low, each[0])), float(max(high, each[0])))

    def n_videos(self, known: np.ndarray) -> int:
        """How many videos these items [item] are on."""
        return len(np.unique(self.video[known]))

    def _sums(self, values: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Sums of the values, and of what they weigh, of each line and video."""
        known = ~np.isnan(values)
        weighed = known.astype(float) if weights is None else np.where(known, weights, 0.0)
        n_videos = self.draws.shape[1] - 2
        sums = by_video(np.where(known, values, 0.0) * weighed, self.video, n_videos)
        return sums, by_video(weighed, self.video, n_videos)

    def _drawn(self, sums: np.ndarray, sizes: np.ndarray, added: Bounds | None) -> np.ndarray:
        """Sums of each resample and line.

        Args:
            added: What the two more videos, of mean size, hold for each item.
        """
        drawn = self.draws[:, :-2] @ sums.T
        if added is not None:
            size = sizes.sum(1) / np.maximum((sizes > 0).sum(1), 1)
            drawn += (self.draws[:, -2:] @ np.array(added))[:, None] * size
        return drawn

    def _weighed(self, sizes: np.ndarray, added: bool) -> np.ndarray:
        """What each resample and line weighs; lines mostly have the same items, whose sum is taken once."""
        some, line = np.unique(sizes, axis=0, return_inverse=True)
        return self._drawn(some, some, (1.0, 1.0) if added else None)[:, line.ravel()]

    def _stretched(self, resampled: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Percentiles of each line's resamples, as far from its centre as so few videos ask; NaN where not known."""
        from scipy.special import ndtri, stdtrit  # takes 0.3 s, which what runs a study need not wait for

        centre, rest = resampled[0], resampled[1:]
        missing = np.isnan(rest)
        whole = ~missing.any(0) & ~np.isnan(centre)
        low, high = np.full((2, len(centre)), np.nan)
        if len(rest):
            low[whole], high[whole] = np.percentile(rest[:, whole], ENDS, axis=0)
            for i in np.flatnonzero(~whole & (missing.mean(0) <= LEVEL / 2) & ~np.isnan(centre)):
                low[i], high[i] = np.percentile(rest[~missing[:, i], i], ENDS)
        n = (sizes > 0).sum(1)
        wider = np.full(len(centre), np.nan)
        some = n > 1
        wider[some] = stdtrit(n[some] - 1, 1 - LEVEL / 2) / ndtri(1 - LEVEL / 2)
        wider[some] *= np.sqrt(n[some] / (n[some] - 1))
        return centre + wider * (low - centre), centre + wider * (high - centre)


def _intervals(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[Interval]:
    """Intervals that hold their values."""
    lows, highs = np.minimum(low, value), np.maximum(high, value)
    return [
        Interval(float(v), float(a), float(b)) if not np.isnan(v) else UNKNOWN
        for v, a, b in zip(value, lows, highs, strict=True)
    ]


def by_video(
    values: Float[np.ndarray, "line item"], video: Int[np.ndarray, " item"], n_videos: int
) -> Float[np.ndarray, "line video"]:
    """Sums over the items of each video."""
    order = np.argsort(video, kind="stable")
    sums = np.zeros((len(values), n_videos))
    if len(order):
        names, starts = np.unique(video[order], return_index=True)
        sums[:, names] = np.add.reduceat(values[:, order], starts, axis=1)
    return sums


def known_mean(values: Float[np.ndarray, " item"]) -> float:
    """The mean of the values that are not NaN; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def mcnemar(
    first: Float[np.ndarray, " item"], second: Float[np.ndarray, " item"], video: Int[np.ndarray, " item"]
) -> McNemar:
    """The exact test over videos of two conditions' scores, on the items both have one for.

    With right and wrong (1 and 0), and one item a video, it is McNemar's own.
    """
    return McNemar(int((first > second).sum()), int((first < second).sum()), paired_p(second - first, video))


def paired_p(changes: Float[np.ndarray, " item"], video: Int[np.ndarray, " item"]) -> float:
    """P of no change between two conditions, from items' changes (NaN takes no part), over videos (`sign_flips`)."""
    known = np.where(np.isnan(changes), 0.0, changes)
    return sign_flips(np.bincount(video, known))


def sign_flips(changes: Float[np.ndarray, " video"]) -> float:
    """The exact two-sided p of videos' changes: how often their sum is as far from 0 with all signs drawn anew.

    If a condition changes nothing, the names of the two could be exchanged on each video as a whole, whatever its
    questions share. All 2^n ways are counted, by the sum's characteristic function: that of d or -d, at even odds,
    is cos(d t). Changes that are no whole numbers are rounded to `STEPS` steps in all, which keeps the test exact.
    1 where nothing changes.
    """
    size = np.abs(changes)
    whole = (size == np.rint(size)).all() and size.sum() <= 2**24
    steps = np.rint(changes if whole else changes * (STEPS / max(size.sum(), 1e-300))).astype(np.int64)
    levels, counts = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    if not len(levels):
        return 1.0
    total = int((levels * counts).sum())
    # Sums are total - 2k for a k of 0 to total; halving makes them whole numbers 0 to total.
    n = 1 << total.bit_length()  # > total
    angle = np.cos(np.pi * np.arange(2 * n) / n)
    j = np.arange(n)
    spectrum = np.ones(n)
    for level, count in zip(levels.tolist(), counts.tolist(), strict=True):
        spectrum *= angle[(j * level) % (2 * n)] ** count
    # spectrum[j] is E exp(i pi j S / n) of the sum S = total - 2k; turning it by exp(-i pi j total / n) leaves k's.
    turned = spectrum * np.exp(-1j * np.pi * ((j * total) % (2 * n)) / n)
    odds = np.fft.ifft(turned).real[: total + 1]
    far = np.abs(total - 2 * np.arange(total + 1)) >= abs(int(steps.sum()))
    least = 0.5 ** (int(counts.sum()) - 1)  # all of one sign, which rounding may lose
    return float(np.clip(odds[far].sum(), least, 1.0))


def holm(ps: Sequence[float]) -> Float[np.ndarray, " test"]:
    """P values adjusted for making all these tests at once (Holm's step-down method)."""
    values = np.asarray(ps, dtype=float)
    order: Int[np.ndarray, " test"] = np.argsort(values)
    stepped = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted
