"""What is asked of a video, and its answer as a file: sampled frames kept on disk, found again by what they are of.

A clip's file is a NumPy archive of the frames and of JSON that says the rest; its members carry checksums. One
that is cut off or changed counts as none, and is made again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from hookedvid.errors import VideoError
from hookedvid.values.files import PART, written
from hookedvid.video.frames import Clip, Number, read_clip
from hookedvid.video.refusals import changed
from hookedvid.video.source import content_hash, identity, video_hash

FORMAT = 5  # of the files, their names, and the pixels in them: raised whenever any of these changes
SUFFIX = ".npz"
STALE = 24 * 3600  # seconds after which what a killed process left half written is cleared away


@dataclass(frozen=True)
class ClipRequest:
    """Which frames of which video: the arguments of `read_clip`, for a source that is a path.

    Attributes:
        content: What `video_hash` gave for the source when the study was planned; None asks for whatever is there now.
    """

    source: str
    n_frames: int
    sampler: str
    bound: tuple[Number, Number] | None = None
    folder_fps: Number | None = None
    content: str | None = None

    def read(self) -> Clip:
        """The clip, decoded here and now.

        Raises:
            DecodingError: Where it is not of `content`, and nothing else.
        """
        before = identity(self.source)
        try:
            clip = self._decoded()
        except VideoError:
            self._check(before, video_hash)  # half a new file may be no video
            raise
        # Hashed after they were decoded: bytes that were written in between are not those of the plan.
        self._check(before, content_hash)
        return clip

    def _decoded(self) -> Clip:
        return read_clip(self.source, self.n_frames, self.sampler, bound=self.bound, folder_fps=self.folder_fps)

    def _check(self, before: Any, hashed: Callable[[str], str]) -> None:
        if self.content is not None and (hashed(self.source) != self.content or identity(self.source) != before):
            raise changed(self.source)


def save_clip(clip: Clip, path: Path) -> None:
    """Write a clip's file, which is its user's alone; it appears whole or not at all. Raises OSError."""
    about = {name: value for name, value in clip._asdict().items() if name not in ("frames", "source")}
    about |= {"format": FORMAT, "file": path.name}  # a name that says what the clip is of
    with written(path, 0o600) as part, part.open("wb") as file:
        np.savez(file, about=np.frombuffer(json.dumps(about).encode(), np.uint8), frames=clip.frames)


def load_clip(path: Path, source: str) -> Clip | None:
    """The clip of a file, made of `source`; None unless it is there, whole, and under the name it was written as."""
    try:
        with path.open("rb") as f, np.load(f, allow_pickle=False) as kept:
            about, frames = json.loads(kept["about"].tobytes()), kept["frames"]
        if (about.pop("format", FORMAT), about.pop("file")) != (FORMAT, path.name):
            return None
        listed = {n: tuple(about[n]) for n in ("indices", "times", "bound") if about[n] is not None}
        return Clip(frames=frames, source=source, **about | listed)
    except Exception:  # what can be wrong with changed bytes has no end, and all of it means: not whole
        return None


class FrameCache:
    """Clips in a folder, at most `limit` bytes of them (0: none are added), the ones unused for longest dropped first.

    A file's name says what it is of: the hash of the source's content, what was asked of it, and the versions of what
    decodes. Several processes may share a folder.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = Path(folder), limit
        self._room = 0  # bytes that may be added before the folder is looked through again

    def path(self, request: ClipRequest) -> Path | None:
        """The file of a request; None where it does not say of what content."""
        if not request.content:
            return None
        fields = asdict(request)
        del fields["source"]
        decoders = {package: version(package) for package in ("hookedvid", "av", "pillow")}
        named = json.dumps([FORMAT, fields, decoders], sort_keys=True)
        return self.folder / (hashlib.sha256(named.encode()).hexdigest()[:32] + SUFFIX)

    def load(self, request: ClipRequest) -> Clip | None:
        """The clip of a request, marked as used; a damaged file is removed."""
        path = self.path(request)
        if path is None:
            return None
        clip = load_clip(path, request.source)
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
        files = sorted(self._files(), key=lambda one: one[0].st_mtime_ns)
        total = sum(stat.st_size for stat, _ in files)
        now = max((stat.st_mtime for stat, _ in files), default=0.0)
        for stat, path in files:
            torn = path.name.startswith(PART)
            if (now - stat.st_mtime > STALE) if torn else (total > self.limit):
                path.unlink(missing_ok=True)
                total -= stat.st_size
        self._room = min(self.limit - total, self.limit // 50)

    def _files(self) -> Iterator[tuple[os.stat_result, Path]]:
        for entry in os.scandir(self.folder):
            try:
                if entry.is_file(follow_symlinks=False):
                    yield entry.stat(), Path(entry.path)
            except FileNotFoundError:  # another process dropped it
                continue
