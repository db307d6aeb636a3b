"""The rows of a forward's hook points that are kept: chosen by position, labelled, pooled."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.model.cache import rows_held
from hookedvid.model.leaving import RunRecord
from hookedvid.model.tower_rows import n_rows, video_rows
from hookedvid.nn.model import Model
from hookedvid.values.hook_names import part_of
from hookedvid.values.layout import TokenLayout
from hookedvid.values.places import place_labels

Pool = Literal["mean", "frame", "last"]
POOLS: tuple[Pool, ...] = ("mean", "frame", "last")
LABELS = ("position", "frame", "row", "column")  # as `place_labels` tells them; -1 where a row has none
Labels = Int[Tensor, "row label"]


class Kept(NamedTuple):
    """Rows of one item at one hook point, and what each is of: the columns of `LABELS`."""

    values: Float[Tensor, "row *channels"]
    labels: Labels


class Taker:
    """Forward hooks that keep the chosen rows of hook points as they fire, and nothing else.

    Args:
        model: That runs.
        layouts: Of the batch's items, as the run lays them out.
        at: A selector.
        pool: See `pooled`.
        dtype: Rows are kept as.

    Attributes:
        record: The run is given.
        kept: By hook point and item.
    """

    def __init__(
        self, model: Model, layouts: Sequence[TokenLayout], at: str, pool: Pool | None, dtype: torch.dtype | None
    ):
        self.record = RunRecord()
        self.kept: dict[str, list[Kept]] = {}
        self._model, self._layouts, self._at, self._dtype = model, layouts, at, dtype
        self._pool: Pool | None = pool
        self._chosen = [layout.positions(at) for layout in layouts]
        self._labels = [place_labels(layout) for layout in layouts]

    def __call__(self, act: Tensor, hook: Any) -> None:
        """Keep the rows of one hook point."""
        where = self._of_videos if part_of(hook.name) in ("tower", "projector") else self._of_sequence
        found = where(hook.name, act)
        if not all(len(labels) for _, labels in found):
            raise InputError(f"no row of {hook.name} is at {self._at!r}")
        self.kept[hook.name] = [
            pooled(Kept(values.detach(), labels), self._pool, self._dtype or act.dtype) for values, labels in found
        ]

    def _of_sequence(self, name: str, act: Tensor) -> list[tuple[Tensor, Tensor]]:
        block = int(name.split(".")[1]) if name.startswith("blocks.") else 0
        found: list[tuple[Tensor, Tensor]] = []
        for item, (chosen, labels) in enumerate(zip(self._chosen, self._labels, strict=True)):
            rows = rows_held(self.record.rows, block, item, chosen)
            found.append((act[item].index_select(0, rows.to(act.device)), labels[chosen]))
        return found

    def _of_videos(self, name: str, act: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of tower and projector a row belongs to a frame, and to no position."""
        act, before = act.flatten(0, 1), 0
        found: list[tuple[Tensor, Tensor]] = []
        for layout, chosen in zip(self._layouts, self._chosen, strict=True):
            rows = video_rows(self._model, name, layout, chosen, f"{name} at {self._at}").chosen
            n, steps = n_rows(self._model, name, layout), layout.steps
            labels = torch.full((len(rows), len(LABELS)), -1)
            labels[:, 1] = torch.tensor([s.start for s in steps])[rows // (n // len(steps))]
            found.append((act[(before + rows).to(act.device)], labels))
            before += n
        return found


def pooled(kept: Kept, pool: Pool | None, dtype: torch.dtype) -> Kept:
    """Rows of one item pooled, on the CPU; means are taken in float32 at least.

    None keeps all. `mean` is one row, of none in particular. `frame` is a row for each frame, or the frames that share
    tokens: the mean of its rows; those outside of frames are left out. `last` is the last row.
    """
    values, labels = kept
    if pool == "last":
        values, labels = values[-1:].clone(), labels[-1:]  # a view would keep all of them
    elif pool is not None:
        frames = torch.full_like(labels[:, 1], -1) if pool == "mean" else labels[:, 1]
        counted = torch.ones(len(frames), dtype=torch.bool) if pool == "mean" else frames >= 0
        if not bool(counted.any()):
            raise InputError("no chosen position is in a frame, so that there is nothing to pool by frame")
        of, group = frames[counted].unique(return_inverse=True)
        wide = values[counted.to(values.device)].to(torch.promote_types(values.dtype, torch.float32))
        total = wide.new_zeros(len(of), *wide.shape[1:]).index_add(0, group.to(wide.device), wide)
        n = torch.bincount(group, minlength=len(of)).to(total).view(-1, *[1] * (total.ndim - 1))
        values, labels = total / n, torch.full((len(of), len(LABELS)), -1)
        labels[:, 1] = of
    return Kept(values.to("cpu", dtype).contiguous(), labels)
