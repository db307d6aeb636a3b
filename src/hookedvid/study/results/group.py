"""One group's outcomes, and how a study samples them: what a protocol's table, findings and figure are read from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool

from hookedvid.data.item import Item
from hookedvid.study.protocols import Condition
from hookedvid.study.results import statistics
from hookedvid.study.results.evidence import Evidence
from hookedvid.study.results.statistics import Interval, Resamples
from hookedvid.study.results.summary import Outcomes
from hookedvid.study.scorings.scoring import Scoring


@dataclass(frozen=True)
class Group:
    """The outcomes of one group of items.

    Attributes:
        name: As `Outcomes.groups` has it.
        n_layers: Of the model.
        keep: As in a Study.
    """

    outcomes: Outcomes
    name: str
    n_layers: int
    n_resamples: int = 2000
    seed: int = 0
    keep: float = 0.97

    @cached_property
    def columns(self) -> Bool[np.ndarray, " item"]:
        """Which items are in it."""
        return self.outcomes.groups()[self.name]

    @cached_property
    def items(self) -> list[Item]:
        """Those items."""
        return [item for item, inside in zip(self.outcomes.items, self.columns, strict=True) if inside]

    @cached_property
    def resamples(self) -> Resamples:
        """Of their videos."""
        return Resamples.of([item.video for item in self.items], self.n_resamples, self.seed)

    @property
    def scoring(self) -> Scoring:
        """What the outcomes are read by."""
        return self.outcomes.scoring

    @cached_property
    def level(self) -> float:
        """What knowing nothing scores on those of its items that have a score."""
        return self.outcomes.level(self.columns)

    def conditions(self, protocol: str) -> list[Condition]:
        """Those of a protocol."""
        return [c for c in self.outcomes.conditions if c.protocol == protocol]

    @cached_property
    def finest(self) -> str:
        """The measure that tells most of one item: the right answer's margin where logits were read, or the score."""
        margins = self.outcomes.values.get("margin")
        known = margins is not None and not np.isnan(margins[:, self.columns]).all()
        return "margin" if known else self.scoring.measures[0]

    def amount(self, measure: str) -> Callable[[Interval], str]:
        """How a difference of a measure is written."""
        return _logits if measure == "margin" else self.scoring.amount

    def change(self, measure: str) -> str:
        """How an axis of a measure's differences is labelled, with the unit in which they are drawn."""
        if measure == "margin":
            return "change of margin, logits"
        unit = "0 to 1" if self.scoring.chooses else self.scoring.unit
        return f"change of {self.scoring.title} ({unit})"

    def evidence(self, conditions: Sequence[Condition], measure: str) -> Evidence:
        """A measure under the baseline and some conditions; p values are corrected for looking at these."""
        everything = [self.outcomes.conditions[0], *conditions]
        row = {c.label: i for i, c in enumerate(self.outcomes.conditions)}
        values = self.outcomes.values[measure][:, self.columns][[row[c.label] for c in everything]]
        return Evidence(everything, values, self.resamples, self.scoring.bounds_of(measure))

    def decoder_share(self, condition: Condition) -> float:
        """What is left of the decoder's operations, 0 to 1, mean over items; NaN where rows do not tell."""
        row = self.outcomes.conditions.index(condition)
        return statistics.known_mean(self.outcomes.decoder_share[row, self.columns])

    def score(self, condition: Condition) -> Interval:
        """The mean score."""
        row = self.outcomes.conditions.index(condition)
        return self.resamples.mean(self.outcomes.score[row, self.columns], self.scoring.bounds)


def _logits(i: Interval) -> str:
    return f"{i.value:z.2f} logits [{i.low:z.2f}, {i.high:z.2f}]"
