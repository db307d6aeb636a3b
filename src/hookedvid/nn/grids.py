"""What a tower knows of the places of patches: patches of frames as rows, positions by row and column, windows.

Patches are in raster order, frame after frame (pair after pair where a patch takes in two), everywhere.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.nn.structured import Call, Structure

Size = tuple[int, int, int]  # of a video in patches: steps, rows, columns


def unlike(sizes: Sequence[Size]) -> bool:
    """Whether videos have frames of unequal sizes, so that their rows are packed into one item."""
    return len({size[1:] for size in sizes}) > 1


def join(videos: Sequence[Float[Tensor, "_unit _pos d"]], sizes: Sequence[Size]) -> Float[Tensor, "unit pos d"]:
    """Videos as one tensor: units of one size, or all rows one after the other."""
    return torch.cat([v.flatten(0, 1)[None] for v in videos], 1) if unlike(sizes) else torch.cat(list(videos))


def split(x: Float[Tensor, "unit pos d"], sizes: Sequence[Size], extra: int = 0) -> list[Float[Tensor, "_unit _pos d"]]:
    """Each video's part of what `join` made, with `extra` rows a unit beside its patches."""
    if not unlike(sizes):
        return list(x.split([t for t, *_ in sizes]))
    rows = x[0].split([t * (h * w + extra) for t, h, w in sizes])
    return [r.view(t, -1, x.shape[-1]) for r, (t, *_) in zip(rows, sizes, strict=True)]


def patch_rows(
    frames: Float[Tensor, "frame 3 height width"], patch: int, patch_frames: int
) -> Float[Tensor, "step patch values"]:
    """The numbers of each patch, colour slowest, then frame, row, column; an odd last frame is taken twice."""
    if short := -len(frames) % patch_frames:
        frames = torch.cat([frames, frames[-1:].expand(short, -1, -1, -1)])
    x = frames.unflatten(0, (-1, patch_frames)).unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))
    # [step, frame of it, colour, row, y, column, x] -> [step, row, column, colour, frame of it, y, x]
    return x.permute(0, 3, 5, 2, 1, 4, 6).flatten(3).flatten(1, 2)


def places(rows: int, columns: int, device: torch.device) -> Int[Tensor, "axis patch"]:
    """Row and column of each patch of a step."""
    return torch.stack([x.flatten() for x in torch.meshgrid(*map(torch.arange, (rows, columns)), indexing="ij")]).to(
        device
    )


def interpolated(table: Float[Tensor, "place d_model"], rows: int, columns: int) -> Float[Tensor, "patch d_model"]:
    """Learned positions of a square grid, bilinear between its corners' (`align_corners`), as Qwen3-VL takes them.

    Weights are float32 whatever the table is; what is returned has their dtype, promoted with the table's.
    """
    side = int(len(table) ** 0.5)
    taps, weights = zip(
        *(_taps(at, n, side) for at, n in zip(places(rows, columns, table.device), (rows, columns), strict=True)),
        strict=True,
    )
    index = (taps[0][:, :, None] * side + taps[1][:, None]).flatten(1)
    weight = (weights[0][:, :, None] * weights[1][:, None]).flatten(1)
    return (table[index] * weight[..., None]).sum(1)


def _taps(at: Tensor, n: int, side: int) -> tuple[Tensor, Tensor]:
    source = at.to(torch.float32) * (side - 1) / max(n - 1, 1)
    low = source.floor()
    offsets = torch.arange(2, device=at.device)
    weights = (1 - (source[:, None] - low[:, None] - offsets).abs()).clamp(min=0)
    return (low.long()[:, None] + offsets).clamp(0, side - 1), weights


def patch_angles(
    theta: float, d_head: int, rows: int, columns: int, device: torch.device
) -> Float[Tensor, "patch half"]:
    """Angles of each patch: the first half of the frequencies turns by its row, the second by its column; float32."""
    spatial = d_head // 2
    inverse = 1.0 / (theta ** (torch.arange(0, spatial, 2, dtype=torch.float32, device=device) / spatial))
    row, column = places(rows, columns, device)[..., None].to(torch.float32) * inverse
    return torch.cat([row, column], -1)


def units(sizes: Sequence[Size]) -> Structure:
    """Attention inside each step of videos that lie one after the other in a row."""
    return _structure(tuple(sizes), 0)


def windows(sizes: Sequence[Size], side: int) -> Structure:
    """Attention inside windows of `side` x `side` patches of each step; those at two edges are smaller."""
    return _structure(tuple(sizes), side)


@lru_cache(maxsize=16)
def _structure(sizes: tuple[Size, ...], side: int) -> Structure:
    alike: dict[int, list[Tensor]] = {}
    start = 0
    for steps, rows, columns in sizes:
        at = torch.arange(start, start + steps * rows * columns).view(steps, rows, columns)
        for block in (b for strip in at.split(side or rows, 1) for b in strip.split(side or columns, 2)):
            alike.setdefault(block[0].numel(), []).append(block.flatten(1))
        start += at.numel()
    calls = [
        Call(len(x), x.flatten(), x.flatten(), n, n, n, None, False)
        for n, x in ((n, torch.cat(b)) for n, b in alike.items())
    ]
    order = torch.cat([torch.cat(b).flatten() for b in alike.values()]).argsort()
    return Structure(start, start, sum(c.n * c.n_rows * c.n_keys for c in calls), tuple(calls), order)
