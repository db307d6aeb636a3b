"""Patches and edits of activations by frame and segment; TransformerLens's own works through `model.bind`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.errors import InterventionError
from hookedvid.model.cache import VideoCache
from hookedvid.model.hook_points import hooks_of
from hookedvid.model.new_rows import Notes, Place, Sources, Value, check_alike, check_mask, new_rows, theirs_of
from hookedvid.model.run_plan import RunPlan
from hookedvid.model.video_writes import VideoWrite, of_video, writer
from hookedvid.nn.model import Model
from hookedvid.values.effects import Effects, Write
from hookedvid.values.hook_names import part_of, pos_axis
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import LayerRange, Patch, as_range
from hookedvid.values.progress import bar

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
    value: Value

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


def encoding(inputs: VideoInputs, effects: Effects) -> VideoInputs:
    """The inputs that a run under writes reads: without features where a write reaches what makes them."""
    return replace(inputs, features=(), encoder="") if effects.encodes and inputs.features else inputs


def patch_hooks(
    model: Model, sources: Sources, inputs: VideoInputs, plan: RunPlan, notes: Notes
) -> list[tuple[str, Hook]]:
    """Forward hooks that make a plan's writes, one for each point, in their order among the interventions.

    Each writes the positions that the plan's forward computes.

    Args:
        notes: What later steps of a generation have to know of these.

    Raises:
        InterventionError: When one does not fit.
    """
    hooks: dict[str, list[_Placed]] = {}
    of_videos: dict[str, list[VideoWrite]] = {}
    for write in plan.effects.writes:
        for (name, layer), item in product(hooks_of(model, write), range(inputs.batch_size)):
            if part_of(name) in ("tower", "projector"):
                if plan.is_prefill:  # later steps read what it left in the key-value cache
                    of_videos.setdefault(name, []).append(of_video(model, write, name, layer, sources, inputs, item))
                continue
            of_item = write_of(model, write, sources, inputs, item, notes)
            _check_there(write, of_item, plan, item, notes)
            if bool(torch.isin(of_item.positions, _rows(plan, write.layer, item)).any()):
                hooks.setdefault(name, []).append(_Placed(item, write.layer, of_item))
    return [
        *((name, _writer(writes, plan)) for name, writes in hooks.items()),
        *((name, writer(writes)) for name, writes in of_videos.items()),
    ]


class _Placed(NamedTuple):
    """A write of one item of a batch, and the rows of its block, on which some of its positions may be."""

    item: int
    layer: int | None
    write: ItemWrite


def _rows(plan: RunPlan, layer: int | None, item: int) -> Int[Tensor, " row"]:
    return (plan.pos if layer is None else plan.rows[layer])[item].contiguous()


def _check_there(write: Write, of_item: ItemWrite, plan: RunPlan, item: int, notes: Notes) -> None:
    positions, n_prompt = of_item.positions, of_item.n_prompt
    if write.layer is not None and bool(plan.gone(write.layer, item)[positions].any()):
        raise InterventionError(f"{write.label}: these positions left the sequence by an early exit before it")
    if not write.of_positions:
        return
    of_prompt = positions[positions < n_prompt]
    there = int(torch.isin(of_prompt, plan.pos[item]).sum())
    if there != (0 if (write, of_item.name, item) in notes else len(of_prompt)):
        raise InterventionError(
            f"{write.label}: the key-value cache holds some of these positions, whose moments nobody took; give it "
            "from the first step on, with the whole prompt"
        )


def _writer(writes: Sequence[_Placed], plan: RunPlan) -> Hook:
    def write(act: Tensor, hook: Any) -> Tensor:
        act = act.clone()
        for item, layer, one in writes:
            # Read now: the run itself may have decided who is there.
            rows = _rows(plan, layer, item)
            which = torch.isin(one.positions, rows).nonzero()[:, 0]
            keys = plan.keys[layer][item] if layer is not None and pos_axis(one.name) == 2 else None
            if len(which):
                one.into(act[item : item + 1], torch.searchsorted(rows, one.positions[which]), which, keys)
        return act

    return write


def write_of(
    model: Model,
    write: Write,
    sources: Sources,
    inputs: VideoInputs,
    item: int = 0,
    notes: Notes | None = None,
    among: Int[Tensor, " there"] | None = None,
) -> ItemWrite:
    """What a write to the decoder does to one item of a batch.

    Args:
        notes: As of `patch_hooks`.
        among: Of another run's rows, those for these positions alone are taken; None: all.

    Raises:
        InterventionError: When it does not fit.
    """
    (name, layer), layout = hooks_of(model, write)[0], inputs.layouts[item]
    to = layout.positions(write.at)
    if write.fn is not None or write.by != "rows":
        place = Place(name, layer, inputs, item, to, to)
        return ItemWrite(name, to, layout.n_prompt, new_rows(write, place, sources, {} if notes is None else notes))
    source, act, their_name, block = theirs_of(model, write, sources, name, layer)
    if isinstance(source, VideoCache) and not source.has_batch_dim:
        act = act[None]
    if len(act) != inputs.batch_size:
        raise InterventionError(f"{write.label}: the source holds {len(act)} items, the run {inputs.batch_size}")
    their_layout = source.layouts[item] if isinstance(source, VideoCache) else layout
    take = their_layout.positions(write.at)
    to, take = _paired(write.label, to, take, layout.n_prompt, their_layout.n_prompt)
    if among is not None:
        to, take = (x[torch.isin(to, among)] for x in (to, take))
    if isinstance(source, VideoCache) and block is not None:
        keys, rows = source.held[block][item], source.row_of(block, take, item)
    else:
        n_rows = act.shape[pos_axis(name)]
        before = n_rows - their_layout.n_tokens
        keys, rows = torch.arange(n_rows) - before, take + before
        if bool((rows < 0).any()):
            raise InterventionError(f"{write.label}: the source's {their_name!r} lacks positions; cache a whole run")
    taken = _Taken(write.label, act[item : item + 1], pos_axis(name), take, rows, keys, their_layout.n_prompt)
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
        check_mask(self.label, taken, act)
        if self.axis == 1:
            check_alike(self.label, taken, act)
        if self.axis == 2:
            seen = _seen(self.keys, self.positions[which], self.n_prompt)
            taken = taken.index_select(-1, seen.to(taken.device))
            if taken.shape[-1] != act.shape[-1]:
                raise InterventionError(
                    f"{self.label}: its rows see {act.shape[-1]} keys here, {taken.shape[-1]} in the source; both must "
                    "be equally many"
                )
        return taken.to(act)


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
    with bar(result.numel(), "patching", "runs") as done:
        for r, layer in enumerate(blocks):
            for c, selector in enumerate(selectors):
                patch = Patch(hook, layer, selector, source)
                logits = model(base["resid_pre", layer], start_at_layer=layer, inputs=inputs, interventions=patch)
                result[r, c] = _one_number(metric(logits))
                done(1)
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
