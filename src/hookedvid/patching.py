"""Activation patching by frame and segment; TransformerLens's own `patching` works through `model.bind`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.cache import VideoCache, pos_axis
from hookedvid.errors import InterventionError, nearest
from hookedvid.inputs import VideoInputs
from hookedvid.interventions import Patch


def hook_of(model: Any, patch: Patch) -> str:
    """The full name of the hook point a patch writes. Raises InterventionError with the nearest ones."""
    if not 0 <= patch.layer < model.cfg.n_layers:
        raise InterventionError(f"{patch.label()}: this model's blocks are numbered 0 to {model.cfg.n_layers - 1}")
    inside = [n for n in model.hook_dict if n.startswith(f"blocks.{patch.layer}.")]
    found = [n for n in inside if n.endswith(f".hook_{patch.hook}") or n == f"blocks.{patch.layer}.{patch.hook}"]
    if len(found) != 1:
        shorts = sorted({n.split(".hook_")[-1] for n in inside})
        what = f"is several: {found}" if found else f"does not exist ({nearest(patch.hook, shorts)})"
        raise InterventionError(f"{patch.label()}: hook {patch.hook!r} {what}")
    return found[0]


def patch_hooks(
    model: Any, patches: Sequence[Patch], sources: Mapping[str, Any] | None, inputs: VideoInputs, rows: Any
) -> list[tuple[str, Callable]]:
    """Forward hooks that write the patches. Raises InterventionError when one does not fit."""
    hooks = []
    for patch in patches:
        name = hook_of(model, patch)
        source = patch.source
        if isinstance(source, str):
            if not sources or source not in sources:
                raise InterventionError(
                    f"{patch.label()} takes its activation from {source!r}; pass sources={{{source!r}: cache}} "
                    f"(given: {sorted(sources or ())})"
                )
            source = sources[source]
        hooks.append((name, _writer(model, patch, name, source, inputs, rows)))
    return hooks


def _writer(model: Any, patch: Patch, name: str, source: Any, inputs: VideoInputs, rows: Any) -> Callable:
    axis = pos_axis(name)
    if isinstance(source, VideoCache) and source.sliced:
        raise InterventionError(f"{patch.label()}: its source was cut by pos_slice; cache the source without it")
    theirs = source[name]
    if isinstance(source, VideoCache) and not source.has_batch_dim:
        theirs = theirs[None]
    if len(theirs) != inputs.batch_size:
        raise InterventionError(f"{patch.label()}: the source holds {len(theirs)} items, the run {inputs.batch_size}")
    pairs = []
    for i, layout in enumerate(inputs.layouts):
        to = layout.positions(patch.at)
        their_layout = source.layouts[i] if isinstance(source, VideoCache) else layout
        take = their_layout.positions(patch.at)
        if len(to) != len(take):
            raise InterventionError(
                f"{patch.label()}: {len(to)} positions here, {len(take)} in the source; both must be equally many"
            )
        pad, their_pad = inputs.pads[i], theirs.shape[axis] - their_layout.n_tokens
        if rows is not None:
            held = rows[patch.layer]
            if not bool(torch.isin(to, held).all()):
                raise InterventionError(
                    f"{patch.label()}: these positions left the sequence by an early exit before it"
                )
            to, pad = torch.searchsorted(held, to), 0
        if isinstance(source, VideoCache) and source.rows is not None:
            take, their_pad = source.row_of(patch.layer, take), 0
        pairs.append((to + pad, take + their_pad))

    def write(act: Tensor, hook: Any) -> Tensor:
        act = act.clone()
        for i, (to, take) in enumerate(pairs):
            piece = theirs[i].to(act).index_select(axis - 1, take.to(act.device))
            act[i].index_copy_(axis - 1, to.to(act.device), piece)
        return act

    return write


@torch.no_grad()
def patch_sweep(
    model: Any,
    inputs: VideoInputs,
    source: VideoCache,
    metric: Callable[[Tensor], Tensor | float],
    *,
    hook: str = "resid_post",
    at: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "layer selection"]:
    """The metric with one selection's activation, at one layer, replaced by the source's.

    metric: logits [1, pos, d_vocab] → a number. at: selectors, one column each; every frame by default.
    layers: blocks, 0-based; all by default. Each run starts at its own layer, on the residual stream of
    the unpatched run, so half the blocks are skipped; the numbers are those of full runs, bitwise.
    """
    selectors = [f"video[{k}]" for k in range(inputs.layout.n_frames)] if at is None else list(at)
    layers = list(range(model.cfg.n_layers)) if layers is None else list(layers)
    _, base = model.run_with_cache(
        inputs, names_filter=[f"blocks.{i}.hook_resid_pre" for i in layers], return_type=None
    )
    result = torch.zeros(len(layers), len(selectors))
    for r, layer in enumerate(layers):
        for c, selector in enumerate(selectors):
            patch = Patch(hook, layer, selector, source)
            logits = model(base["resid_pre", layer], start_at_layer=layer, inputs=inputs, interventions=patch)
            result[r, c] = float(metric(logits))
    return result
