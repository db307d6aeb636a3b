"""`generate`: an answer is generated, and an extractor reads the option out of its text."""

import re

from hookedvid.data.convention import Convention, Extractor
from hookedvid.data.item import Item
from hookedvid.study.extractors import OURS, extractor
from hookedvid.study.scorings.letters import Letters
from hookedvid.study.scorings.outcome import Outcome

MAX_NEW_TOKENS = 16  # of a generated answer, the field's count
# Eight characters and half of the text, said four times or more in a row.
_REPEATED = re.compile(r"(.{1,24}?)\1{3,}", re.DOTALL)


class Generate(Letters):
    """Texts are read as the convention reads them, or by our own extractor."""

    name = "generate"
    tasks = ()
    printed = True

    @property
    def max_new_tokens(self) -> int:
        """The convention's count."""
        return self.convention.max_new_tokens if self.convention else MAX_NEW_TOKENS

    @property
    def extractor(self) -> str:
        """The convention's rule."""
        return self.convention.extractor if self.convention else OURS

    def read_text(self, item: Item, text: str) -> Outcome:
        """As `read_text` of this module reads it."""
        return read_text(item, text, self.convention or extractor(OURS))


def read_text(item: Item, text: str, by: Convention | Extractor) -> Outcome:
    """The outcome of a generated text; `unparsed` where it names no option."""
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
