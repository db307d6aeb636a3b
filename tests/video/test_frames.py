"""Frames are the asked ones, exactly, whatever they come as: every picture carries its number."""

import random
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from clips import HEIGHT, WIDTH, X264, numbers, patched, picture, remux, write_clip
from hookedvid.errors import InputError
from hookedvid.video import decode
from hookedvid.video.frames import read_clip, read_frames

OPEN_GOP = X264 | {"x264-params": "keyint=15:open-gop=1:b-adapt=0:scenecut=0"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=15:bframes=3:open-gop=1:scenecut=0"}
REALTIME = {"deadline": "realtime", "cpu-used": "8"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+delay_moov"}

# File name -> arguments of `write_clip`. H.264 in AVI and bare H.264 have no usable presentation times; open
# groups and intra refresh of H.264 cannot be entered in mid-file.
FORMATS = {
    "h264.mp4": dict(options=X264),
    "h264.mkv": dict(options=X264),
    "h264.avi": dict(options=X264),
    "h264.ts": dict(options=X264),
    "bare.h264": dict(options=X264),
    "fragmented.mp4": dict(options=X264, muxer=FRAGMENTED),
    "open.mp4": dict(options=OPEN_GOP),
    "open.mkv": dict(options=OPEN_GOP),
    "refresh.mp4": dict(options={"preset": "veryfast", "x264-params": "keyint=15:intra-refresh=1"}),
    "dense.mp4": dict(options=X264 | {"x264-params": "keyint=4:min-keyint=1"}),
    "hevc.mp4": dict(codec="libx265", options=X265),
    "vp9.webm": dict(codec="libvpx-vp9", options=REALTIME),
    "vp8.webm": dict(codec="libvpx", options=REALTIME),
    "av1.mp4": dict(codec="libsvtav1", options={"preset": "12", "svtav1-params": "keyint=15"}),
    "mpeg4.avi": dict(codec="mpeg4"),
    "mpeg4-b.avi": dict(codec="mpeg4", bf=2),
    "mpeg4-b.mp4": dict(codec="mpeg4", bf=2),
    "mpeg2.mpg": dict(codec="mpeg2video", bf=2),
    "sorenson.flv": dict(codec="flv"),
    "frames.gif": dict(codec="gif", pix="rgb8"),
    "one.mp4": dict(n=1),
    "one.webm": dict(codec="libvpx-vp9", n=1, options=REALTIME),
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="session")
def clip(folder):
    """Writes a format once; further calls find it."""

    def made(name):
        path = folder / name
        return path if path.exists() else write_clip(path, **FORMATS[name])

    return made


@pytest.fixture
def passes(monkeypatch):
    """Whether each decoding pass was allowed to seek."""
    seen, real = [], decode._decode

    def spy(path, track, indices, *, seek):
        seen.append(seek)
        return real(path, track, indices, seek=seek)

    monkeypatch.setattr(decode, "_decode", spy)
    return seen


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_asked_frames(clip, name):
    path, rng = clip(name), random.Random(name)
    track = decode.read_track(path)
    n = FORMATS[name].get("n", 60)
    assert track.n_total == n
    for _ in range(6):
        indices = sorted(rng.choices(range(n), k=rng.choice([1, 2, 5])))
        assert numbers(decode.decode(path, track, indices)) == indices
    whole = read_clip(path, n)
    assert numbers(whole.frames) == list(whole.indices) == list(range(n))


@pytest.mark.parametrize("name", ["h264.mp4", "h264.ts", "hevc.mp4", "vp9.webm", "av1.mp4", "mpeg4-b.mp4"])
def test_frames_are_bitwise_those_of_decoding_it_all(clip, name):
    with av.open(str(clip(name))) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    indices = [0, 14, 15, 16, 37, 59]
    frames = decode.decode(clip(name), decode.read_track(clip(name)), indices)
    assert np.array_equal(frames, np.stack([every[i] for i in indices]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h264.mp4", [True]),
        ("h264.mkv", [True]),
        ("fragmented.mp4", [True]),
        ("hevc.mp4", [True]),
        ("vp9.webm", [True]),
        ("av1.mp4", [True]),
        ("open.mp4", [True, False]),
        ("refresh.mp4", [True, False]),
        ("mpeg4-b.avi", [False]),
        ("bare.h264", [False]),
    ],
)
def test_the_whole_file_is_decoded_only_where_it_must(clip, passes, name, expected):
    assert numbers(read_frames(clip(name), 2, bound=None)) == [0, 59]
    assert passes == expected


def test_false_random_access_points_are_noticed(clip, folder, passes):
    # FFmpeg corrects such flags by parsing the packets where it can; it has no parser for Sorenson's codec.
    path = folder / "false.flv"
    remux(path, clip("sorenson.flv"), lambda i, packet: setattr(packet, "is_keyframe", True))
    assert len(decode.read_track(path).keys) == 60
    assert numbers(read_frames(path, 7)) == [0, 9, 19, 29, 39, 49, 59]
    assert passes == [True, False]


def test_variable_frame_rate(folder):
    # 20 frames at 30 per second, then 20 at 10.
    pts = list(range(20)) + list(range(20, 80, 3))
    for name in ("variable.mp4", "variable.webm"):
        codec = "libx264" if name.endswith("mp4") else "libvpx-vp9"
        path = write_clip(folder / name, codec, n=40, pts=pts, options=None if codec == "libx264" else REALTIME)
        clip = read_clip(path, 14)
        assert numbers(clip.frames) == list(clip.indices) == list(range(0, 40, 3))
        # Matroska rounds times to milliseconds.
        assert clip.times == pytest.approx([pts[i] / 30 for i in clip.indices], abs=1e-3)


def test_times_begin_at_the_first_frame(folder):
    path = write_clip(folder / "late.mp4", n=30, pts=range(90, 120), options=X264)
    clip = read_clip(path, 3)
    assert clip.times == pytest.approx([0, 14 / 30, 29 / 30])
    assert clip.duration == pytest.approx(1) and clip.fps == pytest.approx(30)


def test_an_edit_list_that_begins_inside_a_group(clip, folder, passes):
    # media_time of the edit, 12 bytes into elst: 22 frames of 512 units later. Decoding starts at frame 15.
    source = clip("h264.mp4")
    path = patched(folder / "later.mp4", source, b"elst", 12, ">I", 1024 + 22 * 512)
    clip = read_clip(path, 4)
    assert (clip.n_total, clip.indices) == (38, (0, 12, 24, 37))
    assert numbers(clip.frames) == [22, 34, 46, 59]
    assert clip.times == pytest.approx([0, 12 / 30, 24 / 30, 37 / 30])
    assert passes == [True]


def test_an_edit_list_that_ends_early(clip, folder):
    # segment_duration, in milliseconds: the header still announces all 60 packets.
    path = patched(folder / "shorter.mp4", clip("h264.mp4"), b"elst", 8, ">I", 1000)
    clip = read_clip(path, 3)
    assert (clip.n_total, numbers(clip.frames)) == (30, [0, 14, 29])


def test_hidden_vp8_packets_are_no_frames(clip, folder):
    # Clearing show_frame makes packet 20 what libvpx writes for an alternate reference: decoded, not shown.
    def hide(i, packet):
        data = bytearray(bytes(packet))
        data[0] &= ~0x10
        return bytes(data) if i == 20 else None

    path = remux(folder / "hidden.webm", clip("vp8.webm"), hide)
    clip = read_clip(path, 59)
    assert clip.n_total == 59
    assert numbers(clip.frames) == [i for i in range(60) if i != 20]


def test_short_videos_repeat_frames_as_the_sampler_says(folder):
    clip = read_clip(write_clip(folder / "three.mp4", n=3), 8)
    assert numbers(clip.frames) == list(clip.indices) == [0, 0, 0, 0, 1, 1, 1, 2]


def test_samplers_and_bounds_reach_the_file(clip):
    path = clip("h264.mp4")
    assert numbers(read_frames(path, 4, "inner")) == [12, 24, 36, 48]
    assert numbers(read_frames(path, 4, "one_fps")) == [0, 30]
    assert numbers(read_frames(path, 2, bound=(0.5, 1))) == [15, 30]


def test_names_that_look_like_protocols_and_patterns(clip, folder, monkeypatch):
    path = folder / "http:a %03d.mp4"
    path.write_bytes(clip("h264.mp4").read_bytes())
    assert numbers(read_frames(path, 2)) == [0, 59]
    monkeypatch.chdir(folder)
    assert numbers(read_frames("http:a %03d.mp4", 2)) == [0, 59]


def test_tags_that_are_not_utf8(folder):
    path = write_clip(folder / "tags.mkv", n=3, title="Caféé")
    path.write_bytes(path.read_bytes().replace("Caféé".encode(), b"Caf\xe9\xe9\xe9\xe9"))
    assert numbers(read_frames(path, 3)) == [0, 1, 2]


def test_memory_is_the_result(clip):
    tracemalloc.start()
    frames = read_frames(clip("h264.mp4"), 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # All 60 frames would be 15 results; one more picture is on its way into the result.
    assert peak < 2.5 * frames.nbytes


def test_one_clip_is_the_same_from_folder_array_tensor_and_images(tmp_path):
    frames = np.stack([picture(i) for i in range(12)])
    images = [Image.fromarray(frame) for frame in frames]
    for i, image in enumerate(images):  # frame_2 comes before frame_10
        image.save(tmp_path / f"frame_{i}.{'png' if i % 2 else 'BMP'}")
    (tmp_path / ".DS_Store").write_bytes(b"junk")
    first = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))
    tensors = [torch.from_numpy(frames), torch.from_numpy(first), torch.from_numpy(frames).permute(0, 3, 1, 2)]
    sources = [tmp_path, str(tmp_path), frames, first, *tensors, images, tuple(images)]
    for source in sources:
        clip = read_clip(source, 5, folder_fps=3)
        assert np.array_equal(clip.frames, frames[[0, 2, 5, 8, 11]]) and clip.frames.flags.c_contiguous
        assert clip.indices == (0, 2, 5, 8, 11) and clip.n_total == 12
        assert clip.times == pytest.approx([i / 3 for i in clip.indices])
        assert (clip.fps, clip.duration) == (3, 4)


def test_sources_are_named(clip, tmp_path):
    picture_file = tmp_path / "0.png"
    Image.fromarray(picture(0)).save(picture_file)
    frames = picture(0)[None]
    assert read_clip(clip("one.mp4"), 1).source == str(clip("one.mp4"))
    assert read_clip(tmp_path, 1).source == str(tmp_path)
    assert read_clip(frames, 1).source == "array"
    assert read_clip([Image.fromarray(frames[0])], 1).source == "images"


def test_without_a_rate_there_are_no_times(clip, folder):
    # FFmpeg states 25 per second for a bare stream of whatever rate.
    av1 = write_clip(folder / "bare.obu", "libsvtav1", 3, options={"preset": "12"})
    for source in (np.stack([picture(i) for i in range(3)]), clip("bare.h264"), av1):
        found = read_clip(source, 2)
        assert (found.times, found.fps, found.duration) == (None, None, None)


# Files whose header states no rate.
RATES = {
    "vp8.ogv": dict(codec="libvpx", options=REALTIME),
    "vp9.ivf": dict(codec="libvpx-vp9", options=REALTIME),
    "bare.m2v": dict(codec="mpeg2video", bf=2),
    "bare.m4v": dict(codec="mpeg4"),
}


@pytest.mark.parametrize("name", [*FORMATS, *RATES, "equal.mkv"])
def test_rates_are_the_files_own(clip, folder, name):
    if name in RATES:
        path = write_clip(folder / name, **RATES[name])
    elif name == "equal.mkv":

        def no_time_of_its_own(i, packet):
            packet.pts = packet.dts = (i - (i % 12 == 6)) * 33

        path = remux(folder / name, clip("vp8.webm"), no_time_of_its_own)
    else:
        path = clip(name)
    found = read_clip(path, 3)
    n = FORMATS.get(name, {}).get("n", 60)
    # GIF counts hundredths of a second, Matroska thousandths; a single frame of either has no rate.
    assert found.fps == (None if name == "bare.h264" else pytest.approx(30, rel=0.12 if name == "frames.gif" else 0.02))
    assert numbers(found.frames) == [0, (n - 1) // 2, n - 1]
    assert (found.times is None) == (name in ("bare.h264", "equal.mkv"))


def test_folder_rate_serves_bounds_and_one_fps():
    frames = np.stack([picture(i) for i in range(12)])
    assert numbers(read_frames(frames, 32, "one_fps", folder_fps=3)) == [0, 3, 6, 9]
    assert numbers(read_frames(frames, 2, bound=(1, 2), folder_fps=3)) == [3, 6]


def test_files_tell_their_own_rate(clip):
    assert read_clip(clip("h264.mp4"), 2, folder_fps=3).times == pytest.approx((0, 59 / 30))


def test_images_of_any_mode_become_rgb(tmp_path):
    grey = Image.fromarray(picture(5)).convert("L")
    for image in (grey, grey.convert("P"), grey.convert("RGBA"), grey.convert("1")):
        assert read_frames([image], 1).shape == (1, HEIGHT, WIDTH, 3)
    assert np.array_equal(read_frames([grey], 1)[0], picture(5))


def test_reading_leaves_arrays_alone():
    frames = np.stack([picture(i) for i in range(3)])
    read_frames(frames, 3)[:] = 0
    assert numbers(frames) == [0, 1, 2]


@pytest.mark.parametrize("fps", [0, -3, float("inf"), float("nan")])
def test_folder_rates_out_of_range(fps):
    with pytest.raises(InputError, match="give frames per second"):
        read_frames(picture(0)[None], 1, folder_fps=fps)


def test_arguments_out_of_range_are_the_callers_fault(clip):
    with pytest.raises(InputError, match="no sampler 'linspase'; nearest: 'linspace'"):
        read_frames(clip("one.mp4"), 1, "linspase")
    with pytest.raises(InputError, match="n_frames is 0"):
        read_frames(Path(clip("one.mp4")), 0)
