"""Every bad video gives one VideoError: what was asked, what was found, what to do. None gives frames."""

import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from clips import X264, cut, patched, picture, remux, write_clip
from hookedvid.errors import VideoError
from hookedvid.video.frames import read_clip, read_frames

FAST = {"movflags": "faststart"}
# An MPEG-4 picture that says only that it is not there: P, no second, marker, increment 20 of 30, marker, not coded.
NOT_CODED = b"\0\0\1\xb6" + (0b01_0_1_10100_1_0_01111).to_bytes(2, "big")
KEY = "76a6c65c5ea762046bd749a2e632ccbb"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


@pytest.fixture(scope="session")
def good(folder):
    """A sound clip of 60 frames with its index in front, which the bad ones are made of."""
    return write_clip(folder / "good.mp4", options=X264, muxer=FAST)


def refused(video, *parts, **arguments):
    """The text of the VideoError: one line that names the source, then each of `parts` in this order."""
    with pytest.raises(VideoError) as caught:
        read_frames(video, **({"n_frames": 8} | arguments))
    text = str(caught.value)
    assert text.startswith("cannot sample frames of ") and "\n" not in text
    assert re.search(".*".join(re.escape(part) for part in parts), text), text
    if isinstance(video, Path):
        assert str(video) in text
    return text


def written(path, data):
    path.write_bytes(data)
    return path


def test_no_such_file(folder):
    refused(folder / "none.mp4", "there is no such file", "check the path")


def test_paths_that_no_system_takes():
    refused("a\0b.mp4", "there is no such file")
    refused("x" * 5000 + ".mp4", "there is no such file")


def test_empty_file(folder):
    path = written(folder / "empty.mp4", b"")
    refused(path, "cannot be opened as a video", "0 bytes", "download it again")


def test_web_page_saved_as_video(folder):
    path = written(folder / "page.mp4", b"<!DOCTYPE html><html><body>403 Forbidden</body></html>")
    refused(path, "cannot be opened", "54 bytes that begin with b'<!DOCTYPE html><'", "download it again")


def test_cut_before_its_index(folder):
    path = cut(folder / "no-moov.mp4", write_clip(folder / "moov-last.mp4", options=X264), 0.6)
    refused(path, "an MP4 of", "whose index (moov) is missing or broken", "download it again")


@pytest.mark.parametrize("share", [0.7, 0.9])
def test_cut_behind_its_index(folder, good, share):
    path = cut(folder / f"cut{share}.mp4", good, share)
    refused(path, "its header announces 60 frames, but the file holds ", "the file was cut off: download")


def test_cut_in_its_last_packet(folder, good):
    refused(cut(folder / "last.mp4", good, 0.999), "cut or corrupt packets: 1 of 60", "download it again")


def test_cut_fragments(folder):
    muxer = {"movflags": "frag_keyframe+empty_moov"}
    whole = write_clip(folder / "fragments.mp4", options=X264, muxer=muxer)
    refused(cut(folder / "cut-fragments.mp4", whole, 0.6), "cut or corrupt packets: 1 of ", "download it again")


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("m.mkv", "libx264", X264), ("w.webm", "libvpx", {"deadline": "realtime"}), ("a.avi", "mpeg4", {})],
)
def test_cut_where_only_the_length_is_known(folder, name, codec, options):
    path = cut(folder / f"cut-{name}", write_clip(folder / name, codec, options=options, noise=20), 0.6)
    refused(path, "its header announces 2.00 s, but the file ends at ", "the file was cut off")


@pytest.mark.parametrize(
    ("name", "codec", "options", "box", "offset", "fmt", "value"),
    [
        # AVI: dwLength of the stream's header, 32 bytes behind its type. Matroska: the duration, in milliseconds.
        ("long.avi", "mpeg4", {}, b"vids", 28, "<I", 90),
        ("long.mkv", "libx264", X264, b"\x44\x89\x88", 0, ">d", 3000.0),
    ],
)
def test_a_header_that_promises_too_much_is_told_apart_from_a_cut_file(
    folder, name, codec, options, box, offset, fmt, value
):
    whole = write_clip(folder / f"right-{name}", codec, options=options, noise=20)
    data = bytearray(whole.read_bytes())
    struct.pack_into(fmt, data, data.index(box) + len(box) + offset, value)
    path = written(folder / name, data)
    refused(path, "its header announces 3.00 s, but the file ends at 2.0", "promises too much: remux it (ffmpeg -i")
    refused(cut(folder / f"cut-{name}", path, 0.9), "its header announces 3.00 s", "the file was cut off")


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4"])
def test_damage_in_the_middle(folder, codec):
    quiet = {"x265-params": "log-level=none:info=0"} if codec == "libx265" else {}
    data = bytearray(write_clip(folder / f"{codec}.mp4", codec, noise=20, options=quiet).read_bytes())
    # Several pictures long: inside a single arithmetic-coded one, changed bytes are often another valid picture.
    start, n_bytes = len(data) // 2, len(data) // 20
    data[start : start + n_bytes] = random.Random(0).randbytes(n_bytes)
    refused(written(folder / "damaged.mp4", data), "the file is damaged", n_frames=60)


def test_a_decoder_that_logs_damage_is_waited_for(folder, good):
    # Another library, or the user, may have switched PyAV's log on. In a process of its own: what failed here hung.
    data = bytearray(good.read_bytes())
    data[-1500:-500] = bytes(1000)
    program = f"""
import av.logging
from hookedvid.errors import VideoError
from hookedvid.video.frames import read_frames

av.logging.set_level(av.logging.ERROR)
for _ in range(20):
    try:
        read_frames({str(written(folder / "logged.mp4", data))!r}, 60)
        raise SystemExit("no error")
    except VideoError:
        pass
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("name", ["concealed.mkv", "concealed.avi"])
def test_a_concealed_picture_is_refused(folder, name):
    # FFmpeg fills the lost tenth of the picture from its neighbours, and marks it.
    whole = write_clip(folder / f"whole-{name}", "mpeg4", noise=20)
    path = remux(folder / name, whole, lambda i, packet: bytes(packet)[: packet.size * 9 // 10] if i == 20 else None)
    refused(path, "the file is damaged", n_frames=60)


@pytest.mark.parametrize("n_frames", [2, 60])
def test_a_lost_frame_is_not_concealed(folder, n_frames):
    # FFmpeg alone would show 59 frames and say nothing.
    path = folder / "lost.mp4"
    remux(path, write_clip(folder / "whole.mp4", "mpeg4", gop=60), lambda i, packet: NOT_CODED if i == 20 else None)
    refused(path, "frame 20 of 60 cannot be decoded", "the file is damaged", n_frames=n_frames)


def test_a_file_that_begins_inside_a_group(folder):
    # It begins with the second group: an I picture, then B pictures shown before it that need the first group.
    whole = write_clip(folder / "whole.ts", "mpeg2video", bf=2)
    path = remux(folder / "headless.ts", whole, lambda i, packet: None, keep=lambda i, packet: i >= 16)
    refused(path, "frame 0 of 44 cannot be decoded", "cut out of a longer one: download it again")


def test_sound_only(folder):
    path = folder / "sound.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    refused(path, "it has no video track (tracks: audio)", "check that this is the right file")


def test_cover_art_is_no_video(folder):
    path = folder / "cover.mp3"
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("libmp3lame", rate=44100), container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    refused(path, "it has no video track (tracks: audio, video)", "check that this is the right file")


def test_a_track_without_frames(folder, good):
    # The sample count of stsz (8 bytes in) and the tables that lead to samples, emptied.
    path = patched(folder / "hollow.mp4", good, b"stsz", 8, ">I", 0)
    for box in (b"stts", b"ctts", b"stsc", b"stco", b"stss"):
        patched(path, path, box, 4, ">I", 0)
    refused(path, "its video track holds no frames", "check that this is the right file")


def test_a_codec_nobody_knows(folder, good):
    path = patched(folder / "codec.mp4", good, b"stsd", 12, "4s", b"zzzz")
    refused(path, "PyAV has no decoder for its codec", "re-encode it")


def test_encrypted(folder):
    muxer = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": KEY, "encryption_kid": KEY}
    path = write_clip(folder / "encrypted.mp4", options=X264, muxer=muxer)
    refused(path, "decoding stops", "download it again, or re-encode it")


def test_a_still_image(folder):
    path = folder / "still.png"
    Image.fromarray(picture(0)).save(path)
    refused(path, "it is a still image or a text (png_pipe)", "give images as a folder or a list")


def test_a_text_file(folder):
    # FFmpeg would draw it on a terminal and call that a video.
    path = written(folder / "notes.txt", b"frame 1: a cat\n" * 50)
    refused(path, "it is a still image or a text (tty)", "give images as a folder or a list")


def test_more_pictures_or_fewer_than_packets(folder):
    # AVI has no times that could tell which picture is missing.
    path = folder / "fewer.avi"
    remux(path, write_clip(folder / "whole.avi", "mpeg4"), lambda i, packet: NOT_CODED if i == 20 else None)
    refused(path, "its 60 packets decode to 59 pictures", "download it again, or re-encode it")


def test_folders(folder, tmp_path):
    refused(tmp_path, "the folder holds no images, but 0 other entries", "give a folder of frames")
    written(tmp_path / "a.mp4", b"")
    refused(tmp_path, "the folder holds no images, but 1 other entries", "or the path of one video file")
    Image.fromarray(picture(0)).save(tmp_path / "0.png")
    refused(tmp_path, "1 entries of the folder are no images: a.mp4", "move them out, or convert them")


def test_folders_of_bad_images(tmp_path):
    for i, width in enumerate((96, 128)):
        Image.fromarray(np.zeros((64, width, 3), np.uint8)).save(tmp_path / f"{i}.png")
    refused(tmp_path, "frame 1 is 128x64 but frame 0 is 96x64", "bring all frames to one size first")
    cut(tmp_path / "1.png", tmp_path / "0.png", 0.5)
    refused(tmp_path, "1.png", "the image cannot be read", "extract the frame again")
    written(tmp_path / "1.png", b"<html>")
    refused(tmp_path, "1.png", "the image cannot be read", "extract the frame again")


@pytest.mark.parametrize(
    ("array", "parts"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), ("an array [2, 4, 4, 3] of float32", "no bytes", "give uint8")),
        (torch.zeros(2, 4, 4, 3), ("of torch.float32", "its values are no bytes", "give uint8 RGB")),
        (np.zeros((4, 4, 3), np.uint8), ("[4, 4, 3]", "no RGB axis", "give [frame, height, width, 3]")),
        (np.zeros((2, 4, 4, 1), np.uint8), ("[2, 4, 4, 1]", "no RGB axis", "give [frame, height, width, 3]")),
        (np.zeros((2, 0, 4, 3), np.uint8), ("[2, 0, 4, 3]", "or no pixels", "give [frame, height, width, 3]")),
        (np.zeros((2, 3, 4, 3), np.uint8), ("either of two axes may be RGB", "give a list of PIL images")),
    ],
)
def test_arrays(array, parts):
    refused(array, *parts)


def test_lists():
    small, large = (Image.new("RGB", size) for size in ((8, 8), (9, 8)))
    refused([], "a list of 0: it is empty", "give at least one PIL image")
    refused([small, picture(0)], "it holds ndarray besides images", "or one stacked uint8 array")
    refused([small, large], "frame 1 is 9x8 but frame 0 is 8x8", "bring all frames to one size first")


def test_what_the_samplers_need(good, folder):
    frames = picture(0)[None]
    with pytest.raises(VideoError, match=r"bound \(20, 30\) s holds no frame: the video has 60 frames at 30"):
        read_frames(good, bound=(20, 30))
    with pytest.raises(VideoError, match=r"sampler 'one_fps' needs the frame rate, but fps is None; give"):
        read_frames(frames, sampler="one_fps")
    with pytest.raises(VideoError, match="cannot sample 32 frames of a video that has 0; check the video"):
        read_frames(frames[:0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open files are listed in /proc")
def test_files_are_closed_after_an_error(folder, good):
    bad = cut(folder / "closed.mp4", good, 0.8)
    damaged = bytearray(good.read_bytes())
    damaged[-1500:-500] = bytes(1000)
    for path in (good, bad, written(folder / "closed2.mp4", damaged)):
        try:
            read_frames(path, 60)
        except VideoError:
            assert path != good
        assert str(path) not in {os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")}


def test_any_damage_gives_the_frames_or_a_video_error(folder, good):
    rng, source, n_refused = random.Random(0), good.read_bytes(), 0
    for _ in range(60):
        data = bytearray(source)
        for _ in range(rng.choice([1, 4, 16])):
            start = rng.randrange(len(data))
            data[start : start + 8] = rng.randbytes(len(data[start : start + 8]))
        try:
            clip = read_clip(written(folder / "fuzzed.mp4", data), 8)
            assert len(clip.frames) == 8 and clip.indices[-1] == clip.n_total - 1
        except VideoError as e:
            n_refused += 1
            assert str(e).startswith("cannot sample")
    assert n_refused > 30
