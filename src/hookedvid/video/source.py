"""What a video is read from: a regular file, the files of a folder, members of a zip file; and the hash of its bytes.

Whatever is read of a video's files is opened here, so that nothing waits for a pipe and no device is read.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from hookedvid.errors import HookedVidError, VideoError
from hookedvid.values.files import open_regular
from hookedvid.video import archive
from hookedvid.video.archive import Archive, Member, split
from hookedvid.video.refusals import refusal, unreadable

Source = Path | Member  # a file, on its own or in an archive


class _NotRegular(HookedVidError):
    pass


def open_bytes(source: Source) -> BufferedReader:
    """A file's bytes from the start.

    Raises:
        VideoError: Where there is no regular file, or too large a one; DecodingError where the machine does not read
            it.
    """
    if isinstance(source, Member):
        return source.open()
    try:
        file = open_regular(source, _NotRegular)
    except _NotRegular:
        fault = "it is no regular file but a pipe, a device or a folder"
        raise refusal(source, fault, "give a video file, or a folder of frames") from None
    except (OSError, ValueError) as e:
        raise unreadable(source, e) from e
    size = os.fstat(file.fileno()).st_size
    if size > archive.LARGEST:
        file.close()
        fault = f"it has {size:,} bytes, and more than {archive.LARGEST:,} are not read"
        raise refusal(source, fault, "cut it into parts, or encode it smaller")
    return file


def n_bytes(source: Source) -> int:
    """How many bytes a file says it has, before any is read.

    Raises:
        OSError: Where there is none.
        ValueError: Where there is none.
    """
    return source.size if isinstance(source, Member) else os.path.getsize(source)


@contextmanager
def opened(source: str | os.PathLike[str]) -> Iterator[Source | list[Source]]:
    """A file to read from; or what a folder holds, in no order. Either may lie in a zip file.

    Raises:
        VideoError: As `archive` does, and for a folder that cannot be listed.
    """
    if (parts := split(source)) is not None:
        with Archive(parts[0]) as members:
            member = members.get(parts[1])
            yield member if isinstance(member, Member) else [*member]
        return
    path = Path(source)
    if not os.path.isdir(path):
        yield path
        return
    try:
        entries: list[Source] = list(path.iterdir())
    except OSError as e:
        raise unreadable(path, e) from e
    yield entries


def content_hash(source: str | os.PathLike[str]) -> str:
    """Hash of a file's name and bytes, or of those of a folder's files.

    The same whether they lie in a zip file or beside it.

    Raises:
        VideoError: For what cannot be read whole.
    """
    h = hashlib.sha256()
    with opened(source) as found:
        files = sorted(found, key=lambda file: file.name) if isinstance(found, list) else [found]
        for file in files:
            if isinstance(found, list) and isinstance(file, Path) and not os.path.isfile(file):
                continue  # whoever samples the folder refuses it
            try:
                with open_bytes(file) as read:
                    h.update(file.name.encode("utf-8", "surrogateescape"))
                    while chunk := read.read(1 << 20):
                        h.update(chunk)
            except OSError as e:
                raise unreadable(source, e) from e
    return h.hexdigest()[:16]


def video_hash(source: str | os.PathLike[str]) -> str:
    """The `content_hash`, empty where there is nothing that could be read whole."""
    try:
        return content_hash(source)
    except VideoError:
        return ""


def identity(source: str | os.PathLike[str]) -> Any:
    """Places, sizes and times of change: other ones once the source is written anew. None if it is not there."""
    parts = split(source)
    path = source if parts is None else parts[0]
    try:
        if os.path.isdir(path):
            return sorted((entry.name, *_stat(entry.stat())) for entry in os.scandir(path))
        return _stat(os.stat(path))
    except (OSError, ValueError):
        return None


def _stat(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
