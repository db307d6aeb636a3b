"""Members of zip files read in place: `clips.zip::data/abc.mp4` is a file, `frames.zip::tvqa/abc` a folder.

Nothing is ever extracted to where the archive lies. A stored member is a window on the archive; a compressed one
is inflated once into a temporary file, since FFmpeg seeks. Each reading checks the member's checksum first, so that
a damaged archive is an error and no wrong picture. Members that point outside, are links, encrypted, or inflate
beyond reason are refused, whoever asks.
"""

import errno
import io
import lzma
import os
import stat
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from hookedvid.errors import DecodingError, VideoError
from hookedvid.values.files import open_regular
from hookedvid.video.refusals import NO_NAME

MARK = "::"  # between an archive and the member in it
# Video inflates by a few per cent, subtitles by 4; what inflates beyond these was made to fill a disk.
MAX_RATIO = 100
MAX_INFLATED = 8 << 30
SLACK = 1 << 20  # bytes that any member may inflate to
IN_MEMORY = 64 << 20  # a compressed member beyond this is inflated to disk
LARGEST_LIST = 64 << 20  # bytes of an archive's list of members, which is read whole: enough for 600,000 long names
# Bytes of one file, in an archive or not: an hour of 4K at 75 Mbit/s. Every byte is read for the hash, and a sparse
# file of terabytes takes no room on the disk that it comes from.
LARGEST = 32 << 30
READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)

_BROKEN = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, struct.error, ValueError,
)  # fmt: skip


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
    """An archive's list of files, from its end alone.

    Raises:
        VideoError: Where it is no whole zip file.
    """
    try:
        status = archive.stat()
        return _index(archive, (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    except _BROKEN as e:
        raise _broken(archive, "the archive cannot be read", e) from e


@lru_cache(maxsize=32)  # an archive of frames lists tens of thousands
def _index(archive: Path, written: tuple[int, ...]) -> Index:
    with _Bounded(archive) as file, zipfile.ZipFile(file) as zip_file:
        infos = [info for info in zip_file.infolist() if not info.is_dir()]
        size = file.size
    often = Counter(info.filename for info in infos)
    refused = {info.filename: why for info in infos if (why := _suspicious(info, often[info.filename], size))}
    return Index(MappingProxyType({info.filename: info for info in infos}), MappingProxyType(refused))


class _Bounded(io.BufferedReader):
    """An archive's bytes, of which no more are read at once than a list of members may have."""

    def __init__(self, path: Path):
        super().__init__(open_regular(path, VideoError).detach())
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """As a file's. Raises zipfile.BadZipFile beyond the bound."""
        left = max(0, self.size - self.tell())
        if (n := left if size is None or size < 0 else min(size, left)) > LARGEST_LIST:
            raise zipfile.BadZipFile(
                f"its list of members has {n:,} bytes, and more than {LARGEST_LIST:,} are not read"
            )
        return super().read(size)


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
    if info.file_size > LARGEST:
        return f"it has {info.file_size:,} bytes, and more than {LARGEST:,} are not read"
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

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._info.file_size

    def open(self) -> io.BufferedReader:
        """Its bytes from the start, seekable, until the archive is closed; checked when first opened.

        Raises:
            VideoError: Where they are not what the archive says.
        """
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
            self._file = _Bounded(path)
            self._zip = zipfile.ZipFile(self._file)
        except _BROKEN as e:
            raise _broken(path, "the archive cannot be read", e) from e

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (*self._inflated, self._zip, self._file):
            file.close()

    def get(self, name: str) -> Member | list[Member]:
        """The file of that name, or the files right below the folder of that name, in the archive's order.

        Raises:
            VideoError: Where there is neither, or a file that is not to be read.
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
            raise _broken(f"{self.path}{MARK}{info.filename}", "its bytes are not what the archive says", e) from e

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


def _refusal(source: object, found: str, todo: str) -> VideoError:
    return VideoError(f"cannot read {source}: {found}; {todo}")


def _broken(source: object, found: str, e: Exception) -> VideoError:
    """The error for what cannot be read of an archive; DecodingError where that is the machine's fault."""
    if isinstance(e, VideoError):
        return e
    if isinstance(e, OSError) and e.errno in NO_NAME:
        return _refusal(source, f"{found} ({e.strerror})", "check the path")
    if isinstance(e, OSError) and e.errno not in (None, errno.EINVAL):  # these two come of damaged bytes
        return DecodingError(str(_refusal(source, f"{found} ({e.strerror})", "mend that, and run it again")), "machine")
    return _refusal(source, f"{found} ({e})", "download it again")
