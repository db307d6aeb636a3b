"""A user's text as it is printed, drawn and written: as the text it is, whatever it holds."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

# What steers a terminal, turns the direction of writing, ends a line unseen, or is no character (half of a pair).
_ALWAYS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNPRINTABLE = re.compile(f"[{_ALWAYS}]")
_NOT_IN_A_LINE = re.compile(f"[\t\n{_ALWAYS}]")
_HALVES = re.compile("[\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@")  # what a spreadsheet takes a cell for that begins so


def printable(text: str) -> str:
    r"""The text with escapes (`\x1b`, `\u202e`, `\ud800`) for what must not reach a terminal; lines stay lines."""
    return _UNPRINTABLE.sub(_escape, text)


def one_line(text: str) -> str:
    r"""The text as one line: as `printable`, and `\n`, `\t` for line ends and tabs."""
    return _NOT_IN_A_LINE.sub(_escape, text)


def utf8(text: str) -> str:
    r"""The text with escapes (`\ud800`) for halves of surrogate pairs, which UTF-8 cannot write."""
    return text if text.isascii() else _HALVES.sub(_escape, text)


def csv_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """A CSV table, its header the first line's keys; numbers are numbers, and any text is shown as a text.

    A text that begins with `=`, `+`, `-` or `@` gets an apostrophe in front: a spreadsheet would compute it.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(lines[0]) if lines else [])
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in line.items()} for line in lines)
    return file.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
