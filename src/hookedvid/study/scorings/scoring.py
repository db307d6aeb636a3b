"""What a scoring answers for: what it requires of an item, how it asks, what it reads of a run, what that measures.

Each scoring is a file of this folder, and a line of `registry`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.data.convention import Convention
from hookedvid.data.item import Item
from hookedvid.errors import DataError, NonFiniteError
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.values.inputs import VideoInputs

# `model.prepare` of a clip, or `model.prepare.expected` of a video that nobody opened: question, options, answer, form.
Ask = Callable[..., VideoInputs]


@dataclass(frozen=True)
class Scoring(ABC):
    """One way to score, as a study asks by it. A subclass states what is its own; what is here holds for most.

    Args:
        convention: The evaluator's way that a study follows; None: the model's own template, our own extractor.
    """

    convention: Convention | None = None

    name: ClassVar[str]  # in study files, rows and keys
    requires: ClassVar[str]  # what an item must have, in words
    purpose: ClassVar[str] = "score against"  # what it is required for
    lettered: ClassVar[bool] = False  # options stand lettered in the prompt, as conventions have them
    tasks: ClassVar[tuple[str, ...]] = ()  # of the shapes clips, those that are scored so; the first unless told
    reads: ClassVar[str] = "logits"  # what outcomes are made of
    printed: ClassVar[bool] = False  # a convention's authority prints a number of its own for it

    @abstractmethod
    def has(self, item: Item) -> bool:
        """Whether an item has what is required."""

    @abstractmethod
    def inputs(self, ask: Ask, model: Any, item: Item, subtitles: str | None = None) -> VideoInputs:
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

    def gold(self, item: Item) -> tuple:
        """What of an item is scored against besides its options; it enters the hash of the question."""
        return ()

    # ---- what is read of a run -----------------------------------------------------------------------------------

    @property
    def max_new_tokens(self) -> int:
        """Of the text that is generated to be read; 0: nothing is, and logits are read."""
        return 0

    @property
    def extractor(self) -> str:
        """The name of the rule that reads texts, which every row holds."""
        return ""

    @property
    def reads_text(self) -> bool:
        """Whether a text is generated and read. Its rows share no work."""
        return self.max_new_tokens > 0

    def settings(self) -> dict[str, Any]:
        """What of this scoring fixes a row's numbers, besides its name."""
        return {"extractor": self.extractor, "max_new_tokens": self.max_new_tokens} if self.reads_text else {}

    def n_last(self, inputs: VideoInputs) -> int:
        """How many last positions' logits `read` needs."""
        return 1

    def read(self, model: Any, logits: Float[Tensor, "last d_vocab"], inputs: VideoInputs) -> Float[Tensor, " value"]:
        """What an outcome is made of, from the logits of the inputs' `last` positions."""
        return logits[-1]

    def outcome(self, model: Any, item: Item, values: Float[Tensor, " value"], inputs: VideoInputs) -> Outcome:
        """From what `read` gives."""
        raise NotImplementedError(f"{self.name} reads texts")

    @torch.no_grad()
    def generated(self, model: Any, item: Item, inputs: VideoInputs, interventions: Any) -> Outcome:
        """From greedily generated tokens."""
        try:
            text = model.generate(inputs, interventions, max_new_tokens=self.max_new_tokens, return_type="text")
        except NonFiniteError as e:
            return Outcome.failed(e)
        return self.read_text(item, text)

    def read_text(self, item: Item, text: str) -> Outcome:
        """From a generated text."""
        raise NotImplementedError(f"{self.name} reads logits")
