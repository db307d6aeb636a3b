"""Processes that tests look at or end: any of them may end by itself at that moment."""

from collections.abc import Iterable
from contextlib import suppress

import psutil


def command(process: psutil.Process) -> list[str]:
    """Its words; of one that has ended, whether or not it was waited for, none."""
    with suppress(psutil.NoSuchProcess):  # a zombie is one, too
        return process.cmdline()
    return []


def descendants(word: str) -> list[psutil.Process]:
    """What this process or one of its own has started, lives, and has a word in its command."""
    return [p for p in psutil.Process().children(recursive=True) if word in command(p)]


def end(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def gone(processes: Iterable[psutil.Process], seconds: float = 15) -> bool:
    """Whether they end so soon; no init in a container may reap those whose parent was killed."""
    _, alive = psutil.wait_procs(list(processes), timeout=seconds)
    return not any(map(command, alive))
