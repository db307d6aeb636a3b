"""A folder of activations, read back by hook point, layer and label."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.activations.files import labels_name, opened, outcomes, read_questions, read_settings
from hookedvid.activations.rows import LABELS
from hookedvid.data.item import Item
from hookedvid.errors import DataError, HookError, InputError, nearest
from hookedvid.study.run.sources import Moments
from hookedvid.values.hook_names import part_of
from hookedvid.values.serial import as_whole


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one hook point, and what each is of.

    Attributes:
        values: As they were stored.
        item: Number of each row's item in `Activations.items`.
        video: Number of its video, one for all cuts of a file; what probes are split by.
        position: In the item's sequence; -1 of means, and in tower and projector.
        frame: Sampled frame, the first of those that share the position; -1 outside of frames.
        row, column: Of its frame's grid of tokens; -1 of what is in no cell.
    """

    values: Float[Tensor, "n *channels"]
    item: Int[Tensor, " n"]
    video: Int[Tensor, " n"]
    position: Int[Tensor, " n"]
    frame: Int[Tensor, " n"]
    row: Int[Tensor, " n"]
    column: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, which: Any) -> "Rows":
        """Some of the rows: a mask, numbers or a slice of them."""
        return Rows(*(x[which] for x in vars(self).values()))

    def __repr__(self) -> str:
        n = len(self.item.unique())
        return f"Rows: {len(self)} of {n} items, {list(self.values.shape[1:])} numbers each, {self.values.dtype}"


def check_rows(rows: Any) -> None:
    """Raises InputError for what does not know which videos its rows are of, such as their values alone."""
    if not isinstance(rows, Rows):
        raise InputError(f"{type(rows).__name__} is no Rows, which know their videos; Activations.at(hook, layer) does")


class Activations:
    """What `collect` keeps in a folder, read when it is asked for: one hook point at a time, never all.

    Attributes:
        settings: What fixes every number: model, hooks, positions, pooling, sampling, dtype, interventions.
        items: Of which there are activations, as they were given last; `failed` the others' reasons by id.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        self.hooks: tuple[str, ...] = tuple(self.settings["hooks"])
        items = read_questions(self.folder)
        known = outcomes(self.folder)
        there = [(item, known[key]) for item, key in items if key in known and known[key].ok]
        self.items: tuple[Item, ...] = tuple(item for item, _ in there)
        self.failed = {item.id: known[key].record.reason for item, key in items if key in known and not known[key].ok}
        videos = {video: n for n, video in enumerate(dict.fromkeys(item.video for item in self.items))}
        self._video = torch.tensor([videos[item.video] for item in self.items], dtype=torch.long)
        self._places = [(found.path, found.number) for _, found in there]

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        s, lost = self.settings, f", {len(self.failed)} failed" if self.failed else ""
        how = f"pooled by {s['pool']}" if s["pool"] else "not pooled"
        return (
            f"Activations: {len(self)} items{lost}, {len(self.hooks)} hook points at {s['at']!r}, {how}, {s['stored']}"
        )

    def name(self, hook: Any, layer: int | None = None) -> str:
        """The full name of a hook point that was collected.

        Raises:
            HookError: With those that were.
        """
        if not isinstance(hook, str):
            raise HookError(f"{hook!r} is no hook point's name; its layer is an argument of its own: 'resid_post', 5")
        if layer is not None and layer < 0:
            layer += self.settings["n_layers"]
        block, part = "" if layer is None else f"blocks.{layer}.", part_of(hook)
        rest = hook.removeprefix({"tower": "vision.", "projector": "projector."}.get(part, ""))
        named = [n for n in self.hooks if block in n and part_of(n) == part]
        exact = [hook] if hook in named else [n for n in named if n.endswith((f".{rest}", f"hook_{rest}"))]
        if len(exact) != 1:
            what = (
                f"is several: {exact[:4]}; say which layer"
                if exact
                else f"was not collected; {nearest(hook, self.hooks)}"
            )
            raise HookError(f"hook point {hook!r}" + ("" if layer is None else f" of layer {layer}") + f" {what}")
        return exact[0]

    def at(
        self, hook: str, layer: int | None = None, *, items: Iterable[int] | None = None, **labels: int | Iterable[int]
    ) -> Rows:
        """The rows of one hook point.

        Args:
            hook: A full name, or a short one with its layer.
            layer: 0-based; negative ones count from the end.
            items: Numbers of `items`; all unless given.
            labels: Which `position`, `frame`, `row` or `column`: a number, or several.

        Raises:
            HookError: For what was not collected.
        """
        chosen = list(self.stream(hook, layer, items=items, **labels))
        if not chosen:
            raise DataError(f"no row of {hook!r} is of these items and labels")
        fields = zip(*(vars(rows).values() for rows in chosen), strict=True)
        rows = Rows(*(torch.cat(several) for several in fields))
        return rows[rows.item.argsort(stable=True)]

    def moments(self, hook: str, layers: Iterable[int] | None = None) -> dict[str, Float[Tensor, "2 *channels"]]:
        """Mean and standard deviation of each channel over all rows, by full hook name: a `source` of `Ablate`.

        A shard is read at a time.
        """
        names = [self.name(hook)] if layers is None else [self.name(hook, layer) for layer in layers]
        found: dict[str, Tensor] = {}
        for name in names:
            moments = Moments()
            for rows in self.stream(name):
                moments.add(rows.values)
            found[name] = moments.result()
        return found

    def stream(
        self, hook: str, layer: int | None = None, *, items: Iterable[int] | None = None, **labels: int | Iterable[int]
    ) -> Iterator[Rows]:
        """The rows of `at`, file by file, for what does not fit in memory; a file has 256 MiB, or one item.

        Of a file, those are read that lie between the first and the last.

        Raises:
            HookError: For what was not collected.
        """
        if unknown := labels.keys() - set(LABELS):
            raise DataError(f"rows have no label {sorted(unknown)[0]!r}; they have {', '.join(LABELS)}")
        name = self.name(hook, layer)
        wanted = {label: torch.tensor(_numbers(label, x), dtype=torch.long) for label, x in labels.items()}
        numbers = range(len(self)) if items is None else _numbers("items", items)
        if wrong := [i for i in numbers if not -len(self) <= i < len(self)]:
            raise DataError(f"no item {wrong[0]}: there are {len(self)}, numbered from 0")
        by_file: dict[Path, list[int]] = {}
        for i in (i % len(self) for i in numbers):
            by_file.setdefault(self._places[i][0], []).append(i)
        for path, own in by_file.items():
            with opened(path) as file:
                table: Tensor = file.get_tensor(labels_name(name)).long()
                here = [self._places[i][1] for i in own]
                number = torch.full((1 + max(int(table[:, 0].max()), *here),), -1)  # in `items`, by number in this file
                number[here] = torch.tensor(own)
                keep: Bool[Tensor, " n"] = number[table[:, 0]] >= 0
                for label, values in wanted.items():
                    keep &= torch.isin(table[:, 1 + LABELS.index(label)], values)
                at = keep.nonzero()[:, 0]
                if len(at):
                    first, stop = int(at[0]), int(at[-1]) + 1
                    values = file.get_slice(name)[first:stop][at - first]
                    item = number[table[at, 0]]
                    yield Rows(values, item, self._video[item], *table[at, 1:].unbind(1))


def _numbers(what: str, given: Any) -> list[int]:
    """One whole number, or several. A mask is none: True would be item 1."""
    one = as_whole(given)
    try:
        several: list[Any] = [one] if one is not None else list(given)
    except TypeError:
        several = [None]
    numbers = [as_whole(i) for i in several]
    if None in numbers:
        raise DataError(f"{what} is {given!r:.60}; give a whole number, or several")
    return cast(list[int], numbers)
