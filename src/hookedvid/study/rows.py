"""One row: what fixes it, the key made of just that, and its line of JSON, sealed by a checksum.

What is not exactly a line as it is written here is no row.
"""

import hashlib
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, cast

from hookedvid.study.scorings.outcome import Outcome

SCHEMA = 2  # of the key: raised whenever what enters it changes
_SEAL = ', "checksum": "{}"}}'
_WRITER, _SORTING = (json.JSONEncoder(ensure_ascii=False, sort_keys=order) for order in (False, True))
_READER = json.JSONDecoder()
_SEAL_LENGTH = len(_SEAL.format("0" * 16))

Row = dict[str, Any]  # fields by name


@dataclass(frozen=True)
class Task:
    """One item under one condition, before it runs: what its row will say, and the key that says it all.

    Attributes:
        key: Hash of everything that fixes the outcome, see `key_of`; names of protocols and families do not.
        settings: Model and video hashes, sampling, dtype, kernel, scoring, convention, versions; see
            `study.settings_of`.
    """

    key: str
    item: str
    video: str
    family: str
    condition: str
    protocol: str
    knockout: str
    layer: int | None
    interventions: list[dict[str, Any]]
    settings: Mapping[str, Any]


def row_of(task: Task, outcome: Outcome) -> Row:
    """The row of a finished task."""
    shared = {"interventions": task.interventions, "settings": dict(task.settings)}
    told = {name: value for name, value in asdict(outcome).items() if name not in _LATER or value is not None}
    return {**{name: getattr(task, name) for name in _OF_TASK}, **told, **shared}


def line_of(row: Mapping[str, Any]) -> bytes:
    """A row as its line, the line's end apart: what it shares with other rows stands last, then the checksum."""
    own = json_bytes({name: row[name] for name in _HINTS if name in row})[:-1]
    shared = (f', "{name}": '.encode() + canonical(row[name]) for name in SHARED)
    return sealed(own + b"".join(shared) + b"}")


class Lines:
    """Reads rows from lines; equal settings and equal interventions are parsed once and are one object."""

    def __init__(self) -> None:
        self._known: dict[bytes, Any] = {}
        self._kinds: set[tuple[Any, ...]] = set()  # of values, that were found to be a row's

    def row(self, line: bytes) -> Row | None:
        """The row of a line without its end; None for any that is damaged, or whose key is not of what it says."""
        if (body := unsealed(line)) is None:
            return None
        # No string holds these unescaped quotes, so each of them stands once.
        rest, _, settings = body[:-1].rpartition(b', "settings": ')
        own, _, interventions = rest.rpartition(b', "interventions": ')
        try:
            row, shared = _parsed(own + b"}"), (self._value(interventions), self._value(settings))
        except (ValueError, RecursionError):
            return None
        if not self._is_row(row) or not isinstance(shared[0], list) or not isinstance(shared[1], dict):
            return None
        if row["key"] != key_of(row["item"], interventions, settings):
            return None
        return row | dict(zip(SHARED, shared, strict=True))

    def _value(self, text: bytes) -> Any:
        if text not in self._known:
            self._known[text] = _parsed(text)
        return self._known[text]

    def _is_row(self, value: Any) -> bool:
        """Whether it has every field with a value of its type; of fields that came later, it may lack some."""
        row = cast(Row, value) if isinstance(value, dict) else {}
        if not _FITS.keys() - _LATER <= row.keys() <= _FITS.keys():
            return False
        kinds = (*row, *map(type, row.values()), *(row[name] for name in _NAMED if isinstance(row[name], str)))
        if kinds not in self._kinds:  # few kinds of rows stand for all
            if not all(fits(row[name]) for name, fits in _FITS.items() if name in row):
                return False
            self._kinds.add(kinds)
        return True


def named(row: Row, condition: str, protocol: str, knockout: str, layer: int | None) -> Row:
    """A stored row under one of the names of its condition; the same object where that is the name it has."""
    names = {"condition": condition, "protocol": protocol, "knockout": knockout, "layer": layer}
    return row if names.items() <= row.items() else row | names


def named_by(row: Row, task: Task) -> Row:
    """A stored row under the names of one of the tasks whose key it has."""
    return named(row, task.condition, task.protocol, task.knockout, task.layer)


def sealed(data: bytes) -> bytes:
    """A JSON object with the checksum of itself for its last field."""
    return data[:-1] + _SEAL.format(digest(data)).encode()


def unsealed(data: bytes) -> bytes | None:
    """The JSON object that was sealed; None where its bytes are not what they were."""
    body = data[:-_SEAL_LENGTH] + b"}"
    return body if sealed(body) == data else None


def digest(data: bytes) -> str:
    """The first 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def key_of(item: str, interventions: bytes, settings: bytes) -> str:
    """The key of an item's id under interventions and settings, both as `canonical` text."""
    fixed = (b'{"interventions": ', interventions, b', "item": ', _text_of(item))
    return digest(b"".join((*fixed, f', "schema": {SCHEMA}, "settings": '.encode(), settings, b"}")))


@lru_cache(4096)  # a question is met under every condition
def _text_of(item: str) -> bytes:
    return json_bytes(item)


def json_bytes(value: Any) -> bytes:
    """A value's JSON text, as it stands in files."""
    # Half of a surrogate pair is no Unicode, and yet JSON's escapes can write it into a question.
    return _WRITER.encode(value).encode("utf-8", "surrogatepass")


def canonical(value: Any) -> bytes:
    """The JSON text that enters a key, and stands in a row."""
    plain = dict(cast(Mapping[str, Any], value)) if isinstance(value, Mapping) else value
    return _SORTING.encode(plain).encode("utf-8", "surrogatepass")


def _parsed(text: bytes) -> Any:
    return _READER.decode(text.decode("utf-8", "surrogatepass"))


def _fits(hint: Any) -> Callable[[Any], bool]:
    """Whether a JSON value is of a type: what `values.from_dict` asks of fields, for many rows."""
    if typing.get_origin(hint) is typing.Literal:
        return lambda value: value in typing.get_args(hint)
    arms = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain = tuple(list if typing.get_origin(arm) is tuple else arm for arm in arms)
    known = {*plain, int} if float in plain else {*plain}
    return lambda value: type(value) in known


SHARED = ("interventions", "settings")
_OF_TASK = tuple(name for name in typing.get_type_hints(Task) if name not in SHARED)
_HINTS = {n: h for n, h in (typing.get_type_hints(Task) | typing.get_type_hints(Outcome)).items() if n not in SHARED}
_LATER = {f.name for f in fields(Outcome) if "later" in f.metadata}  # left out where they are None
_FITS = {name: _fits(hint) for name, hint in _HINTS.items()}
_NAMED = tuple(name for name, hint in _HINTS.items() if typing.get_origin(hint) is typing.Literal)
