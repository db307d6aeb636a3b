"""One prompt with a video and what another implementation computed of it, as files keep them, by our stages' names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from hookedvid.checkpoints import layouts
from hookedvid.checkpoints.convert import read_config
from hookedvid.conversion.shards import open_shards
from hookedvid.errors import ConversionError
from hookedvid.families.family import Source
from hookedvid.families.registry import FAMILIES, named_in
from hookedvid.values.inputs import VIDEO
from hookedvid.values.processor import NAMES
from hookedvid.values.tensors import ints

CASE, EXPECTED = "case.json", "expected.safetensors"
# Choices of ours under which some outputs were recorded as well; their names end so.
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "transformers": {"decoder.rope.text_after": "sides"},
    "each_frame_alone": {"vision.cls_cut": "each_frame"},
    "bfloat16": {},
}
SQUARE = 2  # patches along a side of the squares that rows of patches go by
# What the vision_config of a case is called in ours.
_TOWER = {
    "num_attention_heads": "n_heads",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "layer_norm_eps": "eps",
}
# What a processor's tensors are called in VideoLLaMA3's own code.
_PROCESSED = {
    "grid_sizes": "video_grid_thw",
    "merge_sizes": "video_merge_sizes",
    "compression_mask": "video_compression_mask",
} | {name: name for name in NAMES}
# Of a tower's rows; what is not said by the grid is `tower.window_index`.
_ORDER = ("tower.position_ids", "tower.cu_window_seqlens", "tower.window_index")
# Their stages by name; an index stands in place of {i}.
_STAGES = {
    "vision_tower": "vision patches",
    "vision_model": "vision.hook_out",
    "selected": "vision patches",
    "shuffled": "projector.hook_mlp_in",
    "pooled": "projector.hook_mlp_in",
    "projected": "projector.hook_out",
    "input_embeds": "hook_embed",
    "tower.patch_embed": "vision.hook_patch_embed",
    "tower.embed": "vision.hook_embed",
    "tower.hidden.{i}": "vision.blocks.{i}.hook_resid_pre",
    "tower.block_out": "vision before its norm",
    "tower.out": "vision.hook_out",
    "hidden.{i}": "blocks.{i}.hook_resid_pre",
    "block_out.{i}": "blocks.{i}.hook_resid_post",
    "deepstack.{i}": "blocks.{i}.deepstack",
    "position_ids": "position_ids",
    "logits": "logits",
    "logits.extended": "logits.extended",
}


@dataclass(frozen=True)
class Recorded:
    """Inputs and outputs of another implementation, one prompt with one video.

    Attributes:
        tokens: Ids, -200 or the placeholder where the video stands.
        pixels: Preprocessed, as `inputs_from_tensors` takes them.
        processed: What the official processor gives besides.
        theirs: Stages by our names.
        overrides: What the case says of the model that its config.json does not, for `hookedvid.convert`.
        extension: Ids that follow the prompt where `logits.extended` are recorded.
        frames: What the pixels were made of; None where nobody kept it.
        fps: Of these frames, where that is known.
        settings: Of the processor that made them, where they are not the checkpoint's.
    """

    tokens: Int[Tensor, " pos"]
    pixels: Tensor
    processed: Mapping[str, Tensor]
    theirs: Mapping[str, Tensor]
    overrides: Mapping[str, Any]
    extension: Int[Tensor, "1 new"] | None = None
    frames: UInt8[Tensor, "frame height width 3"] | None = None
    fps: float | None = None
    settings: Mapping[str, Any] | None = None

    @classmethod
    def load(cls, folder: Path, variant: str = "") -> "Recorded":
        """A folder with `case.json` and `expected.safetensors` beside a checkpoint.

        Args:
            folder: The checkpoint's.
            variant: Whose outputs are meant (`VARIANTS`); those of the plain choices unless given.

        Raises:
            ConversionError: For a folder without them, or with what is no stage here.
        """
        from safetensors.torch import load_file

        for name in (CASE, EXPECTED):
            if not (folder / name).is_file():
                raise ConversionError(f"{folder} has no {name}, so there is nothing recorded to compare with")
        case = json.loads((folder / CASE).read_text(encoding="utf-8"))
        recorded = load_file(folder / EXPECTED)
        ids = case.get("input_ids") or [*case["prefix_ids"], VIDEO, *case["suffix_ids"]]
        pixels = next(recorded.pop(name) for name in ("pixel_values", "pixel_values_videos") if name in recorded)
        frames = recorded.pop("frames", None)
        processed = {_PROCESSED[name]: recorded.pop(name) for name in list(recorded) if name in _PROCESSED}
        theirs = _of(variant, _in_raster_order(recorded, processed.get("video_grid_thw")))
        return cls(
            tokens=torch.tensor(ids),
            pixels=pixels.float(),
            processed=processed,
            theirs=_renamed(theirs),
            overrides=_overrides(folder, case) | VARIANTS[variant],
            extension=torch.tensor([case["extended_with"]]) if "logits.extended" in theirs else None,
            frames=frames,
            fps=case.get("fps"),
            settings=case.get("video_processor_settings"),
        )


def variants(folder: Path) -> list[str]:
    """Of `VARIANTS`, those whose outputs a folder holds."""
    from safetensors import safe_open

    with safe_open(folder / EXPECTED, "pt") as file:
        return [v for v in VARIANTS if not v or any(name.endswith(f".{v}") for name in file.keys())]  # noqa: SIM118


def _overrides(folder: Path, case: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"vision.{_TOWER[k]}": v for k, v in case.get("vision_config", {}).items() if k in _TOWER}
    if "img_context_token_id" in case:
        found["placeholder_id"] = case["img_context_token_id"]
    stated = case.get("family")
    if family := (stated if stated in FAMILIES else named_in(folder.name)) or _any_family(folder):
        found["family"] = family
    return found


def _any_family(folder: Path) -> str | None:
    """A family for a case whose config fits several, or none of those that have its architecture; else None.

    Of the parts that are recorded none differs between those families, so any will do.
    """
    config = read_config(folder)
    name = layouts.architecture(config)
    fits = layouts.fitting(name, Source(config, open_shards(folder).shapes))
    fits = fits or [family.name for family, _ in layouts.having(name)]
    return fits[0] if len(fits) > 1 else None


def _of(variant: str, recorded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs of a variant by their plain names."""
    ends = [f".{v}" for v in VARIANTS if v]
    if not variant:
        return {name: x for name, x in recorded.items() if not name.endswith(tuple(ends))}
    return {name.removesuffix(f".{variant}"): x for name, x in recorded.items() if name.endswith(f".{variant}")}


def _in_raster_order(recorded: Mapping[str, Tensor], grid: Tensor | None) -> dict[str, Tensor]:
    """The same with a tower's rows, where they are one list, by step and in raster order within it."""
    found = {name: x for name, x in recorded.items() if name not in _ORDER}
    windows = recorded.get("tower.window_index")
    for name, x in found.items():
        if not name.startswith("tower.") or x.ndim != 2 or grid is None:
            continue
        if windows is not None and name != "tower.patch_embed":
            x = x.view(len(windows), -1, x.shape[-1])[windows.argsort()]
        steps, rows, columns = ints(grid[0])
        squares = x.reshape(steps, rows // SQUARE, columns // SQUARE, SQUARE, SQUARE, -1)
        found[name] = squares.transpose(2, 3).reshape(steps, rows * columns, -1)
    if grid is not None and "tower.out" in found:  # a class token is taken out of rows
        found["selected"] = found.pop("tower.out")
    return found


def _renamed(recorded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Recorded stages by the names of our hook points."""
    hidden, deepstack = (
        [int(name.rpartition(".")[2]) for name in recorded if name.startswith(start)]
        for start in ("hidden.", "deepstack.")
    )
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, x in recorded.items():
        start, _, index = name.rpartition(".")
        ours = _STAGES.get(f"{start}.{{i}}" if index.isdigit() else name)
        if ours is None:
            unknown.append(name)
            continue
        ours = ours.format(i=index)
        if name.startswith("hidden.") and int(index) == max(hidden):
            ours = "ln_final"
        elif name.startswith("block_out.") and int(index) in deepstack:
            ours = f"blocks.{index}.mlp"
        found[ours] = x
    if unknown:
        raise ConversionError(f"{EXPECTED} holds {sorted(unknown)}, which is no stage here; known are {list(_STAGES)}")
    return found
