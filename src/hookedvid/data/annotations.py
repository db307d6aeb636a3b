"""Annotation files of published datasets, checked against their schema; every problem is said at once.

What stands in them is data: names become paths only after `archive.unsafe` has passed them.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import TYPE_CHECKING, Any

from hookedvid.data.item import LARGEST, Item, refuse_constant
from hookedvid.errors import DataError
from hookedvid.values.files import open_regular, read_regular
from hookedvid.video.archive import unsafe

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN = 50  # problems that are listed
MOST_ROWS = 10_000_000  # of a table: equal ones take no bytes in Parquet, and all of them in memory


class Problems:
    """What is wrong with a dataset's annotations."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, where: str, what: str) -> None:
        """Note a problem and where it is."""
        self.lines.append(f"{where}: {what}")

    def check(self, source: object) -> None:
        """Raises DataError listing the problems, if there are any."""
        if self.lines:
            more = len(self.lines) - SHOWN
            shown = self.lines[:SHOWN] + ([f"… and {more} more"] if more > 0 else [])
            raise DataError(f"{source} has {len(self.lines)} problem(s):\n  " + "\n  ".join(shown))


@dataclass(frozen=True)
class Row:
    """One annotated question, and where it stands. What is wrong with a value is noted and an empty one given."""

    values: Mapping[str, Any]
    where: str
    problems: Problems

    def wrong(self, what: str) -> None:
        """Note what is wrong with the row."""
        self.problems.add(self.where, what)

    def text(self, key: str) -> str:
        """A text that is not blank."""
        value = self.values.get(key)
        if isinstance(value, str) and value.strip():
            return value
        self.wrong(f"{key} should be a text, got {_shown(value)}")
        return ""

    def name(self, key: str) -> str:
        """A text that can name a file below a folder."""
        value = self.text(key)
        if value and (why := unsafe(value)):
            self.wrong(f"{key} {_shown(value)} {why}")
            return ""
        return value

    def label(self, key: str, known: Sequence[str] = ()) -> str:
        """A short text that can be printed, one of `known` if these are given."""
        value = self.text(key)
        if value and (value not in known if known else not value.isprintable() or len(value) > 100):
            self.wrong(f"{key} should be {_listed(known) or 'a short text'}, got {_shown(value)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of at least two texts, no more than there are letters, none of them blank."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
            self.wrong(f"{key} should be a list of texts, got {_shown(value)}")
        elif not 2 <= len(value) <= len(LETTERS):
            self.wrong(f"{key} should be 2 to {len(LETTERS)} texts, got {len(value)}")
        else:
            return tuple(value)
        return ()

    def letter(self, key: str, n: int) -> int:
        """The 0-based option that a single letter names, of the first `n`; blanks around it are no matter."""
        text = self.text(key).strip()
        if len(text) == 1 and text in LETTERS[:n]:
            return LETTERS.index(text)
        self.wrong(f"{key} should be one of {LETTERS[:n]}, got {_shown(self.values.get(key))}")
        return 0

    def seconds(self, key: str) -> float:
        """A moment of the video."""
        value = self.values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
            return float(value)
        self.wrong(f"{key} should be a number of seconds, got {_shown(value)}")
        return 0.0

    def item(self, **fields: Any) -> Item | None:
        """The item with these fields; None where anything is wrong with the row."""
        if any(p.startswith(f"{self.where}: ") for p in self.problems.lines):
            return None
        try:
            return Item(**fields)
        except DataError as e:
            self.wrong(str(e))
            return None


def without_letters(row: Row, options: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Options that say their own letters, `A. Apples.`, as texts, and what `meta` must keep of them.

    Nothing where `X. ` before each text gives the options back; otherwise the lines as they stood. Options of
    which none says its letter are left as they are.
    """
    matches = [re.match(r"\s*\(?([A-Z])\s*[.):]\s*", o) for o in options]
    if not any(matches) and options:
        return tuple(options), {"options": "\n".join(options)}
    for letter, option, match in zip(LETTERS, options, matches, strict=False):
        if match is None or match[1] != letter:
            row.wrong(f"option {letter} should begin with '{letter}. ', got {_shown(option)}")
            return (), {}
    exact = all(o.startswith(f"{letter}. ") for letter, o in zip(LETTERS, options, strict=False))
    texts = tuple(o[3:] if exact else o[m.end() :] for o, m in zip(options, matches, strict=True) if m)
    return texts, {} if exact else {"options": "\n".join(options)}


def read_table(path: Path, columns: Mapping[str, str], problems: Problems) -> Iterator[Row]:
    """The rows of a Parquet file that has these columns: name to `text`, `texts` or `scalar`; others are read too.

    What is wrong with the columns is noted, and no row given.

    Raises:
        DataError: Where it is no Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = b""
    try:
        with open_regular(path) as f:
            start = f.read(24)
            about = (parquet := pq.ParquetFile(f)).metadata
            size = sum(about.row_group(n).total_byte_size for n in range(about.num_row_groups))
            if size > LARGEST or about.num_rows > MOST_ROWS:
                raise DataError(
                    f"{path} would be {about.num_rows:,} rows of {size:,} bytes, more than the {MOST_ROWS:,} and "
                    f"{LARGEST:,} that are read; split it"
                )
            table = parquet.read()
    except (OSError, pa.ArrowException) as e:
        raise DataError(f"{path} is no Parquet file (it begins with {start!r}: {e}); download it again") from e
    wrong = [
        f"column {name!r} should be of type {kind}, not {table.schema.field(name).type}"
        if name in table.schema.names
        else f"there is no column {name!r}; there are: {', '.join(map(repr, table.schema.names[:20]))}"
        for name, kind in columns.items()
        if name not in table.schema.names or not _is(table.schema.field(name).type, kind)
    ]
    for what in wrong:
        problems.add(path.name, what)
    if not wrong:
        for number, values in enumerate(table.to_pylist()):
            yield Row(values, f"{path.name}, row {number}", problems)


def _is(kind: "pa.DataType", wanted: str) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if wanted == "texts":
        is_list = types.is_list(kind) or types.is_large_list(kind)
        return is_list and _is(kind.value_type, "text")
    text = types.is_string(kind) or types.is_large_string(kind)
    return text or (wanted == "scalar" and (types.is_null(kind) or types.is_integer(kind)))


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DataError: Where it is none.
    """
    try:
        data = read_regular(path, LARGEST)
    except OSError as e:
        raise DataError(f"cannot read annotations {str(path)!r}: {e.strerror}") from e
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=refuse_constant)
    except RecursionError as e:
        raise DataError(f"{path} is nested too deeply for an annotation file; download it again") from e
    except ValueError as e:
        raise DataError(f"{path} is no JSON file ({e}); download it again") from e


def rows(values: Any, where: str, problems: Problems) -> Iterator[Row]:
    """The rows of a list of JSON objects; whatever else stands there is noted."""
    if not isinstance(values, list):
        problems.add(where, f"should be a list of questions, got {_shown(values)}")
        return
    for number, one in enumerate(values):
        if isinstance(one, dict):
            yield Row(one, f"{where}, row {number}", problems)
        else:
            problems.add(f"{where}, row {number}", f"should be an object, got {_shown(one)}")


def _listed(known: Sequence[str]) -> str:
    return "one of " + ", ".join(known) if known else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
