"""A decoder or a vision tower alone, in transformers' classes: of no family, and what many families are made of."""

from collections.abc import Sequence
from dataclasses import replace

from hookedvid.conversion import hf_configs, tables
from hookedvid.conversion.lines import Line
from hookedvid.families.family import Layout, Source
from hookedvid.values.config import DecoderConfig, VideoLLMConfig

# Prefixes of a decoder, with its head's name: original and plain; transformers 5; transformers 4; its inner model.
DECODERS = (
    ("model.", "lm_head.weight"),
    ("model.language_model.", "lm_head.weight"),
    ("language_model.model.", "language_model.lm_head.weight"),
    ("", "lm_head.weight"),
)
# Prefixes of a tower alone.
TOWERS = ("vision_model.", "")


def prefix(names: Sequence[str], end: str, default: str) -> str:
    """What stands before a tensor name's end; the default where no or several tensors end so."""
    found = {n[: -len(end)] for n in names if n == end or n.endswith(f".{end}")}
    return found.pop() if len(found) == 1 else default


def decoder_table(cfg: VideoLLMConfig, names: Sequence[str], model: str = "model.") -> list[Line]:
    """Qwen2, Qwen3 or Llama, under whatever prefixes the names have; `model` where they tell none."""
    head = f"{prefix(names, 'lm_head.weight', '')}lm_head.weight"
    return tables.llama(cfg.lm, prefix(names, "embed_tokens.weight", model), head)


def decoder_lines(cfg: DecoderConfig) -> list[Line]:
    """Qwen2, Qwen3 or Llama under every prefix it may have; a tied head has its name, so that it can be refused."""
    untied = replace(cfg, tied=False)
    return [line for model, head in DECODERS for line in tables.llama(untied, model, head)]


def adapter(cfg: VideoLLMConfig) -> list[Line]:
    """The lines of every name that an adapter of a part alone may use."""
    lines = [] if cfg.decoder is None else decoder_lines(cfg.decoder)
    if cfg.vision is not None:
        table = tables.internvl_vision if cfg.family == _INTERNVIT else tables.clip_like
        lines += [line for tower in TOWERS for line in table(cfg.vision, tower)]
    return lines


_SIGLIP, _INTERNVIT = "siglip_vision_model", "internvl_vision"  # transformers' model types


def _read_decoder(source: Source) -> VideoLLMConfig:
    decoder = hf_configs.read_decoder(source.config, source.ignore)
    return VideoLLMConfig(family=source.config.model_type, decoder=decoder)


def _read_tower(source: Source) -> VideoLLMConfig:
    kind = source.config.model_type
    # SigLIP's last_hidden_state is normalised, CLIP's is not.
    vision = hf_configs.read_tower(source.config, final_norm=kind == _SIGLIP, ignore=source.ignore)
    return VideoLLMConfig(family=kind, vision=vision)


def _clip_table(cfg: VideoLLMConfig, names: Sequence[str]) -> list[Line]:
    assert cfg.vision
    return tables.clip_like(cfg.vision, prefix(names, "embeddings.patch_embedding.weight", ""))


def _internvit_table(cfg: VideoLLMConfig, names: Sequence[str]) -> list[Line]:
    assert cfg.vision
    return tables.internvl_vision(cfg.vision, prefix(names, "embeddings.cls_token", ""))


ALONE = tuple(
    Layout(architecture=architecture, read=read, table=table, transformers=True)
    for architecture, read, table in (
        ("Qwen2ForCausalLM", _read_decoder, decoder_table),
        ("Qwen3ForCausalLM", _read_decoder, decoder_table),
        ("LlamaForCausalLM", _read_decoder, decoder_table),
        ("CLIPVisionModel", _read_tower, _clip_table),
        ("SiglipVisionModel", _read_tower, _clip_table),
        ("InternVLVisionModel", _read_tower, _internvit_table),
    )
)
