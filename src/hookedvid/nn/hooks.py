"""TransformerLens's building blocks, imported here alone, and what asks whether one is in use."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.FactoredMatrix import FactoredMatrix
from transformer_lens.hook_points import HookPoint as LensHookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.utilities.slice import Slice

from hookedvid.errors import HookError

__all__ = [
    "ActivationCache",
    "FactoredMatrix",
    "HookPoint",
    "HookedRootModule",
    "Slice",
    "branch",
    "heard",
    "hooked",
    "listening",
    "untouched",
    "with_path",
]


class HookPoint(LensHookPoint):
    """TransformerLens's; what its hooks return must be as what they were given, or the next sum would broadcast it.

    n_heads: of a mask that all heads share, of which a hook may give each its own.
    """

    n_heads = 1

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The activation as its hooks leave it. Raises HookError where one returned something else."""
        out = super().__call__(*args, **kwargs)
        if out is not args[0]:
            self._check(args[0], out)
        return out

    def _check(self, given: Tensor, out: Any) -> None:
        expected = f"{tuple(given.shape)} of {given.dtype} on {given.device}"
        if not isinstance(out, Tensor):
            raise HookError(f"a hook on {self.name!r} returned {type(out).__name__}; return None or {expected}")
        shapes = [given.shape, torch.Size([*given.shape[:1], self.n_heads, *given.shape[2:]])]
        if out.shape not in shapes[: 1 + (self.n_heads > 1)] or out.dtype != given.dtype or out.device != given.device:
            returned = f"{tuple(out.shape)} of {out.dtype} on {out.device}"
            what = ", True where a query may look" if given.dtype == torch.bool else ""
            raise HookError(f"a hook on {self.name!r} returned {returned}; return {expected}{what}")


def listening(*points: nn.Module) -> bool:
    """Whether anything, forward or backward, ours or plain torch's, is attached to one of the hook points."""
    return any(p._forward_hooks or p._backward_hooks or p._backward_pre_hooks or p._forward_pre_hooks for p in points)


def hooked(module: nn.Module) -> list[str]:
    """Names of the modules that anything listens on, hook points first: hooks of ours, plain torch's, torch's for all.

    The module's own name is empty. A hook on every module there is stands as `*`.
    """
    found = [(not isinstance(m, HookPoint), n) for n, m in module.named_modules() if listening(m)]
    return [n for _, n in sorted(found)] + ["*"] * bool(_has_any_global_hook())


def branch(point: HookPoint, x: Tensor) -> Tensor:
    """`x` through a hook point that one of its readers has: an edit in place must not reach the others."""
    return point(x.clone()) if listening(point) else point(x)


def heard(point: HookPoint, x: Tensor) -> tuple[Tensor, Bool[Tensor, "*shape"]]:
    """What a hook point makes of `x`, by a new tensor or in place, and which entries it leaves as they were."""
    out = point(x.clone())
    return out, out == x


def untouched(same: Bool[Tensor, "*shape"], plain: Tensor, through: Tensor) -> Tensor:
    """`plain` where a hook point left things the same, `through` elsewhere; the gradient goes `through` the point.

    The two are equal up to rounding there, so that listening moves no bit. Nothing here asks a device for a value.
    """
    return torch.where(same, with_path(plain.detach(), through), through)


def with_path(x: Tensor, path: Tensor) -> Tensor:
    """The numbers of `x`, and the gradient of `path` besides its own."""
    return x + (path - path.detach()) if path.requires_grad else x
