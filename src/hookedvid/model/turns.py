"""Which thread may run a model when: plain runs side by side, a run with hooks alone.

Hooks stand on modules, and all threads share those.
"""

import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from hookedvid.errors import HookError
from hookedvid.model.eager import eager


class Turns:
    """The turns of one model's runs. Runs inside a run share its turn; a copy of the model has turns of its own."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._plain: Counter[int] = Counter()  # thread -> its plain runs under way
        self._alone: int | None = None  # the thread whose hooks are on the model
        self._depth = 0
        self._waiting = 0

    def __reduce__(self) -> tuple[type["Turns"], tuple[()]]:
        return Turns, ()

    @contextmanager
    def shared(self) -> Generator[None]:
        """A plain run's turn; waits while another thread has, or waits for, the model alone."""
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(
                lambda: self._alone == me or me in self._plain or not (self._alone is not None or self._waiting)
            )
            self._plain[me] += 1
        try:
            yield
        finally:
            with self._changed:
                self._plain[me] -= 1
                self._plain += Counter()  # drops zeros
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Generator[None]:
        """A hooked run's turn, which goes through no compiled graph; waits for the runs of other threads.

        Raises:
            HookError: Inside a plain run, whose hook points others are passing.
        """
        me = threading.get_ident()
        with self._changed:
            if me in self._plain and self._plain.keys() - {me}:
                raise HookError(
                    "hooks cannot be attached from inside a run while other threads run the model; attach them before"
                )
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._alone in (None, me) and not self._plain.keys() - {me})
            finally:
                self._waiting -= 1
            self._alone = me
            self._depth += 1
        try:
            with eager():
                yield
        finally:
            with self._changed:
                self._depth -= 1
                if not self._depth:
                    self._alone = None
                self._changed.notify_all()
