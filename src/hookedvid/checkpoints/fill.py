"""Models from a config, from transformers in memory, from open_clip."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hookedvid.checkpoints import layouts
from hookedvid.conversion import tables
from hookedvid.conversion.experts import refuse_experts
from hookedvid.conversion.lines import Line
from hookedvid.conversion.packed import refuse_packed, refuse_type
from hookedvid.conversion.rules import to_ours
from hookedvid.conversion.shards import Shards
from hookedvid.errors import ConversionError, nearest
from hookedvid.nn.attention import Kernel
from hookedvid.nn.model import Model
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.parts import CLIP_L_336
from hookedvid.values.progress import bar


class _NoInit(TorchFunctionMode):
    """Leaves out what fills new parameters, `torch.nn.init`: without values it takes a fifth of a model's making."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        return named["tensor"] if getattr(func, "__module__", "") == nn.init.__name__ else func(*args, **named)


def empty_model(cls: type, cfg: VideoLLMConfig, tokenizer: Any = None, kernel: Kernel = "sdpa") -> Any:
    """A model whose parameters have shapes alone: nothing is allocated, no random number is drawn."""
    with torch.device("meta"), _NoInit():
        return cls(cfg, tokenizer, kernel)


def put(model: Model, name: str, tensor: Tensor) -> None:
    """Make a tensor the parameter of that name; a tied head stays the embedding's."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    parameter = nn.Parameter(tensor, requires_grad=getattr(module, leaf).requires_grad)
    setattr(module, leaf, parameter)
    if name == "embed.weight" and model.cfg.lm.tied:
        model.unembed.weight = parameter


def install(model: Model, shards: Shards, dtype: torch.dtype | None, device: torch.device) -> None:
    """Fill an empty model from files, mapped into memory, straight to the device; None keeps each tensor's dtype."""
    wanted = {n for n, _ in model.named_parameters()}
    with bar(len(wanted), "loading weights", "tensors") as done:
        for file in shards.headers:
            with safe_open(shards.folder / file, framework="pt", device=str(device)) as f:
                for name in wanted & set(f.keys()):
                    tensor = f.get_tensor(name)
                    put(model, name, tensor if dtype is None else tensor.to(dtype))
                    done(1)


def random_model(cls: type, cfg: VideoLLMConfig, tokenizer: Any, seed: int, kernel: Kernel) -> Any:
    """See `HookedVideoLLM.from_config`."""
    from hookedvid.checkpoints.byte_tokenizer import byte_tokenizer

    if tokenizer is None and cfg.decoder is not None:
        tokenizer = byte_tokenizer(cfg.decoder.d_vocab)
    model = empty_model(cls, cfg, tokenizer, kernel)
    generator = torch.Generator().manual_seed(seed)
    for name, p in list(model.named_parameters()):
        if p.ndim > 1 or "token" in name or "newline" in name:
            put(model, name, torch.randn(p.shape, generator=generator) * 0.02)
        else:
            put(model, name, torch.zeros(p.shape) if name.endswith("bias") else torch.ones(p.shape))
    return model


def from_transformers(
    cls: type,
    hf: nn.Module,
    tokenizer: Any,
    ignore: Collection[str],
    overrides: Mapping[str, Any] | None,
    kernel: Kernel,
) -> Any:
    """See `HookedVideoLLM.from_transformers`."""
    name = type(hf).__name__
    known = layouts.TRANSFORMERS
    config: Any = getattr(hf, "config", None)
    refuse_experts(config.to_dict() if hasattr(config, "to_dict") else {}, name)
    if name not in known:
        raise ConversionError(f"cannot load a {name}; {nearest(name, known)}. Supported: {', '.join(known)}")
    tensors = hf.state_dict()
    refuse_packed(tensors)
    for weight, parameter in hf.named_parameters():
        refuse_type(weight, str(parameter.dtype).removeprefix("torch."))
    reading = layouts.read_transformers(hf.config, name, tensors, ignore, overrides)
    return fill(empty_model(cls, reading.cfg, tokenizer, kernel), tensors, reading.table, name)


def from_open_clip(cls: type, name: str, pretrained: str | None, kernel: Kernel) -> Any:
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
    cfg = VideoLLMConfig(family="open_clip", vision=vision, model_name=f"{name}/{pretrained}")
    tensors = {k: v for k, v in clip.state_dict().items() if k.startswith("visual.")}
    return fill(empty_model(cls, cfg, kernel=kernel), tensors, tables.open_clip(vision), f"open_clip {name}")


def fill(model: Model, tensors: Any, table: Sequence[Line], what: str) -> Any:
    """Copy their tensors into an empty model, in their dtype (float32 if they have several).

    Every mismatch is reported at once.
    """
    ours = to_ours(tensors, table, {k: p.shape for k, p in model.named_parameters()}, what)
    dtypes = {t.dtype for t in ours.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    for name, tensor in ours.items():
        put(model, name, tensor.detach().to(dtype, copy=True).contiguous())
    return model
