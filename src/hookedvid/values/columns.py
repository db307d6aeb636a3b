"""Which frame, or which kind of segment, a position of a sequence counts in: the columns of tables."""

from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from hookedvid.errors import InputError, nearest
from hookedvid.values.layout import Segment, TokenLayout, step_name
from hookedvid.values.selectors import ROLES_OF

By = Literal["frames", "segments"]
REST = "rest"  # what belongs to no frame


def columns_of(layout: TokenLayout, by: By) -> tuple[tuple[str, ...], Int[Tensor, " pos"]]:
    """Names of the columns, each but `rest` a selector of its positions, and the column of every position."""
    if by not in get_args(By):
        raise InputError(f"no columns by {by!r} ({nearest(str(by), get_args(By))})")
    if by == "frames":
        labels = (*layout.step_names, REST)
        names = [_frame_name(s) for s in layout.segments]
    else:
        names = [kind_of(s) for s in layout.segments]
        labels = tuple(dict.fromkeys(names))
    runs = [(labels.index(n), len(s)) for n, s in zip(names, layout.segments, strict=True)]
    return labels, torch.cat([torch.full((n,), c) for c, n in runs])


def kind_of(s: Segment) -> str:
    """The selector of a segment's kind; options are told apart."""
    if s.role == "options" and s.index is not None:
        return f"option[{s.index}]"
    return {"video": "patches", "newline": "newlines", "marker": "markers"}.get(s.role, s.role)


def _frame_name(s: Segment) -> str:
    if s.frame is None or s.role not in ROLES_OF["video"]:
        return REST
    return step_name(range(s.frame, s.frame + s.frames))
