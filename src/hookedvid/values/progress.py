"""A bar for whoever waits: from two seconds on, where somebody looks."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

from tqdm import tqdm

WAIT = 2.0  # seconds without a bar


@contextmanager
def bar(total: int, what: str, unit: str) -> Generator[Callable[[int], object]]:
    """What is told how many more are done, and shows it on a terminal or in a notebook until the block ends."""
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    with tqdm(total=total, desc=what, unit=f" {unit}", delay=WAIT, leave=False, disable=not watched) as shown:
        yield shown.update
