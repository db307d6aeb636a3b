"""Tensors that claim to be on cuda while their numbers are on the CPU.

Mixing devices raises where CUDA would raise; transfers and waits of the host are counted; results are the CPU's. So
where things lie, and how often a path makes a GPU wait, are tested on a machine without one. No kernel is tested by it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

CUDA = torch.device("cuda", 0)
# Operations whose result's shape, or Python value, depends on numbers that the device has yet to compute.
WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "unique")
# What a GPU takes of another device: an index.
INDEXING = ("aten.index.", "aten.index_put", "aten._index_put", "aten._unsafe_index")

counts: Counter[str] = Counter()


def is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def bare(x: Any) -> Any:
    return x.inner if isinstance(x, Pretend) else x


def tensors_of(*given: Any) -> list[torch.Tensor]:
    """Those of an operation's arguments: torch's own walk through them takes most of such a run."""
    found = []
    for x in given:
        if isinstance(x, torch.Tensor):
            found.append(x)
        elif isinstance(x, tuple | list):
            found += tensors_of(*x)
        elif isinstance(x, dict):
            found += tensors_of(*x.values())
    return found


def mapped(f: Callable[[Any], Any], x: Any) -> Any:
    """What `f` makes of each of them and of each value."""
    if type(x) in (tuple, list):
        return type(x)([mapped(f, one) for one in x])
    return {name: mapped(f, one) for name, one in x.items()} if type(x) is dict else f(x)


class Pretend(torch.Tensor):
    """A tensor on the pretended device; `inner` holds its numbers."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Pretend":
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=CUDA, requires_grad=inner.requires_grad,
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor):
        self.inner = inner

    def __repr__(self) -> str:
        return f"Pretend({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operation as the device would do it, or refuse it."""
    name = str(func)
    tensors = tensors_of(args, kwargs)
    there = [t for t in tensors if isinstance(t, Pretend)]
    here = [t for t in tensors if not isinstance(t, Pretend)]
    wanted = kwargs.get("device")
    plain = {**kwargs, "device": torch.device("cpu")} if wanted is not None else kwargs
    if name == "aten._to_copy.default":
        out = func(*mapped(bare, args), **plain)
        to_cuda = is_cuda(wanted) if wanted is not None else bool(there)
        counts["to device"] += to_cuda and bool(here)
        counts["to host"] += bool(there) and not to_cuda
        return Pretend(out) if to_cuda else out
    if name == "aten.copy_.default":
        bare(args[0]).copy_(bare(args[1]))
        across = isinstance(args[0], Pretend), isinstance(args[1], Pretend)
        counts["to device"] += across == (True, False)
        counts["to host"] += across == (False, True)
        return args[0]
    if there and any(t.ndim for t in here):
        if not (name.startswith(INDEXING) and isinstance(args[0], Pretend)):
            raise RuntimeError(f"{name}: tensors on cuda and on the cpu, {[tuple(t.shape) for t in here]}")
        counts["to device"] += 1
    counts["wait"] += any(f"aten.{w}." in name for w in WAITS)
    out = func(*mapped(bare, args), **mapped(bare, plain))
    if not (is_cuda(wanted) or (wanted is None and there)):
        return out
    same = {id(t.inner): t for t in there}  # operations in place return what they were given
    return mapped(lambda o: same.get(id(o), Pretend(o)) if isinstance(o, torch.Tensor) else o, out)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if is_cuda(kwargs.get("device")) or any(isinstance(t, Pretend) for t in tensors_of(args, kwargs)):
            return dispatch(func, args, kwargs)
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and any(isinstance(t, Pretend) for t in tensors_of(args, kwargs)):
            if not all(isinstance(t, Pretend) for t in tensors_of(args, kwargs)):
                raise RuntimeError("scaled_dot_product_attention: tensors on cuda and on the cpu")
            with _disable_current_modes():
                return Pretend(func(*mapped(bare, args), **mapped(bare, kwargs)))
        if func in (torch.tensor, torch.as_tensor) and is_cuda(kwargs.get("device")):
            counts["to device"] += 1
            return Pretend(func(*args, **{**kwargs, "device": "cpu"}))
        if func is torch.Tensor.tolist and isinstance(args[0], Pretend):
            counts["wait"] += 1
            return args[0].inner.tolist()
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], Pretend):
            at = args[1] if isinstance(args[1], tuple) else (args[1],)
            counts["to device"] += sum(isinstance(i, list) for i in at)
            at = tuple(Pretend(torch.tensor(i)) if isinstance(i, list) else i for i in at)
            args = (args[0], at if isinstance(args[1], tuple) else at[0], *args[2:])
        return func(*args, **kwargs)


@contextmanager
def pretend_cuda() -> Iterator[Counter[str]]:
    """Within, `.to("cuda")` and factories with device="cuda" give pretend tensors; what is counted begins at zero."""
    before = torch.cuda._lazy_init
    torch.cuda._lazy_init = lambda: None
    torch._C._ensureCUDADeviceGuardSet()
    counts.clear()
    try:
        with ExitStack() as stack:
            stack.enter_context(_Dispatch())
            stack.enter_context(_Functions())
            yield counts
    finally:
        torch.cuda._lazy_init = before


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """What the block costs: `wait` (for a value), `to host` (which waits as well), `to device`."""
    before, cost = Counter(counts), Counter[str]()
    try:
        yield cost
    finally:
        cost.update(counts)
        cost.subtract(before)
