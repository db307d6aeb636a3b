"""Keys and values kept between the steps of generation."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


class LayerKV:
    """One layer's rotated keys and values so far, with the position each row holds (-1 = padding)."""

    def __init__(self) -> None:
        self.k: Float[Tensor, "batch key kv_head d_head"] | None = None
        self.v: Float[Tensor, "batch key kv_head d_head"] | None = None
        self.pos: Int[Tensor, "batch key"] | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, the new rows last; each [batch, key, kv_head, d_head]."""
        self.k = k if self.k is None else torch.cat([self.k, k], 1)
        self.v = v if self.v is None else torch.cat([self.v, v], 1)
        return self.k, self.v

    def append_positions(self, pos: Int[Tensor, "batch new"]) -> Int[Tensor, "batch key"]:
        """Positions of all keys once the new rows are in."""
        self.pos = pos if self.pos is None else torch.cat([self.pos, pos], 1)
        return self.pos


class KVCache:
    """A decoder's keys and values, layer by layer.

    Layers may hold different rows: after an early exit the later ones have no video. `n_rope` is the length
    that dynamic NTK scaling was fixed at, the prompt's, so that every step turns keys by the same angles.
    """

    def __init__(self, n_layers: int):
        self.layers = [LayerKV() for _ in range(n_layers)]
        self.n_rope: tuple[int, ...] = ()
        self.n_tokens = 0
