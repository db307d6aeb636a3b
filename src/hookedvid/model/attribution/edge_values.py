"""What the edges of a run are worth to a metric, filled block by block on the way back."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.errors import InterventionError
from hookedvid.model.attention_maps import check_unedited
from hookedvid.model.attribution.backward import check_computed
from hookedvid.model.attribution.result import Softmax
from hookedvid.model.run import Run
from hookedvid.nn.attention import Attended, Probe
from hookedvid.nn.edge_sums import Gradients, Sources, edge_cuts, edge_sums
from hookedvid.values.edge_sets import EdgeSets
from hookedvid.values.inputs import PAD
from hookedvid.values.masks import masks_of


class EdgeValues:
    """The sums over sets of edges of each item of one run.

    Args:
        sets: Of each item.
        layers: Blocks, 0-based.
        run: The run.
        softmax: Whether a set is worth its derivative, or what cutting it makes of attention's output.

    Raises:
        InterventionError: Where other values flow along edges of a block that is asked about.
    """

    def __init__(self, sets: Sequence[EdgeSets], layers: Sequence[int], run: Run, softmax: Softmax = "slope"):
        self.sets, self.layers, self.run, self.softmax = sets, layers, run, softmax
        self._found: list[dict[int, Tensor]] = [{} for _ in sets]
        for layer in layers if sets else ():
            for swap in run.plan.effects.swaps_of(layer):
                raise InterventionError(
                    f"{swap.label}: other values flow along edges of layer {layer} (0-based), whose own values "
                    "attribution weighs; ask about other layers, or leave it out"
                )

    @property
    def probes(self) -> dict[int, Probe]:
        """Of each block that is asked about."""
        return {layer: partial(self._look, layer) for layer in self.layers if self.sets}

    def of(self, item: int) -> Float[Tensor, "layer head edge"]:
        """Those of an item; 0 where no gradient came."""
        found, n_heads = self._found[item], len(self.run.plan.heads)
        like = next(iter(found.values())) if found else torch.zeros(n_heads, len(self.sets[item].knockouts))
        return torch.stack([found.get(layer, torch.zeros_like(like)) for layer in self.layers])

    def _look(self, layer: int, seen: Attended) -> None:
        check_unedited(self.run.model.blocks[layer].attn, layer)
        allowed = seen.allowed.detach() if isinstance(seen.allowed, Tensor) else None
        bare = [x.detach() for x in (seen.q, seen.k, seen.v)]
        check_computed(seen.z, f"blocks.{layer}.attn")
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
            q, k, v = (x[item] for x in seen)
            of = Gradients(q, k, v, grad[item], readers, partial(self._mask, layer, item, allowed, pos))
            if self.softmax == "cut":
                sources = [_sources(sets, c, pos) for c in range(sets.n_classes)]
                found = edge_cuts(of, sources, len(sets.knockouts)).to(torch.promote_types(q.dtype, torch.float32))
            else:
                found = sets.sums(*(_by_position(x, pos, len(sets.class_of)) for x in edge_sums(of)))
            self._found[item][layer] = found.cpu()

    def _mask(
        self, layer: int, item: int, allowed: Tensor | None, pos: Int[Tensor, " row"], some: Tensor, n: int
    ) -> Tensor:
        """The mask of some rows and the first keys: the dense one that was used, or that of the block's cuts."""
        if allowed is not None:
            return allowed[item % len(allowed)][:, some.to(allowed.device), :n]
        plan = self.run.plan
        return masks_of(plan.layouts[item], plan.effects.cuts[layer], plan.heads, pos[some], pos[:n])


def _sources(sets: EdgeSets, of_class: int, pos: Int[Tensor, " row"]) -> Sources:
    """The sets of a class by a block's rows; what had left is no source."""
    edge, key, keep = sets.sources(of_class)
    row = torch.searchsorted(pos.contiguous(), key).clamp(max=len(pos) - 1)
    there = pos[row] == key
    return Sources(edge[there], row[there], keep)


def _by_position(x: Float[Tensor, "*some row"], pos: Int[Tensor, " row"], n: int) -> Float[Tensor, "*some pos"]:
    """Columns of a layout's positions from those of a block's rows; 0 of what had left."""
    there = pos != PAD
    at, held = pos[there].to(x.device), x[..., there.to(x.device)]
    return x.new_zeros(*x.shape[:-1], n).index_copy_(-1, at, held)
