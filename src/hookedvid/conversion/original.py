"""config.json of the original packages (LLaVA-NeXT, LongVA, InternVideo2.5), and what only the tensors tell."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hookedvid.config import (
    DecoderConfig,
    MergeConfig,
    Newline,
    Pool,
    ProjectorConfig,
    RopeConfig,
    VideoLLMConfig,
    VisionConfig,
)
from hookedvid.conversion.fields import Fields
from hookedvid.errors import ConversionError
from hookedvid.families import CLIP_L_336, FAMILIES, INTERNVIT_300M, SIGLIP_SO400M
from hookedvid.values import override

Shapes = Mapping[str, Sequence[int]]
TOWER = "model.vision_tower.vision_tower.vision_model."
TOWERS = {"siglip-so400m-patch14-384": SIGLIP_SO400M, "clip-vit-large-patch14-336": CLIP_L_336}
NEWLINES: dict[str, Newline] = {"grid": "row", "one_token": "once", "frame": "frame", "no_token": "none"}
POOLS: dict[str, Pool] = {"average": "average", "max": "max", "bilinear": "bilinear"}

# What transformers 4 writes into every config, and what LLaVA's training scripts left behind.
PRETRAINED = set(
    "_attn_implementation_internal _commit_hash _name_or_path add_cross_attention architectures attention_dropout "
    "attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward "
    "cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample early_stopping "
    "encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id "
    "forced_eos_token_id id2label initializer_factor initializer_range is_decoder is_encoder_decoder label2id "
    "length_penalty max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams "
    "num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp "
    "problem_type pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate "
    "sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder "
    "tokenizer_class top_k top_p torch_dtype dtype torchscript transformers_version typical_p use_bfloat16 "
    "use_cache".split()
)
TRAINING = set(
    "add_time_instruction delay_load faster_token_stride force_sample freeze_mm_mlp_adapter freeze_mm_vision_resampler "
    "frames_upbound ignore_index image_aspect_ratio image_crop_resolution image_grid_pinpoints image_seq_length "
    "image_split_resolution image_token_index max_window_layers mm_projector_lr mm_resampler_location "
    "mm_tunable_parts mm_vision_tower_lr pos_skipping_range pretrain_mm_mlp_adapter sliding_window "
    "tokenizer_padding_side tune_entire_model tune_mm_mlp_adapter tune_mm_vision_resampler tune_vision_tower "
    "unfreeze_mm_vision_tower use_mm_proj use_pos_skipping vision_tower_lr vision_tower_pretrained".split()
)
INTERN = set(
    "dynamic_image_size hidden_size max_dynamic_patch min_dynamic_patch pad2square "
    "tie_word_embeddings use_backbone_lora use_llm_lora use_thumbnail".split()
)
INTERN_TOWER = set("attention_dropout drop_path_rate dropout use_flash_attn tie_word_embeddings".split())


def read_llava(
    config: Mapping[str, Any], shapes: Shapes, overrides: Mapping[str, Any], ignore: Collection[str] = ()
) -> tuple[VideoLLMConfig, list[str]]:
    """LlavaQwenForCausalLM or LlavaLlamaForCausalLM, and notes on what its config.json leaves open.

    shapes: the checkpoint's tensors; the tower's sizes and the vocabulary's rows are read from them.
    """
    read = Fields(config, "config.json")
    notes: list[str] = []
    qwen = config["architectures"][0] == "LlavaQwenForCausalLM"
    name = read.need("mm_vision_tower")
    like = next((t for known, t in TOWERS.items() if known in str(name).replace("\\", "/")), None)
    if like is None:
        raise ConversionError(f"config.json: mm_vision_tower = {name!r} is not supported (only {', '.join(TOWERS)})")
    read.only("mm_projector_type", "mlp2x_gelu")
    for off in ("mm_use_im_start_end", "mm_use_im_patch_token", "add_faster_video", "use_sliding_window"):
        read.only(off, False, None)
    read.only("mm_resampler_type", None)
    read.only("mm_vision_select_feature", "patch")
    decoder = _decoder(read, shapes.get("model.embed_tokens.weight", (0,))[0], qkv_bias=qwen, scaled=not qwen)
    vision = _tower(like, TOWER, shapes, overrides, str(name), read("mm_vision_select_layer", -2))
    projector = _projector(read, vision, decoder, notes, overrides)
    if not qwen and config.get("mm_pooling_position") is None and "projector.pool_before" not in overrides:
        notes.append(
            "config.json does not say when to pool: after the projector, as LLaVA-NeXT's main branch does "
            "(LLaVA-NeXT-Video-7B's own script pools before: override projector.pool_before=true)"
        )
    length = read("tokenizer_model_max_length")
    read("mm_hidden_size")  # the tower's width, which the tensors show
    read.close(PRETRAINED | TRAINING, ignore)
    family = _family(like, qwen, projector)
    cfg = VideoLLMConfig(
        family=family,
        vision=vision,
        projector=projector,
        decoder=decoder,
        prompt=FAMILIES[family].prompt,
        n_frames=FAMILIES[family].n_frames,
        max_length=length,
    )
    return override(cfg, overrides, ConversionError), notes


def _family(like: VisionConfig, qwen: bool, projector: ProjectorConfig) -> str:
    if like is CLIP_L_336:
        return "longva" if qwen and projector.newline == "none" else "llava-next-video"
    if projector.newline == "once":
        return "llava-onevision"
    return "llava-video" if projector.pool == "bilinear" else "llava-next-video-qwen"


def _projector(
    read: Fields, vision: VisionConfig, decoder: DecoderConfig, notes: list[str], overrides: Mapping[str, Any]
) -> ProjectorConfig:
    merge = str(read("mm_patch_merge_type", "flat"))
    position = read("mm_newline_position", "one_token")
    read.only("mm_newline_position", *NEWLINES)
    clip = vision.cls_token
    mode = read("mm_spatial_pool_mode")
    if mode is None:
        mode = "average" if clip else "bilinear"
        if "projector.pool" not in overrides:
            notes.append(f"config.json does not say how to pool; {mode}, as the original code does with this tower")
    if mode not in POOLS:
        read.problems.append(f"mm_spatial_pool_mode = {mode!r} is not supported (only {', '.join(POOLS)})")
    when = read("mm_pooling_position")
    read.only("mm_pooling_position", None, "after", "before")
    return ProjectorConfig(
        d_in=vision.d_model,
        d_out=decoder.d_model,
        pool=POOLS.get(mode, "average"),
        pool_stride=read("mm_spatial_pool_stride") or 2,
        pool_before=when == "before",
        newline=NEWLINES.get(position, "none") if "unpad" in merge else "none",
    )


def _decoder(read: Fields, rows: int, *, qkv_bias: bool, scaled: bool) -> DecoderConfig:
    """Qwen2, Llama and InternLM2; `scaled` families honour rope_scaling, LLaVA's Qwen2 sets it aside."""
    read.only("attention_bias", False)
    read.only("mlp_bias", False)
    read("vocab_size")  # the embedding shows its rows
    heads, width = read.need("num_attention_heads"), read.need("hidden_size")
    needed = [read.need(n) for n in ("num_hidden_layers", "intermediate_size", "max_position_embeddings")]
    scaling = read("rope_scaling")
    act = read.act("hidden_act")
    rope = _rope(read, scaling if scaled else None)
    read.raise_problems()
    return DecoderConfig(
        n_layers=needed[0],
        d_model=width,
        n_heads=heads,
        n_kv_heads=read("num_key_value_heads") or heads,
        d_head=read("head_dim") or width // heads,
        d_mlp=needed[1],
        d_vocab=rows,
        n_ctx=needed[2],
        act=act,
        eps=float(read("rms_norm_eps", 1e-6)),
        qkv_bias=qkv_bias,
        tied=bool(read("tie_word_embeddings", False)),
        rope=rope,
    )


def _rope(read: Fields, scaling: Mapping[str, Any] | None) -> RopeConfig:
    theta = float(read("rope_theta", 10000.0))
    if not scaling:
        return RopeConfig(theta=theta)
    kind, factor = scaling.get("type", scaling.get("rope_type")), float(scaling.get("factor", 1.0))
    extra = scaling.keys() - {"type", "rope_type", "factor"}
    if kind not in ("linear", "dynamic") or extra:
        read.problems.append(f"rope_scaling = {dict(scaling)!r} is not supported (only linear, dynamic)")
        return RopeConfig(theta=theta)
    return RopeConfig(theta=theta, scaling=kind, factor=factor)


def _tower(
    like: VisionConfig, prefix: str, shapes: Shapes, overrides: Mapping[str, Any], name: str, layer: int
) -> VisionConfig:
    """The tower config.json names, its sizes from the tensors.

    Where those differ from the named tower's, the number of heads, which no tensor shows, must be stated.
    """
    vision = {k.removeprefix("vision."): v for k, v in overrides.items() if k.startswith("vision.")}
    held = _numbers(f"{prefix}encoder.layers.", shapes)
    try:
        patches, rows = (
            shapes[f"{prefix}embeddings.patch_embedding.weight"],
            shapes[f"{prefix}embeddings.position_embedding.weight"],
        )
        d_mlp = shapes[f"{prefix}encoder.layers.0.mlp.fc1.weight"][0]
    except KeyError as e:
        raise ConversionError(
            f"the checkpoint has no tensor {e.args[0]!r}, so its vision tower cannot be read"
        ) from None
    # CLIP's features are those of layer `mm_vision_select_layer`; SigLIP's last block was deleted at training.
    runs = held if like is SIGLIP_SO400M else (layer if layer >= 0 else held + 1 + layer)
    shown = {"n_layers": runs, "d_model": patches[0], "d_mlp": d_mlp, "patch_size": patches[2]}
    grid = round((rows[0] - like.cls_token) ** 0.5)
    size = vision.get("image_size", like.image_size)
    shown["image_size"] = size if size // patches[2] == grid else grid * patches[2]
    differs = {k: v for k, v in shown.items() if v != getattr(like, k)}
    if differs and "n_heads" not in vision:
        told = ", ".join(f"{k} {v} and not {getattr(like, k)}" for k, v in differs.items())
        raise ConversionError(
            f"config.json names the tower {name!r}, but the tensors have {told}; if they are right, state what no "
            'tensor shows: overrides={"vision.n_heads": …} (--override vision.n_heads=…)'
        )
    return override(replace(like, **shown, n_heads=1), {"n_heads": like.n_heads, **vision}, ConversionError)


def _numbers(prefix: str, shapes: Shapes) -> int:
    """How many layers stand under a prefix."""
    found = {n[len(prefix) :].split(".")[0] for n in shapes if n.startswith(prefix)}
    return len({f for f in found if f.isdigit()})


def read_internvideo(
    config: Mapping[str, Any], shapes: Shapes, overrides: Mapping[str, Any], ignore: Collection[str] = ()
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
    rows = shapes.get("language_model.model.tok_embeddings.weight", (0,))[0]
    decoder = _decoder(llm, rows, qkv_bias=False, scaled=True)
    llm.close(PRETRAINED, ignore)
    vision = _intern_tower(Fields(read.need("vision_config") or {}, "config.json, vision_config"), ignore)
    read.only("force_image_size", vision.image_size, None)
    prompt = read("template")
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
        ours: read.need(theirs)
        for ours, theirs in {
            "n_layers": "num_hidden_layers", "d_model": "hidden_size", "n_heads": "num_attention_heads",
            "d_mlp": "intermediate_size", "image_size": "image_size", "patch_size": "patch_size",
        }.items()
    }  # fmt: skip
    act, eps, bias = read.act("hidden_act"), float(read("layer_norm_eps", 1e-6)), bool(read("qkv_bias", True))
    read.close(PRETRAINED | INTERN_TOWER, ignore)
    return replace(INTERNVIT_300M, **sizes, act=act, eps=eps, qkv_bias=bias)
