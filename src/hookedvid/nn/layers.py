"""Norms, feed-forward layers and rotary positions, each bitwise what transformers computes."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hookedvid.nn.hooks import HookPoint, heard, listening, untouched
from hookedvid.values.config import Activation, Norm, RopeConfig


def quick_gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """CLIP's: x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight; the statistics in float32 for half types, float64 kept.

    As the norm of each head's queries or keys its hook points have the heads as an axis before the last.
    """

    def __init__(self, d_model: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.hook_scale = HookPoint()  # [batch, pos, 1]
        self.hook_normalized = HookPoint()  # [batch, pos, d_model], before the weight

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The normalised, weighted input."""
        wide, inverse = self._statistics(x)
        normalized = wide * inverse
        if listening(self.hook_scale):
            scale, same = heard(self.hook_scale, 1.0 / inverse)
            normalized = untouched(same, normalized, wide / scale)
        return self.weight * self.hook_normalized(normalized.to(x.dtype))

    def plain(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The same without hook points, for per-head copies of the stream."""
        wide, inverse = self._statistics(x)
        return self.weight * (wide * inverse).to(x.dtype)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return wide, torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight + bias."""

    def __init__(self, d_model: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))
        self.hook_scale = HookPoint()  # [batch, pos, 1]
        self.hook_normalized = HookPoint()  # [batch, pos, d_model], before weight and bias

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The normalised input, by the fused kernel wherever no hook point was edited."""
        out = self.plain(x)
        if not listening(self.hook_scale, self.hook_normalized):
            return out
        x = x.contiguous()  # as the kernel lays out its result: the sums of products behind may go by layout
        centred = x - x.mean(-1, keepdim=True)
        scale, same_scale = heard(self.hook_scale, (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
        normalized, same = heard(self.hook_normalized, centred / scale)
        return untouched(same_scale & same, out, normalized * self.weight + self.bias)

    def plain(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The same without hook points."""
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


def norm(kind: Norm, d_model: int, eps: float) -> RMSNorm | LayerNorm:
    """The norm of a kind."""
    return (LayerNorm if kind == "layer" else RMSNorm)(d_model, eps)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), as in Qwen2, Llama and InternLM2 (whose w1, w3, w2 these are); biased in towers."""

    def __init__(self, d_model: int, d_mlp: int, act: Activation, bias: bool = False):
        super().__init__()
        self.act = ACTIVATIONS[act]
        self.gate = nn.Linear(d_model, d_mlp, bias=bias)
        self.up = nn.Linear(d_model, d_mlp, bias=bias)
        self.down = nn.Linear(d_mlp, d_model, bias=bias)
        self.hook_pre = HookPoint()  # [batch, pos, d_mlp], the gate before its activation
        self.hook_pre_linear = HookPoint()  # [batch, pos, d_mlp], what the gate multiplies
        self.hook_post = HookPoint()  # [batch, pos, d_mlp]

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the layer adds to the residual stream."""
        gated = self.act(self.hook_pre(self.gate(x)))
        # In place: at d_mlp, memory that is fresh costs as much time as the product itself.
        return self.down(self.hook_post(gated.mul_(self.hook_pre_linear(self.up(x)))))

    W_gate = property(lambda self: self.gate.weight.T)
    W_in = property(lambda self: self.up.weight.T)
    W_out = property(lambda self: self.down.weight.T)


class MLP(nn.Module):
    """out(act(inp(x))), biased: the towers' feed-forward layer."""

    def __init__(self, d_model: int, d_mlp: int, act: Activation):
        super().__init__()
        self.act = ACTIVATIONS[act]
        self.inp = nn.Linear(d_model, d_mlp)
        self.out = nn.Linear(d_mlp, d_model)
        self.hook_pre = HookPoint()  # [unit, pos, d_mlp]
        self.hook_post = HookPoint()  # [unit, pos, d_mlp]

    def forward(self, x: Float[Tensor, "unit pos d_model"]) -> Float[Tensor, "unit pos d_model"]:
        """What the layer adds to the residual stream."""
        return self.out(self.hook_post(self.act(self.hook_pre(self.inp(x)))))

    W_in = property(lambda self: self.inp.weight.T)
    W_out = property(lambda self: self.out.weight.T)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """X [batch, pos, head, d_head] turned by its position's angles [batch or 1, pos, d_head], half-split layout.

    In the wider of both dtypes, as towers turn in float32; what is returned has that of x.
    """
    half = x.shape[-1] // 2
    cos, sin = cos[:, :, None], sin[:, :, None]
    # The same products and sums, bit for bit, as x * cos + (-x2, x1) * sin, without making (-x2, x1).
    turned = x * cos
    turned[..., :half] -= x[..., half:] * sin[..., :half]
    turned[..., half:] += x[..., :half] * sin[..., half:]
    return turned.to(x.dtype)


def rope_angles(
    rope: RopeConfig,
    d_head: int,
    n_ctx: int,
    ids: Int[Tensor, "axis batch pos"],
    n_rope: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "batch pos d_head"], Float[Tensor, "batch pos d_head"]]:
    """Cosines and sines of each position's angles.

    `ids` are positions on each axis (`RopeConfig.axes` says which frequency turns by which), below 0 where padded; one
    axis stands for all, as in text.
    `n_rope` is each item's sequence length, which dynamic NTK reacts to. Angles are float32 whatever `dtype`
    is, as in transformers: float64 angles would move float32 logits by 5e-5 at 650 tokens.
    """
    inverse = torch.stack([_inverse_frequencies(rope, d_head, n_ctx, n, ids.device) for n in n_rope])
    ids = ids.clamp(min=0).expand(rope.n_axes, -1, -1)
    by_frequency = ids[list(rope.axes(d_head))].movedim(0, -1) if rope.sections else ids[0][..., None]
    angles = by_frequency.to(torch.float32) * inverse[:, None]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _inverse_frequencies(rope: RopeConfig, d_head: int, n_ctx: int, n: int, device: torch.device) -> Tensor:
    theta = rope.theta
    if rope.scaling == "dynamic" and n > n_ctx:
        theta = theta * ((rope.factor * n / n_ctx) - (rope.factor - 1)) ** (d_head / (d_head - 2))
    inverse = 1.0 / (theta ** (torch.arange(0, d_head, 2, device=device, dtype=torch.float32) / d_head))
    return inverse / rope.factor if rope.scaling == "linear" else inverse
