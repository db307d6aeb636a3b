"""InternVideo2.5: InternViT, an InternLM2 decoder, and tokens of four frames merged; a text before every frame."""

from functools import partial

from hookedvid.conversion.lines import Shapes
from hookedvid.families import intern
from hookedvid.families.family import Family, Layout, Published
from hookedvid.families.prompts import TimeInstruction
from hookedvid.values.config import MergeConfig, RopeConfig
from hookedvid.values.parts import INTERNLM2, INTERNVIT_300M


def looks(family: Family, shapes: Shapes) -> str | None:
    """See `Layout.looks`."""
    return "" if any(n.split(".")[-2:-1] == ["tok_embeddings"] for n in shapes) else None


FAMILY = Family(
    name="internvideo2.5",
    title="InternVideo2.5",
    released="2025-01",
    tower=INTERNVIT_300M,
    tower_name="InternViT-300M-448",
    projector={"shuffle": 2, "merge": MergeConfig(), "input_norm": True},
    decoder=INTERNLM2,
    rope=RopeConfig(theta=1e6, scaling="dynamic", factor=2.0),
    prompt="internvl2_5",
    sampler="mid_segment",
    placeholder="<IMG_CONTEXT>",
    templates=intern.TEMPLATES,
    time_instructions={
        # VideoChat-Flash's xtuner-train_internvideo2_5/unify_internvl2_train_r16.py; the model card's demo has none.
        "internvideo2_5": TimeInstruction(
            "The video lasts for {duration:.2f} seconds, and {n} frames are uniformly sampled from it.\n",
            before_video=True,
        ),
    },
    layouts=(
        Layout(
            architecture=intern.ARCHITECTURE,
            read=partial(intern.read, decoders=("InternLM2ForCausalLM",), merge=True),
            table=intern.table,
            fits=lambda source: intern.merges_tokens(source) is not False,
            parts=intern.decoder_class,
            processor_files=False,
            looks=looks,
        ),
    ),
    adapter=intern.adapter,
    parity="original",
    published={
        "internvideo2.5-8b": Published("OpenGVLab/InternVideo2_5_Chat_8B", 32, "16 + text", 16.8, (65.1, 75.7, None)),
    },
    small={
        "vision.image_size": 112,
        "projector.merge": MergeConfig(frames_per_clip=4, tokens_per_clip=16, metric_heads=8),
    },
)
