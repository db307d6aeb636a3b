"""How commands end early: a reader that has gone and Ctrl-C leave whole files and the usual status."""

import subprocess
import sys

import pytest

from hookedvid.cli import model_list
from hookedvid.cli.commands import main
from hookedvid.data.shapes import clips
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.values import progress
from hookedvid.video.frames import read_clip


def test_a_reader_that_has_gone_ends_nothing():
    program = [sys.executable, "-m", "hookedvid.cli", "models"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # before a word is printed, as of `| true`
        assert process.stderr.read() == b"" and process.wait() == 0


def test_ctrl_c_leaves_whole_clips_and_the_next_call_goes_on(tmp_path, monkeypatch):
    how = {"seed": 3, "split": "val", "n_videos": 3, "questions_per_video": 1}
    encode, calls = clips.mp4_bytes, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(*args, **kwargs)

    monkeypatch.setattr(clips, "mp4_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(tmp_path, **how)
    there = {p.name: p.read_bytes() for p in (tmp_path / "clips").iterdir()}
    assert len(there) == 2 and not (tmp_path / "items.jsonl").exists()
    assert all(len(read_clip(tmp_path / "clips" / name, 8).frames) == 8 for name in there)
    assert make_dataset(tmp_path, **how).exists()
    assert all((tmp_path / "clips" / name).read_bytes() == data for name, data in there.items())


def test_ctrl_c_is_130_in_any_verb(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_list, "home", interrupted)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bar_is_shown_to_who_looks_and_only_when_it_takes_long(monkeypatch, capsys):
    def made():
        with progress.bar(3, "making", "clips") as done:
            for _ in range(3):
                done(1)
        return capsys.readouterr().err

    assert made() == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert made() == ""
    monkeypatch.setattr(progress, "WAIT", 0.0)
    assert "making" in made()
