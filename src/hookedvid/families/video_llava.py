"""Video-LLaVA: CLIP's features of every frame with its class token, in one run before a Vicuna."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hookedvid.conversion import tables
from hookedvid.conversion.hf_configs import ConfigFields
from hookedvid.conversion.lines import Ignored, Line, Shapes
from hookedvid.errors import ConversionError
from hookedvid.families import llava, llava_hf
from hookedvid.families.alone import decoder_lines
from hookedvid.families.family import Family, Layout, Published, Source
from hookedvid.families.prompts import Template
from hookedvid.values.config import RopeConfig, VideoLLMConfig
from hookedvid.values.parts import CLIP_L_224, LLAMA
from hookedvid.values.processor import Processor

IMAGES = Ignored(r"(model\.)?image_tower\..*", "frames of videos go through the video tower")
TOWERS = ("model.video_tower.", "video_tower.vision_model.", "video_tower.", "vision_model.", "")


def read(source: Source) -> VideoLLMConfig:
    """Our config of a VideoLlavaConfig, whose class keeps class tokens of videos whatever it says of images.

    Raises:
        ConversionError: For a tower with attention across frames, besides what no LLaVA of transformers' may have.
    """
    family = source.family
    assert family is not None
    if across := [n for n in source.shapes if ".temporal_" in n]:
        raise ConversionError(
            f"the checkpoint holds weights of attention across frames, such as {across[0]!r}. Its tower is "
            "LanguageBind's with temporal attention, which transformers' class does not have and would leave out "
            "without a word; it is not read here either, since the model would be another one"
        )
    cfg = llava_hf.read(source, projector)
    assert cfg.vision
    vision = replace(cfg.vision, cls_kept=True, resample=CLIP_L_224.resample)
    return replace(cfg, vision=vision, prompt=family.prompt, n_frames=family.n_frames)


def projector(fields: ConfigFields) -> dict[str, Any]:
    """Nothing: neither pooling nor newlines."""
    return {}


def table(cfg: VideoLLMConfig, names: Sequence[str]) -> list[Line]:
    """The names of a model in memory, of a file it saved, or of the published files; see `llava_hf.table`."""
    own = [n for n in names if "image_tower." not in n]
    return [*llava_hf.table(cfg, own, "model.video_tower."), IMAGES]


def adapter(cfg: VideoLLMConfig) -> list[Line]:
    """The lines of every name that an adapter may have been trained under."""
    assert cfg.vision
    projectors = [p for p in llava.ADAPTER_PROJECTORS if p != llava.PROJECTOR]
    return [
        IMAGES,
        *decoder_lines(cfg.lm),
        *(line for tower in TOWERS for line in tables.clip_like(cfg.vision, tower)),
        *(line for first, second, _ in projectors for line in tables.mlp2x(first, second)),
    ]


def looks(family: Family, shapes: Shapes) -> str | None:
    """See `Layout.looks`."""
    return "" if any("video_tower." in n for n in shapes) else None


FAMILY = Family(
    name="video-llava",
    title="Video-LLaVA",
    released="2023-11",
    tower=CLIP_L_224,
    tower_name="CLIP L/14-224",
    projector={},
    decoder=LLAMA,
    rope=RopeConfig(theta=1e4),
    prompt="video_llava_hf",
    # What the model's card on the hub asks with; the authors' evaluation has Vicuna's system text in front.
    templates={
        "video_llava_hf": Template(before="USER: ", after=" ASSISTANT:", answer=" {answer}", stops=("</s>",)),
        "vicuna_v1": llava.VICUNA_V1,
    },
    layouts=(
        Layout(
            architecture="VideoLlavaForConditionalGeneration", read=read, table=table, transformers=True, looks=looks
        ),
    ),
    adapter=adapter,
    parity="transformers",
    n_frames=8,
    processor=Processor(form="video"),
    published={"video-llava-7b": Published("LanguageBind/Video-LLaVA-7B-hf", 8, "257", 14.7)},
)
