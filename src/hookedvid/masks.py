"""From interventions to boolean attention masks (True = may look).

M in the paper's softmax(QK^T / sqrt(d_k) + M)V is 0 where a mask here is True and -inf where it is False.
"""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hookedvid.errors import InterventionError
from hookedvid.interventions import EarlyExit, Edit, Intervention, Knockout, Patch, RandomEdges
from hookedvid.layout import FrameBlendWarning, TokenLayout


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
    """The knockouts at work in each block."""
    knockouts = [(k, set(k.layers.layers(n_layers))) for k in interventions if isinstance(k, Knockout | RandomEdges)]
    return [tuple(k for k, layers in knockouts if i in layers) for i in range(n_layers)]


def first_layer(interventions: Sequence[Intervention], n_layers: int) -> int:
    """The first block an intervention changes: all before it compute what the intact model does. n_layers if none."""
    touched = [i for i, knockouts in enumerate(active(interventions, n_layers)) if knockouts]
    touched += [i.layer for i in interventions if isinstance(i, EarlyExit | Patch | Edit)]
    return min(touched, default=n_layers)


def kept_positions(layout: TokenLayout, exit: EarlyExit | None) -> Int[Tensor, " kept"]:
    """Positions left after an exit, ascending; all of them without one."""
    gone = layout.mask(exit.drop) if exit else torch.zeros(layout.n_tokens, dtype=torch.bool)
    return (~gone).nonzero().squeeze(-1)
