"""Clips that are made: whole, by one process, left alone once they are right, whoever starts when."""

import multiprocessing
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from hookedvid.cli.commands import main
from hookedvid.data.shapes import clips as shapes
from hookedvid.data.shapes.clips import LOCK, TASKS, held_out, make_dataset
from hookedvid.errors import RunError
from hookedvid.study.records import Records
from hookedvid.values.files import PART, locked, write_bytes
from hookedvid.video.source import video_hash

FEW = {"seed": 0, "split": "test", "n_videos": 3, "questions_per_video": 2}
MAKER = f"""
import sys
from hookedvid.cli.commands import main
from hookedvid.data.shapes import clips as shapes
shapes.HELD_OUT = {FEW}
print(shapes.held_out(sys.argv[1], "grounding"))
"""


def stats(folder: Path) -> dict:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_what_is_right_is_left_alone_and_what_is_not_is_made_anew(tmp_path):
    path = make_dataset(tmp_path, **FEW)
    before = stats(tmp_path)
    assert make_dataset(tmp_path, **FEW) == path and stats(tmp_path) == before
    clip = next((tmp_path / "clips").iterdir())
    whole = clip.read_bytes()
    clip.write_bytes(whole[:500])
    (tmp_path / "captions.jsonl").unlink()
    make_dataset(tmp_path, **FEW)
    assert clip.read_bytes() == whole
    after = stats(tmp_path)
    assert {name for name in before if after[name] != before[name]} == {clip.name, "captions.jsonl"}


def test_processes_that_start_together_make_the_data_once(tmp_path, monkeypatch):
    found = [
        subprocess.Popen([sys.executable, "-c", MAKER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    seen: dict[str, set] = {}
    while any(p.poll() is None for p in found):
        for clip in (tmp_path / "clips").glob("[!.]*"):
            seen.setdefault(clip.name, set()).add((video_hash(clip), clip.stat().st_ino))
        time.sleep(0.005)
    assert [p.communicate()[0].strip() for p in found] == [str(tmp_path / "grounding.jsonl")] * 3
    assert len(seen) == 3 and all(len(states) == 1 for states in seen.values())
    monkeypatch.setattr(shapes, "HELD_OUT", FEW)
    before = stats(tmp_path)
    assert held_out(tmp_path) == tmp_path / "items.jsonl" and stats(tmp_path) == before
    assert not list(tmp_path.rglob(f"{PART}*"))


def test_questions_stand_there_only_when_everything_does(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        shapes, "write_if_other", lambda path, data: written.append(path.name) or write_bytes(path, data)
    )
    make_dataset(tmp_path, **FEW)
    assert written[-1] == "items.jsonl" and set(written[3:]) == set(TASKS.values())


def test_a_maker_that_does_not_end_is_waited_for_so_long_and_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "PATIENCE", 0.3)
    with (
        locked(tmp_path / LOCK, 1),
        pytest.raises(RunError, match=r"another process holds .*\.lock for more than 0.3 s"),
    ):
        held_out(tmp_path)


def test_a_lock_follows_no_link_and_cuts_no_file(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(OSError), locked(tmp_path / LOCK, 1):  # another errno on each system
        pass
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).write_text("said")
    with locked(tmp_path / LOCK, 1):
        assert (tmp_path / LOCK).read_text() == "said"
    assert (tmp_path / "mine").read_text() == "mine"


def shard(n: int, out: Path, printed: Path) -> None:
    shapes.HELD_OUT.update(FEW)
    with printed.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        sys.exit(main(["study", "--protocol", "baseline", "--out", str(out), "--shard", f"{n}/2"]))


def test_default_shards_that_start_together_print_the_table(tmp_path):
    """Each hashes its clips when all are made; the last to end finds every row."""
    out = tmp_path / "out"
    fork = multiprocessing.get_context("fork")  # fresh ones would import for longer than they run
    started = [fork.Process(target=shard, args=(n, out, tmp_path / f"{n}.txt")) for n in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    printed = [(tmp_path / f"{n}.txt").read_text() for n in range(2)]
    assert [p.exitcode for p in started] == [0, 0], printed
    assert any("video questions" in text for text in printed), printed
    rows = Records(out).read().values()
    assert {r["status"] for r in rows} == {"ok"}
    for row in rows:
        assert row["settings"]["video"] == video_hash(out / "videos" / row["video"])
