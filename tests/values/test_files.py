import os
import stat
from pathlib import Path

import pytest

from hookedvid.errors import DataError
from hookedvid.values.files import PART, open_regular, read_regular, write_bytes, write_text, written


def test_a_file_is_whole_or_as_it_was(tmp_path):
    target = tmp_path / "table.csv"
    write_text(target, "before")
    with pytest.raises(OSError, match="full"), written(target) as part:
        part.write_text("half")
        raise OSError("disk full")
    assert target.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_link_is_replaced_and_what_it_names_is_left_alone(tmp_path):
    other = tmp_path / "other"
    other.write_text("mine")
    link = tmp_path / "report.html"
    link.symlink_to(other)
    write_text(link, "report")
    assert other.read_text() == "mine"
    assert not link.is_symlink()
    assert link.read_text() == "report"


def test_two_writers_of_one_file_do_not_share_a_name(tmp_path):
    target = tmp_path / "study.json"
    with written(target) as first, written(target) as second:
        assert first != second
        assert first.name.startswith(PART)
        assert first.suffix == ".json"
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"  # the outer one ended last


def test_permissions_are_those_asked_for(tmp_path):
    write_bytes(tmp_path / "frames.npy", b"x", mode=0o600)
    assert stat.S_IMODE((tmp_path / "frames.npy").stat().st_mode) == 0o600


def test_a_pipe_a_device_and_a_folder_are_refused_at_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(DataError, match="no regular file"):
            open_regular(path)


def test_a_file_beyond_its_limit_is_not_read(tmp_path):
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as f:
        f.truncate(2**40)
    with pytest.raises(DataError, match="more than the 1,000"):
        read_regular(sparse, 1000)
    write_bytes(tmp_path / "small", b"abc")
    assert read_regular(tmp_path / "small", 3) == b"abc"
