"""safetensors files read and written as streams, so that a checkpoint of any size passes through little memory.

The safetensors package maps whole files into memory, which counts every page it has read as the process's own
and cannot write a file tensor by tensor. The format itself is small: eight bytes with the header's length, a
JSON header naming each tensor's type, shape and place, the tensors' bytes.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hookedvid.conversion.packed import refuse_type
from hookedvid.conversion.pickles import pickle_message
from hookedvid.errors import ConversionError
from hookedvid.values.files import is_plain_name, read_regular, written

CHUNK = 32 << 20  # bytes read at a time
PIECE = 1 << 20  # bytes compared at a time
MAX_HEADER = 100 << 20  # the format's own limit
INDEX = "model.safetensors.index.json"

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its name, type, shape and first byte, counted from the end of the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """A file's tensors in the order of their bytes. `length` counts the bytes before the first of them."""

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    length: int


def read_header(path: Path) -> Header:
    """The header of a safetensors file, checked against the file's size.

    Raises:
        ConversionError: If damaged.
    """
    total = path.stat().st_size
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if total < 8 or length > min(MAX_HEADER, total - 8):
            raise _damaged(path, f"its header should take {length} bytes of a file of {total}")
        text = f.read(length)
    try:
        fields: dict[str, Any] = json.loads(text)
        metadata = {str(k): str(v) for k, v in fields.pop("__metadata__", {}).items()}
        for name, described in fields.items():
            refuse_type(name, described["dtype"])
        entries = sorted((_entry(n, d) for n, d in fields.items()), key=lambda e: (e.start, e.size))
    except ConversionError as e:
        raise ConversionError(f"{path}: {e}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise _damaged(path, f"its header cannot be read: {e!r}") from e
    place = 0
    for e in entries:
        if e.start != place:
            raise _damaged(path, f"tensor {e.name!r} starts at byte {e.start}, not at {place}")
        place += e.size
    if 8 + length + place != total:
        raise _damaged(path, f"it should have {8 + length + place} bytes and has {total}")
    return Header(tuple(entries), metadata, 8 + length)


def _entry(name: str, described: Mapping[str, Any]) -> Entry:
    if described["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name!r} has the type {described['dtype']!r}, known are {', '.join(DTYPES)}")
    start, stop = described["data_offsets"]
    entry = Entry(name, DTYPES[described["dtype"]], tuple(map(int, described["shape"])), int(start))
    if stop - start != entry.size:
        raise ValueError(f"tensor {name!r} {list(entry.shape)} takes {stop - start} bytes, not {entry.size}")
    return entry


def _damaged(path: Path, why: str) -> ConversionError:
    return ConversionError(f"{path} is truncated or damaged: {why}; download or copy it again")


def layout(tensors: Iterable[tuple[str, torch.dtype, Sequence[int]]], metadata: Mapping[str, str]) -> Header:
    """The header of a file that will hold these tensors in this order."""
    entries, place = [], 0
    for name, dtype, shape in tensors:
        entries.append(Entry(name, dtype, tuple(shape), place))
        place += entries[-1].size
    return Header(tuple(entries), metadata, len(encoded(entries, metadata)))


def encoded(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the first tensor, as the safetensors package itself writes them."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for e in entries:
        offsets = [e.start, e.start + e.size]
        fields[e.name] = {"dtype": CODES[e.dtype], "shape": list(e.shape), "data_offsets": offsets}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class Reader:
    """A file's tensors, each read once and in order."""

    def __init__(self, path: Path):
        self.path = path
        self.header = read_header(path)
        self._file = path.open("rb", buffering=0)
        self._buffer = bytearray(CHUNK)
        self.start = self._file.read(self.header.length)  # the header's bytes

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def chunks(self, entry: Entry, whole: bool = False) -> Iterator[memoryview]:
        """An entry's bytes, in pieces of at most `CHUNK`, or as one piece.

        A piece is good until the next is asked for: all but whole ones share one buffer.
        """
        left = entry.size
        while left:
            piece = memoryview(bytearray(left) if whole else self._buffer)[: min(left, left if whole else CHUNK)]
            self._read_ahead()
            done = 0
            while done < len(piece):
                got = self._file.readinto(piece[done:])
                if not got:
                    raise _damaged(self.path, f"it ends within tensor {entry.name!r}")
                done += got
            left -= len(piece)
            yield piece

    def _read_ahead(self) -> None:
        """Have the disk fetch what comes next while this piece is worked on, where the system can."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), self._file.tell(), 3 * CHUNK, os.POSIX_FADV_WILLNEED)


class Writer:
    """A file whose tensors are written one after the other; made by `writing`."""

    def __init__(self, file: BinaryIO, header: Header):
        self._file = file
        self.start = encoded(header.entries, header.metadata)  # the header's bytes
        self.size = len(self.start) + sum(e.size for e in header.entries)
        self.write(self.start)

    def write(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        left = memoryview(data)
        while len(left):
            left = left[self._file.write(left) :]


@contextmanager
def writing(path: Path, header: Header) -> Iterator[Writer]:
    """Write a file tensor by tensor; its name appears when all are there."""
    with written(path) as part, part.open("r+b", buffering=0) as file:
        writer = Writer(file, header)
        yield writer
        assert file.tell() == writer.size, f"{path}: wrote {file.tell()} of {writer.size} bytes"


def as_tensor(data: bytearray | memoryview, dtype: torch.dtype) -> torch.Tensor:
    """Bytes as a flat tensor that shares their memory."""
    return torch.frombuffer(data, dtype=dtype) if len(data) else torch.empty(0, dtype=dtype)


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes in order, without a copy where it is contiguous."""
    flat = tensor.contiguous().flatten()
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


@dataclass(frozen=True)
class Shards:
    """The safetensors files of a checkpoint folder, their headers read and checked against its index."""

    folder: Path
    headers: Mapping[str, Header]

    @property
    def aliases(self) -> dict[str, str]:
        """Names that stand for another tensor; see `aliases_of`."""
        return aliases_of(self.headers.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's shape, that of a shared one under each of its names."""
        return shapes_of(self.headers.values())

    def same_bits(self, one: str, other: str) -> bool:
        """Whether two tensors are equal bit for bit; nothing is read beyond the first piece that differs."""
        places = {e.name: (self.folder / f, h, e) for f, h in self.headers.items() for e in h.entries}
        (a, ha, first), (b, hb, second) = (places[self.aliases.get(n, n)] for n in (one, other))
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        with a.open("rb") as x, b.open("rb") as y:
            x.seek(ha.length + first.start)
            y.seek(hb.length + second.start)
            pieces = (min(PIECE, first.size - done) for done in range(0, first.size, PIECE))
            return all(x.read(n) == y.read(n) for n in pieces)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(h.length + sum(e.size for e in h.entries) for h in self.headers.values())


def aliases_of(headers: Iterable[Header]) -> dict[str, str]:
    """Names that stand for another tensor in the files, as safetensors' `save_model` notes tensors that are shared.

    One step is followed: a name that stands for a name that is itself none is left out.
    """
    headers = list(headers)
    names = {e.name for h in headers for e in h.entries}
    noted = {k: v for h in headers for k, v in h.metadata.items()}
    return {alias: name for alias, name in noted.items() if alias not in names and name in names}


def shapes_of(headers: Iterable[Header]) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape, that of a shared one under each of its names."""
    headers = list(headers)
    stored = {e.name: e.shape for h in headers for e in h.entries}
    return stored | {alias: stored[name] for alias, name in aliases_of(headers).items()}


def open_shards(folder: Path) -> Shards:
    """The model's files of a folder, by its index where it has one.

    Raises:
        ConversionError: For missing or damaged files and an index that does not tell what they hold.
    """
    index = folder / INDEX
    names = sorted(set(_index(index).values())) if index.is_file() else _unindexed(folder)
    if missing := [n for n in names if not (folder / n).is_file()]:
        raise ConversionError(f"files of this checkpoint are not in {folder}: {', '.join(missing)}; download them too")
    shards = Shards(folder, {n: read_header(folder / n) for n in names})
    seen: dict[str, str] = {}
    for file, header in shards.headers.items():
        for e in header.entries:
            if e.name in seen:
                raise ConversionError(f"{folder}: tensor {e.name!r} is in both {seen[e.name]} and {file}")
            seen[e.name] = file
    if index.is_file() and (wrong := _disagreements(_index(index), seen)):
        raise ConversionError(f"{index} does not tell what the files hold: {'; '.join(wrong)}; download it again")
    return shards


def _unindexed(folder: Path) -> list[str]:
    """The names of the model's files where no index tells them: model.safetensors, or a full set of shards."""
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    matches = [
        m for p in folder.glob("*.safetensors") if (m := re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.safetensors", p.name))
    ]
    sets = {(m[1], m[2]) for m in matches}
    if len(sets) != 1:
        raise ConversionError(f"{folder} holds no model.safetensors and no one set of shards{_pickles(folder)}")
    name, count = sets.pop()
    return [f"{name}-{i:05d}-of-{count}.safetensors" for i in range(1, int(count) + 1)]


def _pickles(folder: Path) -> str:
    names = sorted(p.name for end in ("*.bin", "*.pt", "*.pth") for p in folder.glob(end))
    return f". {pickle_message(folder, names)}" if names else ""


def _index(path: Path) -> dict[str, str]:
    try:
        names = json.loads(read_regular(path, MAX_HEADER, ConversionError))["weight_map"]
        if not all(isinstance(n, str) and is_plain_name(n) for n in names.values()):
            raise ValueError("weight_map names something that is no file of this folder")
        return names
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ConversionError(f"{path} cannot be read: {e!r}; download it again") from e


def _disagreements(index: Mapping[str, str], places: Mapping[str, str]) -> list[str]:
    problems = [
        f"{n!r} is said to be in {f} but is in {places.get(n, 'none')}" for n, f in index.items() if places.get(n) != f
    ]
    problems += [f"{n!r} of {f} is not in the index" for n, f in places.items() if n not in index]
    return problems[:8] + ([f"… {len(problems) - 8} more"] if len(problems) > 8 else [])
