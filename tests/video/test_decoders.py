"""Decoding in processes: the same clips, in order, whatever happens there; the cache on disk."""

import errno
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import psutil
import pytest
from PIL import Image

from clips import numbers, write_clip
from hookedvid.errors import DecodingError, InputError, RunError, VideoError
from hookedvid.values.files import PART
from hookedvid.video import clip_files
from hookedvid.video import decoders as decoding
from hookedvid.video.clip_files import ClipRequest, FrameCache, load_clip, save_clip
from hookedvid.video.decoders import Decoders, Limits
from hookedvid.video.frames import Clip, read_clip
from hookedvid.video.scratch import PREFIX, Scratch, clear
from hookedvid.video.source import video_hash
from processes import command, descendants, end, gone

FAULTY = "faulty_worker"
TIGHT = Limits(seconds=2, memory=256 << 20)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("videos") / "clip.mp4", n=30)


@pytest.fixture
def folder(tmp_path, video):
    """A folder of numbered images."""
    at = tmp_path / "frames"
    at.mkdir()
    for i, frame in enumerate(read_clip(video, 6).frames):
        Image.fromarray(frame).save(at / f"{i}.png")
    return at


@pytest.fixture
def cache(tmp_path):
    return FrameCache(tmp_path / "cache", 1 << 30)


def asked(path, n_frames=4, **others) -> ClipRequest:
    return ClipRequest(str(path), n_frames, "linspace", **others, content=video_hash(path))


def named(tmp_path, video, name) -> ClipRequest:
    return asked(shutil.copy(video, tmp_path / f"{name}-clip.mp4"))


def assert_same(one: Clip, other: Clip) -> None:
    assert np.array_equal(one.frames, other.frames) and one.frames.dtype == other.frames.dtype == np.uint8
    assert one._replace(frames=None) == other._replace(frames=None)


def workers() -> list[psutil.Process]:
    return descendants("-P")


def test_what_has_ended_is_no_process_even_before_anyone_waited_for_it():
    """Of these tests' own looks at processes, which may end while they are looked at."""
    child = subprocess.Popen([sys.executable, "-P", "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    seen = psutil.Process(child.pid)
    assert seen.status() == psutil.STATUS_ZOMBIE and seen in psutil.Process().children()
    assert workers() == [] and command(seen) == [] and gone([seen], 0)
    child.wait()
    assert command(seen) == [] and gone([seen], 0)
    end([seen])


@pytest.mark.parametrize("keep", [False, True])
def test_clips_are_those_read_here_in_order(video, folder, cache, keep):
    requests = [asked(video), asked(video, 3, bound=(0.2, 0.7)), asked(folder, folder_fps=3), asked(folder)]
    with Decoders(2, cache=cache if keep else None) as decoders:
        found = list(decoders.ahead(enumerate([r] for r in requests)))
        again = list(decoders.ahead(enumerate([r] for r in requests)))
    for place, (request, batches) in enumerate(zip(requests, zip(found, again, strict=True), strict=True)):
        for n, (unit, batch) in enumerate(batches):
            assert unit == place and list(batch.clips) == [request]
            assert_same(batch.clips[request], request.read())
            assert batch.n_cached == (keep and n == 1) and (batch.decoding == 0) == bool(batch.n_cached)
    assert workers() == []


def test_no_more_is_asked_for_ahead_than_may_wait(video):
    pulled = []

    def work():
        for i in range(20):
            pulled.append(i)
            yield i, [asked(video, 2 + i % 5)] if i != 7 else []

    with Decoders(1) as decoders:
        for unit, batch in decoders.ahead(work(), n=3):
            assert unit + 1 <= len(pulled) <= unit + 5  # 7 takes no room
            assert [len(c.frames) for c in batch.clips.values()] == ([2 + unit % 5] if unit != 7 else [])
    pulled.clear()
    with Decoders(1) as decoders:
        for unit, _ in decoders.ahead(work(), n=3, size=1):
            decoders.submit(asked(video)).result()  # everything asked for before is ready now
            assert len(pulled) <= unit + 4
            if unit > 3:
                break
        assert len(pulled) <= 7


@pytest.mark.parametrize(
    ("name", "fault", "says"),
    [
        ("hang", "timeout", "it took longer than 2 s"),
        ("grow", "memory", "it needed more than 0.25 GiB"),
        ("crash", "crash", r"the decoder crashed \(signal 11, SIGSEGV\)"),
        ("abort", "crash", r"the decoder crashed \(signal 6, SIGABRT: free\(\): invalid pointer\)"),
        ("killed", "killed", "the decoder was killed"),
    ],
)
def test_a_decoder_that_hangs_grows_or_dies_fails_its_clip_alone(tmp_path, video, name, fault, says):
    with Decoders(1, TIGHT, worker=FAULTY) as decoders:
        bad, good = decoders.submit(named(tmp_path, video, name)), decoders.submit(asked(video))
        with pytest.raises(DecodingError, match=rf"cannot sample frames of .*{name}-clip.mp4: {says}") as e:
            bad.result()
        assert e.value.fault == fault
        assert numbers(good.result().clip.frames) == numbers(read_clip(video, 4).frames)
        assert decoders.n_lost == (1 if fault in ("timeout", "memory") else 2)
    assert workers() == []


def test_a_pipe_among_a_folders_frames_is_no_frame_and_nothing_waits_for_it(folder):
    os.mkfifo(folder / "6.png")
    with Decoders(1) as decoders, pytest.raises(VideoError, match=r"6.png: it is no regular file"):
        decoders.submit(asked(folder, 7)).result(timeout=60)


def test_one_killed_by_chance_is_replaced_and_asked_again(tmp_path, video):
    request = named(tmp_path, video, "once")
    with Decoders(1, worker=FAULTY) as decoders:
        assert_same(decoders.submit(request).result().clip, request.read())
        assert decoders.n_lost == 1
        [idle] = workers()
        end([idle])
        assert_same(decoders.submit(request).result().clip, request.read())
        assert decoders.n_lost == 2
    with Decoders(1) as decoders:
        found = decoders.submit(request)
        while not (starting := workers()):
            time.sleep(0.001)
        end(starting)
        assert_same(found.result().clip, request.read())
        assert decoders.n_lost == 1


def test_one_that_is_stopped_while_it_starts_is_replaced(video, monkeypatch):
    assert decoding.START <= 30
    start, seconds = decoding._Worker._await_start, iter([1, 30])

    def await_start(worker):
        monkeypatch.setattr(decoding, "START", next(seconds))
        start(worker)

    monkeypatch.setattr(decoding._Worker, "_await_start", await_start)
    with Decoders(1) as decoders:
        found = decoders.submit(asked(video))
        while not (starting := workers()):
            time.sleep(0.001)
        starting[0].suspend()
        assert_same(found.result(timeout=60).clip, asked(video).read())
        assert decoders.n_lost == 1
    assert workers() == []


def test_errors_keep_their_kind(tmp_path, video):
    (tmp_path / "text.mp4").write_text("<html>")
    with Decoders(1, worker=FAULTY) as decoders:
        for request, kind, says in [
            (asked(tmp_path / "none.mp4"), VideoError, "there is no such file"),
            (asked(tmp_path / "text.mp4"), VideoError, "cannot be opened as a video"),
            (ClipRequest(str(video), 4, "linspcae"), InputError, "no sampler 'linspcae'"),
            (named(tmp_path, video, "bug"), VideoError, "IndexError: list index out of range"),
        ]:
            with pytest.raises(kind, match=says) as e:
                decoders.submit(request).result()
            assert type(e.value) is kind
        assert decoders.n_lost == 0 and len(workers()) == 1  # none of these is the process's fault


def test_what_cannot_start_stops_the_run(video):
    with Decoders(1, worker="no_such_module") as decoders, pytest.raises(RunError, match="No module named no_such"):
        list(decoders.ahead([("a", [asked(video)])]))
    with pytest.raises(InputError, match="cannot decode in 0 processes"):
        Decoders(0)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_stop_leaves_no_process_and_no_file(tmp_path, video, monkeypatch, stop):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    start = time.monotonic()
    with pytest.raises(stop), Decoders(2, worker=FAULTY) as decoders:
        for _ in decoders.ahead((n, [named(tmp_path, video, n)]) for n in ("sound", "hang", "hang2", "hang-3", "a")):
            assert workers()
            raise stop
    assert workers() == [] and list((tmp_path / "scratch").iterdir()) == []
    assert time.monotonic() - start < 30  # not the limit's 300


def test_one_may_be_ended_by_whoever_closes_and_by_whoever_waits_for_it(tmp_path):
    class Slow(io.BytesIO):
        def read(self, size=-1):
            time.sleep(0.2)
            return super().read(size)

    worker = decoding._Worker(FAULTY, tmp_path)
    worker._said.close()
    worker._said = Slow(b"its last words")
    with ThreadPoolExecutor(2) as threads:
        for ending in [threads.submit(worker.end) for _ in range(2)]:
            ending.result()
    assert worker._last_words == "its last words" and workers() == []


def test_a_process_that_decodes_never_imports_torch():
    program = "import sys, hookedvid.video.worker\nassert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_is_in_the_cache_needs_no_process(video, cache):
    with Decoders(1, cache=cache) as decoders:
        first = decoders.submit(asked(video)).result()
    with Decoders(1, cache=cache, worker="no_such_module") as decoders:
        second = decoders.submit(asked(video)).result()
    assert (first.cached, second.cached) == (False, True)
    assert_same(first.clip, second.clip)


def test_what_is_found_again_is_what_was_asked_of_the_same_content(tmp_path, video, folder, cache):
    copy = tmp_path / "copy.mp4"
    shutil.copy(video, copy)
    with Decoders(1, cache=cache) as decoders:

        def cached(request):
            return decoders.submit(request).result().cached

        assert not cached(asked(copy)) and cached(asked(copy))
        others = [asked(copy, 5), asked(copy, bound=(0, 1)), replace(asked(copy), sampler="inner"), asked(video)]
        assert not any(cached(other) for other in others) and all(cached(other) for other in others)
        (tmp_path / "moved").mkdir()
        moved = shutil.move(copy, tmp_path / "moved" / "copy.mp4")
        found = decoders.submit(asked(moved)).result()
        assert found.cached and found.clip.source == str(moved)
        assert not cached(asked(folder)) and cached(asked(folder))
        (folder / "3.png").write_bytes((folder / "4.png").read_bytes())
        assert not cached(asked(folder))
    assert cache.path(asked(tmp_path / "none.mp4")) is cache.path(replace(asked(video), content=None)) is None


def other_clip(path, like):
    """Another video of the same size and time of change as the file `like`, at `path`."""
    write_clip(path, n=29)
    stat = like.stat()
    with path.open("ab") as file:  # a box that nobody reads
        left = stat.st_size - path.stat().st_size
        assert left >= 8
        file.write(left.to_bytes(4, "big") + b"free" + bytes(left - 8))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return path


def test_other_content_of_the_same_size_and_time_is_not_found_in_the_cache(tmp_path, video, cache):
    path = tmp_path / "clip.mp4"
    shutil.copy2(video, path)
    with Decoders(1, cache=cache) as decoders:
        before = asked(path)
        assert numbers(decoders.submit(before).result().clip.frames)[-1] == 29
        other_clip(path, video)
        assert path.stat().st_size == video.stat().st_size and path.stat().st_mtime_ns == video.stat().st_mtime_ns
        now = decoders.submit(asked(path)).result()
        assert not now.cached and numbers(now.clip.frames)[-1] == 28
        assert numbers(decoders.submit(before).result().clip.frames)[-1] == 29  # those that were hashed


@pytest.mark.parametrize("new", ["other", "none", "half"])
def test_a_video_replaced_after_it_was_hashed_is_not_decoded_under_its_hash(tmp_path, video, folder, new):
    path = tmp_path / "clip.mp4"
    shutil.copy2(video, path)
    planned, frames = asked(path), asked(folder)
    if new == "other":
        other_clip(path, video)
    elif new == "half":
        path.write_bytes(video.read_bytes()[:2000])
    else:
        path.unlink()
    (folder / "3.png").write_bytes((folder / "4.png").read_bytes())
    appeared = replace(asked(video), content="")  # not there when the study was planned
    with Decoders(1) as decoders:
        for request in (planned, frames, appeared):
            with pytest.raises(DecodingError, match="its bytes are not those that were hashed") as e:
                decoders.submit(request).result()
            assert e.value.fault == "changed"


def test_a_video_that_changes_while_it_is_decoded_gives_no_frames(tmp_path, video, monkeypatch):
    path = tmp_path / "clip.mp4"
    shutil.copy2(video, path)
    request = asked(path)

    def meanwhile(change):
        def read(*arguments, **named):
            clip = read_clip(*arguments, **named)
            change()
            return clip

        monkeypatch.setattr(clip_files, "read_clip", read)
        with pytest.raises(DecodingError, match="changed while they were read"):
            request.read()

    meanwhile(lambda: other_clip(path, video))
    shutil.copy2(video, path)
    meanwhile(lambda: (time.sleep(0.02), path.write_bytes(video.read_bytes())))  # there and back: it was another


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ESTALE])
def test_a_fault_of_the_machine_is_none_of_the_videos(tmp_path, error):
    video = write_clip(tmp_path / "clip.mp4", noise=80)
    assert video.stat().st_size > 1 << 16  # FFmpeg reads 32 kB at once

    def broken(*_):
        raise OSError(error, os.strerror(error))

    with pytest.MonkeyPatch.context() as patched, pytest.raises(DecodingError, match="it cannot be read") as e:
        patched.setattr("hookedvid.video.source.open_regular", broken)
        read_clip(video, 2)
    assert e.value.fault == "machine"

    # At the first read, and at a later one.
    for n_good in (0, 1):

        class Failing(io.BufferedReader):
            n_read = 0

            def read(self, n=-1):
                self.n_read += 1
                return super().read(n) if self.n_read <= n_good else broken()  # noqa: B023

        with pytest.MonkeyPatch.context() as patched, pytest.raises(DecodingError, match="it cannot be read") as e:
            patched.setattr("hookedvid.video.decode.open_bytes", lambda source: Failing(io.FileIO(source)))
            read_clip(video, 2)
        assert e.value.fault == "machine"


def test_a_cache_that_cannot_be_written_is_a_warning_once(tmp_path, video):
    """A file where the folder should be stands for a disk that may only be read: root may write anywhere."""
    (tmp_path / "cache").write_text("")
    cache = FrameCache(tmp_path / "cache" / "frames", 1 << 30)
    with pytest.warns(UserWarning, match=r"cannot keep frames in .*cache/frames: .*directory.*HOOKEDVID_HOME") as told:  # noqa: SIM117
        with Decoders(2, cache=cache) as decoders:
            requests = [asked(video, n) for n in (2, 3, 4)] * 2
            found = [future.result() for future in [decoders.submit(request) for request in requests]]
    assert [len(one.clip.frames) for one in found] == [2, 3, 4] * 2 and not any(one.cached for one in found)
    assert len(told) == 1


def test_files_of_the_cache_are_the_users_alone(video, cache):
    with Decoders(1, cache=cache) as decoders:
        decoders.submit(asked(video)).result()
    [path] = cache.folder.iterdir()
    assert (path.stat().st_mode & 0o777, cache.folder.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_file_of_another_clip_counts_as_none(video, cache):
    few, many = asked(video), replace(asked(video), n_frames=asked(video).n_frames + 1)
    with Decoders(1, cache=cache) as decoders:
        right = decoders.submit(few).result().clip
        decoders.submit(many).result()
        cache.path(few).write_bytes(cache.path(many).read_bytes())
        assert cache.load(few) is None and not cache.path(few).exists()
        assert_same(decoders.submit(few).result().clip, right)


def test_a_kept_clip_knows_its_part(video, cache):
    request = replace(asked(video), bound=(0.5, 1))
    with Decoders(1, cache=cache) as decoders:
        made, kept = (decoders.submit(request).result() for _ in range(2))
    assert kept.cached and kept.clip.bound == made.clip.bound == (0.5, 1) and asked(video).read().bound is None


def test_a_damaged_file_counts_as_none_and_is_made_again(video, cache):
    request = asked(video)
    with Decoders(1, cache=cache) as decoders:
        whole = decoders.submit(request).result().clip
        path = cache.path(request)
        data = path.read_bytes()
        for broken in (b"", data[:100], data[:-1], data[: len(data) // 2], b"\0" * len(data)):
            path.write_bytes(broken)
            assert load_clip(path, str(video)) is None
            assert_same(decoders.submit(request).result().clip, whole)
            assert_same(load_clip(path, str(video)), whole)
    for at in np.random.default_rng(0).integers(0, len(data), 200):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        found = load_clip(path, str(video))  # bytes between the members, such as their dates, say nothing
        assert found is None or np.array_equal(found.frames, whole.frames)
    np.savez(path, about=np.array([{}]), frames=np.array([object()], dtype=object), allow_pickle=True)
    assert load_clip(path, str(video)) is None  # no pickle is read


def test_the_cache_keeps_to_its_limit_and_drops_what_was_unused_longest(tmp_path, video):
    clip = read_clip(video, 4)
    save_clip(clip, tmp_path / "one.npz")
    size = (tmp_path / "one.npz").stat().st_size
    cache = FrameCache(tmp_path / "cache", 3 * size + size // 2)
    cache.folder.mkdir()
    requests = [asked(video, bound=(0, 1 + i)) for i in range(5)]
    (cache.folder / f"{PART}left.npz").touch()
    os.utime(cache.folder / f"{PART}left.npz", (0, 0))
    for i, request in enumerate(requests):
        path = cache.path(request)
        save_clip(clip, path)
        os.utime(path, (10**9 + i, 10**9 + i))
        if i == 3:
            assert cache.load(requests[1]) is not None  # marked as used: now the youngest
        cache.added(size)
    kept = {path.name for path in cache.folder.iterdir()}
    assert kept == {cache.path(requests[i]).name for i in (1, 3, 4)}


def test_no_room_for_frames_stops_the_run(video, cache):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Decoders(1, cache=cache) as decoders:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(RunError, match=r"cannot write frames to .*hookedvid-.*: File too large; make room"):
                decoders.submit(asked(video)).result()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(cache.folder.iterdir()) == []


KILLED = """
import sys
from pathlib import Path
from hookedvid.video.clip_files import ClipRequest
from hookedvid.video.decoders import Decoders
from hookedvid.video.scratch import Scratch
decoders = Decoders(1)
decoders.submit(ClipRequest(sys.argv[1], 2, "linspace")).result()
if sys.argv[2]:
    Scratch().claim(Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_tree_of_processes_leaves_is_cleared_by_the_next_run(tmp_path, video, monkeypatch):
    """And nothing of one that lives; a program that worked for the killed one in a folder of its own ends, too."""
    at, other = tmp_path / "scratch", tmp_path / "other"
    at.mkdir()
    other.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(at))
    paths = os.pathsep.join(p for p in sys.path if p)
    agent = [sys.executable, "-c", f"f = open({str(other / 'log')!r}, 'w'); import time; time.sleep(600)"]
    left = subprocess.Popen(agent)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", KILLED, str(video), claimed], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(at), "PYTHONPATH": paths}
        )
        for claimed in (str(other), "")
    ]  # fmt: skip
    for one in running:
        assert one.stdout.readline() == b"ready\n"
    killed, living = running
    folders = {command(p)[-1] for p in psutil.Process(living.pid).children()}
    tree = psutil.Process(killed.pid)
    end([*tree.children(), tree])
    killed.wait()
    assert len(list(at.iterdir())) == 3
    with Decoders(1) as decoders:
        decoders.submit(asked(video)).result()
        assert len(list(at.iterdir())) == 2 and {str(p) for p in at.iterdir()} > folders
    assert left.wait(10) == -signal.SIGKILL and not other.exists()
    living.stdin.close()
    living.wait()
    for one in running:
        one.stdout.close()
    killed.stdin.close()


@pytest.mark.parametrize("said", ["", ".", '["", 1]', "[1]", "5", "another"])
def test_a_claim_that_is_torn_or_of_another_folder_removes_nothing(said, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    monkeypatch.chdir(mine)
    scratch = Scratch()
    if said == "another":  # made anew under the name of the one that was claimed
        scratch.claim(mine)
        mine.rename(tmp_path / "moved")
        mine.mkdir()
        (mine / "thesis.tex").touch()
    else:
        (scratch.folder / "claimed").write_text(said)
    scratch.close()
    assert (mine / "thesis.tex").exists() and not scratch.folder.exists()


def test_no_folder_is_cleared_that_may_be_anybody_elses(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = ("empty", "full", "new", "link")
    empty, full, new, link = (tmp_path / f"{PREFIX}{name}" for name in names)
    for path in (empty, full, new):
        path.mkdir()
    (full / "rows.jsonl").touch()
    (tmp_path / "hookedvid-study").mkdir()
    (tmp_path / "hookedvid-study" / "lock").touch()
    link.symlink_to(tmp_path / "hookedvid-study")
    for path in (empty, full, tmp_path / "hookedvid-study"):
        os.utime(path, (time.time() - 7200,) * 2)
    clear()
    assert {p.name for p in tmp_path.iterdir()} == {full.name, new.name, link.name, "hookedvid-study"}
    assert (tmp_path / "hookedvid-study" / "lock").exists()
