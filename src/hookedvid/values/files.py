"""Files are written beside their place and renamed there whole; only regular files of a stated size are read."""

import errno
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


@contextmanager
def locked(path: Path, seconds: float | int) -> Generator[None]:
    """Hold the lock of a file, which one process has at a time; it is let go of when that process ends, however.

    The file is made where there is none, and stays. On platforms and file systems without locks there is nothing to
    wait for.

    Args:
        path: the lock's file.
        seconds: after which waiting for another process ends.

    Raises:
        OSError: where the file cannot be made; a link at `path` is not followed.
        RunError: where another process has the lock all that time.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    end = time.monotonic() + seconds
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as e:
                if e.errno not in (errno.EAGAIN, errno.EACCES):
                    break
            if time.monotonic() > end:
                raise RunError(f"another process holds {path} for more than {seconds:g} s; wait for it, or end it")
            time.sleep(LOOK)
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
