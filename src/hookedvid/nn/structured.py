"""Attention under knockouts without a query x key mask: who sees whom, as a short list of kernel calls.

Queries are grouped by what knockouts let them see (a frame, the text), and each group calls the kernel with its own
keys. What leaving keys out cannot say, causality inside a group and a token's view of itself, takes a mask of the
group's rows. Weights of edges are a row of numbers over a group's keys, from which a call makes its mask when it runs.
`masks` defines what is allowed; hook points, and which path a layer takes, are in `nn.attention`.

Axis words: batch query key head kv_head d_head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.values.effects import Cut
from hookedvid.values.layout import TokenLayout
from hookedvid.values.masks import as_m, blocked, log_weight, masked, same_type, visible

# Rows of one masked call. Longer ones would compute more pairs after the query, shorter ones fill the kernel less
# (512 rows with a mask cost 1.2 of a causal call, performance facts, section 4).
ROWS = 512
# Pairs a call may compute in vain before it is cut in two: the triangle over the diagonal of ROWS rows.
WASTE = ROWS * ROWS // 2
# Groups of one shape share a call while their gathered keys stay within this many copies of all keys.
COPIES = 4
# Numbers of a score matrix made at once where no kernel gives the normaliser.
SCORES = 1 << 25

Places = slice | Tensor  # one run of places, or any
# Queries' and keys' places, how many keys are open and what M is there (None: 0), who sees the others or what M is
# there, whether the kernel's causality does.
_Block = tuple[np.ndarray, np.ndarray, int, np.ndarray | None, np.ndarray | None, bool]


class Call(NamedTuple):
    """Kernel calls of one shape: `n` groups of queries, each with its own keys, the same mask for all.

    The first `n_open` keys of a group are seen by all its rows; `local` says who sees the others (None: all). Where
    edges have weights, `local` is M in float64, and `open` what each row's M is at the open keys (None: 0). `causal` is
    the kernel's own causality: as many keys as rows, the i-th row sees the first i. No key: zeros.
    """

    n: int
    rows: Places
    keys: Places
    n_rows: int
    n_keys: int
    n_open: int
    local: Bool[Tensor, "row local"] | Float[Tensor, "row local"] | None
    causal: bool
    open: Float[Tensor, " open"] | None = None

    def mask(self) -> Bool[Tensor, "row key"] | Float[Tensor, "row key"] | None:
        """The mask of the group's rows; None where the kernel needs none."""
        if self.open is None:
            plain = self.local is None or self.local.dtype == torch.bool
            return None if self.local is None else F.pad(self.local, (self.n_open, 0), value=plain)
        opened = self.open.expand(self.n_rows, -1)
        return opened if self.local is None else torch.cat([opened, as_m(self.local, opened.dtype)], 1)


@dataclass(frozen=True, eq=False)
class Structure:
    """Attention of `n_query` queries to `n_key` keys as kernel calls; `edges` counts the pairs allowed.

    `order` puts the calls' rows, one after the other, in the queries' order.
    """

    n_query: int
    n_key: int
    edges: int
    calls: tuple[Call, ...]
    order: Places

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Structure":
        """The same with its indices and masks on a device; by this signature accelerate moves it too."""
        device = torch.device(device)
        calls = (Call(*[_on(device, x) for x in call]) for call in self.calls)
        return replace(self, calls=tuple(calls), order=_on(device, self.order))

    def attend(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key kv_head d_head"],
        v: Float[Tensor, "batch key kv_head d_head"],
    ) -> Float[Tensor, "batch query head d_head"]:
        """What `nn.attention.attend` gives with the dense mask, sums in another order; empty rows are zero.

        Without knockouts it is the same call, bit for bit. Tensors lie on the structure's device.
        """
        z = [_attend(call, q, k, v) for call in self.calls]
        return _take(z[0] if len(z) == 1 else torch.cat(z, 1), self.order)

    def dense(self, device: torch.device | str = "cpu") -> Bool[Tensor, "query key"] | Float[Tensor, "query key"]:
        """The mask these calls amount to, on their device: the oracle's form, and what a hook on the mask is shown."""
        nobody = torch.zeros(self.n_query, self.n_key, dtype=torch.bool, device=device)
        whole, *masks = same_type([nobody, *(_whole(call, device) for call in self.calls)])
        for call, mask in zip(self.calls, masks, strict=True):
            rows, keys = (_index(x, device).view(call.n, -1) for x in (call.rows, call.keys))
            for r, c in zip(rows, keys, strict=True):
                whole[r[:, None], c[None]] = mask
        return whole


def _whole(call: Call, device: torch.device | str) -> Tensor:
    mask = call.mask()
    if mask is None:
        mask = torch.ones(call.n_rows, call.n_keys, dtype=torch.bool, device=device)
    return mask.tril() if call.causal else mask


def structure(
    layout: TokenLayout,
    cuts: Sequence[Cut] = (),
    query: Int[Tensor, " query"] | None = None,
    key: Int[Tensor, " key"] | None = None,
) -> Structure | None:
    """The calls that give attention under `cuts` of all heads; `query` and `key` are positions (default: all).

    None where only a dense mask will do: random edges, weights to differentiate in, padding (-1), positions that do not
    ascend, no position.
    """
    query, key = _positions(layout, query, key)
    if not _regular(cuts, query, key):
        return None
    edges, blocks, empty = 0, [], []
    for group in _groups(layout, cuts, query, key):
        edges += group.edges
        alive = (group.n_seen > 0) | (group.own >= 0)
        empty.append(group.rows[~alive])
        if alive.any():
            blocks += _blocks(group.only(alive), key.numpy())
    if any(map(len, empty)):
        blocks.append((np.concatenate(empty), empty[0][:0], 0, None, None, False))
    calls = sorted(_calls(blocks, len(key)), key=lambda c: int(_index(c.rows)[0]))
    order = _places(torch.cat([_index(c.rows) for c in calls]).argsort().numpy())
    return Structure(len(query), len(key), edges, tuple(calls), order)


def n_edges(
    layout: TokenLayout,
    cuts: Sequence[Cut] = (),
    query: Int[Tensor, " query"] | None = None,
    key: Int[Tensor, " key"] | None = None,
) -> int | None:
    """How many pairs `structure` allows, None where it is None; no calls are made."""
    query, key = _positions(layout, query, key)
    return sum(g.edges for g in _groups(layout, cuts, query, key)) if _regular(cuts, query, key) else None


def _positions(layout: TokenLayout, query: Tensor | None, key: Tensor | None) -> tuple[Tensor, Tensor]:
    every = torch.arange(layout.n_tokens)
    return every if query is None else query, every if key is None else key


# Down to the calls in numpy: many small steps, of which each costs torch several times as much.


class _Kinds(NamedTuple):
    """A number for what cuts say of each query and key; for each pair of numbers, M of others and of a token itself."""

    of_query: np.ndarray
    of_key: np.ndarray
    m: np.ndarray
    m_self: np.ndarray


def _kinds(layout: TokenLayout, cuts: Sequence[Cut], query: Tensor, key: Tensor) -> _Kinds:
    related = [c for c in cuts if c.relation != "any"]
    frames = layout.frames.numpy() + 1 if related else np.zeros(0)
    for c in related if layout.blend > 1 else ():
        blocked(layout, c, query[:0], key[:0])  # no pair; it warns that frames are blended
    # 0 = not selected, else a number that cuts between frames compare.
    marks = [[layout.mask(s).numpy() * (frames if c in related else 1) for s in (c.dst, c.src)] for c in cuts]
    of_query, some_query = _numbered([dst[query.numpy()] for dst, _ in marks], len(query))
    of_key, some_key = _numbered([src[key.numpy()] for _, src in marks], len(key))
    m = np.zeros((len(some_query), len(some_key)))
    m_self = m.copy()
    for c, (dst, src) in zip(cuts, marks, strict=True):
        a, b = dst[query.numpy()[some_query]][:, None], src[key.numpy()[some_key]][None]
        pairs = (a > 0) & (b > 0)
        if c.relation != "any":
            pairs &= (a == b) if c.relation == "same_frame" else (a != b)
        less = -np.inf if c.removes else float(log_weight(c))
        m[pairs] += less
        if not c.keep_self:
            m_self[pairs] += less
    return _Kinds(of_query, of_key, m, m_self)


def _numbered(marks: Sequence[np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    """A number for each of `n` places, alike where all marks are, and one place of each number."""
    number, place = np.zeros(n, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for m in marks:
        _, place, number = np.unique(number * (int(m.max()) + 1) + m, return_index=True, return_inverse=True)
    return number, place


class _Group(NamedTuple):
    """Queries of one kind: the keys their kind sees, and M there; the queries' places, positions, how many of those
    keys are not after each; the place of its own key where it sees itself but not its kind, else -1; M of its own key.
    """  # noqa: D205

    seen: np.ndarray
    m: np.ndarray
    rows: np.ndarray
    pos: np.ndarray
    n_seen: np.ndarray
    own: np.ndarray
    m_own: np.ndarray

    def only(self, which: np.ndarray | slice) -> "_Group":
        return _Group(self.seen, self.m, *(x[which] for x in self[2:]))

    @property
    def edges(self) -> int:
        return int(self.n_seen.sum() + (self.own >= 0).sum())

    @property
    def weighted(self) -> bool:
        return bool(self.m.any() or self.m_own.any())


def _groups(layout: TokenLayout, cuts: Sequence[Cut], query: Tensor, key: Tensor) -> Iterator[_Group]:
    kinds = _kinds(layout, cuts, query, key)
    rows_of = np.split(kinds.of_query.argsort(kind="stable"), np.bincount(kinds.of_query).cumsum()[:-1])
    for kind, rows in enumerate(rows_of):
        yield _group(kinds, kind, rows, query.numpy()[rows], key.numpy())


def _group(kinds: _Kinds, kind: int, rows: np.ndarray, pos: np.ndarray, key: np.ndarray) -> _Group:
    m = kinds.m[kind][kinds.of_key]
    seen = (m > -np.inf).nonzero()[0]
    own = key.searchsorted(pos).clip(max=len(key) - 1)
    m_own = np.where(key[own] == pos, kinds.m_self[kind][kinds.of_key[own]], -np.inf)
    self_only = (m[own] == -np.inf) & (m_own > -np.inf)
    n_seen, m_own = key[seen].searchsorted(pos, side="right"), np.where(m_own > -np.inf, m_own, 0.0)
    return _Group(seen, m[seen], rows, pos, n_seen, np.where(self_only, own, -1), m_own)


def _blocks(group: _Group, key: np.ndarray) -> Iterator[_Block]:
    n = min(len(group.rows), len(group.seen))
    # Rows whose own position is the last key they see need no mask: the kernel's causality cuts the triangle.
    differs = (group.pos[:n] != key[group.seen[:n]]) | group.weighted
    at = int(differs.argmax()) if differs.any() else n
    if at:
        yield group.rows[:at], group.seen[:at], 0, None, None, True
    while at < len(group.rows):
        n_seen = group.n_seen[at : at + ROWS]
        waste = np.arange(1, len(n_seen) + 1) * n_seen - n_seen.cumsum()
        stop = at + int((waste <= WASTE).sum())
        yield _masked_block(group.only(slice(at, stop)), key)
        at = stop


def _masked_block(group: _Group, key: np.ndarray) -> _Block:
    extra = group.own[group.own >= 0]
    # Where no row has itself alone, one open key stays with the masked ones, so that none of their rows is empty. It
    # may be a row's own, which has a weight of its own.
    first, last = int(group.n_seen[0]), int(group.n_seen[-1])
    first -= not len(extra) or (group.weighted and first > 0)
    local_keys = np.concatenate([group.seen[first:last], extra])
    by_place = local_keys.argsort()
    local_keys, pos = local_keys[by_place], group.pos[:, None]
    local, itself = key[local_keys][None] <= pos, key[local_keys][None] == pos
    if len(extra):
        local &= (by_place < last - first)[None] | itself
    keys, opened = np.concatenate([group.seen[:first], local_keys]), None
    if group.weighted:
        m = np.concatenate([group.m[first:last], np.zeros(len(extra))])[by_place]
        local = np.where(local, np.where(itself, group.m_own[:, None], m), -np.inf)
        opened = group.m[:first]
        if (local == local[:1]).all():
            return group.rows, keys, len(keys), np.concatenate([opened, local[0]]), None, False
    elif local.all():
        return group.rows, keys, len(keys), None, None, False
    return group.rows, keys, first, opened, local, False


def _calls(blocks: Sequence[_Block], n_key: int) -> Iterator[Call]:
    alike: dict[tuple, list[_Block]] = {}
    for b in blocks:
        rows, keys, n_open, opened, local, causal = b
        shape = (len(rows), len(keys), n_open, *(x if x is None else x.tobytes() for x in (opened, local)), causal)
        alike.setdefault(shape, []).append(b)
    for same in alike.values():
        rows, keys, n_open, *given, causal = same[0]
        opened, local = (x if x is None else torch.from_numpy(x) for x in given)
        most = max(1, COPIES * n_key // max(1, len(keys)))
        for some in (same[i : i + most] for i in range(0, len(same), most)):
            at, to = _places(np.concatenate([b[0] for b in some])), _places(np.concatenate([b[1] for b in some]))
            yield Call(len(some), at, to, len(rows), len(keys), n_open, local, causal, opened)


def _attend(call: Call, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = _take(q, call.rows), _take(k, call.keys), _take(v, call.keys)
    if not call.n_keys:
        return torch.zeros_like(q)
    if call.n == 1 and call.local is None and call.open is None and (call.causal or call.n_rows == 1):
        # The very call of a run without knockouts.
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        causal = call.causal and call.n_rows > 1
        z = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
        return z.transpose(1, 2)
    batch, n_kv = len(q), k.shape[2]
    # Each kv_head's group of heads becomes the kernel's head axis, over which keys are repeated without a copy.
    q = q.unflatten(1, (call.n, -1)).unflatten(3, (n_kv, -1)).permute(0, 1, 3, 4, 2, 5).flatten(0, 2)
    k, v = (x.unflatten(1, (call.n, -1)).transpose(2, 3).flatten(0, 2)[:, None] for x in (k, v))
    if call.n_open > call.n_keys // 2 and _gives_lse(q, k, v):
        z = _merged(q, k, v, call.n_open, call.open, call.local)
    else:
        k, v = (x.expand(-1, q.shape[1], -1, -1) for x in (k, v))
        mask = call.mask()
        mask = mask if mask is None or mask.dtype == torch.bool else mask.to(q.dtype)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=call.causal)
    z = z.unflatten(0, (batch, call.n, n_kv)).permute(0, 1, 4, 2, 3, 5)
    return z.reshape(batch, call.n * call.n_rows, -1, z.shape[-1])


def _merged(q: Tensor, k: Tensor, v: Tensor, n_open: int, opened: Tensor | None, local: Tensor | None) -> Tensor:
    """Open keys with one row of M and all heads of a kv_head in one row axis, the others apart, then both together."""
    heads = q.shape[1]
    m = None if opened is None else opened.expand(q.shape[1] * q.shape[2], -1)
    z, lse = with_lse(q.flatten(1, 2)[:, None], k[:, :, :n_open], v[:, :, :n_open], m)
    z, lse = z[:, 0].unflatten(1, (heads, -1)), lse[:, 0].unflatten(1, (heads, -1))
    if local is None:
        return z
    k, v = (x[:, :, n_open:].expand(-1, heads, -1, -1) for x in (k, v))
    if local.dtype == torch.bool and torch.equal(local, torch.eye(*local.shape, dtype=torch.bool, device=local.device)):
        # Each row sees its own key alone, whose weight is 1: no kernel is needed.
        own = (q.to(lse.dtype) * k.to(lse.dtype)).sum(-1) * q.shape[-1] ** -0.5
        return merge(z, lse, v, own)
    return merge(z, lse, *with_lse(q, k, v, local))


def merge(z_a: Tensor, lse_a: Tensor, z_b: Tensor, lse_b: Tensor) -> Tensor:
    """Attention to the keys of a and b together, from outputs and log-sum-exps of each; zero where both are empty."""
    top = torch.maximum(lse_a, lse_b).detach()
    a, b = ((x - top.masked_fill(top == float("-inf"), 0.0)).exp()[..., None] for x in (lse_a, lse_b))
    total = (a + b).masked_fill_(a + b == 0, 1.0)
    return (z_a * a).addcmul_(z_b, b).div_(total).to(z_a.dtype)


def _gives_lse(*tensors: Tensor) -> bool:
    """Whether the kernel's own log-sum-exp is at hand: on CPUs, where no gradient is asked of it.

    A private op of torch, so its absence is allowed for: then a mask or explicit scores do.
    """
    graph = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    on_cpu = all(t.device.type == "cpu" for t in tensors)
    return on_cpu and not graph and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")


def with_lse(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, explicit: bool = False
) -> tuple[Tensor, Tensor]:
    """Attention [batch head query d_head] and the log-sum-exp of its scores [batch head query], -inf if empty.

    Args:
        q, k, v: [batch head query d_head], [batch head key d_head].
        mask: Booleans or M.
        explicit: By scores even where the kernel gives the log-sum-exp.
    """
    if not explicit and _gives_lse(q, k, v) and (mask is None or bool(visible(mask).any(-1).all())):
        bias = None if mask is None else as_m(mask, q.dtype)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=bias)
    precise = torch.promote_types(q.dtype, torch.float32)
    step = max(1, SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))
    parts = []
    for i in range(0, q.shape[2], step):
        # In float32 for half types, as fused kernels do: rounded scores would cost more than the merge is worth.
        scores = q[:, :, i : i + step].to(precise) @ k.transpose(2, 3).to(precise) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = masked(scores, mask[..., i : i + step, :])
        empty = (scores == float("-inf")).all(-1, keepdim=True)
        scores = scores.masked_fill(empty, 0.0)
        pattern = scores.softmax(-1).masked_fill(empty, 0.0).to(v.dtype)
        parts.append((pattern @ v, scores.logsumexp(-1).masked_fill(empty[..., 0], float("-inf"))))
    return torch.cat([z for z, _ in parts], 2), torch.cat([lse for _, lse in parts], 2)


def _regular(cuts: Sequence[Cut], *positions: Tensor) -> bool:
    ascend = all(len(p) and int(p[0]) >= 0 and bool((p.diff() > 0).all()) for p in positions)
    return ascend and not any(c.dense for c in cuts)


def _places(at: np.ndarray) -> Places:
    return slice(int(at[0]), int(at[-1]) + 1) if len(at) and (np.diff(at) == 1).all() else torch.from_numpy(at)


def _on(device: torch.device, x: Any) -> Any:
    return x.to(device) if isinstance(x, Tensor) else x


def _index(places: Places, device: torch.device | str = "cpu") -> Tensor:
    return torch.arange(places.start, places.stop, device=device) if isinstance(places, slice) else places


def _take(x: Tensor, places: Places) -> Tensor:
    return x[:, places] if isinstance(places, slice) else x.index_select(1, places)
