"""Turning a run into an outcome: which option was chosen, how probable the right one was, or nothing parsed."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.data.item import Item
from hookedvid.errors import HookedVidError, InputError, NonFiniteError
from hookedvid.families.prompts import QuestionForm
from hookedvid.model import prepare as preparing
from hookedvid.model.answers import answer_log_probs, score_options
from hookedvid.study.conventions import Convention
from hookedvid.study.extractors import OURS, Extractor, extractor
from hookedvid.values.inputs import VideoInputs, check_vocabulary

Scoring = Literal["letters", "words", "generate", "likelihood", "grounding"]
SCORINGS: tuple[Scoring, ...] = ("letters", "words", "generate", "likelihood", "grounding")
LETTERED: tuple[Scoring, ...] = ("letters", "generate")  # those that put the options into the prompt
GENERATED: tuple[Scoring, ...] = ("generate", "grounding")  # those that read a text, not logits
MAX_NEW_TOKENS = 16  # of a generated answer, the field's count
# Eight characters and half of the text, said four times or more in a row.
_REPEATED = re.compile(r"(.{1,24}?)\1{3,}", re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """What one item under one condition came to.

    chosen: 0-based option, None if generated text named none (`unparsed`). correct: None where nothing was chosen, or
    the item's answer is not known. Options of equal text are equally right (`Item.right`). prob: probability of the
    right ones over all tokens; margin: the best right one's logit minus the best other's; both None for generated
    text, margin also where every option is right. text: what was generated, as it was. flag: what is wrong
    with it besides: nothing said, garbage said over and over (which may parse), or logits that are no numbers.
    attention_share, decoder_share: of the intact model's operations, 0 to 1 (`hookedvid.model.flops`); None where
    nothing ran. reason: why it failed; fault: of what kind that is, in one word (docs/videos.md lists them).
    log_probs: of each token of the reference, its end included, natural logarithms. span: the seconds that
    generated text named, as said.
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

    @classmethod
    def failed(cls, error: HookedVidError, fault: str = "input") -> "Outcome":
        """What an item comes to that could not be asked or scored."""
        flag = "non-finite" if isinstance(error, NonFiniteError) else ""
        return cls("failed", reason=str(error), flag=flag, fault=fault)


def prepare(
    model: Any,
    item: Item,
    video: Any,
    scoring: Scoring,
    form: QuestionForm | None = None,
    subtitles: str | None = None,
    **sampling: Any,
) -> VideoInputs:
    """An item's inputs as a scoring reads them.

    letters, generate: options lettered in the prompt, by the model's template or `form`, whose `subtitles` are given.
    words: the question alone, the options' own words (one token each) compared at the last position. likelihood: the
    question alone, the reference after it. grounding: the question alone.
    """
    return _prepared(partial(model.prepare, video, **sampling), model, item, scoring, form, subtitles)


def expected(
    model: Any,
    item: Item,
    scoring: Scoring,
    form: QuestionForm | None = None,
    subtitles: str | None = None,
    **sampling: Any,
) -> VideoInputs:
    """What `prepare` gives for a video that nobody opened, its pixels apart; sampling as in `preparing.expected`."""
    return _prepared(partial(preparing.expected, model, **sampling), model, item, scoring, form, subtitles)


def _prepared(
    ask: Callable[..., VideoInputs], model: Any, item: Item, scoring: Scoring, form: QuestionForm | None,
    subtitles: str | None,
) -> VideoInputs:  # fmt: skip
    if scoring in LETTERED:
        options = item.options
        if form is not None:
            form, options = _asked(form, item)
            form = replace(form, subtitles=subtitles)
        return ask(item.question, options, form=form)
    inputs = ask(item.question, answer=item.reference if scoring == "likelihood" else "")
    if scoring != "words":
        return inputs
    tokens = tuple(_word_token(model, o) for o in item.options)
    check_vocabulary(model.cfg, tokens)
    if len(set(tokens)) < len(tokens):
        raise InputError(f"options {list(item.options)} share a token; score them by letters")
    return replace(inputs, options=(tuple(item.options),), option_tokens=(tokens,))


def _asked(form: QuestionForm, item: Item) -> tuple[QuestionForm, tuple[str, ...]]:
    """Form and options; an item's meta may keep the options' lines as its source has them, to be printed so."""
    lines = str(item.meta.get("options", "")).split("\n")
    if "{lettered}" not in form.option or len(lines) != len(item.options):
        return form, item.options
    return replace(form, option=form.option.replace("{lettered}", "{option}")), tuple(lines)


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
    try:
        answer = score_options(values, inputs, n_tokens=model.cfg.n_tokens)
    except InputError as e:
        return Outcome.failed(e)
    if item.answer is None:
        return Outcome("ok", answer.index)
    others = [x for i, x in enumerate(answer.logits) if i not in item.right]
    margin = max(answer.logits[i] for i in item.right) - max(others) if others else None
    prob = sum(answer.probs[i] for i in item.right)
    return Outcome("ok", answer.index, answer.index in item.right, prob, margin)


@torch.no_grad()
def generated(
    model: Any, item: Item, inputs: VideoInputs, interventions: Any, convention: Convention | None = None
) -> Outcome:
    """From greedily generated tokens, read as a convention reads them, or by our own extractor."""
    longest = convention.max_new_tokens if convention else MAX_NEW_TOKENS
    try:
        text = model.generate(inputs, interventions, max_new_tokens=longest, return_type="text")
    except NonFiniteError as e:
        return Outcome.failed(e)
    return read_text(item, text, convention or extractor(OURS))


def read_text(item: Item, text: str, by: Convention | Extractor) -> Outcome:
    """The outcome of a generated text."""
    heard, rule = (by.heard(text), by.rule) if isinstance(by, Convention) else (text, by)
    chosen = rule.read(heard, item.options)
    flag = "empty" if not text.strip() else "degenerate" if is_degenerate(text) else ""
    if chosen is None:
        return Outcome("unparsed", text=text, flag=flag)
    correct = None if item.answer is None else chosen in item.right
    return Outcome("ok", chosen, correct, text=text, flag=flag)


def is_degenerate(text: str) -> bool:
    """Whether most of a text is one thing said over and over, `!!!!!!!!` or `the the the the the`."""
    least = max(8, len(text) / 2)
    return any(len(m[0]) >= least for m in _REPEATED.finditer(text))


def chance(item: Item) -> float:
    """Accuracy of guessing; options of the right one's text are right, too."""
    return max(1, len(item.right)) / len(item.options) if item.options else math.nan


def _word_token(model: Any, word: str) -> int:
    ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == model.tokenizer.unk_token_id:
        raise InputError(f"the option {word!r} is not one token of this model's; score by letters")
    return ids[0]
