"""What goes wrong with one item, as the row it becomes; only RunError stops a run."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from hookedvid.errors import DecodingError, HookedVidError, RunError, VideoError
from hookedvid.study.scorings.outcome import Outcome

P = ParamSpec("P")
T = TypeVar("T")

# Failures that another run may not meet; it tries their rows once more.
PASSING = ("timeout", "memory", "killed", "changed", "machine")
# A failure that nobody foresaw, of ours or of a library. Another run tries it once more: it may be of another version.
UNFORESEEN = "error"
# How torch's allocators say that memory ran out where they do not raise torch.OutOfMemoryError.
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def attempt(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Outcome:
    """What a step on one item gives, or the failed outcome that its error comes to; RunError is raised."""
    try:
        return step(*args, **kwargs)
    except RunError:
        raise
    except Exception as e:
        return _failed(e)


def _failed(e: Exception) -> Outcome:
    """Memory that ran out is such an item's too: other items are shorter, and another run may find more free."""
    if isinstance(e, DecodingError):
        return Outcome.failed(e, e.fault)
    if isinstance(e, HookedVidError):
        return Outcome.failed(e, "video" if isinstance(e, VideoError) else "input")
    message = str(e).partition("\n")[0]
    if isinstance(e, MemoryError | torch.OutOfMemoryError) or any(words in message for words in NO_MEMORY):
        todo = 'free some, take fewer frames, or run with reuse = "layers" or "none"'
        return Outcome("failed", reason=f"the model ran out of memory ({message}); {todo}", fault="memory")
    where = traceback.extract_tb(e.__traceback__)[-1]
    place = f"{Path(where.filename).name}, line {where.lineno}"
    return Outcome(
        "failed",
        reason=f"unforeseen {type(e).__name__}: {message} ({place}); please report it, with this item",
        fault=UNFORESEEN,
    )
