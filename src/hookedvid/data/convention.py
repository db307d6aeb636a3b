"""What a convention is: how one of the field's evaluators asks and scores a dataset.

A convention is a prompt, a sampler, a length of answer, an extractor, and what becomes of answers it finds nothing
in. Which there are, the datasets' own files say.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_uppercase as LETTERS
from typing import Literal

from hookedvid.data.item import Item
from hookedvid.families.prompts import QuestionForm
from hookedvid.families.registry import wrapper

Options = Sequence[str]


@dataclass(frozen=True)
class Extractor:
    """A rule that reads an option out of generated text, by its name.

    Attributes:
        name: As records hold it.
        read: (text, options) -> 0-based option, None where the rule finds none.
        check: How an evaluator that never extracts holds the text against the right option: (text, 0-based right
            option) -> whether it passes.
    """

    name: str
    read: Callable[[str, Options], int | None]
    check: Callable[[str, int], bool] | None = None


def index_of(letter: str, n: int) -> int | None:
    """The 0-based option of a capital letter, None where there are fewer options."""
    at = LETTERS.find(letter) if letter else -1
    return at if 0 <= at < n else None


# What an evaluator makes of an answer its extractor finds nothing in: a wrong one; none at all, kept out of the mean;
# that only where nothing was said; a guess. `check`: it extracts nothing, but holds the text against the right option.
Unparsed = Literal["wrong", "dropped", "dropped if empty", "guess", "check"]


@dataclass(frozen=True, kw_only=True)
class Convention:
    """One evaluator's way with one dataset.

    Attributes:
        name: Without the dataset.
        dataset: The name of the dataset that it asks.
        form: The prompt's form.
        rule: The extractor.
        unparsed: What becomes of an answer in which the rule finds nothing.
        options: How many it can letter at most.
        gold: Of several options that say the right text, the one that the annotation or the first match names, or
            the last.
        evaluator: Whose wrappers of models it runs, as families state them (`wrappers`); empty where it has none.
        forms: The prompt's form by the wrapper's name, where it is another.
        sampler: None for the wrapper's or else the model's own.
        n_frames: None for the model's own.
        max_new_tokens: Of an answer.
        unit: What the evaluator prints.
        echo: What it puts in front of an answer's first line, the rest of which it drops.
    """

    name: str
    dataset: str
    form: QuestionForm
    rule: Extractor
    unparsed: Unparsed
    options: int
    gold: Literal["answer", "last"] = "answer"
    evaluator: str = ""
    forms: Mapping[str, QuestionForm] = field(default_factory=dict)
    sampler: str | None = None
    n_frames: int | None = None
    max_new_tokens: int = 16
    unit: Literal["percent", "fraction"] = "percent"
    echo: str = ""

    def subtitle_frames_for(self, family: str) -> int:
        """How many frames, from first to last, choose the subtitles: those shown during one of them."""
        return wrapper(family, self.evaluator).subtitle_frames

    @property
    def full_name(self) -> str:
        """Dataset and name, as records hold it."""
        return f"{self.dataset}/{self.name}"

    @property
    def extractor(self) -> str:
        """The name of its rule, as records hold it."""
        return self.rule.name

    def form_for(self, family: str) -> QuestionForm:
        """The prompt's form for a family of models."""
        return self.forms.get(wrapper(family, self.evaluator).name, self.form)

    def sampler_for(self, family: str) -> str | None:
        """The sampler for a family of models; None: the model's own."""
        return wrapper(family, self.evaluator).sampler or self.sampler

    def heard(self, text: str) -> str:
        """A generated text as the evaluator takes it up."""
        return self.echo + text.strip().split("\n")[0] if self.echo else text

    def gold_of(self, item: Item) -> int:
        """The option that the evaluator takes for the right one. The item's answer must be known."""
        assert item.answer is not None
        return item.right[-1] if self.gold == "last" else item.answer

    def counted(self, item: Item, text: str, chosen: int | None) -> float | None:
        """What the evaluator counts a row as: 0 or 1, None where it leaves it out of the mean.

        `chosen` is what the extractor found. The item's answer must be known.
        """
        gold = self.gold_of(item)
        if self.unparsed == "check":
            check = self.rule.check
            assert check is not None
            return float(check(self.heard(text), gold))
        if chosen is None and (self.unparsed == "dropped" or (self.unparsed == "dropped if empty" and not text)):
            return None
        return float(self.submitted(item, chosen) == gold)

    def submitted(self, item: Item, chosen: int | None) -> int | None:
        """The option that stands for a row: what was found, or the evaluator's guess."""
        return guess(item) if chosen is None and self.unparsed == "guess" else chosen

    def printed(self, value: float) -> str:
        """A mean in the evaluator's unit."""
        return f"{100 * value:.2f}" if self.unit == "percent" else f"{value:.3f}"


def guess(item: Item) -> int:
    """An option drawn for an item, the same on every machine and under every condition."""
    return random.Random(item.id).randrange(len(item.options))


LMMS_EVAL = "lmms-eval"
# What it says in the prompts of several datasets.
LINES = "\n{lettered}"
DIRECTLY = "\nAnswer with the option's letter from the given choices directly."


def dated(base: Convention, *names: str) -> list[Convention]:
    """A convention under each of the names that it had at several dates."""
    return [replace(base, name=name) for name in names]
