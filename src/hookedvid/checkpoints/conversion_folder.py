"""The folder a conversion is written to: beside its destination until it is whole, and resumed only as the same."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from hookedvid.conversion import provenance
from hookedvid.conversion.provenance import Provenance, SourceFile
from hookedvid.conversion.shards import Reader
from hookedvid.errors import ConversionError, RunError
from hookedvid.values.files import locked

PARTIAL = ".partial"  # after the name of a folder that is still being written
READ = (".json", ".safetensors", ".model", ".txt", ".jinja")  # ends of the files that a conversion reads


def fingerprint(folder: Path) -> str:
    """Changes when a folder's place or any of its checkpoint files does."""
    files = sorted(p for p in folder.iterdir() if p.suffix in READ)
    seen = [str(folder.resolve()), *((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files)]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:12]


def check_free(dst: Path) -> None:
    """Raise ConversionError unless nothing stands at a destination, or an empty folder."""
    if dst.is_symlink() or (dst.exists() and not (dst.is_dir() and not any(dst.iterdir()))):
        raise ConversionError(f"{dst} exists already; choose another folder, or remove it")


@contextmanager
def partial_folder(dst: Path) -> Iterator[Path]:
    """A folder beside `dst` that takes its name at the end; kept when interrupted, removed on an error."""
    dst = dst.absolute()
    partial = dst.with_name(dst.name + PARTIAL)
    dst.parent.mkdir(parents=True, exist_ok=True)
    lock = dst.with_name(f".{dst.name}.lock")
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, 0))
        except RunError:
            raise ConversionError(f"another process is writing {dst}; wait for it to end") from None
        held.callback(lock.unlink, missing_ok=True)
        try:
            check_free(dst)
            partial.mkdir(exist_ok=True)
            yield partial
            if dst.is_dir():
                dst.rmdir()
            partial.rename(dst)
        except OSError as e:
            shutil.rmtree(partial, ignore_errors=True)
            raise ConversionError(f"writing {dst} failed: {e}") from e
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def resumed(origin: Provenance, source: Path, config: bytes, partial: Path) -> Provenance:
    """What an interrupted run of the same conversion has finished of it; all else in its folder is removed.

    A file counts as finished only if the source's file still has the sha256 that was converted, and ours the tensors
    that were written.

    Args:
        origin: The conversion as it is to be now.
        source: The folder that is converted.
        config: The bytes of its config.json.
        partial: What the interrupted run left, perhaps nothing.
    """
    record, plan = partial / provenance.SOURCE_CONFIG, origin
    if (partial / provenance.FILE).is_file() and record.is_file() and record.read_bytes() == config:
        before = Provenance.load(partial)
        if before.plan() == origin:
            plan = _verified(before, source, partial)
    finished = {name for name, file in plan.files.items() if file.sha256}
    for path in partial.iterdir():
        if path.name not in finished:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return plan


def _verified(before: Provenance, source: Path, partial: Path) -> Provenance:
    files: dict[str, SourceFile] = {}
    tensors: dict[str, str] = {}
    for name, file in before.files.items():
        hashes = _hashes(partial / name) if file.sha256 and _sha256(source / name) == file.sha256 else None
        same = hashes is not None and all(before.tensors.get(n) == h for n, h in hashes.items())
        files[name] = file if same else replace(file, sha256="")
        tensors |= hashes if hashes is not None and same else {}
    return replace(before, files=files, tensors=tensors)


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _hashes(path: Path) -> dict[str, str] | None:
    """sha256 of each of our tensors in a file, those carried along for export left out; None if it is no whole file."""
    out = {}
    try:
        with Reader(path) as reader:
            for entry in reader.header.entries:
                digest = hashlib.sha256()
                for piece in reader.chunks(entry):
                    digest.update(piece)
                if not entry.name.startswith(provenance.UNUSED):
                    out[entry.name] = digest.hexdigest()
    except (ConversionError, OSError):
        return None
    return out
