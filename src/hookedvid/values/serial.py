"""JSON round trip for frozen dataclasses: unknown, missing and wrongly typed fields are refused by name."""

# What users give is looked at, whatever its type says.
# pyright: reportUnnecessaryIsInstance=false
import dataclasses
import functools
import operator
import sys
import types
import typing
from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeVar, cast

from hookedvid.errors import HookedVidError, InputError, nearest

T = TypeVar("T")


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: halves of surrogate pairs, which JSON lets through, are no characters."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def as_whole(value: Any) -> int | None:
    """A whole number, of numpy or torch as well, as an int; None for anything else, True and 2.0 among it."""
    truth = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    try:
        return None if truth else operator.index(value)
    except TypeError:
        return None


def counted(name: str, value: Any) -> int:
    """A whole number of 1 or more, as an int.

    Raises:
        InputError: Naming what was to be counted.
    """
    number = as_whole(value)
    if number is None or number < 1:
        raise InputError(f"{name} is {value!r}; ask for at least one, by a whole number")
    return number


def is_number(value: Any) -> bool:
    """Whether it is a real number, of numpy as well; True is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def to_dict(value: Any, brief: bool = False) -> Any:
    """Plain JSON types of a (nested) dataclass; tuples become lists.

    Args:
        value: The dataclass.
        brief: Leave out fields at their defaults that are marked as `later`, so that a value from before them has the
            form it had.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = [f for f in dataclasses.fields(value) if not (brief and _is_left_out(f, value))]
        return {f.name: to_dict(getattr(value, f.name), brief) for f in shown}
    if isinstance(value, tuple | list):
        return [to_dict(v, brief) for v in cast(list[Any], value)]
    if isinstance(value, dict):
        return {k: to_dict(v, brief) for k, v in cast(dict[str, Any], value).items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise HookedVidError(f"{type(value).__name__} has no JSON form; only plain values can be written to a file")


def _is_left_out(field: dataclasses.Field[Any], value: Any) -> bool:
    if "later" not in field.metadata:
        return False
    held = getattr(value, field.name)
    return isinstance(held, type(field.default)) and held == field.default


def numbered(fields: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The fields of a file, the number of their format first."""
    return {"format": number, **fields}


def unnumbered(data: Any, number: int, what: object, error: type[HookedVidError] = HookedVidError) -> Any:
    """The fields of a file that is of the format `number`; one that says none is of the first.

    Args:
        data: What the file holds, an object or not.
        number: Of the format that is read.
        what: Names the file.
        error: What is raised.

    Raises:
        HookedVidError: `error`, for a file of another format.
    """
    if not isinstance(data, dict):
        return data
    fields = cast(dict[str, Any], data)
    format = fields.get("format", 1)
    if format != number or isinstance(format, bool):
        raise error(
            f"{what} is of format {format!r}, and this version of hookedvid reads format {number}; make it anew with "
            "this version, or read it with the one that wrote it"
        )
    return {name: value for name, value in fields.items() if name != "format"}


def from_dict(cls: type[T], data: Any, error: type[HookedVidError] = HookedVidError) -> T:
    """The dataclass a dict describes, every problem in it reported at once.

    Raises `error`, naming each field by its dotted path.
    """
    problems: list[str] = []
    value = _read(cls, data, cls.__name__, problems)
    if problems:
        raise error("; ".join(problems))
    return value


def override(value: T, changes: Mapping[str, Any], error: type[HookedVidError] = HookedVidError) -> T:
    """A dataclass with some fields changed, each named by its dotted path (`decoder.rope.factor`).

    Raises `error` for a path that does not exist or a value of the wrong type.
    """
    data = to_dict(value)
    for path, new in changes.items():
        *parents, last = path.split(".")
        inside = data
        for i, name in enumerate(parents):
            if not isinstance(inside.get(name), dict):
                raise error(
                    f"cannot set {path!r}: there is no {'.'.join(parents[: i + 1])!r} ({nearest(name, inside)})"
                )
            inside = inside[name]
        if last not in inside:
            raise error(f"cannot set {path!r}: there is no such field ({nearest(last, inside)})")
        inside[last] = to_dict(new)
    return from_dict(type(value), data, error)


def _read(hint: Any, data: Any, where: str, problems: list[str]) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _read_dataclass(hint, data, where, problems)
    if origin is types.UnionType:
        arms = typing.get_args(hint)
        if data is None and type(None) in arms:
            return None
        rest = [a for a in arms if a is not type(None)]
        return _read(rest[0], data, where, problems) if len(rest) == 1 else _check(hint, data, where, problems)
    if origin is tuple and isinstance(data, list | tuple):
        inner = typing.get_args(hint)[0]
        parts = enumerate(cast(list[Any], data))
        return tuple(_read(inner, v, f"{where}[{i}]", problems) for i, v in parts)
    return _check(hint, data, where, problems)


_hints = functools.cache(typing.get_type_hints)  # of the few classes there are, for each of many values


def _read_dataclass(cls: type, data: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(data, dict):
        problems.append(f"{where} should be an object, got {data!r}")
        return None
    values = cast(dict[str, Any], data)
    hints = _hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    n_before = len(problems)
    for key in values.keys() - fields.keys():
        problems.append(f"{where} has no field {key!r} ({nearest(key, fields)})")
    required = {
        n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    for key in required - values.keys():
        problems.append(f"{where} lacks the field {key!r}")
    read = {k: _read(hints[k], v, f"{where}.{k}", problems) for k, v in values.items() if k in fields}
    return cls(**read) if len(problems) == n_before else None


def _check(hint: Any, data: Any, where: str, problems: list[str]) -> Any:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        options = typing.get_args(hint)
        ok, expected = data in options, "one of " + ", ".join(map(repr, options))
    elif origin is types.UnionType:
        plain = (typing.get_origin(a) or a for a in typing.get_args(hint))
        arms = tuple(a for a in plain if isinstance(a, type))
        ok, expected = isinstance(data, arms), " or ".join(a.__name__ for a in arms)
    elif hint is float:
        ok, expected = isinstance(data, int | float) and not isinstance(data, bool), "a number"
        ok = ok and not (isinstance(data, int) and abs(data) > sys.float_info.max)
        data = float(data) if ok else data
    elif isinstance(origin, type):
        ok, expected = isinstance(data, origin), "a list" if origin is tuple else f"a {origin.__name__}"
    elif hint is not Any and isinstance(hint, type):
        ok = isinstance(data, hint) and not (hint is int and isinstance(data, bool))
        expected = f"a {hint.__name__}"
    else:
        ok, expected = True, ""
    if not ok:
        problems.append(f"{where} should be {expected}, got {data!r}")
    return data
