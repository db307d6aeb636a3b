"""The activations of one run, found by TransformerLens's names or by frame and segment."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hookedvid.errors import HookError, InputError, nearest
from hookedvid.layout import TokenLayout
from hookedvid.nn.hooks import ActivationCache

# Hook points whose axis of query positions is the third, after batch and head.
BY_QUERY = ("hook_mask", "hook_attn_scores", "hook_pattern")


def pos_axis(name: str) -> int:
    """The axis of positions (of queries, for attention maps) in a hook point's tensor, the batch axis being 0."""
    return 2 if name.rsplit(".", 1)[-1] in BY_QUERY else 1


class VideoCache(ActivationCache):
    """TransformerLens's ActivationCache with layouts.

    `cache["pattern", 3]`, `cache["resid_post", -1]`, `cache["blocks.3.attn.hook_z"]` as there;
    `cache.at("resid_post", 3, "video[2:5]")` takes the positions a selector names. `rows` says which layout
    positions each layer still holds after an early exit.
    """

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: Any,
        layouts: Sequence[TokenLayout],
        rows: Sequence[Int[Tensor, " row"]] | None = None,
        has_batch_dim: bool = True,
        sliced: bool = False,
    ):
        super().__init__(cache_dict, model, has_batch_dim=has_batch_dim)
        self.layouts = tuple(layouts)
        self.rows = rows
        self.sliced = sliced

    def __getitem__(self, key: Any) -> Tensor:
        try:
            return super().__getitem__(key)
        except KeyError:
            held = list(self.cache_dict)
            if isinstance(key, tuple) and len(key) == 2 and isinstance(key[1], int):
                # Hook points that TransformerLens has not, or has elsewhere: mask, q_input.
                block = f"blocks.{key[1] % self.model.cfg.n_layers}."
                found = [n for n in held if n.startswith(block) and n.endswith(f".hook_{key[0]}")]
                if len(found) == 1:
                    return self.cache_dict[found[0]]
            raise HookError(f"{key!r} is not in this cache ({nearest(str(key), held)}; {len(held)} held)") from None

    @property
    def layout(self) -> TokenLayout:
        """The layout of a single item. Raises InputError on a batch."""
        if len(self.layouts) != 1:
            raise InputError(f"this cache holds {len(self.layouts)} items, each with its own layout: use .layouts[i]")
        return self.layouts[0]

    def at(self, name: str, layer: int, selector: str) -> Tensor:
        """One layer's activation at the positions (of queries) a selector names.

        The axis of positions shrinks to those selected, in prompt order; other axes stay. Raises on a batch,
        and on positions that an early exit or `pos_slice` dropped.
        """
        if self.sliced:
            raise InputError("this cache was cut by pos_slice, so selectors no longer fit; cache without it")
        activation = self[name, layer]
        wanted = self.layout.positions(selector)
        wanted = self.row_of(layer % self.model.cfg.n_layers, wanted)
        axis = pos_axis(f"hook_{name}") - (not self.has_batch_dim)
        return activation.index_select(axis, wanted.to(activation.device))

    def row_of(self, layer: int, positions: Int[Tensor, " chosen"]) -> Int[Tensor, " chosen"]:
        """Rows of a layer's tensors that hold the given layout positions."""
        if self.rows is None:
            return positions
        held = self.rows[layer]
        row = torch.searchsorted(held, positions).clamp(max=len(held) - 1)
        if not torch.equal(held[row], positions):
            raise InputError(f"some of these positions left before layer {layer} (0-based) by an early exit")
        return row
