"""Attention whose heads are under different cuts: those that are alike share their kernel calls.

Axis words: batch query key head kv_head d_head.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.nn.structured import Structure, structure
from hookedvid.values.effects import Cut, by_heads
from hookedvid.values.layout import TokenLayout
from hookedvid.values.masks import same_type


@dataclass(frozen=True, eq=False)
class HeadGroups:
    """A structure for each group of heads; `places[i]` are those of the i-th among all heads of the queries."""

    places: tuple[Int[Tensor, " _"], ...]
    structures: tuple[Structure, ...]

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "HeadGroups":
        """As of a Structure."""
        places = tuple(p.to(device) for p in self.places)
        return HeadGroups(places, tuple(s.to(device) for s in self.structures))

    def attend(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key kv_head d_head"],
        v: Float[Tensor, "batch key kv_head d_head"],
    ) -> Float[Tensor, "batch query head d_head"]:
        """As of a Structure."""
        serves = q.shape[2] // k.shape[2]
        z = [
            calls.attend(q[:, :, places], *(x[:, :, places // serves] for x in (k, v)))
            for places, calls in zip(self.places, self.structures, strict=True)
        ]
        return torch.cat(z, 2)[:, :, torch.cat(self.places).argsort()]

    def dense(
        self, device: torch.device | str = "cpu"
    ) -> Bool[Tensor, "head query key"] | Float[Tensor, "head query key"]:
        """As of a Structure, of each head."""
        each = same_type([s.dense(device) for s in self.structures])
        whole = each[0].new_empty(sum(map(len, self.places)), *each[0].shape)
        for places, mask in zip(self.places, each, strict=True):
            whole[places] = mask
        return whole


Calls = Structure | HeadGroups


def structures(
    layout: TokenLayout,
    cuts: Sequence[Cut],
    heads: Sequence[int],
    query: Int[Tensor, " query"] | None = None,
    key: Int[Tensor, " key"] | None = None,
) -> Calls | None:
    """As `structure`, for these heads under cuts that may name some of them."""
    groups = by_heads(cuts, heads)
    each = [structure(layout, mine, query, key) for _, mine in groups]
    made = tuple(one for one in each if one is not None)
    if len(made) < len(each):
        return None
    return made[0] if len(made) == 1 else HeadGroups(tuple(torch.tensor(p) for p, _ in groups), made)
