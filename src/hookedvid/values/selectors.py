"""The grammar of selectors, such as `video[2:5]+question`: from a text to terms.

What a term means in one sequence is for its layout to say (`hookedvid.values.layout`).
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, cast, get_args

from hookedvid.errors import SelectorError, nearest

Role = Literal["system", "video", "cls", "newline", "marker", "question", "options", "template", "generated"]

# What each selector name covers. `text` is the language after the video: what LV-K cuts off. The prefix
# before the video and the markers between frames are neither language nor video (facts of the study).
ROLES_OF: dict[str, tuple[Role, ...]] = {
    "video": ("video", "cls", "newline"),
    "steps": ("video", "cls", "newline"),
    "patches": ("video",),
    "cls": ("cls",),
    "newlines": ("newline",),
    "system": ("system",),
    "markers": ("marker",),
    "question": ("question",),
    "options": ("options",),
    "option": ("options",),
    "template": ("template",),
    "generated": ("generated",),
    "text": ("question", "options", "template", "generated"),
    "all": get_args(Role),
}
NAMES = (*ROLES_OF, "last")
BY_FRAME = ("video", "steps", "patches", "cls", "newlines", "markers")
BY_CELL = ("video", "steps", "patches")
SINKS = "sinks"  # the group that `find_sinks` makes

_TERM = re.compile(r"(?P<name>[a-z_][a-z0-9_]*)(\[(?P<first>[^\[\]]+)\](\[(?P<second>[^\[\]]+)\])?)?")
_SPAN = re.compile(r"(?P<start>-?\d+)?:(?P<stop>-?\d+)?(:(?P<step>-?\d+))?")
_SECONDS = re.compile(r"\d+(\.\d+)?s")
_APART = re.compile(r"[\w.]+ +(?!s\b)[\w.]+")  # what a space holds apart, but a number's unit


class Seconds(NamedTuple):
    """Frames by when they were sampled: from `start` on and before `stop`; or the one nearest to `moment`."""

    start: float | None = None
    stop: float | None = None
    moment: float | None = None


Index = int | slice
Cells = tuple[Index, Index]


class Term(NamedTuple):
    """One part of a selector.

    Attributes:
        name: Of a role, or of a group.
        which: The frames, steps or options that it is narrowed to; None for all.
        cells: Rows and columns of the frames' grid of tokens; None for all, and what is in no cell.
    """

    name: str
    which: Index | Seconds | None = None
    cells: Cells | None = None


def as_selector(selector: object) -> str:
    """A selector that can be read: itself, or several in a list joined.

    Raises:
        SelectorError: For anything else.
    """
    text = _joined(selector)
    parse_selector(text)
    return text


def _joined(selector: object) -> str:
    kind = type(selector).__name__
    names = cast(list[object], selector) if isinstance(selector, list | tuple) else []
    if names and all(isinstance(s, str) for s in names):
        return "+".join(map(str, names))
    if not isinstance(selector, str):
        raise SelectorError(
            f"{kind} is no selector; write names joined by '+', such as 'video[2:5]+question' "
            "(positions by number: give them a name, inputs.with_group('mine', positions=…))"
        )
    return selector


def parse_selector(selector: str) -> tuple[Term, ...]:
    """The terms of a selector, joined by `+`. A name that is no role's may be a group's: its layout knows.

    Raises:
        SelectorError: On a form that does not exist.
    """
    terms: list[Term] = []
    text = _joined(selector)
    if apart := _APART.search(text):
        raise SelectorError(
            f"{apart[0]!r} in selector {text!r} would be read as one word or number; write '+' between names, ':' or "
            "',' between numbers"
        )
    for part in text.replace(" ", "").split("+"):
        match = _TERM.fullmatch(part)
        index = match and match["first"] and _index(match["first"])
        cells = match and match["second"] and _cells(match["second"])
        if not match or (match["first"] and index is None) or (match["second"] and cells is None):
            raise SelectorError(
                f"cannot read {part!r} in selector {selector!r}; write a name, name[3] or name[2:5], "
                "joined by '+', e.g. 'video[2:5]+question'; video[::2] is every second frame, video[2.0s:4.5s] those "
                "of these seconds, video[3][0:2, 4] cells of a frame, by row and column"
            )
        _check(match["name"], index, cells, selector)
        terms.append(Term(match["name"], None if index == "" else index, cells or None))
    return tuple(terms)


def _check(name: str, index: object, cells: object, selector: str) -> None:
    if name not in NAMES:
        if index is not None:
            raise SelectorError(f"{name!r} takes no index in {selector!r}: it is the name of a group, if of anything")
        return
    if index is not None and name not in (*BY_FRAME, "option"):
        raise SelectorError(f"{name!r} takes no index in {selector!r}; frames: video[3], options: option[1]")
    if index is None and name == "option":
        raise SelectorError(f"'option' needs a number in {selector!r}: option[1]; all of them are 'options'")
    if isinstance(index, Seconds) and name in ("option", "steps"):
        raise SelectorError(f"{name!r} takes no seconds in {selector!r}; frames do: video[2.0s:4.5s]")
    if cells is not None and name not in BY_CELL:
        raise SelectorError(f"{name!r} has no cells in {selector!r}; {', '.join(BY_CELL)} have: video[3][0:2, 4]")


def _index(text: str) -> Index | Seconds | None:
    """What stands in the first brackets; None for what cannot be read."""
    if (number := _number_or_span(text)) is not None:
        return number
    bounds = text.split(":")
    if not all(_SECONDS.fullmatch(b) or (not b and len(bounds) == 2) for b in bounds) or len(bounds) > 2:
        return None
    values = [float(b[:-1]) if b else None for b in bounds]
    return Seconds(moment=values[0]) if len(values) == 1 else Seconds(*values)


def _number_or_span(text: str) -> Index | None:
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if not (match := _SPAN.fullmatch(text)) or (match["step"] and int(match["step"]) < 1):
        return None
    return slice(*(int(match[k]) if match[k] else None for k in ("start", "stop", "step")))


def _cells(text: str) -> Cells | None:
    both = [_number_or_span(part) for part in text.split(",")]
    rows, columns = both if len(both) == 2 else (None, None)
    return None if rows is None or columns is None else (rows, columns)


def numbers_of(index: Index, n: int, name: str, what: str) -> range:
    """The numbers, of 0 to n - 1, that an index means; negative ones count from the end.

    Args:
        name: Of what is indexed.
        what: What is counted.

    Raises:
        SelectorError: For bounds that are not there, and for none at all.
    """
    if isinstance(index, slice):
        text = ":".join("" if b is None else str(b) for b in (index.start, index.stop))
        text += "" if index.step is None else f":{index.step}"
        last = None if index.stop is None else index.stop - (index.stop > 0)
        bounds, wanted = [b for b in (index.start, last) if b is not None], range(n)[index]
    else:
        text, bounds = str(index), [index]
        wanted = range(index % n, index % n + 1) if n else range(0)
    if any(not -n <= b < n for b in bounds) or not wanted:
        raise SelectorError(
            f"{name}[{text}] is out of range: this sequence has {n} {what}" + (f", numbered 0 to {n - 1}" if n else "")
        )
    return wanted


def frames_at(when: Seconds, times: Sequence[float], name: str) -> list[int]:
    """The frames that seconds mean, by when each frame was sampled.

    A single moment means the frame nearest to it, the earlier of two that are as near.

    Raises:
        SelectorError: Where no times are known, and where no frame is there.
    """
    if not times:
        raise SelectorError(
            f"{name}[…s]: nothing says when these frames were taken; prepare a video file, or pass folder_fps=… with "
            "frames; or count frames, video[2:5]"
        )
    if when.moment is not None:
        widest = max((b - a for a, b in pairwise(times)), default=float("inf"))
        best = min(range(len(times)), key=lambda i: (abs(times[i] - cast(float, when.moment)), i))
        found = [best] if abs(times[best] - when.moment) <= widest else []
        text = f"{when.moment:g}s"
    else:
        start, stop = when.start or 0.0, float("inf") if when.stop is None else when.stop
        found = [i for i, t in enumerate(times) if start <= t < stop]
        text = f"{start:g}s:" + ("" if when.stop is None else f"{when.stop:g}s")
    if not found:
        raise SelectorError(
            f"{name}[{text}] holds no sampled frame: the {len(times)} frames are from {times[0]:g} s to {times[-1]:g} s"
        )
    return found


def unknown_name(name: str, selector: str, groups: Sequence[str]) -> SelectorError:
    """The error for a name that is neither a role's nor a group's of this sequence."""
    if name == SINKS:
        return SelectorError(
            f"{selector!r}: no sinks were looked for in this input; inputs = model.find_sinks(inputs, layer=…) gives "
            "it the group"
        )
    have = f"its groups are {', '.join(groups)}" if groups else "it has no groups: inputs.with_group(name, …) adds one"
    return SelectorError(f"no selector {name!r} in {selector!r} ({nearest(name, [*NAMES, *groups])}; {have})")
