"""Pixels as rows, one a patch: the form in which Qwen's processors, and those after them, hand videos on.

A patch is `patch_size` pixels high and wide and `patch_frames` frames long; its row holds channels, frames, rows and
columns of pixels, the last fastest. Rows go by groups of frames, then by squares of `merge` x `merge` patches, which
become one token, in raster order, then by the patches in a square, in raster order.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.values.config import VisionConfig
from hookedvid.values.grid import VideoShape
from hookedvid.values.tensors import ints


class PatchRows(NamedTuple):
    """A video's patches.

    Attributes:
        rows: One a patch.
        grid: Groups of frames, rows and columns, counted in patches.
    """

    rows: Float[Tensor, "patch pixel"]
    grid: tuple[int, int, int]


def patch_grid(n_frames: int, height: int, width: int, vision: VisionConfig) -> tuple[int, int, int]:
    """Groups of frames, rows and columns in patches, of preprocessed frames."""
    return -(-n_frames // vision.patch_frames), height // vision.patch_size, width // vision.patch_size


def to_rows(frames: Float[Tensor, "frame 3 height width"], vision: VisionConfig) -> PatchRows:
    """The rows of preprocessed frames; the last frame is repeated where it does not fill its group."""
    size, length, merge = vision.patch_size, vision.patch_frames, vision.multiple // vision.patch_size
    n, _, height, width = frames.shape
    grid = patch_grid(n, height, width, vision)
    if missing := -n % length:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    squares = frames.reshape(
        grid[0], length, 3, grid[1] // merge, merge, size, grid[2] // merge, merge, size
    )  # group, frame, channel, then square, patch and pixel of rows and of columns
    rows = squares.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * length * size**2)
    return PatchRows(rows, grid)


def to_frames(
    rows: Float[Tensor, "patch pixel"], grid: tuple[int, int, int], vision: VisionConfig
) -> Float[Tensor, "frame 3 height width"]:
    """The frames of rows, every group whole: of an odd number of frames, pairs give one more.

    Raises:
        InputError: Where rows and grid are not each other's, or not this tower's.
    """
    size, length, merge = vision.patch_size, vision.patch_frames, vision.multiple // vision.patch_size
    n, high, wide = grid
    expected = (n * high * wide, 3 * length * size**2)
    if min(grid) < 1 or high % merge or wide % merge or tuple(rows.shape) != expected:
        raise InputError(
            f"rows of patches {tuple(rows.shape)} do not fit the grid {grid}: this tower reads "
            f"[{expected[0]}, {expected[1]}] there, and rows and columns of the grid in multiples of {merge}"
        )
    squares = rows.reshape(n, high // merge, wide // merge, merge, merge, 3, length, size, size)
    return squares.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(n * length, 3, high * size, wide * size)


def kept(frames: Float[Tensor, "frame 3 height width"], vision: VisionConfig) -> Bool[Tensor, " token"]:
    """Which video tokens stay, by groups of frames and in raster order within each.

    A token is dropped if its pixels differ from those of the group before by `vision.drop_below` or less: mean
    absolute difference of normalised pixels, times 255. The first group stays whole, and so does the first token of one
    that would lose all (VideoLLaMA3).
    """
    rows, (n, high, wide) = to_rows(frames, vision)
    cells = rows.reshape(n, high * wide * vision.patch_size**2 // vision.multiple**2, -1)
    stay = torch.ones(cells.shape[:2], dtype=torch.bool, device=frames.device)
    if vision.drop_below is not None:
        stay[1:] = (cells[1:] - cells[:-1]).abs().mean(-1) * 255 > vision.drop_below
        stay[:, 0] |= ~stay.any(1)
    return stay.flatten()


def dropped(frames: Float[Tensor, "frame 3 height width"], vision: VisionConfig) -> tuple[int, ...]:
    """Numbers of the video tokens that do not stay, counted as in `kept`; none where a tower drops none."""
    if vision.drop_below is None:
        return ()
    return tuple(ints((~kept(frames, vision)).nonzero().flatten()))


def shape_of(frames: Float[Tensor, "frame 3 height width"], vision: VisionConfig) -> VideoShape:
    """What a tower makes of preprocessed frames."""
    return VideoShape(len(frames), frames.shape[2], frames.shape[3], dropped(frames, vision))
