"""One vision transformer, which is CLIP's, SigLIP's or InternViT's by configuration; each frame on its own."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hookedvid.nn.attention import Attention, AttnContext, Kernel
from hookedvid.nn.hooks import HookPoint
from hookedvid.nn.layers import MLP, LayerNorm
from hookedvid.values.config import VisionConfig


class VisionBlock(nn.Module):
    """Pre-norm attention and feed-forward; `layer_scale` multiplies what each adds (InternViT)."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.ln1 = LayerNorm(cfg.d_model, cfg.eps)
        self.attn = Attention(cfg.d_model, cfg.n_heads, cfg.n_heads, cfg.d_head, cfg.qkv_bias, True, rotary=False)
        self.ln2 = LayerNorm(cfg.d_model, cfg.eps)
        self.mlp = MLP(cfg.d_model, cfg.d_mlp, cfg.act)
        self.scale1 = nn.Parameter(torch.ones(cfg.d_model)) if cfg.layer_scale else None
        self.scale2 = nn.Parameter(torch.ones(cfg.d_model)) if cfg.layer_scale else None
        self.hook_resid_pre = HookPoint()  # [frame, pos, d_model]
        self.hook_attn_out = HookPoint()  # [frame, pos, d_model]
        self.hook_resid_mid = HookPoint()  # [frame, pos, d_model]
        self.hook_mlp_out = HookPoint()  # [frame, pos, d_model]
        self.hook_resid_post = HookPoint()  # [frame, pos, d_model]

    def forward(self, resid: Float[Tensor, "frame pos d_model"], kernel: Kernel) -> Float[Tensor, "frame pos d_model"]:
        """The residual stream after this block."""
        resid = self.hook_resid_pre(resid)
        attn_out = self.attn(resid, self.ln1, AttnContext(kernel=kernel))
        resid = resid + self.hook_attn_out(attn_out if self.scale1 is None else attn_out * self.scale1)
        resid = self.hook_resid_mid(resid)
        mlp_out = self.mlp(self.ln2(resid))
        resid = resid + self.hook_mlp_out(mlp_out if self.scale2 is None else mlp_out * self.scale2)
        return self.hook_resid_post(resid)


class VisionTower(nn.Module):
    """Patches of preprocessed frames to features: the residual stream after the configured blocks."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.cfg = cfg
        self.patch_embed = nn.Conv2d(3, cfg.d_model, cfg.patch_size, stride=cfg.patch_size, bias=cfg.patch_bias)
        self.cls_token = nn.Parameter(torch.zeros(cfg.d_model)) if cfg.cls_token else None
        self.pos_embed = nn.Parameter(torch.zeros(cfg.n_patches + cfg.cls_token, cfg.d_model))
        self.ln_pre = LayerNorm(cfg.d_model, cfg.eps) if cfg.pre_norm else None
        self.blocks = nn.ModuleList(VisionBlock(cfg) for _ in range(cfg.n_layers))
        self.ln_final = LayerNorm(cfg.d_model, cfg.eps) if cfg.final_norm else None
        self.hook_patch_embed = HookPoint()  # [frame, patch, d_model]
        self.hook_embed = HookPoint()  # [frame, pos, d_model], what block 0 reads
        self.hook_out = HookPoint()  # [frame, pos, d_model]

    def forward(
        self, pixels: Float[Tensor, "frame 3 height width"], kernel: Kernel = "sdpa"
    ) -> Float[Tensor, "frame pos d_model"]:
        """Features of every position, the class token first where the tower has one.

        Patches are in raster order. No norm follows the last block unless `final_norm` says so.
        """
        x = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        x = self.hook_patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], 1, -1), x], dim=1)
        x = x + self.pos_embed
        x = self.hook_embed(x if self.ln_pre is None else self.ln_pre(x))
        for block in self.blocks:
            x = block(x, kernel)
        return self.hook_out(x if self.ln_final is None else self.ln_final(x))

    def patches(self, features: Float[Tensor, "frame pos d_model"]) -> Float[Tensor, "frame patch d_model"]:
        """The features of patches alone."""
        return features[:, 1:] if self.cls_token is not None else features
