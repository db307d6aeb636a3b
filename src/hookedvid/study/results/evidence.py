"""Comparisons of a study's conditions on one group of items: what a finding may rest on."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from hookedvid.study.protocols import Condition
from hookedvid.study.results import statistics
from hookedvid.study.results.statistics import LEVEL, Bounds, Interval, Resamples

# What any finding needs. Under 6 videos no test over videos can reach p < 0.05; at 10 the best p is 0.002, which holds
# among some 25 conditions.
MIN_VIDEOS = 10
MIN_ITEMS = 20


class Finding(NamedTuple):
    """One law: its name, whether the data support it, and what they say of it."""

    law: str
    supported: bool
    sentence: str

    @property
    def verdict(self) -> str:
        """Verdict and sentence, to print after the law's name."""
        return f"{'' if self.supported else 'not '}supported: {self.sentence}"


def enough(n: int, n_videos: int) -> bool:
    """Whether there are items and videos enough for any finding."""
    return n >= MIN_ITEMS and n_videos >= MIN_VIDEOS


def on(n: int, n_videos: int) -> str:
    """`176 questions, 50 videos`."""
    return f"{n} question{'s' * (n != 1)}, {n_videos} video{'s' * (n_videos != 1)}"


class Effect(NamedTuple):
    """A difference between conditions, on the items that all of them have a value for.

    Attributes:
        size: Mean over items.
        p: Exact and two-sided over videos, of this comparison alone.
        n: Items.
    """

    size: Interval
    p: float
    n: int
    n_videos: int

    @property
    def enough(self) -> bool:
        """Whether there are videos and items enough to say anything."""
        return enough(self.n, self.n_videos)

    @property
    def on(self) -> str:
        """How much it rests on."""
        return on(self.n, self.n_videos)


class Evidence:
    """Scores of one group's items under every condition, the baseline's first.

    Args:
        bounds: The lowest and highest score there is, if there are. cost: what each condition takes off the baseline's
            score, on the items that both have; p_holm: its p, adjusted for all conditions, as in the table.
    """

    def __init__(
        self,
        conditions: Sequence[Condition],
        scores: Float[np.ndarray, "condition item"],
        resamples: Resamples,
        bounds: Bounds | None,
    ):
        self.scores, self.resamples = scores, resamples
        self.span = None if bounds is None else bounds[1] - bounds[0]
        self.row = {c.label: i for i, c in enumerate(conditions)}
        self.baseline = conditions[0].label
        self.n, self.n_videos = int((~np.isnan(scores[0])).sum()), resamples.n_videos(~np.isnan(scores[0]))
        self.by_protocol: dict[str, list[Condition]] = {}
        for c in conditions:
            self.by_protocol.setdefault(c.protocol, []).append(c)
        others = list(self.row)[1:]
        against = self.effects([{self.baseline: 1.0, label: -1.0} for label in others])
        self.cost = dict(zip(others, against, strict=True))
        self.p_holm = dict(zip(others, statistics.holm([x.p for x in against]).tolist(), strict=True))

    def known(self, labels: Sequence[str]) -> Bool[np.ndarray, " item"]:
        """Items with a value under the baseline and each of these conditions."""
        return np.isfinite(self.scores[[0, *(self.row[x] for x in labels)]]).min(axis=0)

    def effects(
        self, several: Sequence[Mapping[str, float]], known: Bool[np.ndarray, " item"] | None = None
    ) -> list[Effect]:
        """Weighted sums of conditions' scores.

        `{"baseline": 1, "LV-K all layers": -1}` is what LV-K costs. The weights of a sum come to nothing.

        Args:
            known: Items to look at, those with all the values unless given.
        """
        values = np.zeros((len(several), self.scores.shape[1]))
        for line, parts in zip(values, several, strict=True):
            for label, weight in parts.items():
                line += weight * self.scores[self.row[label]]
        if known is not None:
            values[:, ~known] = np.nan
        # Ends of the scale: every sum here has positive weights of 1 in all.
        sizes = self.resamples.means(values, None if self.span is None else (-self.span, self.span))
        ps = [statistics.paired_p(line, self.resamples.video) for line in values]
        there = ~np.isnan(values)
        return [
            Effect(size, p, int(inside.sum()), self.resamples.n_videos(inside))
            for size, p, inside in zip(sizes, ps, there, strict=True)
        ]

    def costs_on(self, labels: Sequence[str], known: Bool[np.ndarray, " item"]) -> list[Effect]:
        """What each condition takes off the baseline's score on these items."""
        return self.effects([{self.baseline: 1.0, label: -1.0} for label in labels], known)

    def starred(self, label: str) -> bool:
        """Whether the table marks a condition: its test against the baseline holds after correction."""
        return self.p_holm[label] < LEVEL

    def costs(self, label: str) -> bool:
        """Whether a condition takes something off: by the table's own test, its interval, and videos enough."""
        return self.cost[label].enough and self.starred(label) and self.cost[label].size.low > 0
