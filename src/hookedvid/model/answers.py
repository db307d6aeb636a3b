"""What logits say: the option of a multiple-choice question, how likely a given answer or text is."""

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase as LETTERS

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hookedvid.errors import InputError, NonFiniteError
from hookedvid.values.inputs import PAD, VideoInputs
from hookedvid.values.markup import shaded, shown, table
from hookedvid.values.tensors import floats
from hookedvid.values.texts import one_line


@dataclass(frozen=True)
class Answer:
    """The chosen option and how sure the model is of each.

    Attributes:
        index: 0-based option.
        letter: Its letter in the prompt.
        text: The option's words.
        probs: Each option letter's probability over all tokens, so they need not sum to 1.
        logits: The letters' logits.
    """

    index: int
    letter: str
    text: str
    probs: tuple[float, ...]
    logits: tuple[float, ...]

    def __repr__(self) -> str:
        rest = f", margin {self.margin:.3g}" if len(self.logits) > 1 else ""
        return f"Answer({self.letter}. {one_line(self.text)}, p = {self.prob:.3f}{rest})"

    def _repr_html_(self) -> str:
        """Each option's probability and logit."""
        rows = [
            (letter, shaded(f"{p:.3f}", p), f"{logit:.3f}", "← chosen" if i == self.index else "")
            for i, (letter, p, logit) in enumerate(zip(LETTERS, self.probs, self.logits, strict=False))
        ]
        return shown(f"{self.letter}. {self.text}", table(("option", "probability", "logit", ""), rows))

    @property
    def prob(self) -> float:
        """Probability of the chosen option's letter."""
        return self.probs[self.index]

    @property
    def margin(self) -> float:
        """Logit of the chosen option minus the next best option's."""
        rest = [x for i, x in enumerate(self.logits) if i != self.index]
        return self.logits[self.index] - max(rest) if rest else float("inf")


def real_tokens(logits: Float[Tensor, "*batch d_vocab"], n_tokens: int | None) -> Float[Tensor, "*batch n_tokens"]:
    """The logits of what the tokenizer knows: padding rows behind it hold untrained values and may win.

    The original runtime has none (it resizes to the tokenizer's length). Ids stay as they are; None keeps all.
    """
    return logits[..., :n_tokens]


def check_option_tokens(tokens: Sequence[int]) -> None:
    """Raises InputError where two options have one token: no logit tells them apart."""
    if len(set(tokens)) < len(tokens):
        raise InputError(
            f"the options' tokens {list(tokens)} are not all different, so that no logits tell the options apart; use "
            'another tokenizer, or score by "likelihood"'
        )


def score_options(
    logits: Float[Tensor, " d_vocab"], inputs: VideoInputs, item: int = 0, n_tokens: int | None = None
) -> Answer:
    """The answer of one item; `n_tokens` is the config's.

    Raises:
        InputError: Without options, where two have one token, or when the logits are not finite.
    """
    if not inputs.option_tokens[item]:
        raise InputError(
            "this input has no options to choose from: give prepare(..., options=[...]), or use generate() for an "
            "open answer"
        )
    check_option_tokens(inputs.option_tokens[item])
    logits = real_tokens(logits, n_tokens)
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteError(
            "the logits are not finite: the weights or this dtype overflow, so there is no answer to score"
        )
    chosen = torch.tensor(inputs.option_tokens[item], device=logits.device)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    of_options, probs = wide[chosen], wide.softmax(-1)[chosen]
    best = int(of_options.argmax())
    return Answer(best, LETTERS[best], inputs.options[item][best], tuple(floats(probs)), tuple(floats(of_options)))


def answer_log_probs(
    logits: Float[Tensor, "pos d_vocab"], inputs: VideoInputs, n_tokens: int | None = None
) -> Float[Tensor, " answer"]:
    """The log-probability (natural) of each token of the answer that a single item's inputs hold, given all before it.

    Taken in float32 at least.

    Args:
        logits: Of at least the last prompt position and the answer, in order.
        n_tokens: The config's.

    Raises:
        InputError: Where the inputs hold no answer or the logits are not finite.
    """
    layout = inputs.layout
    n = layout.n_tokens - layout.n_prompt
    if not n:
        raise InputError('these inputs hold no answer to score: give prepare(..., answer="...")')
    if len(logits) < n + 1:
        raise InputError(
            f"{len(logits)} positions of logits do not cover an answer of {n} tokens and the one before it"
        )
    logits = real_tokens(logits[-n - 1 : -1], n_tokens)
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteError(
            "the logits are not finite: the weights or this dtype overflow, so the answer has no score"
        )
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = inputs.tokens[0, -n:].to(logits.device)
    return wide.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def is_predicted(inputs: VideoInputs) -> Bool[Tensor, "batch next"]:
    """Whether each column but the last is followed by text, and so predicts a token."""
    # Left of a row's first token stands nothing that could predict it, in a padded batch as well as alone.
    return (inputs.tokens[:, 1:] >= 0) & (inputs.tokens[:, :-1] != PAD)


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"], inputs: VideoInputs, n_tokens: int | None = None
) -> Float[Tensor, "batch next"]:
    """Cross entropy (natural) of each column's next token, 0 where that is no text; `n_tokens` is the config's.

    An id beyond `n_tokens` has no probability, and a loss of infinity.
    """
    real = real_tokens(logits[:, :-1], n_tokens)
    if n_rest := logits.shape[-1] - real.shape[-1]:
        real = F.pad(real, (0, n_rest), value=float("-inf"))
    targets = inputs.tokens[:, 1:].masked_fill(~is_predicted(inputs), -100)
    return F.cross_entropy(real.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
