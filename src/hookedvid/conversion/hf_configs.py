"""Parts of transformers configs to ours; a field that is set, and neither read nor known to be harmless, is refused."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from hookedvid.conversion.decoder_fields import ROPE
from hookedvid.conversion.fields import Fields
from hookedvid.errors import ConversionError
from hookedvid.values.config import DecoderConfig, RopeConfig, VisionConfig
from hookedvid.values.parts import CLIP_L_336, INTERNVIT_300M, SIGLIP_SO400M, SMOLVLM_SIGLIP_512

# Fields that change no forward pass of ours. quantization_config is one where the weights are plain numbers again;
# packed ones are refused by their tensors.
HARMLESS = {
    "architectures", "attention_dropout", "chunk_size_feed_forward", "dtype", "head_dim", "hidden_dropout_prob",
    "id2label", "ignore_index", "image_grid_pinpoints", "image_seq_length", "initializer_factor",
    "initializer_range", "is_encoder_decoder", "label2id", "layer_scale_init_value", "layer_types",
    "max_window_layers", "model_type", "output_attentions", "output_hidden_states", "pretraining_tp",
    "problem_type", "projection_dim", "projection_dropout", "quantization_config", "return_dict", "sliding_window",
    "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache", "use_image_newline_parameter",
    "video_seq_length", "vision_aspect_ratio", "vision_use_head", "vocab_size",
}  # fmt: skip
# What a tower is beside the sizes that its config states, by transformers' model type.
TOWERS = {
    "clip_vision_model": CLIP_L_336,
    "siglip_vision_model": SIGLIP_SO400M,
    "internvl_vision": INTERNVIT_300M,
    "smolvlm_vision": SMOLVLM_SIGLIP_512,
}
DECODERS = ("qwen2", "qwen3", "llama")


class ConfigFields(Fields):
    """The fields a transformers config sets away from its class's defaults; absent ones are its defaults."""

    def __init__(self, config: Any):
        super().__init__(config.to_diff_dict(), type(config).__name__)
        self.config = config

    def __call__(self, name: str, default: Any = None) -> Any:
        """A field, or its class's default."""
        self.taken.add(name)
        return getattr(self.config, name, default)


def read_decoder(config: Any, ignore: Collection[str] = (), kind: str | None = None) -> DecoderConfig:
    """Qwen2Config, Qwen3Config or LlamaConfig, or a config of one of these under another name.

    Args:
        ignore: Fields that the caller knows to change nothing.
        kind: The model type that it is like; its own unless given.
    """
    read = ConfigFields(config)
    kind = kind or config.model_type
    if kind not in DECODERS:
        raise ConversionError(f"decoder model_type {kind!r} is not supported (only {', '.join(map(repr, DECODERS))})")
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
        qkv_bias=kind == "qwen2" or bias,
        o_bias=bias and kind != "qwen2",
        tied=bool(getattr(config, "tie_word_embeddings", False)),
        rope=_read_rope(read),
        qk_norm=kind == "qwen3",
    )
    read.close(HARMLESS, ignore)
    return cfg


def _read_rope(read: ConfigFields) -> RopeConfig:
    rope = dict(read("rope_parameters", {}) or {})
    read.taken |= {"rope_theta", "rope_scaling"}  # older spellings of rope_parameters
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    theta, factor = rope.pop("rope_theta", 10000.0), rope.pop("factor", 1.0)
    rope.pop("original_max_position_embeddings", None)
    for name in ("mrope_section", "mrope_interleaved"):  # of positions on several axes, which these classes do not have
        rope.pop(name, None)
    scaling = ROPE.get(kind)
    if scaling is None or rope:
        read.problems.append(f"rope {kind!r} with {rope} is not supported (only default, linear, dynamic)")
    return RopeConfig(theta=float(theta), scaling=scaling or "none", factor=float(factor))


def read_tower(
    config: Any, n_layers: int | None = None, final_norm: bool = False, ignore: Collection[str] = ()
) -> VisionConfig:
    """The config of a tower of `TOWERS`; `n_layers` blocks of it run (default all)."""
    kind = config.model_type
    if kind not in TOWERS:
        raise ConversionError(f"vision model_type {kind!r} is not supported (only {', '.join(map(repr, TOWERS))})")
    read = ConfigFields(config)
    intern = kind == "internvl_vision"
    read.only("num_channels", 3)
    rms, qk_norm = intern and read("norm_type") == "rms_norm", intern and bool(read("use_qk_norm"))
    if intern:
        read.only("norm_type", "layer_norm", "rms_norm")
        read.only("use_mask_token", False)
        read.only("use_absolute_position_embeddings", True)
    if rms:  # whose last norm, if there is one, is a LayerNorm all the same
        read.only("use_mean_pooling", True)
    if qk_norm:  # the class's norms of q and k have this eps, whatever the others have
        read.only("layer_norm_eps", 1e-6)
    total = read("num_hidden_layers")
    act = read.act("hidden_act")
    cfg = replace(
        TOWERS[kind],
        n_layers=total if n_layers is None else n_layers,
        d_model=read("hidden_size"),
        n_heads=read("num_attention_heads"),
        d_mlp=read("intermediate_size"),
        image_size=_square(read, "image_size"),
        patch_size=_square(read, "patch_size"),
        act=act,
        eps=float(read("layer_norm_eps")),
        qkv_bias=bool(read("attention_bias", True)) if intern else True,
        final_norm=final_norm or (intern and not read("use_mean_pooling", True)),
        norm="rms" if rms else "layer",
        qk_norm=qk_norm,
    )
    read.close(HARMLESS, ignore)
    return cfg


def _square(read: ConfigFields, name: str) -> int:
    size = read(name)
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        read.problems.append(f"{name} = {size!r} is not square")
    return size[0]
