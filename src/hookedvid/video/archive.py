"""Members of zip files read in place: `clips.zip::data/abc.mp4` is a file, `frames.zip::tvqa/abc` a folder.

Nothing is ever extracted to where the archive lies. A stored member is a window on the archive; a compressed one
is inflated once into a temporary file, since FFmpeg seeks. Each reading checks the member's checksum first, so that
a damaged archive is an error and no wrong picture. Members that point outside, are links, encrypted, or inflate
beyond reason are refused, whoever asks.
"""

import io
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from hookedvid.errors import VideoError

MARK = "::"  # between an archive and the member in it
# Video inflates by a few per cent, subtitles by 4; what inflates beyond these was made to fill a disk.
MAX_RATIO = 100
MAX_INFLATED = 8 << 30
SLACK = 1 << 20  # bytes that any member may inflate to
IN_MEMORY = 64 << 20  # a compressed member beyond this is inflated to disk
READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError, struct.error)


def split(source: str | os.PathLike[str]) -> tuple[Path, str] | None:
    """The archive and the member that a source names; None where it is a plain path."""
    text = os.fspath(source)
    at = text.lower().find(f".zip{MARK}")
    if at < 0 or os.path.exists(text):
        return None
    return Path(text[: at + 4]), text[at + 4 + len(MARK) :]


def unsafe(name: str) -> str:
    """Why a path from a file of somebody else's may not be used below a folder of ours; empty where it may."""
    if not name.strip() or not name.isprintable():
        return "is empty or has characters that do not print"
    if "\\" in name or PureWindowsPath(name).drive or PurePosixPath(name).is_absolute():
        return "is no relative path with forward slashes"
    if ".." in name.split("/"):
        return "points outside its folder"
    return f"has {MARK!r} in it, which stands between an archive and its members" if MARK in name else ""


class Index(NamedTuple):
    """What an archive holds: files by name, and for those that are not to be read, the reason."""

    files: Mapping[str, zipfile.ZipInfo]
    refused: Mapping[str, str]


def index(archive: Path) -> Index:
    """An archive's list of files, from its end alone. Raises VideoError where it is no whole zip file."""
    try:
        found = archive.stat()
        return _index(archive, found.st_size, found.st_mtime_ns)
    except _BROKEN as e:
        todo = "download it again" if archive.exists() else "check the path"
        raise _refusal(archive, f"the archive cannot be read ({e})", todo) from e


@lru_cache(maxsize=32)  # an archive of frames lists tens of thousands
def _index(archive: Path, size: int, mtime_ns: int) -> Index:
    with zipfile.ZipFile(archive) as file:
        infos = [info for info in file.infolist() if not info.is_dir()]
    often = Counter(info.filename for info in infos)
    refused = {info.filename: why for info in infos if (why := _suspicious(info, often[info.filename], size))}
    return Index(MappingProxyType({info.filename: info for info in infos}), MappingProxyType(refused))


def _suspicious(info: zipfile.ZipInfo, often: int, size: int) -> str:
    mode = info.external_attr >> 16
    if why := unsafe(info.orig_filename):  # as it stands in the archive, not as Python mends it
        return f"its name {why}"
    if often > 1:
        return f"{often} members have this name"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "it is a link" if stat.S_ISLNK(mode) else "it is no plain file"
    if info.flag_bits & 1:
        return "it is encrypted"
    if info.compress_type not in READABLE:
        return f"it is compressed by method {info.compress_type}, which Python does not read"
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        return f"it says that it is {info.file_size} bytes, stored as {info.compress_size}"
    if info.compress_size > size:
        return f"it says that it takes {info.compress_size} bytes, in an archive of {size}"
    if info.compress_type != zipfile.ZIP_STORED and info.file_size > min(
        MAX_INFLATED, SLACK + MAX_RATIO * info.compress_size
    ):
        return f"{info.compress_size} bytes would inflate to {info.file_size}"
    return ""


class Member:
    """A file in an open archive, with as much of `pathlib.Path` as reading needs."""

    def __init__(self, archive: "Archive", info: zipfile.ZipInfo):
        self._archive, self._info = archive, info
        self._bytes: _Window | None = None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self._info.filename).name

    @property
    def suffix(self) -> str:
        """What its name ends in, with the dot."""
        return PurePosixPath(self._info.filename).suffix

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """Its bytes from the start, seekable, until the archive is closed; checked when first opened.

        Raises VideoError where they are not what the archive says.
        """
        assert mode == "rb"
        if self._bytes is None:
            self._bytes = self._archive.window(self._info)
        return io.BufferedReader(_Stream(self._bytes, self.name))

    def __str__(self) -> str:
        return f"{self._archive.path}{MARK}{self._info.filename}"


class Archive:
    """A zip file, open for reading its members in place."""

    def __init__(self, path: Path):
        self.path, self.index = path, index(path)
        self._inflated: list[BinaryIO] = []
        try:
            self._zip = zipfile.ZipFile(path)
            self._file = path.open("rb")
        except _BROKEN as e:
            raise _refusal(path, f"the archive cannot be read ({e})", "download it again") from e

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (*self._inflated, self._file, self._zip):
            file.close()

    def get(self, name: str) -> Member | list[Member]:
        """The file of that name, or the files right below the folder of that name, in the archive's order.

        Raises VideoError where there is neither, or a file that is not to be read.
        """
        prefix = name.rstrip("/") + "/"
        inside = [n for n in self.index.files if n.startswith(prefix) and "/" not in n[len(prefix) :]]
        names = [name] if name in self.index.files else inside
        for one in [name, *names]:
            if why := self.index.refused.get(one):
                raise _refusal(f"{self.path}{MARK}{one}", f"{why}; members like that are not read", "get a clean copy")
        if not names:
            raise _refusal(f"{self.path}{MARK}{name}", "the archive has no such member", "check the name")
        members = [Member(self, self.index.files[n]) for n in names]
        return members[0] if names == [name] else members

    def window(self, info: zipfile.ZipInfo) -> "_Window":
        """Where a member's bytes are, after reading them all once: that is what checks them."""
        try:
            with self._zip.open(info) as read:
                if info.compress_type == zipfile.ZIP_STORED:
                    while read.read(1 << 20):
                        pass
                    return _Window(self._file, self._start(info), info.file_size)
                inflated = tempfile.SpooledTemporaryFile(IN_MEMORY, prefix="hookedvid-")  # noqa: SIM115  # closed above
                self._inflated.append(inflated)  # pyright: ignore[reportArgumentType]
                while chunk := read.read(1 << 20):
                    inflated.write(chunk)
                return _Window(inflated, 0, info.file_size)  # pyright: ignore[reportArgumentType]
        except _BROKEN as e:
            where = f"{self.path}{MARK}{info.filename}"
            raise _refusal(where, f"its bytes are not what the archive says ({e})", "download the archive again") from e

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Where the bytes of a stored member begin: after its own header, of 30 bytes, its name and extra field."""
        self._file.seek(info.header_offset + 26)
        return info.header_offset + 30 + sum(struct.unpack("<HH", self._file.read(4)))


class _Window(NamedTuple):
    file: BinaryIO
    start: int
    size: int


class _Stream(io.RawIOBase):
    """A window read as a file of its own; several may share the file below."""

    def __init__(self, window: _Window, name: str):
        self._window, self._at, self.name = window, 0, name  # FFmpeg looks at the name for the format

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._window.size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        file, start, size = self._window
        file.seek(start + self._at)
        data = file.read(max(0, min(len(buffer), size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@contextmanager
def opened(source: str | os.PathLike[str]) -> Iterator[Member | list[Member] | Path]:
    """A source to read from: a path as it is, a member or a folder of an archive. Raises VideoError as above."""
    if (parts := split(source)) is None:
        yield Path(source)
        return
    with Archive(parts[0]) as archive:
        yield archive.get(parts[1])


def _refusal(source: object, found: str, todo: str) -> VideoError:
    return VideoError(f"cannot read {source}: {found}; {todo}")
