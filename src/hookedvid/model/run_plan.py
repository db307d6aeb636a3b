"""What one forward needs to know of its interventions: positions, masks, and who leaves early."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.errors import InputError, InterventionError
from hookedvid.nn.head_groups import Calls, structures
from hookedvid.nn.kv import KVCache
from hookedvid.values.config import DecoderConfig
from hookedvid.values.effects import Cut, Effects, Exit, check_heads
from hookedvid.values.inputs import PAD, VideoInputs
from hookedvid.values.masks import kept_positions, leavers, masks_of, same_type
from hookedvid.values.selectors import ROLES_OF


class RunPlan:
    """The effects of interventions on one batch; nothing that was given is changed.

    Positions are the layout's, on the CPU. `rows` and `keys` of blocks to come change where a run decides who leaves
    (`leave`). `keys` [batch, key] of each block are those that are cached, then those of
    its own columns. One mask, or list of kernel calls, is made for each distinct set of cuts, not for each layer.

    Raises:
        InterventionError: Where interventions do not fit the batch.
        InputError: Where a key-value cache does not.
    """

    def __init__(
        self,
        lm: DecoderConfig,
        inputs: VideoInputs,
        effects: Effects,
        kv_cache: KVCache | None,
    ):
        cached = 0 if kv_cache is None else kv_cache.n_tokens
        self.n_columns = inputs.tokens.shape[1]
        if cached:
            _check_step(inputs, cached)
        self.layouts = inputs.layouts
        self.device = inputs.tokens.device
        self.is_prefill = cached == 0
        self.n_new = self.n_columns - cached
        self.pos = inputs.pos[:, cached:]
        self.n_rope = _lengths(lm, inputs, kv_cache)
        self.effects = effects
        assert not effects.clips, "a run begins with the clip that its condition shows"
        self._check_time(kv_cache)
        self.heads = range(lm.n_heads)
        check_heads(effects.every_cut, lm.n_heads)
        self._fixed = [e for e in effects.exits if not e.decided_late]
        before = [None] * lm.n_layers if kv_cache is None else [layer.pos for layer in kv_cache.layers]
        for exit in effects.exits:
            decided = kv_cache is None or self.is_prefill or exit in kv_cache.rules
            if exit.layer < lm.n_layers:
                self._check_left(exit, before[exit.layer], decided)
        self.rows = self._rows(lm.n_layers)
        self.keys = [h if b is None else torch.cat([b, h], 1) for b, h in zip(before, self.rows, strict=True)]
        self._masks: dict[tuple[tuple[Cut, ...], int], tuple[Tensor | Calls | None, bool]] = {}
        self._alike: list[int] = []
        self._compare(0)

    def _rows(self, n_layers: int) -> list[Int[Tensor, "batch _"]]:
        """Positions of each block's columns, as far as is known before the run."""
        kept = [kept_positions(layout, self._fixed) for layout in self.layouts]
        if not self._fixed or not self.is_prefill:
            return [self.pos] * n_layers
        rows = [self.pos]
        for layer in range(n_layers):
            gone = [e for e in self._fixed if e.layer <= layer]
            left = any(e.layer == layer for e in gone)
            kept = [kept_positions(layout, gone) for layout in self.layouts] if left else kept
            rows.append(stacked(kept) if left else rows[-1])
        return rows[1:]

    def gone(self, layer: int, item: int) -> Bool[Tensor, " pos"]:
        """Positions that left before a block by exits of which that is known before the run."""
        gone = torch.zeros(self.layouts[item].n_tokens, dtype=torch.bool)
        for exit in self._fixed:
            if exit.layer <= layer:
                gone |= leavers(self.layouts[item], exit)
        return gone

    @property
    def late_exits(self) -> bool:
        """Whether positions may leave of which the run decides."""
        return self.is_prefill and len(self._fixed) < len(self.effects.exits)

    def leave(self, layer: int, stay: Sequence[Int[Tensor, " _"]]) -> None:
        """From a block on the rows are those that stay."""
        rows = stacked(stay)
        for i in range(layer, len(self.rows)):
            fixed = [e for e in self._fixed if layer < e.layer <= i]
            if fixed:
                kept = [kept_positions(layout, fixed) for layout in self.layouts]
                rows = stacked([p[torch.isin(p, k)] for p, k in zip(stay, kept, strict=True)])
            self.rows[i] = self.keys[i] = rows
        self._compare(layer)

    def first_alike(self, layer: int) -> int:
        """The first block of those, up to this one, that hold the same positions as it."""
        return self._alike[layer]

    def _compare(self, layer: int) -> None:
        """Say again of blocks from one on which is the first of those that hold the same positions."""
        del self._alike[layer:]
        for i in range(layer, len(self.rows)):
            same = i > 0 and all(
                rows[i] is rows[i - 1] or torch.equal(rows[i], rows[i - 1]) for rows in (self.rows, self.keys)
            )
            self._alike.append(self._alike[i - 1] if same else i)

    def _check_left(self, exit: Exit, before: Int[Tensor, "batch key"] | None, decided: bool) -> None:
        """Raise InterventionError where the exit's block has cached what leaves before it, or no step decided that."""
        if exit.rule and not decided:
            raise InterventionError(
                f"{exit.label}: the key-value cache was begun without it, and the prompt decides who leaves; give the "
                "exit from the first step on"
            )
        if before is None or exit.rule:
            return
        for layout, pos in zip(self.layouts, before, strict=True):
            of = leavers(layout, exit)
            most = round(int(of.sum()) * exit.keep)
            if int(of[pos[pos != PAD]].sum()) > most:
                raise InterventionError(
                    f"the key-value cache holds positions in block {exit.layer} (0-based) that this exit drops; "
                    "give the exit from the first step on"
                )

    def step(self, kv_cache: KVCache | None, layers: range) -> AbstractContextManager[None]:
        """What appends the rows of these blocks to a key-value cache, if there is one."""
        if kv_cache is None:
            return nullcontext()
        if self.is_prefill:
            kv_cache.rules = tuple(e for e in self.effects.exits if e.rule)
        return kv_cache.step(self.n_columns, self.n_rope, self.effects.same_time, layers, self.keys)

    def _check_time(self, kv_cache: KVCache | None) -> None:
        """Raise InterventionError where cached keys of the video are turned by other times."""
        if not self.is_prefill and kv_cache is not None and kv_cache.same_time != self.effects.same_time:
            raise InterventionError(
                "the cached keys of the video are turned by its "
                + ("one time" if kv_cache.same_time else "own times")
                + "; give SameTime in every step from the first on, or in none"
            )

    def position_ids(self, pos: Int[Tensor, "batch column"]) -> Int[Tensor, "axis batch column"]:
        """The numbers by which positions of the layouts are turned, on each axis; -1 where padded."""
        of = [x.position_ids_at_one_time if self.effects.same_time else x.position_ids for x in self.layouts]
        ids = [numbers[:, p.clamp(min=0)] for numbers, p in zip(of, pos, strict=True)]
        axes = max(len(i) for i in ids)  # a text among videos has one number for all
        return torch.stack([i.expand(axes, -1) for i in ids], 1).masked_fill(pos == PAD, PAD)

    def mask(
        self, layer: int, query: Int[Tensor, "batch query"], key: Int[Tensor, "batch key"]
    ) -> tuple[Bool[Tensor, "batch #head query key"] | Float[Tensor, "batch #head query key"] | Calls | None, bool]:
        """(mask, causal) of a block: nothing where the kernel's own causality does, kernel calls where they do."""
        cuts = self.effects.cuts[layer]
        memo = (cuts, self._alike[layer])
        if memo not in self._masks:
            self._masks[memo] = self._make_mask(cuts, query, key)
        return self._masks[memo]

    def _make_mask(self, cuts: tuple[Cut, ...], query: Tensor, key: Tensor) -> tuple[Tensor | Calls | None, bool]:
        if not cuts and not bool((key == PAD).any()):
            if query.shape[1] == key.shape[1]:
                return None, True
            if query.shape[1] == 1:
                return None, False
        if len(self.layouts) == 1:
            calls = structures(self.layouts[0], cuts, self.heads, query[0], key[0])
            if calls is not None:
                return calls.to(self.device), False
        items = [masks_of(x, cuts, self.heads, q, k) for x, q, k in zip(self.layouts, query, key, strict=True)]
        return torch.stack(same_type(items)).to(self.device), False


def blocks_run(n_layers: int, start: int | None, stop: int | None) -> tuple[int, int]:
    """The first block of a run and the one it stops before; both count from the end when negative."""
    bounds = (0 if start is None else start, n_layers if stop is None else stop)
    first, end = (b + n_layers if b < 0 else b for b in bounds)
    if any(not 0 <= b <= n_layers for b in (first, end)) or first > end:
        raise InterventionError(
            f"start_at_layer={start}, stop_at_layer={stop} do not fit a model of {n_layers} blocks, numbered from 0"
        )
    return first, end


def check_begin(plan: RunPlan, stream: Any, d_model: int, start: int) -> None:
    """Look at a run that begins with a given stream, if it does.

    Raises:
        InputError: For a stream of other inputs.
        InterventionError: For what is to be done before the block that it enters: nobody would do it.
    """
    if stream is None:
        return
    effects, shape = plan.effects, [len(plan.layouts), plan.n_new, d_model]
    if list(stream.shape) != shape:
        raise InputError(
            f"the stream given is {list(stream.shape)}, and these inputs' is {shape}: give both of one run, before "
            "anything left it"
        )
    if early := next((w for w in effects.writes if w.layer is None), None):
        raise InterventionError(
            f"{early.label}: it writes before block 0, and the run begins at block {start}; run the inputs"
        )
    acts = [(i, cut.label) for of in (effects.cuts, effects.swaps) for i, cuts in enumerate(of) for cut in cuts]
    acts += [(w.block, w.label) for w in effects.writes]
    acts += [(e.layer, e.label) for e in effects.exits if not e.decided_late]  # the others look at where it begins
    acts += [(0, "all frames at one time")] * effects.same_time
    for block, label in acts:
        if block < start:
            raise InterventionError(
                f"{label}: it acts in block {block} (0-based), and the run begins at block {start}; run the inputs, or "
                f"give what it does from block {start} on alone, with the stream of a run that did the rest"
            )


def _check_step(inputs: VideoInputs, cached: int) -> None:
    """Raise InputError unless columns after the first `cached` are new text."""
    if cached >= inputs.tokens.shape[1]:
        raise InputError(
            f"the key-value cache holds {cached} columns and the inputs have {inputs.tokens.shape[1]}: nothing is new; "
            "extend the inputs, or start with an empty cache"
        )
    for layout, pad in zip(inputs.layouts, inputs.pads, strict=True):
        if any(s.role in ROLES_OF["video"] and s.stop > cached - pad for s in layout.segments):
            raise InputError(
                f"the key-value cache ends inside or before the video, after {cached} columns; give the whole video "
                "with the first forward"
            )


def _lengths(lm: DecoderConfig, inputs: VideoInputs, kv_cache: KVCache | None) -> tuple[int, ...]:
    """Of each item the length that dynamic NTK scaling reacts to: its prompt's, so that all steps turn keys alike."""
    lengths = tuple(layout.n_prompt for layout in inputs.layouts)
    if kv_cache is None or not kv_cache.n_rope:
        return lengths
    turned = [tuple(max(n, lm.n_ctx) for n in ns) for ns in (kv_cache.n_rope, lengths)]
    if lm.rope.scaling == "dynamic" and turned[0] != turned[1]:
        raise InputError(
            f"the cached keys are turned by the angles of prompts of {kv_cache.n_rope} tokens, and these have "
            f"{lengths}: beyond {lm.n_ctx} tokens they differ; give new tokens by inputs.extend, or start with "
            "an empty cache"
        )
    return kv_cache.n_rope


def columns(
    x: Float[Tensor, "batch pos d_model"], pos: Int[Tensor, "batch pos"], rows: Int[Tensor, "batch row"]
) -> Float[Tensor, "batch row d_model"]:
    """A stream's columns of some positions, from those of all of its own."""
    at = [torch.searchsorted(p.contiguous(), r).clamp(max=len(p) - 1) for p, r in zip(pos, rows, strict=True)]
    return x.gather(1, torch.stack(at).to(x.device)[..., None].expand(-1, -1, x.shape[-1]))


def stacked(positions: Sequence[Tensor]) -> Int[Tensor, "batch kept"]:
    """Positions of items side by side, padded on the left."""
    longest = max(len(p) for p in positions)
    return torch.stack([torch.nn.functional.pad(p, (longest - len(p), 0), value=PAD) for p in positions])
