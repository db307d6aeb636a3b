"""What one item under one condition came to, by whatever scoring."""

from dataclasses import dataclass, field
from typing import Literal

from hookedvid.errors import HookedVidError, NonFiniteError


@dataclass(frozen=True)
class Outcome:
    """What one item under one condition came to.

    Attributes:
        chosen: 0-based option, None if generated text named none (`unparsed`).
        correct: None where nothing was chosen, or the item's answer is not known. Options of equal text are equally
            right (`Item.right`).
        prob: Probability of the right ones over all tokens.
        margin: The best right one's logit minus the best other's; both None for generated text, margin also where every
            option is right.
        text: What was generated, as it was.
        flag: What is wrong with it besides: nothing said, garbage said over and over (which may parse), or logits that
            are no numbers.
        attention_share, decoder_share: Of the intact model's operations, 0 to 1 (`hookedvid.model.flops`); None where
            nothing ran.
        reason: Why it failed.
        fault: Of what kind that is, in one word (docs/videos.md lists them).
        log_probs: Of each token of the reference, its end included, natural logarithms.
        span: The seconds that generated text named, as said.
        left: Where a rule decided in the run when positions leave: of each exit of the condition the block (0-based)
            before which it took place, None where it did not. Rows of other conditions have no such field.
        estimates: What gradients say that other conditions cost, in their order; of conditions that ask for that alone.
    """

    status: Literal["ok", "unparsed", "failed"]
    chosen: int | None = None
    correct: bool | None = None
    prob: float | None = None
    margin: float | None = None
    text: str = ""
    reason: str = ""
    attention_share: float | None = None
    decoder_share: float | None = None
    flag: Literal["", "empty", "degenerate", "non-finite"] = ""
    fault: str = ""
    log_probs: tuple[float, ...] | None = None
    span: tuple[float, float] | None = None
    left: tuple[int | None, ...] | None = field(default=None, metadata={"later": True})
    estimates: tuple[float, ...] | None = field(default=None, metadata={"later": True})

    @classmethod
    def failed(cls, error: HookedVidError, fault: str = "input") -> "Outcome":
        """What an item comes to that could not be asked or scored."""
        flag = "non-finite" if isinstance(error, NonFiniteError) else ""
        return cls("failed", reason=str(error), flag=flag, fault=fault)
