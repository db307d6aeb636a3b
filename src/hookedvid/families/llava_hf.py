"""LLaVA's families as transformers holds them: how their configs read, and what their tensors are called."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hookedvid.conversion import hf_configs, tables
from hookedvid.conversion.hf_configs import HARMLESS, ConfigFields
from hookedvid.conversion.lines import Line, Shapes
from hookedvid.families.alone import decoder_table, prefix
from hookedvid.families.family import Family, Layout, Source
from hookedvid.values.config import ProjectorConfig, VideoLLMConfig

PROMPTS = {"qwen2": "qwen_1_5", "llama": "vicuna_v1"}  # by the decoder's model type


def read(source: Source, projector: Callable[[ConfigFields], dict[str, Any]]) -> VideoLLMConfig:
    """Our config of transformers' of a LLaVA.

    Args:
        source: What is read.
        projector: The fields of our ProjectorConfig that are the family's, of the class's config.
    """
    config, ignore, family = source.config, source.ignore, source.family
    assert family is not None
    fields = ConfigFields(config)
    fields.taken |= {"text_config", "vision_config"}
    fields.only("projector_hidden_act", "gelu")
    fields.only("multimodal_projector_bias", True)
    decoder = hf_configs.read_decoder(config.text_config, ignore)
    decoder = replace(decoder, tied=decoder.tied or bool(config.tie_word_embeddings))
    layer = fields("vision_feature_layer", -1)
    total = config.vision_config.num_hidden_layers
    if not isinstance(layer, int):
        fields.problems.append(f"vision_feature_layer = {layer!r}: features of several layers are not supported")
        layer = -1
    # hidden_states[0] is the embedding, so index k is the stream after k blocks.
    tower = hf_configs.read_tower(config.vision_config, layer if layer >= 0 else total + 1 + layer, ignore=ignore)
    fields.only("vision_feature_select_strategy", "default" if tower.cls_token else "full")
    own = projector(fields)
    placeholder = fields("video_token_index", None) or fields("video_token_id", None)
    fields.close(HARMLESS, ignore)
    return VideoLLMConfig(
        family=family.name,
        vision=tower,
        projector=ProjectorConfig(d_in=tower.d_model, d_out=decoder.d_model, **own),
        decoder=decoder,
        prompt=PROMPTS[config.text_config.model_type],
        placeholder_id=placeholder,
    )


def layout(architecture: str, projector: Callable[[ConfigFields], dict[str, Any]]) -> Layout:
    """The layout of transformers' class of that name.

    Args:
        architecture: The class.
        projector: The fields of our ProjectorConfig that are the family's, of the class's config.
    """
    return Layout(
        architecture=architecture,
        read=partial(read, projector=projector),
        table=table,
        transformers=True,
        looks=_looks,
    )


def table(cfg: VideoLLMConfig, names: Sequence[str], tower: str = "model.vision_tower.") -> list[Line]:
    """The names of a model in memory, of a file it saved, or of the files published before transformers 5.

    They differ in prefixes (`model.`, `vision_model.`), which are found by what they end in; `tower` is the tower's
    where the names tell none.
    """
    assert cfg.vision and cfg.projector
    mlp = prefix(names, "linear_1.weight", "model.multi_modal_projector.")
    newline = f"{prefix(names, 'image_newline', 'model.')}image_newline"
    return [
        *decoder_table(cfg, names, "model.language_model."),
        *tables.clip_like(cfg.vision, prefix(names, "embeddings.patch_embedding.weight", tower)),
        *tables.mlp2x(f"{mlp}linear_1", f"{mlp}linear_2", newline, cfg.projector.newline != "none"),
    ]


def _looks(family: Family, shapes: Shapes) -> str | None:
    clip = any(n.endswith("embeddings.class_embedding") for n in shapes)
    mlp = any(n.split(".")[-2:-1] == ["linear_1"] for n in shapes)
    alike = any(n.endswith("embeddings.position_embedding.weight") for n in shapes)  # CLIP's name for it and SigLIP's
    return "" if mlp and alike and clip == family.tower.cls_token else None
