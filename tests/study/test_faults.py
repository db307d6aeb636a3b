"""A study through everything that goes wrong: it ends with every row right or failed with its reason, none twice."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from hookedvid.cli.commands import main
from hookedvid.data.item import read_items, write_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.errors import RunError
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.study.definition import Study, plan
from hookedvid.study.records import ROWS, Records
from hookedvid.study.results import summary
from hookedvid.study.run import tasks as running
from hookedvid.study.run.tasks import run
from hookedvid.study.run.timing import Timing
from hookedvid.study.scorings.letters import Letters
from hookedvid.video.clip_files import FrameCache
from hookedvid.video.decoders import Decoders, Limits
from processes import descendants, end, gone

pytestmark = pytest.mark.shapes_unchecked

STUDY = Study(protocols=("all-layers",), n_frames=4)
# Which of the 18 clips, of two questions each, is made to do what; the names are `faulty_worker`'s.
FAULTS = {
    4: "hang", 9: "once", 10: "grow", 11: "crash", 12: "killed", 13: "hang", 14: "bug", 15: "corrupt", 16: "missing"
}  # fmt: skip
FULL = 60_000  # bytes of a file on the full disk: more than a clip of frames, less than half of all rows
PASSING = {"hang": "timeout", "grow": "memory", "killed": "killed"}
LASTING = {"crash": "crash", "bug": "video", "corrupt": "video", "missing": "video"}


@pytest.fixture(autouse=True, scope="module")
def decoders():
    """Not shared: they are killed here."""


@pytest.fixture(scope="module")
def model() -> HookedVideoLLM:
    return HookedVideoLLM.from_pretrained("tiny")


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> Path:
    """36 items on 18 clips, some of them named for a fault; one is cut off and one is not there."""
    at = tmp_path_factory.mktemp("set")
    make_dataset(at, seed=5, split="test", n_videos=18, questions_per_video=2)
    items = read_items(at / "items.jsonl")
    videos = list(dict.fromkeys(i.video for i in items))
    assert (len(items), len(videos)) == (36, 18)
    names = {v: f"{FAULTS.get(n, 'sound')}-{n}.mp4" for n, v in enumerate(videos)}
    for old, new in names.items():
        (at / old).rename(at / new)
    (at / "corrupt-15.mp4").write_bytes((at / "corrupt-15.mp4").read_bytes()[:300])
    (at / "missing-16.mp4").unlink()
    write_items([replace(i, video=names[i.video]) for i in items], at / "items.jsonl")
    return at / "items.jsonl"


@pytest.fixture(scope="module")
def laid(model, annotations):
    return plan(STUDY, model, annotations)


@pytest.fixture(scope="module")
def undisturbed(laid, model, tmp_path_factory):
    return run(laid, model, tmp_path_factory.mktemp("undisturbed"))


def table(laid, rows) -> list[str]:
    """As text: what a scoring has no value for is NaN, which equals nothing."""
    return [str(s) for s in summary.summarise(summary.Outcomes(laid.items, laid.conditions, rows), 100)]


def fault_of(row) -> str:
    return row["video"].split("-")[0]


def written(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def drive(laid, model, out: Path) -> None:
    tempfile.tempdir = str(out.parent)
    with Decoders(2, worker="faulty_worker") as decoders:
        run(laid, model, out, decoders=decoders)


def kill_the_driver(laid, model, out: Path) -> None:
    """kill -9 while one of its workers hangs."""
    driver = multiprocessing.get_context("fork").Process(target=drive, args=(laid, model, out), daemon=True)
    driver.start()
    before = next(iter(FAULTS)) * 2 * 4  # rows of the clips before the one that hangs
    while written(out / ROWS) < before:
        assert driver.exitcode is None
        time.sleep(0.05)
    workers = psutil.Process(driver.pid).children()
    driver.kill()
    driver.join()
    assert len(workers) == 2 and gone(workers)
    assert list(out.parent.glob("hookedvid-*")) == []  # nor are files of theirs left
    with (out / ROWS).open("ab") as f:
        f.write(b'{"key": "torn')


@contextmanager
def full_disk_at(size: int):
    """Files end at `size` bytes, in this process and the ones it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run_out_of_memory(monkeypatch, times: set[int]) -> None:
    """Sweeps of these numbers ask for more memory than there is, or say so as CUDA does."""
    exact, n = running.sweep, 0

    def sweep(*args, **given):
        nonlocal n
        n += 1
        if n in times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        if n - 1 in times:
            torch.empty(1 << 60, dtype=torch.uint8)
        return exact(*args, **given)

    monkeypatch.setattr(running, "sweep", sweep)


def test_a_study_survives_everything_and_ends_with_the_undisturbed_table(
    laid, model, undisturbed, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    right = {r["key"]: r for r in undisturbed}
    kill_the_driver(laid, model, out)
    kept = Records(out).read()
    assert 32 <= len(kept) < len(right) and all(right[k] == r for k, r in kept.items())

    def again(worker="faulty_worker", on_row=None, **more):
        timing = Timing()
        with Decoders(2, Limits(3, 250 << 20), FrameCache(tmp_path / worker, 1 << 30), worker) as decoders:
            rows = run(laid, model, out, on_row, decoders=decoders, timing=timing, **more)
        return rows, timing

    with full_disk_at(FULL), pytest.raises(RunError, match=r"cannot write to .*: File too large; every row"):
        again("hookedvid.video.worker")
    kept = Records(out).read()
    assert 32 < len(kept) < len(right) / 2 and all(right[k] == r for k, r in kept.items())

    told = 0

    def kill_a_worker(row, fresh):
        nonlocal told
        told += fresh
        if fresh and told == 1:  # one, and once: a clip that is hit twice fails
            while not (workers := descendants("faulty_worker")):  # those that a clip has killed are being replaced
                time.sleep(0.01)
            end(workers[:1])

    with monkeypatch.context() as patched:
        run_out_of_memory(patched, {3})
        rows, timing = again(on_row=kill_a_worker)
    assert timing.n_lost >= 6
    failed = [r for r in rows if r["status"] == "failed"]
    assert {(fault_of(r), r["fault"]) for r in failed} >= (PASSING | LASTING).items()
    starved = [r for r in failed if r["fault"] == "memory" and fault_of(r) != "grow"]
    assert any("CUDA out of memory" in r["reason"] for r in starved)
    assert any("can't allocate memory" in r["reason"] for r in starved)
    assert all(r["reason"] and r["correct"] is None for r in failed)
    assert all(r == right[r["key"]] for r in rows if r["status"] != "failed")

    rows, _ = again("hookedvid.video.worker")  # whatever it was has passed
    assert {(fault_of(r), r["fault"]) for r in rows if r["status"] == "failed"} == LASTING.items()
    rows, _ = again("hookedvid.video.worker", retry_failed=True)
    assert rows == undisturbed and table(laid, rows) == table(laid, undisturbed)
    n = written(out / ROWS)
    rows, timing = again("no_such_module")
    assert rows == undisturbed and written(out / ROWS) == n and timing.n_clips == 0
    lines = [json.loads(line) for line in (out / ROWS).read_text().splitlines()]
    assert {line["key"] for line in lines} == right.keys()
    assert max(Counter(line["key"] for line in lines if line["status"] != "failed").values()) == 1


def test_an_unforeseen_error_of_one_item_ends_no_study_and_is_tried_again(laid, model, tmp_path, monkeypatch):
    few = replace(laid, items=laid.items[:2], tasks=[t for t in laid.tasks if t[0] in laid.items[:2]])
    bad = few.items[0].id
    whole = Letters.outcome

    def outcome(self, model, item, *args):
        return {}["nothing"] if item.id == bad else whole(self, model, item, *args)

    def broken(*args, **given):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with monkeypatch.context() as patched:
        patched.setattr(Letters, "outcome", outcome)
        patched.setattr(running, "sweep", broken)  # what a sweep cannot answer is asked alone
        rows = run(few, model, tmp_path / "out")
    assert {(r["item"] == bad, r["status"], r["fault"]) for r in rows} == {(True, "failed", "error"), (False, "ok", "")}
    assert {r["status"] for r in run(few, model, tmp_path / "out")} == {"ok"}


@pytest.mark.parametrize("reuse", ["none", "layers"])
def test_memory_that_runs_out_fails_an_item_however_work_is_shared(reuse, model, annotations, tmp_path, monkeypatch):
    few = plan(replace(STUDY, reuse=reuse), model, annotations, limit=2)
    whole = type(model).forward

    def starving(self, *args, **kwargs):
        if kwargs.get("interventions"):
            torch.empty(1 << 60, dtype=torch.uint8)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", starving)
    rows = run(few, model, tmp_path / "out")
    assert [r["status"] for r in rows] == ["ok", "failed", "failed", "failed"] * 2
    monkeypatch.undo()
    again = run(few, model, tmp_path / "out")
    assert [r["status"] for r in again] == ["ok"] * 8 and again[0] == rows[0]


def test_the_command_shows_failures_and_seconds_and_a_pipe_stops_nothing(annotations, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    shutil.copytree(annotations.parent, tmp_path / "set")
    items = read_items(annotations)[6:12]
    (tmp_path / "set" / "hang-4.mp4").unlink()
    os.mkfifo(tmp_path / "set" / "hang-4.mp4")
    write_items(items, tmp_path / "set" / "items.jsonl")
    (tmp_path / "study.toml").write_text('items = "set/items.jsonl"\nprotocols = ["all-layers"]\nn_resamples = 100\n')
    command = ["study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "out"), "--decoders", "1"]
    assert main([*command, "--frame-cache", "0"]) == 0
    printed = capsys.readouterr().out
    assert re.search("failed: .*hang-4.mp4: it is no regular file but a pipe", printed)
    assert "decoding 0." in printed and " s in 1 workers, model " in printed and "waited for frames" in printed
    timing = json.loads((tmp_path / "out" / "study.json").read_text())["timing"]
    assert timing["videos"].keys() == {"sound-3.mp4", "hang-4.mp4", "sound-5.mp4"}
    table = (tmp_path / "out" / "summary.csv").read_text()
    for kept in (False, True):
        (tmp_path / "out" / ROWS).unlink()
        assert main(command) == 0
        assert ("2 of 3 clips were kept from before" in capsys.readouterr().out) == kept
        assert (tmp_path / "out" / "summary.csv").read_text() == table  # the cache changes no number
