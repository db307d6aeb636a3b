"""Files are written beside their place and renamed there whole; only regular files of a stated size are read."""

import fcntl
import os
import stat
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path

from hookedvid.errors import DataError, HookedVidError, RunError

PART = ".part-"  # begins the name of a file that is still being written
LOOK = 0.1  # seconds between two tries to have a lock


@contextmanager
def written(path: Path, mode: int = 0o666) -> Generator[Path]:
    """A new empty file of this caller alone to write to; it takes `path`'s place when the block ends well.

    It lies in the folder of `path`, with its suffix. Nobody ever sees `path` half written. A link at `path` is
    replaced, not followed. When the block raises, `path` is as it was.

    Args:
        path: where the file shall stand.
        mode: permissions of the file, less the process's umask.
    """
    part = path.with_name(f"{PART}{uuid.uuid4().hex}{path.suffix}")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # a full disk may say so only now
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a whole file; see `written`."""
    with written(path, mode) as part:
        part.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole file of UTF-8 text; see `written`."""
    write_bytes(path, text.encode("utf-8"))


def is_plain_name(name: str) -> bool:
    """Whether a text names a file of a folder, on any system: no way out of it, no folder within, nothing empty."""
    return name not in ("", ".", "..") and not any(c in "/\\:\0" for c in name)


def write_if_other(path: Path, data: bytes) -> None:
    """Write a whole file, unless it holds just that: whoever has read or hashed it is not disturbed."""
    try:
        if read_regular(path, len(data)) == data:
            return
    except (OSError, DataError):
        pass  # none there, a longer one, or no file: it is replaced
    write_bytes(path, data)


def take_lock(descriptor: int) -> bool:
    """Whether this process has the lock of an open file now: one descriptor has it, until that is closed.

    The system lets go of it when the process ends, however. False where another has it, or has removed the file.

    Raises:
        OSError: Where the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return os.fstat(descriptor).st_nlink > 0


def open_lock(path: Path, flags: int = os.O_CREAT) -> int:
    """The descriptor of a lock's file, which is made unless `flags` say otherwise; a link is not followed."""
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o666)


@contextmanager
def locked(path: Path, seconds: float | int) -> Generator[None]:
    """Hold the lock of a file, which is made where there is none, and stays.

    On file systems without locks there is nothing to wait for.

    Args:
        path: the lock's file.
        seconds: after which waiting for another process ends.

    Raises:
        OSError: where the file cannot be made; a link at `path` is not followed.
        RunError: where another process has the lock all that time.
    """
    end = time.monotonic() + seconds
    while True:
        descriptor = open_lock(path)
        try:
            free = take_lock(descriptor)
        except OSError:
            free = True
        if free:
            break
        os.close(descriptor)
        if time.monotonic() > end:
            raise RunError(f"another process holds {path} for more than {seconds:g} s; wait for it, or end it")
        time.sleep(LOOK)
    try:
        yield
    finally:
        os.close(descriptor)


def open_regular(path: Path, error: type[HookedVidError] = DataError) -> BufferedReader:
    """Open a regular file for reading; a pipe, device or folder raises `error` without waiting for anybody.

    Raises:
        OSError: as `open` does.
        HookedVidError: `error`, where `path` is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path} is no regular file but a pipe, device or folder; give a file")
    # Not os.fdopen, whose files have a number for a name: FFmpeg looks at a name's ending.
    return BufferedReader(FileIO(os.fspath(path), opener=lambda _path, _flags: descriptor))


def read_regular(path: Path, limit: int, error: type[HookedVidError] = DataError) -> bytes:
    """A regular file's bytes.

    Args:
        path: what is read.
        limit: bytes it may have; nothing is read of a file that has more.
        error: what is raised for a file that is none, or too large.
    """
    with open_regular(path, error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise error(f"{path} has {size:,} bytes, more than the {limit:,} that such a file may have")
        return file.read(limit)
