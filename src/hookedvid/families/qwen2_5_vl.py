"""Qwen2.5-VL: a tower with windows, and a time axis that counts seconds."""

from typing import Any

from hookedvid.conversion.hf_configs import ConfigFields
from hookedvid.families import qwen_vl
from hookedvid.families.family import Family, Published, Source
from hookedvid.families.qwen2_vl import QWEN2_VL
from hookedvid.values.config import RopeConfig, VideoLLMConfig, VisionConfig
from hookedvid.values.parts import QWEN2, QWEN2_5_VIT
from hookedvid.values.processor import Processor


def _tower(read: ConfigFields, like: VisionConfig) -> dict[str, Any]:
    window, patch = read("window_size"), read("patch_size")
    if window % (2 * patch):
        read.problems.append(f"window_size = {window} is no whole number of tokens of {2 * patch} pixels")
    read("out_hidden_size")  # the decoder's width, which its own config says
    return {
        "d_model": read("hidden_size"),
        "d_mlp": read("intermediate_size"),
        "window": window // patch,
        "full_blocks": tuple(read("fullatt_block_indexes")),
    }


def read(source: Source) -> VideoLLMConfig:
    """Our config of a Qwen2_5_VLConfig; `tokens_per_second` is 4 where it is absent, and 2 in every public one."""
    return qwen_vl.read(source, _tower, "qwen2")


FAMILY = Family(
    name="qwen2.5-vl",
    title="Qwen2.5-VL",
    released="2025-01",
    tower=QWEN2_5_VIT,
    tower_name="ViT 670M, windows",
    projector={"shuffle": 2, "patch_norm": "rms", "norm_eps": 1e-6, "d_hidden": 5120},
    decoder=QWEN2,
    rope=RopeConfig(theta=1e6, sections=(16, 24, 24), per_second=2.0),
    prompt="qwen2_vl",
    templates={"qwen2_vl": QWEN2_VL},
    n_frames=768,
    sampler="qwen",
    placeholder="<|video_pad|>",
    layouts=(qwen_vl.layout("Qwen2_5_VLForConditionalGeneration", read),),
    adapter=qwen_vl.adapter,
    parity="transformers",
    processor=Processor(extras=("video_grid_thw", "second_per_grid_ts")),
    published={
        name: Published(f"Qwen/Qwen2.5-VL-{size}-Instruct", 768, "510 of 2", gigabytes)
        for name, size, gigabytes in (
            ("qwen2.5-vl-3b", "3B", 7.5), ("qwen2.5-vl-7b", "7B", 16.6),
            ("qwen2.5-vl-32b", "32B", 66.9), ("qwen2.5-vl-72b", "72B", 146.8),
        )
    },
)  # fmt: skip
