"""The files that show a study's rows: those of one study in a folder, those of others under names of their own."""

import json
import os
import re
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hookedvid.errors import DataError, RunError
from hookedvid.study.rows import unsealed
from hookedvid.values.files import read_regular

MANIFEST = "study.json"
FOLDERS = ("rescored", "submissions")  # what is made of a presentation later
EARLIER = "earlier"
LARGEST = 1 << 30  # bytes of a manifest; one of a million rows has some 40 MB


def manifest_fields(folder: Path) -> dict[str, Any]:
    """What the folder's manifest says.

    Raises:
        DataError: Where there is none, or one that is not as it was written.
    """
    path = folder / MANIFEST
    try:
        data = read_regular(path, LARGEST)
    except OSError as e:
        raise DataError(
            f"{folder} holds no finished study ({path}: {e.strerror}); run `hookedvid study --out {folder}`"
        ) from e
    try:
        fields = json.loads(unsealed(data) or b"")
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise DataError(
            f"{path} is damaged, or of a version that wrote no checksum into it; run the study's command once more: "
            "rows that are whole are not run again"
        )
    return cast(dict[str, Any], fields)


def set_aside(folder: Path, name: str, presented: Collection[str]) -> Path | None:
    """Move what shows another study than the one of this name; where it is now, None if there is nothing of the kind.

    The manifest is moved last, so that a move which was cut short goes on. Rows stay: they say whose they are.

    Args:
        presented: Names of the files that a presentation writes.
    """
    manifest = folder / MANIFEST
    try:
        there = str(manifest_fields(folder)["name"])
    except DataError:
        there = ""
    if not re.fullmatch("[0-9a-f]{16}", there):  # nothing else may become a path
        there = f"unnamed-{manifest.lstat().st_mtime_ns:x}" if os.path.lexists(manifest) else "unnamed"
    paths = [folder / file for file in presented]
    paths += [path for inside in FOLDERS if not (folder / inside).is_symlink() for path in (folder / inside).glob("*")]
    paths = [path for path in (*paths, manifest) if path.is_file() or path.is_symlink()]
    if there == name or not paths:
        return None
    aside = own_folder(own_folder(folder / EARLIER) / there)
    for path in paths:
        parent = aside if path.parent == folder else own_folder(aside / path.parent.name)
        path.replace(parent / path.name)
    return aside


@contextmanager
def renewed(folder: Path, presented: Collection[str]) -> Generator[None]:
    """Files of a presentation, by name, that the block does not write anew are removed once it ends well.

    Raises:
        RunError: Where something cannot be written; files of before then stay as they are.
    """
    before = {path: _written(path) for path in (folder / name for name in presented) if os.path.lexists(path)}
    try:
        yield
    except BrokenPipeError:  # nobody reads what is printed any more
        raise
    except OSError as e:
        raise RunError(
            f"cannot write results in {folder} ({e.strerror or e}); every row is kept: make room and run "
            f"`hookedvid plot {folder}`"
        ) from e
    for path, at in before.items():
        if os.path.lexists(path) and _written(path) == at:
            path.unlink()


def own_folder(path: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        DataError: For a link: it may lead to files that are none of ours.
    """
    if path.is_symlink():
        raise DataError(f"{path} is a link; put a folder in its place, or give --out another folder")
    path.mkdir(exist_ok=True)
    return path


def _written(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns
