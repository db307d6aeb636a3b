"""LongVA: a long context, and no newline token. Its package grew out of LLaVA's."""

from dataclasses import replace
from functools import partial

from hookedvid.families import llava
from hookedvid.families.family import Family, Published
from hookedvid.values.config import RopeConfig
from hookedvid.values.parts import CLIP_L_336, QWEN2

FAMILY = Family(
    name="longva",
    title="LongVA",
    released="2024-06",
    tower=CLIP_L_336,
    tower_name="CLIP L/14-336",
    projector={"pool": "average"},
    decoder=QWEN2,
    rope=RopeConfig(theta=1e9),
    prompt="qwen_1_5",
    templates={"qwen_1_5": llava.QWEN_1_5},
    layouts=(
        replace(
            llava.QWEN,
            read=partial(llava.read, kind="qwen2", keeps_stride=True),
            fits=partial(llava.fits, tower=CLIP_L_336, newlines=("none",)),
        ),
    ),
    adapter=llava.adapter,
    parity="original",
    published={
        "longva-7b": Published("lmms-lab/LongVA-7B", 128, "144", 15.9, (52.6, None, None), {"n_frames": 128}),
        "longva-7b-dpo": Published("lmms-lab/LongVA-7B-DPO", 128, "144", 15.9, overrides={"n_frames": 128}),
    },
)
