"""Rows and reports are of the bytes that their keys were made of; paths that name nothing fail their own items."""

import errno
import multiprocessing
import os
import shutil
import time
from dataclasses import replace

import pytest
from PIL import Image

import miniatures
from hookedvid.cli.commands import main
from hookedvid.data.item import read_items, write_items
from hookedvid.data.registry import read_dataset
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.errors import DecodingError, InputError
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.study.definition import Study, plan
from hookedvid.study.run import tasks as running
from hookedvid.study.run.tasks import run
from hookedvid.video import source
from hookedvid.video.clip_files import FrameCache
from hookedvid.video.decoders import Decoders
from hookedvid.video.frames import read_frames
from hookedvid.video.source import content_hash

pytestmark = pytest.mark.shapes_unchecked

STUDY = Study(protocols=("baseline",))


@pytest.fixture(scope="module")
def model():
    return HookedVideoLLM.from_pretrained("tiny")


@pytest.fixture
def items(tmp_path):
    """Two clips with a question each."""
    return make_dataset(tmp_path / "set", seed=5, split="test", n_videos=2, questions_per_video=1)


def clips(items):
    return [items.parent / item.video for item in read_items(items)]


@pytest.mark.parametrize("kept", [False, True])
def test_a_video_replaced_after_the_plan_leaves_no_numbers_under_its_old_key(items, model, tmp_path, kept):
    cache = FrameCache(tmp_path / "frames", 1 << 30) if kept else None
    laid, (first, second) = plan(STUDY, model, items), clips(items)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with Decoders(1, cache=cache) as decoders:
        old = run(laid, model, tmp_path / "out", decoders=decoders)
        assert [(r["status"], r["fault"]) for r in old] == [("failed", "changed"), ("ok", "")]
        now = run(plan(STUDY, model, items), model, tmp_path / "out", decoders=decoders)
        assert [r["status"] for r in now] == ["ok", "ok"]
        assert now[0]["key"] != old[0]["key"] and now[1] == old[1]
        first.write_bytes(content)  # what passes is tried again
        again = run(plan(STUDY, model, items), model, tmp_path / "out", decoders=decoders)
    assert [r["status"] for r in again] == ["ok", "ok"] and again[0]["key"] == old[0]["key"]


@pytest.mark.filterwarnings("ignore::hookedvid.model.prompt_tokens.UnknownWordWarning")
def test_subtitles_replaced_after_the_plan_leave_no_numbers_under_their_old_key(tmp_path, model):
    data = read_dataset("videomme:subtitles", miniatures.videomme(tmp_path / "set", layout="data"))
    name = "videomme/lmms-eval@2026-04+subtitles"
    study = Study(dataset=data.name, data="set", protocols=("baseline",), convention=name, scoring="generate")
    laid = plan(study, model, data.folder, None, data.items)
    spoken = next(i for i in data.items if i.subtitles).subtitles
    (data.folder / spoken).write_text(miniatures.SRT.replace("hello", "farewell"))
    for row, item in zip(run(laid, model, tmp_path / "out"), data.items, strict=True):
        assert (row["fault"] == "changed") == (item.subtitles == spoken)


@pytest.mark.parametrize("change", ["other", "pipe"])
def test_a_report_shows_no_frames_but_those_that_were_answered_about(items, tmp_path, capsys, monkeypatch, change):
    monkeypatch.setenv("HOOKEDVID_HOME", str(tmp_path / "home"))
    (tmp_path / "study.toml").write_text('items = "set/items.jsonl"\nprotocols = ["baseline"]\nn_resamples = 50\n')
    out = tmp_path / "out"
    assert main(["study", str(tmp_path / "study.toml"), "--out", str(out)]) == 0
    kept = list((tmp_path / "home" / "frames").iterdir())
    assert len(kept) == 2
    page = (out / "report.html").read_text()
    assert page.count('alt="frames in time order"') == 2
    first, second = clips(items)
    shutil.copy(second, first) if change == "other" else first.unlink()
    if change == "pipe":
        os.mkfifo(first)
    assert main(["plot", str(out)]) == 0
    assert (out / "report.html").read_text() == page  # from the frames that were kept
    shutil.rmtree(tmp_path / "home")
    start = time.monotonic()
    assert main(["plot", str(out)]) == 0
    drawn = (out / "report.html").read_text()
    assert drawn.count('alt="frames in time order"') == 1 and f"no frames: cannot sample frames of {first}: it" in drawn
    assert time.monotonic() - start < 60
    assert not (tmp_path / "home").exists()  # a report keeps nothing


def test_a_report_waits_for_no_pipe_among_a_videos_frames(items, tmp_path, monkeypatch):
    """Opening a pipe that nobody writes to never ends; the report says why it shows nothing."""
    monkeypatch.setenv("HOOKEDVID_HOME", str(tmp_path / "home"))
    one, other = read_items(items)
    folder = items.parent / "frames"
    folder.mkdir()
    for n, frame in enumerate(read_frames(items.parent / one.video, 8)):
        Image.fromarray(frame).save(folder / f"{n}.png")
    write_items([replace(one, video=folder.name), other], items)
    (tmp_path / "study.toml").write_text('items = "set/items.jsonl"\nprotocols = ["baseline"]\nn_resamples = 50\n')
    out = tmp_path / "out"
    assert main(["study", str(tmp_path / "study.toml"), "--out", str(out)]) == 0
    shutil.rmtree(tmp_path / "home")
    (folder / "3.png").unlink()
    os.mkfifo(folder / "3.png")
    plotting = multiprocessing.get_context("fork").Process(target=main, args=(["plot", str(out)],), daemon=True)
    plotting.start()
    plotting.join(90)
    assert plotting.exitcode == 0
    drawn = (out / "report.html").read_text()
    assert drawn.count('alt="frames in time order"') == 1 and f"no frames: cannot sample frames of {folder}: " in drawn


def test_paths_that_name_nothing_fail_their_own_items(items, model, tmp_path):
    known = read_items(items)
    odd = ["x" * 5000 + ".mp4", "y/" * 2100 + "z.mp4", "a\0b.mp4", "\udce9.mp4", "\ud800.mp4", "~nobody/a.mp4", "clips"]
    odd += ["a.zip::\0", "\0.zip::a.mp4", "::", ".zip::", "http://127.0.0.1:9/a.mp4", "/dev/zero", "clips/a.mp4/b.mp4"]
    asked = [replace(known[0], id=f"odd-{n}", video=name) for n, name in enumerate(odd)]
    study = replace(STUDY, frame_order="shuffled")
    laid = plan(study, model, items, items=[known[0], *asked, known[1]])
    with Decoders(1) as decoders:
        work = running._by_video(laid.tasks)
        units = [running.Unit(video, of) for video, of in work.items()]
        outcomes = [answers.outcomes[0] for _, answers in running.Answering(laid, model, decoders).answers(units)]
    assert [o.status for o in outcomes] == ["ok", *["failed"] * len(odd), "ok"]
    assert {o.fault for o in outcomes[1:-1]} == {"video"}
    assert {t.video for _, _, t in laid.tasks if t.settings["video"]} == {known[0].video, "clips", known[1].video}


def test_a_video_nobody_may_read_fails_its_items_and_is_tried_again(items, model, tmp_path, monkeypatch):
    """As root may read any, the system's answer is put in its place."""
    first, _ = clips(items)
    opening = source.open_regular

    def forbidden(path, error):
        if path == first:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opening(path, error)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(source, "open_regular", forbidden)
        laid = plan(STUDY, model, items)
        assert [bool(t.settings["video"]) for _, _, t in laid.tasks] == [False, True]
        with pytest.raises(DecodingError, match="Permission denied") as e:
            content_hash(first)
        assert e.value.fault == "machine"
    before = run(laid, model, tmp_path / "out")
    assert [(r["status"], r["fault"]) for r in before] == [("failed", "changed"), ("ok", "")]
    assert {r["status"] for r in run(plan(STUDY, model, items), model, tmp_path / "out")} == {"ok"}


@pytest.mark.parametrize("wrong", [{"sampler": "linspcae"}, {"n_frames": 10**9}, {"n_frames": 0}])
def test_what_no_video_could_serve_is_an_error_before_anything_runs(items, tmp_path, wrong, capsys):
    with pytest.raises(InputError, match=r"no sampler 'linspcae'; nearest: 'linspace'|n_frames is"):
        Study(**wrong)
    [(name, value)] = wrong.items()
    (tmp_path / "study.toml").write_text(f"{name} = {value!r}\n")
    assert main(["study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "out")]) == 2
    assert (not (tmp_path / "out").exists() and "n_frames is" in capsys.readouterr().err) or name == "sampler"
