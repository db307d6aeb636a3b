"""Where each video token is: frames, row and column, the pixels of the original video it is made of, and when.

One account for all families; groups of tokens by cells, boxes and seconds are read from it.
"""

# What users give is looked at, whatever its type says.
# pyright: reportUnnecessaryIsInstance=false
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.errors import InputError, SelectorError
from hookedvid.values.layout import TokenLayout
from hookedvid.values.selectors import NAMES, ROLES_OF, parse_selector
from hookedvid.values.serial import is_number
from hookedvid.values.tensors import ints

Box = tuple[float, float, float, float]
HOW = ("positions", "cells", "box", "seconds", "share", "selector")
CELLS = ("frames", "rows", "columns")


@dataclass(frozen=True, eq=False)
class TokenPlaces:
    """Where the video positions of one sequence are, newlines and class tokens among them.

    Attributes:
        position: In the sequence, ascending.
        frames: Sampled frames [first, stop) whose pixels a token holds: one, the two of a Qwen pair, the four of an
            InternVideo2.5 clip; (-1, -1) of the newline that ends a video.
        row, column: Of its frame's grid of tokens, 0-based; -1 of what is in no cell: newlines, class tokens, merged
            tokens.
        box: x0, y0, x1, y1 in pixels of the video as decoded, upright, half-open: those of the patches that it is made
            of. Of class tokens and merged ones all that the tower sees of the frame; NaN of newlines, and where nobody
            knows (inputs of tensors).
        seconds: When its first and its last frame were sampled; NaN where nobody knows.
    """

    position: Int[Tensor, " token"]
    frames: Int[Tensor, "token 2"]
    row: Int[Tensor, " token"]
    column: Int[Tensor, " token"]
    box: Float[Tensor, "token 4"]
    seconds: Float[Tensor, "token 2"]

    @classmethod
    def of(cls, layout: TokenLayout) -> "TokenPlaces":
        """The places of a layout's video positions."""
        held = [s for s in layout.segments if s.role in ROLES_OF["video"]]
        position = torch.cat([torch.arange(s.start, s.stop) for s in held]) if held else torch.zeros(0).long()
        index = torch.full((layout.n_tokens,), -1)
        index[position] = torch.arange(len(position))
        frames, cell = torch.full((len(position), 2), -1), torch.full((len(position),), -1)
        box = torch.full((len(position), 4), math.nan, dtype=torch.float64)
        seconds = torch.full((len(position), 2), math.nan, dtype=torch.float64)
        grid = layout.grid
        for s in held:
            if s.frame is None:
                continue
            own = index[s.start : s.stop]
            n = max(s.frames, s.blend)
            first = s.frame // n * n if s.blend > s.frames else s.frame
            last = min(first + n, layout.n_frames)
            frames[own] = torch.tensor([first, last])
            if grid is not None and grid.times:
                seconds[own] = torch.tensor([grid.times[first], grid.times[last - 1]], dtype=torch.float64)
            if grid is not None and grid.heights and s.role != "newline":
                (top, _), (_, bottom), (left, _), (_, right) = (
                    x for spans in (grid.heights, grid.widths) for x in (spans[0], spans[-1])
                )
                box[own] = torch.tensor([left, top, right, bottom], dtype=torch.float64)
        columns = 1
        if grid is not None and not layout.merged:
            columns = grid.columns
            for step in range(len(layout.steps)):
                at, numbers = layout.cells_of(step)
                cell[index[at]] = numbers
                if grid.heights:
                    y = torch.tensor(grid.heights, dtype=torch.float64)[numbers // columns]
                    x = torch.tensor(grid.widths, dtype=torch.float64)[numbers % columns]
                    box[index[at]] = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
        row, column = cell // columns, torch.where(cell < 0, -1, cell % columns)
        return cls(position, frames, row, column, box, seconds)

    def overlapping(self, box: Box, share: float = 0.0) -> Bool[Tensor, " token"]:
        """Whether each token's pixels and a box have an area in common: any, or at least `share` of the token's own."""
        sides = [
            (torch.clamp(self.box[:, i + 2], max=box[i + 2]) - torch.clamp(self.box[:, i], min=box[i])).clamp(min=0)
            for i in (0, 1)
        ]
        common = sides[0] * sides[1]
        own = (self.box[:, 2] - self.box[:, 0]) * (self.box[:, 3] - self.box[:, 1])
        return (common > 0) & (common >= share * own * (1 - 1e-12))  # rounding takes no token that is all inside


def group_name(name: object) -> str:
    """A name that a group can have.

    Raises:
        InputError: For what is no word, and for names that are selectors.
    """
    try:
        if not isinstance(name, str) or [t.name for t in parse_selector(name)] != [name]:
            raise InputError(f"{name!r} names no group: write a word of a-z, 0-9 and _, which begins with no number")
    except SelectorError as e:
        raise InputError(f"{name!r} names no group: {e}") from e
    if name in NAMES:
        raise InputError(f"{name!r} is a selector already, so no group can have its name; call it my_{name}")
    return name


def as_definitions(groups: object) -> list[tuple[str, dict[str, Any]]]:
    """Groups of a file as names and what `group_positions` takes.

    Raises:
        InputError: For what defines no group.
    """
    if not isinstance(groups, Mapping):
        raise InputError(f'groups are {groups!r:.80}; give an object, {{"ball": {{"selector": "video[3]"}}}}')
    read: list[tuple[str, dict[str, Any]]] = []
    for name, how in cast(Mapping[str, Any], groups).items():
        if not isinstance(how, Mapping):
            raise InputError(f'group {name!r} is {how!r:.80}; give an object, {{"selector": "video[3]"}}')
        fields = dict(cast(Mapping[str, Any], how))
        if any(axis in fields for axis in CELLS):
            fields["cells"] = tuple(fields.pop(axis, None) for axis in CELLS)
        if unknown := sorted(fields.keys() - set(HOW)):
            raise InputError(f"group {name!r} knows nothing of {', '.join(unknown)}; it takes {', '.join(HOW + CELLS)}")
        read.append((name, fields))
    return read


def group_positions(layout: TokenLayout, how: Mapping[str, Any]) -> list[int]:
    """The positions that a group's definition means in a layout; see `VideoInputs.with_group`.

    Raises:
        InputError: For a definition that says nothing, too much, or nothing that is there.
    """
    given = {k: v for k, v in how.items() if v is not None}
    if given.keys() == {"seconds"}:
        given = {"selector": _of_seconds("video", given["seconds"])}
    kinds = [k for k in _FINDERS if k in given]
    if len(kinds) != 1 or given.keys() - {*kinds, *({"seconds", "share"} if kinds == ["box"] else ())}:
        raise InputError(
            f"a group is given by {' and '.join(sorted(given)) or 'nothing'}; say which positions it has by one of "
            "positions, cells, selector, seconds, or box (with seconds and share, if wanted)"
        )
    found = _FINDERS[kinds[0]](layout, given)
    if not found:
        raise InputError(f"no token is in a group given by {given}: {_there(layout)}")
    return found


def _of_seconds(name: str, seconds: object) -> str:
    first, last = _numbers(seconds, 2, "seconds", "(a, b): frames that were sampled from a on and before b")
    return f"{name}[{first:.17f}s:{last:.17f}s]"  # as many digits as tell floats apart


def _numbers(value: object, n: int, name: str, what: str) -> tuple[float, ...]:
    numbers = cast(Sequence[Any], value) if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if len(numbers) != n or not all(is_number(x) and math.isfinite(x) for x in numbers):
        raise InputError(f"{name} is {value!r}; give {what}")
    return tuple(float(x) for x in numbers)


def _there(layout: TokenLayout) -> str:
    grid = layout.grid
    cells = "" if grid is None or layout.merged else f", {grid.rows} rows and {grid.columns} columns of tokens"
    seen = ""
    if grid is not None and grid.heights:
        seen = f", pixels x {grid.widths[0][0]:g} to {grid.widths[-1][1]:g}, y {grid.heights[0][0]:g} to "
        seen += f"{grid.heights[-1][1]:g} of the original"
    return f"this sequence has {layout.n_tokens} positions, {layout.n_frames} frames{cells}{seen}"


def _from_positions(layout: TokenLayout, given: Mapping[str, Any]) -> list[int]:
    asked = given["positions"]
    values: list[Any] = ints(asked.flatten()) if isinstance(asked, Tensor) else list(asked)
    if any(isinstance(p, bool) or not isinstance(p, int) or not 0 <= p < layout.n_tokens for p in values):
        raise InputError(f"positions are {values!r:.80}; give numbers of positions, 0 to {layout.n_tokens - 1}")
    return values


def _from_selector(layout: TokenLayout, given: Mapping[str, Any]) -> list[int]:
    return ints(layout.positions(given["selector"]))


def _from_cells(layout: TokenLayout, given: Mapping[str, Any]) -> list[int]:
    parts = given["cells"]
    if not isinstance(parts, tuple | list) or len(cast(list[Any], parts)) != 3:
        raise InputError(f"cells are {parts!r}; give (frames, rows, columns), each a number, a range or None for all")
    frames, rows, columns = (_spelled(x) for x in cast(list[Any], parts))
    return ints(layout.positions(f"patches[{frames}][{rows},{columns}]"))


def _spelled(index: Any) -> str:
    """As a selector says it: a number, (from, to), a slice, a range, or all."""
    if index is None:
        return ":"
    bounds: list[Any] = [index]
    if isinstance(index, slice | range):
        run = cast(Any, index)
        bounds = [run.start, run.stop, run.step or 1]
    elif isinstance(index, tuple | list) and len(cast(list[Any], index)) == 2:
        bounds = list(cast(list[Any], index))
    if any(b is not None and type(b) is not int for b in bounds):
        raise InputError(f"cells hold {index!r}; give a number, (from, to) half-open, or None for all")
    return ":".join("" if b is None else str(b) for b in bounds)


def _from_box(layout: TokenLayout, given: Mapping[str, Any]) -> list[int]:
    what = "(x0, y0, x1, y1) in pixels of the video as decoded, x0 < x1 and y0 < y1"
    box = _numbers(given["box"], 4, "box", what)
    share = given.get("share", 0.0)
    if not (box[0] < box[2] and box[1] < box[3]):
        raise InputError(f"box is {given['box']!r}; give {what}")
    if not is_number(share) or not 0 <= share <= 1:
        raise InputError(f"share is {share!r}; give the least part of a token's pixels that is in the box, 0 to 1")
    if layout.merged:
        raise InputError(
            f"tokens of this model are merged of some anywhere in {layout.blend} frames, so no box picks any of them; "
            "take frames or seconds"
        )
    if layout.grid is None or not layout.grid.heights:
        raise InputError(
            "nothing says which pixels of the original video these tokens are made of: inputs of tensors do not, and "
            "where class tokens are cut as released (`vision.cls_cut`) tokens are made of their neighbours' patches; "
            "take cells, prepare the video, or load with overrides={'vision.cls_cut': 'each_frame'}"
        )
    in_time = layout.mask(_of_seconds("patches", given["seconds"]) if "seconds" in given else "patches")
    places = TokenPlaces.of(layout)
    inside = (places.row >= 0) & places.overlapping(cast(Box, box), share) & in_time[places.position]
    return ints(places.position[inside])


_FINDERS = {"positions": _from_positions, "selector": _from_selector, "cells": _from_cells, "box": _from_box}
