"""One vision transformer, which is every family's by configuration; each frame, or pair of frames, on its own.

Rows are patches in raster order. Videos of one size are [unit, pos, d_model], a unit being a frame or the frames that
one patch takes in. Videos of unequal sizes, which only towers read whose frames keep their shape, lie one after the
other in a single row [1, pos, d_model].
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hookedvid.nn.attention import Attention, AttnContext, Kernel
from hookedvid.nn.grids import Size, interpolated, join, patch_angles, patch_rows, split, units, unlike, windows
from hookedvid.nn.hooks import HookPoint
from hookedvid.nn.layers import MLP, GatedMLP, norm
from hookedvid.values.config import VisionConfig

Pixels = Float[Tensor, "frame 3 height width"] | Sequence[Float[Tensor, "_frame 3 _height _width"]]


class VisionBlock(nn.Module):
    """Pre-norm attention and feed-forward; `layer_scale` multiplies what each adds (InternViT)."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        rotary = cfg.rope_theta is not None
        self.ln1 = norm(cfg.norm, cfg.d_model, cfg.eps)
        self.attn = Attention(
            cfg.d_model, cfg.n_heads, cfg.n_heads, cfg.d_head, cfg.qkv_bias, True, rotary,
            "all" if cfg.qk_norm else "none", cfg.eps,
        )  # fmt: skip
        self.ln2 = norm(cfg.norm, cfg.d_model, cfg.eps)
        self.mlp = GatedMLP(cfg.d_model, cfg.d_mlp, cfg.act, bias=True) if cfg.gated else _mlp(cfg)
        self.scale1 = nn.Parameter(torch.ones(cfg.d_model)) if cfg.layer_scale else None
        self.scale2 = nn.Parameter(torch.ones(cfg.d_model)) if cfg.layer_scale else None
        self.hook_resid_pre = HookPoint()  # [unit, pos, d_model]
        self.hook_attn_out = HookPoint()  # [unit, pos, d_model]
        self.hook_resid_mid = HookPoint()  # [unit, pos, d_model]
        self.hook_mlp_out = HookPoint()  # [unit, pos, d_model]
        self.hook_resid_post = HookPoint()  # [unit, pos, d_model]

    def forward(self, resid: Float[Tensor, "unit pos d_model"], ctx: AttnContext) -> Float[Tensor, "unit pos d_model"]:
        """The residual stream after this block."""
        resid = self.hook_resid_pre(resid)
        attn_out = self.attn(resid, self.ln1, ctx)
        resid = resid + self.hook_attn_out(attn_out if self.scale1 is None else attn_out * self.scale1)
        resid = self.hook_resid_mid(resid)
        mlp_out = self.mlp(self.ln2(resid))
        resid = resid + self.hook_mlp_out(mlp_out if self.scale2 is None else mlp_out * self.scale2)
        return self.hook_resid_post(resid)


def _mlp(cfg: VisionConfig) -> MLP:
    return MLP(cfg.d_model, cfg.d_mlp, cfg.act)


class _Places(NamedTuple):
    """Of a run: what is added to patches, and contexts of attention everywhere and in windows."""

    added: Tensor | None
    whole: AttnContext
    windowed: AttnContext


class VisionTower(nn.Module):
    """Patches of preprocessed frames to features: the residual stream after the configured blocks."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.cfg = cfg
        if cfg.patch_frames == 1:
            self.patch_embed = nn.Conv2d(3, cfg.d_model, cfg.patch_size, stride=cfg.patch_size, bias=cfg.patch_bias)
        else:
            size = (cfg.patch_frames, cfg.patch_size, cfg.patch_size)
            self.patch_embed = nn.Conv3d(3, cfg.d_model, size, stride=size, bias=cfg.patch_bias)
        self.cls_token = nn.Parameter(torch.zeros(cfg.d_model)) if cfg.cls_token else None
        self.cls_angles = nn.Parameter(torch.zeros(cfg.d_head // 2)) if cfg.cls_token and cfg.rope_theta else None
        n_learned = 0 if cfg.positions == "none" else cfg.n_patches + (cfg.cls_token and cfg.positions == "learned")
        self.pos_embed = nn.Parameter(torch.zeros(n_learned, cfg.d_model)) if n_learned else None
        self.ln_pre = norm(cfg.norm, cfg.d_model, cfg.eps) if cfg.pre_norm else None
        self.blocks = nn.ModuleList(VisionBlock(cfg) for _ in range(cfg.n_layers))
        self.ln_final = norm(cfg.norm, cfg.d_model, cfg.eps) if cfg.final_norm else None
        self.hook_patch_embed = HookPoint()  # [unit, patch, d_model]
        self.hook_embed = HookPoint()  # [unit, pos, d_model], what block 0 reads
        self.hook_out = HookPoint()  # [unit, pos, d_model]

    def forward(
        self, pixels: Pixels, kernel: Kernel = "sdpa", on_level: Callable[[Tensor], object] | None = None
    ) -> Float[Tensor, "unit pos d_model"]:
        """Features of every position, the class token first where the tower has one.

        No norm follows the last block unless `final_norm` says so.

        Args:
            pixels: Of one video, or of several that may differ in size.
            kernel: Of attention.
            on_level: Is given the stream after each of the blocks `deepstack`, in their order. A list to fill would not
                do: a model that is spread over devices gives its modules copies of lists.
        """
        videos = [pixels] if isinstance(pixels, Tensor) else list(pixels)
        sizes = self.sizes(videos)
        x = self.hook_patch_embed(self._embedded(videos, sizes))
        if self.cls_token is not None:
            first = self.cls_token.expand(1, 1, -1)
            x = join([torch.cat([first.expand(len(v), -1, -1), v], 1) for v in split(x, sizes)], sizes)
        places = self._places(sizes, kernel, x)
        x = x if places.added is None else x + places.added
        x = self.hook_embed(x if self.ln_pre is None else self.ln_pre(x))
        for i, block in enumerate(self.blocks):
            x = block(x, places.windowed if self.cfg.window and i not in self.cfg.full_blocks else places.whole)
            if on_level is not None and i in self.cfg.deepstack:
                on_level(x)
        return self.hook_out(x if self.ln_final is None else self.ln_final(x))

    def sizes(self, videos: Sequence[Tensor]) -> list[Size]:
        """Steps, and rows and columns of patches, of each video."""
        patch, frames = self.cfg.patch_size, self.cfg.patch_frames
        return [(-(-len(v) // frames), v.shape[-2] // patch, v.shape[-1] // patch) for v in videos]

    def patches(
        self, features: Float[Tensor, "unit pos d_model"], sizes: Sequence[Size] = ()
    ) -> Float[Tensor, "unit patch d_model"]:
        """The features of patches, and of the class token where it is kept.

        Args:
            features: Of `forward`.
            sizes: Of the videos it read; asked for only where frames keep their shape.
        """
        if self.cls_token is None or self.cfg.cls_kept:
            return features
        if self.cfg.resize != "fit":
            return features[:, 1:]
        videos = split(features, sizes, extra=1)
        if self.cfg.cls_cut == "each_frame":
            return join([v[:, 1:] for v in videos], sizes)
        return join([self._released(v, *size) for v, size in zip(videos, sizes, strict=True)], sizes)

    def _released(self, rows: Tensor, steps: int, height: int, width: int) -> Float[Tensor, "unit patch d_model"]:
        """Rows of all frames in order, class tokens among them, from the second on: as many as there are patches.

        The published code's order counts: squares of patches that become one token.
        """
        side = self.cfg.multiple // self.cfg.patch_size
        blocks = torch.arange(height * width).view(height // side, side, width // side, side).transpose(1, 2).flatten()
        there = torch.cat([torch.zeros(1, dtype=torch.long), 1 + blocks]).to(rows.device)
        shifted = rows.index_select(1, there).flatten(0, 1)[1 : 1 + steps * height * width]
        return shifted.view(steps, height * width, -1).index_select(1, blocks.argsort().to(rows.device))

    def _embedded(self, videos: Sequence[Tensor], sizes: Sequence[Size]) -> Float[Tensor, "unit patch d_model"]:
        if self.cfg.resize != "fit":
            return self.patch_embed(torch.cat(list(videos))).flatten(2).transpose(1, 2)
        rows = join([patch_rows(v, self.cfg.patch_size, self.cfg.patch_frames) for v in videos], sizes)
        return F.linear(rows, self.patch_embed.weight.flatten(1), self.patch_embed.bias)

    def _places(self, sizes: Sequence[Size], kernel: Kernel, x: Tensor) -> _Places:
        cfg = self.cfg
        if cfg.resize != "fit":
            ctx = AttnContext(kernel=kernel)
            return _Places(self.pos_embed, ctx, ctx)
        # Of units that are alike, one stands for all.
        packed = unlike(sizes)
        of_row = list(sizes) if packed else [(1, *sizes[0][1:])]
        added = None
        if self.pos_embed is not None:
            added = torch.cat([interpolated(self.pos_embed, *s[1:]).to(x.dtype).repeat(s[0], 1) for s in of_row])
        extra = int(self.cls_token is not None)
        whole = AttnContext(*self._angles(of_row, x.device), kernel=kernel)
        if packed:
            whole = whole._replace(allowed=units([(t, 1, h * w + extra) for t, h, w in of_row]).to(x.device))
        windowed = whole._replace(allowed=windows(of_row, cfg.window).to(x.device)) if cfg.window else whole
        return _Places(added, whole, windowed)

    def _angles(self, sizes: Sequence[Size], device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Cosines and sines [1, pos, d_head] in float32, in which towers turn whatever the weights are."""
        cfg = self.cfg
        if cfg.rope_theta is None:
            return None, None
        first = [] if self.cls_angles is None else [self.cls_angles.float()[None]]
        each = [
            torch.cat([*first, patch_angles(cfg.rope_theta, cfg.d_head, h, w, device)]).repeat(t, 1)
            for t, h, w in sizes
        ]
        angles = torch.cat(each)
        angles = torch.cat([angles, angles], -1)[None]
        return angles.cos(), angles.sin()
