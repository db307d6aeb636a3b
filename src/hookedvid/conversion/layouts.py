"""Which layout a checkpoint is in, and with it how its config reads and what its tensors are called."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hookedvid.conversion import hf_configs, original, tables
from hookedvid.conversion.fields import check_sizes
from hookedvid.conversion.packed import refuse_packed
from hookedvid.conversion.rules import Line, Shapes
from hookedvid.errors import ConfigError, ConversionError, nearest
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.serial import override

# A decoder's head and embedding, in the names of every layout.
HEAD = re.compile(r"(.*\.)?lm_head\.weight|language_model\.output\.weight")
EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|tok_embeddings)\.weight")


@dataclass(frozen=True)
class Reading:
    """What was read: our config, the names of their tensors, and notes on what their config left open."""

    cfg: VideoLLMConfig
    table: Sequence[Line]
    notes: Sequence[str] = ()


class Original(NamedTuple):
    """How config.json of an original package reads, and how its tensors are called."""

    read: Callable[..., tuple[VideoLLMConfig, list[str]]]
    table: Callable[[VideoLLMConfig], list[Line]]


class Transformers(NamedTuple):
    """How a transformers config reads, and how its tensors are called, given the names there are."""

    read: Callable[[Any, Collection[str]], VideoLLMConfig]
    table: Callable[[VideoLLMConfig, Sequence[str]], list[Line]]


def read(
    config: Mapping[str, Any],
    shapes: Shapes,
    overrides: Mapping[str, Any] | None = None,
    ignore: Collection[str] = (),
    *,
    same_head: bool = False,
    stated: str | None = None,
) -> Reading:
    """A checkpoint by its config.json and its tensors' shapes.

    Args:
        config: Its config.json.
        shapes: Its tensors.
        overrides: Fields of our config by dotted path, taken over what the checkpoint says.
        ignore: Fields of its config.json that change nothing.
        same_head: Whether its head has the very bits of its embedding.
        stated: The family that its name states.

    Raises:
        ConversionError: Whatever does not fit.
    """
    named, given = config.get("architectures"), overrides or {}
    name = str(named[0] if isinstance(named, list) and named else None)
    if name not in (*ORIGINAL, *HF):
        raise ConversionError(
            f"config.json names the architecture {name!r} ({nearest(name, [*ORIGINAL, *HF])}). Supported: "
            f"{', '.join([*ORIGINAL, *HF])}"
        )
    refuse_packed(shapes)
    try:
        if name in HF:
            read_by = HF[name]
            cfg = override(read_by.read(_transformers_config(config), ignore), given, ConversionError)
            cfg = _headed(cfg, shapes, same_head, given)
            return Reading(cfg, read_by.table(cfg, list(shapes)))
        cfg, notes = ORIGINAL[name].read(config, shapes, given, ignore, stated)
        cfg = _headed(cfg, shapes, same_head, given)
        return Reading(cfg, ORIGINAL[name].table(cfg), notes)
    except (ConversionError, ConfigError) as e:
        raise ConversionError(f"{e}{hint(name, shapes)}") from e


def read_transformers(config: Any, name: str, tensors: Mapping[str, Tensor], ignore: Collection[str] = ()) -> Reading:
    """A transformers model by its config object, its class's name and its tensors; ignore: as `read`.

    The names are those of a model in memory, of a file it saved, or of the files published before
    transformers 5: they differ in prefixes (`model.`, `vision_model.`), which are found by what they end in.
    """
    pair = head_and_embedding(tensors)
    same = pair is not None and _same_bits(tensors[pair[0]], tensors[pair[1]])
    cfg = _headed(HF[name].read(config, ignore), tensors, same, {})
    return Reading(cfg, HF[name].table(cfg, list(tensors)))


def head_and_embedding(names: Iterable[str]) -> tuple[str, str] | None:
    """The names of a decoder's head and of its embedding; None unless there is one of each."""
    names = list(names)
    heads, embeddings = ([n for n in names if p.fullmatch(n)] for p in (HEAD, EMBEDDING))
    return (heads[0], embeddings[0]) if len(heads) == len(embeddings) == 1 else None


def _headed(cfg: VideoLLMConfig, names: Iterable[str], same_head: bool, overrides: Mapping[str, Any]) -> VideoLLMConfig:
    """The config with its head tied if and only if the files hold none, or the embedding's very bits.

    An absent head is tied where any level of their config says so; else it will be missed by its name.
    """
    if cfg.decoder is None or not any(HEAD.fullmatch(n) for n in names):
        return cfg
    tied = bool(overrides.get("decoder.tied", same_head))
    if tied and not same_head:
        raise ConversionError(
            "decoder.tied is overridden as true, but the checkpoint holds a head that is not its embedding; leave the "
            "override out"
        )
    return replace(cfg, decoder=replace(cfg.decoder, tied=tied))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(a.view(torch.uint8), b.to(a.device).view(torch.uint8))


def _transformers_config(config: Mapping[str, Any]) -> Any:
    """The config object of transformers. Raises ConversionError for what its class refuses."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ConversionError(f"config.json: transformers knows no model_type {kind!r}")
    check_sizes(config, "config.json")
    try:
        return CONFIG_MAPPING[kind].from_dict(dict(config))
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as e:
        raise ConversionError(f"config.json: transformers cannot read it as {kind!r}: {e}") from e


def _llava_table(cfg: VideoLLMConfig) -> list[Line]:
    assert cfg.decoder and cfg.vision and cfg.projector
    newline = cfg.projector.newline != "none"
    return [
        *tables.llama(cfg.decoder),
        *tables.clip_like(cfg.vision, original.TOWER),
        *tables.mlp2x("model.mm_projector.0", "model.mm_projector.2", "model.image_newline", newline),
        *tables.SKIPPED,
    ]


def _internvideo_table(cfg: VideoLLMConfig) -> list[Line]:
    assert cfg.decoder and cfg.vision
    return [*tables.internlm2(cfg.decoder), *tables.internvit(cfg.vision), *tables.intern_projector()]


def _hf_llava_table(cfg: VideoLLMConfig, names: Sequence[str]) -> list[Line]:
    assert cfg.decoder and cfg.vision and cfg.projector
    mlp = _prefix(names, "linear_1.weight", "model.multi_modal_projector.")
    newline = f"{_prefix(names, 'image_newline', 'model.')}image_newline"
    return [
        *_hf_decoder_table(cfg, names, "model.language_model."),
        *tables.clip_like(cfg.vision, _prefix(names, "embeddings.patch_embedding.weight", "model.vision_tower.")),
        *tables.mlp2x(f"{mlp}linear_1", f"{mlp}linear_2", newline, cfg.projector.newline != "none"),
    ]


def _hf_decoder(config: Any, ignore: Collection[str]) -> VideoLLMConfig:
    return VideoLLMConfig(family=config.model_type, decoder=hf_configs.read_decoder(config, ignore))


def _hf_decoder_table(cfg: VideoLLMConfig, names: Sequence[str], model: str = "model.") -> list[Line]:
    head = f"{_prefix(names, 'lm_head.weight', '')}lm_head.weight"
    return tables.llama(cfg.lm, _prefix(names, "embed_tokens.weight", model), head)


def _hf_tower(config: Any, ignore: Collection[str]) -> VideoLLMConfig:
    # SigLIP's last_hidden_state is normalised, CLIP's is not.
    normed = config.model_type == "siglip_vision_model"
    vision = hf_configs.read_tower(config, final_norm=normed, ignore=ignore)
    return VideoLLMConfig(family=config.model_type, vision=vision)


def _hf_tower_table(cfg: VideoLLMConfig, names: Sequence[str]) -> list[Line]:
    assert cfg.vision
    if cfg.vision.layer_scale:
        return tables.internvl_vision(cfg.vision, _prefix(names, "embeddings.cls_token", ""))
    return tables.clip_like(cfg.vision, _prefix(names, "embeddings.patch_embedding.weight", ""))


def _prefix(names: Sequence[str], end: str, default: str) -> str:
    """What stands before a tensor name's end; the default where no or several tensors end so."""
    found = {n[: -len(end)] for n in names if n == end or n.endswith(f".{end}")}
    return found.pop() if len(found) == 1 else default


_LLAVA, _DECODER = Transformers(hf_configs.read_llava, _hf_llava_table), Transformers(_hf_decoder, _hf_decoder_table)
_TOWER = Transformers(_hf_tower, _hf_tower_table)
HF: dict[str, Transformers] = {
    "LlavaOnevisionForConditionalGeneration": _LLAVA,
    "LlavaNextVideoForConditionalGeneration": _LLAVA,
    "Qwen2ForCausalLM": _DECODER,
    "LlamaForCausalLM": _DECODER,
    "CLIPVisionModel": _TOWER,
    "SiglipVisionModel": _TOWER,
    "InternVLVisionModel": _TOWER,
}
ORIGINAL: dict[str, Original] = {
    "LlavaQwenForCausalLM": Original(original.read_llava, _llava_table),
    "LlavaLlamaForCausalLM": Original(original.read_llava, _llava_table),
    "InternVLChatModel": Original(original.read_internvideo, _internvideo_table),
}


def hint(architecture: str | None, shapes: Shapes) -> str:
    """What a checkpoint looks like by its tensors, as the end of an error message; empty if it is what it says."""
    looks = _looks(shapes)
    return "" if looks is None or looks[0] == architecture else f". The tensors look like {looks[1]} ({looks[0]})"


def _looks(shapes: Shapes) -> tuple[str, str] | None:
    """The architecture and family that tensors' names show."""
    ends = {name.split(".")[-2] for name in shapes if name.count(".") > 1}
    clip = any(n.endswith("embeddings.class_embedding") for n in shapes)
    if "tok_embeddings" in ends:
        return "InternVLChatModel", "InternVideo2.5"
    if any(".mm_projector." in n for n in shapes):
        if not any(n.endswith("layers.0.self_attn.k_proj.bias") and "vision" not in n for n in shapes):
            return "LlavaLlamaForCausalLM", "LLaVA-NeXT-Video-7B"
        tower = "a CLIP tower" if clip else "a SigLIP tower"
        newline = "with" if "model.image_newline" in shapes else "without"
        family = "LongVA" if clip else "LLaVA-OneVision, LLaVA-Video or LLaVA-NeXT-Video-32B"
        return "LlavaQwenForCausalLM", f"{family}, {tower}, {newline} newline"
    if "linear_1" in ends:
        kind = "LlavaNextVideo" if clip else "LlavaOnevision"
        return f"{kind}ForConditionalGeneration", f"a transformers {kind}"
    return None
