"""From interventions to boolean attention masks (True = may look).

M in the paper's softmax(QK^T / sqrt(d_k) + M)V is 0 where a mask here is True and -inf where it is False.
"""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hookedvid.errors import InterventionError
from hookedvid.values.interventions import EarlyExit, Edit, Intervention, Knockout, LayerRange, Patch, RandomEdges
from hookedvid.values.layout import FrameBlendWarning, TokenLayout


class NoEdgeWarning(UserWarning):
    """A knockout that cuts no edge of an input, so that its run is the intact one."""


def cuts_any(layout: TokenLayout, knockout: Knockout) -> bool:
    """Whether a knockout cuts an edge that causality leaves, without a mask."""
    src, dst = layout.positions(knockout.src), layout.positions(knockout.dst)
    frames = layout.frames
    if knockout.relation != "any":
        src, dst = src[frames[src] >= 0], dst[frames[dst] >= 0]
    if not len(src) or not len(dst):
        return False
    if knockout.relation == "other_frame":
        later, earlier = dst[frames[dst] != frames[src[0]]], src[frames[src] != frames[dst[-1]]]
        return bool((later > src[0]).any() or (earlier < dst[-1]).any())
    first, last = src[:1], dst[-1:]
    if knockout.relation == "same_frame":
        n = int(frames.max()) + 1
        first = torch.full((n,), layout.n_tokens).scatter_reduce(0, frames[src], src, "amin")
        last = torch.full((n,), -1).scatter_reduce(0, frames[dst], dst, "amax")
    return bool((first < last + (not knockout.keep_self)).any())


def warn_of_idle(interventions: Sequence[Intervention], layouts: Sequence[TokenLayout]) -> None:
    """Warn of knockouts that cut no edge of one of the inputs, a token still to be generated counted in.

    It is no error: a clip of one frame has no other frame to cut, and its study goes on.
    """
    cuts = [k for k in interventions if isinstance(k, Knockout | RandomEdges)]
    for k in {k.at(LayerRange()): k for k in cuts}.values():
        one = k if isinstance(k, Knockout) else k.like
        some = [cuts_any(x, one) or (one is k and cuts_any(x.extend(1), one)) for x in layouts]
        if not all(some):
            of = "" if len(some) == 1 else f" in {some.count(False)} of {len(some)} items"
            warnings.warn(
                f"{k.label()} cuts nothing{of}: no position of its destination may look at one of its source",
                NoEdgeWarning,
                stacklevel=3,
            )


def blocked(
    layout: TokenLayout,
    knockout: Knockout,
    query: Int[Tensor, " query"] | None = None,
    key: Int[Tensor, " key"] | None = None,
) -> Bool[Tensor, "query key"]:
    """Pairs a knockout cuts, causality aside; `query` and `key` are layout positions (default: all)."""
    positions = torch.arange(layout.n_tokens)
    query = positions if query is None else query
    key = positions if key is None else key
    dst, src = layout.mask(knockout.dst), layout.mask(knockout.src)
    cut = dst[query][:, None] & src[key][None]
    if knockout.relation != "any":
        if layout.blend > 1:
            warnings.warn(
                f"{knockout.name or knockout.relation} on tokens that mix {layout.blend} frames each cannot "
                "separate those frames",
                FrameBlendWarning,
                stacklevel=3,
            )
        frames = layout.frames
        q, k = frames[query][:, None], frames[key][None]
        same = q == k
        cut &= (q >= 0) & (k >= 0) & (same if knockout.relation == "same_frame" else ~same)
    if knockout.keep_self and bool((dst & src).any()):
        cut &= query[:, None] != key[None]
    return cut


def random_blocked(layout: TokenLayout, control: RandomEdges) -> Bool[Tensor, "pos pos"]:
    """The pairs a random control cuts: as many causal ones of the prompt as its knockout does, never a self-pair."""
    n = layout.n_prompt
    prompt = torch.arange(n)
    causal = torch.ones(n, n, dtype=torch.bool).tril(-1)
    count = int(
        (blocked(layout, control.like, prompt, prompt) & causal.logical_or(torch.eye(n, dtype=torch.bool))).sum()
    )
    edges = causal.nonzero()
    if count > len(edges):
        raise InterventionError(
            f"{control.label()}: {count} edges to cut, but the prompt has {len(edges)} to draw from"
        )
    drawn = edges[torch.randperm(len(edges), generator=torch.Generator().manual_seed(control.seed))[:count]]
    cut = torch.zeros(layout.n_tokens, layout.n_tokens, dtype=torch.bool)
    cut[drawn[:, 0], drawn[:, 1]] = True
    return cut


def allowed(
    layout: TokenLayout,
    knockouts: Sequence[Knockout | RandomEdges] = (),
    query: Int[Tensor, " query"] | None = None,
    key: Int[Tensor, " key"] | None = None,
) -> Bool[Tensor, "query key"]:
    """What each query may look at: causal, minus every knockout; position -1 is padding, seen by nobody."""
    positions = torch.arange(layout.n_tokens)
    query = positions if query is None else query
    key = positions if key is None else key
    may = (key[None] <= query[:, None]) & (key >= 0)[None]
    query, key = query.clamp(min=0), key.clamp(min=0)
    for k in knockouts:
        if isinstance(k, RandomEdges):
            may &= ~random_blocked(layout, k)[query[:, None], key[None]]
        else:
            may &= ~blocked(layout, k, query, key)
    return may


def active(interventions: Sequence[Intervention], n_layers: int) -> list[tuple[Knockout | RandomEdges, ...]]:
    """The knockouts at work in each block. Raises InterventionError for one that is at work in none."""
    knockouts = [(k, set(k.layers.layers(n_layers))) for k in interventions if isinstance(k, Knockout | RandomEdges)]
    for k, layers in knockouts:
        if not layers:
            raise InterventionError(
                f"{k.label()}: layers {k.layers} hold none of this model's {n_layers} blocks, numbered 0 to "
                f"{n_layers - 1}"
            )
    return [tuple(k for k, layers in knockouts if i in layers) for i in range(n_layers)]


def first_layer(interventions: Sequence[Intervention], n_layers: int) -> int:
    """The first block an intervention changes: all before it compute what the intact model does. n_layers if none."""
    touched = [i for i, knockouts in enumerate(active(interventions, n_layers)) if knockouts]
    touched += [i.layer for i in interventions if isinstance(i, EarlyExit | Patch | Edit)]
    return min(touched, default=n_layers)


def kept_positions(layout: TokenLayout, exit: EarlyExit | None) -> Int[Tensor, " kept"]:
    """Positions left after an exit, ascending; all of them without one.

    Raises InterventionError where text would leave.
    """
    if exit is None:
        return torch.arange(layout.n_tokens)
    gone = layout.mask(exit.drop)
    if bool((gone & layout.mask("text")).any()):
        raise InterventionError(
            f"EarlyExit cannot drop {exit.drop!r}: it holds text, from which the answer is read; drop video positions"
        )
    return (~gone).nonzero().squeeze(-1)
