"""config.json of published checkpoints as on the hub: whole ones in transformers' layout, decoders of the older.

Of it only what decides over names, shapes and the reading of the rest. Sources: the model cards' own files.
"""

from typing import Any

QWEN_IDS = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
            "vision_end_token_id": 151653, "bos_token_id": 151643, "eos_token_id": 151645}  # fmt: skip
QWEN_VL = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "vocab_size": 151936, "rope_theta": 1e6}
# Of the flat ones.
MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "use_sliding_window": False,
         "sliding_window": 32768, "vision_token_id": 151654, "torch_dtype": "bfloat16"}  # fmt: skip


def sizes(d: int, mlp: int, layers: int, heads: int, kv: int, **more: Any) -> dict[str, Any]:
    """A decoder's sizes under the names that configs have for them."""
    return {"hidden_size": d, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv, **more}  # fmt: skip


def qwen2_vl(**decoder: Any) -> dict[str, Any]:
    vision = {"hidden_size": decoder["hidden_size"], "in_chans": 3, "model_type": "qwen2_vl", "spatial_patch_size": 14}
    return {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", **QWEN_VL, **QWEN_IDS,
            **MROPE, "max_position_embeddings": 32768, **decoder, "vision_config": vision}  # fmt: skip


def qwen2_5_vl(**decoder: Any) -> dict[str, Any]:
    vision = {"hidden_size": 1280, "in_chans": 3, "spatial_patch_size": 14, "tokens_per_second": 2,
              "out_hidden_size": decoder["hidden_size"]}  # fmt: skip
    return {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", **QWEN_VL, **QWEN_IDS,
            **MROPE, "max_position_embeddings": 128000, **decoder, "vision_config": vision}  # fmt: skip


def qwen3_vl(tied: bool, decoder: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    text = {"model_type": "qwen3_vl_text", **QWEN_VL, "rope_theta": 5e6, "head_dim": 128, "attention_bias": False,
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "max_position_embeddings": 262144, "dtype": "bfloat16", "tie_word_embeddings": tied,
            **decoder}  # fmt: skip
    tower = {"model_type": "qwen3_vl", "hidden_act": "gelu_pytorch_tanh", "in_channels": 3, "num_heads": 16,
             "num_position_embeddings": 2304, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
             "out_hidden_size": decoder["hidden_size"], **vision}  # fmt: skip
    return {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", **QWEN_IDS,
            "tie_word_embeddings": tied, "text_config": text, "vision_config": tower}  # fmt: skip


def smolvlm2(decoder: dict[str, Any]) -> dict[str, Any]:
    text = {"model_type": "llama", "vocab_size": 49280, "rms_norm_eps": 1e-5, "rope_theta": 1e5, "head_dim": 64,
            "hidden_act": "silu", "max_position_embeddings": 8192, "tie_word_embeddings": False,
            **decoder}  # fmt: skip
    vision = {"model_type": "smolvlm_vision", "hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12,
              "intermediate_size": 3072, "image_size": 512, "patch_size": 16}  # fmt: skip
    return {"architectures": ["SmolVLMForConditionalGeneration"], "model_type": "smolvlm", "image_token_id": 49190,
            "scale_factor": 4, "tie_word_embeddings": False, "torch_dtype": "float32", "text_config": text,
            "vision_config": vision}  # fmt: skip


def internvl(decoder: dict[str, Any], **llm: Any) -> dict[str, Any]:
    """In the original layout, with the smaller tower."""
    tower = {"model_type": "intern_vit_6b", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
             "num_attention_heads": 16, "image_size": 448, "patch_size": 14, "num_channels": 3, "hidden_act": "gelu",
             "layer_norm_eps": 1e-6, "norm_type": "layer_norm", "qkv_bias": True,
             "qk_normalization": False}  # fmt: skip
    text = {**QWEN_VL, "tie_word_embeddings": False, "torch_dtype": "bfloat16", **decoder, **llm}
    return {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "select_layer": -1,
            "ps_version": "v2", "downsample_ratio": 0.5, "force_image_size": 448, "template": "internvl2_5",
            "dynamic_image_size": True, "use_thumbnail": True, "min_dynamic_patch": 1, "max_dynamic_patch": 12,
            "torch_dtype": "bfloat16", "tie_word_embeddings": False, "llm_config": text,
            "vision_config": tower}  # fmt: skip


SIGLIP_NAVIT = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27,
                "patch_size": 14, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}  # fmt: skip
QWEN_15B = {**QWEN_VL, **sizes(1536, 8960, 28, 12, 2), "max_position_embeddings": 32768, "tie_word_embeddings": True}
LARGE = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
SO400M = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}

CONFIGS = {
    "qwen2-vl-2b": qwen2_vl(**sizes(1536, 8960, 28, 12, 2), tie_word_embeddings=True),
    "qwen2-vl-7b": qwen2_vl(**sizes(3584, 18944, 28, 28, 4), vocab_size=152064),
    "qwen2.5-vl-3b": qwen2_5_vl(**sizes(2048, 11008, 36, 16, 2), tie_word_embeddings=True),
    "qwen2.5-vl-7b": qwen2_5_vl(**sizes(3584, 18944, 28, 28, 4), vocab_size=152064),
    "qwen3-vl-2b": qwen3_vl(True, sizes(2048, 6144, 28, 16, 8), LARGE),
    "qwen3-vl-4b": qwen3_vl(True, sizes(2560, 9728, 36, 32, 8), LARGE),
    "qwen3-vl-8b": qwen3_vl(False, sizes(4096, 12288, 36, 32, 8), SO400M),
    "internvl3-1b": internvl(
        sizes(896, 4864, 24, 14, 2), architectures=["Qwen2ForCausalLM"], model_type="qwen2", vocab_size=151674,
        max_position_embeddings=32768, rope_scaling={"type": "dynamic", "factor": 2.0},
    ),
    "internvl3.5-1b": internvl(
        sizes(1024, 3072, 28, 16, 8), architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=128,
        attention_bias=False, max_position_embeddings=40960, rope_scaling=None,
    ),
    "llava-onevision-1.5-4b": {
        "architectures": ["LLaVAOneVision1_5_ForConditionalGeneration"], "model_type": "llavaonevision1_5",
        "image_token_id": 151655, "video_token_id": 151656, "vocab_size": 151936, "tie_word_embeddings": False,
        "text_config": {
            "model_type": "LLaVAOneVision1_5_text", **QWEN_VL, "rope_theta": 5e6, "head_dim": 128,
            "max_position_embeddings": 32768, "attention_bias": False, "use_sliding_window": False,
            "tie_word_embeddings": False, **sizes(2560, 9728, 36, 32, 8),
        },
        "vision_config": {
            "model_type": "rice_vit", "depth": 24, "embed_dim": 1024, "hidden_size": 1024, "hidden_act": "gelu",
            "in_channels": 3, "intermediate_size": 4096, "layer_norm_eps": 1e-5, "num_heads": 16, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 1, "text_hidden_size": 2560,
        },
    },
    "smolvlm2-256m": smolvlm2(sizes(576, 1536, 30, 9, 3)),
    "smolvlm2-500m": smolvlm2(sizes(960, 2560, 32, 15, 5)),
    "videollama3-2b": {
        "architectures": ["Videollama3Qwen2ForCausalLM"], "model_type": "videollama3_qwen2", **QWEN_15B,
        "torch_dtype": "bfloat16", "image_token_index": 151665, "use_token_compression": True,
        "mm_projector_type": "mlp2x_gelu", "use_sliding_window": False, "vision_encoder": None,
        "vision_encoder_config": {"model_type": "videollama3_vision_encoder", **SIGLIP_NAVIT},
    },
    "videollama3-2b-image": {
        "architectures": ["VideoLlama3ForConditionalGeneration"], "model_type": "video_llama_3",
        "image_token_id": 151655, "video_token_id": 151656, "dtype": "bfloat16", "tie_word_embeddings": True,
        "text_config": {"model_type": "qwen2", **QWEN_15B},
        "vision_config": {"model_type": "video_llama_3_vision", **SIGLIP_NAVIT},
    },
    "video-llava-7b": {
        "architectures": ["VideoLlavaForConditionalGeneration"], "model_type": "video_llava", "torch_dtype": "float16",
        "image_token_index": 32000, "video_token_index": 32001, "ignore_index": -100, "projector_hidden_act": "gelu",
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "text_config": {
            "model_type": "llama", "vocab_size": 32064, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
            **sizes(4096, 11008, 32, 32, 32),
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "image_size": 224,
            "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
        },
    },
}  # fmt: skip

# Decoders of the packages of the authors' own.
QWEN = {"vocab_size": 152064, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768}
QWEN_7B = {**QWEN, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
           "num_attention_heads": 28, "num_key_value_heads": 4}  # fmt: skip
QWEN_05B = {**QWEN, "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
QWEN_32B = {**QWEN, "hidden_size": 5120, "intermediate_size": 27392, "num_hidden_layers": 64,
            "num_attention_heads": 40, "num_key_value_heads": 8}  # fmt: skip
LONG_7B = {**QWEN_7B, "rope_theta": 1e9, "max_position_embeddings": 224000}
INTERNLM = {"vocab_size": 92553, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768,
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "rope_scaling": {"type": "dynamic", "factor": 2.0}}  # fmt: skip
VICUNA = {"vocab_size": 32000, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 4096,
          "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
          "num_key_value_heads": 32}  # fmt: skip
