"""A study on a Ray cluster: the rows of one process bit for bit, whatever actor, node or driver is lost meanwhile."""

import json
import multiprocessing
import os
import socket
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from hookedvid.cli.commands import main
from hookedvid.data.item import read_items, write_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.errors import ConfigError, RunError
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.study.definition import Study, plan
from hookedvid.study.records import ROWS
from hookedvid.study.run import cluster
from hookedvid.study.run.execution import Execution
from hookedvid.study.run.schedule import Schedule
from hookedvid.study.run.tasks import carry_out, run
from hookedvid.study.run.timing import Timing
from processes import command, end, gone

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

# Files that Ray leaves open, its own and those of nodes that were killed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.shapes_unchecked,
]

STUDY = Study(protocols=("all-layers",))
LOADING = {"name_or_path": "tiny"}
KILLER = 9  # of the 10 clips, of two questions each: kills what holds the model, if `faulty_worker` decodes
SOUND = "hookedvid.video.worker"
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}
N_KEPT = 16  # rows of the driver that is killed: of two clips


@pytest.fixture(autouse=True, scope="module")
def decoders():
    """Not shared: what is left over here is killed."""


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("set")
    make_dataset(at, seed=5, split="test", n_videos=10, questions_per_video=2)
    items = read_items(at / "items.jsonl")
    names = {
        v: f"{'fell' if n == KILLER else 'sound'}-{n}.mp4" for n, v in enumerate(dict.fromkeys(i.video for i in items))
    }
    for old, new in names.items():
        (at / old).rename(at / new)
    write_items([replace(i, video=names[i.video]) for i in items], at / "items.jsonl")
    return at / "items.jsonl"


@pytest.fixture(scope="module")
def laid(annotations):
    return plan(STUDY, HookedVideoLLM.from_pretrained("tiny"), annotations)


@pytest.fixture(scope="module")
def undisturbed(laid, tmp_path_factory):
    return run(laid, HookedVideoLLM.from_pretrained("tiny"), tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="module")
def paths():
    """What processes of Ray's import by."""
    before = set(psutil.Process().children())
    with pytest.MonkeyPatch.context() as patched:
        found = os.pathsep.join([str(Path(__file__).parents[1]), *(p for p in sys.path if p)])
        patched.setenv("PYTHONPATH", found)
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_worker_niceness", "0")  # of 15 they starve beside other tests
        yield found
    # Ray does not wait for those it ends.
    left = set(psutil.Process().children()) - before
    _, alive = psutil.wait_procs(left, timeout=10)
    end(alive)
    psutil.wait_procs(alive, timeout=10)


@pytest.fixture(scope="module")
def driver(laid, paths, tmp_path_factory):
    """One that waits for a cluster's address: a fork, which imports nothing, made before Ray has threads here."""
    ours, its = multiprocessing.Pipe()
    out = tmp_path_factory.mktemp("driven")
    process = multiprocessing.get_context("fork").Process(target=drive, args=(its, laid, out), daemon=True)
    process.start()
    its.close()  # so that its end is heard
    yield process, ours, out
    process.kill()
    process.join()


@pytest.fixture(scope="module")
def nodes(paths, driver):
    """One node of one CPU; others that die are noticed within seconds, and a slow one is not taken for dead."""
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 8, "health_check_timeout_ms": 2000}
    head = {"_system_config": quick, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
    before = set(psutil.Process().children(recursive=True))
    found = cluster_utils.Cluster(initialize_head=True, head_node_args=NODE | head)
    yield found
    ray.shutdown()
    left = set(psutil.Process().children(recursive=True)) - before
    found.shutdown()
    end(psutil.wait_procs(left, timeout=5)[1])


@pytest.fixture(scope="module")
def resumed(laid, driver, nodes) -> "Resumed":
    """What is left of a study whose driver was killed, run on two nodes; one is lost, then a video kills its actors."""
    process, pipe, out = driver
    pipe.send(nodes.address)
    assert pipe.poll(240) and pipe.recv() == N_KEPT
    holders = actors()
    process.kill()
    assert len(holders) == 1 and gone(holders) and len(stored(out)) == N_KEPT
    with (out / ROWS).open("ab") as f:
        f.write(b'{"key": "torn')
    lost, timing, told, stopped = nodes.add_node(**NODE), Timing(), Counter(), {}
    raylet = lost.all_processes["raylet"][0].process.pid

    def remove(row, fresh):
        told[fresh] += 1
        if fresh and timing.n_actors < 2:  # the other is to be at work, too, before all is done
            wait_until(lambda: sum("load" not in title(p) for p in actors()) == 2)
        elif fresh and not stopped:
            (actor,) = (p for p in actors() if p.ppid() == raylet)
            actor.suspend()  # so that it has something when it is lost
            stopped[row["video"]] = actor
        elif fresh and row["video"] not in stopped and lost in nodes.worker_nodes:
            nodes.remove_node(lost, allow_graceful=False)
            end(stopped.values())
            wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1)  # before what kills the other actor

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cluster, "TRIES", 2)
        rows, _ = spread(laid, out, on(nodes, "faulty_worker"), remove, timing=timing)
    return Resumed(out, rows, once_each(out, rows), told, lost not in nodes.worker_nodes, timing)


@pytest.fixture(scope="module")
def ended(laid, resumed):
    """The rows once what was killed has been tried again by a sound worker."""
    return run(laid, HookedVideoLLM.from_pretrained("tiny"), resumed.out)


def wait_until(seen, seconds=120) -> None:
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.05)


def on(nodes, worker=SOUND, actors=None) -> Execution:
    return Execution(ray=nodes.address, n_decoders=1, worker=worker, actors=actors)


def spread(laid, out, how, on_row=None, loading=LOADING, timing=None) -> tuple[list[dict], Timing]:
    timing = timing or Timing()
    return carry_out(laid, cluster.engine(laid, loading, how, timing), out, on_row, timing=timing), timing


def stored(out: Path) -> list[dict]:
    """Whole rows: of one that is being written there is a part, for a moment."""
    *whole, _ = (out / ROWS).read_text().split("\n")
    return [json.loads(line) for line in whole]


def once_each(out: Path, rows: list[dict]) -> bool:
    return sorted(r["key"] for r in stored(out)) == sorted(r["key"] for r in rows)


def title(process: psutil.Process) -> str:
    return "".join(command(process)[:1])


def actors() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if title(p).startswith("ray::Actor")]


def drive(pipe, laid, out) -> None:
    """Run on the cluster whose address comes; once so many rows are there, say so and stand still."""
    n = 0

    def stop(row, fresh):
        nonlocal n
        n += fresh
        if n == N_KEPT:
            pipe.send(n)
            pipe.recv()

    spread(laid, out, Execution(ray=pipe.recv(), n_decoders=1, actors=1), stop)


class Resumed(NamedTuple):
    """What a run left: where, its rows, whether each is there once, how many were fresh, whether a node was lost."""

    out: Path
    rows: list[dict]
    once: bool
    told: Counter
    lost: bool
    timing: Timing


def test_an_actor_has_two_videos_and_the_idle_are_served_first():
    schedule = Schedule("abcdef")
    assert list(schedule.deal([1, 2])) == [(1, "a"), (2, "b"), (1, "c"), (2, "d")]
    schedule.done(2, "b")
    schedule.done(2, "d")
    assert list(schedule.deal([1, 2])) == [(2, "e"), (2, "f")] and list(schedule.deal([1, 2])) == []
    assert schedule.n_left == 4


def test_what_was_lost_is_run_last_and_alone_and_given_up_in_the_end():
    schedule = Schedule("abcde")
    assert list(schedule.deal([1, 2])) == [(1, "a"), (2, "b"), (1, "c"), (2, "d")]
    assert schedule.lost(1) == []
    assert list(schedule.deal([2, 3])) == [(3, "e")]  # though it could take two
    schedule.done(3, "e")
    assert list(schedule.deal([2, 3])) == [(3, "a")] and schedule.lost(3) == []
    schedule.done(2, "b")
    schedule.done(2, "d")
    assert list(schedule.deal([2])) == [(2, "c")] and list(schedule.deal([2, 4])) == [(4, "a")]
    assert schedule.lost(4) == ["a"]
    schedule.done(2, "c")
    assert schedule.n_left == 0 and list(schedule.deal([2])) == []


def test_a_killed_driver_goes_on(laid, undisturbed, resumed, ended):
    assert ended == undisturbed
    assert resumed.once and resumed.told == {False: N_KEPT, True: len(undisturbed) - N_KEPT}
    again, timing = spread(laid, resumed.out, Execution(ray="nowhere:1"))  # nothing is left, nobody connected to
    assert again == ended and timing == Timing()


def test_a_lost_node_costs_nothing_but_time(undisturbed, resumed):
    assert [r for r in resumed.rows if r["status"] != "failed"] == undisturbed[:-8]
    assert resumed.once and resumed.lost and resumed.timing.n_actors == 2


def test_actors_that_a_video_kills_are_replaced_and_it_takes_no_other_along(undisturbed, resumed, ended):
    failed = [r for r in resumed.rows if r["status"] == "failed"]
    assert {(r["video"], r["fault"]) for r in failed} == {("fell-9.mp4", "killed")} and len(failed) == 8
    assert "2 processes that ran the model on fell-9.mp4 were lost" in failed[0]["reason"]
    assert resumed.rows[:-8] == undisturbed[:-8]
    assert resumed.timing.n_actors_lost >= 2  # three, unless it was on the node that was lost
    assert resumed.once and ended == undisturbed  # what was killed is tried again


def test_what_cannot_start_says_why(laid, nodes, tmp_path):
    here = socket.gethostname()
    job = cluster.Job(replace(laid, items=[], tasks=[]), {"name_or_path": "no-such-model"}, on(nodes), os.getcwd(), 1)
    with pytest.raises(RunError, match=f"{here} cannot load the model: .*no-such-model"):
        cluster.Actor().load(job)
    with pytest.raises(RunError, match=f"{here} would compute other rows than were planned: .*dtype is 'bfloat16' th"):
        cluster.Actor().load(replace(job, loading=LOADING | {"dtype": "bfloat16"}))
    with pytest.raises(RunError, match=r"no node of the Ray cluster .* has a GPU"):
        spread(laid, tmp_path / "out", on(nodes, actors=1), loading=LOADING | {"device": "cuda"})
    with pytest.raises(ConfigError, match="write --device cuda instead of cuda:1"):
        spread(laid, tmp_path / "out", on(nodes, actors=1), loading=LOADING | {"device": "cuda:1"})
    with pytest.raises(RunError, match=r"cannot connect to a Ray cluster at '127.0.0.1:1' \(.*refused\)"):
        spread(laid, tmp_path / "out", Execution(ray="127.0.0.1:1"))
    with pytest.raises(ConfigError, match="add --ray local"):
        Execution(actors=2)
    assert stored(tmp_path / "out") == []


def test_a_video_that_a_node_does_not_see_is_no_failed_row(laid, nodes, tmp_path):
    moved = replace(laid, annotations=tmp_path / "elsewhere" / "items.jsonl")
    with pytest.raises(RunError, match=r"does not see .*elsewhere/sound-\d.mp4; every node needs the videos"):
        spread(moved, tmp_path / "out", on(nodes, actors=1))


def test_the_command_prints_the_same_table(annotations, paths, tmp_path, capfd):
    (tmp_path / "study.toml").write_text(
        f'items = "{annotations}"\nprotocols = ["all-layers"]\nreuse = "layers"\nn_resamples = 100\n'
    )
    command = ["study", str(tmp_path / "study.toml"), "--limit", "4"]
    ways = {"one": [], "ray": ["--ray", "local", "--actors", "1"]}
    rows, printed = {}, {}
    for name, way in ways.items():
        assert main([*command, "--out", str(tmp_path / name), "--frame-cache", "0", *way]) == 0
        printed[name] = capfd.readouterr()
        rows[name] = sorted((tmp_path / name / ROWS).read_text().splitlines())
    assert rows["one"] == rows["ray"] and len(rows["one"]) == 16
    tables = [(tmp_path / name / "summary.csv").read_text() for name in ways]
    assert tables[0] == tables[1]
    assert printed["ray"].out.split("video questions")[1] == printed["one"].out.split("video questions")[1].replace(
        str(tmp_path / "one"), str(tmp_path / "ray")
    )
    assert "all seconds summed over 1 actors" in printed["ray"].out
    assert "raylet" not in printed["ray"].out + printed["ray"].err and "Actor" not in printed["ray"].err
