"""Interventions as one line of text: `LV-K @ 4:8 heads 0,3 weight 0.5`, `drop @ 2 keep 0.5 by attention`.

A kind says in its `Spelling` with what word it begins and which words lead to which of its fields. A knockout begins
with its name, or with `source->destination`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from hookedvid.errors import InterventionError, nearest

Read = Callable[[str], Any]


@dataclass(frozen=True)
class Spelling:
    """How a kind is written.

    Attributes:
        begins: The words it begins with.
        example: A line that can be read.
        words: Words that lead to a field, and how its text is read.
        first: The field of what stands before all of them, if any, and how that is read.
    """

    begins: str
    example: str
    words: Mapping[str, tuple[str, Read]] = field(default_factory=dict[str, tuple[str, Read]])
    first: tuple[str, Read] | None = None


def number(text: str) -> int | float:
    """A whole number, or one with a point.

    Raises:
        ValueError: For no number.
    """
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)


def numbers(text: str) -> int | range | tuple[int, ...]:
    """One whole number, several as `0,3`, or a run as `2:5`.

    Raises:
        ValueError: For anything else.
    """
    if ":" in text:
        start, stop = text.split(":")
        return range(int(start or 0), int(stop))
    several = tuple(int(n) for n in text.split(","))
    return several[0] if len(several) == 1 else several


def choice(text: str) -> str:
    """Words of a choice, joined as its name is."""
    return text.replace(" ", "_")


def said_fields(spelling: Spelling, rest: str) -> dict[str, Any]:
    """The fields that a text behind a kind's first words gives.

    Raises:
        InterventionError: For words that lead nowhere and what cannot be read.
    """
    parts: dict[str, list[str]] = {"": []}
    at = ""
    words = re.sub(r"(^|\s)@\s*", r"\1@ ", rest).split()
    if not spelling.words:  # a path keeps its spaces
        words = [rest.strip()] * bool(words)
    for word in words:
        if word in spelling.words:
            if word in parts:
                raise InterventionError(f"{rest!r} says {word!r} twice; {how(spelling)}")
            at = word
            parts[at] = []
        else:
            parts[at].append(word)
    found: dict[str, Any] = {}
    for word, said in parts.items():
        if word == "" and not said:
            continue
        if word == "" and spelling.first is None:
            raise InterventionError(
                f"cannot read {' '.join(said)!r} in {rest!r} ({nearest(said[0], spelling.words)}); {how(spelling)}"
            )
        name, read = spelling.first if word == "" and spelling.first is not None else spelling.words[word]
        try:
            found[name] = read(" ".join(said))
        except ValueError as e:
            raise InterventionError(f"cannot read {word!r} {' '.join(said)!r} of {rest!r}; {how(spelling)}") from e
    return found


def line_of(spelling: Spelling, head: str, fields: Mapping[str, Any]) -> str | None:
    """The line that says a kind's fields, words in their order; None where no line can.

    Args:
        spelling: The kind's.
        head: What stands before all words.
        fields: What the words shall say.
    """
    texts = {name: _text(fields[name], read) for name, read in spelling.words.values() if name in fields}
    if None in texts.values() or texts.keys() != fields.keys():
        return None
    words = {name: (word, read) for word, (name, read) in spelling.words.items()}
    rest = "".join(f" {words[name][0]} {text}" for name, text in texts.items())
    try:  # a text may hold a word that leads to another field
        read = said_fields(spelling, rest)
    except InterventionError:
        return None
    same = all(read.get(name) == words[name][1](cast(str, text)) for name, text in texts.items())
    return f"{head}{rest}" if same and len(read) == len(texts) and ";" not in head + rest else None


def _text(value: Any, read: Read) -> str | None:
    """What a reader reads as a value."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, tuple):
        several = cast(Sequence[Any], value)
        if not several or not all(type(x) in (int, float) for x in several):
            return None
        if read is numbers and len(several) > 1 and list(several) == list(range(several[0], several[-1] + 1)):
            return f"{several[0]}:{several[-1] + 1}"
        return ",".join(map(repr, several))
    if isinstance(value, str):
        return value.replace("_", " ") if read is choice else value
    return repr(value) if type(value) in (int, float) else None


def how(spelling: Spelling) -> str:
    """What a line of a kind may say, for an error."""
    words = ", ".join(f"{w} {name}" for w, (name, _) in spelling.words.items())
    return f"write {spelling.example!r}" + (f"; its words are {words}" if words else "")
