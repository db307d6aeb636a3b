"""Whether a study's memory stays flat: resident memory of the tiny model's process over a thousand questions.

    python benchmarks/memory_flat.py --work /tmp

Makes the clips, runs the study over them in decoding processes with the cache on, and writes a table.
"""

import argparse
import os
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

from hookedvid import HookedVideoLLM
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.study.definition import Study, plan
from hookedvid.study.run.tasks import run
from hookedvid.study.run.timing import Timing
from hookedvid.video.clip_files import FrameCache
from hookedvid.video.decoders import Decoders

STEP = 100  # items between two looks
SETTLED = 200  # items after which allocators and caches have grown to their size


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    args = parser.parse_args(argv)
    work = args.work / "memory-flat"
    shutil.rmtree(work, ignore_errors=True)
    make_dataset(work / "set", seed=0, split="test", n_videos=args.items // 2, questions_per_video=2)
    model = HookedVideoLLM.from_pretrained("tiny")
    laid = plan(Study(protocols=("all-layers",)), model, work / "set" / "items.jsonl")
    process, seen, timing = psutil.Process(), [], Timing()
    n_rows = len(laid.conditions) * STEP

    def look(row: dict, fresh: bool) -> None:
        look.n += 1
        if look.n % n_rows == 0:
            workers = [p.memory_info().rss for p in process.children(recursive=True)]
            seen.append((look.n // len(laid.conditions), process.memory_info().rss / 2**20, max(workers) / 2**20))

    look.n = 0
    start = time.perf_counter()
    with Decoders(cache=FrameCache(work / "frames", 1 << 30)) as decoders:
        run(laid, model, work / "out", look, decoders=decoders, timing=timing)
    seconds = time.perf_counter() - start
    table = np.array(seen)
    slopes = [
        np.polyfit(table[table[:, 0] >= SETTLED, 0] / STEP, table[table[:, 0] >= SETTLED, c], 1)[0] for c in (1, 2)
    ]
    lines = [
        "# Resident memory of a study, tiny model",
        "",
        f"`python benchmarks/memory_flat.py`; {os.cpu_count()} cores ({platform.machine()}), cpu, float32, sdpa, torch "
        f"{torch.__version__}. {args.items} questions on {args.items // 2} clips, {len(laid.conditions)} conditions, "
        f"{seconds:.0f} s: {timing}.",
        "",
        f"Slope from item {SETTLED} on: {slopes[0]:+.2f} MB per 100 items; {slopes[1]:+.2f} MB in the largest decoding "
        "process.",
        "",
        "| items | this process, MB | largest decoding process, MB |",
        "|---|---|---|",
        *(f"| {n:.0f} | {own:.0f} | {worker:.0f} |" for n, own, worker in seen),
    ]
    args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
