"""A study on a Ray cluster: actors hold the model and answer videos; the driver gives these out and writes the rows.

An actor answers a video exactly as one process does (`tasks.Answering`), with as many threads, so rows are the same
bit for bit. Ray is imported by the one function that connects to it. What is sent to actors is pickled, as is all that
Ray sends: whoever reaches a cluster's ports can run code on it.
"""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from hookedvid.data.item import video_path
from hookedvid.errors import ConfigError, HookedVidError, RunError
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.study.definition import Plan, settings_of
from hookedvid.study.run.execution import Execution
from hookedvid.study.run.rounds import check_whole
from hookedvid.study.run.schedule import AHEAD, TRIES, Schedule
from hookedvid.study.run.tasks import Answering, Answers, Audit, Engine, Timing, Unit
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.video.decoders import gathered
from hookedvid.video.scratch import Scratch
from hookedvid.video.source import identity

LOCAL = "local"
LOOK = 1.0  # seconds between two looks at which nodes there are
GRACE = 60.0  # seconds without any node that could hold an actor, after which the run stops
STORE = 100 << 20  # bytes of Ray's object store on this machine alone: units and answers are small


@dataclass(frozen=True)
class Job:
    """What an actor is told once: the plan without its tasks, how to load the model, and how many threads to use."""

    plan: Plan
    loading: Mapping[str, Any]
    how: Execution
    folder: str
    n_threads: int


def engine(plan: Plan, loading: Mapping[str, Any], how: Execution, timing: Timing) -> Engine:
    """What runs units of a plan on the cluster of `how`, for `tasks.carry_out`.

    One actor takes a GPU if the device is "cuda", else as many CPUs as this process has threads.

    Args:
        loading: The arguments of `from_pretrained`, in every actor.

    Raises:
        ConfigError: For an adaptive study, or a GPU by its number.
        RunError: Where there is no such cluster, nothing in it that could hold an actor, or the model cannot be loaded
            there as it was planned.
    """
    check_whole(plan.study, on_cluster=True)
    device = torch.device(loading.get("device") or "cpu")
    if cast(Any, device).index is not None:  # torch says that there always is one
        raise ConfigError(f"every actor has a GPU of its own: write --device {device.type} instead of {device}")
    job = Job(replace(plan, items=[], tasks=[], left_out={}), loading, how, os.getcwd(), torch.get_num_threads())
    return partial(_answers, job, device.type == "cuda", timing)


def _answers(
    job: Job, on_gpus: bool, timing: Timing, units: Sequence[Unit]
) -> Generator[tuple[Unit, Answers], None, None]:
    if not units:
        return
    with _connected(job.how) as ray:
        yield from _Fleet(ray, job, on_gpus, timing, units).answers()


@contextmanager
def _connected(how: Execution) -> Generator[Any]:
    """Ray, connected; the actors of this connection end with it."""
    try:
        import ray as library
    except ImportError as e:
        raise RunError("--ray needs Ray: pip install 'hookedvid[cluster]'") from e
    ray: Any = library  # half of its types are missing
    started: dict[str, Any] = {}
    if how.ray == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers over the network
        started = {"num_cpus": how.actors, "include_dashboard": False, "object_store_memory": STORE}
    host, _, port = how.ray.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        context = ray.init(how.ray, log_to_driver=False, logging_level=logging.ERROR, **started)
    except (OSError, RuntimeError, ValueError) as e:
        reason = str(e).partition("\n")[0]
        raise RunError(f"cannot connect to a Ray cluster at {how.ray!r} ({reason}); is `ray start` done there?") from e
    scratch = None
    try:
        if how.ray == LOCAL:  # Ray's own agents outlive a driver that is killed, and its logs any
            scratch = Scratch()
            scratch.claim(Path(context.address_info["session_dir"]))
        yield ray
    finally:
        ray.shutdown()
        if scratch is not None:
            scratch.close()


class _Fleet:
    """The actors of one run, and what each is at."""

    def __init__(self, ray: Any, job: Job, on_gpus: bool, timing: Timing, units: Sequence[Unit]):
        self._ray, self._job, self._on_gpus, self._timing = ray, job, on_gpus, timing
        self._units = {unit.video: unit for unit in units}
        self._schedule = Schedule(self._units, tries=TRIES)
        self._actors: dict[Any, bool] = {}  # whether it has loaded the model
        self._asked: dict[Any, tuple[Any, str | None]] = {}  # by what is awaited: who, and the video; None: to load
        self._most = self._failed_starts = 0
        self._looked = self._room_seen = -math.inf

    def answers(self) -> Iterator[tuple[Unit, Answers]]:
        """Units as they are answered."""
        while self._schedule.n_left:
            self._hire()
            for actor, video in self._schedule.deal([a for a, ready in self._actors.items() if ready]):
                self._asked[actor.answer.remote(self._units[video])] = (actor, video)
            if not self._asked:
                time.sleep(LOOK)
                continue
            for reply in self._ray.wait(list(self._asked), timeout=LOOK)[0]:
                actor, video = self._asked.pop(reply)
                try:
                    answers = self._ray.get(reply)
                except self._ray.exceptions.RayTaskError as e:  # raised by our own code over there
                    if isinstance(e.cause, HookedVidError):
                        raise e.cause from None
                    raise
                except self._ray.exceptions.RayError as e:
                    yield from self._dismiss(actor, video, str(e))
                    continue
                if video is None:
                    self._actors[actor], self._failed_starts = True, 0
                    self._timing.n_actors = max(self._timing.n_actors, sum(self._actors.values()))
                    self._timing.n_processes = self._timing.n_actors * answers
                else:
                    self._schedule.done(actor, video)
                    yield self._units[video], answers

    def _hire(self) -> None:
        """As many actors as there is room and work for, in place of lost ones, too."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked, room = now, self._room()
        if room or any(self._actors.values()):
            self._room_seen = now
        elif now - self._room_seen > GRACE:
            what = "GPU; join some that have, or leave --device cuda away" if self._on_gpus else "CPU; join some"
            raise RunError(f"no node of the Ray cluster {self._job.how.ray!r} has a {what}")
        for _ in range(len(self._actors), min(room, self._schedule.n_left)):
            needs = {"num_cpus": 0, "num_gpus": 1} if self._on_gpus else {"num_cpus": 1}
            options = needs | {"max_concurrency": AHEAD, "scheduling_strategy": "SPREAD"}
            actor = self._ray.remote(Actor).options(**options).remote()
            self._actors[actor] = False
            self._asked[actor.load.remote(self._job)] = (actor, None)
        self._most = max(self._most, len(self._actors))

    def _room(self) -> int:
        """How many actors the nodes that are alive could hold, if nobody else were there."""
        most, each = self._job.how.actors, self._job.n_threads
        counts = [
            node["Resources"].get("GPU" if self._on_gpus else "CPU", 0) for node in self._ray.nodes() if node["Alive"]
        ]
        if self._on_gpus or most is not None:
            return min(most or len(self._units), sum(int(n) for n in counts))
        return sum(max(1, int(n) // each) for n in counts if n >= 1)

    def _dismiss(self, actor: Any, video: str | None, why: str) -> Iterator[tuple[Unit, Answers]]:
        """Give up an actor that is lost; what it had is given to others, or fails if that was tried often enough."""
        del self._actors[actor]
        self._asked = {reply: one for reply, one in self._asked.items() if one[0] != actor}
        self._ray.kill(actor)  # it may be there yet, and only out of reach
        self._timing.n_actors_lost += 1
        self._looked = -math.inf
        self._failed_starts += video is None
        if self._failed_starts >= TRIES * self._most and not any(self._actors.values()):
            raise RunError(f"no actor could start on the Ray cluster: {why.strip().splitlines()[-1]}")
        for lost in self._schedule.lost(actor):
            unit = self._units[lost]
            yield unit, _killed(unit)


def _killed(unit: Unit) -> Answers:
    reason = (
        f"{TRIES} processes that ran the model on {unit.video} were lost; the system kills those that take more memory "
        "than there is: give them more, or take fewer frames"
    )
    return Answers([Outcome("failed", reason=reason, fault="killed")] * len(unit.tasks), Audit(), Timing())


class Actor:
    """One holder of the model in the cluster. `answer` runs in several threads: one computes, others await frames."""

    def __init__(self) -> None:
        self._turn = threading.Lock()

    def load(self, job: Job) -> int:
        """Load what the job says; how many processes decode for it.

        Raises:
            RunError: For another than was planned.
        """
        where = socket.gethostname()
        torch.set_num_threads(job.n_threads)
        try:
            os.chdir(job.folder)  # paths mean here what they mean to the driver
        except OSError as e:
            raise RunError(f"{where} has no folder {job.folder}; the driver's has to be seen by every node") from e
        try:
            model = HookedVideoLLM.from_pretrained(**job.loading)
        except (HookedVidError, OSError, RuntimeError) as e:
            raise RunError(f"{where} cannot load the model: {e}") from e
        settings, planned = settings_of(job.plan.study, model, job.plan.convention), job.plan.settings
        if other := [
            f"{k} is {settings[k]!r} there, {planned[k]!r} here" for k in planned if settings[k] != planned[k]
        ]:
            raise RunError(f"{where} would compute other rows than were planned: {'; '.join(other)}")
        self._plan, self._decoders = job.plan, job.how.decoders()
        self._answering = Answering(job.plan, model, self._decoders)
        return self._decoders.n

    def answer(self, unit: Unit) -> Answers:
        """Run a unit; its frames are decoded while others before it are run."""
        for item, asked in unit.items:
            path = str(video_path(item, self._plan.annotations))
            if asked[0][1].settings["video"] and identity(path) is None:  # the driver has read it
                raise RunError(f"{socket.gethostname()} does not see {path}; every node needs the videos at one place")
        futures = {request: self._decoders.submit(request) for request in self._answering.requests(unit)}
        with self._turn:
            return self._answering.answer(unit, gathered(futures))
