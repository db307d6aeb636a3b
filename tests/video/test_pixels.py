"""Pictures have the colours that the file says, upright, whatever its matrix, range, depth, fields and display."""

import math
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from clips import HEIGHT, WIDTH, X264, join, numbers, patched, write_clip
from hookedvid.errors import VideoError
from hookedvid.video.decode import decode, read_track
from hookedvid.video.frames import read_clip, read_frames
from hookedvid.video.pixels import Upright

COLOURS = Path(__file__).parent / "colours"  # small videos with their pictures; made by `make.sh` there
BLOCK = 16

# FFmpeg's number of a matrix, and the shares of red and blue in luma (ITU-T H.273, table 4).
MATRICES = {
    "bt709": (1, 0.2126, 0.0722),
    "unspecified": (2, 0.299, 0.114),  # taken for BT.601, as ffmpeg does
    "fcc": (4, 0.30, 0.11),
    "bt470bg": (5, 0.299, 0.114),
    "smpte170m": (6, 0.299, 0.114),
    "smpte240m": (7, 0.212, 0.087),
    "bt2020nc": (9, 0.2627, 0.0593),
}
# Pixel formats: bits, and how many times coarser chroma is along width and height.
FORMATS = {
    "yuv420p": (8, 2, 2),
    "yuv422p": (8, 2, 1),
    "yuv444p": (8, 1, 1),
    "yuv411p": (8, 4, 1),
    "yuv420p10le": (10, 2, 2),
    "yuv422p10le": (10, 2, 1),
    "yuv444p12le": (12, 1, 1),
    "yuva420p": (8, 2, 2),
}


def blocks(seed=0):
    """A picture of flat blocks of random colours, from 0 to 1."""
    small = np.random.default_rng(seed).random((HEIGHT // BLOCK, WIDTH // BLOCK, 3))
    return small.repeat(BLOCK, 0).repeat(BLOCK, 1)


def coded(rgb, red, blue, bits, full):
    """Luma and chroma of colours from 0 to 1, as whole numbers, and the colours that these mean (H.273, 8.3)."""
    luma = rgb @ (red, 1 - red - blue, blue)
    cb, cr = (rgb[..., 2] - luma) / (2 - 2 * blue), (rgb[..., 0] - luma) / (2 - 2 * red)
    one, top = 1 << bits - 8, (1 << bits) - 1
    (low, span), depth = ((0, top), top) if full else ((16 * one, 219 * one), 224 * one)
    y, u, v = np.rint(luma * span + low), np.rint(cb * depth + 128 * one), np.rint(cr * depth + 128 * one)
    luma, cb, cr = (y - low) / span, (u - 128 * one) / depth, (v - 128 * one) / depth
    r, b = luma + (2 - 2 * red) * cr, luma + (2 - 2 * blue) * cb
    meant = np.stack([r, (luma - red * r - blue * b) / (1 - red - blue), b], -1)
    return (y, u, v), np.clip(meant * 255, 0, 255)


def frame_of(planes, pix):
    """A frame of these planes."""
    bits, across, down = FORMATS[pix]
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], pix)
    for i, plane in enumerate(frame.planes):
        values = planes[i % 3] if i else planes[0]
        values = values[::down, ::across] if i in (1, 2) else values
        data = values.astype("<u2" if bits > 8 else np.uint8)
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : data.shape[1] * data.itemsize] = data.view(np.uint8).reshape(plane.height, -1)
        plane.update(rows.tobytes())
    return frame


def write_planes(path, pictures, pix="yuv420p", matrix=1, full=False, codec="ffv1", options=None):
    """A file of frames made of luma and chroma, without loss."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width = pictures[0][0].shape
        stream.pix_fmt = pix
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        for i, planes in enumerate(pictures):
            frame = frame_of(planes, pix)
            frame.colorspace, frame.color_range, frame.pts = matrix, 2 if full else 1, i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def inside(pictures):
    """The middles of the blocks, which no interpolation of chroma reaches."""
    tiles = np.asarray(pictures)[..., :, :, :].reshape(HEIGHT // BLOCK, BLOCK, WIDTH // BLOCK, BLOCK, 3)
    return tiles[:, 6:10, :, 6:10].astype(float)


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("pix", FORMATS)
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_are_those_of_the_files_matrix_range_and_depth(tmp_path, matrix, pix, full):
    number, red, blue = MATRICES[matrix]
    planes, meant = coded(blocks(), red, blue, FORMATS[pix][0], full)
    path = write_planes(tmp_path / "blocks.mkv", [planes], pix, number, full)
    # swscale counts in whole numbers of 14 to 16 bits and is off by up to 3.3; a wrong matrix or range by 25.
    off = np.abs(inside(read_frames(path, 1)[0]) - inside(meant)).max()
    assert off < 4, off


def test_colours_that_change_between_frames(tmp_path):
    # Uncompressed frames carry no matrix; each stands for one of a stream that changes.
    upright = Upright((WIDTH, HEIGHT))
    for name, full in [("bt709", False), ("bt709", True), ("smpte170m", False), ("bt709", False)]:
        number, red, blue = MATRICES[name]
        planes, meant = coded(blocks(), red, blue, 8, full)
        frame = frame_of(planes, "yuv420p")
        frame.colorspace, frame.color_range = number, 2 if full else 1
        assert np.abs(inside(upright(frame)) - inside(meant)).max() < 4


def test_pictures_that_change_their_format_in_mid_stream(tmp_path):
    parts = []
    for pix, bits in (("yuv420p", 8), ("yuv420p10le", 10)):
        planes, meant = coded(blocks(), 0.2126, 0.0722, bits, False)
        options = {"preset": "ultrafast", "qp": "0"}
        parts.append(write_planes(tmp_path / f"{pix}.h264", [planes] * 2, pix, 1, codec="libx264", options=options))
    both = tmp_path / "both.h264"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    for picture in read_frames(both, 4):
        assert np.abs(inside(picture) - inside(meant)).max() < 4


def test_fields_do_not_change_a_picture(tmp_path):
    # ffmpeg converts an interlaced picture as a whole, unless told otherwise.
    stripes = np.indices((HEIGHT, WIDTH))[0] // 2 % 2 * 100 + 60
    planes = (stripes, np.full_like(stripes, 90), 255 - stripes)
    pictures = []
    for name, flags in [("progressive", {}), ("interlaced", {"x264-params": "tff=1", "flags": "+ildct+ilme"})]:
        path = tmp_path / f"{name}.mp4"
        options = {"preset": "ultrafast", "qp": "0"} | flags
        write_planes(path, [planes], codec="libx264", options=options)
        pictures.append(read_frames(path, 1))
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    assert np.array_equal(*pictures)


@pytest.mark.parametrize(
    ("pix", "codec"),
    [("rgb24", "png"), ("rgba", "png"), ("gray", "png"), ("pal8", "png"), ("bgr0", "ffv1"), ("rgb24", "libx264rgb")],
)
def test_pictures_without_a_matrix_are_what_they_are(tmp_path, pix, codec):
    colours = np.rint(blocks() * 255).astype(np.uint8)
    if pix in ("gray", "pal8"):
        colours = colours[..., :1].repeat(3, -1)
    path = tmp_path / ("plain.mkv" if codec == "ffv1" else "plain.mov")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"qp": "0"} if codec == "libx264rgb" else {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix
        if pix == "pal8":
            opaque = np.full((256, 1), 255, np.uint8)
            palette = np.hstack([opaque, np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)])
            frame = av.VideoFrame.from_ndarray((colours[..., 0].copy(), palette), format="pal8")
        else:
            frame = av.VideoFrame.from_ndarray(colours, format="rgb24").reformat(format=pix)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert np.array_equal(read_frames(path, 1)[0], colours)


def test_a_matrix_that_ffmpeg_does_not_convert_is_refused(tmp_path):
    planes, _ = coded(blocks(), 0.2126, 0.0722, 8, False)
    path = write_planes(tmp_path / "ycgco.mkv", [planes], matrix=8)
    with pytest.raises(VideoError, match=r"no way from its frames \(yuv420p, matrix 8, range 1\) to RGB; bring it to"):
        read_frames(path, 1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("upright") / "whole.mp4", n=4, options=X264)


# QuickTime: x' = a x + c y, y' = b x + d y with y down.
TURNS = {
    "upright": ((1, 0, 0, 1), lambda f: f),
    "mirrored": ((-1, 0, 0, 1), lambda f: f[:, :, ::-1]),
    "upside down, mirrored": ((1, 0, 0, -1), lambda f: f[:, ::-1]),
    "half": ((-1, 0, 0, -1), lambda f: f[:, ::-1, ::-1]),
    "clockwise": ((0, 1, -1, 0), lambda f: np.rot90(f, -1, (1, 2))),
    "anticlockwise": ((0, -1, 1, 0), lambda f: np.rot90(f, 1, (1, 2))),
    "transposed": ((0, 1, 1, 0), lambda f: f.swapaxes(1, 2)),
    "transposed the other way": ((0, -1, -1, 0), lambda f: np.rot90(f, 2, (1, 2)).swapaxes(1, 2)),
    "larger, clockwise": ((0, 2, -2, 0), lambda f: np.rot90(f, -1, (1, 2))),  # sizes are not the matrix's affair
    "nothing": ((0, 0, 0, 0), lambda f: f),
}


@pytest.mark.parametrize("name", TURNS)
def test_turned_and_mirrored_videos_are_brought_upright(whole, tmp_path, name):
    (a, b, c, d), turned = TURNS[name]
    values = [v << 16 for v in (a, b, 0, c, d, 0, 0, 0)]
    path = patched(tmp_path / "turned.mp4", whole, b"tkhd", 40, ">8i", *values)
    assert np.array_equal(read_frames(path, 3), turned(read_frames(whole, 3)))


def test_other_angles_turn_inside_the_rectangle_as_in_ffmpeg(whole, tmp_path):
    a, b = (round(f(math.radians(17)) * 65536) for f in (math.cos, math.sin))
    path = patched(tmp_path / "tilted.mp4", whole, b"tkhd", 40, ">8i", a, b, 0, -b, a, 0, 0, 0)
    tilted, upright = read_frames(path, 1)[0], read_frames(whole, 1)[0]
    expected = np.asarray(Image.fromarray(upright).rotate(-17, Image.Resampling.BILINEAR))
    # FFmpeg turns luma and coarser chroma in fixed point; a turn the other way would be off by 40 on average.
    assert tilted.shape == upright.shape and np.abs(tilted.astype(int) - expected).mean() < 8


@pytest.fixture(params=["times", "counts"])
def two_sizes(request, tmp_path):
    """A stream whose frames 0 to 9 are of the usual size, and 10 to 19 of another, with times and without."""
    with_times = request.param == "times"
    path = tmp_path / ("both.webm" if with_times else "both.h264")
    parts = []
    for first, size in ((0, None), (10, (144, 80))):
        part = path.with_name(f"{first}-{path.name}")
        codec, options = ("libvpx", {"deadline": "realtime"}) if with_times else ("libx264", X264)
        parts.append(write_clip(part, codec, 10, first=first, size=size, options=options))
    if with_times:
        join(path, parts)
    else:
        path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_frames_of_another_size_are_scaled_to_that_of_the_first(two_sizes):
    clip = read_clip(two_sizes, 20)
    assert numbers(clip.frames) == list(range(20)) and clip.frames.shape == (20, HEIGHT, WIDTH, 3)
    # Whichever frames are taken: the size is that of the file's first frame, and each is the same picture.
    track = read_track(two_sizes)
    for indices in ([15], [3, 4], [4, 12], [10, 19]):
        assert np.array_equal(decode(two_sizes, track, indices), clip.frames[indices])


@pytest.mark.parametrize("name", [path.name.removesuffix(".png") for path in sorted(COLOURS.glob("*.png"))])
def test_pictures_are_those_of_ffmpeg_bit_for_bit(name):
    with Image.open(COLOURS / f"{name}.png") as image:
        expected = np.asarray(image).reshape(2, -1, image.width, 3)
    assert np.array_equal(read_frames(COLOURS / name, 2), expected)
