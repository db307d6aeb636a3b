"""`generate`: an answer is generated, and an extractor reads the option out of its text."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hookedvid.data.convention import Convention, Extractor
from hookedvid.data.item import Item
from hookedvid.study.extractors import OURS, extractor
from hookedvid.study.results.cells import number, percent, short, star
from hookedvid.study.scorings.choice import KEPT, SHARES
from hookedvid.study.scorings.letters import Letters
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.study.scorings.scoring import FAILED, Column, N

if TYPE_CHECKING:
    from hookedvid.study.results.summary import Summary

MAX_NEW_TOKENS = 16  # of a generated answer, the field's count
# Eight characters and half of the text, said four times or more in a row.
_REPEATED = re.compile(r"(.{1,24}?)\1{3,}", re.DOTALL)
EMPTY = Column("empty", lambda s: str(s.empty or ""))
GARBLED = Column("garbled", lambda s: str(s.degenerate or ""))


class Generate(Letters):
    """Texts are read as the convention reads them, or by our own extractor."""

    name = "generate"
    tasks = ()
    printed = True
    interval = "% [95 % interval], unparsed wrong"
    width = 116
    exits_apart = False
    columns = (
        N,
        FAILED,
        Column("parsed", lambda s: number(100 * s.parsed)),
        EMPTY,
        GARBLED,
        Column("accuracy", lambda s: short(s.score) + star(s.p_holm)),
        Column("of parsed", lambda s: number(100 * s.means["of_parsed"].value)),
        Column("ratio", lambda s: number(100 * s.against["ratio"].value)),
        Column("as printed", lambda s: _printed(s), optional=True),
    )
    page_columns = (
        N,
        FAILED,
        Column("parsed", lambda s: f"{number(100 * s.parsed)} %"),
        EMPTY,
        GARBLED,
        Column("accuracy (unparsed wrong)", lambda s: percent(s.score) + star(s.p_holm)),
        Column("of parsed", lambda s: percent(s.means["of_parsed"])),
        Column("as printed", lambda s: percent(s.means["as_printed"])),
        *KEPT,
        *SHARES,
    )

    def settings(self) -> dict[str, Any]:
        """The convention's rule and length."""
        by = self.convention
        extractor, n = (by.extractor, by.max_new_tokens) if by else (OURS, MAX_NEW_TOKENS)
        return {"extractor": extractor, "max_new_tokens": n}

    def read_text(self, item: Item, text: str) -> Outcome:
        """As `read_text` of this module reads it."""
        return read_text(item, text, self.convention or extractor(OURS))

    def counted(self, item: Item, row: Mapping[str, Any]) -> float:
        """By the convention, 0 or 1."""
        value = self.convention.counted(item, row["text"], row["chosen"]) if self.convention else None
        return math.nan if value is None else value

    @property
    def subtitle(self) -> str:
        """Whose numbers are printed beside ours."""
        return f"as printed: the way of {self.convention.full_name}" if self.convention else ""


def _printed(s: "Summary") -> str:
    by = s.scoring.convention
    return as_printed(s.means["as_printed"].value, by) if by else ""


def as_printed(value: float, by: Convention) -> str:
    """A mean in the evaluator's unit, or a dash where there is none."""
    return "–" if math.isnan(value) else by.printed(value)


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
