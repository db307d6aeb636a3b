"""TransformerLens's building blocks: this is the only file that imports them."""

from transformer_lens.ActivationCache import ActivationCache
from transformer_lens.FactoredMatrix import FactoredMatrix
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.utilities.slice import Slice

__all__ = ["ActivationCache", "FactoredMatrix", "HookPoint", "HookedRootModule", "Slice", "listening"]


def listening(*points: HookPoint) -> bool:
    """Whether anything, forward or backward, ours or plain torch's, is attached to one of the hook points."""
    return any(p._forward_hooks or p._backward_hooks or p._backward_pre_hooks or p._forward_pre_hooks for p in points)
