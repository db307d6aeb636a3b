"""config.json of the original packages (LLaVA-NeXT, LongVA, InternVideo2.5), and what only the tensors tell."""

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hookedvid.conversion.decoder_fields import read_decoder, rows_of
from hookedvid.conversion.fields import Fields
from hookedvid.errors import ConversionError
from hookedvid.families.sizes import CLIP_L_336, FAMILIES, INTERNVIT_300M, SIGLIP_SO400M, family, matching
from hookedvid.values.config import (
    LIMITS,
    DecoderConfig,
    MergeConfig,
    Newline,
    Pool,
    ProjectorConfig,
    VideoLLMConfig,
    VisionConfig,
)
from hookedvid.values.serial import override

Shapes = Mapping[str, Sequence[int]]
TOWER = "model.vision_tower.vision_tower.vision_model."
TOWERS = {"siglip-so400m-patch14-384": SIGLIP_SO400M, "clip-vit-large-patch14-336": CLIP_L_336}
NEWLINES: dict[str, Newline] = {"grid": "row", "one_token": "once", "frame": "frame", "no_token": "none"}
POOLS: dict[str, Pool] = {"average": "average", "max": "max", "bilinear": "bilinear"}

# What transformers writes into every config, and what LLaVA's training scripts left behind. quantization_config is
# harmless where weights are plain numbers; packed ones are refused by their tensors.
PRETRAINED = set(
    "add_cross_attention architectures attention_dropout attn_implementation auto_map bad_words_ids "
    "begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size diversity_penalty do_sample "
    "early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task id2label "
    "initializer_factor initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length min_length "
    "model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions "
    "output_hidden_states output_scores prefix pretraining_tp problem_type pruned_heads quantization_config "
    "remove_invalid_values repetition_penalty return_dict return_dict_in_generate suppress_tokens task_specific_params "
    "temperature tf_legacy_loss tie_encoder_decoder "
    "tokenizer_class top_k top_p torch_dtype dtype torchscript transformers_version typical_p use_bfloat16 "
    "use_cache".split()
)
TRAINING = set(
    "add_time_instruction delay_load faster_token_stride force_sample freeze_mm_mlp_adapter freeze_mm_vision_resampler "
    "frames_upbound ignore_index image_aspect_ratio image_crop_resolution image_grid_pinpoints image_seq_length "
    "image_split_resolution max_window_layers mm_projector_lr mm_resampler_location "
    "mm_tunable_parts mm_vision_tower_lr pos_skipping_range pretrain_mm_mlp_adapter sliding_window "
    "tokenizer_padding_side tune_entire_model tune_mm_mlp_adapter tune_mm_vision_resampler tune_vision_tower "
    "unfreeze_mm_vision_tower use_mm_proj use_pos_skipping vision_tower_lr vision_tower_pretrained".split()
)
# LLaVA-Video's training wrote these; LLaVA-NeXT-Video's older package wrote mm_pooling_position and none of them.
LLAVA_VIDEO = {"add_faster_video", "add_time_instruction", "faster_token_stride", "force_sample"}
INTERN = set(
    "dynamic_image_size hidden_size max_dynamic_patch min_dynamic_patch pad2square use_backbone_lora use_llm_lora "
    "use_thumbnail".split()
)
INTERN_TOWER = set("attention_dropout drop_path_rate dropout use_flash_attn tie_word_embeddings".split())


def read_llava(
    config: Mapping[str, Any],
    shapes: Shapes,
    overrides: Mapping[str, Any],
    ignore: Collection[str] = (),
    stated: str | None = None,
) -> tuple[VideoLLMConfig, list[str]]:
    """LlavaQwenForCausalLM or LlavaLlamaForCausalLM, and notes on what its config.json leaves open.

    shapes: the checkpoint's tensors; the tower's sizes and the vocabulary's rows are read from them. stated: the
    family that the checkpoint's name states.
    """
    read = Fields(config, "config.json")
    notes: list[str] = []
    qwen = config["architectures"][0] == "LlavaQwenForCausalLM"
    like = _named_tower(read.need("mm_vision_tower"), shapes, notes)
    read.only("mm_projector_type", "mlp2x_gelu")
    for off in ("mm_use_im_start_end", "mm_use_im_patch_token", "add_faster_video", "use_sliding_window"):
        read.only(off, False, None)
    read.only("mm_resampler_type", None)
    read.only("mm_vision_select_feature", "patch")
    rows = rows_of(shapes, "model.embed_tokens.weight")
    decoder = read_decoder(read, rows, overrides, notes, kind="qwen2" if qwen else "llama")
    vision = _tower(like, TOWER, shapes, overrides, read)
    projector = _projector(read, vision, decoder, notes, overrides)
    name = overrides.get("family") or _family(like, qwen, projector, config, stated, notes)
    known = family(name)
    projector = replace(projector, pool_stride=_stride(read, name, projector, notes))
    if not qwen and config.get("mm_pooling_position") is None and "projector.pool_before" not in overrides:
        notes.append(
            "config.json does not say when to pool: after the projector, as LLaVA-NeXT's main branch does "
            "(LLaVA-NeXT-Video-7B's own script pools before: override projector.pool_before=true)"
        )
    # Beyond the bound stands transformers' 1e30 for "no limit".
    length = read.number("tokenizer_model_max_length", sys.float_info.max)
    read("mm_hidden_size")  # the tower's width, which the tensors show
    read.close(PRETRAINED | TRAINING, ignore)
    cfg = VideoLLMConfig(
        family=name,
        vision=vision,
        projector=projector,
        decoder=decoder,
        prompt=known.prompt,
        n_frames=known.n_frames,
        max_length=int(length) if length <= LIMITS["max_length"] else None,
    )
    return override(cfg, overrides, ConversionError), notes


def _family(
    like: VisionConfig,
    qwen: bool,
    projector: ProjectorConfig,
    config: Mapping[str, Any],
    stated: str | None,
    notes: list[str],
) -> str:
    """The family stated by the checkpoint's name, or the only one that has these parts.

    It decides over prompt, frames and evaluators' conventions, none of which config.json holds. So it is never
    guessed among several.
    """
    fits = matching(like, qwen, projector.newline, projector.pool)
    if "mm_pooling_position" in config and not LLAVA_VIDEO & config.keys():
        fits = [f for f in fits if f != "llava-video"]
    if len(fits) == 1:
        return fits[0]
    if stated is not None and (stated in fits or not fits):
        notes.append(f"config.json fits {' as well as '.join(fits) or 'no family here'}; {stated}, as its name states")
        return stated
    example = (fits or ["llava-video"])[0]
    raise ConversionError(
        f"config.json (newline {projector.newline!r}, pool {projector.pool!r}) fits "
        f"{' as well as '.join(fits) or 'no family here'}, and families differ in prompts and evaluators' conventions. "
        f'Say which it is: overrides={{"family": "{example}"}} (--override family={example}); it may be one of '
        f"{', '.join(fits or FAMILIES)}"
    )


def _stride(read: Fields, name: str, projector: ProjectorConfig, notes: list[str]) -> int:
    """The side of the squares that are pooled into one.

    LongVA's code reads it from the config, and so did LLaVA-NeXT's older package, the only one to pool before the
    projector. LLaVA-NeXT's main branch sets the field aside and pools by 2.
    """
    said = read.count("mm_spatial_pool_stride", 2)
    if said == 2 or name == "longva" or projector.pool_before:
        return said
    notes.append(
        f"mm_spatial_pool_stride = {said} is set aside: LLaVA-NeXT's main branch pools by 2 whatever it says "
        f"(override projector.pool_stride={said} to pool by it)"
    )
    return 2


def _projector(
    read: Fields, vision: VisionConfig, decoder: DecoderConfig, notes: list[str], overrides: Mapping[str, Any]
) -> ProjectorConfig:
    merge = str(read("mm_patch_merge_type", "flat"))
    position = str(read("mm_newline_position", "one_token"))
    read.only("mm_newline_position", *NEWLINES)
    clip = vision.cls_token
    mode = read("mm_spatial_pool_mode")
    if mode is None:
        mode = "average" if clip else "bilinear"
        if "projector.pool" not in overrides:
            notes.append(f"config.json does not say how to pool; {mode}, as the original code does with this tower")
    if str(mode) not in POOLS:
        read.problems.append(f"mm_spatial_pool_mode = {mode!r} is not supported (only {', '.join(POOLS)})")
    when = read("mm_pooling_position")
    read.only("mm_pooling_position", None, "after", "before")
    return ProjectorConfig(
        d_in=vision.d_model,
        d_out=decoder.d_model,
        pool=POOLS.get(str(mode), "average"),
        pool_before=when == "before",
        newline=NEWLINES.get(position, "none") if "unpad" in merge else "none",
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


def read_internvideo(
    config: Mapping[str, Any],
    shapes: Shapes,
    overrides: Mapping[str, Any],
    ignore: Collection[str] = (),
    stated: str | None = None,
) -> tuple[VideoLLMConfig, list[str]]:
    """InternVLChatModel with an InternLM2 decoder, as InternVideo2.5 has it; arguments as `read_llava`.

    Frames per clip and tokens per clip are constants of the original code, not fields.
    """
    read = Fields(config, "config.json")
    notes: list[str] = []
    for name, value in (("select_layer", -1), ("ps_version", "v2"), ("downsample_ratio", 0.5)):
        read.only(name, value)
    llm = Fields(read.need("llm_config") or {}, "config.json, llm_config")
    llm.only("architectures", ["InternLM2ForCausalLM"])
    llm.only("bias", False)
    rows = rows_of(shapes, "language_model.model.tok_embeddings.weight")
    decoder = read_decoder(llm, rows, overrides, notes, kind="internlm2")
    decoder = replace(decoder, tied=decoder.tied or bool(read("tie_word_embeddings", False)))
    llm.close(PRETRAINED, ignore)
    vision = _intern_tower(Fields(read.need("vision_config") or {}, "config.json, vision_config"), ignore)
    read.only("force_image_size", vision.image_size, None)
    prompt = None if read("template") is None else str(read("template"))
    if prompt is None:
        prompt = "internvl2_5"
        notes.append("config.json names no template; internvl2_5, as InternVL2.5's configs do")
    read.close(PRETRAINED | INTERN, ignore)
    cfg = VideoLLMConfig(
        family="internvideo2.5",
        vision=vision,
        projector=ProjectorConfig(
            d_in=4 * vision.d_model,
            d_out=decoder.d_model,
            shuffle=2,
            merge=MergeConfig(metric_heads=decoder.n_heads),
            input_norm=True,
        ),
        decoder=decoder,
        prompt=prompt,
        sampler=FAMILIES["internvideo2.5"].sampler,
        max_length=None,
    )
    return override(cfg, overrides, ConversionError), notes


def _intern_tower(read: Fields, ignore: Collection[str]) -> VisionConfig:
    read.only("norm_type", "layer_norm")
    read.only("qk_normalization", False)
    read.only("num_channels", 3)
    sizes = {
        ours: read.count(theirs)
        for ours, theirs in {
            "n_layers": "num_hidden_layers", "d_model": "hidden_size", "n_heads": "num_attention_heads",
            "d_mlp": "intermediate_size", "image_size": "image_size", "patch_size": "patch_size",
        }.items()
    }  # fmt: skip
    act, eps, bias = read.act("hidden_act"), read.number("layer_norm_eps", 1e-6), bool(read("qkv_bias", True))
    read.close(PRETRAINED | INTERN_TOWER, ignore)
    return replace(INTERNVIT_300M, **sizes, act=act, eps=eps, qkv_bias=bias)
