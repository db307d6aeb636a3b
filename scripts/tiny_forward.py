"""The tiny model's training pass: many packed texts a video, the numbers of the model's own forward.

The library's blocks read a packed sequence through a dense mask; on one CPU thread that costs 2.1 s a
step, most of it in masked attention. Here each text attends to the prefix and to itself by plain products.
`tests/test_train_tiny.py` compares the two.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from hookedvid.nn.attention import causal_mask
from hookedvid.nn.layers import rope_angles, rotate


class Packing(NamedTuple):
    """Where the texts of a packed sequence lie: groups of (how many, tokens each) after the prefix."""

    n_prefix: int
    groups: tuple[tuple[int, int], ...]

    @property
    def pos(self) -> Int[Tensor, "1 pos"]:
        """Rotary positions: each text goes on where the prefix ends."""
        texts = [torch.arange(length) for count, length in self.groups for _ in range(count)]
        return torch.cat([torch.arange(self.n_prefix), *(self.n_prefix + t for t in texts)])[None]


def tower_features(
    model: nn.Module, frames: UInt8[Tensor, "batch frame height width 3"]
) -> Float[Tensor, "batch_frame patch d_vision"]:
    """The tower's patch features of uint8 frames; 17 keys a frame are too few for a fused kernel."""
    cfg = model.cfg.vision
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (cfg.mean, cfg.std))
    pixels = (frames.flatten(0, 1).permute(0, 3, 1, 2) / 255 - mean) / std
    return model.vision.patches(model.vision(pixels, kernel="eager"))


def video_tokens(
    model: nn.Module, frames: UInt8[Tensor, "batch frame height width 3"]
) -> Float[Tensor, "batch pos d_model"]:
    """What tower and projector make of uint8 frames."""
    tokens = model.projector(tower_features(model, frames))
    return tokens.reshape(len(frames), -1, tokens.shape[-1])


def read(
    model: nn.Module,
    stream: Float[Tensor, "batch pos d_model"],
    packing: Packing,
    scored: Int[Tensor, "batch target"],
) -> Float[Tensor, "batch target vocab"]:
    """Logits after the decoder at the scored positions, counted from the end of the prefix."""
    lm = model.cfg.decoder
    cos, sin = rope_angles(lm.rope, lm.d_head, lm.n_ctx, packing.pos[None], [packing.pos.shape[1]], torch.float32)
    if torch.is_autocast_enabled("cpu"):
        cos, sin = cos.bfloat16(), sin.bfloat16()
    for block in model.blocks:
        q, k, v = _heads(block, stream, cos, sin)
        stream = stream + block.attn.o(_attend(q, k, v, packing))
        stream = stream + block.mlp(block.ln2(stream))
    rows = (packing.n_prefix + scored)[..., None].expand(-1, -1, stream.shape[-1])
    return model.unembed(model.ln_final(stream.gather(1, rows))).float()


def _heads(block: nn.Module, stream: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, [batch, head or kv_head, pos, d_head], positions applied and queries scaled."""
    attn, normalized = block.attn, block.ln1(stream)
    q, k, v = (
        linear(normalized).unflatten(-1, (n, attn.d_head))
        for linear, n in ((attn.q, attn.n_heads), (attn.k, attn.n_kv_heads), (attn.v, attn.n_kv_heads))
    )
    q, k = rotate(q, cos, sin) * attn.d_head**-0.5, rotate(k, cos, sin)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Float[Tensor, "batch pos d_model"]:
    """The prefix attends causally to itself; each text to the whole prefix and causally to itself."""
    batch, kv, _, d = k.shape
    share, p = q.shape[1] // kv, packing.n_prefix  # each kv_head serves `share` consecutive heads
    prefix_k, prefix_v = k[:, :, :p].transpose(2, 3), v[:, :, :p]
    query = q[:, :, :p].reshape(batch, kv, share * p, d)
    scores = (query @ prefix_k).view(batch, kv, share, p, p) + _bias(p, q)
    out = [(scores.softmax(-1).view(batch, kv, share * p, p) @ prefix_v).view(batch, kv * share, p, d)]
    start = p
    for count, length in packing.groups:
        stop = start + count * length
        query = q[:, :, start:stop].reshape(batch, kv, share * count * length, d)
        to_prefix = (query @ prefix_k).view(batch, kv, share, count, length, p)
        own_k, own_v = (x[:, :, start:stop].view(batch, kv, count, length, d) for x in (k, v))
        own_q = query.view(batch, kv, share, count, length, d).transpose(2, 3).flatten(3, 4)
        to_own = (own_q @ own_k.transpose(3, 4)).view(batch, kv, count, share, length, length).transpose(2, 3)
        pattern = torch.cat([to_prefix, to_own + _bias(length, q)], -1).softmax(-1)
        z = (pattern[..., :p].reshape(batch, kv, share * count * length, p) @ prefix_v).view(
            batch, kv, share, count, length, d
        )
        own = pattern[..., p:].transpose(2, 3).reshape(batch, kv, count, share * length, length) @ own_v
        z = z + own.view(batch, kv, count, share, length, d).transpose(2, 3)
        out.append(z.reshape(batch, kv * share, count * length, d))
        start = stop
    return torch.cat(out, 2).transpose(1, 2).flatten(2)


def _bias(n: int, like: Tensor) -> Tensor:
    """0 where a query may look, -inf where not; every row keeps its own key."""
    blocked = ~causal_mask(n, n, like.device)[0, 0]
    return torch.zeros(n, n, dtype=like.dtype).masked_fill(blocked, float("-inf"))
