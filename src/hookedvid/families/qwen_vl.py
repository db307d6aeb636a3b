"""Qwen's Video-LLMs as transformers and the hub hold them: how their configs read, and what tensors are called."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hookedvid.conversion import hf_configs, tables
from hookedvid.conversion.hf_configs import HARMLESS, ConfigFields
from hookedvid.conversion.lines import Line, Shapes
from hookedvid.families.alone import decoder_lines, decoder_table, prefix
from hookedvid.families.family import Family, Layout, Source
from hookedvid.families.prompts import QuestionForm
from hookedvid.values.config import ProjectorConfig, VideoLLMConfig, VisionConfig

TOWERS = ("visual.", "model.visual.")
# How the authors ask Video-MME (Qwen3-VL's evaluation/VideoMME). A study asks so by `form`.
VIDEO_MME = QuestionForm(
    question=(
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\nQuestion: {question}"
    ),
    instruction="\nThe best answer is:",
)


def read(
    source: Source, tower: Callable[[ConfigFields, VisionConfig], dict[str, Any]], decoder_kind: str
) -> VideoLLMConfig:
    """Our config of one of transformers' configs, flat ones of the hub among them.

    Args:
        source: The checkpoint.
        tower: Fields of the tower that only this family's config has.
        decoder_kind: `qwen2` or `qwen3`.
    """
    config, family = source.config, source.family
    assert family is not None
    fields = ConfigFields(config)
    fields.taken |= {"text_config", "vision_config"}
    decoder = hf_configs.read_decoder(config.text_config, source.ignore, kind=decoder_kind)
    decoder = replace(decoder, tied=decoder.tied or bool(config.tie_word_embeddings))
    fields.close(HARMLESS, source.ignore)
    vision, rate = _tower(ConfigFields(config.vision_config), family.tower, tower, source)
    d_joined = 4 * vision.d_model
    own = {**family.projector, "d_hidden": d_joined, "n_deepstack": len(vision.deepstack)}
    # Whether axes are interleaved is the class's own, whatever `mrope_interleaved` says; so are sections not stated.
    sections = (config.text_config.rope_parameters or {}).get("mrope_section", family.rope.sections)
    rope = replace(decoder.rope, sections=tuple(sections), interleaved=family.rope.interleaved, per_second=rate)
    return VideoLLMConfig(
        family=family.name,
        vision=vision,
        projector=ProjectorConfig(d_in=d_joined, d_out=decoder.d_model, **own),
        decoder=replace(decoder, rope=rope),
        prompt=family.prompt,
        placeholder_id=config.video_token_id,
        n_frames=family.n_frames,
        sampler=family.sampler,
    )


def _tower(
    read: ConfigFields, like: VisionConfig, own: Callable[[ConfigFields, VisionConfig], dict[str, Any]], source: Source
) -> tuple[VisionConfig, float | None]:
    read.only("in_channels", 3)
    read.only("in_chans", 3)
    read.only("spatial_merge_size", 2)
    patch, frames = read("patch_size"), read("temporal_patch_size")
    read.only("spatial_patch_size", patch)
    rope = dict(read("rope_parameters") or {})
    if {*rope} - {"rope_theta", "rope_type"} or rope.get("rope_type", "axial") != "axial":
        read.problems.append(f"rope_parameters = {rope} of the tower is not supported (only axial)")
    rate = read("tokens_per_second")
    fields = own(read, like)
    read.raise_problems()
    vision = replace(
        like, n_layers=read("depth"), n_heads=read("num_heads"), patch_size=patch, patch_frames=frames,
        act=read.act("hidden_act"), rope_theta=float(rope.get("rope_theta", 1e4)), multiple=2 * patch, **fields,
    )  # fmt: skip
    read.close(HARMLESS, source.ignore)
    return vision, None if rate is None else float(rate)


def table(
    cfg: VideoLLMConfig,
    names: Sequence[str],
    mlp: tuple[str, str] = ("fc1", "fc2"),
    merger: tuple[str, str, str] = ("ln_q", "mlp.0", "mlp.2"),
) -> list[Line]:
    """The names of a model in memory, or of a file: their prefixes are found by what they end in."""
    assert cfg.vision
    tower = prefix(names, "patch_embed.proj.weight", "model.visual.")
    return [
        *decoder_table(cfg, names, "model.language_model."),
        *tables.qwen_vit(cfg.vision, cfg.n_deepstack, tower, mlp, merger),
    ]


def adapter(
    cfg: VideoLLMConfig,
    mlp: tuple[str, str] = ("fc1", "fc2"),
    merger: tuple[str, str, str] = ("ln_q", "mlp.0", "mlp.2"),
) -> list[Line]:
    """The lines of every name that an adapter may have been trained under."""
    assert cfg.vision
    towers = (x for tower in TOWERS for x in tables.qwen_vit(cfg.vision, cfg.n_deepstack, tower, mlp, merger))
    return [*decoder_lines(cfg.lm), *towers]


def layout(architecture: str, read: Callable[[Source], VideoLLMConfig], **names: tuple[str, ...]) -> Layout:
    """The layout of transformers' class of that name.

    Args:
        architecture: The class.
        read: The family's reader of its config.
        names: Of `table`: what its tensors are called otherwise.
    """
    of_class: Any = partial(table, **names)
    return Layout(architecture=architecture, read=read, table=of_class, transformers=True, looks=looks)


def looks(family: Family, shapes: Shapes) -> str | None:
    """See `Layout.looks`."""
    tower = family.tower
    ends = ["patch_embed.proj.weight", "merger.ln_q.weight" if not tower.deepstack else "merger.linear_fc1.weight"]
    if not all(any(n.endswith(end) for n in shapes) for end in ends):
        return None
    gated = any(n.endswith("visual.blocks.0.mlp.gate_proj.weight") for n in shapes)
    classed = any(n.endswith("class_embedding") for n in shapes)
    return "" if gated == tower.gated and classed == tower.cls_token else None
