"""From patch features to decoder tokens: pooling or merging, a two-layer MLP, newline tokens."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hookedvid.errors import InputError
from hookedvid.nn.hooks import HookPoint
from hookedvid.nn.layers import LayerNorm
from hookedvid.values.config import MergeConfig, ProjectorConfig


class Projector(nn.Module):
    """Every projector of the families; which steps exist is the config's choice, their order is fixed.

    shuffle → merge → pool (if `pool_before`) → [LayerNorm] Linear GELU Linear → pool (otherwise).
    """

    def __init__(self, cfg: ProjectorConfig):
        super().__init__()
        self.cfg = cfg
        self.ln = LayerNorm(cfg.d_in, eps=1e-5) if cfg.input_norm else None  # eps of nn.LayerNorm upstream
        self.inp = nn.Linear(cfg.d_in, cfg.d_out)
        self.out = nn.Linear(cfg.d_out, cfg.d_out)
        self.newline = nn.Parameter(torch.zeros(cfg.d_out)) if cfg.newline != "none" else None
        self.hook_in = HookPoint()  # [frame, patch, d_vision]
        self.hook_mlp_in = HookPoint()  # [frame, token, d_in], after shuffling, merging and pooling before the MLP
        self.hook_pre = HookPoint()  # [frame, token, d_out]
        self.hook_post = HookPoint()  # [frame, token, d_out]
        self.hook_out = HookPoint()  # [frame, token, d_out], newlines not yet placed

    def forward(self, features: Float[Tensor, "frame patch d_vision"]) -> Float[Tensor, "frame token d_out"]:
        """Tokens of each frame in raster order, newlines not yet placed."""
        cfg = self.cfg
        x = self.hook_in(features)
        if cfg.shuffle > 1:
            x = shuffle_patches(x, cfg.shuffle)
        if cfg.merge is not None:
            x = merge_tokens(x, cfg.merge)
        if cfg.pool != "none" and cfg.pool_before:
            x = pool_patches(x, cfg)
        x = self.hook_mlp_in(x)
        x = self.out(self.hook_post(F.gelu(self.hook_pre(self.inp(x if self.ln is None else self.ln(x))))))
        if cfg.pool != "none" and not cfg.pool_before:
            x = pool_patches(x, cfg)
        return self.hook_out(x)

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


def pool_patches(x: Float[Tensor, "frame patch d"], cfg: ProjectorConfig) -> Float[Tensor, "frame token d"]:
    """Average and max pooling floor the side (27 → 13), bilinear resizing ceils it (27 → 14)."""
    side = math.isqrt(x.shape[1])
    grid = x.transpose(1, 2).unflatten(2, (side, side))
    if cfg.pool == "bilinear":
        grid = F.interpolate(grid, size=[cfg.side(side)] * 2, mode="bilinear")
    else:
        grid = (F.avg_pool2d if cfg.pool == "average" else F.max_pool2d)(grid, cfg.pool_stride)
    # In memory as transformers leaves it: a Linear in bfloat16 rounds a strided input differently.
    return grid.flatten(2).transpose(1, 2).contiguous()


def shuffle_patches(x: Float[Tensor, "frame patch d"], k: int) -> Float[Tensor, "frame token d_joined"]:
    """Squares of k x k patches become one token, channels ordered (dy, dx, channel): `ps_version` v2 upstream."""
    side = math.isqrt(x.shape[1])
    grid = x.unflatten(1, (side // k, k, side // k, k))
    return grid.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)


def merge_tokens(x: Float[Tensor, "frame patch d"], cfg: MergeConfig) -> Float[Tensor, "frame token d"]:
    """Clips of frames shrunk to `tokens_per_clip` tokens by averaging the most similar pairs, round by round.

    In each round tokens at even places (A) look for their most similar token at odd places (B), by cosine of
    the mean over `metric_heads` parts of the channels; the r most similar A join their B, weighted by how
    many tokens each already holds. Unmerged A come first, then B. Source: HiCo in InternVideo2.5.
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
        clips, size = _merge_round(clips, size, r, cfg.metric_heads)
    return clips.reshape(n_frames, cfg.tokens_per_frame, -1)


def _merge_round(x: Tensor, size: Tensor, r: int, metric_heads: int) -> tuple[Tensor, Tensor]:
    metric = x.unflatten(-1, (metric_heads, -1)).mean(2)
    metric = metric / metric.norm(dim=-1, keepdim=True)
    similarity, partner = (metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)).max(-1)
    order = similarity.argsort(dim=-1, descending=True)
    merged, rest = order[:, :r], order[:, r:]
    into = partner.gather(1, merged)

    def join(t: Tensor) -> Tensor:
        a, b = t[:, ::2], t[:, 1::2]
        width = t.shape[-1]
        moved = a.gather(1, merged[..., None].expand(-1, -1, width))
        b = b.scatter_add(1, into[..., None].expand(-1, -1, width), moved)
        return torch.cat([a.gather(1, rest[..., None].expand(-1, -1, width)), b], dim=1)

    total = join(size)
    return join(x * size) / total, total
