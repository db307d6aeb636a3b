"""Converting and exporting file by file and tensor by tensor: no more than two copies of one tensor in memory."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from pathlib import Path

import torch
from torch import Tensor

from hookedvid.conversion.lines import Ignored, Line, Rule
from hookedvid.conversion.provenance import UNUSED
from hookedvid.conversion.rules import apply, names_of, undo
from hookedvid.conversion.shards import Entry, Header, Reader, Writer, as_bytes, as_tensor, layout, writing
from hookedvid.errors import ConversionError

Progress = Callable[[int], object]  # told the bytes that were read since the last call
Lines = Mapping[str, Line]


def target(header: Header, lines: Lines, dtype: torch.dtype | None) -> Header:
    """The header of the file one of theirs becomes: our tensors in the order of theirs."""
    tensors = []
    for e in header.entries:
        line = lines[e.name]
        if isinstance(line, Ignored):
            tensors.append((UNUSED + e.name, e.dtype, e.shape))
            continue
        parts = apply(line, torch.empty(e.shape, dtype=e.dtype, device="meta"))
        tensors += [(name, _kept(e.dtype, dtype), tuple(t.shape)) for name, t in parts.items()]
    return layout(tensors, {"format": "pt"})


def _kept(stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and stored.is_floating_point else stored


def convert_file(
    source: Path, destination: Path, lines: Lines, dtype: torch.dtype | None, progress: Progress
) -> tuple[str, dict[str, str]]:
    """Write one of their files as ours.

    Returns the source file's sha256 and those of our tensors.

    Raises:
        ConversionError: For a tensor that holds NaN or infinity, before or after its cast.
    """
    hashes: dict[str, str] = {}
    with ThreadPoolExecutor(2) as pool, Reader(source) as reader:
        whole = hashlib.sha256(reader.start)
        with writing(destination, target(reader.header, lines, dtype)) as writer:
            for entry in reader.header.entries:
                line = lines[entry.name]
                plain = isinstance(line, Ignored) or (isinstance(line, Rule) and not line.axes)
                digests = [hashlib.sha256() for _ in names_of(line)] or [hashlib.sha256()]
                for piece in reader.chunks(entry, whole=not plain):
                    reading = pool.submit(whole.update, piece)
                    parts = _parts(piece, entry, line, dtype if not isinstance(line, Ignored) else None)
                    _write(parts, digests, writer, pool)
                    wait([reading])
                    progress(len(piece))
                hashes |= {n: d.hexdigest() for n, d in zip(names_of(line), digests, strict=False)}
    return whole.hexdigest(), hashes


def _parts(piece: memoryview, entry: Entry, line: Line, dtype: torch.dtype | None) -> list[Tensor]:
    """Our tensors of one whole tensor of theirs, or of a stretch of one that keeps its shape."""
    flat = as_tensor(piece, entry.dtype)
    if isinstance(line, Ignored):
        return [flat]
    _check_finite(flat, entry, "")
    keeps = isinstance(line, Rule) and not line.axes
    parts = [flat] if keeps else list(apply(line, flat.view(entry.shape)).values())
    if dtype is None or dtype == entry.dtype or not entry.dtype.is_floating_point:
        return parts
    cast = [t.to(dtype) for t in parts]
    for t in cast:
        _check_finite(t, entry, f" in {str(dtype).removeprefix('torch.')}: choose a wider dtype")
    return cast


def _check_finite(t: Tensor, entry: Entry, when: str) -> None:
    # The extremes of a tensor with a NaN are NaN, so two numbers tell of all.
    if t.is_floating_point() and t.numel() and not all(x.isfinite() for x in t.aminmax()):
        raise ConversionError(
            f"tensor {entry.name!r} {list(entry.shape)} holds NaN or infinity{when or '; its file is damaged'}"
        )


def _write(parts: list[Tensor], digests: list, writer: Writer, pool: Executor) -> None:
    data = [as_bytes(t) for t in parts]
    hashing = [pool.submit(d.update, b) for d, b in zip(digests, data, strict=True)]
    for b in data:
        writer.write(b)
    wait(hashing)


def export_file(
    source: Path, destination: Path, header: Header, lines: Lines, hashes: Mapping[str, str], progress: Progress
) -> str:
    """Write one of our files as theirs, under the header it came from; returns its sha256.

    Args:
        hashes: sha256 of our tensors.

    Raises:
        ConversionError: For a tensor that is not what was converted.
    """
    with Reader(source) as reader, writing(destination, header) as writer:
        whole = hashlib.sha256(writer.start)
        ours = iter(reader.header.entries)
        for entry in header.entries:
            line = lines[entry.name]
            for data in _theirs(reader, ours, line, hashes):
                whole.update(data)
                writer.write(data)
                progress(len(data))
    return whole.hexdigest()


def _theirs(reader: Reader, ours: Iterator[Entry], line: Line, hashes: Mapping[str, str]) -> Iterator[memoryview]:
    """The bytes of one of their tensors from the next of ours."""
    if isinstance(line, Ignored) or (isinstance(line, Rule) and not line.axes):
        entry, digest = next(ours), hashlib.sha256()
        for piece in reader.chunks(entry):
            digest.update(piece)
            yield piece
        _check_hash(reader, entry, digest.hexdigest(), hashes)
        return
    parts = {}
    for _ in names_of(line):
        entry = next(ours)
        data = bytearray().join(reader.chunks(entry, whole=True))
        _check_hash(reader, entry, hashlib.sha256(data).hexdigest(), hashes)
        parts[entry.name] = as_tensor(data, entry.dtype).view(entry.shape)
    yield as_bytes(undo(line, parts))


def _check_hash(reader: Reader, entry: Entry, found: str, hashes: Mapping[str, str]) -> None:
    if hashes.get(entry.name, found) != found:
        raise ConversionError(
            f"{reader.path}: tensor {entry.name!r} is not what was converted (sha256 {found[:12]}…); convert it again"
        )
