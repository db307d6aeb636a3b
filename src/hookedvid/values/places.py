"""Where each video token is: frames, row and column, the pixels of the original video it is made of, and when.

One account for all families; groups of tokens by cells, boxes and seconds are read from it.
"""

# What users give is looked at, whatever its type says.
# pyright: reportUnnecessaryIsInstance=false
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.errors import InputError, SelectorError
from hookedvid.values.grid import Grid
from hookedvid.values.layout import TokenLayout
from hookedvid.values.selectors import NAMES, ROLES_OF, Seconds, frames_at, parse_selector
from hookedvid.values.serial import as_whole, is_number
from hookedvid.values.tensors import ints

Box = Sequence[float | int]  # x0, y0, x1, y1
HOW = ("positions", "cells", "box", "seconds", "share", "selector")
CELLS = ("frames", "rows", "columns")


class Pieces(NamedTuple):
    """What tokens are made of: boxes of pixels, one a token, or several where it holds patches of several places.

    Attributes:
        token: Whose it is: its row among the places, ascending.
        frames: Sampled frames [first, stop) that it is taken from.
        box: x0, y0, x1, y1 as of `TokenPlaces`.
    """

    token: Int[Tensor, " piece"]
    frames: Int[Tensor, "piece 2"]
    box: Float[Tensor, "piece 4"]


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
            of, or the smallest that holds them. Of class tokens, and of merged ones unless the tower's run told
            (`HookedVideoLLM.places`), all that the tower sees of the frame; NaN of newlines, and where nobody knows
            (inputs of tensors).
        seconds: When its first and its last frame were sampled; NaN where nobody knows.
        pieces: The boxes that each is made of: of most tokens `box` itself. Those of merged tokens, and of
            LLaVA-OneVision-1.5's published code, which gives tokens their neighbours' patches, are several. Newlines
            and class tokens have none, nor has what nobody knows.
    """

    position: Int[Tensor, " token"]
    frames: Int[Tensor, "token 2"]
    row: Int[Tensor, " token"]
    column: Int[Tensor, " token"]
    box: Float[Tensor, "token 4"]
    seconds: Float[Tensor, "token 2"]
    pieces: Pieces

    def __repr__(self) -> str:
        n = self.frames[:, 1].max().item() if len(self.position) else 0
        return (
            f"TokenPlaces: {len(self.position)} video positions of {n} frames, {len(self.pieces.token)} boxes of pixels"
        )

    @classmethod
    def of(cls, layout: TokenLayout, merged: Int[Tensor, " cell"] | None = None) -> "TokenPlaces":
        """The places of a layout's video positions.

        Args:
            layout: The sequence's.
            merged: Of merged tokens, what only the tower's run tells: of each cell, through all frames in raster order,
                the number of the video position that it became a part of.
        """
        held = [s for s in layout.segments if s.role in ROLES_OF["video"]]
        position = torch.cat([torch.arange(s.start, s.stop) for s in held]) if held else torch.zeros(0).long()
        index = torch.full((layout.n_tokens,), -1)
        index[position] = torch.arange(len(position))
        frames, cell = torch.full((len(position), 2), -1), torch.full((len(position),), -1)
        box = torch.full((len(position), 4), math.nan, dtype=torch.float64)
        grid, columns = layout.grid, 1
        known = grid if grid is not None and grid.heights else None
        for s in held:
            if s.frame is None:
                continue
            own, n = index[s.start : s.stop], max(s.frames, s.blend)
            first = s.frame // n * n if s.blend > s.frames else s.frame
            frames[own] = torch.tensor([first, min(first + n, layout.n_frames)])
            if known is not None and s.role != "newline":
                box[own] = known.seen
        if grid is not None and not layout.merged:
            columns = grid.columns
            for step in range(len(layout.steps)):
                at, numbers = layout.cells_of(step)
                cell[index[at]] = numbers
                if known is not None:
                    box[index[at]] = known.boxes(numbers)
        own = (cell >= 0).nonzero()[:, 0] if known is not None else torch.zeros(0).long()
        pieces = Pieces(own, frames[own], box[own])
        if known is not None and known.shifted:
            pieces = _shifted(known, own, frames, box)
        elif known is not None and merged is not None:
            pieces = _parts(known, merged)
            _cover(pieces, frames, box)
        times = torch.tensor(() if grid is None else grid.times, dtype=torch.float64)
        seconds = torch.full((len(position), 2), math.nan, dtype=torch.float64)
        if len(times):
            there = frames[:, 0] >= 0
            seconds[there] = times[frames[there] - torch.tensor([0, 1])]
        row, column = cell // columns, torch.where(cell < 0, -1, cell % columns)
        return cls(position, frames, row, column, box, seconds, pieces)

    def overlapping(self, box: Box, share: float = 0.0, frames: Sequence[int] | None = None) -> Bool[Tensor, " token"]:
        """Whether each token's pieces and a box have an area in common: any, or at least `share` of the token's own.

        Args:
            box: x0, y0, x1, y1.
            share: The least part of a token's own area.
            frames: Only what is taken from one of these counts as common.
        """
        mine = self.pieces.box
        sides = [
            (torch.clamp(mine[:, i + 2], max=box[i + 2]) - torch.clamp(mine[:, i], min=box[i])).clamp(min=0)
            for i in (0, 1)
        ]
        common = sides[0] * sides[1]
        if frames is not None:
            first, stop = self.pieces.frames[:, :1], self.pieces.frames[:, 1:]
            wanted = torch.tensor(list(frames))
            common = common * ((first <= wanted) & (wanted < stop)).any(1)
        area = (mine[:, 2] - mine[:, 0]) * (mine[:, 3] - mine[:, 1])
        of_token = torch.zeros(2, len(self.position), dtype=torch.float64)
        of_token.index_add_(1, self.pieces.token, torch.stack([common, area]))
        # Rounding takes no token that is all inside.
        return (of_token[0] > 0) & (of_token[0] >= share * of_token[1] * (1 - 1e-12))

    def on_frame(
        self, values: Float[Tensor, " token"], frame: int, height: int, width: int
    ) -> Float[Tensor, "height width"]:
        """A number of each token as a picture over a frame: every pixel has that of the token made of it.

        The mean where several are (bilinear pooling reads patches twice), NaN where none is. A pixel belongs to the
        piece that holds its middle.

        Args:
            values: One a video position, in the order of `position`.
            frame: Sampled, 0-based.
            height: Of the frames as they were decoded, in pixels (`VideoInputs.frames`).
            width: Of these, in pixels.

        Raises:
            InputError: For numbers that are not one a video position.
        """
        if values.shape != (len(self.position),):
            raise InputError(
                f"{tuple(values.shape)} numbers are not one for each of {len(self.position)} video positions; of a row "
                "of the whole sequence take row[places.position]"
            )
        total, n = torch.zeros(2, height, width, dtype=torch.float64)
        numbers = values.detach().double().cpu()
        there = (self.pieces.frames[:, 0] <= frame) & (frame < self.pieces.frames[:, 1])
        corners = (self.pieces.box[there] - 0.5).ceil().long().clamp(min=0)
        for token, (x0, y0, x1, y1) in zip(ints(self.pieces.token[there]), map(ints, corners), strict=True):
            total[y0:y1, x0:x1] += numbers[token]
            n[y0:y1, x0:x1] += 1
        return total / n  # 0 / 0 is NaN


def place_labels(layout: TokenLayout) -> Int[Tensor, "pos 4"]:
    """Of every position its number, its frame (the first of those that share it), its row and column; -1 for none."""
    labels = torch.full((layout.n_tokens, 4), -1)
    labels[:, 0] = torch.arange(layout.n_tokens)
    labels[:, 1] = torch.where(layout.frames < layout.n_frames, layout.frames, -1)  # a video's last newline has none
    places = TokenPlaces.of(layout)
    labels[places.position, 2], labels[places.position, 3] = places.row, places.column
    return labels


def _parts(grid: Grid, merged: Int[Tensor, " cell"]) -> Pieces:
    """The cells that each merged token is made of."""
    n = grid.rows * grid.columns
    order = merged.argsort(stable=True)
    frame = order // n
    return Pieces(merged[order], torch.stack([frame, frame + 1], 1), grid.boxes(order % n))


def _shifted(
    grid: Grid, own: Int[Tensor, " cell"], frames: Int[Tensor, "token 2"], box: Float[Tensor, "token 4"]
) -> Pieces:
    """The patches of each token where class tokens are cut as LLaVA-OneVision-1.5's published code does.

    Its rows are, frame after frame, a class token and the patches, square by square of `shifted` x `shifted`, which
    become one token. It takes as many as there are patches from the second row on, so that each frame's are one further
    on for each frame before. A class token among them holds all of its frame, and is no piece.
    """
    side, n = grid.shifted, grid.rows * grid.columns * grid.shifted**2
    row = torch.arange(len(own) * side**2) + 1
    frame, patch = row // (n + 1), row % (n + 1) - 1
    square, within = (patch // side**2).clamp(min=0), patch % side**2
    y, x = square // grid.columns * side + within // side, square % grid.columns * side + within % side
    token = own.repeat_interleave(side**2)
    held = torch.stack([frame, frame + 1], 1)
    pieces = Pieces(token, held, grid.boxes(y * grid.columns * side + x, side))
    pieces.box[patch < 0] = grid.seen
    _cover(pieces, frames, box)
    return Pieces(*(x[patch >= 0] for x in pieces))


def _cover(pieces: Pieces, frames: Int[Tensor, "token 2"], box: Float[Tensor, "token 4"]) -> None:
    """Make the frames and box of tokens the smallest that hold their pieces, in place."""
    for of_tokens, of_pieces in ((frames, pieces.frames), (box, pieces.box)):
        n = of_tokens.shape[1]
        for side in range(n):
            reduce = "amin" if side < n // 2 else "amax"
            of_tokens[:, side].scatter_reduce_(0, pieces.token, of_pieces[:, side], reduce, include_self=False)


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


def _seconds(given: object) -> tuple[float, float]:
    first, stop = _numbers(given, 2, "seconds", "(a, b): frames that were sampled from a on and before b")
    return first, stop


def _of_seconds(name: str, seconds: object) -> str:
    first, stop = _seconds(seconds)
    return f"{name}[{first:.17f}s:{stop:.17f}s]"  # as many digits as tell floats apart


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
    several: Iterable[Any] = asked.flatten() if isinstance(asked, Tensor) else asked
    values = [as_whole(p) for p in (several if isinstance(asked, Iterable) else [asked])]
    known = [p for p in values if p is not None and 0 <= p < layout.n_tokens]
    if len(known) < len(values):
        raise InputError(f"positions are {asked!r:.80}; give numbers of positions, 0 to {layout.n_tokens - 1}")
    return known


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
    numbers = [None if b is None else as_whole(b) for b in bounds]
    if any(b is not None and n is None for b, n in zip(bounds, numbers, strict=True)):
        raise InputError(f"cells hold {index!r}; give a number, (from, to) half-open, or None for all")
    return ":".join("" if n is None else str(n) for n in numbers)


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
            f"tokens of this model are merged of some anywhere in {layout.blend} frames, so no box picks any of them "
            "before the tower has run; take frames or seconds, or positions=places.position[places.overlapping(box)] "
            "of places = model.places(inputs)"
        )
    if layout.grid is None or not layout.grid.heights:
        raise InputError(
            "nothing says which pixels of the original video these tokens are made of: inputs of tensors do not; take "
            "cells, or prepare the video"
        )
    frames = None
    if "seconds" in given:
        layout.mask(_of_seconds("patches", given["seconds"]))  # refuses what holds no frame, warns of parts of pairs
        frames = frames_at(Seconds(*_seconds(given["seconds"])), layout.grid.times, "patches")
    places = TokenPlaces.of(layout)
    return ints(places.position[places.overlapping(box, share, frames)])


_FINDERS = {"positions": _from_positions, "selector": _from_selector, "cells": _from_cells, "box": _from_box}
