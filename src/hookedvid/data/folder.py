"""A dataset's folder as it was downloaded: files found by name, extracted or still in their zip files.

A zip file counts as if it were extracted where it lies. Nothing here writes, and nothing outside the folder is
read: a link that leads out is an error.
"""

import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from hookedvid.errors import DataError, VideoError
from hookedvid.video.archive import MARK, index


class Found(NamedTuple):
    """The name that a file was found under, where it is (relative to the folder), and why it is not read, if so."""

    name: str
    where: str
    trouble: str = ""


class _Member(NamedTuple):
    where: str
    trouble: str
    content: tuple[int, int]  # checksum and size


class Folder:
    """The files of a dataset's folder. `zips`: patterns of where archives lie, relative to it.

    `notes` says what is wrong with the archives.

    Raises:
        DataError: Where there is no such folder.
    """

    def __init__(self, path: str | os.PathLike[str], zips: Iterable[str] = ("*.zip",)):
        self.path = Path(path)
        if not self.path.is_dir():
            raise DataError(
                f"there is no folder {str(self.path)!r}; give the folder that the dataset was downloaded to"
            )
        self.zips = sorted({p for pattern in zips for p in self.path.glob(pattern)})
        self.notes: list[str] = []
        self._outside: list[str] = []
        real = self.path.resolve()
        # A snapshot in the hub's cache is made of links to the blobs beside it.
        self._inside = [real] + ([real.parents[1] / "blobs"] if real.parent.name == "snapshots" else [])

    def find(self, candidates: Iterable[str]) -> Found | None:
        """The first of these files or folders that is there: on disk, else in a zip file."""
        for name in candidates:
            path = self.path / name
            if os.path.lexists(path):
                self._stay_inside(path)
                if path.exists():
                    return Found(name, name)
            if member := self._members.get(name):
                return Found(name, member.where, member.trouble)
        return None

    def files(self, *patterns: str) -> list[Path]:
        """Files matching the first pattern that any file matches, sorted by name; links that lead out are refused."""
        for pattern in patterns:
            if paths := sorted(p for p in self.path.glob(pattern) if p.is_file() or p.is_symlink()):
                for path in paths:
                    self._stay_inside(path)
                self.check()
                return paths
        return []

    def check(self) -> None:
        """Raises DataError if any file that was asked for leads out of the folder."""
        if self._outside:
            lines = "\n  ".join(self._outside[:50])
            raise DataError(
                f"{len(self._outside)} links lead out of {self.path}; give the folder that they lead to, or put the "
                f"files in their place:\n  {lines}"
            )

    def _stay_inside(self, path: Path) -> None:
        try:
            links = [Path(e.path) for e in os.scandir(path) if e.is_symlink()] if path.is_dir() else []
            for one in (path, *links):
                real = one.resolve()
                if not any(real.is_relative_to(top) for top in self._inside):
                    self._outside.append(f"{str(one.relative_to(self.path))!r} leads to {str(real)!r}")
        except (OSError, RuntimeError) as e:
            self._outside.append(f"{str(path.relative_to(self.path))!r} cannot be followed ({e})")

    @cached_property
    def _members(self) -> Mapping[str, _Member]:
        """Files in archives, and the folders that files lie in, by the names they would have if extracted."""
        members: dict[str, _Member] = {}
        for archive in self.zips:
            self._stay_inside(archive)
            self.check()
            try:
                inside = index(archive)
            except VideoError as e:
                self.notes.append(str(e))
                continue
            rel = archive.relative_to(self.path).as_posix()
            if inside.refused:
                reasons = "; ".join(f"{name!r}: {why}" for name, why in list(inside.refused.items())[:3])
                self.notes.append(f"{rel}: {len(inside.refused)} members are not read ({reasons})")
            for name, info in inside.files.items():
                trouble = inside.refused.get(name, "")
                if trouble.startswith("its name"):
                    continue
                one = _Member(f"{rel}{MARK}{name}", trouble, (info.CRC, info.file_size))
                _add(members, archive, posixpath.dirname(rel), name, one)
        return members


def _add(members: dict[str, _Member], archive: Path, parent: str, name: str, one: _Member) -> None:
    """Under its name beside the archive, in a folder of the archive's name, and, for a flat copy, by its last part."""
    inner = posixpath.dirname(name)
    for top in (parent, posixpath.join(parent, archive.stem)):
        key = posixpath.join(top, name)
        if (other := members.setdefault(key, one)).content != one.content:
            members[key] = other._replace(trouble=f"{one.where} has the same name and another content")
        if inner:
            where = one.where[: -len(name)] + inner
            members.setdefault(posixpath.join(top, inner), _Member(where, "", (0, 0)))
    members.setdefault(posixpath.join(parent, posixpath.basename(name)), one)


def shards(paths: Iterable[Path]) -> list[Path]:
    """Parts `…-00000-of-00002` of a table, in order.

    Raises:
        DataError: If some are not there.
    """
    paths = sorted(paths)
    there: dict[int, set[int]] = defaultdict(set)
    for path in paths:
        if match := re.search(r"-(\d+)-of-(\d+)\.", path.name):
            there[int(match[2])].add(int(match[1]))
    for count, numbers in there.items():
        if left := sorted(set(range(min(count, 10_000))) - numbers):
            raise DataError(
                f"{paths[0].parent} has {len(numbers)} of {count} parts of its table; part {left[0]} is not there"
            )
    return paths
