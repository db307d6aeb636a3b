"""Other values along some edges of attention: z_i gains the sum over these edges of P_ij (v'_j - v_j).

P_ij = exp(s_ij - L_i), with s_ij a score with M added and L_i the log-sum-exp of row i's. Only rows that read along
such edges are computed, a part of them at a time, so nothing is query x key. Where a pattern is at hand, as a hook may
have left it, P is taken from there.

Axis words: batch query row key column head kv_head d_head.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.nn.structured import SCORES
from hookedvid.values.masks import visible

Pair = tuple[Float[Tensor, "key kv_head d_head"], Float[Tensor, "key kv_head d_head"]]


class Flow(NamedTuple):
    """What flows along some edges of some heads of one item.

    Attributes:
        item: Of the batch.
        rows: Of q, that read along such edges.
        columns: Of k and v, whose values are replaced for them.
        heads: Numbers of the heads.
        mask: The mask [#head some key] of some of `rows` (by their places there), of these heads.
        edges: Which of some rows' pairs with `columns` are concerned, causality aside.
        values: What flows [column kv_head d_head], from what would.
    """

    item: int
    rows: Int[Tensor, " row"]
    columns: Int[Tensor, " column"]
    heads: Int[Tensor, " some"]
    mask: Callable[[slice], Tensor]
    edges: Callable[[slice], Bool[Tensor, "some column"]]
    values: Callable[[Tensor], Tensor]

    def differences(self, v: Float[Tensor, "key kv_head d_head"], kv_heads: Int[Tensor, " some"]) -> Tensor:
        """V' - v of some kv_heads [kv_head column d_head]."""
        v = _taken(v, self.columns, 0)
        return _of(self.values(v) - v, kv_heads)

    def by_kv_head(self, serves: int, device: torch.device) -> tuple[Int[Tensor, " some"], int]:
        """Whose heads they are, and how many heads each has here, in their order; one, where some have more."""
        whose, counts = torch.unique_consecutive(self.heads // serves, return_counts=True)
        alike = bool((counts == counts[0]).all())
        return (whose if alike else self.heads // serves).to(device), int(counts[0]) if alike else 1


def with_flows(
    flows: Sequence[Flow],
    z: Float[Tensor, "batch query head d_head"],
    q: Float[Tensor, "batch query head d_head"],
    keys_values: Callable[[int], Pair],
) -> Float[Tensor, "batch query head d_head"]:
    """The output z with flows along their edges, from what attention was computed from; `keys_values` of an item."""
    precise = torch.promote_types(q.dtype, torch.float32)
    for f in flows:
        k, v = keys_values(f.item)
        heads, (kv_heads, n) = f.heads.to(q.device), f.by_kv_head(q.shape[2] // k.shape[1], q.device)
        k, new = _of(k, kv_heads).to(precise), f.differences(v, kv_heads)
        step = max(1, SCORES // (len(heads) * k.shape[1]))
        for part in (slice(i, i + step) for i in range(0, len(f.rows), step)):
            rows = f.rows[part].to(q.device)
            # Heads of one kv_head beside each other in one row axis, over which its keys need no copies.
            mine = (q[f.item, rows][:, heads].to(precise) * q.shape[-1] ** -0.5).transpose(0, 1)
            scores = (mine.reshape(len(kv_heads), -1, mine.shape[-1]) @ k.transpose(1, 2)).view(*mine.shape[:2], -1)
            shares = _along(softmax(scores, f.mask(part)), f, part).flatten(0, 1)
            z = _plus(z, f, rows, heads, shares.view(len(kv_heads), n * len(rows), -1).to(new.dtype) @ new)
    return z


def softmax(
    scores: Float[Tensor, "head row key"], mask: Bool[Tensor, "#head row key"] | Float[Tensor, "#head row key"]
) -> Float[Tensor, "head row key"]:
    """The pattern of some rows, M added in place; a row that sees nothing is zero."""
    may = visible(mask)
    empty, mask = ~may.any(-1, keepdim=True), mask.to(scores.device)
    if mask.dtype == torch.bool:
        closed = (~may.all(-2).all(0)).nonzero()[:1, 0]  # keys before it are seen by all rows
        first = int(closed) if len(closed) else mask.shape[-1]
        scores[..., first:].masked_fill_(~mask[..., first:], float("-inf"))
    else:
        scores.add_(mask)
    if not bool(empty.any()):
        return scores.softmax(-1)
    empty = empty.to(scores.device)
    return scores.masked_fill_(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


def _along(pattern: Float[Tensor, "head row key"], f: Flow, part: slice) -> Float[Tensor, "head row column"]:
    edges = f.edges(part)
    shares = _taken(pattern, f.columns, 2)
    return shares if bool(edges.all()) else shares.masked_fill(~edges.to(shares.device), 0.0)


def _plus(z: Tensor, f: Flow, rows: Tensor, heads: Tensor, along: Tensor) -> Tensor:
    along = along.reshape(len(heads), len(rows), -1).transpose(0, 1).to(z.dtype)
    if z.requires_grad or along.requires_grad:
        at = torch.tensor(f.item, device=z.device), rows[:, None], heads
        return z.index_put(at, along, accumulate=True)
    z[f.item, rows[:, None], heads] += along
    return z


def _of(x: Float[Tensor, "row kv_head d_head"], kv_heads: Tensor) -> Float[Tensor, "some row d_head"]:
    """All kv_heads, or the rows of some."""
    x = x.transpose(0, 1)
    return x if len(kv_heads) == len(x) and bool((kv_heads.diff() == 1).all()) else x[kv_heads]


def _taken(x: Tensor, places: Int[Tensor, " place"], axis: int) -> Tensor:
    """Places of an axis, without a copy where they are one run."""
    first, n = int(places[0]), len(places)
    if int(places[-1]) - first == n - 1:
        return x.narrow(axis, first, n)
    return x.index_select(axis, places.to(x.device))


def with_flows_of(
    flows: Sequence[Flow],
    z: Float[Tensor, "batch head query d_head"],
    pattern: Float[Tensor, "batch head query key"],
    v: Float[Tensor, "batch key kv_head d_head"],
) -> Float[Tensor, "batch head query d_head"]:
    """The same from a pattern."""
    z = z.transpose(1, 2)
    for f in flows:
        rows, heads = f.rows.to(z.device), f.heads.to(z.device)
        shares = _along(pattern[f.item][heads[:, None], rows], f, slice(None))
        kv_heads, n = f.by_kv_head(z.shape[2] // v.shape[2], z.device)
        along = shares.reshape(len(kv_heads), n * len(rows), -1) @ f.differences(v[f.item], kv_heads)
        z = _plus(z, f, rows, heads, along)
    return z.transpose(1, 2)
