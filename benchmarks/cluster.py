"""How many videos a minute one process, and one or two actors of a Ray cluster on this machine answer.

    python benchmarks/cluster.py --work /tmp

Makes the clips, runs the whole study on the tiny model over them in each way, checks that rows are the same, and
writes a table.
"""

import argparse
import os
import platform
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from hookedvid import HookedVideoLLM
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.study.definition import Plan, Study, plan
from hookedvid.study.run import cluster
from hookedvid.study.run.execution import Execution
from hookedvid.study.run.tasks import carry_out, run
from hookedvid.study.run.timing import Timing


class Measured(NamedTuple):
    """Seconds up to the first row, and from there on to the last; what was counted on the way, and the rows."""

    start: float
    seconds: float
    timing: Timing
    rows: list[dict]


def measure(laid: Plan, model: HookedVideoLLM, out: Path, n_actors: int) -> Measured:
    """One run; in this process, which has the model already, where there are no actors."""
    timing, came = Timing(), []
    start = time.perf_counter()

    def look(row: dict, fresh: bool) -> None:
        came.append(time.perf_counter() - start)

    if n_actors:
        how = Execution(ray="local", actors=n_actors)
        engine = cluster.engine(laid, {"name_or_path": "tiny"}, how, timing)
        rows = carry_out(laid, engine, out, look, timing=timing)
    else:
        rows = run(laid, model, out, look, timing=timing)
    return Measured(came[0], came[-1] - came[0], timing, rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--videos", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    work = args.work / "cluster"
    shutil.rmtree(work, ignore_errors=True)
    make_dataset(work / "set", seed=0, split="test", n_videos=args.videos, questions_per_video=2)
    model = HookedVideoLLM.from_pretrained("tiny")
    laid = plan(Study(), model, work / "set" / "items.jsonl")
    load = os.getloadavg()[0]
    ways = {"one process": 0, "Ray, 1 actor": 1, "Ray, 2 actors": 2}
    found = {way: measure(laid, model, work / str(n), n) for way, n in ways.items()}
    first = found["one process"]
    assert all(m.rows == first.rows for m in found.values()), "rows differ"
    lines = [
        "# A study spread out on one machine, tiny model",
        "",
        f"`python benchmarks/cluster.py`; {os.cpu_count()} cores ({platform.machine()}), load {load:.1f} at its start, "
        f"cpu, float32, sdpa, 1 thread a process, torch {torch.__version__}, ray {version('ray')}. {len(laid.items)} "
        f"questions on {args.videos} clips, {len(laid.conditions)} conditions, one run each; rows are equal bit for "
        "bit. Clips a minute: from the first video's rows to the last's. Start: until the first, with Ray its own "
        "start and loading the model. Decoding, model and waiting for frames: seconds summed over processes.",
        "",
        "| | clips a minute | over one process | start, s | decoding, s | model, s | waiting, s |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {way} | {60 * (args.videos - 1) / m.seconds:.0f} | {first.seconds / m.seconds:.2f} | {m.start:.1f} | "
            f"{m.timing.decoding:.1f} | {m.timing.model:.1f} | {m.timing.waited:.1f} |"
            for way, m in found.items()
        ),
    ]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
