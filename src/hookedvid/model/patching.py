"""Patches and edits of activations by frame and segment; TransformerLens's own works through `model.bind`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.errors import InterventionError, nearest
from hookedvid.model.cache import VideoCache, pos_axis
from hookedvid.model.run_plan import RunPlan
from hookedvid.nn.model import Model
from hookedvid.values.effects import Write
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import LayerRange, Patch, as_range, as_source

Hook = Callable[[Tensor, Any], Tensor]  # (activation, hook point) -> what becomes of it


class ItemWrite(NamedTuple):
    """A write to one item: the rows of a hook point that hold `positions` become `value` of themselves.

    Attributes:
        value: Takes rows [1, chosen, …], of attention maps [1, head, chosen, key], and which of the positions they
            hold; gives as many. It is asked once for the rows of the prompt and once for each generated token's, who of
            a map see the keys up to their last position: so step by step, where the others are not there yet, it is
            asked the same.
    """

    name: str
    positions: Int[Tensor, " chosen"]
    n_prompt: int
    value: Callable[[Tensor, Tensor], Tensor]

    def into(
        self,
        act: Float[Tensor, "1 ..."] | Bool[Tensor, "1 ..."],
        rows: Int[Tensor, " some"],
        which: Int[Tensor, " some"] | None = None,
        keys: Int[Tensor, " key"] | None = None,
    ) -> None:
        """Write into one item's activation.

        Args:
            rows: Those that hold positions, all of them or `which`.
            keys: Of a map, the positions of its columns.
        """
        axis, which = pos_axis(self.name), torch.arange(len(rows)) if which is None else which
        for some in self._calls(which):
            at, to = which[some], rows[some].to(act.device)
            chosen = act.index_select(axis, to)
            if axis == 1:
                act.index_copy_(1, to, self.value(chosen, at).to(act))
                continue
            assert keys is not None
            seen = _seen(keys, self.positions[at], self.n_prompt).to(act.device)
            act[0, :, to[:, None], seen] = self.value(chosen.index_select(-1, seen), at).to(act)[0]

    def _calls(self, which: Tensor) -> list[Tensor]:
        generated = self.positions[which] >= self.n_prompt
        calls = [(~generated).nonzero()[:, 0], *torch.split(generated.nonzero()[:, 0], 1)]
        return [some for some in calls if len(some)]


def _seen(keys: Tensor, positions: Tensor, n_prompt: int) -> Int[Tensor, " seen"]:
    """Columns of a map that rows of the prompt, or of one generated token, are asked about: no padding, none later."""
    last = max(n_prompt - 1, int(positions[-1]))
    return ((keys >= 0) & (keys <= last)).nonzero()[:, 0]


def hook_of(model: Model, write: Write) -> str:
    """The full name of the hook point that is written.

    Raises:
        InterventionError: With the nearest ones.
    """
    if not 0 <= write.layer < model.cfg.n_layers:
        raise InterventionError(f"{write.label}: this model's blocks are numbered 0 to {model.cfg.n_layers - 1}")
    inside = [n for n in model.hook_dict if n.startswith(f"blocks.{write.layer}.")]
    points = [n for n in inside if n.endswith(f".hook_{write.hook}") or n == f"blocks.{write.layer}.{write.hook}"]
    if len(points) != 1:
        shorts = sorted({n.split(".hook_")[-1] for n in inside})
        what = f"is several: {points}" if points else f"does not exist ({nearest(write.hook, shorts)})"
        raise InterventionError(f"{write.label}: hook {write.hook!r} {what}")
    return points[0]


def patch_hooks(
    model: Model,
    sources: Mapping[str, Any] | None,
    inputs: VideoInputs,
    plan: RunPlan,
) -> list[tuple[str, Hook]]:
    """Forward hooks that make a plan's writes, one for each point, in their order among the interventions.

    Each writes the positions that the plan's forward computes.

    Raises:
        InterventionError: When one does not fit.
    """
    hooks: dict[str, list[_Placed]] = {}
    for write in plan.effects.writes:
        for item in range(inputs.batch_size):
            of_item = write_of(model, write, sources, inputs, item)
            _check_there(write, of_item, plan, item)
            if bool(torch.isin(of_item.positions, plan.rows[write.layer][item]).any()):
                hooks.setdefault(of_item.name, []).append(_Placed(item, write.layer, of_item))
    return [(name, _writer(writes, plan)) for name, writes in hooks.items()]


class _Placed(NamedTuple):
    """A write of one item of a batch, and the rows of its block, on which some of its positions may be."""

    item: int
    layer: int
    write: ItemWrite


def _check_there(write: Write, of_item: ItemWrite, plan: RunPlan, item: int) -> None:
    if bool(plan.gone(write.layer, item)[of_item.positions].any()):
        raise InterventionError(f"{write.label}: these positions left the sequence by an early exit before it")


def _writer(writes: Sequence[_Placed], plan: RunPlan) -> Hook:
    def write(act: Tensor, hook: Any) -> Tensor:
        act = act.clone()
        for item, layer, one in writes:
            # Read now: the run itself may have decided who is there.
            rows = plan.rows[layer][item].contiguous()
            which = torch.isin(one.positions, rows).nonzero()[:, 0]
            keys = plan.keys[layer][item] if pos_axis(one.name) == 2 else None
            if len(which):
                one.into(act[item : item + 1], torch.searchsorted(rows, one.positions[which]), which, keys)
        return act

    return write


def write_of(
    model: Model, write: Write, sources: Mapping[str, Any] | None, inputs: VideoInputs, item: int = 0
) -> ItemWrite:
    """What a write does to one item of a batch.

    Raises:
        InterventionError: When it does not fit.
    """
    name, layout = hook_of(model, write), inputs.layouts[item]
    to = layout.positions(write.at)
    if write.fn is not None:
        return ItemWrite(name, to, layout.n_prompt, _checked(write.fn, write.label))
    source = _source(write, sources)
    if isinstance(source, VideoCache) and source.sliced:
        raise InterventionError(f"{write.label}: its source was cut by pos_slice; cache the source without it")
    theirs = source[name]
    if isinstance(source, VideoCache) and not source.has_batch_dim:
        theirs = theirs[None]
    if len(theirs) != inputs.batch_size:
        raise InterventionError(f"{write.label}: the source holds {len(theirs)} items, the run {inputs.batch_size}")
    their_layout = source.layouts[item] if isinstance(source, VideoCache) else layout
    take = their_layout.positions(write.at)
    to, take = _paired(write.label, to, take, layout.n_prompt, their_layout.n_prompt)
    n_rows = theirs.shape[pos_axis(name)]
    if isinstance(source, VideoCache):
        keys, rows = source.held[write.layer][item], source.row_of(write.layer, take, item)
    else:
        keys = torch.arange(n_rows) - (n_rows - their_layout.n_tokens)
        rows = take + n_rows - their_layout.n_tokens
    taken = _Taken(write.label, theirs[item : item + 1], pos_axis(name), take, rows, keys, their_layout.n_prompt)
    return ItemWrite(name, to, layout.n_prompt, taken.value)


def _paired(label: str, to: Tensor, take: Tensor, n_prompt: int, their_prompt: int) -> tuple[Tensor, Tensor]:
    """Positions to write, and those in the source to take them from: the prompt's in order, then generated ones.

    A source without generated tokens patches the prompt alone.
    """
    here, there = ([int((p < n).sum()), int((p >= n).sum())] for p, n in ((to, n_prompt), (take, their_prompt)))
    if here[0] != there[0] or (there[1] and here[1] > there[1]) or (here[1] and not sum(there)):
        n_here, n_there = (sum(here), sum(there)) if here[0] != there[0] else (here[1], there[1])
        raise InterventionError(f"{label}: {n_here} positions here, {n_there} in the source; both must be equally many")
    n = here[0] + min(here[1], there[1])
    return to[:n], take[:n]


class _Taken(NamedTuple):
    """A source's activation of one item, and where in it the positions that a patch takes stand."""

    label: str
    act: Tensor
    axis: int
    positions: Int[Tensor, " chosen"]
    rows: Int[Tensor, " chosen"]
    keys: Int[Tensor, " key"]
    n_prompt: int

    def value(self, act: Tensor, which: Tensor) -> Tensor:
        """As `ItemWrite.value`."""
        taken = self.act.index_select(self.axis, self.rows[which].to(self.act.device))
        _check_mask(self.label, taken, act)
        if self.axis == 2:
            seen = _seen(self.keys, self.positions[which], self.n_prompt)
            taken = taken.index_select(-1, seen.to(taken.device))
            if taken.shape[-1] != act.shape[-1]:
                raise InterventionError(
                    f"{self.label}: its rows see {act.shape[-1]} keys here, {taken.shape[-1]} in the source; both must "
                    "be equally many"
                )
        return taken.to(act)


def _source(write: Write, sources: Mapping[str, Any] | None) -> Any:
    if not isinstance(write.source, str):
        return write.source  # looked at where the patch was made
    if not sources or write.source not in sources:
        raise InterventionError(
            f"{write.label} takes its activation from {write.source!r}; pass sources={{{write.source!r}: cache}} "
            f"(given: {sorted(sources or ())})"
        )
    return as_source(sources[write.source], write.label)


def _check_mask(label: str, value: Tensor, act: Tensor) -> None:
    if act.dtype == torch.bool and value.dtype != torch.bool:
        raise InterventionError(f"{label}: {value.dtype} for a mask; give booleans, True where a query may look")


def _checked(fn: Callable[[Tensor], Any], label: str) -> Callable[[Tensor, Tensor], Tensor]:
    def value(act: Tensor, which: Tensor) -> Tensor:
        out = fn(act)
        if not isinstance(out, Tensor) or out.shape != act.shape:
            returned = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InterventionError(f"{label}: fn gave {returned} for {tuple(act.shape)}; return the same shape")
        _check_mask(label, out, act)
        return out

    return value


@torch.no_grad()
def patch_sweep(
    model: Model,
    inputs: VideoInputs,
    source: VideoCache,
    metric: Callable[[Tensor], Tensor | float],
    *,
    hook: str = "resid_post",
    at: str | Sequence[str] | None = None,
    layers: LayerRange | int | str | Sequence[int] | None = None,
) -> Float[Tensor, "layer selection"]:
    """The metric with one selection's activation, at one layer, replaced by the source's.

    Args:
        metric: Logits [1, pos, d_vocab] → a number.
        at: Selectors, one column each; every frame by default.
        layers: Blocks, 0-based, a number or as of a knockout, or a list of numbers; all by default. Each run starts at
            its own layer, on the residual stream of the unpatched run, so half the blocks are skipped; the numbers are
            those of full runs, bitwise, in float64 for a float64 model and else in float32.
    """
    frames = inputs.layout.step_names
    selectors = frames if at is None else [at] if isinstance(at, str) else list(at)
    blocks = _blocks(layers, model.cfg.n_layers)
    if not selectors or not blocks:
        raise InterventionError(f"nothing to patch: at = {selectors}, layers = {blocks}; give at least one of each")
    _, base = model.run_with_cache(
        inputs, names_filter=[f"blocks.{i}.hook_resid_pre" for i in blocks], return_type=None
    )
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    result = torch.zeros(len(blocks), len(selectors), dtype=dtype)
    for r, layer in enumerate(blocks):
        for c, selector in enumerate(selectors):
            patch = Patch(hook, layer, selector, source)
            logits = model(base["resid_pre", layer], start_at_layer=layer, inputs=inputs, interventions=patch)
            result[r, c] = _one_number(metric(logits))
    return result


def _blocks(layers: object, n_layers: int) -> list[int]:
    if layers is None:
        return list(range(n_layers))
    if isinstance(layers, Iterable) and not isinstance(layers, str):
        return [i for one in cast(Iterable[object], layers) for i in as_range(one).layers(n_layers)]
    return list(as_range(layers).layers(n_layers))


def _one_number(value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise InterventionError(f"the metric gave {tuple(value.shape)}; it must give one number")
    try:
        return float(value)
    except (TypeError, ValueError) as e:
        raise InterventionError(f"the metric gave {type(value).__name__}; it must give one number") from e
