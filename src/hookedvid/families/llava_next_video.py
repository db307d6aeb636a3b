"""LLaVA-NeXT-Video on Vicuna: the only family that pools before its projector."""

from dataclasses import replace
from typing import Any

from hookedvid.conversion.hf_configs import ConfigFields
from hookedvid.errors import ConversionError
from hookedvid.families import llava, llava_hf
from hookedvid.families.family import Family, Published, Source
from hookedvid.families.prompts import Template
from hookedvid.values.config import RopeConfig, VideoLLMConfig
from hookedvid.values.parts import CLIP_L_336, LLAMA

# processor_config.json of LLaVA-NeXT-Video-7B-hf at 3378b61; transformers' docs write the same by hand. It says
# nothing as `system`.
NEXT_VIDEO_HF = Template(before="USER: ", after=" ASSISTANT:", answer=" {answer}", stops=("</s>",))


def read(source: Source) -> VideoLLMConfig:
    """Our config of a config.json of LLaVA's package with a Llama decoder, which no other family has."""
    if other := source.config.get("mm_video_tower"):
        raise ConversionError(
            f"config.json: mm_video_tower = {other!r} is a tower of this package's relative, which may attend across "
            "frames; of that model only what transformers made of it is read (LanguageBind/Video-LLaVA-7B-hf)"
        )
    cfg = llava.read(source, kind="llama")
    if source.config.get("mm_pooling_position") is None and "projector.pool_before" not in source.overrides:
        source.notes.append(
            "config.json does not say when to pool: after the projector, as LLaVA-NeXT's main branch does "
            "(LLaVA-NeXT-Video-7B's own script pools before: override projector.pool_before=true)"
        )
    return cfg


def projector(fields: ConfigFields) -> dict[str, Any]:
    """The pooling that transformers' config states, before the projector."""
    mode = fields("spatial_pool_mode", "average")
    if mode not in ("bilinear", "average", "max"):
        fields.problems.append(f"spatial_pool_mode = {mode!r} is not supported (only 'average', 'max')")
        mode = "average"
    return {"pool": mode, "pool_stride": fields("spatial_pool_stride", 2), "pool_before": True}


FAMILY = Family(
    name="llava-next-video",
    title="LLaVA-NeXT-Video-7B",
    released="2024-04",
    tower=CLIP_L_336,
    tower_name="CLIP L/14-336",
    projector={"pool": "average", "pool_before": True},
    decoder=LLAMA,
    rope=RopeConfig(theta=1e4),
    prompt="vicuna_v1",
    templates={"vicuna_v1": llava.VICUNA_V1, "next_video_hf": NEXT_VIDEO_HF},
    layouts=(
        replace(llava.LLAMA, read=read),
        llava_hf.layout("LlavaNextVideoForConditionalGeneration", projector),
    ),
    adapter=llava.adapter,
    parity="original, transformers",
    # Its authors' script pools before the projector, adds no newline and, for 32 frames (4608 tokens), doubles
    # Vicuna's 4096 positions by linear scaling; none of it stands in config.json.
    published={
        "llava-next-video-7b": Published(
            "lmms-lab/LLaVA-NeXT-Video-7B", 32, "144", 14.1, (43.0, 46.5, 43.9),
            {
                "projector.pool": "average", "projector.pool_before": True, "projector.newline": "none",
                "decoder.rope.scaling": "linear", "decoder.rope.factor": 2.0, "decoder.n_ctx": 8192,
                "max_length": 8192,
            },
        ),
    },
)  # fmt: skip
