"""Keys and values kept between the steps of generation."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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

    def cut(self, n: int) -> None:
        """Keep the first `n` rows."""
        self.k, self.v, self.pos = (None if x is None or not n else x[:, :n] for x in (self.k, self.v, self.pos))


class KVCache:
    """A decoder's keys and values, layer by layer.

    Layers may hold different rows: after an early exit the later ones have no video. `n_rope` is the length
    that dynamic NTK scaling was fixed at, the prompt's, so that every step turns keys by the same angles; `same_time`
    says whether all frames are turned by one time. `notes` is what a step's writes leave for those of later ones;
    `rules` are the exits by rule that the first step decided.
    """

    def __init__(self, n_layers: int):
        self.layers = [LayerKV() for _ in range(n_layers)]
        self.n_rope: tuple[int, ...] = ()
        self.n_tokens = 0
        self.same_time = False
        self.notes: dict[Any, Tensor] = {}
        self.rules: tuple[Any, ...] = ()

    @contextmanager
    def step(
        self,
        n_tokens: int,
        n_rope: tuple[int, ...],
        same_time: bool,
        layers: range,
        keys: Sequence[Int[Tensor, "batch _"]],
    ) -> Iterator[None]:
        """A forward that appends rows to the layers: they count once it ends, and an exception takes them back.

        Args:
            n_tokens: Columns of the batch, those of earlier steps included.
            n_rope: As the attribute.
            same_time: As the attribute.
            layers: Those that it runs.
            keys: Of every layer the positions of all rows that it holds in the end; read then.
        """
        noted = dict(self.notes)
        before = [0 if layer.pos is None else layer.pos.shape[1] for layer in self.layers]
        try:
            yield
        except BaseException:
            for layer, n in zip(self.layers, before, strict=True):
                layer.cut(n)
            self.notes.clear()
            self.notes.update(noted)
            raise
        self.n_tokens, self.n_rope, self.same_time = n_tokens, n_rope, same_time
        for i in layers:
            self.layers[i].pos = keys[i]
