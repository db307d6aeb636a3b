"""Zip files from anybody: what points outside, links, inflates without end or is damaged is refused, the rest read."""

import stat
import struct
import zipfile

import pytest

import miniatures
from clips import numbers, write_clip
from hookedvid.data.registry import read_dataset
from hookedvid.errors import VideoError
from hookedvid.video import archive
from hookedvid.video.archive import split, unsafe
from hookedvid.video.frames import read_clip
from hookedvid.video.source import video_hash

CLIP = miniatures.clip(".mp4")


def written(path, *members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def link(name, target):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info, target


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "members", "said"),
    [
        ("../x.mp4", [("../x.mp4", CLIP)], "its name points outside its folder"),
        ("data/../../x.mp4", [("data/../../x.mp4", CLIP)], "points outside"),
        ("/etc/x.mp4", [("/etc/x.mp4", CLIP)], "no relative path"),
        ("C:/x.mp4", [("C:/x.mp4", CLIP)], "no relative path"),
        ("..\\x.mp4", [("..\\x.mp4", CLIP)], "no relative path"),
        ("x\n.mp4", [("x\n.mp4", CLIP)], "do not print"),
        ("x.mp4", [link("x.mp4", "/etc/passwd")], "it is a link"),
        ("x.mp4", [("x.mp4", CLIP), ("x.mp4", CLIP[:9])], "2 members have this name"),
        ("x.mp4", [("y.mp4", CLIP)], "no such member"),
        ("", [("y.mp4", CLIP)], "no such member"),
    ],
)
def test_members_that_nobody_should_read_are_refused(tmp_path, name, members, said):
    path = written(tmp_path / "a.zip", *members, ("good.mp4", CLIP))
    with pytest.raises(VideoError, match=said):
        read_clip(f"{path}::{name}", 4)
    assert numbers(read_clip(f"{path}::good.mp4", 4).frames) == [0, 19, 39, 59]
    assert video_hash(tmp_path / f"a.zip::{name}") == ""


def test_a_bomb_is_refused_before_it_inflates(tmp_path, monkeypatch):
    path = written(tmp_path / "a.zip", ("x.mp4", bytes(200 << 20)), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(VideoError, match=r"x.mp4: \d+ bytes would inflate to 209715200"):
        read_clip(f"{path}::x.mp4", 4)
    path = written(tmp_path / "b.zip", ("x.mp4", CLIP), compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(archive, "MAX_INFLATED", 1000)
    with pytest.raises(VideoError, match="would inflate to"):
        read_clip(f"{path}::x.mp4", 4)


def patched(path, record, offset, fmt, *values):
    """Changes fields of the first record with this signature."""
    data = bytearray(path.read_bytes())
    struct.pack_into(fmt, data, data.index(record) + offset, *values)
    path.write_bytes(data)
    return path


CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((CENTRAL, 8, "<H", 1), "it is encrypted"),
        ((CENTRAL, 10, "<H", 9), "compressed by method 9"),
        ((CENTRAL, 24, "<I", 1 << 30), "it says that it is 1073741824 bytes, stored as"),
        ((CENTRAL, 20, "<II", 1 << 30, 1 << 30), "it takes 1073741824 bytes, in an archive of"),
        ((CENTRAL, 42, "<I", 5), "not what the archive says"),
        ((CENTRAL, 16, "<I", 7), "not what the archive says .*Bad CRC"),
        ((LOCAL, 26, "<H", 3), "not what the archive says"),
        ((LOCAL, 200, "<I", 0x12345678), "not what the archive says .*Bad CRC"),
    ],
)
def test_archives_that_lie_are_refused(tmp_path, change, said):
    path = patched(written(tmp_path / "a.zip", ("x.mp4", CLIP)), *change)
    with pytest.raises(VideoError, match=said):
        read_clip(f"{path}::x.mp4", 4)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_size_that_is_too_small_is_no_shorter_video(tmp_path, compression):
    path = written(tmp_path / "a.zip", ("x.mp4", CLIP), compression=compression)
    sizes = struct.unpack_from("<II", path.read_bytes(), path.read_bytes().index(CENTRAL) + 20)
    less = (sizes[0], sizes[1] - 100) if compression else (sizes[0] - 100, sizes[1] - 100)
    patched(path, CENTRAL, 20, "<II", *less)
    with pytest.raises(VideoError, match="not what the archive says"):
        read_clip(f"{path}::x.mp4", 4)


def test_frames_of_a_folder_are_refused_for_one_bad_member(tmp_path):
    frames = [(f"f/{n:05d}.jpg", miniatures.jpeg(n)) for n in range(4)]
    path = written(tmp_path / "a.zip", *frames, ("f/sub/x.jpg", b""), ("g", b""))
    assert numbers(read_clip(f"{path}::f", 4).frames) == numbers(read_clip(f"{path}::f/", 4).frames) == [0, 1, 2, 3]
    with pytest.raises(VideoError, match=r"f/00009.jpg: it is a link"):
        read_clip(f"{written(tmp_path / 'b.zip', *frames, link('f/00009.jpg', '/etc/passwd'))}::f", 4)
    with pytest.raises(VideoError, match="no such member"):
        read_clip(f"{path}::fo", 4)


@pytest.mark.parametrize("data", [b"", b"<html>", b"PK\x05\x06"])
def test_what_is_no_archive_is_said_to_be_none(tmp_path, data):
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(VideoError, match=r"a.zip: the archive cannot be read .*; download it again"):
        read_clip(tmp_path / "a.zip::x.mp4", 4)
    with pytest.raises(VideoError, match=r"b.zip: the archive cannot be read .*check the path"):
        read_clip(tmp_path / "b.zip::x.mp4", 4)


def test_a_path_that_exists_is_no_member(tmp_path):
    odd = tmp_path / "a.zip::b.mp4"
    odd.write_bytes(CLIP)
    assert split(odd) is None and numbers(read_clip(odd, 2).frames) == [0, 59]
    assert split(tmp_path / "A.ZIP::c/d.mp4") == (tmp_path / "A.ZIP", "c/d.mp4")
    assert split("a.mp4") is None


def test_an_archive_that_changes_is_read_anew(tmp_path):
    path = written(tmp_path / "a.zip", ("x.mp4", b"0"))
    assert not archive.index(path).refused
    written(path, ("y.mp4", CLIP))
    assert list(archive.index(path).files) == ["y.mp4"]


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr(archive, "IN_MEMORY", 100)
    (tmp_path / "set").mkdir()
    path = written(tmp_path / "set" / "a.zip", ("x.mp4", CLIP), compression=zipfile.ZIP_DEFLATED)
    assert numbers(read_clip(f"{path}::x.mp4", 2).frames) == [0, 59]
    assert list(scratch.iterdir()) == [] and list((tmp_path / "set").iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.mp4", "-x_1.mp4", "a b/c (1).mp4", "ü.mp4", "a..b/..c"])
def test_ordinary_names_are_no_trouble(name):
    assert unsafe(name) == ""


def test_refused_members_of_a_dataset_are_missing_with_the_reason(tmp_path):
    folder = miniatures.videomme(tmp_path)
    with zipfile.ZipFile(folder / "videos_chunked_01.zip", "w") as file:
        file.writestr(*link("data/-Abc_123xyz.mp4", "/etc/passwd"))
        file.writestr("../../evil.mp4", CLIP)
    found = read_dataset("videomme", folder)
    reason = "videos_chunked_01.zip::data/-Abc_123xyz.mp4: it is a link"
    assert found.missing == dict.fromkeys(["001-1", "001-2", "001-3"], reason)
    assert any("2 members are not read" in note and "'../../evil.mp4'" in note for note in found.notes)


def test_two_archives_that_disagree_on_a_video_are_trouble(tmp_path):
    folder = miniatures.videomme(tmp_path)
    written(folder / "videos_chunked_03.zip", ("data/-Abc_123xyz.mp4", CLIP))
    assert read_dataset("videomme", folder).complete
    written(folder / "videos_chunked_03.zip", ("data/-Abc_123xyz.mp4", CLIP + b"0"))
    assert "another content" in read_dataset("videomme", folder).missing["001-1"]


def test_tags_that_are_not_utf8(tmp_path):
    """Where PyAV has to be asked twice, the member is read from its start again."""
    plain = write_clip(tmp_path / "tags.mkv", n=3, title="Caféé")
    data = plain.read_bytes().replace("Caféé".encode(), b"Caf\xe9\xe9\xe9\xe9")
    path = written(tmp_path / "a.zip", ("tags.mkv", data))
    assert numbers(read_clip(f"{path}::tags.mkv", 3).frames) == [0, 1, 2]
