"""One forward under way: what its interventions ask is set up, its blocks are entered one by one."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.model.counterfactual import shown
from hookedvid.model.leaving import Leaving, RunRecord, both
from hookedvid.model.lens import answer_logits
from hookedvid.model.patching import encoding, patch_hooks
from hookedvid.model.replaced_values import Flows
from hookedvid.model.run_plan import RunPlan, blocks_run, check_begin, columns
from hookedvid.nn.attention import AttnContext, Probe
from hookedvid.nn.kv import KVCache, LayerKV
from hookedvid.nn.layers import rope_angles
from hookedvid.nn.model import Model
from hookedvid.values.effects import effects
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import Asked
from hookedvid.values.masks import warn_of_idle

Probes = Mapping[int, Probe] | None
Sources = Mapping[str, Any] | None


class Beside(NamedTuple):
    """What a block is given besides the stream."""

    ctx: AttnContext
    kv: LayerKV | None
    deepstack: Float[Tensor, "batch row d_model"] | None


class Run:
    """A forward's state between two blocks.

    Attributes:
        batch: What is run.
        plan: Who sees whom, and which rows each block holds.
        layers: The blocks that are run.
    """

    def __init__(
        self, model: Model, batch: VideoInputs, plan: RunPlan, layers: range, leaving: Leaving, flows: Flows,
        kv_cache: KVCache | None, probes: Probes, given: Tensor | None,
    ):  # fmt: skip
        self.model, self.batch, self.plan, self.layers = model, batch, plan, layers
        self._leaving, self._flows, self._kv_cache, self._probes = leaving, flows, kv_cache, probes or {}
        self._pos, self._given = plan.pos, given

    def begin(self) -> Float[Tensor, "batch pos d_model"]:
        """The stream that enters the first block: the one given, if any."""
        model, given = self.model, self._given
        if given is None:
            resid, self._deepstack = model.enter(self.batch, self.plan.n_new)
        else:
            added = model.with_video(self.batch, given)[1:] if self.layers.start < model.cfg.n_deepstack else []
            resid, self._deepstack = model.leaf(given.clone()), added  # a hook may edit it in place; the caller's stays
        self._dtype, self._device = resid.dtype, resid.device
        self._angles = self._angles_of(self._pos)
        return resid

    def enter(self, layer: int, resid: Tensor) -> tuple[Float[Tensor, "batch row d_model"], Beside]:
        """The stream's rows that a block holds, and what it is given besides."""
        plan, leaving, i = self.plan, self._leaving, layer
        # Those of whom it is known leave first, then those of whom the run decides.
        for decide in (False, True)[: 1 + plan.late_exits]:
            if decide and (stay := leaving.stays(i, self._pos, resid)) is not None:
                plan.leave(i, stay)
            if plan.rows[i] is not self._pos:
                resid, *self._deepstack = (columns(x, self._pos, plan.rows[i]) for x in (resid, *self._deepstack))
                self._pos = plan.rows[i]
                self._angles = self._angles_of(self._pos)
        allowed, causal = plan.mask(i, self._pos, plan.keys[i])
        look = both(leaving.probe(i, self._pos) if plan.late_exits else None, self._probes.get(i))
        ctx = AttnContext(*self._angles, allowed, causal, self.model.kernel, look, self._flows.at(i))
        kv = None if self._kv_cache is None else self._kv_cache.layers[i]
        return resid, Beside(ctx, kv, self._deepstack[i] if i < len(self._deepstack) else None)

    def through(self) -> Float[Tensor, "batch row d_model"]:
        """The stream after all blocks."""
        resid = self.begin()
        for i in self.layers:
            resid, beside = self.enter(i, resid)
            resid = self.model.blocks[i](resid, *beside)
        return resid

    def _angles_of(self, pos: Int[Tensor, "batch row"]) -> tuple[Tensor, Tensor]:
        lm, ids = self.model.cfg.lm, self.plan.position_ids(pos)
        cos, sin = rope_angles(lm.rope, lm.d_head, lm.n_ctx, ids, self.plan.n_rope, self._dtype)
        return cos.to(self._device), sin.to(self._device)  # positions, and what follows from them, are on the CPU


@contextmanager
def running(
    model: Model,
    input: Any,
    *,
    interventions: Asked = None,
    sources: Sources = None,
    start_at_layer: int | None = None,
    stop_at_layer: int | None = None,
    inputs: VideoInputs | None = None,
    kv_cache: KVCache | None = None,
    probes: Probes = None,
    record: RunRecord | None = None,
) -> Generator[Run]:
    """A run whose writes are on the model within the `with` block; arguments as of `HookedVideoLLM.forward`."""
    batch = model.inputs_of(input, start_at_layer=start_at_layer, inputs=inputs)
    batch, rest = shown(model, batch, interventions, from_pixels=start_at_layer is None)
    plan = RunPlan(model.cfg.lm, batch, effects(rest, model.cfg.n_layers), kv_cache)
    layers = range(*blocks_run(model.cfg.n_layers, start_at_layer, stop_at_layer))
    given = None if start_at_layer is None else input
    check_begin(plan, given, model.cfg.lm.d_model, layers.start)
    batch = encoding(batch, plan.effects)
    hooks = patch_hooks(model, sources, batch, plan, {} if kv_cache is None else kv_cache.notes)
    flows = Flows(model, sources, batch, plan)
    warn_of_idle(plan.effects.every_cut if plan.is_prefill else (), batch.layouts)
    leaving = _leaving(model, plan, batch, layers.start)
    if record is not None:
        record.rows, record.left = plan.rows, leaving.left
    run = Run(model, batch, plan, layers, leaving, flows, kv_cache, probes, given)
    step = plan.step(kv_cache, layers)
    with model.turn(hooked=bool(hooks or probes)), step, model.hooks(fwd_hooks=hooks, prepend=True):
        yield run


def _leaving(model: Model, plan: RunPlan, batch: VideoInputs, start: int) -> Leaving:
    """Who decides in a run that begins with block `start` who leaves it."""
    first = start if plan.is_prefill else 0
    return Leaving(plan.effects, batch.layouts, first, partial(answer_logits, model, batch))
