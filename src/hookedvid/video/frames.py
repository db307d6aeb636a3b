"""Sampled frames of a video, whatever it comes as: a file, a folder of images, an array or a list of images.

Which frames to take is said in `samplers`, how a file is decoded in `decode`; resizing and normalising live
in `transforms`.
"""

import math
import os
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from hookedvid.errors import InputError
from hookedvid.values.serial import is_number
from hookedvid.values.texts import one_line
from hookedvid.video.decode import decode, fill, read_track
from hookedvid.video.pictures import upright_rgb
from hookedvid.video.refusals import refusal, unreadable
from hookedvid.video.samplers import sample_indices
from hookedvid.video.source import Source, open_bytes, opened

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # whatever the name says: Pillow's others run programs (EPS) or are no stills
# Numbers in the names of a folder's frames, as decimals and counted on both sides of a dot.
DECIMAL, WHOLE = re.compile(r"([0-9]+(?:\.[0-9]+)?)"), re.compile(r"([0-9]+)")
ENDS_IN_0 = re.compile(r"[0-9]\.[0-9]+0(?![0-9])")

if TYPE_CHECKING:
    from torch import Tensor

    VideoSource = str | os.PathLike[str] | np.ndarray | Tensor | Sequence[Any]
else:  # processes that decode read files alone, and torch would take 500 MB of each
    VideoSource = Tensor = Any
Chooser = Callable[..., list[int]]
Number = float | int


class Clip(NamedTuple):
    """Sampled frames and where they come from.

    `indices` are the frames' numbers in the source (0-based, display order), `times` their seconds after its
    first frame, `duration` the seconds from its first frame to the end of its last, `fps` the average rate that the
    container states, or that of its times where it states none. These three are None where the source tells no

    Attributes:
        times: Images and arrays without `folder_fps`, bare codec streams. Where two frames share a time, or one has
            none, `times` and `duration` are None and the rate stands. `source` is the path, or "array" or "images".
        bound: (start, end) in seconds of the part that they were sampled from; None of all of it.
    """

    frames: UInt8[np.ndarray, "frame height width 3"]
    indices: tuple[int, ...]
    times: tuple[float, ...] | None
    fps: float | None
    n_total: int
    duration: float | None
    source: str
    bound: tuple[Number, Number] | None = None

    def __repr__(self) -> str:
        n, height, width, _ = self.frames.shape
        when = "" if self.times is None else f", {self.times[0]:g} s to {self.times[-1]:g} s"
        return f"Clip: {n} of {self.n_total} frames of {width} x {height} pixels{when}, of {one_line(self.source)}"


def read_frames(
    video: VideoSource,
    n_frames: int = 32,
    sampler: str = "linspace",
    *,
    bound: tuple[Number, Number] | None = None,
    folder_fps: Number | None = None,
) -> UInt8[np.ndarray, "frame height width 3"]:
    """RGB frames of a video; arguments and errors are those of `read_clip`."""
    return read_clip(video, n_frames, sampler, bound=bound, folder_fps=folder_fps).frames


def read_clip(
    video: VideoSource,
    n_frames: int = 32,
    sampler: str = "linspace",
    *,
    bound: tuple[Number, Number] | None = None,
    folder_fps: Number | None = None,
) -> Clip:
    """RGB frames of a video with their numbers and times.

    `video` is a path to a video file; a folder of jpg, png, webp or bmp frames, by the numbers in their names
    (`frame_2` before `frame_10`, `1.25` before `1.5`; names that start with a dot are ignored, anything else that is
    no image is refused); either of them inside a zip file, as `archive.zip::member`; a uint8 array or tensor
    [frame, height, width, 3] or [frame, 3, height, width]; or a list of PIL images of one size. `n_frames`, `sampler`
    and `bound` (seconds) are those of `sample_indices`. `folder_fps` is the rate of whatever is not a file (MVBench's
    TVQA folders: 3); files tell their own.

    A file's pictures are those of `ffmpeg -pix_fmt rgb24`: colours by the file's own matrix, range and depth,
    upright and unmirrored by its display matrix, each of the size of the file's first frame. Memory is
    one array for the result and what the decoder holds.

    Raises:
        VideoError: For every source whose sampled frames cannot be had exactly; InputError for an unknown sampler, or
            `n_frames` or `folder_fps` out of range.
    """
    if folder_fps is not None and not (is_number(folder_fps) and 0 < folder_fps < math.inf):
        raise InputError(f"folder_fps is {folder_fps!r}; give frames per second, or None where unknown")
    choose = partial(sample_indices, sampler, n_frames=n_frames, bound=bound)
    clip = _from_source(video, choose, None if folder_fps is None else float(folder_fps))
    return clip if bound is None else clip._replace(bound=(bound[0], bound[1]))


def _from_source(video: VideoSource, choose: Chooser, fps: float | None) -> Clip:
    if isinstance(video, (str, os.PathLike)):
        return _from_path(video, choose, fps)
    if isinstance(video, Sequence):
        return _from_images(video, choose, fps)
    if isinstance(video, np.ndarray) or hasattr(video, "cpu"):
        return _from_array(video, choose, fps)
    raise refusal(f"a {type(video).__name__}", "it is no video", "give a path, an array or a list of PIL images")


def _from_path(video: str | os.PathLike[str], choose: Chooser, fps: float | None) -> Clip:
    with opened(video) as found:
        if isinstance(found, list):
            return _from_folder(os.fspath(video), found, choose, fps)
        return _from_file(found, choose)


def _from_file(path: Source, choose: Chooser) -> Clip:
    track = read_track(path)
    indices = choose(n_total=track.n_total, fps=track.fps)
    frames = decode(path, track, indices)
    times = tuple(track.seconds(i) for i in indices) if track.pts else None
    return Clip(frames, tuple(indices), times, track.fps, track.n_total, track.duration, str(path))


def _from_folder(path: str, entries: Sequence[Source], choose: Chooser, fps: float | None) -> Clip:
    files = sorted((p for p in entries if not p.name.startswith(".")), key=lambda p: p.name)
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    others = [p.name for p in files if p.suffix.lower() not in IMAGE_SUFFIXES]
    if not images:
        fault = f"the folder holds no images, but {len(others)} other entries"
        raise refusal(path, fault, "give a folder of frames, or the path of one video file")
    if others:
        fault = f"{len(others)} entries of the folder are no images: {', '.join(others[:5])}"
        raise refusal(path, fault, f"move them out, or convert them to {', '.join(IMAGE_SUFFIXES)}")
    images = _in_order(path, images)
    indices = choose(n_total=len(images), fps=fps)
    frames = fill(((i, _read_image(images[i])) for i in sorted(set(indices))), indices, path)
    return _even_clip(frames, indices, len(images), fps, path)


def _in_order(folder: str, images: Sequence[Source]) -> list[Source]:
    """Images by the numbers in their names, `1.25` before `1.5`; by their names where these are equal."""
    ordered, counted = (sorted(images, key=partial(_numbers, number)) for number in (DECIMAL, WHOLE))
    # 1.10 is the tenth after 1.9 or a tenth of a second after 1; of the two a decimal rarely ends in 0.
    if ordered != counted and (unclear := [image.name for image in images if ENDS_IN_0.search(image.name)]):
        fault = f"the numbers in names like {unclear[0]} may be decimals or count after the dot, which are two orders"
        raise refusal(folder, fault, "write all with as many digits after the dot")
    return ordered


def _numbers(number: re.Pattern[str], image: Source) -> tuple[list[str | Decimal], str]:
    """Sort key of a name: its text and numbers by turns, then all of it."""
    parts = number.split(image.name.removesuffix(image.suffix))
    return [Decimal(part) if i % 2 else part for i, part in enumerate(parts)], image.name


def _read_image(path: Source) -> UInt8[np.ndarray, "height width 3"]:
    from PIL import Image

    with open_bytes(path) as file:
        try:
            image = Image.open(file, formats=FORMATS)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
            if isinstance(e, OSError) and e.errno:  # Pillow's own have none
                raise unreadable(path, e) from e
            raise refusal(path, f"the image cannot be read ({e})", "extract the frame again") from e
        with image:
            return upright_rgb(image, path)


def _from_array(video: np.ndarray | Tensor, choose: Chooser, fps: float | None) -> Clip:
    asked, shape = f"an array {list(video.shape)} of {video.dtype}", video.shape
    if str(video.dtype).removeprefix("torch.") != "uint8":
        raise refusal(asked, "its values are no bytes", "give uint8 RGB from 0 to 255, not normalised")
    if len(shape) != 4 or 3 not in (shape[1], shape[3]) or 0 in shape[1:]:
        todo = "give [frame, height, width, 3] or [frame, 3, height, width]"
        raise refusal(asked, "it has no RGB axis, or no pixels", todo)
    if shape[1] == shape[3]:
        raise refusal(asked, "either of two axes may be RGB", "give a list of PIL images, which tell")
    indices = choose(n_total=shape[0], fps=fps)
    frames = video[indices] if isinstance(video, np.ndarray) else video[indices].cpu().numpy()
    if shape[3] != 3:
        frames = frames.transpose(0, 2, 3, 1)
    return _even_clip(np.ascontiguousarray(frames), indices, shape[0], fps, "array")


def _from_images(images: Sequence[Any], choose: Chooser, fps: float | None) -> Clip:
    from PIL import Image

    what = f"a list of {len(images)}"
    if not images:
        raise refusal(what, "it is empty", "give at least one PIL image")
    if kinds := sorted({type(i).__name__ for i in images if not isinstance(i, Image.Image)}):
        todo = "give PIL images only, or one stacked uint8 array"
        raise refusal(what, f"it holds {', '.join(kinds)} besides images", todo)
    indices = choose(n_total=len(images), fps=fps)
    frames = fill(((i, upright_rgb(images[i], f"image {i} of {what}")) for i in sorted(set(indices))), indices, what)
    return _even_clip(frames, indices, len(images), fps, "images")


def _even_clip(
    frames: UInt8[np.ndarray, "frame height width 3"],
    indices: list[int],
    n_total: int,
    fps: float | None,
    source: str,
) -> Clip:
    """The clip of a source that tells no times: frames at a constant rate, if any is known."""
    times, duration = (tuple(i / fps for i in indices), n_total / fps) if fps else (None, None)
    return Clip(frames, tuple(indices), times, fps, n_total, duration, source)
