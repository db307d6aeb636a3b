"""What edges of attention are worth to a number, by its gradient at attention's output; nothing is query x key.

An edge's log-weight is added to its score: z_i = sum_j P_ij v_j with P_ij ~ exp(s_ij + log w_ij). With g_i the gradient
at z_i, the derivative by log w_ij is P_ij g_i . (v_j - z_i), for all heads apart. If a set S of them is cut, z_i loses
sum_S P_ij (v_j - z_i) / (1 - sum_S P_ij), which may be much where every derivative is near 0. Some readers at a time,
their rows of the pattern are made, and summed as soon as they are there.

Axis words: row key class head kv_head d_head.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.nn.flows import Seen, softmax

# Scores made at once: 16 MiB in float32. As many numbers are held two to three times.
SCORES = 1 << 22


class Gradients(NamedTuple):
    """Of one item, whose rows are its keys: what attention computed from, and the gradient at what it gave.

    Attributes:
        readers: Rows of each class, ascending.
        mask: Gives the mask [#head some key] of some rows and so many of the first keys, on any device.
    """

    q: Float[Tensor, "row head d_head"]
    k: Float[Tensor, "row kv_head d_head"]
    v: Float[Tensor, "row kv_head d_head"]
    g: Float[Tensor, "row head d_head"]
    readers: Sequence[Int[Tensor, " _"]]
    mask: Callable[[Tensor, int], Tensor]


class Sources(NamedTuple):
    """The sets of edges that a class of readers reads along.

    Attributes:
        edge, key: Pairs of a set's number and a row among its sources.
        keep: Of each set, whether a reader's edge to itself is left out.
    """

    edge: Int[Tensor, " pair"]
    key: Int[Tensor, " pair"]
    keep: Bool[Tensor, " edge"]


class _Some(NamedTuple):
    """Some readers of a class: their pattern, and g_i . v_j, over the first keys."""

    of_class: int
    rows: Int[Tensor, " some"]
    pattern: Float[Tensor, "head some key"]
    along: Float[Tensor, "head some key"]


def edge_sums(of: Gradients) -> tuple[Float[Tensor, "head class row"], Float[Tensor, "head row"]]:
    """Derivatives: of each key summed over the readers of a class, and of each reader's edge to itself."""
    n_rows, n_heads = of.q.shape[:2]
    precise = torch.promote_types(of.q.dtype, torch.float32)
    per_key = of.q.new_zeros(n_heads, len(of.readers), n_rows, dtype=precise)
    own = per_key.new_zeros(n_heads, n_rows)
    for of_class, rows, pattern, along in _parts(of, precise):
        itself, along = _own(along, rows), along.mul_(pattern)
        whole = along.sum(-1)
        per_key[:, of_class, : along.shape[-1]] += along.sum(1) - (whole[:, None] @ pattern)[:, 0]
        own[:, rows] = (itself - whole) * _own(pattern, rows)
    return per_key, own


def edge_cuts(of: Gradients, sources: Sequence[Sources], n_sets: int) -> Float[Tensor, "head edge"]:
    """What the gradient says that cutting each set loses, with the rest renormalised; an emptied row gives zero.

    In float64. Where a set has nearly all of a row, what is left is summed by itself: 1 - its mass is rounding there.
    """
    total = of.q.new_zeros(of.q.shape[1], n_sets, dtype=torch.float64)
    for of_class, rows, pattern, along in _parts(of, torch.float64):
        edge, key, keep = (x.to(rows.device) for x in sources[of_class])
        edge, key = edge[key < pattern.shape[-1]], key[key < pattern.shape[-1]]
        whole = (pattern * along).sum(-1, keepdim=True)
        # Of each set the mass, and the mass times g . (v - z).
        mass, lost = (
            x.new_zeros(*x.shape[:2], n_sets).index_add_(2, edge, x[..., key])
            for x in (pattern, (along - whole).mul_(pattern))
        )
        row, pair = ((key == rows[:, None]) & keep[edge]).nonzero(as_tuple=True)
        itself = _own(pattern, rows)[:, row]
        mass[:, row, edge[pair]] -= itself
        lost[:, row, edge[pair]] -= itself * (_own(along, rows) - whole[..., 0])[:, row]
        rest = 1 - mass
        lost = torch.where(rest > LITTLE, lost / rest.clamp(min=LITTLE), 0.0).sum(1)
        inside = torch.zeros(n_sets, pattern.shape[-1], dtype=torch.bool, device=rows.device)
        inside[edge, key] = True
        for some in torch.split((rest <= LITTLE).nonzero(), max(1, SCORES // pattern.shape[-1])):
            head, row, cut = some.unbind(1)
            stays = ~inside[cut]
            stays[torch.arange(len(cut), device=cut.device), rows[row]] |= keep[cut]
            left = pattern[head, row] * stays
            after = (left * along[head, row]).sum(-1) / left.sum(-1)
            lost.index_put_((head, cut), whole[head, row, 0] - after.nan_to_num(0.0), accumulate=True)
        total += lost
    return total


LITTLE = 1e-3  # of a row, which is summed by itself


def _parts(of: Gradients, dtype: torch.dtype) -> Iterator[_Some]:
    q, k, v, g, device = of.q, of.k, of.v, of.g, of.q.device
    keys, values = (x.to(dtype).permute(1, 2, 0) for x in (k, v))  # [kv_head, d_head, key]
    step = max(1, SCORES // (q.shape[1] * len(k)))
    for of_class, rows in enumerate(of.readers):
        for some in torch.split(rows, step) if len(rows) else ():
            n, at = int(some[-1]) + 1, some.to(device)
            mine, slope = (x[at].to(dtype).transpose(0, 1) for x in (q, g))
            pattern = softmax(_by_kv_head(mine * q.shape[-1] ** -0.5, keys[..., :n]), Seen.of(of.mask(some, n)))
            yield _Some(of_class, at, pattern, _by_kv_head(slope, values[..., :n]))


def _own(x: Float[Tensor, "head some key"], rows: Int[Tensor, " some"]) -> Float[Tensor, "head some"]:
    """Of each row what it has at its own key."""
    return x.gather(2, rows.expand(len(x), -1)[..., None])[..., 0]


def _by_kv_head(x: Float[Tensor, "head row d_head"], y: Float[Tensor, "kv_head d_head key"]) -> Tensor:
    """Products [head row key]; heads of one kv_head beside each other in one row axis, so that y needs no copies."""
    return (x.reshape(len(y), -1, x.shape[-1]) @ y).view(*x.shape[:2], -1)
