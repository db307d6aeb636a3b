"""Turning a run into an outcome: which option was chosen, how probable the right one was, or nothing parsed."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.answering import LETTERS, answer_log_probs, score_options
from hookedvid.data.item import Item
from hookedvid.errors import InputError
from hookedvid.inputs import VideoInputs

Scoring = Literal["letters", "words", "generate", "likelihood", "grounding"]
SCORINGS: tuple[Scoring, ...] = ("letters", "words", "generate", "likelihood", "grounding")
# The extraction rule of `generate`; its name goes into every record, so a new rule gets a new one.
EXTRACTOR = "leading-letter@1"
_LEADING = re.compile(r"\s*\(?([A-Z])(?![A-Za-z])")


@dataclass(frozen=True)
class Outcome:
    """What one item under one condition came to.

    chosen: 0-based option, None if generated text named none (`unparsed`). prob: probability of the right
    option over all tokens; margin: its logit minus the best other option's; both None for
    generated text. text: what was generated. log_probs: of each token of the reference, its end included, natural
    logarithms. span: the seconds that generated text named, as said.
    """

    status: Literal["ok", "unparsed", "failed"]
    chosen: int | None = None
    correct: bool | None = None
    prob: float | None = None
    margin: float | None = None
    text: str = ""
    reason: str = ""
    log_probs: tuple[float, ...] | None = None
    span: tuple[float, float] | None = None


def prepare(model: Any, item: Item, video: Any, scoring: Scoring, **sampling: Any) -> VideoInputs:
    """An item's inputs as a scoring reads them.

    letters, generate: options lettered in the prompt. words: the question alone, the options' own words
    (one token each) compared at the last position. likelihood: the question alone, the reference after it.
    grounding: the question alone.
    """
    if scoring == "likelihood":
        return model.prepare(video, item.question, answer=item.reference, **sampling)
    if scoring == "grounding":
        return model.prepare(video, item.question, **sampling)
    if scoring != "words":
        return model.prepare(video, item.question, item.options, **sampling)
    inputs = model.prepare(video, item.question, **sampling)
    tokens = tuple(_word_token(model, o) for o in item.options)
    if len(set(tokens)) < len(tokens):
        raise InputError(f"options {list(item.options)} share a token; score them by letters")
    return replace(inputs, options=(tuple(item.options),), option_tokens=(tokens,))


def read(model: Any, logits: Float[Tensor, "last d_vocab"], inputs: VideoInputs) -> Float[Tensor, " value"]:
    """What an outcome is made of, from the logits of the inputs' `last` positions.

    The log-probability of each token of the reference where the inputs hold one, else the last position's logits.
    """
    return answer_log_probs(logits, inputs, model.cfg.n_tokens) if n_last(inputs) > 1 else logits[-1]


def n_last(inputs: VideoInputs) -> int:
    """How many positions `read` needs: the prompt's last and the reference's."""
    return 1 + inputs.layout.n_tokens - inputs.layout.n_prompt


def outcome(model: Any, item: Item, values: Float[Tensor, " value"], inputs: VideoInputs) -> Outcome:
    """From what `read` gives (letters, words, likelihood)."""
    if n_last(inputs) > 1:
        return Outcome("ok", log_probs=tuple(values.tolist()))
    assert item.answer is not None
    answer = score_options(values, inputs, n_tokens=model.cfg.n_tokens)
    others = [x for i, x in enumerate(answer.logits) if i != item.answer]
    margin = answer.logits[item.answer] - max(others)
    return Outcome("ok", answer.index, answer.index == item.answer, answer.probs[item.answer], margin)


@torch.no_grad()
def generated(model: Any, item: Item, inputs: VideoInputs, interventions: Any) -> Outcome:
    """From 16 greedily generated tokens, the field's count."""
    text = model.generate(inputs, interventions, max_new_tokens=16, return_type="text")
    chosen = extract(text, len(item.options))
    if chosen is None:
        return Outcome("unparsed", text=text)
    return Outcome("ok", chosen, chosen == item.answer, text=text)


def extract(text: str, n_options: int) -> int | None:
    """The option a text begins with, as `B`, `B.`, `(B)`; None if it does not begin with one that exists."""
    match = _LEADING.match(text)
    index = LETTERS.index(match[1]) if match else n_options
    return index if index < n_options else None


def chance(item: Item) -> float:
    """Accuracy of guessing."""
    return 1 / len(item.options) if item.options else math.nan


def _word_token(model: Any, word: str) -> int:
    ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == model.tokenizer.unk_token_id:
        raise InputError(f"the option {word!r} is not one token of this model's; score by letters")
    return ids[0]
