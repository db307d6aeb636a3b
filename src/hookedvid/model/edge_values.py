"""What the edges of a run are worth to a metric, filled block by block on the way back."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.errors import InterventionError
from hookedvid.model.attention_maps import check_unedited
from hookedvid.model.run import Run
from hookedvid.nn.attention import Attended, Probe
from hookedvid.nn.edge_sums import edge_sums
from hookedvid.values.edge_sets import EdgeSets
from hookedvid.values.inputs import PAD
from hookedvid.values.masks import masks_of


class EdgeValues:
    """The sums over sets of edges of each item of one run.

    Raises:
        InterventionError: Where other values flow along edges of a block that is asked about.
    """

    def __init__(self, sets: Sequence[EdgeSets], layers: Sequence[int], run: Run):
        self.sets, self.layers, self.run = sets, layers, run
        self._found: list[dict[int, Tensor]] = [{} for _ in sets]
        for layer in layers:
            for swap in run.plan.effects.swaps_of(layer):
                raise InterventionError(
                    f"{swap.label}: other values flow along edges of layer {layer} (0-based), whose own values "
                    "attribution weighs; ask about other layers, or leave it out"
                )

    @property
    def probes(self) -> dict[int, Probe]:
        """Of each block that is asked about."""
        return {layer: partial(self._look, layer) for layer in self.layers}

    def of(self, item: int) -> Float[Tensor, "layer head edge"]:
        """Those of an item; 0 where no gradient came."""
        found, n_heads = self._found[item], len(self.run.plan.heads)
        like = next(iter(found.values())) if found else torch.zeros(n_heads, len(self.sets[item].knockouts))
        return torch.stack([found.get(layer, torch.zeros_like(like)) for layer in self.layers])

    def _look(self, layer: int, seen: Attended) -> None:
        check_unedited(self.run.model.blocks[layer].attn, layer)
        allowed = seen.allowed.detach() if isinstance(seen.allowed, Tensor) else None
        bare = [x.detach() for x in (seen.q, seen.k, seen.v, seen.z)]
        cast(Any, seen.z).register_hook(partial(self._add, layer, bare, allowed))

    @torch.no_grad()
    def _add(
        self,
        layer: int,
        seen: Sequence[Float[Tensor, "batch row _some d_head"]],
        allowed: Tensor | None,
        grad: Float[Tensor, "batch row head d_head"],
    ) -> None:
        for item, sets in enumerate(self.sets):
            pos = self.run.plan.rows[layer][item]
            class_of = torch.where(pos == PAD, -1, sets.class_of[pos.clamp(min=0)])
            readers = [(class_of == c).nonzero()[:, 0] for c in range(sets.n_classes)]
            q, k, v, z = (x[item] for x in seen)
            both = edge_sums(q, k, v, z, grad[item], readers, partial(self._mask, layer, item, allowed, pos))
            per_key, own = (_by_position(x, pos, len(sets.class_of)) for x in both)
            self._found[item][layer] = sets.sums(per_key, own).cpu()

    def _mask(
        self, layer: int, item: int, allowed: Tensor | None, pos: Int[Tensor, " row"], some: Tensor, n: int
    ) -> Tensor:
        """The mask of some rows and the first keys: the dense one that was used, or that of the block's cuts."""
        if allowed is not None:
            return allowed[item % len(allowed)][:, some.to(allowed.device), :n]
        plan = self.run.plan
        return masks_of(plan.layouts[item], plan.effects.cuts[layer], plan.heads, pos[some], pos[:n])


def _by_position(x: Float[Tensor, "*some row"], pos: Int[Tensor, " row"], n: int) -> Float[Tensor, "*some pos"]:
    """Columns of a layout's positions from those of a block's rows; 0 of what had left."""
    there = pos != PAD
    at, held = pos[there].to(x.device), x[..., there.to(x.device)]
    return x.new_zeros(*x.shape[:-1], n).index_copy_(-1, at, held)
