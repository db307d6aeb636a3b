"""Patches and edits of activations by frame and segment; TransformerLens's own works through `model.bind`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.cache import VideoCache, pos_axis
from hookedvid.errors import InterventionError, nearest
from hookedvid.inputs import VideoInputs
from hookedvid.interventions import Edit, Patch


class Write(NamedTuple):
    """A patch or an edit of one item: the rows of a hook point that hold `positions` become `value` of themselves.

    `value` takes and gives [1, chosen, …], or [1, head, chosen, key], the rows in the positions' order.
    """

    name: str
    axis: int
    positions: Int[Tensor, " chosen"]
    value: Callable[[Tensor], Tensor]

    def into(self, act: Tensor, rows: Int[Tensor, " chosen"]) -> None:
        """Write into one item's activation [1, …], whose `rows` hold the positions."""
        rows = rows.to(act.device)
        act.index_copy_(self.axis, rows, self.value(act.index_select(self.axis, rows)).to(act))


def hook_of(model: Any, change: Patch | Edit) -> str:
    """The full name of the hook point a patch or an edit writes. Raises InterventionError with the nearest ones."""
    if not 0 <= change.layer < model.cfg.n_layers:
        raise InterventionError(f"{change.label()}: this model's blocks are numbered 0 to {model.cfg.n_layers - 1}")
    inside = [n for n in model.hook_dict if n.startswith(f"blocks.{change.layer}.")]
    found = [n for n in inside if n.endswith(f".hook_{change.hook}") or n == f"blocks.{change.layer}.{change.hook}"]
    if len(found) != 1:
        shorts = sorted({n.split(".hook_")[-1] for n in inside})
        what = f"is several: {found}" if found else f"does not exist ({nearest(change.hook, shorts)})"
        raise InterventionError(f"{change.label()}: hook {change.hook!r} {what}")
    return found[0]


def patch_hooks(
    model: Any,
    changes: Sequence[Patch | Edit],
    sources: Mapping[str, Any] | None,
    inputs: VideoInputs,
    rows: Sequence[Tensor] | None,
) -> list[tuple[str, Callable]]:
    """Forward hooks that write patches and edits; `rows` as `model.rows_of` gives them.

    Raises InterventionError when one does not fit.
    """
    hooks = []
    for change in changes:
        items = []
        for i in range(inputs.batch_size):
            write, at = write_of(model, change, sources, inputs, i), inputs.pads[i]
            to = write.positions + at
            if rows is not None:
                to = held_rows(change, write.positions, rows)
            items.append((write, to))
        hooks.append((items[0][0].name, _writer(items)))
    return hooks


def held_rows(change: Patch | Edit, positions: Tensor, rows: Sequence[Tensor]) -> Int[Tensor, " chosen"]:
    """Where a block holds positions, some of them gone by an early exit. Raises InterventionError if these are."""
    held = rows[change.layer]
    if not bool(torch.isin(positions, held).all()):
        raise InterventionError(f"{change.label()}: these positions left the sequence by an early exit before it")
    return torch.searchsorted(held, positions)


def write_of(
    model: Any, change: Patch | Edit, sources: Mapping[str, Any] | None, inputs: VideoInputs, item: int = 0
) -> Write:
    """What a patch or an edit does to one item of a batch. Raises InterventionError when it does not fit."""
    name = hook_of(model, change)
    axis, to = pos_axis(name), inputs.layouts[item].positions(change.at)
    if isinstance(change, Edit):
        return Write(name, axis, to, _checked(change))
    source = _source(change, sources)
    if isinstance(source, VideoCache) and source.sliced:
        raise InterventionError(f"{change.label()}: its source was cut by pos_slice; cache the source without it")
    theirs = source[name]
    if isinstance(source, VideoCache) and not source.has_batch_dim:
        theirs = theirs[None]
    if len(theirs) != inputs.batch_size:
        raise InterventionError(f"{change.label()}: the source holds {len(theirs)} items, the run {inputs.batch_size}")
    their_layout = source.layouts[item] if isinstance(source, VideoCache) else inputs.layouts[item]
    take = their_layout.positions(change.at)
    if len(to) != len(take):
        raise InterventionError(
            f"{change.label()}: {len(to)} positions here, {len(take)} in the source; both must be equally many"
        )
    if isinstance(source, VideoCache) and source.rows is not None:
        take = source.row_of(change.layer, take)
    else:
        take = take + theirs.shape[axis] - their_layout.n_tokens
    return Write(name, axis, to, lambda act: theirs[item : item + 1].index_select(axis, take.to(theirs.device)).to(act))


def _source(patch: Patch, sources: Mapping[str, Any] | None) -> Any:
    if not isinstance(patch.source, str):
        return patch.source
    if not sources or patch.source not in sources:
        raise InterventionError(
            f"{patch.label()} takes its activation from {patch.source!r}; pass sources={{{patch.source!r}: cache}} "
            f"(given: {sorted(sources or ())})"
        )
    return sources[patch.source]


def _checked(edit: Edit) -> Callable[[Tensor], Tensor]:
    def value(act: Tensor) -> Tensor:
        out = edit.fn(act)
        if not isinstance(out, Tensor) or out.shape != act.shape:
            given = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InterventionError(f"{edit.label()}: fn gave {given} for {tuple(act.shape)}; return the same shape")
        return out

    return value


def _writer(items: Sequence[tuple[Write, Tensor]]) -> Callable:
    def write(act: Tensor, hook: Any) -> Tensor:
        act = act.clone()
        for i, (one, rows) in enumerate(items):
            one.into(act[i : i + 1], rows)
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
