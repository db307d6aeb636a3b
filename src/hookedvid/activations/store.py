"""A folder of activations: shards of safetensors, each with the records of its items, and how one is read.

A file holds, by full hook name, the rows of its items one after the other; beside each stands whose row it is and what
of (`labels`). What became of an item, failed ones among them, is in the file's metadata, by the key of all that its
rows are made of. A file of one item is made as soon as that item is done; many become a shard, which appears whole
before they go. Which items there are, with their keys, is in a file of its own: rows under other keys count no longer.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hookedvid.activations.rows import LABELS, Kept
from hookedvid.data.item import Item
from hookedvid.errors import DataError, HookError, RunError, nearest
from hookedvid.study.rows import json_bytes, sealed, unsealed
from hookedvid.study.run.sources import Moments
from hookedvid.values.files import PART, read_regular, write_bytes, written
from hookedvid.values.hook_names import part_of
from hookedvid.values.serial import from_dict, numbered, to_dict, unnumbered

FORMAT = 1
ABOUT, ITEMS = "collection.json", "items.json"
PARTS = "parts"
SHARD_BYTES = 256 << 20  # that a shard has at least, unless it has so many items
SHARD_ITEMS = 1000
LARGEST = 1 << 30  # bytes of a file that is read whole
_LABELS = "labels"


class Record(NamedTuple):
    """What became of an item: `ok`, or `failed` for a reason, of a kind that one word says (docs/videos.md)."""

    key: str
    status: str = "ok"
    reason: str = ""
    fault: str = ""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one hook point, and what each is of.

    Attributes:
        values: As they were stored.
        item: Number of each row's item in `Activations.items`.
        video: Number of its video, equal where the video is one; what probes are split by.
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
        videos = {video: n for n, video in enumerate(dict.fromkeys(map(_video, self.items)))}
        self._video = torch.tensor([videos[_video(item)] for item in self.items], dtype=torch.long)
        self._places = [(found.path, found.number) for _, found in there]

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        s, lost = self.settings, f", {len(self.failed)} failed" if self.failed else ""
        how = f"pooled by {s['pool']}" if s["pool"] else "not pooled"
        return (
            f"Activations: {len(self)} items{lost}, {len(self.hooks)} hook points at {s['at']!r}, {how}, {s['stored']}"
        )

    def name(self, hook: str, layer: int | None = None) -> str:
        """The full name of a hook point that was collected.

        Raises:
            HookError: With those that were.
        """
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
        wanted = {label: torch.tensor([x] if isinstance(x, int) else list(x)) for label, x in labels.items()}
        numbers = range(len(self)) if items is None else [range(len(self))[i] for i in items]
        by_file: dict[Path, list[int]] = {}
        for i in numbers:
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


def labels_name(hook: str) -> str:
    """Under which name a file has the labels of a hook point's rows; all that hold positions share theirs."""
    return f"{_LABELS}.{hook}" if part_of(hook) in ("tower", "projector") else _LABELS


def _video(item: Item) -> tuple[Any, ...]:
    return item.video, item.bound


# ---- files -----------------------------------------------------------------------------------------------------------


def opened(path: Path) -> Any:
    """A file of activations to read from.

    Raises:
        DataError: For one that is damaged.
    """
    try:
        return cast(Any, safe_open)(path, framework="pt")
    except (OSError, SafetensorError) as e:
        raise DataError(f"cannot read activations in {path}: {e}; remove it, and collect its items again") from e


def files_of(folder: Path) -> list[Path]:
    """Shards, then files of single items, each in the order of their making."""
    return [p for d in (folder, folder / PARTS) for p in sorted(d.glob("*.safetensors")) if p.stem.isdecimal()]


def records_of(path: Path) -> list[Record]:
    """The records of a file's items, in their order."""
    with opened(path) as file:
        return [Record(**fields) for fields in json.loads((file.metadata() or {}).get("records", "[]"))]


class Found(NamedTuple):
    """An item's record, and where its rows are: the file, and its number in it."""

    record: Record
    path: Path
    number: int

    @property
    def ok(self) -> bool:
        """Whether there are rows."""
        return self.record.status == "ok"


def outcomes(folder: Path) -> dict[str, Found]:
    """What became of items, by key; of several with one key, one that did not fail."""
    known: dict[str, Found] = {}
    for path in files_of(folder):
        for n, record in enumerate(records_of(path)):
            if record.key not in known or not known[record.key].ok:
                known[record.key] = Found(record, path, n)
    return known


def save(path: Path, records: Sequence[Record], tensors: dict[str, Tensor]) -> None:
    """Write a file, which appears whole.

    Raises:
        RunError: Where it cannot be.
    """
    try:
        with written(path) as part:
            save_file(tensors, part, {"records": json.dumps([r._asdict() for r in records])})
    except (OSError, SafetensorError) as e:
        raise RunError(
            f"cannot write activations to {path}: {e}; every item before this one is kept: make room and call again"
        ) from e


def tensors_of(kept: Mapping[str, Kept]) -> dict[str, Tensor]:
    """What a file of one item holds."""
    tables = {labels_name(name): torch.nn.functional.pad(labels, (1, 0)).int() for name, (_, labels) in kept.items()}
    return {name: values for name, (values, _) in kept.items()} | tables


class Writer:
    """Adds items to a folder, whose lock its caller holds."""

    def __init__(self, folder: Path):
        self._folder = folder
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        for torn in (p for d in (folder, folder / PARTS) for p in d.glob(f"{PART}*")):
            torn.unlink()  # of a call that was killed over it
        known = files_of(folder)
        self._next = 1 + max([int(p.stem) for p in known], default=-1)
        merged = {r.key for p in known if p.parent == folder for r in records_of(p) if r.status == "ok"}
        self._parts: list[Path] = []
        for path in (p for p in known if p.parent != folder):
            if {r.key for r in records_of(path)} <= merged:  # left by a call that ended while it made a shard
                path.unlink()
            else:
                self._parts.append(path)
        self._size = sum(p.stat().st_size for p in self._parts)

    def append(self, record: Record, kept: Mapping[str, Kept]) -> None:
        """Keep one item; once this returns, it is on disk."""
        path = self._new(self._folder / PARTS)
        save(path, [record], tensors_of(kept))
        self._parts.append(path)
        self._size += path.stat().st_size
        if self._size >= SHARD_BYTES or len(self._parts) >= SHARD_ITEMS:
            self.merge()

    def merge(self) -> None:
        """Make one shard of the files of single items, if there are any."""
        if len(self._parts) == 1:
            self._parts[0].replace(self._new(self._folder))
            self._parts, self._size = [], 0
        if not self._parts:
            return
        records: list[Record] = []
        tensors: dict[str, list[Tensor]] = {}
        for path in self._parts:
            own = records_of(path)
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118 - no dictionary
                    x = file.get_tensor(name)
                    if name.startswith(_LABELS):
                        x[:, 0] += len(records)
                    tensors.setdefault(name, []).append(x)
            records += own
        save(self._new(self._folder), records, {name: torch.cat(tensors.pop(name)) for name in list(tensors)})
        for path in self._parts:
            path.unlink()
        self._parts, self._size = [], 0

    def _new(self, folder: Path) -> Path:
        self._next += 1
        return folder / f"{self._next - 1:08d}.safetensors"


# ---- settings and items ----------------------------------------------------------------------------------------------


def read_settings(folder: Path) -> dict[str, Any]:
    """What fixes every number of a folder.

    Raises:
        DataError: Where none are kept, or by another version.
    """
    path = folder / ABOUT
    try:
        body = unsealed(read_regular(path, LARGEST))
    except OSError as e:
        raise DataError(f"no activations are in {folder}: {e.strerror}; hookedvid.collect makes such a folder") from e
    if body is None:
        raise DataError(f"{path} is damaged; collect into another folder")
    return unnumbered(json.loads(body), FORMAT, path, DataError)["settings"]


def fix_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write what fixes every number of a folder, or see that it is what the folder was made by.

    Raises:
        DataError: Where it is not.
    """
    if not (folder / ABOUT).exists():
        write_bytes(folder / ABOUT, sealed(json_bytes(numbered({"settings": settings}, FORMAT))))
        return
    kept = read_settings(folder)
    if other := [k for k in sorted({*kept, *settings}) if kept.get(k) != settings.get(k)]:
        told = "; ".join(f"{k} {kept.get(k)!r:.60}, now {settings.get(k)!r:.60}" for k in other[:3])
        raise DataError(f"{folder} holds activations of other settings ({told}); give another folder")


def read_questions(folder: Path) -> list[tuple[Item, str]]:
    """The items of a folder with their keys, done or not."""
    path = folder / ITEMS
    if not path.exists():
        return []
    data = unnumbered(json.loads(read_regular(path, LARGEST)), FORMAT, path, DataError)
    return [(from_dict(Item, item, DataError), key) for key, item in data["items"]]


def add_questions(folder: Path, items: Iterable[tuple[Item, str]]) -> None:
    """Write the items of a folder: those that were there, in place of which come new ones of their ids, then others."""
    known = {item.id: (item, key) for item, key in [*read_questions(folder), *items]}
    told = [[key, to_dict(item)] for item, key in known.values()]
    write_bytes(folder / ITEMS, json_bytes(numbered({"items": told}, FORMAT)))
