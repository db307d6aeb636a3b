"""Published sizes: configs as the hub has them, and all tensors of the classes that read them."""

from math import prod
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hookedvid.checkpoints import layouts
from hookedvid.conversion.rules import match
from hookedvid.errors import ConversionError
from hookedvid.families.registry import PUBLISHED
from hookedvid.nn.parts import parameter_shapes
from hookedvid.values.config import VideoLLMConfig


def text(kind: str, d: int, d_mlp: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> dict:
    sizes = {"hidden_size": d, "intermediate_size": d_mlp, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {"model_type": kind, **sizes, "num_key_value_heads": kv_heads, "vocab_size": vocab, **more}


def smolvlm(text_config: dict, vision: dict, scale: int) -> dict:
    return {
        "architectures": ["SmolVLMForConditionalGeneration"], "model_type": "smolvlm", "image_token_id": 49190,
        "pad_token_id": 128002, "scale_factor": scale, "tie_word_embeddings": False, "torch_dtype": "float32",
        "use_reentrant_checkpointing": False, "vocab_size": 49280, "text_config": text_config,
        "vision_config": {"model_type": "smolvlm_vision", **vision},
    }  # fmt: skip


SMOL = {"head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 100000, "max_position_embeddings": 8192}
B16 = {"hidden_size": 768, "image_size": 512, "num_attention_heads": 12, "patch_size": 16}
SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "patch_size": 14,
}  # fmt: skip
QWEN = {"rope_theta": 1e6, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6}
QWEN_2B = text("qwen2", 1536, 8960, 28, 12, 2, 151936, **QWEN, tie_word_embeddings=True)
# Config as published, parameters of theirs. Video-LLaVA has two towers.
SIZES: dict[str, tuple[dict, int]] = {
    "smolvlm2-256m": (smolvlm(text("llama", 576, 1536, 30, 9, 3, 49280, **SMOL), B16, 4), 256_484_928),
    "smolvlm2-500m": (smolvlm(text("llama", 960, 2560, 32, 15, 5, 49280, **SMOL), B16, 4), 507_482_304),
    "smolvlm2-2.2b": (
        smolvlm(text("llama", 2048, 8192, 24, 32, 32, 49280, **SMOL), {**SO400M, "image_size": 384}, 3),
        2_246_784_880,
    ),
    "videollama3-2b-image": (
        {
            "architectures": ["VideoLlama3ForConditionalGeneration"], "model_type": "video_llama_3",
            "image_token_id": 151655, "video_token_id": 151656, "text_config": QWEN_2B,
            "vision_config": {"model_type": "video_llama_3_vision", **SO400M},
        },
        1_959_993_584,
    ),
    "video-llava-7b": (
        {
            "architectures": ["VideoLlavaForConditionalGeneration"], "model_type": "video_llava",
            "image_token_index": 32000, "video_token_index": 32001, "projector_hidden_act": "gelu",
            "text_config": text("llama", 4096, 11008, 32, 32, 32, 32064, rms_norm_eps=1e-5),
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "image_size": 224,
                "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "projection_dim": 768,
                "vocab_size": 32000,
            },
            "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        },
        7_366_279_168,
    ),
}  # fmt: skip


def upstream(config: dict) -> dict[str, Tensor]:
    """The tensors of the class that a config names, without memory, one of a name where two are tied."""
    cls = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        model = cls(transformers.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)))
    tied = getattr(model, "all_tied_weights_keys", {}) if model.config.tie_word_embeddings else {}
    return {name: x for name, x in model.state_dict().items() if name not in tied}


def read(config: dict, shapes: dict[str, torch.Size]) -> VideoLLMConfig:
    reading = layouts.read(config, shapes)
    match(shapes, reading.table, parameter_shapes(reading.cfg), "the checkpoint")
    return reading.cfg


@pytest.mark.parametrize("name", SIZES)
def test_every_tensor_of_a_published_size_has_its_place(name):
    config, n_parameters = SIZES[name]
    theirs = upstream(config)
    assert sum(x.numel() for x in theirs.values()) == n_parameters
    cfg = read(config, {n: x.shape for n, x in theirs.items()})
    ours = sum(prod(s) for s in parameter_shapes(cfg).values())
    assert ours == n_parameters if name != "video-llava-7b" else ours < n_parameters
    file = n_parameters * (4 if name.startswith("smol") else 2) / 1e9
    assert abs(PUBLISHED[name].size - file) < 0.06
    tokens = PUBLISHED[name].tokens.split()[0]
    assert cfg.vision.resize == "fit" or cfg.tokens_per_frame == int(tokens)


def test_the_authors_layout_at_full_size():
    """Its config.json keeps what training left there."""
    decoder = {k: v for k, v in QWEN_2B.items() if k != "model_type"}
    config = {
        "architectures": ["Videollama3Qwen2ForCausalLM"], "model_type": "videollama3_qwen2", **decoder,
        "hidden_act": "silu", "image_aspect_ratio": "square", "image_size": -1, "image_token_index": 151665,
        "image_token_length": 1, "is_alignment": False, "llm_lr": 1e-5, "max_frames": 180, "max_window_layers": 28,
        "mm_hidden_size": 1152, "mm_projector_lr": 1e-5, "mm_projector_type": "mlp2x_gelu", "sliding_window": None,
        "rope_scaling": None, "tokenizer_model_max_length": 16384, "tokenizer_padding_side": "right",
        "use_mm_proj": True, "use_sliding_window": False, "use_token_compression": True, "vision_encoder": None,
        "vision_encoder_config": {"model_type": "videollama3_vision_encoder", **SO400M}, "vision_encoder_lr": 2e-6,
    }  # fmt: skip
    names = {
        "model.language_model.": "model.",
        "model.vision_model.": "model.vision_encoder.",
        "model.projector.": "model.mm_projector.",
    }
    shapes = {}
    for name, x in upstream(SIZES["videollama3-2b-image"][0]).items():
        start = next((s for s in names if name.startswith(s)), "")
        shapes[names.get(start, "") + name.removeprefix(start)] = x.shape
    cfg = read(config, shapes)
    assert cfg.vision.drop_below == 0.1 and cfg.placeholder_id == 151665 and cfg.lm.tied
    assert sum(prod(s) for s in parameter_shapes(cfg).values()) == 1_959_993_584
    assert read({**config, "use_token_compression": False}, shapes).vision.drop_below is None
    with pytest.raises(ConversionError, match=r"rope_scaling = .* is not supported \(only None\)"):
        read({**config, "rope_scaling": {"type": "yarn"}}, shapes)
