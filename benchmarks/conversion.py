"""Convert a full-size synthetic checkpoint and time it against a plain copy of its files; load it; write the table.

    python benchmarks/conversion.py llava-onevision-7b internvideo2.5-8b --work /tmp

Copy and conversion alternate, each in its own process, on files pushed out of the page cache; both end with fsync.
Needs three times the checkpoint's size on the disk of --work.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from synthesize_checkpoint import synthesize, tensors, RECIPES  # noqa: E402, I001

COPY = """
import os, shutil, sys
from pathlib import Path
for p in Path(sys.argv[1]).iterdir():
    with p.open('rb') as a, (Path(sys.argv[2]) / p.name).open('wb') as b:
        shutil.copyfileobj(a, b, 32 << 20); b.flush(); os.fsync(b.fileno())
"""
CONVERT = (
    "import sys; from hookedvid.checkpoints.convert import convert; convert(sys.argv[1], sys.argv[2], progress=False)"
)
LOAD = """
import sys, time
start = time.perf_counter()
from hookedvid import HookedVideoLLM
model = HookedVideoLLM.from_pretrained(sys.argv[1], dtype='bfloat16')
loaded = time.perf_counter() - start
print(loaded, sum(p.numel() for p in model.parameters()))
"""


class Run(NamedTuple):
    """One process: wall seconds, processor seconds, peak resident bytes, what it printed."""

    wall: float
    cpu: float
    rss: int
    out: str


def run(code: str, *args: Path) -> Run:
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed with {status}: {args}")
    return Run(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, out)


def forget(folder: Path) -> None:
    """Push a folder's files out of the page cache."""
    os.sync()
    for p in folder.iterdir():
        with p.open("rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(name: str, work: Path, rounds: int) -> str:
    source, copied, converted = (work / f"{name}-{k}" for k in ("source", "copy", "converted"))
    for folder in (source, copied, converted):
        shutil.rmtree(folder, ignore_errors=True)
    synthesize(name, source)
    size = sum(p.stat().st_size for p in source.iterdir())
    largest = max(e.size for e in tensors(RECIPES[name]))
    copies, conversions = [], []
    for _ in range(rounds):
        shutil.rmtree(converted, ignore_errors=True)
        copied.mkdir()
        forget(source)
        copies.append(run(COPY, source, copied))
        shutil.rmtree(copied)
        forget(source)
        conversions.append(run(CONVERT, source, converted))
    forget(converted)
    load = run(LOAD, converted)
    seconds, parameters = load.out.split()
    ratios = [a.wall / b.wall for a, b in zip(copies, conversions, strict=True)]
    print(name, [c.wall for c in copies], [c.wall for c in conversions], ratios, load, flush=True)
    copy, conversion = (statistics.median(r.wall for r in x) for x in (copies, conversions))
    shutil.rmtree(converted)
    shutil.rmtree(source)
    bound = 2 * largest + 500e6
    return (
        f"| {name} ({int(parameters) / 1e9:.2f} B) | {size / 1e9:.2f} | {copy:.0f} ({size / copy / 1e6:.0f} MB/s) "
        f"| {conversion:.0f} ({size / conversion / 1e6:.0f} MB/s) | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f}–{max(ratios):.2f}) | {max(c.rss for c in conversions) / 1e9:.2f} (≤ {bound / 1e9:.2f}) "
        f"| {float(seconds):.1f} s, {load.rss / 1e9:.2f} GB | {rounds} |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "conversion.md")
    args = parser.parse_args(argv)
    rows = [measure(name, args.work, args.rounds) for name in args.names]
    about = (
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, torch {torch.__version__}"
    )
    head = [
        "# Conversion against a plain copy", "",
        f"`python benchmarks/conversion.py {' '.join(args.names)}`; {about}. Synthetic checkpoints of true names, "
        "shapes and shard sizes; copy and conversion alternate, cold page cache, fsync. Medians; the ratio is copy "
        "time / conversion time of one round (1 = as fast as the copy), in brackets its range. Loading is "
        "`from_pretrained(folder, dtype=\"bfloat16\")` on the CPU with nothing cached, the library's import included.",
        "",
        "| checkpoint | GB | copy, s | convert, s | ratio | peak RSS, GB (bound: 2 largest tensors + 0.5) "
        "| load, peak RSS | rounds |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    args.out.write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
