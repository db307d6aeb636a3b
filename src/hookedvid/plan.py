"""What one forward needs to know of its interventions: positions, masks, and who leaves early."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.config import DecoderConfig
from hookedvid.errors import InterventionError
from hookedvid.inputs import PAD, VideoInputs
from hookedvid.interventions import EarlyExit, Intervention, Knockout, RandomEdges
from hookedvid.masks import active, allowed, kept_positions
from hookedvid.nn.kv import KVCache
from hookedvid.nn.structured import Structure, structure


class RunPlan:
    """Interventions resolved on one batch; raises InterventionError where they do not fit it.

    `pos` holds the layout positions of the columns this forward computes, on the CPU; the rest is in the
    key-value cache. One mask, or list of kernel calls, is made for each distinct set of knockouts, not for each
    layer.
    """

    def __init__(
        self,
        lm: DecoderConfig,
        inputs: VideoInputs,
        interventions: Sequence[Intervention],
        kv_cache: KVCache | None,
    ):
        cached = 0 if kv_cache is None else kv_cache.n_tokens
        n_columns = inputs.tokens.shape[1]
        self.layouts = inputs.layouts
        self.device = inputs.tokens.device
        self.is_prefill = cached == 0
        self.n_new = n_columns - cached
        self.pos = inputs.pos.cpu()[:, cached:]
        self.n_rope = tuple(layout.n_tokens for layout in inputs.layouts)
        if kv_cache is not None:
            kv_cache.n_rope = self.n_rope = kv_cache.n_rope or self.n_rope
            kv_cache.n_tokens = n_columns
        self.active = active(interventions, lm.n_layers)
        exits = [i for i in interventions if isinstance(i, EarlyExit)]
        self.exits = bool(exits)
        self.exit_layer = exits[0].layer if exits else lm.n_layers
        self._kept = [_kept(layout, exits[0], lm.n_layers) for layout in inputs.layouts] if exits else []
        self._masks: dict[
            tuple[tuple[Knockout | RandomEdges, ...], int, int], tuple[Tensor | Structure | None, bool]
        ] = {}

    def drop(self, resid: Float[Tensor, "batch pos d_model"]) -> tuple[Tensor, Tensor]:
        """The stream and its positions without what exits, items of unequal length padded on the left."""
        longest = max(len(k) for k in self._kept)
        pos = torch.stack([torch.nn.functional.pad(k, (longest - len(k), 0), value=PAD) for k in self._kept])
        pads = torch.tensor([self.pos.shape[1] - layout.n_tokens for layout in self.layouts])
        columns = (pos.clamp(min=0) + pads[:, None]).to(resid.device)
        return resid.gather(1, columns[..., None].expand(-1, -1, resid.shape[-1])), pos

    def mask(
        self, layer: int, query: Int[Tensor, "batch query"], key: Int[Tensor, "batch key"]
    ) -> tuple[Bool[Tensor, "batch 1 query key"] | Structure | None, bool]:
        """(mask, causal) of a block: nothing where the kernel's own causality does, kernel calls where they do."""
        memo = (self.active[layer], query.shape[1], key.shape[1])
        if memo not in self._masks:
            self._masks[memo] = self._make_mask(self.active[layer], query, key)
        return self._masks[memo]

    def _make_mask(
        self, knockouts: tuple[Knockout | RandomEdges, ...], query: Tensor, key: Tensor
    ) -> tuple[Tensor | Structure | None, bool]:
        if not knockouts and not bool((key == PAD).any()):
            if query.shape[1] == key.shape[1]:
                return None, True
            if query.shape[1] == 1:
                return None, False
        if len(self.layouts) == 1 and (calls := structure(self.layouts[0], knockouts, query[0], key[0])) is not None:
            return calls.to(self.device), False
        items = [allowed(x, knockouts, q, k) for x, q, k in zip(self.layouts, query, key, strict=True)]
        return torch.stack(items)[:, None].to(self.device), False


def _kept(layout, exit: EarlyExit, n_layers: int) -> Tensor:
    if exit.layer > n_layers:
        raise InterventionError(f"{exit.label()}: this model has {n_layers} blocks")
    dropped = layout.mask(exit.drop) & layout.mask("text")
    if bool(dropped.any()):
        raise InterventionError(
            f"EarlyExit cannot drop {exit.drop!r}: it holds text, from which the answer is read; drop video positions"
        )
    return kept_positions(layout, exit)
