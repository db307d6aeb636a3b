"""Time, memory and rates of one call."""

import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

Device = torch.device
CPU = Device("cpu")


class Cost(NamedTuple):
    """One call: seconds, bytes of peak memory above what was there before, what it returned."""

    seconds: float
    peak: int
    out: Any


def now(device: Device) -> float:
    """Processor time of this process; on a GPU wall time once its queue is empty."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def timed(call: Callable[[], Any], device: Device = CPU) -> tuple[float, Any]:
    """Seconds, and what the call returned."""
    start = now(device)
    out = call()
    return now(device) - start, out


@torch.no_grad()
def cost(call: Callable[[], Any], device: Device = CPU) -> Cost:
    """Seconds and peak memory together; on a CPU counting adds microseconds to every operation."""
    if device.type == "cpu":
        with Alive() as alive:
            return Cost(*_with_peak(call, device, lambda: alive.peak))
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    return Cost(*_with_peak(call, device, lambda: torch.cuda.max_memory_allocated(device) - before))


def _with_peak(call: Callable[[], Any], device: Device, peak: Callable[[], int]) -> tuple[float, int, Any]:
    seconds, out = timed(call, device)
    return seconds, peak(), out


class Alive(TorchDispatchMode):
    """Bytes of the tensors made inside it that are alive, and the most there were at once.

    The same on every run, where a process's resident size moves with the allocator. What an operation uses inside
    itself and frees is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation and count the storages it made."""
        out = func(*args, **(kwargs or {}))
        made = [t.untyped_storage() for t in _tensors((out,))]
        made = [s for s in made if s._cdata not in self._sizes]
        if made:
            given = {t.untyped_storage()._cdata for t in _tensors((*args, *(kwargs or {}).values()))}
            for storage in made:
                self._count(storage, given)
        return out

    def _count(self, storage: Any, given: set[int]) -> None:
        key = storage._cdata
        if key in given or key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for v in values:
        if isinstance(v, torch.Tensor):
            yield v
        elif isinstance(v, list | tuple):
            yield from _tensors(v)


def matrix_rate(device: Device, dtype: torch.dtype, side: int) -> float:
    """Operations a second of one square matrix product: what this device reaches at best, the median of five."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    timed(lambda: a @ a, device)
    return 2 * side**3 / statistics.median(timed(lambda: a @ a, device)[0] for _ in range(5))


@contextmanager
def threads(n: int) -> Any:
    """So many threads inside an operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
