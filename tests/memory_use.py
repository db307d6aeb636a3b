"""What a run allocates."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

N = 4000  # tokens


class Largest(TorchDispatchMode):
    """Sizes of everything an operation allocates: the largest, and how many reach N x N."""

    def __init__(self):
        super().__init__()
        self.numel, self.n_square = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in before:
                held = t.untyped_storage().nbytes() // t.element_size()
                self.numel = max(self.numel, held)
                self.n_square += held >= N * N
        return out


def measure(run) -> Largest:
    with torch.no_grad(), Largest() as seen:
        run()
    return seen
