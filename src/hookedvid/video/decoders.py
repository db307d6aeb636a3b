"""Decoding in processes of their own, ahead of the model: what hangs, grows or crashes there fails one clip.

Each process is started as a program (`worker`), never forked: a fork would carry torch's threads along, and
Python's own way of spawning would import the user's script again. Its time and memory are watched from here.
The watch is on resident memory rather than a limit on address space: FFmpeg starts a thread a core, and their
stacks and arenas reserve gigabytes on large machines that nobody ever touches.
"""

import json
import math
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil

from hookedvid import errors
from hookedvid.errors import DecodingError, HookedVidError, InputError, RunError
from hookedvid.video.clip_files import SUFFIX, ClipRequest, FrameCache, load_clip
from hookedvid.video.frames import Clip, Number
from hookedvid.video.refusals import refusal
from hookedvid.video.scratch import Scratch

WORKER = "hookedvid.video.worker"
START = 30  # seconds that a process may take to start, on a disk that sleeps; one that is stopped is replaced
POLL = 0.05  # seconds between two looks at a process; decoders fill memory at some 2 GB/s
TRIES = 2  # a process that died may have been somebody else's victim

Unit = TypeVar("Unit")


@dataclass(frozen=True)
class Limits:
    """What one clip may take: seconds of wall time, bytes of resident memory."""

    seconds: Number = 300
    memory: int = 4 << 30

    def __post_init__(self):
        if not (0 < self.seconds < math.inf and self.memory > 0):
            raise InputError(f"a clip may take {self.seconds} s and {self.memory} bytes; give finite numbers above 0")


class Decoded(NamedTuple):
    """A clip, the seconds it took to decode, and whether it came from the cache."""

    clip: Clip
    seconds: float
    cached: bool


class Batch(NamedTuple):
    """The clips of one unit of work or why there are none, and seconds: of decoding them, of waiting for them."""

    clips: dict[ClipRequest, Clip | HookedVidError]
    decoding: float
    waited: float
    n_cached: int


class _Written(NamedTuple):
    """Where a process wrote a clip, the seconds it took to decode, and why it wrote it to no place before."""

    path: Path
    seconds: float
    why: str


class Decoders:
    """Up to `n` decoding processes, started as they are needed; leaving the `with` block ends them.

    Args:
        n: Two, or one on a machine of one core, unless given.
        cache: Where decoded clips are kept and looked for.
        worker: The module that runs in the processes.
    """

    def __init__(
        self,
        n: int | None = None,
        limits: Limits | None = None,
        cache: FrameCache | None = None,
        worker: str = WORKER,
    ):
        if n is not None and n < 1:
            raise InputError(f"cannot decode in {n} processes; give 1 or more")
        self.n = n or min(2, os.cpu_count() or 1)
        self.limits = limits or Limits()
        self.n_lost = 0
        self._cache, self._module = cache, worker
        self._keeps = cache is not None and cache.limit > 0  # until it takes no file
        self._threads = ThreadPoolExecutor(self.n, "decoder")
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._closed = False
        self._scratch: Scratch | None = None

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process, whatever it is doing."""
        with self._lock:
            self._closed = True
            for worker in (*self._idle, *self._busy):
                worker.end()
        self._threads.shutdown(cancel_futures=True)
        if self._scratch is not None:
            self._scratch.close()

    def submit(self, request: ClipRequest) -> Future[Decoded]:
        """Ask for a clip. The future raises VideoError, DecodingError or InputError; RunError stops the run."""
        return self._threads.submit(self._decode, request)

    def ahead(
        self, work: Iterable[tuple[Unit, Sequence[ClipRequest]]], n: int = 4, size: int = 1 << 30
    ) -> Iterator[tuple[Unit, Batch]]:
        """Units of work in order, each with its clips, while those of the next are decoded.

        At most `n` clips more are asked for ahead of the one in use, and none once the ready ones take `size`
        bytes. A clip's error stands in its place; RunError is raised.
        """
        source, waiting = iter(work), deque[tuple[Unit, dict[ClipRequest, Future[Decoded]]]]()

        def ask(least: int) -> None:
            while len(waiting) < least or (sum(len(f) for _, f in waiting) < n and _ready(waiting) < size):
                if (one := next(source, None)) is None:
                    return
                waiting.append((one[0], {request: self.submit(request) for request in one[1]}))

        ask(1)
        while waiting:
            unit, futures = waiting.popleft()
            ask(0)
            yield unit, gathered(futures)
            del futures  # frees the frames before the next are waited for
            ask(1)

    def _decode(self, request: ClipRequest) -> Decoded:
        if self._cache is not None and (clip := self._cache.load(request)):
            return Decoded(clip, 0.0, True)
        for left in reversed(range(TRIES)):
            worker, scratch = self._take()
            cache_path = self._cache.path(request) if self._cache is not None and self._keeps else None
            try:
                written = worker.decode(request, [p for p in (cache_path, scratch) if p is not None], self.limits)
            except DecodingError as e:
                if left and e.fault in ("killed", "crash"):
                    continue
                raise
            except _NoStart:
                if left:
                    continue
                raise
            finally:
                self._give(worker)
            clip = load_clip(written.path, request.source)
            self._stored(written, cache_path)
            if clip is not None:
                return Decoded(clip, written.seconds, False)
        raise RunError(f"the frames of {request.source}, written to disk, cannot be read back; check the disk")

    def _stored(self, written: "_Written", cache_path: Path | None) -> None:
        """A scratch file has served, one in the cache stays; a cache that took none is not tried again."""
        if self._cache is not None and cache_path is not None and written.path == cache_path:
            self._cache.added(cache_path.stat().st_size)
            return
        written.path.unlink(missing_ok=True)
        if cache_path is None:
            return
        with self._lock:
            first, self._keeps = self._keeps, False
        if first:
            todo = "make room there or set HOOKEDVID_HOME; until then frames are decoded anew each time"
            warnings.warn(f"cannot keep frames in {written.why}; {todo}", stacklevel=2)

    def _take(self) -> tuple["_Worker", Path]:
        """A process that has nothing to do, and a file for what is not to be kept."""
        with self._lock:
            if self._closed:
                raise CancelledError
            try:
                if self._scratch is None:
                    self._scratch = Scratch()
                worker = self._idle.pop() if self._idle else _Worker(self._module, self._scratch.folder)
            except OSError as e:
                raise RunError(f"cannot start a decoding process: {e}; make room there, or set TMPDIR") from e
            self._busy.add(worker)
        return worker, self._scratch.folder / f"{threading.get_ident()}{SUFFIX}"

    def _give(self, worker: "_Worker") -> None:
        with self._lock:
            self._busy.remove(worker)
            if worker.alive:
                self._idle.append(worker)
            else:
                self.n_lost += not self._closed
                worker.end()


class _Worker:
    """One decoding process, seen from here."""

    def __init__(self, module: str, scratch: Path):
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process
        paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": paths},
            process_group=0,  # the terminal's Ctrl-C is for whoever started it
        )
        self._watched = psutil.Process(self._process.pid)
        self._ready = self._ended = False
        self._ending = threading.Lock()
        self._last_words = ""

    @property
    def alive(self) -> bool:
        return not self._ended and self._process.poll() is None

    def decode(self, request: ClipRequest, places: Sequence[Path], limits: Limits) -> "_Written":
        """The clip, written to the first of these places that took it. Raises what the process says."""
        job = {"request": asdict(request), "places": [str(p) for p in places], "seconds": limits.seconds}
        try:
            self._await_start()
            self._send(json.dumps(job).encode() + b"\n")
            answer = json.loads(self._line(limits.seconds, limits.memory))
        except _Stopped as e:
            self.end()
            raise DecodingError(str(refusal(request.source, *e.args[1:])), e.args[0]) from None
        except RunError:
            raise
        except (OSError, ValueError):  # no line: the process is gone, or going
            self.end(wait=1)
            raise DecodingError(str(refusal(request.source, *self._fate())), self._fault()) from None
        if answer.get("error") == "MemoryError":
            todo = "free memory, or take fewer frames"
            raise DecodingError(str(refusal(request.source, "there was not enough memory", todo)), "memory")
        if "fault" in answer:
            raise DecodingError(answer["says"], answer["fault"])
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["says"])
        return _Written(places[answer["failed"]], answer["seconds"], answer["why"])

    def end(self, wait: Number = 0) -> None:
        """Kill the process unless it ends by itself within `wait` seconds; one that hangs in a dead disk stays."""
        self._ended = True
        with self._ending:  # whoever awaits its answer finds it gone while whoever closes all is at this
            for seconds in (wait, 5):
                try:
                    self._process.wait(seconds)
                    break
                except subprocess.TimeoutExpired:
                    self._process.kill()
            if not self._said.closed:
                self._said.seek(0)
                self._last_words = self._said.read().decode(errors="replace").strip().rpartition("\n")[2]
            for file in (self._process.stdin, self._process.stdout, self._said):
                assert file is not None
                file.close()

    def _await_start(self) -> None:
        if self._ready:
            return
        try:
            self._ready = bool(self._line(START, sys.maxsize))
        except _Stopped as e:
            self.end()
            raise _NoStart(
                f"cannot start a decoding process: {e.args[1]}; look for what holds the machine up"
            ) from None
        if not self._ready:
            self.end(wait=1)
            if self._fault() == "crash":  # a killed one is asked for again, as later on
                raise RunError(f"cannot start a decoding process: {self._last_words}")

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)

    def _line(self, seconds: Number, memory: int) -> bytes:
        """The next line, empty if the process is gone. Raises _Stopped beyond the limits."""
        stdout = self._process.stdout
        assert stdout is not None
        end = time.monotonic() + seconds
        while not multiprocessing.connection.wait([stdout], POLL):  # pyright: ignore[reportArgumentType]
            if time.monotonic() > end:
                todo = "allow more seconds, or re-encode it"
                raise _Stopped("timeout", f"it took longer than {seconds:g} s", todo)
            if self._resident() > memory:
                todo = "take fewer frames, or bring it to a smaller size"
                raise _Stopped("memory", f"it needed more than {memory / 2**30:g} GiB", todo)
        return stdout.readline()

    def _resident(self) -> int:
        try:
            return self._watched.memory_info().rss
        except psutil.Error:  # gone; the next look at its output tells
            return 0

    def _fault(self) -> str:
        return "killed" if self._process.returncode == -signal.SIGKILL else "crash"

    def _fate(self) -> tuple[str, str]:
        """How the process ended, and what to do."""
        code = self._process.returncode
        if code == -signal.SIGKILL:
            return "the decoder was killed", "the system does that when memory runs out: run fewer at a time"
        if code is not None and code < 0:
            how = f"signal {-code}, {signal.Signals(-code).name}"
        else:
            how = f"exit status {code}"
        words = self._last_words
        return f"the decoder crashed ({how}{': ' if words else ''}{words})", "re-encode it, or leave it out"


class _NoStart(RunError):
    """A process that did not start in time, which another may."""


class _Stopped(Exception):
    """fault, what was found, what to do."""


def _ready(waiting: Iterable[tuple[object, dict[ClipRequest, Future[Decoded]]]]) -> int:
    """Bytes of frames that nobody has taken yet."""
    done = (f for _, futures in waiting for f in futures.values() if f.done() and f.exception() is None)
    return sum(f.result().clip.frames.nbytes for f in done)


def gathered(futures: Mapping[ClipRequest, Future[Decoded]]) -> Batch:
    """What was asked for together, once all of it is there. A clip's error stands in its place; RunError is raised."""
    start = time.perf_counter()
    clips: dict[ClipRequest, Clip | HookedVidError] = {}
    seconds, n_cached = 0.0, 0
    for request, future in futures.items():
        try:
            decoded = future.result()
        except RunError:
            raise
        except HookedVidError as e:
            clips[request] = e
            continue
        clips[request] = decoded.clip
        seconds, n_cached = seconds + decoded.seconds, n_cached + decoded.cached
    return Batch(clips, seconds, time.perf_counter() - start, n_cached)
