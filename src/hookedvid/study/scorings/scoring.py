"""What a scoring answers for: what it requires of an item, how it asks, what it reads of a run, what that measures.

Each scoring is a file of this folder, and a line of `registry`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.data.convention import Convention
from hookedvid.data.item import Item
from hookedvid.errors import DataError, NonFiniteError
from hookedvid.nn.model import Model
from hookedvid.study.protocols import EFFICIENCY
from hookedvid.study.results.cells import number
from hookedvid.study.results.statistics import UNKNOWN, Bounds, Interval, Resamples
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.values.inputs import VideoInputs

if TYPE_CHECKING:
    from hookedvid.study.results.summary import Summary

# `model.prepare` of a clip, or `model.prepare.expected` of a video that nobody opened: question, options, answer, form.
Ask = Callable[..., VideoInputs]


@dataclass(frozen=True)
class Column:
    """One column of a table of conditions.

    Args:
        name: Its head.
        cell: A line's text in it.
        level: Its text in the last row, which says what knowing nothing scores; None where there is none.
        optional: Left out of the terminal's table where all its cells are empty.
    """

    name: str
    cell: Callable[["Summary"], str]
    level: Callable[["Summary"], str] | None = None
    optional: bool = False


def _searched(s: "Summary", share: float) -> str:
    return number(100 * share) if s.condition.protocol == EFFICIENCY else ""


N = Column("n", lambda s: str(s.n))
FAILED = Column("failed", lambda s: str(s.failed or ""))
LOST = Column("lost", lambda s: str(s.failed + s.unparsed or ""))
# What exits and windows leave of the baseline's operations, where they were searched.
COSTS = (
    Column("decoder", lambda s: _searched(s, s.decoder_share), optional=True),
    Column("attention", lambda s: _searched(s, s.attention_share), optional=True),
)


@dataclass(frozen=True)
class Scoring(ABC):
    """One way to score, as a study asks by it. A subclass states what is its own; what is here holds for most.

    Args:
        convention: The evaluator's way that a study follows; None: the model's own template, our own extractor.
    """

    convention: Convention | None = None

    name: ClassVar[str]  # in study files, rows and keys
    requires: ClassVar[str]  # the field that an item must have
    purpose: ClassVar[str] = "score against"  # what it is required for
    lettered: ClassVar[bool] = False  # options stand lettered in the prompt, as conventions have them
    tasks: ClassVar[tuple[str, ...]] = ()  # of the shapes clips, those that are scored so; the first unless told
    reads: ClassVar[str] = "logits"  # what outcomes are made of
    printed: ClassVar[bool] = False  # a convention's authority prints a number of its own for it

    title: ClassVar[str]  # of the score
    unit: ClassVar[str]  # of the score, in tables and findings
    measures: ClassVar[tuple[str, ...]]  # names of a row's numbers, the first of which is the score
    bounds: ClassVar[Bounds | None] = None  # the lowest and highest score there is, if there are
    chooses: ClassVar[bool] = False  # a row is right or wrong: held against chance, random edges, searched for exits
    level_name: ClassVar[str] = ""  # of what knowing nothing scores, if that is known
    level_column: ClassVar[str] = "level"
    counts: ClassVar[tuple[str, ...]] = ("failed", "unparsed")  # of the rows, by the summary's names
    test: ClassVar[str] = "sign_flip"  # of a condition against the baseline, as columns name it
    test_name: ClassVar[str] = "exact sign flips"

    label: ClassVar[str]  # of figures' axis of scores
    kept: ClassVar[str] = "change"  # of `against`, what figures show
    kept_label: ClassVar[str]
    baseline_kept: ClassVar[float] = 0.0  # the baseline's
    interval: ClassVar[str]  # how the terminal's table writes a score
    note: ClassVar[str] = ""  # what a reader of the tables must know
    width: ClassVar[int] = 128  # columns that the terminal's tables need
    exits_apart: ClassVar[bool] = False  # exits and windows that were searched have a table of their own alone
    columns: ClassVar[tuple[Column, ...]]  # of the terminal's table of conditions, behind the condition
    page_columns: ClassVar[tuple[Column, ...]] = ()  # of the page's, where it has more

    @abstractmethod
    def inputs(self, ask: Ask, model: Model, item: Item, subtitles: str | None = None) -> VideoInputs:
        """An item's inputs as this scoring reads them.

        Args:
            ask: What lays a question out: `model.prepare` of a video, or what stands for it.
            model: Whose inputs they are.
            item: What is asked.
            subtitles: What is said in the video, where the convention's prompt holds it.
        """

    def check(self, items: Sequence[Item]) -> None:
        """Raises DataError, naming some of them, for items that lack what is required."""
        if unusable := [item.id for item in items if not self.has(item)]:
            raise DataError(
                f"{len(unusable)} items have no {self.requires} to {self.purpose}: {unusable[:3]}; this study scores "
                f"by {self.name}"
            )

    def has(self, item: Item) -> bool:
        """Whether an item has what is required."""
        return bool(getattr(item, self.requires))

    def gold(self, item: Item) -> tuple[Any, ...]:
        """What of an item is scored against besides its options; it enters the hash of the question."""
        return (getattr(item, self.requires),)

    # ---- what is read of a run -----------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What fixes a row's numbers besides the scoring's name: `extractor` and `max_new_tokens` of a text, if any."""
        return {}

    @property
    def reads_text(self) -> bool:
        """Whether a text is generated and read, not logits. Its rows share no work."""
        return "max_new_tokens" in self.settings()

    def n_last(self, inputs: VideoInputs) -> int:
        """How many last positions' logits `read` needs."""
        return 1

    def read(self, model: Model, logits: Float[Tensor, "last d_vocab"], inputs: VideoInputs) -> Float[Tensor, " value"]:
        """What an outcome is made of, from the logits of the inputs' `last` positions."""
        return logits[-1]

    def outcome(self, model: Model, item: Item, values: Float[Tensor, " value"], inputs: VideoInputs) -> Outcome:
        """From what `read` gives."""
        raise NotImplementedError(f"{self.name} reads texts")

    def metric(
        self, model: Model, item: Item, values: Float[Tensor, " value"], inputs: VideoInputs
    ) -> Float[Tensor, ""]:
        """The measure that tells most of one item, from what `read` gives, with a graph.

        Raises:
            InputError: For an item whose right answer nobody knows.
        """
        raise NotImplementedError(f"{self.name} reads texts")

    @torch.no_grad()
    def generated(
        self, model: Model, item: Item, inputs: VideoInputs, interventions: Any, sources: Any = None
    ) -> Outcome:
        """From greedily generated tokens."""
        try:
            n = self.settings()["max_new_tokens"]
            how = {"sources": sources, "max_new_tokens": n, "return_type": "text"}
            text = model.generate(inputs, interventions, **how)
        except NonFiniteError as e:
            return Outcome.failed(e)
        return self.read_text(item, text)

    def read_text(self, item: Item, text: str) -> Outcome:
        """From a generated text."""
        raise NotImplementedError(f"{self.name} reads logits")

    # ---- what that measures --------------------------------------------------------------------------------------

    @abstractmethod
    def values(self, item: Item, row: Mapping[str, Any]) -> dict[str, float]:
        """The numbers of a row that did not fail, by their names in `measures`; NaN takes no part."""

    def scored(self, item: Item) -> bool:
        """Whether what is right is known of an item; others are asked and not scored."""
        return True

    def bounds_of(self, measure: str) -> Bounds | None:
        """The lowest and highest value there is of one of the `measures`, if there are."""
        return self.bounds

    def level(self, items: Sequence[Item]) -> float:
        """The score of knowing nothing; NaN where it is not known."""
        return math.nan

    def against(
        self, resamples: Resamples, score: Float[np.ndarray, "condition item"], level: float
    ) -> dict[str, list[Interval]]:
        """Scores held against the first condition's on the same items, by column; here the change."""
        span = None if self.bounds is None else (self.bounds[0] - self.bounds[1], self.bounds[1] - self.bounds[0])
        itself, *changed = resamples.means(score - score[0], span)
        return {"change": [UNKNOWN if np.isnan(itself.value) else Interval(0.0, 0.0, 0.0), *changed]}

    # ---- how it is shown -----------------------------------------------------------------------------------------

    @property
    def subtitle(self) -> str:
        """A second line of the terminal's title."""
        return ""

    def brief(self, score: float) -> str:
        """A score in tables that hold many."""
        return number(score, 3)

    def amount(self, i: Interval) -> str:
        """A difference between scores, in findings."""
        return f"{i.value:z.3f} {self.unit} [{i.low:z.3f}, {i.high:z.3f}]"

    def said(self, item: Item, row: Mapping[str, Any]) -> tuple[str, str]:
        """The page's mark of an example's answer (`right`, `wrong` or none) and its text."""
        return "wrong", row["text"] or row["status"]
