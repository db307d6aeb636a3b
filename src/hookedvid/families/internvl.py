"""InternVL 2.5, 3 and 3.5: InternViT, a quarter as many tokens as patches, a text before every frame."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from hookedvid.conversion import hf_configs, tables
from hookedvid.conversion.hf_configs import HARMLESS, ConfigFields
from hookedvid.conversion.lines import Line, Shapes
from hookedvid.families import intern
from hookedvid.families.alone import decoder_lines, decoder_table, prefix
from hookedvid.families.family import Family, Layout, Published, Source
from hookedvid.values.config import ProjectorConfig, RopeConfig, VideoLLMConfig
from hookedvid.values.parts import INTERNVIT_300M, QWEN3
from hookedvid.values.processor import Processor

# Prefixes of the tower and the projector of transformers' class: in memory, in its files.
HF = ("model.", "")


def read_hf(source: Source) -> VideoLLMConfig:
    """Our config of an InternVLConfig.

    Its processor resizes with torch where the original code does with Pillow, and takes other frames.
    """
    config, fields, ignore = source.config, ConfigFields(source.config), {*source.ignore, *intern.TRAINING}
    fields.taken |= {"text_config", "vision_config"}
    fields.only("projector_hidden_act", "gelu")
    fields.only("downsample_ratio", 0.5)
    fields.only("vision_feature_layer", -1)
    fields.only("vision_feature_select_strategy", "default")
    decoder = hf_configs.read_decoder(config.text_config, ignore)
    decoder = replace(decoder, tied=decoder.tied or bool(config.tie_word_embeddings))
    vision = replace(hf_configs.read_tower(config.vision_config, ignore=ignore), resample="bicubic")
    fields.close(HARMLESS, source.ignore)
    return VideoLLMConfig(
        family=FAMILY.name,
        vision=vision,
        projector=ProjectorConfig(d_in=4 * vision.d_model, d_out=decoder.d_model, shuffle=2, input_norm=True),
        decoder=decoder,
        prompt="internvl_hf",
        sampler="internvl_hf",
        placeholder_id=config.image_token_id,
    )


def hf_table(cfg: VideoLLMConfig, names: Sequence[str]) -> list[Line]:
    """The names of a model in memory, or of a file it saved; they differ in prefixes."""
    assert cfg.vision
    mlp = prefix(names, "linear_1.weight", "model.multi_modal_projector.")
    return [
        *decoder_table(cfg, names, "model.language_model."),
        *tables.internvl_vision(cfg.vision, prefix(names, "embeddings.cls_token", "model.vision_tower.")),
        *_hf_projector(mlp),
    ]


def _hf_projector(mlp: str) -> list[Line]:
    return tables.intern_projector(f"{mlp}layer_norm", f"{mlp}linear_1", f"{mlp}linear_2")


def adapter(cfg: VideoLLMConfig) -> list[Line]:
    """The lines of every name that an adapter may have been trained under: the original package's, transformers'."""
    assert cfg.vision
    return [
        *intern.adapter(cfg),
        *([] if intern.is_internlm2(cfg.lm) else decoder_lines(cfg.lm)),
        *(line for model in (*HF, None) for line in tables.internvl_vision(cfg.vision, _hf_tower(model))),
        *(line for model in HF for line in _hf_projector(f"{model}multi_modal_projector.")),
    ]


def _hf_tower(model: str | None) -> str:
    return "" if model is None else f"{model}vision_tower."


def looks(family: Family, shapes: Shapes) -> str | None:
    """See `Layout.looks`, of the original package."""
    return "" if any(n.startswith("mlp1.") for n in shapes) else None


def hf_looks(family: Family, shapes: Shapes) -> str | None:
    """See `Layout.looks`, of transformers' class."""
    return "" if any(n.endswith("embeddings.cls_token") for n in shapes) else None


def published(name: str, size: float) -> Published:
    """A checkpoint in the original layout."""
    return Published(f"OpenGVLab/{name}", 32, "256 + text", size)


FAMILY = Family(
    name="internvl",
    title="InternVL",
    released="2025-08",
    tower=INTERNVIT_300M,
    tower_name="InternViT-300M or -6B",
    projector={"shuffle": 2, "input_norm": True},
    # InternVL3.5's. 3 and most of 2.5 have Qwen2 with biases, 2.5 InternLM2 besides; both with dynamic NTK, factor 2.
    decoder=QWEN3,
    rope=RopeConfig(theta=1e6),
    prompt="internvl2_5",
    sampler="mid_segment",
    placeholder="<IMG_CONTEXT>",
    templates={
        **intern.TEMPLATES,
        # The chat template of the -hf repositories (481 bytes), which says nothing as `system`.
        "internvl_hf": replace(intern.TEMPLATES["internvl2_5"], before="<|im_start|>user\n"),
    },
    layouts=(
        Layout(
            architecture=intern.ARCHITECTURE,
            read=partial(intern.read, decoders=tuple(intern.DECODERS)),
            table=intern.table,
            fits=lambda source: intern.merges_tokens(source) is not True,
            parts=intern.decoder_class,
            processor_files=False,
            looks=looks,
        ),
        Layout(
            architecture="InternVLForConditionalGeneration",
            read=read_hf,
            table=hf_table,
            transformers=True,
            looks=hf_looks,
        ),
    ),
    adapter=adapter,
    parity="original, transformers",
    published={
        "internvl3.5-1b": published("InternVL3_5-1B", 2.1),
        "internvl3.5-2b": published("InternVL3_5-2B", 4.7),
        "internvl3.5-4b": published("InternVL3_5-4B", 9.5),
        "internvl3.5-8b": published("InternVL3_5-8B", 17.1),
        "internvl3.5-14b": published("InternVL3_5-14B", 30.2),
        "internvl3.5-38b": published("InternVL3_5-38B", 76.8),
        "internvl3-1b": published("InternVL3-1B", 1.9),
        "internvl3-2b": published("InternVL3-2B", 4.2),
        "internvl3-8b": published("InternVL3-8B", 15.9),
        "internvl3-14b": published("InternVL3-14B", 30.2),
        "internvl3-38b": published("InternVL3-38B", 76.8),
        "internvl3-78b": published("InternVL3-78B", 156.8),
        "internvl2.5-1b": published("InternVL2_5-1B", 1.9),
        "internvl2.5-2b": published("InternVL2_5-2B", 4.4),
        "internvl2.5-4b": published("InternVL2_5-4B", 7.4),
        "internvl2.5-8b": published("InternVL2_5-8B", 16.2),
        "internvl2.5-26b": published("InternVL2_5-26B", 51.0),
        "internvl2.5-38b": published("InternVL2_5-38B", 76.8),
        "internvl2.5-78b": published("InternVL2_5-78B", 156.8),
    },
    processor=Processor(pixels="pixel_values", form="frames"),
    small={"vision.image_size": 56},
)
