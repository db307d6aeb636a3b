"""What flows along the edges of a `Replace`: values of a cache, of a reference, of the input itself, or none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from hookedvid.model.patching import write_of
from hookedvid.model.run_plan import RunPlan
from hookedvid.nn.flows import Flow, Seen
from hookedvid.nn.model import Model
from hookedvid.values.effects import At, Cut, Swap, Write, by_heads
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.layout import TokenLayout
from hookedvid.values.masks import blocked, masks_of
from hookedvid.values.tensors import ints

Sources = Mapping[str, Any] | None
_T = TypeVar("_T")
REMEMBERED = 1 << 20  # pairs of a mask that is kept for the blocks after it: 1 MiB


class Values(NamedTuple):
    """What a swap puts in place of an item's values, in one block.

    Attributes:
        positions: Whose values are replaced.
        of: The new values of some of them, from their places among `positions`, how many of them, the first, are the
            prompt's, and the old ones.
    """

    positions: Int[Tensor, " position"]
    of: Callable[[Tensor, int, Tensor], Tensor]


class Place(NamedTuple):
    """Where a flow is: rows and keys of one item in one block, by their layout positions (-1: none).

    `key` is the same where all but the item's number in a call is.
    """

    item: int
    layout: TokenLayout
    rows: Int[Tensor, " row"]
    keys: Int[Tensor, " key"]
    cuts: Sequence[Cut]
    key: tuple[Any, ...]


Known = dict[tuple[Any, ...], "_Edges"]


class Flows:
    """The flows of a forward, those of a block made when it is run: until then rows may leave.

    Raises:
        InterventionError: When a source does not fit.
    """

    def __init__(self, model: Model, sources: Sources, inputs: VideoInputs, plan: RunPlan):
        self.plan = plan
        self._values = {
            (swap, layer, item): values_of(model, swap, layer, sources, inputs, item)
            for layer, swaps in enumerate(plan.effects.swaps)
            for swap in swaps
            for item in range(inputs.batch_size)
        }
        self._known: Known = {}

    def at(self, layer: int) -> list[Flow]:
        """Those of a block."""
        plan, swaps = self.plan, self.plan.effects.swaps_of(layer)
        flows: list[Flow] = []
        for item, layout in enumerate(plan.layouts if swaps else ()):
            rows, keys, cuts = plan.rows[layer][item], plan.keys[layer][item], plan.effects.cuts[layer]
            place = Place(item, layout, rows, keys, cuts, (item, cuts, plan.first_alike(layer)))
            values = [self._values[swap, layer, item] for swap in swaps]
            flows += flows_at(place, swaps, plan.heads, values, self._known)
        return flows


def flows_at(
    place: Place, swaps: Sequence[Swap], heads: Sequence[int], values: Sequence[Values], known: Known
) -> list[Flow]:
    """The flows of one item in one block; of several swaps of an edge the last one counts.

    Args:
        place: The item's rows and keys there.
        swaps: Of the block.
        heads: Numbers of all heads.
        values: Of each swap.
        known: Edges by their place, for blocks whose places are the same.
    """
    of = {replace(swap, heads=None): its for swap, its in zip(swaps, values, strict=True)}
    flows: list[Flow] = []
    for some, mine in by_heads(swaps, heads):
        for i, swap in enumerate(mine):
            its, what = of[replace(swap, heads=None)], (place.key, mine, i, some)
            if what not in known:
                known[what] = _Edges(place, mine[i:], its.positions, [heads[h] for h in some], alone=len(mine) == 1)
            edges = known[what]
            if len(edges.rows) and len(edges.columns):
                new = partial(its.of, edges.places, edges.n_prompt)
                flows.append(
                    Flow(place.item, edges.rows, edges.columns, edges.heads, edges.seen, edges.edges, new, edges.others)
                )
    return flows


class _Edges:
    """The edges of a swap at a place, but those of swaps after it, and what their rows see; as of a Flow.

    Attributes:
        places: Of the columns among `positions`.
        n_prompt: How many of them, the first, are the prompt's.
    """

    def __init__(
        self, place: Place, swaps: Sequence[Swap], positions: Int[Tensor, " position"], heads: list[int], alone: bool
    ):
        self.place, self.swaps, self.heads = place, swaps, torch.tensor(heads)
        layout, swap = place.layout, swaps[0]
        self.columns = torch.isin(place.keys, positions).nonzero()[:, 0]
        self.keys = place.keys[self.columns]
        self.places, self.n_prompt = torch.searchsorted(positions, self.keys), int((self.keys < layout.n_prompt).sum())
        after = place.rows >= (self.keys.min() if len(self.keys) else layout.n_tokens)
        self.rows = (after & torch.isin(place.rows, layout.positions(swap.dst))).nonzero()[:, 0]
        self.pos = place.rows[self.rows]
        self._known: dict[tuple[str, int], Any] = {}
        all_pairs = swap.relation == "any" and not swap.drawn
        all_pairs &= not (swap.keep_self and bool(torch.isin(self.pos, self.keys).any()))
        others = torch.ones(len(place.keys), dtype=torch.bool).index_fill(0, self.columns, False).nonzero()[:, 0]
        self.others = others if alone and all_pairs else None

    def edges(self, part: slice) -> Tensor:
        """Which of some rows' pairs with the columns are concerned."""
        return self._once("edges", part, self._edges)

    def seen(self, part: slice) -> Seen:
        """What some rows see."""
        return self._once("seen", part, self._seen)

    def _once(self, what: str, part: slice, make: Callable[[slice], _T]) -> _T:
        if len(self.rows) * len(self.place.keys) > REMEMBERED:
            return make(part)
        key = what, part.start or 0
        if key not in self._known:
            self._known[key] = make(part)
        return self._known[key]

    def _edges(self, part: slice) -> Tensor:
        mine, *later = (blocked(self.place.layout, s, self.pos[part], self.keys) for s in self.swaps)
        for other in later:
            mine &= ~other
        return mine

    def _seen(self, part: slice) -> Seen:
        place = self.place
        return Seen.of(masks_of(place.layout, place.cuts, ints(self.heads), self.pos[part], place.keys))


def values_of(model: Model, swap: Swap, layer: int, sources: Sources, inputs: VideoInputs, item: int = 0) -> Values:
    """What a swap puts in place of an item's values in a block: what a write to all of them would.

    Raises:
        InterventionError: When its source does not fit, or there is nothing to take a mean of.
    """
    made: dict[str, Any] = {"by": swap.by, "seed": swap.draw}
    made = {"fn": _zero} if swap.by == "zero" else {} if swap.by == "resample" else made
    write = Write("v", layer, swap.src, swap.label, source=swap.source, **made)
    of_item = write_of(model, write, sources, inputs, item)

    def of(which: Tensor, n: int, v: Tensor) -> Tensor:
        # The prompt's first: generated ones get its mean.
        parts = [(v[:n], which[:n]), (v[n:], which[n:])]
        new = [of_item.value(rows[None], some)[0].to(v) for rows, some in parts if len(some)]
        return torch.cat(new) if len(new) > 1 else new[0]  # a mean is one row, seen from all places

    return Values(of_item.positions, of)


def _zero(act: Tensor, at: At) -> Tensor:
    return torch.zeros_like(act)
