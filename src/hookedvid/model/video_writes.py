"""Writes to the tower and the projector: rows of a video's frames, behind the positions that they become."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from hookedvid.errors import InterventionError
from hookedvid.model.cache import VideoCache
from hookedvid.model.new_rows import Place, Sources, Value, check_alike, new_rows, theirs_of
from hookedvid.model.tower_rows import n_rows, video_rows
from hookedvid.nn.model import Model
from hookedvid.values.effects import Write
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.layout import TokenLayout


class VideoWrite(NamedTuple):
    """A write to one item's video: of all videos' rows, one after the other, `rows` become `value` of themselves.

    Attributes:
        n_rows: Of all videos of the batch.
    """

    label: str
    rows: Int[Tensor, " row"]
    n_rows: int
    value: Value


def of_video(
    model: Model, write: Write, name: str, layer: int | None, sources: Sources, inputs: VideoInputs, item: int
) -> VideoWrite:
    """A write to a hook point of tower or projector, for one item of a batch.

    Raises:
        InterventionError: When it does not fit.
    """
    positions = inputs.layouts[item].positions(write.at)
    here = video_rows(model, name, inputs.layouts[item], positions, write.label)
    before, total = _among(model, name, inputs.layouts, item)
    if write.fn is None and write.by == "rows":
        value = _taken(model, write, name, layer, sources, inputs.layouts, item, len(here.chosen))
    else:
        value = new_rows(write, Place(name, layer, inputs, item, positions, here.chosen, here.n), sources, {})
    return VideoWrite(write.label, before + here.chosen, total, value)


def _among(model: Model, name: str, layouts: Sequence[TokenLayout], item: int) -> tuple[int, int]:
    """How many rows the videos before an item's have, and all."""
    each = [n_rows(model, name, x) if x.grid is not None else 0 for x in layouts]
    return sum(each[:item]), sum(each)


def _taken(
    model: Model, write: Write, name: str, layer: int | None, sources: Sources, layouts: Sequence[TokenLayout],
    item: int, n: int,
) -> Value:  # fmt: skip
    """Rows of another run's video, in its order."""
    theirs = theirs_of(model, write, sources, name, layer)
    if isinstance(theirs.source, VideoCache):
        layouts = theirs.source.layouts
    if item >= len(layouts):
        raise InterventionError(f"{write.label}: the source holds {len(layouts)} items, and this is number {item + 1}")
    positions = layouts[item].positions(write.at)
    there = video_rows(model, theirs.name, layouts[item], positions, write.label).chosen
    before, total = _among(model, theirs.name, layouts, item)
    act = theirs.act.flatten(0, 1)
    if len(there) != n or len(act) != total:
        what = f"{n} rows here, {len(there)} in the source; both must be equally many"
        whole = f"the source holds {len(act)} rows of {total}; cache a run that encodes all its videos"
        raise InterventionError(f"{write.label}: {what if len(act) == total else whole}")

    def value(rows: Tensor, which: Tensor) -> Tensor:
        taken = act[(before + there)[which].to(act.device)][None]
        check_alike(write.label, taken, rows)
        return taken.to(rows)

    return value


def writer(writes: Sequence[VideoWrite]) -> Callable[[Tensor, Any], Tensor]:
    """A forward hook that makes the writes of one hook point."""

    def write(act: Tensor, hook: Any) -> Tensor:
        rows = act.flatten(0, 1).clone()
        for one in writes:
            assert len(rows) == one.n_rows, (hook.name, len(rows), one.n_rows)
            to = one.rows.to(rows.device)
            new = one.value(rows.index_select(0, to)[None], torch.arange(len(to)))
            rows.index_copy_(0, to, new[0].to(rows))
        return rows.view(act.shape)

    return write
