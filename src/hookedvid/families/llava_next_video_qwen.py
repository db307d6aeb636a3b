"""LLaVA-NeXT-Video on Qwen: average pooling, a newline token after every row of a frame."""

from dataclasses import replace
from functools import partial

from hookedvid.families import llava
from hookedvid.families.family import Family, Published
from hookedvid.values.config import RopeConfig
from hookedvid.values.parts import QWEN2, SIGLIP_SO400M

FAMILY = Family(
    name="llava-next-video-qwen",
    title="LLaVA-NeXT-Video-32B",
    released="2024-06",
    tower=SIGLIP_SO400M,
    tower_name="SigLIP so400m-384",
    projector={"pool": "average", "newline": "row"},
    decoder=QWEN2,
    rope=RopeConfig(theta=1e6),
    prompt="qwen_1_5",
    templates={"qwen_1_5": llava.QWEN_1_5},
    layouts=(
        replace(
            llava.QWEN,
            fits=partial(llava.fits, tower=SIGLIP_SO400M, newlines=("row",), pools=("average", "max")),
        ),
    ),
    adapter=llava.adapter,
    parity="original",
    published={
        "llava-next-video-32b": Published("lmms-lab/LLaVA-NeXT-Video-32B-Qwen", 32, "182", 65.9, (60.2, None, 60.85)),
    },
)
