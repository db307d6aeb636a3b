"""LLaVA-OneVision: bilinear pooling, one newline token after the video."""

from dataclasses import replace
from functools import partial
from typing import Any

from hookedvid.conversion.hf_configs import ConfigFields
from hookedvid.families import llava, llava_hf
from hookedvid.families.family import Family, Published
from hookedvid.families.prompts import Template
from hookedvid.values.config import RopeConfig
from hookedvid.values.parts import QWEN2, SIGLIP_SO400M

# The chat template that llava-hf ships, which says nothing as `system`: chat_template.json of
# llava-onevision-qwen2-*-hf, 826 bytes, those of the template that transformers' tests of the processor quote. The
# first revisions (824 bytes) had "user\n" and "<|im_end|>\n".
ONEVISION_HF = Template(
    before="<|im_start|>user ",
    after="<|im_end|><|im_start|>assistant\n",
    stops=("<|im_end|>",),
)


def projector(fields: ConfigFields) -> dict[str, Any]:
    """What transformers' class does whatever its config says."""
    return {"pool": "bilinear", "newline": "once"}


FAMILY = Family(
    name="llava-onevision",
    title="LLaVA-OneVision",
    released="2024-08",
    tower=SIGLIP_SO400M,
    tower_name="SigLIP so400m-384",
    projector={"pool": "bilinear", "newline": "once"},
    decoder=QWEN2,
    rope=RopeConfig(theta=1e6),
    prompt="qwen_1_5",
    templates={"qwen_1_5": llava.QWEN_1_5, "onevision_hf": ONEVISION_HF},
    layouts=(
        replace(llava.QWEN, fits=partial(llava.fits, tower=SIGLIP_SO400M, newlines=("once",))),
        llava_hf.layout("LlavaOnevisionForConditionalGeneration", projector),
    ),
    adapter=llava.adapter,
    parity="original, transformers",
    published={
        "llava-onevision-7b": Published(
            "lmms-lab/llava-onevision-qwen2-7b-ov", 32, "196 + 1", 16.1, (58.2, 56.7, 60.1)
        ),
        "llava-onevision-0.5b": Published("lmms-lab/llava-onevision-qwen2-0.5b-ov", 32, "196 + 1", 1.8),
    },
)
