"""Qwen2-VL: tokens of two frames, positions by time, row and column."""

from typing import Any

from hookedvid.conversion.hf_configs import ConfigFields
from hookedvid.families import qwen_vl
from hookedvid.families.family import Family, Published, Source
from hookedvid.families.prompts import Template
from hookedvid.values.config import RopeConfig, VideoLLMConfig, VisionConfig
from hookedvid.values.parts import QWEN2, QWEN2_VIT
from hookedvid.values.processor import Processor

# chat_template.json of Qwen2-VL-7B-Instruct for a video before a text.
QWEN2_VL = Template(
    before="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    video_before="<|vision_start|>",
    video_after="<|vision_end|>",
    between="",
    after="<|im_end|>\n<|im_start|>assistant\n",
    stops=("<|im_end|>",),
)


def _tower(read: ConfigFields, like: VisionConfig) -> dict[str, Any]:
    width = read("embed_dim")
    read("hidden_size")  # the decoder's width, which its own config says
    return {"d_model": width, "d_mlp": width * read("mlp_ratio")}


def read(source: Source) -> VideoLLMConfig:
    """Our config of a Qwen2VLConfig."""
    return qwen_vl.read(source, _tower, "qwen2")


FAMILY = Family(
    name="qwen2-vl",
    title="Qwen2-VL",
    released="2024-09",
    tower=QWEN2_VIT,
    tower_name="ViT 675M",
    projector={"shuffle": 2, "patch_norm": "layer", "norm_eps": 1e-6, "d_hidden": 5120},
    decoder=QWEN2,
    rope=RopeConfig(theta=1e6, sections=(16, 24, 24)),
    prompt="qwen2_vl",
    templates={"qwen2_vl": QWEN2_VL},
    n_frames=768,
    sampler="qwen",
    placeholder="<|video_pad|>",
    layouts=(qwen_vl.layout("Qwen2VLForConditionalGeneration", read),),
    adapter=qwen_vl.adapter,
    parity="transformers",
    processor=Processor(extras=("video_grid_thw",)),
    published={
        name: Published(f"Qwen/Qwen2-VL-{size}-Instruct", 768, "510 of 2", gigabytes)
        for name, size, gigabytes in (
            ("qwen2-vl-2b", "2B", 4.4),
            ("qwen2-vl-7b", "7B", 16.6),
            ("qwen2-vl-72b", "72B", 146.8),
        )
    },
)  # fmt: skip
