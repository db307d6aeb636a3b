"""From cuts to attention masks: booleans (True = may look), or M itself where edges have weights.

M in the paper's softmax(QK^T / sqrt(d_k) + M)V is 0 where a boolean mask is True and -inf where it is False. An edge
of weight w has the entry log w.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.errors import InterventionError
from hookedvid.values.effects import Cut, Exit, by_heads
from hookedvid.values.layout import FrameBlendWarning, TokenLayout


class NoEdgeWarning(UserWarning):
    """A knockout that cuts no edge of an input, so that its run is the intact one."""


def cuts_any(layout: TokenLayout, cut: Cut) -> bool:
    """Whether there is an edge, of those that causality leaves, for a cut to change, without a mask.

    Of random edges: for the cut that they are as many as.
    """
    src, dst = layout.positions(cut.src), layout.positions(cut.dst)
    frames = layout.frames
    if cut.relation != "any":
        src, dst = src[frames[src] >= 0], dst[frames[dst] >= 0]
    if not len(src) or not len(dst):
        return False
    if cut.relation == "other_frame":
        later, earlier = dst[frames[dst] != frames[src[0]]], src[frames[src] != frames[dst[-1]]]
        return bool((later > src[0]).any() or (earlier < dst[-1]).any())
    first, last = src[:1], dst[-1:]
    if cut.relation == "same_frame":
        n = int(frames.max()) + 1
        first = torch.full((n,), layout.n_tokens).scatter_reduce(0, frames[src], src, "amin")
        last = torch.full((n,), -1).scatter_reduce(0, frames[dst], dst, "amax")
    return bool((first < last + (not cut.keep_self)).any())


def warn_of_idle(cuts: Iterable[Cut], layouts: Sequence[TokenLayout], grows: bool = True) -> None:
    """Warn of cuts that change no edge of one of the inputs; where it `grows`, a token still to come is counted in.

    It is no error: a clip of one frame has no other frame to cut, and its study goes on.
    """
    for cut in {c: c for c in cuts}.values():
        some = [cuts_any(x, cut) or (grows and not cut.drawn and cuts_any(x.extend(1), cut)) for x in layouts]
        if not all(some):
            of = "" if len(some) == 1 else f" in {some.count(False)} of {len(some)} items"
            warnings.warn(
                f"{cut.label} cuts nothing{of}: no position of its destination may look at one of its source",
                NoEdgeWarning,
                stacklevel=3,
            )


def blocked(
    layout: TokenLayout,
    cut: Cut,
    query: Int[Tensor, " query"] | None = None,
    key: Int[Tensor, " key"] | None = None,
) -> Bool[Tensor, "query key"]:
    """Pairs that a cut is about, causality aside; `query` and `key` are layout positions (default: all)."""
    positions = torch.arange(layout.n_tokens)
    query = positions if query is None else query
    key = positions if key is None else key
    if cut.drawn:
        return _drawn(layout, cut)[query[:, None], key[None]]
    dst, src = layout.mask(cut.dst), layout.mask(cut.src)
    pairs = dst[query][:, None] & src[key][None]
    if cut.relation != "any":
        if layout.blend > 1:
            warnings.warn(
                f"{cut.name or cut.relation} on tokens that mix {layout.blend} frames each cannot "
                "separate those frames",
                FrameBlendWarning,
                stacklevel=3,
            )
        frames = layout.frames
        q, k = frames[query][:, None], frames[key][None]
        same = q == k
        pairs &= (q >= 0) & (k >= 0) & (same if cut.relation == "same_frame" else ~same)
    if cut.keep_self and bool((dst & src).any()):
        pairs &= query[:, None] != key[None]
    return pairs


def _drawn(layout: TokenLayout, cut: Cut) -> Bool[Tensor, "pos pos"]:
    """As many causal pairs of the prompt as there are of the cut's own, never a self-pair."""
    assert cut.seed is not None
    n = layout.n_prompt
    prompt = torch.arange(n)
    causal = torch.ones(n, n, dtype=torch.bool).tril(-1)
    like = blocked(layout, replace(cut, seed=None), prompt, prompt)
    count = int((like & causal.logical_or(torch.eye(n, dtype=torch.bool))).sum())
    edges = causal.nonzero()
    if count > len(edges):
        raise InterventionError(f"{cut.label}: {count} edges to cut, but the prompt has {len(edges)} to draw from")
    drawn = edges[torch.randperm(len(edges), generator=torch.Generator().manual_seed(cut.seed))[:count]]
    pairs = torch.zeros(layout.n_tokens, layout.n_tokens, dtype=torch.bool)
    pairs[drawn[:, 0], drawn[:, 1]] = True
    return pairs


def allowed(
    layout: TokenLayout,
    cuts: Sequence[Cut] = (),
    query: Int[Tensor, " query"] | None = None,
    key: Int[Tensor, " key"] | None = None,
) -> Bool[Tensor, "query key"]:
    """What each query may look at: causal, minus what cuts of all heads remove; -1 is padding, seen by nobody."""
    positions = torch.arange(layout.n_tokens)
    query = positions if query is None else query
    key = positions if key is None else key
    may = (key[None] <= query[:, None]) & (key >= 0)[None]
    query, key = query.clamp(min=0), key.clamp(min=0)
    for cut in cuts:
        assert cut.heads is None
        if cut.removes:
            may &= ~blocked(layout, cut, query, key)
    return may


def mask_of(
    layout: TokenLayout,
    cuts: Sequence[Cut] = (),
    query: Int[Tensor, " query"] | None = None,
    key: Int[Tensor, " key"] | None = None,
) -> Bool[Tensor, "query key"] | Float[Tensor, "query key"]:
    """The mask of heads under these cuts: `allowed`, or M in float64 where edges are left with a weight."""
    may = allowed(layout, cuts, query, key)
    weighted = [cut for cut in cuts if not cut.removes]
    if not weighted:
        return may
    query, key = ((torch.arange(layout.n_tokens) if x is None else x).clamp(min=0) for x in (query, key))
    m = torch.zeros(may.shape, dtype=torch.float64).masked_fill(~may, float("-inf"))
    for cut in weighted:
        m = torch.where(may & blocked(layout, cut, query, key), m + log_weight(cut), m)
    return m


def masks_of(
    layout: TokenLayout,
    cuts: Sequence[Cut],
    heads: Sequence[int],
    query: Int[Tensor, " query"] | None = None,
    key: Int[Tensor, " key"] | None = None,
) -> Bool[Tensor, "#head query key"] | Float[Tensor, "#head query key"]:
    """`mask_of` of each head, or one for all of them where they are alike."""
    groups = by_heads(cuts, heads)
    each = same_type([mask_of(layout, mine, query, key) for _, mine in groups])
    if len(each) == 1:
        return each[0][None]
    of_head = {place: i for i, (places, _) in enumerate(groups) for place in places}
    return torch.stack(each)[[of_head[place] for place in range(len(heads))]]


def same_type(masks: Sequence[Tensor]) -> list[Tensor]:
    """The masks, all as M if one of them is."""
    kinds = {m.dtype for m in masks} - {torch.bool}
    return [m if m.dtype in kinds or not kinds else as_m(m, *kinds) for m in masks]


def as_m(
    mask: Bool[Tensor, "*head query key"] | Float[Tensor, "*head query key"], dtype: torch.dtype
) -> Float[Tensor, "*head query key"]:
    """M of a mask."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))
    return mask.to(dtype)


def visible(
    mask: Bool[Tensor, "*head query key"] | Float[Tensor, "*head query key"],
) -> Bool[Tensor, "*head query key"]:
    """Who may look, of a mask."""
    return mask if mask.dtype == torch.bool else mask > float("-inf")


def masked(
    scores: Float[Tensor, "*batch query key"],
    mask: Bool[Tensor, "*some query key"] | Float[Tensor, "*some query key"],
) -> Float[Tensor, "*batch query key"]:
    """Scores with M added."""
    return scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.to(scores.dtype)


def log_weight(cut: Cut) -> Float[Tensor, ""]:
    """The logarithm of a cut's weight, in float64.

    A tensor's 0 counts as 1e-30, which no sum shows: its gradient there is what it is at weights above, not NaN.
    """
    weight = torch.as_tensor(cut.weight, dtype=torch.float64, device="cpu")
    least = 1e-30
    return torch.where(weight < least, weight - weight.detach() + least, weight).log()


def leavers(layout: TokenLayout, exit: Exit) -> Bool[Tensor, " pos"]:
    """Positions that an exit is about.

    Raises:
        InterventionError: Where text would leave.
    """
    gone = layout.mask(exit.drop)
    if bool((gone & layout.mask("text")).any()):
        raise InterventionError(
            f"{exit.label}: cannot drop {exit.drop!r}: it holds text, from which the answer is read; drop video "
            "positions"
        )
    return gone


def kept_positions(layout: TokenLayout, exits: Iterable[Exit]) -> Int[Tensor, " kept"]:
    """Positions left after exits of all they are about, ascending; all of them without one.

    Raises:
        InterventionError: Where text would leave.
    """
    kept = torch.ones(layout.n_tokens, dtype=torch.bool)
    for exit in exits:
        kept &= ~leavers(layout, exit)
    return kept.nonzero().squeeze(-1)
