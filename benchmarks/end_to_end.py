"""A full-size model from a checkpoint in its original layout to answers about a video, with and without knockouts.

    python benchmarks/end_to_end.py llava-onevision-0.5b --work /tmp

Synthesizes the checkpoint (random weights of the true sizes), converts it, writes an mp4, asks. Appends a table.
"""

import argparse
import os
import platform
import resource
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from conversion import ROOT, synthesize
from hookedvid import LV_K, VT_K, EarlyExit, HookedVideoLLM, LayerRange, edge_share
from hookedvid.checkpoints.convert import convert
from hookedvid.data.shapes.mp4 import mp4_bytes


def video(path: Path, n: int = 96, size: tuple[int, int] = (360, 640)) -> None:
    """A moving pattern, 24 frames a second."""
    y, x = np.mgrid[: size[0], : size[1]]
    frames = [
        np.stack([(x + 4 * t) % 256, (y + 2 * t) % 256, (x + y + 8 * t) // 2 % 256], -1).astype(np.uint8)
        for t in range(n)
    ]
    path.write_bytes(mp4_bytes(np.stack(frames), fps=24))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "end_to_end.md")
    args = parser.parse_args(argv)
    source, converted = args.work / "e2e-source", args.work / "e2e-converted"
    for folder in (source, converted):
        shutil.rmtree(folder, ignore_errors=True)
    synthesize(args.name, source)
    convert(source, converted)
    video(args.work / "e2e.mp4")
    start = time.perf_counter()
    model = HookedVideoLLM.from_pretrained(converted, dtype=args.dtype, device=args.device)
    loaded = time.perf_counter() - start
    inputs = model.prepare(args.work / "e2e.mp4", "Which way does it move?", ["left", "right", "up", "down"])
    n = model.cfg.n_layers
    conditions = {
        "intact": [],
        "LV-K in every block": [LV_K],
        f"VT-K in blocks 0 to {n // 4 - 1}": [VT_K.at(LayerRange(0, n // 4))],
        f"early exit after {n // 2} blocks": [EarlyExit(n // 2)],
    }
    rows = []
    for name, given in conditions.items():
        start = time.perf_counter()
        answer = model.answer(inputs, given)
        seconds = time.perf_counter() - start
        probs = ", ".join(f"{p:.2e}" for p in answer.probs)
        rows.append(f"| {name} | {seconds:.0f} | {100 * edge_share(inputs.layout, given, n):.1f} | {probs} |")
        print(rows[-1], flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    video_tokens = int(inputs.layout.mask("video").sum())
    head = [
        f"# {args.name}, random weights, end to end", "",
        f"`python benchmarks/end_to_end.py {args.name}`; {os.cpu_count()} cores ({platform.machine()}), "
        f"{args.device}, {args.dtype}, sdpa, torch {torch.__version__}. mp4 of 96 frames at 640 x 360, "
        f"{model.cfg.n_frames} sampled: {inputs.layout.n_tokens} tokens, {video_tokens} of them video. Converted from "
        f"the original layout, loaded in {loaded:.1f} s; peak RSS {peak / 1e9:.1f} GB, everything included.", "",
        "| condition | seconds (tower included) | attention edges left, % | p(A), p(B), p(C), p(D) |",
        "|---|---|---|---|",
    ]  # fmt: skip
    args.out.write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
    shutil.rmtree(source)
    shutil.rmtree(converted)


if __name__ == "__main__":
    main()
