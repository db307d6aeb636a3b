"""A metric's gradients at what every block holds, with the graph of one block at a time.

The forward keeps the stream that enters each block and makes no graph. On the way back each block is run again from
its stream with a graph, gone through, and dropped. So a run fits where a forward, one stream a block and the graph of
one block fit, and takes a forward and what a forward and a backward of its blocks take; the weights' own gradients are
never made.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.errors import HookError, InputError, NonFiniteError
from hookedvid.model.run import Beside, Run
from hookedvid.nn.attention import Probe
from hookedvid.nn.hooks import listening
from hookedvid.nn.model import Model

# Of logits [batch, kept, d_vocab], one number an item [batch], or one for a single item.
Metric = Callable[[Tensor], Tensor]


class Watch(NamedTuple):
    """Who is shown the blocks on the way back.

    Attributes:
        first: The last block (0-based) that is gone through: none before it is.
        probes: Of blocks, shown what attention computed from, whose z has a graph then.
        hooks: On hook points, shown activations with a graph.
    """

    first: int
    probes: Mapping[int, Probe]
    hooks: list[tuple[str, Callable[..., None]]]


def backward(model: Model, run: Run, metric: Metric, logits_to_keep: int | None, watch: Watch) -> list[float]:
    """The metric of each item of a run; the blocks are shown on the way back."""
    kept: list[tuple[Tensor, Beside]] = []
    with torch.no_grad():
        resid = run.begin()
        for i in run.layers:
            resid, beside = run.enter(i, resid)
            if i >= watch.first:
                kept.append((resid.clone() if listening(model.blocks[i].hook_resid_pre) else resid, beside))
            resid = model.blocks[i](resid, *beside)
    with torch.enable_grad():
        leaf = resid.detach().requires_grad_()
        read = leaf if logits_to_keep is None else leaf[:, -logits_to_keep:]
        value = numbers(metric(model.unembed(model.ln_final(read))), run.batch.batch_size)
    grad = torch.autograd.grad(value.sum(), leaf, allow_unused=True)[0] if value.requires_grad else None
    if grad is None:
        raise InputError("the metric has no gradient: compute it from the logits by torch, without item() or numpy")
    for what, x in (("the metric", value), ("the metric's gradient", grad)):
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteError(f"{what} is not finite, so that nothing can be told by it")
    del leaf, read, resid
    with model.hooks(fwd_hooks=watch.hooks):
        for i in reversed(run.layers[watch.first - run.layers.start :]):
            stream, beside = kept.pop()
            grad = _through(model.blocks[i], stream, beside, watch.probes.get(i), grad)
            if i > watch.first:
                grad = _among(grad, run.plan.rows[i], run.plan.rows[i - 1])
    return [float(x) for x in value.detach()]


def _through(block: Any, stream: Tensor, beside: Beside, probe: Probe | None, grad: Tensor) -> Tensor:
    """The gradient at the stream that enters a block, from that at what it gives."""
    with torch.enable_grad():
        leaf = stream.detach().requires_grad_()
        # A hook may edit it in place, which a leaf forbids.
        entering = leaf.clone() if listening(block.hook_resid_pre) else leaf
        out = block(entering, beside.ctx._replace(probe=probe), beside.kv, beside.deepstack)
    if not out.requires_grad:  # a hook put in what nothing before has a part in
        return torch.zeros_like(leaf)
    return torch.autograd.grad(out, leaf, grad, materialize_grads=True)[0]


def _among(
    grad: Float[Tensor, "batch row d_model"], rows: Int[Tensor, "batch row"], before: Int[Tensor, "batch all"]
) -> Float[Tensor, "batch all d_model"]:
    """A gradient at rows that stayed, among those before any left: 0 there."""
    if rows is before:
        return grad
    at = [torch.searchsorted(b.contiguous(), r).clamp(max=len(b) - 1) for b, r in zip(before, rows, strict=True)]
    index = torch.stack(at).to(grad.device)[..., None].expand_as(grad)
    return grad.new_zeros(len(grad), before.shape[1], grad.shape[-1]).scatter_add_(1, index, grad)


def check_computed(act: Tensor, name: str) -> None:
    """Raise HookError for what has no part in the run before it, whose gradient would be missed."""
    if not act.requires_grad:
        raise HookError(f"a hook puts in all of {name}, of which no gradient is told; put it in by an Edit or a Patch")


def numbers(value: Any, n_items: int) -> Float[Tensor, " batch"]:
    """A metric's numbers, one an item.

    Raises:
        InputError: For anything else.
    """
    if not isinstance(value, Tensor) or value.numel() != n_items or not value.is_floating_point():
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"the metric gave {shape} for {n_items} item(s); it is given logits [batch, kept, d_vocab] and gives a "
            "tensor of one number for each item"
        )
    return value.reshape(n_items)
