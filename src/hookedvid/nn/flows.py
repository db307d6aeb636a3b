"""Other values along some edges of attention: z_i gains the sum over these edges of P_ij (v'_j - v_j).

P_ij = exp(s_ij - L_i), with s_ij a score with M added and L_i the log-sum-exp of row i's. Only rows that read along
such edges are computed, a part of them at a time, so nothing is query x key. Where each of them reads along all of
them, z_i is computed anew, the sum of P_ij v'_j, since the new values are often one. Where a pattern is at hand, as a
hook may have left it, P is taken from there.

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


class Seen(NamedTuple):
    """A mask, and what is known of it.

    Attributes:
        first: Keys before it are seen by all rows of a mask of booleans.
        empty: Rows that see nothing, if there are any.
    """

    mask: Bool[Tensor, "#head row key"] | Float[Tensor, "#head row key"]
    first: int
    empty: Bool[Tensor, "#head row 1"] | None

    @classmethod
    def of(cls, mask: Bool[Tensor, "#head row key"] | Float[Tensor, "#head row key"]) -> "Seen":
        """What is known of a mask."""
        may = visible(mask)
        empty, closed = ~may.any(-1, keepdim=True), (~may.all(-2).all(0)).nonzero()[:1, 0]
        return cls(mask, int(closed) if len(closed) else mask.shape[-1], empty if bool(empty.any()) else None)


class Flow(NamedTuple):
    """What flows along some edges of some heads of one item.

    Attributes:
        item: Of the batch.
        rows: Of q, that read along such edges.
        columns: Of k and v, whose values are replaced for them.
        heads: Numbers of the heads.
        seen: The mask of some of `rows` (by their places there), of these heads.
        edges: Which of some rows' pairs with `columns` are concerned, causality aside.
        values: What flows [column kv_head d_head], or one for all columns, from what would.
        others: All other columns, where all pairs are concerned and no other flow ends in these rows; else None.
    """

    item: int
    rows: Int[Tensor, " row"]
    columns: Int[Tensor, " column"]
    heads: Int[Tensor, " some"]
    seen: Callable[[slice], Seen]
    edges: Callable[[slice], Bool[Tensor, "some column"]]
    values: Callable[[Tensor], Tensor]
    others: Int[Tensor, " other"] | None

    def new(self, v: Float[Tensor, "key kv_head d_head"]) -> Float[Tensor, "#column kv_head d_head"]:
        """V' of the columns; one row where it is the same of all."""
        new = self.values(_taken(v, self.columns, 0))
        return new[:1] if new.stride(0) == 0 else new

    def differences(self, v: Float[Tensor, "key kv_head d_head"]) -> Float[Tensor, "column kv_head d_head"]:
        """V' - v."""
        return self.new(v) - _taken(v, self.columns, 0)

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
        k, others = _of(k, kv_heads).to(precise), v[:0] if f.others is None else _taken(v, f.others, 0)
        new, others = (_of(x, kv_heads) for x in (f.differences(v) if f.others is None else f.new(v), others))
        step = max(1, SCORES // (len(heads) * k.shape[1]))
        for part in (slice(i, i + step) for i in range(0, len(f.rows), step)):
            rows = f.rows[part].to(q.device)
            # Heads of one kv_head beside each other in one row axis, over which its keys need no copies.
            mine = (q[f.item, rows][:, heads].to(precise) * q.shape[-1] ** -0.5).transpose(0, 1)
            scores = (mine.reshape(len(kv_heads), -1, mine.shape[-1]) @ k.transpose(1, 2)).view(*mine.shape[:2], -1)
            pattern = softmax(scores, f.seen(part))
            shares = pattern.view(len(kv_heads), n * len(rows), -1)
            if f.others is None:
                z = _put(
                    z, f, rows, heads, _summed(_along(pattern, f, part).view(*shares.shape[:2], -1), new), add=True
                )
            else:
                anew = _summed(_taken(shares, f.columns, 2), new) + _summed(_taken(shares, f.others, 2), others)
                z = _put(z, f, rows, heads, anew, add=False)
    return z


def last_anew(flows: Sequence[Flow], q: Float[Tensor, "batch query head d_head"]) -> int:
    """How many rows at the end need nothing of attention, since one flow computes them anew, in all heads."""
    if len(flows) != 1 or len(q) > 1:
        return 0
    (f,), n = flows, q.shape[1]
    at_end = int(f.rows[0]) == n - len(f.rows) > 0 and int(f.rows[-1]) == n - 1
    return len(f.rows) if at_end and f.others is not None and len(f.heads) == q.shape[2] else 0


def softmax(scores: Float[Tensor, "head row key"], seen: Seen) -> Float[Tensor, "head row key"]:
    """The pattern of some rows, M added in place; a row that sees nothing is zero."""
    mask, empty = seen.mask.to(scores.device), seen.empty
    if mask.dtype == torch.bool:
        scores[..., seen.first :].masked_fill_(~mask[..., seen.first :], float("-inf"))
    else:
        scores.add_(mask)
    if empty is None:
        return scores.softmax(-1)
    empty = empty.to(scores.device)
    return scores.masked_fill_(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


def _summed(shares: Float[Tensor, "some row column"], values: Float[Tensor, "some #column d_head"]) -> Tensor:
    """Values by their shares; one that is all columns' by their sum."""
    one = values.shape[1] == 1 and shares.shape[2] > 1
    return (shares.sum(-1, keepdim=True) if one else shares).to(values.dtype) @ values


def _along(pattern: Float[Tensor, "head row key"], f: Flow, part: slice) -> Float[Tensor, "head row column"]:
    edges = f.edges(part)
    shares = _taken(pattern, f.columns, 2)
    return shares if bool(edges.all()) else shares.masked_fill(~edges.to(shares.device), 0.0)


def _put(z: Tensor, f: Flow, rows: Tensor, heads: Tensor, new: Tensor, add: bool) -> Tensor:
    """Z with rows of heads set, or something added to them."""
    new = new.reshape(len(heads), len(rows), -1).transpose(0, 1).to(z.dtype)
    put = z.index_put if z.requires_grad or new.requires_grad else z.index_put_
    return put((torch.tensor(f.item, device=z.device), rows[:, None], heads), new, accumulate=add)


def _of(x: Float[Tensor, "row kv_head d_head"], kv_heads: Tensor) -> Float[Tensor, "some row d_head"]:
    """All kv_heads, or the rows of some."""
    x = x.transpose(0, 1)
    return x if len(kv_heads) == len(x) and bool((kv_heads.diff() == 1).all()) else x[kv_heads]


def _taken(x: Tensor, places: Int[Tensor, " place"], axis: int) -> Tensor:
    """Places of an axis, without a copy where they are one run."""
    first, n = int(places[0]) if len(places) else 0, len(places)
    if not n or int(places[-1]) - first == n - 1:
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
        along = shares.reshape(len(kv_heads), n * len(rows), -1) @ _of(f.differences(v[f.item]), kv_heads)
        z = _put(z, f, rows, heads, along, add=True)
    return z.transpose(1, 2)
