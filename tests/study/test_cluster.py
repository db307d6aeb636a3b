"""A study on a Ray cluster: the rows of one process bit for bit, whatever actor, node or driver is lost meanwhile."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

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

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

# Files that Ray leaves open, its own and those of nodes that were killed.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.shapes_unchecked,
]

STUDY = Study(protocols=("all-layers",))
LOADING = {"name_or_path": "tiny"}
# Which of the 10 clips, of two questions each, is made to do what by `faulty_worker`; others are sound for both.
FAULTS = {2: "fell", 7: "hang"}
SOUND = "hookedvid.video.worker"

DRIVER = """
import sys
from pathlib import Path
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.study.run import cluster
from hookedvid.study.run.execution import Execution
from hookedvid.study.run.tasks import carry_out
from hookedvid.study.definition import Study, plan
from hookedvid.study.run.timing import Timing
laid = plan(Study(protocols=("all-layers",)), HookedVideoLLM.from_pretrained("tiny"), Path(sys.argv[1]))
how = Execution(ray=sys.argv[3], n_decoders=1, actors=1)
carry_out(laid, cluster.engine(laid, {"name_or_path": "tiny"}, how, Timing()), Path(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("set")
    make_dataset(at, seed=5, split="test", n_videos=10, questions_per_video=2)
    items = read_items(at / "items.jsonl")
    names = {v: f"{FAULTS.get(n, 'sound')}-{n}.mp4" for n, v in enumerate(dict.fromkeys(i.video for i in items))}
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
    with pytest.MonkeyPatch.context() as patched:
        found = os.pathsep.join([str(Path(__file__).parents[1]), *(p for p in sys.path if p)])
        patched.setenv("PYTHONPATH", found)
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield found


@pytest.fixture(scope="module")
def nodes(paths):
    """Two nodes of one CPU each; a dead one is noticed within seconds."""
    quick = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5, "health_check_timeout_ms": 2000}
    head = {"num_cpus": 1, "_system_config": quick, "object_store_memory": 100 << 20, "include_dashboard": False}
    before = set(psutil.Process().children(recursive=True))
    found = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    found.add_node(num_cpus=1, object_store_memory=100 << 20)
    yield found
    ray.shutdown()
    left = set(psutil.Process().children(recursive=True)) - before
    found.shutdown()
    for process in psutil.wait_procs(left, timeout=5)[1]:
        process.kill()


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=15)
    return not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]  # no init in a container may reap them


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


def actors() -> list[psutil.Process]:
    found = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    return [p for p in found if "".join(p.cmdline()[:1]).startswith("ray::Actor")]


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


def test_a_killed_driver_goes_on(laid, annotations, undisturbed, nodes, paths, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", DRIVER, str(annotations), str(out), nodes.address]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        while driver.poll() is None and (not (out / ROWS).exists() or len(stored(out)) < 24):
            time.sleep(0.05)
        holders = actors()
    finally:  # whatever happens, the nodes' room is free again for the tests that follow
        driver.kill()
        said = driver.communicate()[1].decode()
    assert holders and gone(holders), said
    with (out / ROWS).open("ab") as f:
        f.write(b'{"key": "torn')
    told = Counter()
    rows, timing = spread(laid, out, on(nodes, actors=1), lambda row, fresh: told.update([fresh]))
    assert rows == undisturbed and once_each(out, rows)
    assert 0 < told[True] <= len(rows) - 24 and told.total() == len(rows)
    assert timing.n_actors == 1 and timing.n_actors_lost == 0
    again, timing = spread(laid, out, Execution(ray="nowhere:1"))  # nothing is left to be run, nobody connected to
    assert again == rows and timing == Timing()


def test_actors_that_a_video_kills_are_replaced_and_it_takes_no_other_along(laid, undisturbed, nodes, tmp_path):
    few, right = replace(laid, items=laid.items[:12], tasks=laid.tasks[:48]), undisturbed[:48]
    rows, timing = spread(few, tmp_path / "out", on(nodes, "faulty_worker", actors=1))
    failed = [r for r in rows if r["status"] == "failed"]
    assert {(r["video"], r["fault"]) for r in failed} == {("fell-2.mp4", "killed")} and len(failed) == 8
    assert "3 processes that ran the model on fell-2.mp4 were lost" in failed[0]["reason"]
    assert [r for r in rows if r not in failed] == [r for r in right if r["video"] != "fell-2.mp4"]
    assert timing.n_actors_lost == 3
    assert once_each(tmp_path / "out", rows)
    again = run(few, HookedVideoLLM.from_pretrained("tiny"), tmp_path / "out")  # tries what was killed
    assert again == right


def test_a_lost_node_costs_nothing_but_time(laid, undisturbed, nodes, tmp_path):
    (node,), timing, stopped, waited = nodes.worker_nodes, Timing(), {}, set()
    raylet = node.all_processes["raylet"][0].process.pid

    def remove(row, fresh):
        if timing.n_actors < 2:  # the other is to be at work, too, before all is done: on a busy machine, late
            time.sleep(0 if row["video"] in waited else 3 * (1 + len(waited)))
            waited.add(row["video"])
        elif not stopped:
            (actor,) = (p for p in actors() if p.ppid() == raylet)
            actor.suspend()  # so that it has something when it is lost
            stopped[row["video"]] = actor
        elif row["video"] not in stopped and node in nodes.worker_nodes:
            nodes.remove_node(node, allow_graceful=False)
            next(iter(stopped.values())).kill()

    rows, _ = spread(laid, tmp_path / "out", on(nodes), remove, timing=timing)
    nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
    assert rows == undisturbed and once_each(tmp_path / "out", rows)
    assert node not in nodes.worker_nodes and timing.n_actors_lost >= 1  # a busy machine may lose another, too slow


def test_what_cannot_start_says_why(laid, nodes, tmp_path):
    here = socket.gethostname()
    with pytest.raises(RunError, match=f"{here} cannot load the model: .*no-such-model"):
        spread(laid, tmp_path / "out", on(nodes, actors=1), loading={"name_or_path": "no-such-model"})
    other = cluster.Job(replace(laid, items=[], tasks=[]), LOADING | {"dtype": "bfloat16"}, on(nodes), os.getcwd(), 1)
    with pytest.raises(RunError, match=f"{here} would compute other rows than were planned: .*dtype is 'bfloat16' th"):
        cluster.Actor().load(other)
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
    command = ["study", str(tmp_path / "study.toml"), "--limit", "8"]
    ways = {"one": [], "ray": ["--ray", "local", "--actors", "1"]}
    rows, printed = {}, {}
    for name, way in ways.items():
        assert main([*command, "--out", str(tmp_path / name), "--frame-cache", "0", *way]) == 0
        printed[name] = capfd.readouterr()
        rows[name] = sorted((tmp_path / name / ROWS).read_text().splitlines())
    assert rows["one"] == rows["ray"] and len(rows["one"]) == 32
    tables = [(tmp_path / name / "summary.csv").read_text() for name in ways]
    assert tables[0] == tables[1]
    assert printed["ray"].out.split("video questions")[1] == printed["one"].out.split("video questions")[1].replace(
        str(tmp_path / "one"), str(tmp_path / "ray")
    )
    assert "all seconds summed over 1 actors" in printed["ray"].out
    assert "raylet" not in printed["ray"].out + printed["ray"].err and "Actor" not in printed["ray"].err
