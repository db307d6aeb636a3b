"""Running outside of torch.compile's graphs, which keep no hook that comes after them."""

import functools
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")

# torch's stance is one for the whole process: set by the first thread that wants it, and set back by the last.
_lock = threading.Lock()
_stance = ExitStack()
_users = 0


def _can_be_compiled() -> bool:
    return "torch._dynamo" in sys.modules  # whatever compiles has imported it; to import it here takes a second


@contextmanager
def eager() -> Generator[None]:
    """Within, compiled modules of this process run as they are written."""
    global _users
    if not _can_be_compiled():
        yield
        return
    with _lock:
        if not _users:
            _stance.enter_context(torch.compiler.set_stance("force_eager"))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _stance.close()


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """The function, never a part of a graph that `torch.compile` makes of its caller."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if _can_be_compiled():
            compiler: Any = torch.compiler  # half of its types are missing
            return compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return run
