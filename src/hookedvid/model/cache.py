"""The activations of one run, found by TransformerLens's names or by frame and segment."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from hookedvid.errors import HookError, InputError, nearest
from hookedvid.nn.hooks import ActivationCache
from hookedvid.nn.model import Model
from hookedvid.values.files import written
from hookedvid.values.hook_names import pos_axis
from hookedvid.values.layout import TokenLayout
from hookedvid.values.markup import shown, table
from hookedvid.values.serial import from_dict, to_dict, unnumbered

FORMAT = 1  # of a cache's file
_HELD = "held."  # begins the names of what says where rows stand; no hook point's begins so
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def has_layer(name: Any) -> TypeGuard[tuple[str, int]]:
    """Whether a name is a short one with its layer, ("resid_post", 3)."""
    parts = cast(tuple[Any, ...], name) if isinstance(name, tuple) else ()
    return len(parts) == 2 and isinstance(parts[0], str) and isinstance(parts[1], int)


class VideoCache(ActivationCache):
    """TransformerLens's ActivationCache with layouts.

    `cache["pattern", 3]`, `cache["resid_post", -1]`, `cache["blocks.3.attn.hook_z"]` as there;
    `cache.at("resid_post", 3, "video[2:5]")` takes the positions a selector names. `held` [batch, row] says of each
    layer which layout positions its rows are (-1 = padding): after an early exit there are fewer.
    """

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: Model,
        layouts: Sequence[TokenLayout],
        held: Sequence[Int[Tensor, "batch _"]],
        has_batch_dim: bool = True,
        sliced: bool = False,
    ):
        super().__init__(cache_dict, model, has_batch_dim=has_batch_dim)
        self.layouts = tuple(layouts)
        self.held = held
        self.sliced = sliced

    def __getitem__(self, key: Any) -> Tensor:
        try:
            return cast(Any, super()).__getitem__(key)
        except KeyError:
            names = list(self.cache_dict)
            if has_layer(key):
                # Hook points that TransformerLens has not, or has elsewhere: mask, q_input.
                block = f"blocks.{self._layer(key[1])}."
                points = [n for n in names if n.startswith(block) and n.endswith(f".hook_{key[0]}")]
                if len(points) == 1:
                    return self.cache_dict[points[0]]
            raise HookError(
                f"{key!r} is not in this cache ({nearest(str(key), names)}; {len(names)} held); run_with_cache keeps "
                "what its names_filter names"
            ) from None

    def __repr__(self) -> str:
        return f"VideoCache: {self._size()}; {', '.join(name for name, *_ in self._kinds()) or 'nothing'}"

    def _repr_html_(self) -> str:
        """What it holds, and how large that is."""
        head = ("activation", "layers", "shape", "type", "MiB")
        rows = [(name, of, shape, dtype, f"{size / 2**20:.2f}") for name, of, shape, dtype, size in self._kinds()]
        return shown(f"VideoCache: {self._size()}", table(head, rows, n_left=2))

    def _ipython_key_completions_(self) -> list[Any]:
        """What `cache[…]` takes: full names, and short ones with their layer."""
        short = Counter(key for name in self.cache_dict if (key := _with_layer(name)) is not None)
        return [*self.cache_dict, *(key for key, n in short.items() if n == 1)]

    def _size(self) -> str:
        size = sum(_bytes(x) for x in self.cache_dict.values())
        items = f"of {len(self.layouts)} items" if len(self.layouts) > 1 else "of one item"
        return f"{len(self.cache_dict)} activations {items}, {size / 2**20:,.1f} MiB"

    def _kinds(self) -> list[tuple[str, str, str, str, int]]:
        """Of each kind of activation its name, the blocks that have it, a shape, its type, bytes of all."""
        kinds: dict[str, list[tuple[str, Tensor]]] = {}
        for name, x in self.cache_dict.items():
            block = _BLOCK.search(name)
            kinds.setdefault(_BLOCK.sub("", name).replace("hook_", ""), []).append((block[1] if block else "", x))
        told: list[tuple[str, str, str, str, int]] = []
        for name, several in kinds.items():
            numbers = sorted(int(i) for i, _ in several if i)
            run = numbers == list(range(numbers[0], numbers[-1] + 1)) if numbers else False
            of = f"{numbers[0]}:{numbers[-1] + 1}" if run else ", ".join(map(str, numbers))
            shapes = list(dict.fromkeys(str(list(x.shape)) for _, x in several))
            shape = shapes[0] + (f" and {len(shapes) - 1} other(s)" if len(shapes) > 1 else "")
            dtype = str(several[0][1].dtype).removeprefix("torch.")
            told.append((name, of, shape, dtype, sum(_bytes(x) for _, x in several)))
        return told

    @property
    def layout(self) -> TokenLayout:
        """The layout of a single item.

        Raises:
            InputError: On a batch.
        """
        return self.layouts[self._only(None)]

    @property
    def rows(self) -> list[Int[Tensor, " row"]]:
        """Layout positions of each layer's rows, of a single item.

        Raises:
            InputError: On a batch.
        """
        return [positions[self._only(None)] for positions in self.held]

    def at(self, name: str, layer: int, selector: str, item: int | None = None) -> Tensor:
        """One layer's activation at the positions (of queries) a selector names, of one item.

        The axis of positions shrinks to those selected, in prompt order; other axes stay. `item` says which one of a
        batch.

        Raises:
            InputError: On a batch without it, and on positions that an early exit or `pos_slice` dropped.
        """
        if self.sliced:
            raise InputError("this cache was cut by pos_slice, so selectors no longer fit; cache without it")
        item = self._only(item)
        activation = self[name, layer]
        rows = self.row_of(self._layer(layer), self.layouts[item].positions(selector), item)
        if self.has_batch_dim:
            activation = activation[item : item + 1]
        axis = pos_axis(name) - (not self.has_batch_dim)
        return activation.index_select(axis, rows.to(activation.device))

    def row_of(self, layer: int, positions: Int[Tensor, " chosen"], item: int = 0) -> Int[Tensor, " chosen"]:
        """Rows of a layer's tensors that hold the given layout positions of an item."""
        return rows_held(self.held, layer, item, positions)

    def save(self, path: str | Path) -> None:
        """Write the activations, and where each row stands, as one safetensors file, which appears whole."""
        own = {name: x.detach().cpu().contiguous() for name, x in self.cache_dict.items()}
        own |= {f"{_HELD}{i}": rows.contiguous() for i, rows in enumerate(self.held)}
        places: set[int] = set()
        for name, x in own.items():  # hook points share storage, and a file's tensors may not
            place = x.untyped_storage().data_ptr()
            own[name] = x.clone() if place in places else x
            places.add(place)
        cfg = cast(Model, self.model).cfg
        about: dict[str, Any] = {
            "format": FORMAT,
            "config": cfg.to_json(),
            "layouts": [to_dict(replace(x, groups=())) | {"groups": dict(x.groups)} for x in self.layouts],
            "has_batch_dim": self.has_batch_dim,
            "sliced": self.sliced,
        }
        with written(Path(path)) as part:
            save_file(own, part, {"cache": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path, model: Model, device: torch.device | str = "cpu") -> "VideoCache":
        """What `save` wrote, for a model of the same config.

        Raises:
            InputError: For a file that is none, or one of another model.
        """
        try:
            with cast(Any, safe_open)(path, framework="pt", device=str(device)) as file:
                metadata: dict[str, str] = file.metadata() or {}
                about = unnumbered(json.loads(metadata["cache"]), FORMAT, path, InputError)
                own: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, KeyError, SafetensorError) as e:
            raise InputError(f"{str(path)!r} is no file that VideoCache.save wrote: {e!r}") from e
        if about["config"] != model.cfg.to_json():
            raise InputError(f"{str(path)!r} is of a model of another config; give the one that it was cached from")
        held = [own.pop(f"{_HELD}{i}").cpu() for i in range(sum(name.startswith(_HELD) for name in own))]
        layouts = [_layout(fields) for fields in about["layouts"]]
        return cls(own, model, layouts, held, about["has_batch_dim"], about["sliced"])

    def _layer(self, layer: int) -> int:
        """A block's number from 0; negative ones count from the end."""
        n = self.model.cfg.n_layers
        if not -n <= layer < n:
            raise HookError(f"layer {layer} is none of this model's: there are blocks 0 to {n - 1}")
        return layer % n

    def _only(self, item: int | None) -> int:
        n = len(self.layouts)
        if item is None and n == 1:
            return 0
        if item is None or not 0 <= item < n:
            raise InputError(
                f"this cache holds {n} items, each with its own layout: use .layouts[i], and .at(…, item=i) of 0 to "
                f"{n - 1}"
            )
        return item


def rows_held(
    held: Sequence[Int[Tensor, "batch _"]], layer: int, item: int, positions: Int[Tensor, " chosen"]
) -> Int[Tensor, " chosen"]:
    """Rows of a layer's tensors that hold the given layout positions of an item.

    Args:
        held: Layout positions of each layer's rows, -1 where padded.

    Raises:
        InputError: For positions that are not there.
    """
    rows = held[layer][item].contiguous()
    row = torch.searchsorted(rows, positions).clamp(max=len(rows) - 1)
    if not torch.equal(rows[row], positions):
        raise InputError(
            f"some of these positions are not in layer {layer} (0-based): an early exit dropped them before it, or "
            "they were in a key-value cache already"
        )
    return row


def _layout(fields: dict[str, Any]) -> TokenLayout:
    """A layout of a file; names of groups are texts and their positions numbers, which no hint of a field says."""
    groups: dict[str, list[int]] = fields.pop("groups")
    layout = from_dict(TokenLayout, fields, InputError)
    return replace(layout, groups=tuple((name, tuple(positions)) for name, positions in groups.items()))


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _with_layer(name: str) -> tuple[str, int] | None:
    """`("z", 3)` of blocks.3.attn.hook_z."""
    parts = name.split(".")
    return (parts[-1].removeprefix("hook_"), int(parts[1])) if parts[0] == "blocks" else None
