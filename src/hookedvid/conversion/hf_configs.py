"""transformers configs to ours; a field that is set, and neither read nor known to be harmless, is refused."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from hookedvid.conversion.decoder_fields import ROPE
from hookedvid.conversion.fields import Fields
from hookedvid.errors import ConversionError
from hookedvid.families.sizes import (
    CLIP_L_336,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIGLIP_SO400M,
)
from hookedvid.values.config import (
    DecoderConfig,
    ProjectorConfig,
    RopeConfig,
    VideoLLMConfig,
    VisionConfig,
)

# Fields that change no forward pass of ours. quantization_config is one where the weights are plain numbers again;
# packed ones are refused by their tensors.
HARMLESS = {
    "architectures", "attention_dropout", "chunk_size_feed_forward", "dtype", "head_dim", "hidden_dropout_prob",
    "id2label", "ignore_index", "image_grid_pinpoints", "image_seq_length", "initializer_factor",
    "initializer_range", "is_encoder_decoder", "label2id", "layer_scale_init_value", "layer_types",
    "max_window_layers", "model_type", "output_attentions", "output_hidden_states", "pretraining_tp",
    "problem_type", "projection_dim", "projection_dropout", "quantization_config", "return_dict", "sliding_window",
    "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache", "use_image_newline_parameter",
    "video_seq_length", "vision_aspect_ratio", "vision_use_head",
}  # fmt: skip


class _Reader(Fields):
    """The fields a transformers config sets away from its class's defaults; absent ones are its defaults."""

    def __init__(self, config: Any):
        super().__init__(config.to_diff_dict(), type(config).__name__)
        self.config = config

    def __call__(self, name: str, default: Any = None) -> Any:
        self.taken.add(name)
        return getattr(self.config, name, default)


def read_decoder(config: Any, ignore: Collection[str] = ()) -> DecoderConfig:
    """Qwen2Config or LlamaConfig; ignore: fields that the caller knows to change nothing."""
    read = _Reader(config)
    is_qwen = config.model_type == "qwen2"
    if config.model_type not in ("qwen2", "llama"):
        raise ConversionError(f"decoder model_type {config.model_type!r} is not supported (only 'qwen2', 'llama')")
    read.only("use_sliding_window", False)
    if sliding := set(read("layer_types", None) or ()) - {"full_attention"}:
        read.problems.append(f"layer_types holds {sorted(sliding)}: only full attention is supported")
    read.only("mlp_bias", False)
    heads = read("num_attention_heads")
    bias = bool(read("attention_bias", False))
    act = read.act("hidden_act")
    cfg = DecoderConfig(
        n_layers=read("num_hidden_layers"),
        d_model=read("hidden_size"),
        n_heads=heads,
        n_kv_heads=read("num_key_value_heads", heads),
        d_head=getattr(config, "head_dim", None) or config.hidden_size // heads,
        d_mlp=read("intermediate_size"),
        d_vocab=read("vocab_size"),
        n_ctx=read("max_position_embeddings"),
        act=act,
        eps=float(read("rms_norm_eps")),
        qkv_bias=is_qwen or bias,
        o_bias=bias and not is_qwen,
        tied=bool(config.tie_word_embeddings),
        rope=_read_rope(read),
    )
    read.close(HARMLESS, ignore)
    return cfg


def _read_rope(read: _Reader) -> RopeConfig:
    rope = dict(read("rope_parameters", {}) or {})
    read.taken |= {"rope_theta", "rope_scaling"}  # older spellings of rope_parameters
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    theta, factor = rope.pop("rope_theta", 10000.0), rope.pop("factor", 1.0)
    rope.pop("original_max_position_embeddings", None)
    scaling = ROPE.get(kind)
    if scaling is None or rope:
        read.problems.append(f"rope {kind!r} with {rope} is not supported (only default, linear, dynamic)")
    return RopeConfig(theta=float(theta), scaling=scaling or "none", factor=float(factor))


def read_tower(
    config: Any, n_layers: int | None = None, final_norm: bool = False, ignore: Collection[str] = ()
) -> VisionConfig:
    """CLIPVisionConfig, SiglipVisionConfig or InternVLVisionConfig; `n_layers` blocks of it run (default all)."""
    kind = config.model_type
    if kind not in ("clip_vision_model", "siglip_vision_model", "internvl_vision"):
        raise ConversionError(
            f"vision model_type {kind!r} is not supported (only 'clip_vision_model', 'siglip_vision_model', "
            "'internvl_vision')"
        )
    read = _Reader(config)
    like = CLIP_L_336 if kind == "clip_vision_model" else SIGLIP_SO400M
    intern = kind == "internvl_vision"
    read.only("num_channels", 3)
    if intern:
        read.only("use_qk_norm", False)
        read.only("norm_type", "layer_norm")
        read.only("use_mask_token", False)
        read.only("use_absolute_position_embeddings", True)
    total = read("num_hidden_layers")
    act = read.act("hidden_act")
    cfg = VisionConfig(
        n_layers=total if n_layers is None else n_layers,
        d_model=read("hidden_size"),
        n_heads=read("num_attention_heads"),
        d_mlp=read("intermediate_size"),
        image_size=_square(read, "image_size"),
        patch_size=_square(read, "patch_size"),
        act=act,
        eps=float(read("layer_norm_eps")),
        patch_bias=kind != "clip_vision_model",
        qkv_bias=bool(read("attention_bias", True)) if intern else True,
        cls_token=kind != "siglip_vision_model",
        pre_norm=kind == "clip_vision_model",
        layer_scale=intern,
        final_norm=final_norm or (intern and not read("use_mean_pooling", True)),
        resize=like.resize,
        mean=IMAGENET_MEAN if intern else like.mean,
        std=IMAGENET_STD if intern else like.std,
    )
    read.close(HARMLESS, ignore)
    return cfg


def _square(read: _Reader, name: str) -> int:
    size = read(name)
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        read.problems.append(f"{name} = {size!r} is not square")
    return size[0]


def read_llava(config: Any, ignore: Collection[str] = ()) -> VideoLLMConfig:
    """LlavaOnevisionConfig or LlavaNextVideoConfig.

    OneVision pools bilinearly after the projector and ends the video with one newline; NeXT-Video pools
    before it, by its config's mode and stride, and has no newline.
    """
    read = _Reader(config)
    onevision = config.model_type == "llava_onevision"
    read.taken |= {"text_config", "vision_config"}
    read.only("projector_hidden_act", "gelu")
    read.only("multimodal_projector_bias", True)
    decoder = read_decoder(config.text_config, ignore)
    decoder = replace(decoder, tied=decoder.tied or bool(config.tie_word_embeddings))
    layer = read("vision_feature_layer", -1)
    total = config.vision_config.num_hidden_layers
    if not isinstance(layer, int):
        read.problems.append(f"vision_feature_layer = {layer!r}: features of several layers are not supported")
        layer = -1
    # hidden_states[0] is the embedding, so index k is the stream after k blocks.
    tower = read_tower(config.vision_config, layer if layer >= 0 else total + 1 + layer, ignore=ignore)
    wanted = "default" if tower.cls_token else "full"
    read.only("vision_feature_select_strategy", wanted)
    mode = "bilinear" if onevision else read("spatial_pool_mode", "average")
    if mode not in ("bilinear", "average", "max"):
        read.problems.append(f"spatial_pool_mode = {mode!r} is not supported (only 'average', 'max')")
        mode = "average"
    projector = ProjectorConfig(
        d_in=tower.d_model,
        d_out=decoder.d_model,
        pool=mode,
        pool_stride=2 if onevision else read("spatial_pool_stride", 2),
        pool_before=not onevision,
        newline="once" if onevision else "none",
    )
    placeholder = read("video_token_index", None) or read("video_token_id", None)
    read.close(HARMLESS, ignore)
    return VideoLLMConfig(
        family="llava-onevision" if onevision else "llava-next-video",
        vision=tower,
        projector=projector,
        decoder=decoder,
        prompt="qwen_1_5" if decoder.qkv_bias else "vicuna_v1",
        placeholder_id=placeholder,
    )
