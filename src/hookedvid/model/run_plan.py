"""What one forward needs to know of its interventions: positions, masks, and who leaves early."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.errors import InputError, InterventionError
from hookedvid.nn.head_groups import Calls, structures
from hookedvid.nn.kv import KVCache
from hookedvid.values.config import DecoderConfig
from hookedvid.values.effects import Cut, Effects, check_heads
from hookedvid.values.inputs import PAD, VideoInputs
from hookedvid.values.masks import kept_positions, masks_of, same_type
from hookedvid.values.selectors import ROLES_OF


class RunPlan:
    """The effects of interventions on one batch; nothing that was given is changed.

    Positions are the layout's, on the CPU. `keys` [batch, key] of each block are those that are cached, then those of
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
        self.heads = range(lm.n_heads)
        check_heads(effects.every_cut, lm.n_heads)
        exit = effects.exit
        self.exits = exit is not None
        self.exit_layer = lm.n_layers if exit is None else exit.layer
        self.remaining = [] if exit is None else [kept_positions(layout, exit) for layout in inputs.layouts]
        before = [None] * lm.n_layers if kv_cache is None else [layer.pos for layer in kv_cache.layers]
        if self.exit_layer < lm.n_layers:
            self._check_left(before[self.exit_layer])
        late = _stacked(self.remaining) if self.exits and self.is_prefill else self.pos
        self.rows = [self.pos if i < self.exit_layer else late for i in range(lm.n_layers)]
        self.keys = [h if b is None else torch.cat([b, h], 1) for b, h in zip(before, self.rows, strict=True)]
        self._masks: dict[tuple[tuple[Cut, ...], bool, int, int], tuple[Tensor | Calls | None, bool]] = {}

    def _check_left(self, before: Int[Tensor, "batch key"] | None) -> None:
        """Raise InterventionError where the exit's block has cached what leaves before it."""
        if before is None:
            return
        for remaining, pos in zip(self.remaining, before, strict=True):
            if not bool(torch.isin(pos[pos != PAD], remaining).all()):
                raise InterventionError(
                    f"the key-value cache holds positions in block {self.exit_layer} (0-based) that this exit drops; "
                    "give the exit from the first step on"
                )

    def position_ids(self, pos: Int[Tensor, "batch column"]) -> Int[Tensor, "axis batch column"]:
        """The numbers by which positions of the layouts are turned, on each axis; -1 where padded."""
        ids = [layout.position_ids[:, p.clamp(min=0)] for layout, p in zip(self.layouts, pos, strict=True)]
        axes = max(len(i) for i in ids)  # a text among videos has one number for all
        return torch.stack([i.expand(axes, -1) for i in ids], 1).masked_fill(pos == PAD, PAD)

    def drop(self, resid: Float[Tensor, "batch pos d_model"], layer: int) -> Float[Tensor, "batch kept d_model"]:
        """The stream without what exits, in the columns that the block `layer` holds."""
        pads = torch.tensor([self.pos.shape[1] - layout.n_tokens for layout in self.layouts])
        columns = (self.rows[layer].clamp(min=0) + pads[:, None]).to(resid.device)
        return resid.gather(1, columns[..., None].expand(-1, -1, resid.shape[-1]))

    def mask(
        self, layer: int, query: Int[Tensor, "batch query"], key: Int[Tensor, "batch key"]
    ) -> tuple[Bool[Tensor, "batch #head query key"] | Float[Tensor, "batch #head query key"] | Calls | None, bool]:
        """(mask, causal) of a block: nothing where the kernel's own causality does, kernel calls where they do."""
        cuts = self.effects.cuts[layer]
        memo = (cuts, layer >= self.exit_layer, query.shape[1], key.shape[1])
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


def _stacked(positions: Sequence[Tensor]) -> Int[Tensor, "batch kept"]:
    """Positions of items side by side, padded on the left."""
    longest = max(len(p) for p in positions)
    return torch.stack([torch.nn.functional.pad(p, (longest - len(p), 0), value=PAD) for p in positions])
