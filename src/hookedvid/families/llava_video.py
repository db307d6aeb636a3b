"""LLaVA-Video: a newline token after every row of a frame, and a text that tells when its frames were taken."""

from dataclasses import replace

from hookedvid.families import llava
from hookedvid.families.family import Family, Published, Source, Wrapper
from hookedvid.families.prompts import TimeInstruction
from hookedvid.values.config import RopeConfig
from hookedvid.values.parts import QWEN2, SIGLIP_SO400M

# LLaVA-NeXT's train.py and README, lmms-eval's llava_vid.py. There is no space before "Please".
TIME = (
    "The video lasts for {duration:.2f} seconds, and {n} frames are uniformly sampled from it. "
    "These frames are located at {times}.Please answer the following questions related to this video.\n"
)
# Its training wrote these; LLaVA-NeXT-Video's older package wrote mm_pooling_position and none of them.
TRAINING = {"add_faster_video", "add_time_instruction", "faster_token_stride", "force_sample"}


def fits(source: Source) -> bool:
    """Whether a config.json of LLaVA's package can be one of this family."""
    older = "mm_pooling_position" in source.config and not TRAINING & source.config.keys()
    return not older and llava.fits(source, SIGLIP_SO400M, newlines=("row",))


FAMILY = Family(
    name="llava-video",
    title="LLaVA-Video",
    released="2024-10",
    tower=SIGLIP_SO400M,
    tower_name="SigLIP so400m-384",
    projector={"pool": "bilinear", "newline": "row"},  # its authors train so, and evaluate with average
    decoder=QWEN2,
    rope=RopeConfig(theta=1e6),
    prompt="qwen_1_5",
    n_frames=64,
    templates={"qwen_1_5": llava.QWEN_1_5},
    time_instructions={
        "llava_video": TimeInstruction(TIME),  # <image>\n{time}\n{question}, as in training and lmms-eval.
        "llava_video_demo": TimeInstruction(TIME, keeps_between=False),  # <image>{time}\n{question}, as in the README.
    },
    layouts=(replace(llava.QWEN, fits=fits),),
    adapter=llava.adapter,
    # lmms-eval's wrapper takes every second's frame, up to its count; those of the other families sample as the
    # models' own code does.
    wrappers={"lmms-eval": Wrapper("llava_vid", sampler="one_fps", subtitle_frames=768)},
    parity="original",
    # Its config.json's own pool mode holds, bilinear where it names none (210 tokens a frame, as in training); its
    # authors' evaluation command pools by average (182): overrides={"projector.pool": "average"}.
    published={
        "llava-video-7b": Published(
            "lmms-lab/LLaVA-Video-7B-Qwen2", 64, "210", 16.1, (63.3, 58.6, 57.3), {"n_frames": 64}
        ),
    },
)
