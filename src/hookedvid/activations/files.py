"""The files of a folder of activations: shards of safetensors, what fixes their numbers, which items there are.

A shard holds, by full hook name, the rows of its items one after the other; beside each stands whose row it is and what
of (`labels`). What became of an item, failed ones among them, is in the shard's metadata, by the key of all that its
rows are made of. A file of one item is made as soon as that item is done; many become a shard, which appears whole
before they go. Which items there are, with their keys, is in a file of its own: rows under other keys count no longer.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hookedvid.activations.rows import Kept
from hookedvid.data.item import Item
from hookedvid.errors import DataError, RunError
from hookedvid.study.rows import json_bytes, sealed, unsealed
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


def labels_name(hook: str) -> str:
    """Under which name a file has the labels of a hook point's rows; all that hold positions share theirs."""
    return f"{_LABELS}.{hook}" if part_of(hook) in ("tower", "projector") else _LABELS


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
    try:
        found = json.loads(read_regular(path, LARGEST))
    except ValueError as e:
        raise DataError(
            f"{path} is damaged: {e}; remove it, and collect the items again, which runs none of them"
        ) from e
    data = unnumbered(found, FORMAT, path, DataError)
    return [(from_dict(Item, item, DataError), key) for key, item in data["items"]]


def add_questions(folder: Path, items: Iterable[tuple[Item, str]]) -> None:
    """Write the items of a folder: those that were there, in place of which come new ones of their ids, then others."""
    known = {item.id: (item, key) for item, key in [*read_questions(folder), *items]}
    told = [[key, to_dict(item)] for item, key in known.values()]
    write_bytes(folder / ITEMS, json_bytes(numbered({"items": told}, FORMAT)))
