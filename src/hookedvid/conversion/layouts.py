"""Which layout a checkpoint is in, and with it how its config reads and what its tensors are called."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hookedvid.config import VideoLLMConfig
from hookedvid.conversion import hf_configs, original, tables
from hookedvid.conversion.rules import Line, Shapes
from hookedvid.errors import ConfigError, ConversionError, nearest
from hookedvid.values import override


@dataclass(frozen=True)
class Reading:
    """What was read: our config, the names of their tensors, and notes on what their config left open."""

    cfg: VideoLLMConfig
    table: Sequence[Line]
    notes: Sequence[str] = ()


def read(
    config: Mapping[str, Any],
    shapes: Shapes,
    overrides: Mapping[str, Any] | None = None,
    ignore: Collection[str] = (),
) -> Reading:
    """A checkpoint by its config.json and its tensors' shapes.

    overrides: fields of our config by dotted path, taken over what the checkpoint says. ignore: fields of its
    config.json that change nothing. Raises ConversionError for whatever does not fit.
    """
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if name not in READERS:
        raise ConversionError(
            f"config.json names the architecture {name!r} ({nearest(str(name), READERS)}). Supported: "
            f"{', '.join(READERS)}"
        )
    try:
        return READERS[name](config, shapes, overrides or {}, ignore)
    except (ConversionError, ConfigError) as e:
        raise ConversionError(f"{e}{hint(name, shapes)}") from e


def _llava(config: Mapping, shapes: Shapes, overrides: Mapping, ignore: Collection[str]) -> Reading:
    cfg, notes = original.read_llava(config, shapes, overrides, ignore)
    assert cfg.decoder and cfg.vision and cfg.projector
    newline = cfg.projector.newline != "none"
    table = [
        *tables.llama(cfg.decoder),
        *tables.clip_like(cfg.vision, original.TOWER),
        *tables.mlp2x("model.mm_projector.0", "model.mm_projector.2", "model.image_newline", newline),
        *tables.SKIPPED,
    ]
    return Reading(cfg, table, notes)


def _internvideo(config: Mapping, shapes: Shapes, overrides: Mapping, ignore: Collection[str]) -> Reading:
    cfg, notes = original.read_internvideo(config, shapes, overrides, ignore)
    assert cfg.decoder and cfg.vision
    table = [*tables.internlm2(cfg.decoder), *tables.internvit(cfg.vision), *tables.intern_projector()]
    return Reading(cfg, table, notes)


def _transformers(config: Mapping, shapes: Shapes, overrides: Mapping, ignore: Collection[str]) -> Reading:
    from transformers import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ConversionError(f"config.json: transformers knows no model_type {kind!r}")
    kept = {k: v for k, v in config.items() if k not in ignore}
    name = config["architectures"][0]
    reading = read_transformers(CONFIG_MAPPING[kind].from_dict(kept), name, shapes)
    return Reading(override(reading.cfg, overrides, ConversionError), reading.table)


def read_transformers(config: Any, name: str, names: Iterable[str]) -> Reading:
    """A transformers model by its config object, its class's name and its tensors' names.

    The names are those of a model in memory, of a file it saved, or of the files published before
    transformers 5: they differ in prefixes (`model.`, `vision_model.`), which are found by what they end in.
    """
    return HF[name](config, list(names))


def _hf_llava(config: Any, names: Sequence[str]) -> Reading:
    cfg = hf_configs.read_llava(config)
    assert cfg.decoder and cfg.vision and cfg.projector
    mlp = _prefix(names, "linear_1.weight", "model.multi_modal_projector.")
    newline = f"{_prefix(names, 'image_newline', 'model.')}image_newline"
    return Reading(
        cfg,
        [
            *_hf_decoder_table(cfg, names, "model.language_model."),
            *tables.clip_like(cfg.vision, _prefix(names, "embeddings.patch_embedding.weight", "model.vision_tower.")),
            *tables.mlp2x(f"{mlp}linear_1", f"{mlp}linear_2", newline, cfg.projector.newline != "none"),
        ],
    )


def _hf_decoder(config: Any, names: Sequence[str]) -> Reading:
    cfg = VideoLLMConfig(family=config.model_type, decoder=hf_configs.read_decoder(config))
    return Reading(cfg, _hf_decoder_table(cfg, names, "model."))


def _hf_decoder_table(cfg: VideoLLMConfig, names: Sequence[str], model: str) -> list[Line]:
    head = f"{_prefix(names, 'lm_head.weight', '')}lm_head.weight"
    return tables.llama(cfg.lm, _prefix(names, "embed_tokens.weight", model), head)


def _hf_tower(config: Any, names: Sequence[str]) -> Reading:
    # SigLIP's last_hidden_state is normalised, CLIP's is not.
    vision = hf_configs.read_tower(config, final_norm=config.model_type == "siglip_vision_model")
    cfg = VideoLLMConfig(family=config.model_type, vision=vision)
    if vision.layer_scale:
        return Reading(cfg, tables.internvl_vision(vision, _prefix(names, "embeddings.cls_token", "")))
    return Reading(cfg, tables.clip_like(vision, _prefix(names, "embeddings.patch_embedding.weight", "")))


def _prefix(names: Sequence[str], end: str, default: str) -> str:
    """What stands before a tensor name's end; the default where no or several tensors end so."""
    found = {n[: -len(end)] for n in names if n == end or n.endswith(f".{end}")}
    return found.pop() if len(found) == 1 else default


HF: dict[str, Callable[[Any, Sequence[str]], Reading]] = {
    "LlavaOnevisionForConditionalGeneration": _hf_llava,
    "LlavaNextVideoForConditionalGeneration": _hf_llava,
    "Qwen2ForCausalLM": _hf_decoder,
    "LlamaForCausalLM": _hf_decoder,
    "CLIPVisionModel": _hf_tower,
    "SiglipVisionModel": _hf_tower,
    "InternVLVisionModel": _hf_tower,
}
READERS: dict[str, Callable[[Mapping, Shapes, Mapping, Collection[str]], Reading]] = {
    "LlavaQwenForCausalLM": _llava,
    "LlavaLlamaForCausalLM": _llava,
    "InternVLChatModel": _internvideo,
    **dict.fromkeys(HF, _transformers),
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
