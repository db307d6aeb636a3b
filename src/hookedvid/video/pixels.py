"""A decoded frame as upright 8-bit RGB: the bytes that `ffmpeg -pix_fmt rgb24` writes.

FFmpeg's own filters do all of it. They take the matrix, the range, the depth and the fields from the frame,
where a conversion called on its own assumes BT.601 and limited range.
"""

import math
import struct
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8


class NotConvertible(Exception):
    """Why a frame has no RGB picture."""


class OtherSize(Exception):
    """A frame is not of the size that its stream states, and the first frame is not known."""


class _Kind(NamedTuple):
    """What a graph of filters is made for: all that its frames have in common."""

    width: int
    height: int
    format: str
    matrix: int
    range: int
    display: bytes | None
    size: tuple[int, int]  # that of the first frame, as decoded


class Upright:
    """Frames of one stream as pictures, scaled to the size of its first where theirs changes, as ffmpeg does.

    Args:
        stated: Width and height that the stream states, believed until `see` has shown frame 0.
    """

    def __init__(self, stated: tuple[int, int]):
        self._stated = stated
        self._first: tuple[int, int] | None = None
        self._kind: _Kind | None = None
        self._graph: Any = None

    def see(self, number: int, frame: Any) -> None:
        """Learn the first frame's size, if this is the one."""
        if number == 0:
            self._first = (frame.width, frame.height)

    def __call__(self, frame: Any) -> UInt8[np.ndarray, "height width 3"]:
        """The picture of a frame. Raises OtherSize, or NotConvertible for what FFmpeg cannot bring to RGB."""
        if self._first is None and (frame.width, frame.height) != self._stated:
            raise OtherSize(f"a picture is {frame.width}x{frame.height} where the stream says {self._stated}")
        display = frame.side_data.get("DISPLAYMATRIX")
        kind = _Kind(
            frame.width,
            frame.height,
            frame.format.name,
            int(frame.colorspace),
            int(frame.color_range),
            None if display is None else bytes(display),
            self._first or self._stated,
        )
        if kind != self._kind:
            self._kind, self._graph = kind, _graph(kind)
        self._graph.push(frame)
        return self._graph.pull().to_ndarray()


def _graph(kind: _Kind) -> Any:
    from av.error import FFmpegError
    from av.filter import Graph

    graph = Graph()
    source = (
        f"video_size={kind.width}x{kind.height}:pix_fmt={kind.format}:time_base=1/1"
        f":colorspace={kind.matrix}:range={kind.range}"
    )
    turns = autorotation(kind.display)
    size = kind.size[::-1] if any(name == "transpose" for name, _ in turns) else kind.size
    scale = [("scale", f"{size[0]}:{size[1]}:flags=bicubic")] if (kind.width, kind.height) != kind.size else []
    filters = [("buffer", source), *turns, *scale, ("format", "rgb24"), ("buffersink", None)]
    try:
        graph.link_nodes(*(graph.add(name, args) for name, args in filters)).configure()
    except FFmpegError as e:
        fault = f"FFmpeg has no way from its frames ({kind.format}, matrix {kind.matrix}, range {kind.range}) to RGB"
        raise NotConvertible(fault) from e
    return graph


def autorotation(display: bytes | None) -> list[tuple[str, str | None]]:
    """The filters, with their arguments, that ffmpeg puts before all others for a display matrix.

    A matrix [a b; c d] takes the pixel at (x, y) to (a x + c y, b x + d y), y down. Right angles become turns
    and flips, any other angle a rotation inside the frame's rectangle (ffmpeg's `configure_input_video_filter`).
    """
    a, b, _, c, d = struct.unpack_from("=5i", display or bytes(36))
    if not math.hypot(a, c) or not math.hypot(b, d):
        return []
    match round(math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c)))) % 360:
        case 0:
            return [("vflip", None)] if d < 0 else []
        case 1:
            return []  # as in ffmpeg, which turns by more than one degree
        case 90:
            return [("transpose", "cclock_flip" if c > 0 else "clock")]
        case 180:
            return [(flip, None) for flip, sign in (("hflip", a), ("vflip", d)) if sign < 0]
        case 270:
            return [("transpose", "clock_flip" if c < 0 else "cclock")]
        case angle:
            return [("rotate", f"{angle}*PI/180")]
