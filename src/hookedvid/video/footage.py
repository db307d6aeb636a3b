"""Decoded frames of an input that was prepared: held, or decoded again where holding them would take too much."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import UInt8

from hookedvid.video.frames import Clip, read_clip
from hookedvid.video.pictures import as_uri
from hookedvid.video.refusals import refusal

# Bytes of frames that an input holds on the CPU: 32 frames of 1080p are 190 MiB. Of a longer video from a file only its
# path is kept; one that came as an array or images is in memory anyway.
HELD = 256 << 20


@dataclass(frozen=True, eq=False)
class Footage:
    """How the decoded frames of a prepared video are had again.

    Attributes:
        video: The clip itself, or the path that it is read from.
        n_frames, sampler, bound, folder_fps: As it was sampled.
        indices: Of the frames that were.
        changes: What was done to them since (`hookedvid.values.clips`).
    """

    video: Any
    n_frames: int
    sampler: str
    bound: Any
    folder_fps: Any
    indices: tuple[int, ...]
    changes: tuple[Any, ...] = ()

    @classmethod
    def of(cls, video: Any, clip: Clip, n_frames: int, sampler: str, folder_fps: Any) -> "Footage":
        """The footage of a video whose clip was just decoded."""
        again = isinstance(video, str | os.PathLike) and clip.frames.nbytes > HELD
        return cls(video if again else clip, n_frames, sampler, clip.bound, folder_fps, clip.indices)

    def frames(self) -> UInt8[np.ndarray, "frame _height _width 3"]:
        """The decoded frames as they are shown.

        Raises:
            VideoError: Where the file cannot be read again, or is another one.
        """
        clip = self.video
        if not isinstance(clip, Clip):
            clip = read_clip(self.video, self.n_frames, self.sampler, bound=self.bound, folder_fps=self.folder_fps)
            if clip.indices != self.indices:
                raise refusal(self.video, "its frames are not those that were sampled before", "prepare it again")
        frames = clip.frames
        for change in self.changes:
            frames = change.change(frames, self.of_another)
        return frames

    def thumbnails(self, numbers: Sequence[int], side: int = 128) -> list[str]:
        """Some of the frames as small WebP pictures, `data:` URIs; none where they would have to be decoded again.

        Args:
            numbers: Of the frames.
            side: The longest, in pixels.
        """
        if not isinstance(self.video, Clip):
            return []
        frames = self.frames()
        return [as_uri(frames[i], side) for i in numbers]

    def of_another(self, path: str) -> UInt8[np.ndarray, "frame _height _width 3"]:
        """The frames of another video, all of it, sampled in the same way."""
        return read_clip(path, len(self.indices), self.sampler).frames

    def under(self, changes: tuple[Any, ...]) -> "Footage":
        """The same with more done to it."""
        return replace(self, changes=(*self.changes, *changes))
