"""One decoder block, which is Qwen2's, Qwen3's, Llama's or InternLM2's by configuration.

The blocks themselves stand at the root of the model (`blocks.3.attn.hook_z`): a nested root would corrupt
the names TransformerLens's tools look up.
"""

from jaxtyping import Float
from torch import Tensor, nn

from hookedvid.nn.attention import Attention, AttnContext
from hookedvid.nn.hooks import HookPoint, branch
from hookedvid.nn.kv import LayerKV
from hookedvid.nn.layers import GatedMLP, RMSNorm
from hookedvid.values.config import DecoderConfig


class Block(nn.Module):
    """Attention and feed-forward, each reading a normalised residual stream and adding to it.

    Behind the first blocks of some models features of the tower are added as well (DeepStack); `hook_deepstack` is
    what is added, zero at text.
    """

    # TransformerLens's logit lens asks whether a block's output is the one residual stream.
    hook_out_is_single_residual_stream = True

    def __init__(self, cfg: DecoderConfig, deepstack: bool = False):
        super().__init__()
        self.ln1 = RMSNorm(cfg.d_model, cfg.eps)
        self.attn = Attention(
            cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.d_head, cfg.qkv_bias, cfg.o_bias, True,
            "head" if cfg.qk_norm else "none", cfg.eps,
        )  # fmt: skip
        self.ln2 = RMSNorm(cfg.d_model, cfg.eps)
        self.mlp = GatedMLP(cfg.d_model, cfg.d_mlp, cfg.act)
        self.hook_resid_pre = HookPoint()  # [batch, pos, d_model]
        self.hook_attn_in = HookPoint()  # [batch, pos, d_model], read by attention alone
        self.hook_attn_out = HookPoint()  # [batch, pos, d_model]
        self.hook_resid_mid = HookPoint()  # [batch, pos, d_model]
        self.hook_mlp_in = HookPoint()  # [batch, pos, d_model], read by the MLP alone
        self.hook_mlp_out = HookPoint()  # [batch, pos, d_model]
        if deepstack:
            self.hook_deepstack = HookPoint()  # [batch, pos, d_model]
        self.hook_resid_post = HookPoint()  # [batch, pos, d_model]

    def forward(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        ctx: AttnContext,
        kv: LayerKV | None = None,
        deepstack: Float[Tensor, "batch pos d_model"] | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after this block."""
        return self.after_mlp(self.after_attn(resid, ctx, kv), deepstack)

    def after_attn(
        self, resid: Float[Tensor, "batch pos d_model"], ctx: AttnContext, kv: LayerKV | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream between attention and MLP."""
        resid = self.hook_resid_pre(resid)
        resid = resid + self.hook_attn_out(self.attn(branch(self.hook_attn_in, resid), self.ln1, ctx, kv))
        return self.hook_resid_mid(resid)

    def after_mlp(
        self, resid: Float[Tensor, "batch pos d_model"], deepstack: Float[Tensor, "batch pos d_model"] | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after the MLP, where every row is on its own: any of them may be given."""
        resid = resid + self.hook_mlp_out(self.mlp(self.ln2(branch(self.hook_mlp_in, resid))))
        if deepstack is not None:
            resid = resid + self.hook_deepstack(deepstack)
        return self.hook_resid_post(resid)
