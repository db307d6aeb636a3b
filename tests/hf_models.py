"""Tiny random transformers models to compare with, moved away from their initial weights."""

from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)
from transformers.models.internvl.configuration_internvl import InternVLConfig, InternVLVisionConfig
from transformers.models.internvl.modeling_internvl import InternVLForConditionalGeneration, InternVLVisionModel

D_VOCAB = 128
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
VIDEO_ID, IMAGE_ID = 120, 121
DECODERS: dict[str, tuple[Any, Any]] = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    "llama": (LlamaForCausalLM, LlamaConfig),
}
SIX_BILLION = {"norm_type": "rms_norm", "use_qk_norm": True}  # InternViT-6B's
TOWERS: dict[str, tuple[Any, Any]] = {
    "clip": (CLIPVisionModel, CLIPVisionConfig),
    "siglip": (SiglipVisionModel, SiglipVisionConfig),
    "internvl": (InternVLVisionModel, InternVLVisionConfig),
}


def perturbed(model: nn.Module, scale: float = 0.1) -> Any:
    """Noise on every parameter: norms at 1 and biases at 0 would hide tensors that are swapped or lost."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * scale)
    return model.eval()


def decoder_config(kind: str = "qwen2", **given: Any) -> Any:
    sizes = dict(SIZES)
    if kind == "qwen3":
        sizes["head_dim"] = 16  # wider than hidden_size / heads, as in some of its sizes
    return DECODERS[kind][1](**{"vocab_size": D_VOCAB, **sizes, "num_key_value_heads": 2, **given})


def decoder(kind: str = "qwen2", *, dtype: torch.dtype = torch.float32, kernel: str = "sdpa", **given: Any) -> Any:
    """A decoder with its head; `dtype` is set as it is made, since a cast would round inv_freq."""
    torch.manual_seed(0)
    cls, config = DECODERS[kind][0], decoder_config(kind, **given)
    return perturbed(cls._from_config(config, dtype=dtype, attn_implementation=kernel))


def tower_config(kind: str = "clip", size: int = 70, **given: Any) -> Any:
    square = [size, size] if kind == "internvl" else size
    patch = [14, 14] if kind == "internvl" else 14
    return TOWERS[kind][1](**{**SIZES, "image_size": square, "patch_size": patch, **given})


def tower(kind: str = "clip", size: int = 70, *, kernel: str = "sdpa", **given: Any) -> Any:
    """A CLIPVisionModel, SiglipVisionModel or InternVLVisionModel."""
    torch.manual_seed(0)
    return perturbed(TOWERS[kind][0]._from_config(tower_config(kind, size, **given), attn_implementation=kernel))


def onevision(*, dtype: torch.dtype = torch.float32, text: dict | None = None, **given: Any) -> Any:
    """LLaVA-OneVision: SigLIP without its pooling head, Qwen2, one newline after the video."""
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        vision_config=tower_config("siglip", vision_use_head=False).to_dict(),
        text_config=decoder_config("qwen2", **(text or {})).to_dict(),
        video_token_index=VIDEO_ID,
        image_token_index=IMAGE_ID,
        **given,
    )
    return perturbed(LlavaOnevisionForConditionalGeneration._from_config(config, dtype=dtype))


def next_video(*, dtype: torch.dtype = torch.float32, vision: dict | None = None, **given: Any) -> Any:
    """LLaVA-NeXT-Video: CLIP up to its last block but one, Llama, pooled before the projector."""
    torch.manual_seed(0)
    config = LlavaNextVideoConfig(
        vision_config=tower_config("clip", **(vision or {})).to_dict(),
        text_config=decoder_config("llama").to_dict(),
        video_token_index=VIDEO_ID,
        image_token_index=IMAGE_ID,
        **given,
    )
    return perturbed(LlavaNextVideoForConditionalGeneration._from_config(config, dtype=dtype))


def internvl(
    kind: str = "qwen3", *, dtype: torch.dtype = torch.float32, kernel: str = "sdpa",
    text: dict | None = None, vision: dict | None = None, **given: Any,
) -> Any:  # fmt: skip
    """InternVL with a decoder of some kind: a tower of 4 x 4 patches, which become 2 x 2 tokens."""
    torch.manual_seed(0)
    config = InternVLConfig(
        vision_config=tower_config("internvl", 56, **(vision or {})).to_dict(),
        text_config=decoder_config(kind, **(text or {})).to_dict(),
        **{"image_token_id": VIDEO_ID, "tie_word_embeddings": False, **given},
    )
    cls = InternVLForConditionalGeneration
    return perturbed(cls._from_config(config, dtype=dtype, attn_implementation=kernel))


QWEN_VL: dict[str, dict[str, Any]] = {
    "Qwen2VL": {"embed_dim": 32, "hidden_size": 32},
    "Qwen2_5_VL": {
        "hidden_size": 32, "intermediate_size": 44, "out_hidden_size": 32, "window_size": 56,
        "fullatt_block_indexes": [1], "tokens_per_second": 2,
    },
    "Qwen3VL": {
        "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "num_position_embeddings": 49,
        "deepstack_visual_indexes": [0, 1],
    },
}  # fmt: skip


def qwen_vl(kind: str = "Qwen2_5_VL", *, dtype: torch.dtype = torch.float32, **given: Any) -> Any:
    """Qwen2-VL, Qwen2.5-VL or Qwen3-VL by the name of its class."""
    text = {**decoder_config("qwen3" if kind == "Qwen3VL" else "qwen2").to_dict(), **given}
    text = {k: v for k, v in text.items() if k not in ("model_type", "rope_parameters", "layer_types")}
    half = 8 if kind == "Qwen3VL" else text["hidden_size"] // text["num_attention_heads"] // 2
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}
    vision = {"depth": 2, "num_heads": 4, **QWEN_VL[kind]}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        text_config={**text, "rope_parameters": rope}, vision_config=vision, video_token_id=VIDEO_ID,
        image_token_id=IMAGE_ID, tie_word_embeddings=False,
    )  # fmt: skip
    return perturbed(getattr(transformers, f"{kind}ForConditionalGeneration")._from_config(config, dtype=dtype))


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Token ids below every placeholder's."""
    return torch.randint(0, VIDEO_ID, shape, generator=torch.Generator().manual_seed(seed))


def random_pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smolvlm(
    *, dtype: torch.dtype = torch.float32, kernel: str = "sdpa", text: dict | None = None, side: int = 4, **given: Any
) -> Any:
    """SmolVLM: SigLIP with its last norm, squares of `side` patches joined by one Linear, Llama."""
    torch.manual_seed(0)
    config = SmolVLMConfig(
        vision_config=SIZES | {"image_size": 16 * side, "patch_size": 8},
        text_config=decoder_config("llama", **(text or {})).to_dict(),
        **{"image_token_id": VIDEO_ID, **given},
        scale_factor=side,
        pad_token_id=0,
    )
    made = SmolVLMForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation=kernel)
    return perturbed(made)


def videollama3(
    *, dtype: torch.dtype = torch.float32, kernel: str = "sdpa", text: dict | None = None, **given: Any
) -> Any:
    """VideoLLaMA3: a tower turned by row and column, means of 2 x 2 patches, Qwen2."""
    torch.manual_seed(0)
    config = VideoLlama3Config(
        vision_config=SIZES | {"patch_size": 14},
        text_config=decoder_config("qwen2", **(text or {})).to_dict(),
        **{"video_token_id": VIDEO_ID, "image_token_id": IMAGE_ID, **given},
    )
    made = VideoLlama3ForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation=kernel)
    return perturbed(made)


def video_llava(
    *, dtype: torch.dtype = torch.float32, kernel: str = "sdpa", text: dict | None = None, **given: Any
) -> Any:
    """Video-LLaVA: two CLIPs, of which one reads videos and keeps class tokens, Llama."""
    torch.manual_seed(0)
    config = VideoLlavaConfig(
        vision_config=tower_config("clip").to_dict(),
        text_config=decoder_config("llama", **(text or {})).to_dict(),
        **{"video_token_index": VIDEO_ID, "image_token_index": IMAGE_ID, **given},
    )
    return perturbed(VideoLlavaForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation=kernel))
