"""Small videos whose frames carry their own number, so that a wrong frame is seen and not guessed."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest

HEIGHT, WIDTH = 64, 96
X264 = {"preset": "veryfast", "bf": "3"}


def picture(number, height=HEIGHT, width=WIDTH):
    """Ten grey blocks, light for the ones of `number` in binary."""
    frame = np.full((height, width, 3), 64, np.uint8)
    for bit in range(10):
        row, column = divmod(bit, 5)
        frame[row * 32 : row * 32 + 32, column * 16 : column * 16 + 16] = 224 if number >> bit & 1 else 16
    return frame


def number(frame):
    """The number a decoded frame carries, whatever a codec did to its edges."""
    bits = [frame[r * 32 + 8 : r * 32 + 24, c * 16 + 4 : c * 16 + 12].mean() for r in (0, 1) for c in range(5)]
    return sum(1 << i for i, grey in enumerate(bits) if grey > 120)


def numbers(frames):
    return [number(frame) for frame in frames]


def write_clip(
    path,
    codec="libx264",
    n=60,
    *,
    options=None,
    muxer=None,
    pts=None,
    gop=15,
    bf=None,
    pix="yuv420p",
    noise=0,
    first=0,
    size=None,
    **tags,
):
    """Encodes frames `first` .. first+n-1 at 30 frames per second, or at times `pts` in units of 1/30 s.

    `noise` is added to every picture, so that packets are as full as real ones. `size` is that of the pictures,
    where they are to be stretched.
    """
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no encoder {codec}")
    with av.open(str(path), "w", options=muxer or {}) as container:
        container.metadata.update(tags)
        stream = container.add_stream(codec, rate=30, options=options or {})
        (stream.width, stream.height), stream.pix_fmt = size or (WIDTH, HEIGHT), pix
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        if bf is not None:
            stream.codec_context.max_b_frames = bf
        rng = np.random.default_rng(0)
        for i in range(n):
            grain = rng.integers(-noise, noise + 1, (HEIGHT, WIDTH, 1)) if noise else 0
            shown = np.clip(picture(first + i) + grain, 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            if size is not None:
                frame = frame.reformat(*size)
            frame.pts = i if pts is None else pts[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Path(path)


def patched(path, source, box, offset, fmt, *values):
    """A copy of an MP4 with values packed over the first box of that name, `offset` bytes after the name."""
    data = bytearray(Path(source).read_bytes())
    struct.pack_into(fmt, data, data.index(box) + 4 + offset, *values)
    Path(path).write_bytes(data)
    return Path(path)


def cut(path, source, share):
    """A copy of the first `share` of a file's bytes."""
    data = Path(source).read_bytes()
    Path(path).write_bytes(data[: int(len(data) * share)])
    return Path(path)


def remux(path, source, change, keep=lambda i, packet: True):
    """A copy of a video track, packet by packet, after `change(i, packet)`, which may return other bytes."""
    with av.open(str(source)) as read, av.open(str(path), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        for i, packet in enumerate(p for p in read.demux(video=0) if p.size):
            if keep(i, packet):
                if data := change(i, packet):
                    other = av.Packet(data)
                    other.pts, other.dts, other.duration = packet.pts, packet.dts, packet.duration
                    other.time_base, other.is_keyframe = packet.time_base, packet.is_keyframe
                    packet = other
                packet.stream = stream
                written.mux(packet)
    return Path(path)


def join(path, parts):
    """The packets of files of one codec, one after another, in one file of 30 frames per second."""
    with av.open(str(path), "w") as written:
        stream, n = None, 0
        for part in parts:
            with av.open(str(part)) as read:
                stream = stream or written.add_stream_from_template(read.streams.video[0])
                for packet in read.demux(video=0):
                    if packet.size:
                        packet.pts = packet.dts = round(n / 30 / packet.time_base)
                        packet.stream, n = stream, n + 1
                        written.mux(packet)
    return Path(path)
