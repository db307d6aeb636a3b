"""TransformerLens's building blocks, imported here alone, and what asks whether one is in use."""

import torch
from torch import Tensor
from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.FactoredMatrix import FactoredMatrix
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.utilities.slice import Slice

__all__ = [
    "ActivationCache",
    "FactoredMatrix",
    "HookPoint",
    "HookedRootModule",
    "Slice",
    "branch",
    "edited",
    "listening",
]


def listening(*points: HookPoint) -> bool:
    """Whether anything, forward or backward, ours or plain torch's, is attached to one of the hook points."""
    return any(p._forward_hooks or p._backward_hooks or p._backward_pre_hooks or p._forward_pre_hooks for p in points)


def branch(point: HookPoint, x: Tensor) -> Tensor:
    """`x` through a hook point that one of its readers has: an edit in place must not reach the others."""
    return point(x.clone()) if listening(point) else point(x)


def edited(point: HookPoint, x: Tensor) -> Tensor | None:
    """What a hook point makes of `x`; None if it edits nothing, neither by a new tensor nor in place."""
    given = x.clone()
    out = point(given)
    return None if out is given and torch.equal(out, x) else out
