"""What a study's commands take that have rows to read and nothing to run, as rows grow."""

import io
import json
import os
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.printing import mib, spread, table
from hookedvid.cli.verbs import plot, run_study
from hookedvid.data.item import read_items, write_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.study.definition import Study, plan
from hookedvid.study.records import ROWS
from hookedvid.study.rows import Task, line_of, row_of
from hookedvid.study.scorings.outcome import Outcome

TITLE = "A study's rows"


class Spent(NamedTuple):
    """One run of a command: seconds of processor time, bytes of resident memory above those at its start."""

    seconds: float
    peak: int


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section."""
    rounds = rounds or 1
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for n in (4,) if quick else (656, 1312, 2625):  # 2,625 questions under 36 conditions are 94,500 rows
            file, out = folder(Path(scratch), n, 'protocols = ["all-layers"]\n' if quick else "")
            commands: dict[str, Callable[[], object]] = {
                "`study --plan`": lambda file=file, out=out: run_study(file, out, None, None, (), None, plan_only=True),
                "`study`, nothing to run": lambda file=file, out=out: run_study(file, out, None, None, (), None),
                "`plot`": lambda out=out: plot(out),
            }
            for name, command in commands.items():
                spent = [measured(command) for _ in range(rounds)]
                peak = mib(statistics.median(s.peak for s in spent))
                rows = (out / ROWS).read_bytes()
                found.append(
                    (f"{len(rows.splitlines()):,}", mib(len(rows)), name, spread([s.seconds for s in spent]), peak)
                )
    return [
        "The whole study on the tiny model, every row of which is there: rows asked for, their file, and of each "
        f"command seconds and peak resident memory above its start, imports apart (n = {rounds}, each in a process of "
        "its own). Rows are read and checked once a command; tables, tests and figures are part of `study` and `plot`.",
        "",
        *table(("rows", "file, MiB", "command", "s", "MiB"), found),
    ]


def folder(scratch: Path, n: int, more: str) -> tuple[Path, Path]:
    """A study file of `n` questions, five a video, and `more`; a folder that holds all of its rows, made up."""
    at = scratch / str(n)
    make_dataset(at / "set", seed=0, split="test", n_videos=min(n, 25), questions_per_video=5)
    items, many = read_items(at / "set" / "items.jsonl"), []
    for i in range(n):
        item, again = items[i % len(items)], i // len(items)
        video = f"{again}-{Path(item.video).name}"
        if not (at / "set" / video).exists():
            os.link(at / "set" / item.video, at / "set" / video)
        many.append(replace(item, id=str(i), video=video))
    write_items(many, at / "set" / "many.jsonl")
    (at / "study.toml").write_text(f'items = "set/many.jsonl"\n{more}', encoding="utf-8")
    model = HookedVideoLLM.from_pretrained("tiny")
    laid = plan(Study.from_toml(at / "study.toml"), model, at / "set" / "many.jsonl")
    (at / "out").mkdir()
    _write({task.key: task for _, _, task in laid.tasks}.values(), at / "out" / ROWS)
    return at / "study.toml", at / "out"


def _write(tasks: Iterable[Task], path: Path) -> None:
    rng = random.Random(0)
    with path.open("wb") as file:
        for task in tasks:
            right = rng.random() < 0.6
            shares = {"attention_share": rng.random(), "decoder_share": rng.random()}
            outcome = Outcome("ok", 0, right, rng.random(), rng.gauss(0, 1), **shares)
            file.write(line_of(row_of(task, outcome)) + b"\n")


def measured(command: Callable[[], object]) -> Spent:
    """What a command takes in a fork of this process, which says so through a pipe."""
    heard, said = os.pipe()
    child = os.fork()
    if not child:
        try:
            before, start = resident(), time.process_time()
            with redirect_stdout(io.StringIO()):
                command()
            seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            os.write(said, json.dumps([seconds, max(0, peak - before)]).encode())
        finally:
            os._exit(0)
    os.close(said)
    with os.fdopen(heard, "rb") as pipe:
        spent = Spent(*json.loads(pipe.read()))
    os.waitpid(child, 0)
    return spent


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
