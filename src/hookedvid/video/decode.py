"""Chosen frames of a video file, decoded exactly or refused.

A file is read twice. The first pass (`read_track`) lists the packets of the video track: presentation times
(pts) and random access points. The sorted times number the frames, so that a sampler can choose. The second
pass (`decode`) starts at the last random access point at or before each target, and every picture that comes
out must be the next on the list. Where that fails (open picture groups, false random access points) the file
is decoded once more from its start, and where this fails too it is refused: no frame is repeated, skipped or
concealed.

What no reader can notice is damage that still decodes: bytes changed inside one arithmetic-coded picture without
a checksum (HEVC, VP9, often H.264), and the loss of whole packets where the container announces neither their
number nor its length (MPEG-TS).

Choosing frames does not live here: see `samplers` and `frames`.
"""

import bisect
import errno
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import Any

import numpy as np
from jaxtyping import UInt8

from hookedvid.video.lengths import lacks_bytes
from hookedvid.video.pixels import NotConvertible, OtherSize, Upright
from hookedvid.video.refusals import refusal, unreadable
from hookedvid.video.source import Source, open_bytes
from hookedvid.video.track import Track, track_of

# FFmpeg's readers of files that hold their frames themselves, by its names. Others fetch what a file names from
# anywhere, as those of playlists do (hls, dash, concat, sdp, imf).
CONTAINERS = (
    "apng,asf,av1,avi,cavsvideo,dirac,dv,flv,gif,h261,h263,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mpeg,mpegts,mpegvideo,"
    "mxf,nut,obu,ogg,rm,vc1,vvc,wtv,yuv4mpegpipe"
)
# Opened only for the error to say what they are: sound, stills and texts.
NO_VIDEOS = "aac,flac,mp3,wav,bmp_pipe,jpeg_pipe,png_pipe,tiff_pipe,tty,webp_pipe"
# FFmpeg is handed the bytes of one file and can ask for no others. The last two are its defaults, which may change.
ALONE = {
    "format_whitelist": f"{CONTAINERS},{NO_VIDEOS}",
    "protocol_whitelist": "none",
    "enable_drefs": "0",
    "use_absolute_path": "0",
}

# Stop at the first damaged slice: FFmpeg's default fills it from other frames and marks nothing.
STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}

_TOO_MUCH = (
    "the file has all bytes that it says, so its header promises too much: remux it (ffmpeg -i FILE -c copy OUT.mkv)"
)
_AGAIN = "download it again, or check that this is the right file"
_ALONE = "download it again, or give one file of mp4, mov, mkv, webm, avi, …, no playlist and no text"


class _NotExact(Exception):
    """The decoder did not give the frames that the packets announce."""


def fill(
    pictures: Iterable[tuple[int, np.ndarray]], indices: list[int], source: object
) -> UInt8[np.ndarray, "frame height width 3"]:
    """One array [frame, height, width, 3] of numbered pictures, each put wherever `indices` names it.

    Both must ascend.

    Raises:
        VideoError: If the pictures differ in size.
    """
    frames = np.empty((0, 0, 0, 3), np.uint8)
    row = 0
    for number, picture in pictures:
        if row == 0:
            frames = np.empty((len(indices), *picture.shape), np.uint8)
        if picture.shape != frames.shape[1:]:
            sizes = f"frame {number} is {_size(picture)} but frame {indices[0]} is {_size(frames[0])}"
            raise refusal(source, sizes, "bring all frames to one size first")
        while row < len(indices) and indices[row] == number:
            frames[row] = picture
            row += 1
    assert row == len(indices)
    return frames


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def decode(path: Source, track: Track, indices: list[int]) -> UInt8[np.ndarray, "frame height width 3"]:
    """The RGB frames with these numbers (0-based, ascending, repeats allowed), upright, of the first's size.

    Raises:
        VideoError: Where they cannot be had exactly.
    """
    try:
        return _decode(path, track, indices, seek=track.ordered)
    except _NotExact:
        pass
    try:
        return _decode(path, track, indices, seek=False)
    except _NotExact as e:
        todo = "the file is damaged or cut out of a longer one: download it again, or re-encode it"
        raise refusal(path, str(e), todo) from e


def read_track(path: Source) -> Track:
    """Lists the packets.

    Raises:
        VideoError: Unless the file is a whole video of at least one frame.
    """
    from av.error import FFmpegError

    shown, keys, n_packets, n_corrupt, end = [], [], 0, 0, 0.0
    with _opened(path) as (container, stream):
        try:
            for packet in container.demux():
                stamp = packet.dts if packet.pts is None else packet.pts
                if stamp is not None and packet.time_base:
                    end = max(end, float((stamp + (packet.duration or 0)) * packet.time_base))
                if packet.stream_index != stream.index or (stamp is None and not packet.size):
                    continue
                n_packets += 1
                n_corrupt += packet.is_corrupt
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(packet.pts)
                if packet.size and not packet.is_discard and not _hidden(stream, packet):
                    shown.append((packet.pts, packet.duration or 0))
            missing = _missing(container, stream, path, n_packets, end)
        except FFmpegError as e:
            raise refusal(path, f"reading stops after {n_packets} packets ({_reason(e)})", _AGAIN) from e
        if missing:
            with open_bytes(path) as file:
                todo = _TOO_MUCH if lacks_bytes(file) is False else "the file was cut off: download it again"
            raise refusal(path, missing, todo)
        if n_corrupt:
            raise refusal(path, f"cut or corrupt packets: {n_corrupt} of {n_packets}", _AGAIN)
        if not shown:
            raise refusal(path, "its video track holds no frames", _AGAIN)
        return track_of(container, stream, shown, keys)


def _hidden(stream: Any, packet: Any) -> bool:
    # VP8 keeps its alternate reference frames in packets of their own; bit 4 of the frame tag is show_frame
    # (RFC 6386, 9.1). VP9 and AV1 join theirs to a shown frame.
    return stream.codec_context.name in ("vp8", "libvpx") and not memoryview(packet)[0] & 0x10


def _missing(container: Any, stream: Any, path: Source, n_packets: int, end: float) -> str | None:
    """What the header announces and the file lacks, or None. `end` is the last moment seen, in seconds."""
    name, announced = container.format.name, stream.frames
    if "mp4" in name and announced:
        if n_packets < announced:
            # Edit lists hide packets that the header counts; only a shortfall without them is one.
            with _opened(path, {"ignore_editlist": "1"}) as (unedited, track):
                n_packets = sum(packet.dts is not None for packet in unedited.demux(track))
        fault = f"its header announces {announced} frames, but the file holds {n_packets}"
        return fault if n_packets < announced else None
    # AVI counts dropped frames, which are no packets; Matroska and others only say how long they are.
    seconds = announced * float(stream.time_base) if name == "avi" else (container.duration or 0) / 1e6
    if n_packets and end < seconds - 0.5:  # headers are rounded, and count the padding of audio
        return f"its header announces {seconds:.2f} s, but the file ends at {end:.2f} s"
    return None


def _decode(path: Source, track: Track, indices: list[int], *, seek: bool) -> np.ndarray:
    from av.error import FFmpegError

    with _opened(path) as (container, stream):
        # Not slices: with these the H.264 decoder does not mark the frames it concealed damage in.
        stream.codec_context.thread_type = "FRAME"
        stream.codec_context.options = dict(STRICT)
        targets = sorted(set(indices))
        upright = Upright((stream.codec_context.width, stream.codec_context.height))
        if track.ordered:
            frames = _by_time(container, stream, track, targets, upright, seek)
        else:
            frames = _by_count(container, stream, track, targets, upright)
        try:
            return fill(((number, upright(frame)) for number, frame in frames), indices, path)
        except NotConvertible as e:
            raise refusal(path, str(e), "bring it to BT.709 first, for example with ffmpeg's zscale filter") from e
        except OtherSize as e:
            raise _NotExact(str(e)) from e
        except FFmpegError as e:
            raise _NotExact(f"decoding stops ({_reason(e)})") from e


def _by_time(
    container: Any, stream: Any, track: Track, targets: list[int], upright: Upright, seek: bool
) -> Iterator[tuple[int, Any]]:
    """The targets with their frames; every picture on the way must have the next time on the list."""
    number, frame, pictures = -1, None, iter(())
    for target in targets:
        first, key = _access_point(track, target) if seek else (0, None)
        if number < 0 or first > number + 1:
            number, pictures = first - 1, _pictures(container, stream, key)
        while number < target:
            frame, number = next(pictures, None), number + 1
            if frame is None:
                raise _NotExact(f"the pictures end after {number} of {track.n_total}")
            # The access point is checked because codecs that FFmpeg cannot parse keep the container's false flags.
            false_key = frame.pts == key and not frame.key_frame
            if frame.pts != track.pts[number] or frame.is_corrupt or false_key:
                raise _NotExact(f"frame {number} of {track.n_total} cannot be decoded")
            upright.see(number, frame)
        yield target, frame


def _access_point(track: Track, target: int) -> tuple[int, int]:
    i = bisect.bisect_right(track.keys, (target, math.inf)) - 1
    if i < 0:
        raise _NotExact(f"frame {target} of {track.n_total} comes before the first random access point")
    return track.keys[i]


def _by_count(
    container: Any, stream: Any, track: Track, targets: list[int], upright: Upright
) -> Iterator[tuple[int, Any]]:
    """The targets with their frames, counted from the file's start; packets and pictures must be as many."""
    wanted, n_pictures = set(targets), 0
    for frame in _pictures(container, stream, None):
        if frame.is_corrupt:
            raise _NotExact(f"frame {n_pictures} of {track.n_total} is corrupt")
        upright.see(n_pictures, frame)
        if n_pictures in wanted:
            yield n_pictures, frame
        n_pictures += 1
    if n_pictures != track.n_total:
        raise _NotExact(f"its {track.n_total} packets decode to {n_pictures} pictures")


def _pictures(container: Any, stream: Any, key: int | None) -> Iterator[Any]:
    """Pictures as the decoder gives them, fed from the random access point with pts `key`, or all."""
    if key is not None:
        container.seek(key, stream=stream)
    feeding = key is None
    for packet in container.demux(stream):
        # A seek may land earlier; a decoder fed from elsewhere would give pictures without their references.
        feeding = feeding or (packet.is_keyframe and packet.pts == key)
        # An empty packet in the middle would tell the decoder that the file ends.
        if feeding and packet.size:
            yield from packet.decode()
    if not feeding:
        raise _NotExact(f"the random access point at time {key} cannot be reached")
    yield from stream.codec_context.decode(None)


@contextmanager
def _opened(source: Source, options: dict[str, str] | None = None) -> Iterator[tuple[Any, Any]]:
    """The open container and its video stream.

    Raises VideoError for whatever is no video, DecodingError where the machine does not read it.
    """
    with open_bytes(source) as file:
        data = _Bytes(file)
        try:
            with _container(source, data, ALONE | (options or {})) as container:
                stream = _video_stream(container, source)
                try:
                    yield container, stream
                finally:
                    # Waits for the decoder's threads. Freeing it would wait as well, but with Python's lock held, which
                    # they need to log a fault once anything has switched PyAV's log on (torchvision 0.21 does).
                    stream.codec_context.flush_buffers()
        finally:
            if data.fault is not None:
                raise unreadable(source, data.fault)


class _Bytes:
    """A file as FFmpeg reads it: what goes wrong is an answer and kept as `fault`, for PyAV 14 loses exceptions."""

    def __init__(self, file: BufferedReader):
        self.name, self.tell, self._file = str(file.name), file.tell, file
        self.fault: OSError | None = None

    def read(self, n: int) -> bytes:
        """The next bytes; none at the end, or where they cannot be read."""
        try:
            return self._file.read(n)
        except OSError as e:
            self.fault = self.fault or e
            return b""

    def seek(self, offset: int, whence: int) -> int:
        """The new position, or FFmpeg's code for a place that the file cannot have."""
        try:
            return self._file.seek(offset, whence)
        except OSError as e:
            if e.errno != errno.EINVAL:
                self.fault = self.fault or e
            return -(e.errno or errno.EIO)


def _container(source: Source, data: _Bytes, options: dict[str, str]) -> Any:
    import av
    from av.error import FFmpegError

    try:
        try:
            # Not `options`, which go to the streams as well: PyAV 14.1 then reads beyond the streams of the header
            # where FFmpeg finds more as it reads on (MPEG program streams), and crashes.
            return av.open(data, container_options=options)
        except UnicodeDecodeError:
            # Up to av 18, tags that are not UTF-8 fail unless told; av 19 has no such argument.
            data.seek(0, os.SEEK_SET)
            return av.open(data, container_options=options, metadata_errors="replace")
    except FFmpegError as e:
        why = "a kind that is not read" if e.errno == errno.EINVAL else _reason(e)  # the list's answer
        fault = f"it cannot be opened as a video that holds its frames itself: {why}, {_head(source)}"
        raise refusal(source, fault, _ALONE) from e


def _video_stream(container: Any, path: Source) -> Any:
    from av.stream import Disposition

    name = container.format.name
    assert set(name.split(",")) & set(ALONE["format_whitelist"].split(","))
    # FFmpeg takes stills for videos of one frame, and text files (.txt, .nfo) for terminal art.
    if name == "tty" or name.endswith("_pipe"):
        raise refusal(path, f"it is a still image or a text ({name})", "give images as a folder or a list")
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ", ".join(s.type for s in container.streams) or f"none, {_head(path)}"
        raise refusal(path, f"it has no video track (tracks: {kinds})", _AGAIN)
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise refusal(path, "PyAV has no decoder for its codec", "re-encode it, for example as H.264")
    return stream


def _reason(e: Exception) -> str:
    return getattr(e, "strerror", None) or str(e) or type(e).__name__


def _head(source: Source) -> str:
    """What the file's first bytes tell a person who has to find out why it is no video."""
    with open_bytes(source) as file:
        start, size = file.read(16), file.seek(0, os.SEEK_END)
    if start[4:8] == b"ftyp":
        return f"an MP4 of {size} bytes whose index (moov) is missing or broken"
    return f"{size} bytes that begin with {start!r}" if size else "0 bytes"
