"""How results print: spreads, ratios, tables, the machine they are of."""

import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "transformer-lens")


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range; one value stands alone."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def over(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Quotients of what one round gave."""
    return [x / y for x, y in zip(a, b, strict=True)]


def mib(n_bytes: float) -> str:
    """Bytes in MiB."""
    return f"{n_bytes / 2**20:,.{1 if n_bytes < 2**30 else 0}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table and the empty line after it."""
    assert all(len(r) == len(head) for r in rows), (head, rows)
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(map(str, r))} |" for r in rows),
        "",
    ]


def machine(n_threads: int) -> str:
    """What a section ran on."""
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    load = f"load {os.getloadavg()[0]:.1f} at its start" if hasattr(os, "getloadavg") else ""
    versions = ", ".join(f"{p} {version(p)}" for p in PACKAGES)
    ran = f"{name}, {os.cpu_count()} cores, {n_threads} thread{'s' * (n_threads > 1)}, {load}"
    return f"{ran}; Python {platform.python_version()}, {versions}"
