"""Qwen3-VL: times as text between steps, and features of the tower added behind the first blocks (DeepStack)."""

from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Any

from hookedvid.conversion.hf_configs import ConfigFields
from hookedvid.families import qwen_vl
from hookedvid.families.family import Family, Published, Source
from hookedvid.families.prompts import Template
from hookedvid.values.config import RopeConfig, VideoLLMConfig, VisionConfig
from hookedvid.values.parts import QWEN3, QWEN3_VIT_300M
from hookedvid.values.processor import Processor

MLP, MERGER = ("linear_fc1", "linear_fc2"), ("norm", "linear_fc1", "linear_fc2")
# Qwen3-VL's chat template and processor as released (transformers 4.57); there is no system text unless one is given.
QWEN3_VL = Template(
    before="<|im_start|>user\n",
    frame_before="<{time:.1f} seconds><|vision_start|>",
    frame_after="<|vision_end|>",
    between="",
    after="<|im_end|>\n<|im_start|>assistant\n",
    stops=("<|im_end|>",),
)
# From transformers 5.12 on the processor leaves the tokens around the whole video in as well.
QWEN3_VL_OUTER = replace(QWEN3_VL, video_before="<|vision_start|>", video_after="<|vision_end|>")


def _tower(read: ConfigFields, like: VisionConfig) -> dict[str, Any]:
    places = read("num_position_embeddings")
    if isqrt(places) ** 2 != places:
        read.problems.append(f"num_position_embeddings = {places} is no square")
    read("out_hidden_size")  # the decoder's width, which its own config says
    return {
        "d_model": read("hidden_size"),
        "d_mlp": read("intermediate_size"),
        "image_size": isqrt(places) * read("patch_size"),
        "deepstack": tuple(read("deepstack_visual_indexes")),
    }


def read(source: Source) -> VideoLLMConfig:
    """Our config of a Qwen3VLConfig."""
    return qwen_vl.read(source, _tower, "qwen3")


FAMILY = Family(
    name="qwen3-vl",
    title="Qwen3-VL",
    released="2025-09",
    tower=QWEN3_VIT_300M,
    tower_name="SigLIP-2 large, 2D rope",
    projector={"shuffle": 2, "patch_norm": "layer", "norm_eps": 1e-6, "d_hidden": 4096, "n_deepstack": 3},
    decoder=QWEN3,
    rope=RopeConfig(theta=5e6, sections=(24, 20, 20), interleaved=True),
    prompt="qwen3_vl",
    templates={"qwen3_vl": QWEN3_VL, "qwen3_vl_outer": QWEN3_VL_OUTER},
    n_frames=768,
    sampler="qwen",
    placeholder="<|video_pad|>",
    layouts=(qwen_vl.layout("Qwen3VLForConditionalGeneration", read, mlp=MLP, merger=MERGER),),
    adapter=partial(qwen_vl.adapter, mlp=MLP, merger=MERGER),
    parity="transformers",
    processor=Processor(extras=("video_grid_thw",), inert=("max_image_size",)),
    published={
        name: Published(f"Qwen/Qwen3-VL-{size}-Instruct", 768, "405 of 2", gigabytes)
        for name, size, gigabytes in (
            ("qwen3-vl-2b", "2B", 4.26), ("qwen3-vl-4b", "4B", 8.9),
            ("qwen3-vl-8b", "8B", 17.5), ("qwen3-vl-32b", "32B", 66.7),
        )
    },
)  # fmt: skip
