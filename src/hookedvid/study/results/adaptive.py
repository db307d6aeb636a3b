"""The course of an adaptive study: which conditions are asked about which videos next, and every decision on the way.

What is asked follows from the study and the rows before, and decisions from rows alone: read again they are the same.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from hookedvid.data.item import Item
from hookedvid.errors import ConfigError, DataError
from hookedvid.study.definition import Study
from hookedvid.study.protocols import Condition
from hookedvid.study.results import sequential
from hookedvid.study.results.evidence import enough
from hookedvid.study.results.sequential import CRITICAL, NOT_CRITICAL, OPEN, VERDICTS, Verdicts
from hookedvid.study.results.statistics import Interval, known_mean
from hookedvid.study.results.summary import Outcomes
from hookedvid.study.rows import digest, json_bytes
from hookedvid.study.scorings.scoring import Scoring
from hookedvid.values.files import write_text
from hookedvid.values.texts import csv_text

LARGEST = 700.0  # logarithm of the evidence that is told; any more is beyond a float


class Ask(NamedTuple):
    """What is to be run next: the baseline and these conditions on these items, whole videos of them."""

    conditions: list[Condition]
    items: list[Item]


@dataclass(frozen=True)
class Decision:
    """What one look says of one condition.

    Attributes:
        look: Counted from 1.
        videos, questions: With a score under the condition and the baseline.
        cost: Mean over videos of what the condition takes off the score; of the last look with its 95 % confidence
            sequence.
        e_critical, e_not_critical: The most evidence so far that the mean cost is above 0, that it is below the
            smallest of interest.
        needed_critical, needed_not_critical: What settles one condition more of that kind at this look.
        verdict: One of `sequential.VERDICTS`.
        last: Whether the condition is asked no more: it has its verdict, or there are no videos left.
    """

    look: int
    condition: Condition
    videos: int
    questions: int
    cost: Interval
    e_critical: float
    e_not_critical: float
    needed_critical: float
    needed_not_critical: float
    verdict: str
    last: bool

    @property
    def reason(self) -> str:
        """Why it was stopped; empty while it goes on."""
        ended = "no videos left" if self.last else ""
        return {CRITICAL: "shown to cost something", NOT_CRITICAL: "shown to cost too little"}.get(self.verdict, ended)


class Course:
    """A study that stops asking about a condition once its verdict is settled.

    The baseline and all open conditions are asked about a few videos at a time, whole ones, in an order drawn by the
    study's seed. Questions that no verdict needs are not asked: those of the language-only control, those whose right
    answer is hidden.

    Args:
        study: Its seed, smallest_effect, look_every and at_once.
        items: All there are.
        conditions: The baseline first, the others in the order in which `at_once` of them are taken.
        scoring: Of the rows.

    Attributes:
        asked: Videos that each condition was asked about, those without a score among them.

    Raises:
        ConfigError: Where there is nothing besides the baseline.
        DataError: Where no question has an answer to be scored by.
    """

    def __init__(self, study: Study, items: Sequence[Item], conditions: Sequence[Condition], scoring: Scoring):
        self.study, self.conditions, self.scoring = study, list(conditions[1:]), scoring
        self.baseline = conditions[0]
        assert scoring.bounds is not None  # a study is made with no other
        self.span = scoring.bounds[1] - scoring.bounds[0]
        groups = Outcomes(items, (), (), scoring).groups()
        self.group = "video" if "video" in groups else "all"
        self._of: dict[str, list[Item]] = {}
        for item, inside in zip(items, groups[self.group], strict=True):
            if inside and scoring.scored(item):
                self._of.setdefault(item.video, []).append(item)
        if not self.conditions:
            raise ConfigError("an adaptive study settles what conditions cost, and has none besides the baseline")
        if not self._of:
            raise DataError("an adaptive study stops by its scores, and no question has an answer to be scored by")
        self.videos = sorted(self._of, key=lambda video: digest(json_bytes([study.seed, video])))
        self.decisions: list[Decision] = []
        self.verdicts = Verdicts(len(self.conditions))
        shape = (len(self.conditions), len(self.videos))
        self.baseline_scores = np.full(shape[1], np.nan)
        self._costs, self._n_items = np.full(shape, np.nan), np.zeros(shape, dtype=int)
        self.asked: Int[np.ndarray, " condition"] = np.zeros(shape[0], dtype=int)
        self._look = 0

    @property
    def items(self) -> list[Item]:
        """All that may be asked, video by video."""
        return [item for video in self.videos for item in self._of[video]]

    @property
    def last(self) -> list[Decision]:
        """Of each condition that was asked, its last decision, in the conditions' order."""
        last = {d.condition.label: d for d in self.decisions}
        return [last[c.label] for c in self.conditions if c.label in last]

    def least(self) -> tuple[int, int]:
        """Videos that a condition takes at least to be critical, and to be not; more than there are: it cannot be.

        The first where every video loses all that it can, the second where none changes; both in the last of the groups
        that are asked one after the other, where all before it are settled.
        """
        last = (len(self.conditions) - 1) % (self.study.at_once or len(self.conditions)) + 1
        n_items = np.cumsum([len(self._of[video]) for video in self.videos]).tolist()
        first = next((n for n, items in enumerate(n_items, 1) if enough(items, n)), len(n_items) + 1)
        counts = sequential.least_videos(last, self.study.smallest_effect, self.span)
        looks = [-(-max(first, n) // self.study.look_every) * self.study.look_every for n in counts]
        critical, not_critical = (
            min(look, len(n_items)) if max(first, n) <= len(n_items) else look
            for look, n in zip(looks, counts, strict=True)
        )
        return critical, not_critical

    def next(self) -> Ask | None:
        """What is to be asked; None once every verdict is settled or there are no videos left."""
        open_ = self.verdicts.open & (self.asked < len(self.videos))
        several = self.study.at_once or len(open_) or 1
        for first in range(0, len(open_), several):
            if (chosen := first + np.flatnonzero(open_[first : first + several])).size:
                start = int(self.asked[chosen[0]])
                videos = self.videos[start : start + self.study.look_every]
                return Ask([self.conditions[i] for i in chosen], [item for v in videos for item in self._of[v]])
        return None

    def take(self, ask: Ask, rows: Iterable[Mapping[str, Any]]) -> list[Decision]:
        """Look at the rows of what was asked.

        Args:
            rows: Each of them under its condition's label.
        """
        outcomes = Outcomes(ask.items, [self.baseline, *ask.conditions], list(rows), self.scoring)
        place = {c.label: i for i, c in enumerate(self.conditions)}
        column = {video: i for i, video in enumerate(self.videos)}
        chosen = [place[c.label] for c in ask.conditions]
        costs, video = outcomes.score[0] - outcomes.score[1:], np.array([column[item.video] for item in ask.items])
        for at in dict.fromkeys(video.tolist()):
            self.baseline_scores[at] = _means(outcomes.score[:1, video == at])[0]
            self._costs[chosen, at] = _means(costs[:, video == at])
            self._n_items[chosen, at] = (~np.isnan(costs[:, video == at])).sum(1)
        self.asked[chosen] = 1 + int(video.max())
        return self._decide(chosen)

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> "Course":
        """The course that a study took, from its rows.

        Raises:
            DataError: Where rows are missing.
        """
        stored = {(row["item"], row["condition"]): row for row in rows}
        while ask := self.next():
            try:
                labels = [c.label for c in (self.baseline, *ask.conditions)]
                self.take(ask, [stored[item.id, label] for item in ask.items for label in labels])
            except KeyError as e:
                raise DataError(f"the row of {e.args[0]} is missing; run the study again to fill it in") from e
        return self

    def _decide(self, chosen: Sequence[int]) -> list[Decision]:
        costs, n = self._costs[chosen], self.asked[chosen[0]]
        known, n_items = (~np.isnan(costs)).sum(1), self._n_items[chosen].sum(1)
        critical, negligible = np.full((2, len(self.conditions)), -np.inf)
        above, below = sequential.evidence(costs[:, :n], self.study.smallest_effect, self.span)
        critical[chosen], negligible[chosen] = above[:, -1], below[:, -1]
        is_enough = np.zeros(len(self.conditions), dtype=bool)
        is_enough[chosen] = [enough(i, v) for i, v in zip(n_items.tolist(), known.tolist(), strict=True)]
        self.verdicts.look(critical, negligible, is_enough)
        self._look += 1
        left = [max(1, len(self.conditions) - int(sequential.rejected(x).sum())) for x in self.verdicts.evidence]
        needed = (left[0] / sequential.SIDE, left[1] / sequential.SIDE)
        made: list[Decision] = []
        for i, v, q, line in zip(chosen, known, n_items, costs[:, :n], strict=True):
            above, below = (math.exp(min(float(x[i]), LARGEST)) for x in self.verdicts.evidence)
            verdict = VERDICTS[int(self.verdicts.verdict[i])]
            ended = verdict != OPEN or int(n) == len(self.videos)
            # An interval takes as long as eighty looks, and nothing rests on those of a condition that goes on.
            cost = sequential.interval(line, self.span) if ended else Interval(known_mean(line), math.nan, math.nan)
            evidence = above, below, *needed
            made.append(Decision(self._look, self.conditions[i], int(v), int(q), cost, *evidence, verdict, ended))
        self.decisions += made
        return made


def _means(values: np.ndarray) -> np.ndarray:
    """Of each line over what is known of it; NaN where nothing is."""
    known = ~np.isnan(values)
    n = known.sum(1)
    return np.where(n > 0, np.where(known, values, 0.0).sum(1) / np.maximum(n, 1), np.nan)


def write_csv(decisions: Sequence[Decision], path: Path) -> None:
    """One line per look and condition; layers counted from 1, evidence as e-values."""
    lines: list[dict[str, Any]] = []
    for d in decisions:
        c = d.condition
        line: dict[str, Any] = {
            "look": d.look, "protocol": c.protocol, "condition": c.label, "knockout": c.knockout, "layer": c.layer,
            "videos": d.videos, "questions": d.questions, "cost": d.cost.value, "cost_low": d.cost.low,
            "cost_high": d.cost.high,
        }  # fmt: skip
        names = ("e_critical", "needed_critical", "e_not_critical", "needed_not_critical", "verdict", "reason")
        lines.append(line | {name: getattr(d, name) for name in names})
    write_text(path, csv_text(lines))
