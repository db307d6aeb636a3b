"""From patch features to decoder tokens: joining, pooling or merging, a two-layer MLP, newline tokens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hookedvid.errors import InputError
from hookedvid.nn.grids import Size, join, split
from hookedvid.nn.hooks import HookPoint
from hookedvid.nn.layers import LayerNorm, norm
from hookedvid.values.config import MergeConfig, ProjectorConfig


class Projector(nn.Module):
    """Every projector of the families; which steps exist is the config's choice, their order is fixed.

    [norm] → shuffle → merge → pool (if `pool_before`) → [LayerNorm] Linear GELU Linear → pool (otherwise). Features of
    earlier blocks of the tower (`n_deepstack`) have projectors of their own, `deepstack`.
    """

    def __init__(self, cfg: ProjectorConfig):
        super().__init__()
        self.cfg = cfg
        d_patch, d_hidden = cfg.d_in // cfg.shuffle**2, cfg.d_hidden or cfg.d_out
        self.ln_patch = None if cfg.patch_norm == "none" else norm(cfg.patch_norm, d_patch, cfg.norm_eps)
        self.ln = LayerNorm(cfg.d_in, cfg.norm_eps) if cfg.input_norm else None
        self.inp = nn.Linear(cfg.d_in, cfg.d_out if cfg.linear else d_hidden, bias=not cfg.linear)
        self.out = None if cfg.linear else nn.Linear(d_hidden, cfg.d_out)
        self.newline = nn.Parameter(torch.zeros(cfg.d_out)) if cfg.newline != "none" else None
        own = replace(cfg, n_deepstack=0, patch_norm="none", input_norm=True)
        self.deepstack = nn.ModuleList(Projector(own) for _ in range(cfg.n_deepstack))
        self.hook_in = HookPoint()  # [unit, patch, d_vision]
        self.hook_mlp_in = HookPoint()  # [unit, token, d_in], after shuffling, merging and pooling before the MLP
        if not cfg.linear:
            self.hook_pre = HookPoint()  # [unit, token, d_hidden]
            self.hook_post = HookPoint()  # [unit, token, d_hidden]
        self.hook_out = HookPoint()  # [unit, token, d_out], newlines not yet placed

    def forward(
        self, features: Float[Tensor, "unit patch d_vision"], sizes: Sequence[Size] = ()
    ) -> Float[Tensor, "unit token d_out"]:
        """Tokens of each unit in raster order, newlines not yet placed.

        Args:
            features: Patches in raster order.
            sizes: Of the videos, whose frames are squares of patches unless told.
        """
        cfg = self.cfg
        side = math.isqrt(features.shape[1])
        sizes = sizes or [(features.shape[0], side, side)]
        x = self.joined(self.hook_in(features), sizes)
        if cfg.merge is not None:
            x = merge_tokens(x, cfg.merge)
        if cfg.pool != "none" and cfg.pool_before:
            x = join([pool_patches(v, cfg, s[1:]) for v, s in zip(split(x, sizes), sizes, strict=True)], sizes)
        x = self.hook_mlp_in(x)
        x = self.inp(x if self.ln is None else self.ln(x))
        if self.out is not None:
            x = self.out(self.hook_post(F.gelu(self.hook_pre(x))))
        if cfg.pool != "none" and not cfg.pool_before:
            x = join([pool_patches(v, cfg, s[1:]) for v, s in zip(split(x, sizes), sizes, strict=True)], sizes)
        return self.hook_out(x)

    def joined(
        self, x: Float[Tensor, "unit patch d_vision"], sizes: Sequence[Size]
    ) -> Float[Tensor, "unit cell d_joined"]:
        """Patches normed and joined into cells, where they are; what is merged or pooled then."""
        x = x if self.ln_patch is None else self.ln_patch(x)
        k = self.cfg.shuffle
        if k == 1:
            return x
        return join([shuffle_patches(v, k, s[1:]) for v, s in zip(split(x, sizes), sizes, strict=True)], sizes)

    def videos(self, tokens: Float[Tensor, "unit token d_out"], sizes: Sequence[Size]) -> list[Tensor]:
        """Each video's part [unit, token, d_out] of what `forward` gave."""
        return split(tokens, [(t, *self.cfg.cells(h, w)) for t, h, w in sizes])

    def pack(self, tokens: Float[Tensor, "frame token d_out"]) -> Float[Tensor, "video_pos d_out"]:
        """One video's tokens in the order the decoder reads them, newlines in place."""
        if self.newline is None:
            return tokens.flatten(0, 1)
        n_frames, n_tokens, d = tokens.shape
        if self.cfg.newline == "once":
            return torch.cat([tokens.flatten(0, 1), self.newline[None]])
        per_frame = math.isqrt(n_tokens) if self.cfg.newline == "row" else 1
        rows = tokens.view(n_frames * per_frame, -1, d)
        return torch.cat([rows, self.newline.expand(len(rows), 1, d)], dim=1).flatten(0, 1)


def pool_patches(
    x: Float[Tensor, "unit patch d"], cfg: ProjectorConfig, grid: tuple[int, ...] = ()
) -> Float[Tensor, "unit token d"]:
    """Average and max pooling floor the side (27 → 13), bilinear resizing ceils it (27 → 14).

    `grid` is rows and columns, a square unless told.
    """
    rows, columns = grid or (math.isqrt(x.shape[1]),) * 2
    cells = x.transpose(1, 2).unflatten(2, (rows, columns))
    if cfg.pool == "bilinear":
        cells = F.interpolate(cells, size=list(cfg.cells(rows, columns)), mode="bilinear")
    else:
        cells = (F.avg_pool2d if cfg.pool == "average" else F.max_pool2d)(cells, cfg.pool_stride)
    # In memory as transformers leaves it: a Linear in bfloat16 rounds a strided input differently.
    return cells.flatten(2).transpose(1, 2).contiguous()


def shuffle_patches(
    x: Float[Tensor, "unit patch d"], k: int, grid: tuple[int, ...] = ()
) -> Float[Tensor, "unit token d_joined"]:
    """Squares of k x k patches become one token, channels ordered (dy, dx, channel): `ps_version` v2 upstream.

    `grid` is rows and columns, a square unless told.
    """
    rows, columns = grid or (math.isqrt(x.shape[1]),) * 2
    cells = x.unflatten(1, (rows // k, k, columns // k, k))
    return cells.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


class Pairs(NamedTuple):
    """What a round of merging does to the tokens of each clip, counted among those at even places (A) or odd ones (B).

    Attributes:
        merged: The A that join a B, the most similar first.
        into: The B of each.
        rest: The other A, which come first afterwards; all B follow.
    """

    merged: Int[Tensor, "clip r"]
    into: Int[Tensor, "clip r"]
    rest: Int[Tensor, "clip rest"]


def merge_tokens(
    x: Float[Tensor, "frame patch d"], cfg: MergeConfig, on_round: Callable[[Pairs], object] | None = None
) -> Float[Tensor, "frame token d"]:
    """Clips of frames shrunk to `tokens_per_clip` tokens by averaging the most similar pairs, round by round.

    In each round tokens at even places (A) look for their most similar token at odd places (B), by cosine of
    the mean over `metric_heads` parts of the channels; the r most similar A join their B, weighted by how
    many tokens each already holds. Unmerged A come first, then B. Source: HiCo in InternVideo2.5.

    Args:
        x: Tokens of frames.
        cfg: The merging.
        on_round: Is given the pairs of each round.
    """
    n_frames = x.shape[0]
    if n_frames % cfg.frames_per_clip:
        raise InputError(
            f"this model merges clips of {cfg.frames_per_clip} frames, and {n_frames} frames were given; "
            f"use a multiple of {cfg.frames_per_clip}"
        )
    clips = x.reshape(n_frames // cfg.frames_per_clip, -1, x.shape[-1])
    size = clips.new_ones(*clips.shape[:2], 1)
    while clips.shape[1] > cfg.tokens_per_clip:
        r = min(clips.shape[1] // 2, clips.shape[1] - cfg.tokens_per_clip)
        pairs = _pairs(clips, r, cfg.metric_heads)
        if on_round is not None:
            on_round(pairs)
        total = _merged(size, pairs)
        clips, size = _merged(clips * size, pairs) / total, total
    return clips.reshape(n_frames, cfg.tokens_per_frame, -1)


def merged_into(x: Float[Tensor, "frame patch d"], cfg: MergeConfig) -> Int[Tensor, "frame patch"]:
    """The number, through all clips, of the token that `merge_tokens` makes each one a part of."""
    rounds = list[Pairs]()
    merge_tokens(x, cfg, rounds.append)
    n_clips = len(x) // cfg.frames_per_clip
    token = torch.arange(cfg.frames_per_clip * x.shape[1], device=x.device).repeat(n_clips, 1)
    for merged, into, rest in rounds:
        n_rest = rest.shape[1]
        after = torch.empty(n_clips, n_rest + merged.shape[1], dtype=torch.long, device=x.device)
        after.scatter_(1, rest, torch.arange(n_rest, device=x.device).repeat(n_clips, 1))
        after.scatter_(1, merged, n_rest + into)
        of_even = after.gather(1, (token // 2).clamp(max=after.shape[1] - 1))
        token = torch.where(token % 2 == 0, of_even, n_rest + token // 2)
    first = torch.arange(n_clips, device=x.device)[:, None] * cfg.tokens_per_clip
    return (first + token).view(len(x), -1)


def _pairs(x: Float[Tensor, "clip token d"], r: int, metric_heads: int) -> Pairs:
    metric = x.unflatten(-1, (metric_heads, -1)).mean(2)
    metric = metric / metric.norm(dim=-1, keepdim=True)
    similarity, partner = (metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)).max(-1)
    order = similarity.argsort(dim=-1, descending=True)
    merged = order[:, :r]
    return Pairs(merged, partner.gather(1, merged), order[:, r:])


def _merged(t: Float[Tensor, "clip token width"], pairs: Pairs) -> Float[Tensor, "clip fewer width"]:
    """Each B with the sum of the A that join it, behind the other A."""
    merged, into, rest = (i[..., None].expand(-1, -1, t.shape[-1]) for i in pairs)
    a, b = t[:, ::2], t[:, 1::2]
    return torch.cat([a.gather(1, rest), b.scatter_add(1, into, a.gather(1, merged))], dim=1)
