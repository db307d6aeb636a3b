"""Folders for files that pass between processes, and the clearing away of those that a killed run left behind."""

import json
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from hookedvid.values.files import open_lock, take_lock, write_text

PREFIX = "hookedvid-scratch-"
LOCK = "lock"  # held as long as the folder's owner lives; the system lets go of it, however that ends
CLAIMED = "claimed"  # names a folder that another program made for the owner, whose processes and files end with it
UNLOCKED = 3600  # seconds after which an empty folder without a lock is nobody's


class Scratch:
    """A new folder of this process alone, in the system's folder for such. Others that nobody holds are cleared away.

    At most one folder stays of a process that is killed together with all that it has started, and only until the next
    is made.

    Raises:
        OSError: Where there is no room.
    """

    def __init__(self) -> None:
        clear()
        while True:  # whoever clears away may come between a folder's making and its locking
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._lock = open_lock(self.folder / LOCK)
            if take_lock(self._lock):
                break
            os.close(self._lock)

    def claim(self, folder: Path) -> None:
        """End what another program does and keeps in its `folder` once this process has ended, if by a kill."""
        write_text(self.folder / CLAIMED, json.dumps([str(folder.absolute()), folder.stat().st_ino]))

    def close(self) -> None:
        """Remove the folder and what was claimed."""
        _remove(self.folder)
        os.close(self._lock)


def clear() -> None:
    """Remove the user's folders of processes that have ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            status = folder.lstat()
            if not folder.is_dir() or folder.is_symlink() or status.st_uid != os.getuid():
                continue
            if not (folder / LOCK).exists() and time.time() - status.st_mtime > UNLOCKED:
                folder.rmdir()  # what has anything in it was not left by us
                continue
            lock = open_lock(folder / LOCK, flags=0)
        except OSError:
            continue
        with open(lock, "rb"), suppress(OSError):  # of a file system without locks, where nobody's stay
            if take_lock(lock):
                _remove(folder)


def _remove(folder: Path) -> None:
    if other := _claimed(folder):
        _end(other)
        shutil.rmtree(other, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _claimed(folder: Path) -> Path | None:
    """The folder that was claimed, if it is still the very one and the user's; what else has its name is left alone."""
    try:
        path, inode = json.loads((folder / CLAIMED).read_text(encoding="utf-8"))
        status = Path(path).lstat()
    except (OSError, ValueError, TypeError):
        return None
    is_it = Path(path).is_absolute() and stat.S_ISDIR(status.st_mode) and status.st_ino == inode
    return Path(path) if is_it and status.st_uid == os.getuid() else None


def _end(folder: Path) -> None:
    """Kill the user's processes that have files open in a folder."""
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.uids().real == os.getuid()
            if ours and any(folder in Path(file.path).parents for file in process.open_files()):
                process.kill()
        except psutil.Error:  # it has ended
            continue
