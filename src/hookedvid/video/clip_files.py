"""What is asked of a video, and its answer as a file: sampled frames kept on disk, found again by what they are of.

A clip's file is a NumPy archive of the frames and of JSON that says the rest; its members carry checksums. One
that is cut off or changed counts as none, and is made again.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from hookedvid.errors import RunError
from hookedvid.video.frames import Clip, Number, read_clip
from hookedvid.video.source import identity

FORMAT = 2  # of the files and their names: raised whenever either changes
SUFFIX = ".npz"
STALE = 24 * 3600  # seconds after which what a killed process left half written is cleared away


@dataclass(frozen=True)
class ClipRequest:
    """Which frames of which video: the arguments of `read_clip`, for a source that is a path."""

    source: str
    n_frames: int
    sampler: str
    bound: tuple[Number, Number] | None = None
    folder_fps: Number | None = None

    def read(self) -> Clip:
        """The clip, decoded here and now."""
        return read_clip(self.source, self.n_frames, self.sampler, bound=self.bound, folder_fps=self.folder_fps)


def save_clip(clip: Clip, path: Path) -> None:
    """Write a clip's file; it appears whole or not at all. Raises RunError where there is no room for it."""
    about = {name: value for name, value in clip._asdict().items() if name != "frames"}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as f:
            np.savez(f, about=np.frombuffer(json.dumps(about).encode(), np.uint8), frames=clip.frames)
        part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise RunError(
            f"cannot keep frames in {path.parent}: {e.strerror}; make room there or set another place"
        ) from e


def load_clip(path: Path) -> Clip | None:
    """The clip of a file; None unless it is there and whole."""
    try:
        with path.open("rb") as f, np.load(f, allow_pickle=False) as kept:
            about, frames = json.loads(kept["about"].tobytes()), kept["frames"]
        listed = {name: tuple(about[name]) for name in ("indices", "times") if about[name] is not None}
        return Clip(frames=frames, **about | listed)
    except Exception:  # what can be wrong with changed bytes has no end, and all of it means: not whole
        return None


class FrameCache:
    """Clips in a folder, at most `limit` bytes of them, the ones unused for longest dropped first.

    A file's name says what it is of: the source's place, size and time of change, what was asked, and the
    versions of what decodes. Several processes may share a folder.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = Path(folder), limit
        self._room = 0  # bytes that may be added before the folder is looked through again

    def path(self, request: ClipRequest) -> Path | None:
        """The file of a request; None where there is no such source."""
        found = identity(request.source)
        if found is None:
            return None
        asked = asdict(request) | {"source": os.path.abspath(request.source)}
        decoders = {package: version(package) for package in ("hookedvid", "av", "pillow")}
        named = json.dumps([FORMAT, found, asked, decoders], sort_keys=True)
        return self.folder / (hashlib.sha256(named.encode()).hexdigest()[:32] + SUFFIX)

    def load(self, path: Path) -> Clip | None:
        """The clip of a file, marked as used; a damaged file is removed."""
        clip = load_clip(path)
        try:
            if clip is None:
                path.unlink(missing_ok=True)
            else:
                os.utime(path)
        except OSError:  # a folder that may only be read still serves
            pass
        return clip

    def added(self, size: int) -> None:
        """Count a new file of `size` bytes, and keep to the limit."""
        self._room -= size
        if self._room >= 0:
            return
        found = [(e.stat(), e.path) for e in os.scandir(self.folder) if e.is_file(follow_symlinks=False)]
        found.sort(key=lambda one: one[0].st_mtime_ns)
        total = sum(stat.st_size for stat, _ in found)
        now = max((stat.st_mtime for stat, _ in found), default=0.0)
        for stat, path in found:
            whole = path.endswith(SUFFIX)
            if (whole and total > self.limit) or (path.endswith(".part") and now - stat.st_mtime > STALE):
                Path(path).unlink(missing_ok=True)
                total -= stat.st_size
        self._room = min(self.limit - total, self.limit // 50)
