"""Models from a config, from transformers in memory, from open_clip."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hookedvid.config import VideoLLMConfig
from hookedvid.conversion import hf_configs, tables
from hookedvid.conversion.rules import Line, to_ours
from hookedvid.errors import ConversionError, nearest
from hookedvid.families import CLIP_L_336


def random_model(cls: type, cfg: VideoLLMConfig, tokenizer: Any, seed: int, **kwargs: Any) -> Any:
    """See `HookedVideoLLM.from_config`."""
    from hookedvid.tokenizer import byte_tokenizer

    if tokenizer is None and cfg.decoder is not None:
        tokenizer = byte_tokenizer(cfg.decoder.d_vocab)
    model = cls(cfg, tokenizer, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 or "token" in name or "newline" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.02)
            elif name.endswith("bias"):
                p.zero_()
    return model


def from_transformers(cls: type, hf: nn.Module, tokenizer: Any, **kwargs: Any) -> Any:
    """See `HookedVideoLLM.from_transformers`."""
    readers = {
        "LlavaOnevisionForConditionalGeneration": _read_llava,
        "LlavaNextVideoForConditionalGeneration": _read_llava,
        "Qwen2ForCausalLM": _read_decoder,
        "LlamaForCausalLM": _read_decoder,
        "CLIPVisionModel": _read_tower,
        "SiglipVisionModel": _read_tower,
        "InternVLVisionModel": _read_tower,
    }
    name = type(hf).__name__
    if name not in readers:
        raise ConversionError(f"cannot load a {name}; {nearest(name, readers)}. Supported: {', '.join(readers)}")
    cfg, table = readers[name](hf)
    model = cls(cfg, tokenizer, **kwargs)
    return fill(model, hf.state_dict(), table, name)


def _read_llava(hf: Any) -> tuple[VideoLLMConfig, Sequence[Line]]:
    cfg = hf_configs.read_llava(hf.config)
    assert cfg.decoder and cfg.vision and cfg.projector
    projector = "model.multi_modal_projector."
    return cfg, [
        *tables.llama(cfg.decoder, "model.language_model."),
        *tables.clip_like(cfg.vision, "model.vision_tower."),
        *tables.mlp2x(
            f"{projector}linear_1",
            f"{projector}linear_2",
            "model.image_newline",
            cfg.projector.newline != "none",
        ),
    ]


def _read_decoder(hf: Any) -> tuple[VideoLLMConfig, Sequence[Line]]:
    decoder = hf_configs.read_decoder(hf.config)
    return VideoLLMConfig(family=hf.config.model_type, decoder=decoder), tables.llama(decoder)


def _read_tower(hf: Any) -> tuple[VideoLLMConfig, Sequence[Line]]:
    # SigLIP's last_hidden_state is normalised, CLIP's is not.
    vision = hf_configs.read_tower(hf.config, final_norm=hf.config.model_type == "siglip_vision_model")
    table = tables.internvl_vision(vision) if vision.layer_scale else tables.clip_like(vision, "")
    return VideoLLMConfig(family=hf.config.model_type, vision=vision), table


def from_open_clip(cls: type, name: str, pretrained: str | None, **kwargs: Any) -> Any:
    """See `HookedVideoLLM.from_open_clip`."""
    import open_clip

    # open_clip warns, and goes on, where a tag was trained with another activation than the name builds.
    tag = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    clip: Any = open_clip.create_model(name, pretrained=pretrained, force_quick_gelu=tag.get("quick_gelu", False))
    visual = clip.visual
    if type(visual).__name__ != "VisionTransformer":
        raise ConversionError(
            f"open_clip's {name!r} has a {type(visual).__name__} as its tower; only ViTs are supported"
        )
    first = visual.transformer.resblocks[0]
    act = {"QuickGELU": "quick_gelu", "GELU": "gelu"}.get(type(first.mlp.gelu).__name__)
    images = visual.preprocess_cfg
    resize = {"shortest": "crop", "squash": "squash"}.get(images["resize_mode"])
    unsupported = {
        "an activation of its own": act is None,
        "layer scale": not isinstance(first.ls_1, nn.Identity),
        "attention pooling": visual.attn_pool is not None,
        "a tower without class token": getattr(visual, "class_embedding", None) is None,
        "patches without the pre-norm": not isinstance(visual.ln_pre, nn.LayerNorm),
        f"images resized by {images['resize_mode']!r}, {images['interpolation']}": resize is None
        or images["interpolation"] != "bicubic",
    }
    if any(unsupported.values()):
        raise ConversionError(
            f"open_clip's {name!r} has {', '.join(k for k, v in unsupported.items() if v)}: not supported"
        )
    size, patch = visual.image_size, visual.patch_size
    vision = replace(
        CLIP_L_336,
        n_layers=len(visual.transformer.resblocks),
        d_model=visual.conv1.out_channels,
        n_heads=first.attn.num_heads,
        d_mlp=first.mlp.c_fc.out_features,
        image_size=size[0] if isinstance(size, tuple | list) else size,
        patch_size=patch[0] if isinstance(patch, tuple | list) else patch,
        act=act,
        eps=float(visual.ln_pre.eps),
        resize=resize,
        mean=tuple(map(float, images["mean"])),
        std=tuple(map(float, images["std"])),
    )
    model = cls(VideoLLMConfig(family="open_clip", vision=vision, model_name=f"{name}/{pretrained}"), **kwargs)
    tensors = {k: v for k, v in clip.state_dict().items() if k.startswith("visual.")}
    return fill(model, tensors, tables.open_clip(vision), f"open_clip {name}")


def fill(model: Any, tensors: Any, table: Sequence[Line], what: str) -> Any:
    """Copy their tensors into a model, its dtype becoming theirs; every mismatch is reported at once."""
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    if model.cfg.decoder is not None and model.cfg.decoder.tied:
        shapes.pop("unembed.weight")
    ours = to_ours(tensors, table, shapes, what)
    dtypes = {t.dtype for t in ours.values() if t.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(ours[name])
    return model
