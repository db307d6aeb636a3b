"""One question about one video, and the JSONL file that holds many of them.

Nothing here opens a video: whether the clips exist is for the datasets and for `check-data` to say.
"""

import dataclasses
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any, NamedTuple

from hookedvid.errors import DataError
from hookedvid.values.files import read_regular, write_bytes
from hookedvid.values.serial import from_dict, to_dict

MetaValue = str | int | float
LARGEST = 1 << 30  # bytes of an annotation file, which is read whole: enough for three million questions
_LETTER = re.compile(r"\s*\(?([A-Za-z])[).]?\s*")
SELDOM = ("bound", "folder_fps", "subtitles", "groups")  # fields that are written only where they say something


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question about a video, with its options where it is multiple choice.

    `video` is a path, absolute or relative to the annotation file (`video_path` joins them), or a member of a
    zip file, `archive.zip::member`; `subtitles` likewise, if there are any. `bound` is the part of the video that
    is asked about, (start, end) in seconds; `folder_fps` the frame rate where the video is a folder of images.
    `options` may be none at all, and may repeat, as they do in some published sets. `answer` is the 0-based index
    of the right option; None means that it is hidden, as in sets scored elsewhere. `reference` is a right free answer
    or caption, for scoring by likelihood; `span`, for grounding, when it happens, (start, end) in seconds from the
    start of the file, whatever its `bound`; it lasts. `family` names the group whose
    accuracy is reported on its own. `groups` are named sets of the video's tokens, as `VideoInputs.with_groups` reads
    them: {"ball": {"box": [40, 20, 90, 60], "seconds": [2.0, 4.5]}}; whether they are there, only the video tells.
    `meta` holds what else the source says; neither takes part in hashing.
    """

    id: str
    video: str
    question: str
    options: tuple[str, ...] = ()
    answer: int | None = None
    reference: str = ""
    span: tuple[float, float] | None = None
    family: str = ""
    bound: tuple[float, float] | None = None
    folder_fps: float | None = None
    subtitles: str = ""
    groups: Any = field(default_factory=dict[str, Any], hash=False)
    meta: Mapping[str, MetaValue] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        problems = [f"{name} is empty" for name in ("id", "video", "question") if not getattr(self, name).strip()]
        problems += [f"option {i} is empty" for i, o in enumerate(self.options) if not o.strip()]
        if self.answer is not None and not 0 <= self.answer < len(self.options):
            # A 1-based answer is the usual cause: say the base.
            problems.append(f"answer {self.answer} names none of the {len(self.options)} options (counted from 0)")
        if self.bound is not None and not (len(self.bound) == 2 and 0 <= self.bound[0] < self.bound[1] < math.inf):
            problems.append(f"bound {self.bound} is no (start, end) in seconds")
        if self.folder_fps is not None and not 0 < self.folder_fps < math.inf:
            problems.append(f"folder_fps {self.folder_fps} is no number of frames per second")
        if self.reference and not self.reference.strip():
            problems.append("reference is blank; leave it out where there is none")
        problems += _span_problems(self.span)
        problems += _meta_problems(self.meta)
        if problems:
            raise DataError(f"item {self.id!r}: " + "; ".join(problems))

    @property
    def right(self) -> tuple[int, ...]:
        """Every option that is right: the answer, and those that say the same text. Empty where it is hidden."""
        if self.answer is None:
            return ()
        return tuple(i for i, o in enumerate(self.options) if o == self.options[self.answer])


def read_items(path: str | os.PathLike[str]) -> list[Item]:
    """The items of a JSONL file, one object a line, in file order; blank lines are passed over.

    Raises:
        DataError: Listing every problem in the file with its 1-based line number: lines that are no JSON object,
            unknown, missing or wrongly typed fields, answers out of range, ids met before.
    """
    lines = read_lines(path)
    problems = [f"line {number}: {problem}" for number, _, found in lines for problem in found]
    if problems:
        raise DataError(f"{path} has {len(problems)} problem(s):\n  " + "\n  ".join(problems))
    if not lines:
        raise DataError(f"{path} holds no items; write one JSON object a line")
    return [item for _, item, _ in lines if item is not None]


class Line(NamedTuple):
    """A line of a JSONL file: its number from 1, its item, if it is one, and what is wrong with it."""

    number: int
    item: Item | None
    problems: tuple[str, ...] = ()


def read_lines(path: str | os.PathLike[str]) -> list[Line]:
    """Every line of a JSONL file that is not blank, wrong ones among them.

    Raises:
        DataError: Where the file cannot be read.
    """
    path = Path(path)
    try:
        text = read_regular(path, LARGEST).decode().replace("\r\n", "\n").replace("\r", "\n")
    except OSError as e:
        raise DataError(f"cannot read annotations {str(path)!r}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8 text (byte {e.start}): is it an annotation file?") from e
    lines: list[Line] = []
    first_line: dict[str, int] = {}
    # split, not splitlines: a question may hold U+2028 and its like, which JSON leaves unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = _parse(line)
        except DataError as e:
            lines.append(Line(number, None, (str(e),)))
            continue
        problems: tuple[str, ...] = ()
        if item.id in first_line:
            problems = (f"id {item.id!r} was used on line {first_line[item.id]}; ids are unique",)
        first_line.setdefault(item.id, number)
        lines.append(Line(number, item, problems))
    return lines


def write_items(items: Iterable[Item], path: str | os.PathLike[str]) -> None:
    """Write items as JSONL, so that `read_items` gives them back equal.

    The file appears whole or not at all.

    Raises:
        DataError: Where two items share an id.
    """
    write_bytes(Path(path), jsonl(items))


def jsonl(items: Iterable[Item]) -> bytes:
    """The bytes of the file that `write_items` writes."""
    items = list(items)
    repeated = [i for i, n in Counter(item.id for item in items).items() if n > 1]
    if repeated:
        raise DataError(f"ids used more than once: {', '.join(map(repr, repeated))}; ids are unique")
    text = "".join(json.dumps(_row(item), ensure_ascii=False, allow_nan=False) + "\n" for item in items)
    return text.encode()


def video_path(item: Item, annotations: str | os.PathLike[str]) -> Path:
    """Where an item's video lies, given the annotation file that the item was read from, or the dataset's folder."""
    return _beside(annotations) / item.video


def subtitles_path(item: Item, annotations: str | os.PathLike[str]) -> Path | None:
    """Where an item's subtitles lie, if it has any; as `video_path`."""
    return _beside(annotations) / item.subtitles if item.subtitles else None


def _beside(annotations: str | os.PathLike[str]) -> Path:
    return Path(annotations) if os.path.isdir(annotations) else Path(annotations).parent


def _parse(line: str) -> Item:
    try:
        data = json.loads(line, parse_constant=refuse_constant)
    except ValueError as e:
        raise DataError(f"not JSON: {e}") from e
    problems = []
    if isinstance(data, dict):
        # from_dict leaves containers unchecked; malformed ones are set aside so that it still reads the rest.
        if span_problems := _span_problems(data.get("span")):
            problems += span_problems
            del data["span"]
        if not isinstance(data.get("options", []), list):
            problems.append(f"Item.options should be a list, got {data.pop('options')!r}")
        if isinstance(answer := data.get("answer"), str) and (letter := _LETTER.fullmatch(answer)):
            index = LETTERS.index(letter[1].upper())
            problems.append(f"answer {answer!r} is a letter; write the option's number, counted from 0: {index}")
            del data["answer"]
        if meta_problems := _meta_problems(data.get("meta", {})):
            problems += meta_problems
            del data["meta"]
    try:
        item = from_dict(Item, data, DataError)
    except DataError as e:
        raise DataError("; ".join([*problems, str(e)])) from e
    if problems:
        raise DataError("; ".join(problems))
    return item


def refuse_constant(name: str) -> None:
    """Raises ValueError for NaN and Infinity, which Python's JSON would take for numbers."""
    raise ValueError(f"{name} is no JSON number")


def _row(item: Item) -> dict[str, Any]:
    row = {f.name: to_dict(getattr(item, f.name)) for f in dataclasses.fields(item) if f.name != "meta"}
    row = {name: value for name, value in row.items() if value or name not in SELDOM}
    return {**row, "meta": dict(item.meta)}


def _span_problems(span: Any) -> list[str]:
    if span is None:
        return []
    if isinstance(span, list | tuple) and len(span) == 2 and all(_is_time(t) for t in span) and span[0] < span[1]:
        return []
    return [f"span should be [start, end] in seconds from the video's first frame, start before end, got {span!r}"]


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _meta_problems(meta: Any) -> list[str]:
    if not isinstance(meta, Mapping):
        return [f"meta should be an object, got {meta!r}"]
    return [
        f"meta[{key!r}] should be a string or a number, got {value!r}"
        for key, value in meta.items()
        if not isinstance(value, str | int | float) or isinstance(value, bool)
    ]
