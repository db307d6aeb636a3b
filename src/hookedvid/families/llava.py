"""The original LLaVA package's checkpoints, which LongVA's are too: their configs, tensors and prompts.

What only the tensors tell of them is read here as well.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hookedvid.conversion import tables
from hookedvid.conversion.decoder_fields import read_decoder, rows_of
from hookedvid.conversion.fields import PRETRAINED, Fields
from hookedvid.conversion.lines import Line, Shapes
from hookedvid.errors import ConversionError
from hookedvid.families.alone import decoder_lines
from hookedvid.families.family import Family, Layout, Source
from hookedvid.families.prompts import Template
from hookedvid.values.config import (
    LIMITS,
    DecoderConfig,
    Newline,
    Pool,
    ProjectorConfig,
    VideoLLMConfig,
    VisionConfig,
)
from hookedvid.values.parts import CLIP_L_336, SIGLIP_SO400M
from hookedvid.values.serial import override

TOWER = "model.vision_tower.vision_tower.vision_model."
TOWERS = {"siglip-so400m-patch14-384": SIGLIP_SO400M, "clip-vit-large-patch14-336": CLIP_L_336}
NEWLINES: dict[str, Newline] = {"grid": "row", "one_token": "once", "frame": "frame", "no_token": "none"}
POOLS: dict[str, Pool] = {"average": "average", "max": "max", "bilinear": "bilinear"}

# Prefixes of a tower and names of a projector that an adapter may have: this package's, and transformers'.
ADAPTER_TOWERS = (
    TOWER, "model.vision_tower.vision_model.", "model.vision_tower.", "vision_tower.vision_model.", "vision_tower.",
    "vision_model.", "",
)  # fmt: skip
PROJECTOR = ("model.mm_projector.0", "model.mm_projector.2", "model.image_newline")
ADAPTER_PROJECTORS = (
    PROJECTOR,
    *(
        (f"{m}multi_modal_projector.linear_1", f"{m}multi_modal_projector.linear_2", f"{m}image_newline")
        for m in ("model.", "")
    ),
)
# What LLaVA's training scripts left behind in a config.json.
TRAINING = set(
    "add_time_instruction delay_load faster_token_stride force_sample freeze_mm_mlp_adapter freeze_mm_vision_resampler "
    "frames_upbound ignore_index image_aspect_ratio image_crop_resolution image_grid_pinpoints image_seq_length "
    "image_split_resolution max_window_layers mm_projector_lr mm_resampler_location "
    "mm_tunable_parts mm_vision_tower_lr pos_skipping_range pretrain_mm_mlp_adapter sliding_window "
    "tokenizer_padding_side tune_entire_model tune_mm_mlp_adapter tune_mm_vision_resampler tune_vision_tower "
    "unfreeze_mm_vision_tower use_mm_proj use_pos_skipping vision_tower_lr vision_tower_pretrained".split()
)

# Exact strings of the package's conversation.py, under its names for them.
QWEN_1_5 = Template(
    before="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    after="<|im_end|>\n<|im_start|>assistant\n",
    stops=("<|im_end|>",),
)
VICUNA_V1 = Template(
    before="A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: ",
    after=" ASSISTANT:",
    answer=" {answer}",
    stops=("</s>",),
)


def read(source: Source, *, kind: str, keeps_stride: bool = False) -> VideoLLMConfig:
    """Our config of a config.json of this package.

    Args:
        source: What is read. The tower's sizes and the vocabulary's rows are those of its tensors.
        kind: Of the decoder: qwen2 or llama.
        keeps_stride: Whether the family's code pools by the stride that config.json states.

    Raises:
        ConversionError: A field that is not supported, or that nothing here reads.
    """
    config, shapes, overrides, notes, family = (
        source.config, source.shapes, source.overrides, source.notes, source.family,
    )  # fmt: skip
    assert family is not None
    fields = Fields(config, "config.json")
    like = _named_tower(fields.need("mm_vision_tower"), shapes, notes)
    fields.only("mm_projector_type", "mlp2x_gelu")
    for off in ("mm_use_im_start_end", "mm_use_im_patch_token", "add_faster_video"):
        fields.only(off, False, None)
    fields.only("mm_resampler_type", None)
    fields.only("mm_vision_select_feature", "patch")
    rows = rows_of(shapes, "model.embed_tokens.weight")
    decoder = read_decoder(fields, rows, overrides, notes, kind=kind, scaled=kind != "qwen2")
    vision = _tower(like, TOWER, shapes, overrides, fields)
    projector = _projector(fields, vision, decoder, notes, overrides)
    projector = replace(projector, pool_stride=_stride(fields, projector, notes, keeps_stride))
    # Beyond the bound stands transformers' 1e30 for "no limit".
    length = fields.number("tokenizer_model_max_length", sys.float_info.max)
    fields("mm_hidden_size")  # the tower's width, which the tensors show
    fields.close(PRETRAINED | TRAINING, source.ignore)
    cfg = VideoLLMConfig(
        family=family.name,
        vision=vision,
        projector=projector,
        decoder=decoder,
        prompt=family.prompt,
        n_frames=family.n_frames,
        max_length=int(length) if length <= LIMITS["max_length"] else None,
    )
    return override(cfg, overrides, ConversionError)


def fits(source: Source, tower: VisionConfig, newlines: Sequence[Newline], pools: Sequence[Pool] = ()) -> bool:
    """Whether a config.json names this tower, one of these newlines and one of these ways to pool (none: any)."""
    fields = Fields(source.config, "config.json")
    like = _named_tower(fields("mm_vision_tower"), source.shapes, [])
    return like == tower and _newline(fields) in newlines and (not pools or _pool(fields, like) in pools)


def parts(source: Source) -> str:
    """What `fits` looks at beside the tower."""
    fields = Fields(source.config, "config.json")
    like = _named_tower(fields("mm_vision_tower"), source.shapes, [])
    return f"newline {_newline(fields)!r}, pool {_pool(fields, like)!r}"


def table(cfg: VideoLLMConfig, names: Sequence[str]) -> list[Line]:
    """The package's names, which are the same in every checkpoint."""
    assert cfg.vision and cfg.projector
    return [
        *tables.llama(cfg.lm),
        *tables.clip_like(cfg.vision, TOWER),
        *tables.mlp2x(*PROJECTOR, cfg.projector.newline != "none"),
        *tables.SKIPPED,
    ]


def adapter(cfg: VideoLLMConfig) -> list[Line]:
    """The lines of every name that an adapter may have been trained under: this package's, and transformers'."""
    assert cfg.vision and cfg.projector
    return [
        *tables.SKIPPED,
        *decoder_lines(cfg.lm),
        *(line for tower in ADAPTER_TOWERS for line in tables.clip_like(cfg.vision, tower)),
        *(line for p in ADAPTER_PROJECTORS for line in tables.mlp2x(*p, cfg.projector.newline != "none")),
    ]


def _looks(family: Family, shapes: Shapes, kind: str) -> str | None:
    clip = any(n.endswith("embeddings.class_embedding") for n in shapes)
    biased = any(n.endswith("layers.0.self_attn.k_proj.bias") and "vision" not in n for n in shapes)
    if not any(".mm_projector." in n for n in shapes) or biased != (kind == "qwen2"):
        return None
    if kind == "llama":
        return ""
    newline = "with" if "model.image_newline" in shapes else "without"
    return f", a {'CLIP' if clip else 'SigLIP'} tower, {newline} newline" if clip == family.tower.cls_token else None


def _layout(architecture: str, kind: str) -> Layout:
    return Layout(
        architecture=architecture,
        read=partial(read, kind=kind),
        table=table,
        parts=parts,
        processor_files=False,
        looks=partial(_looks, kind=kind),
    )


QWEN, LLAMA = _layout("LlavaQwenForCausalLM", "qwen2"), _layout("LlavaLlamaForCausalLM", "llama")


def _stride(read: Fields, projector: ProjectorConfig, notes: list[str], kept: bool) -> int:
    """The side of the squares that are pooled into one.

    LongVA's code reads it from the config, and so did LLaVA-NeXT's older package, the only one to pool before the
    projector. LLaVA-NeXT's main branch sets the field aside and pools by 2.
    """
    said = read.count("mm_spatial_pool_stride", 2)
    if said == 2 or kept or projector.pool_before:
        return said
    notes.append(
        f"mm_spatial_pool_stride = {said} is set aside: LLaVA-NeXT's main branch pools by 2 whatever it says "
        f"(override projector.pool_stride={said} to pool by it)"
    )
    return 2


def _newline(read: Fields) -> Newline:
    merge, position = str(read("mm_patch_merge_type", "flat")), str(read("mm_newline_position", "one_token"))
    return NEWLINES.get(position, "none") if "unpad" in merge else "none"


def _pool(read: Fields, tower: VisionConfig) -> Pool:
    """The way to pool that config.json states; else that of the package's code with this tower."""
    mode = read("mm_spatial_pool_mode")
    return POOLS.get(str(mode), "average") if mode is not None else "average" if tower.cls_token else "bilinear"


def _projector(
    read: Fields, vision: VisionConfig, decoder: DecoderConfig, notes: list[str], overrides: Mapping[str, Any]
) -> ProjectorConfig:
    read.only("mm_newline_position", *NEWLINES)
    mode, pool = read("mm_spatial_pool_mode"), _pool(read, vision)
    if mode is None and "projector.pool" not in overrides:
        notes.append(f"config.json does not say how to pool; {pool}, as the original code does with this tower")
    if mode is not None and str(mode) not in POOLS:
        read.problems.append(f"mm_spatial_pool_mode = {mode!r} is not supported (only {', '.join(POOLS)})")
    when = read("mm_pooling_position")
    read.only("mm_pooling_position", None, "after", "before")
    return ProjectorConfig(
        d_in=vision.d_model,
        d_out=decoder.d_model,
        pool=pool,
        pool_before=when == "before",
        newline=_newline(read),
    )


def _named_tower(name: Any, shapes: Shapes, notes: list[str]) -> VisionConfig:
    """The tower that config.json names; the one its tensors show where the name is a path on somebody's disk."""
    place = str(name).replace("\\", "/")
    like = next((t for known, t in TOWERS.items() if known in place), None)
    if like is not None:
        return like
    if not re.match(r"[/~.]|\w:/", place) and place.count("/") < 2:  # else owner/name on the hub, another tower
        raise ConversionError(f"config.json: mm_vision_tower = {name!r} is not supported (only {', '.join(TOWERS)})")
    shown = next(k for k, t in TOWERS.items() if t.cls_token == (f"{TOWER}embeddings.class_embedding" in shapes))
    notes.append(f"mm_vision_tower = {name!r} is a path; by its tensors it is {shown}")
    return TOWERS[shown]


def _tower(like: VisionConfig, prefix: str, shapes: Shapes, overrides: Mapping[str, Any], read: Fields) -> VisionConfig:
    """The tower config.json names, its sizes from the tensors.

    Where those differ from the named tower's, the number of heads, which no tensor shows, must be stated.
    """
    vision = {k.removeprefix("vision."): v for k, v in overrides.items() if k.startswith("vision.")}
    held = _numbers(f"{prefix}encoder.layers.", shapes)
    patches, rows, mlp = (
        _dims(shapes, f"{prefix}{name}.weight", axes)
        for name, axes in (
            ("embeddings.patch_embedding", 4), ("embeddings.position_embedding", 2), ("encoder.layers.0.mlp.fc1", 2),
        )
    )  # fmt: skip
    layer = read("mm_vision_select_layer", -2)
    if not isinstance(layer, int):
        read.problems.append(f"mm_vision_select_layer = {layer!r} is no whole number")
        layer = -2
    # CLIP's features are those of layer `mm_vision_select_layer`; SigLIP's last block was deleted at training.
    runs = held if like is SIGLIP_SO400M else (layer if layer >= 0 else held + 1 + layer)
    shown = {"n_layers": runs, "d_model": patches[0], "d_mlp": mlp[0], "patch_size": patches[2]}
    grid = round(max(rows[0] - like.cls_token, 0) ** 0.5)
    size = vision.get("image_size", like.image_size)
    shown["image_size"] = size if size // patches[2] == grid else grid * patches[2]
    differs = {k: v for k, v in shown.items() if v != getattr(like, k)}
    if differs and "n_heads" not in vision:
        told = ", ".join(f"{k} {v} and not {getattr(like, k)}" for k, v in differs.items())
        raise ConversionError(
            f"config.json names the tower {read('mm_vision_tower')!r}, but the tensors have {told}; if they are right, "
            'state what no tensor shows: overrides={"vision.n_heads": …} (--override vision.n_heads=…)'
        )
    return override(replace(like, **shown, n_heads=1), {"n_heads": like.n_heads, **vision}, ConversionError)


def _dims(shapes: Shapes, name: str, axes: int) -> Sequence[int]:
    """A tensor's shape. Raises ConversionError unless it is there and has so many axes, none of them empty."""
    if name not in shapes:
        raise ConversionError(f"the checkpoint has no tensor {name!r}, so its vision tower cannot be read")
    if len(shapes[name]) != axes or 0 in shapes[name]:
        raise ConversionError(f"tensor {name!r} is {list(shapes[name])}; it should have {axes} axes, none empty")
    return shapes[name]


def _numbers(prefix: str, shapes: Shapes) -> int:
    """How many layers stand under a prefix."""
    found = {n[len(prefix) :].split(".")[0] for n in shapes if n.startswith(prefix)}
    return len({f for f in found if f.isdigit()})
