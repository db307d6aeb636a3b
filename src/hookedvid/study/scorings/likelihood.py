"""`likelihood`: the question alone, its reference after it, the log-probability of each of the reference's tokens."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from hookedvid.data.item import Item
from hookedvid.model.answers import answer_log_probs
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.study.scorings.scoring import Ask, Scoring
from hookedvid.values.inputs import VideoInputs


class Likelihood(Scoring):
    """Of captions and open answers, which no option stands for."""

    name = "likelihood"
    requires = "reference"
    tasks = ("captions", "answers")
    reads = "log-probabilities"

    def has(self, item: Item) -> bool:
        """A reference."""
        return bool(item.reference)

    def gold(self, item: Item) -> tuple:
        """The reference."""
        return (item.reference,)

    def inputs(self, ask: Ask, model: Any, item: Item, subtitles: str | None = None) -> VideoInputs:
        """The reference stands where a generated answer would."""
        return ask(item.question, answer=item.reference)

    def n_last(self, inputs: VideoInputs) -> int:
        """The prompt's last position and the reference's."""
        return 1 + inputs.layout.n_tokens - inputs.layout.n_prompt

    def read(self, model: Any, logits: Float[Tensor, "last d_vocab"], inputs: VideoInputs) -> Float[Tensor, " value"]:
        """The log-probability of each of the reference's tokens, its end included."""
        return answer_log_probs(logits, inputs, model.cfg.n_tokens)

    def outcome(self, model: Any, item: Item, values: Float[Tensor, " value"], inputs: VideoInputs) -> Outcome:
        """The log-probabilities as they are."""
        return Outcome("ok", log_probs=tuple(values.tolist()))
