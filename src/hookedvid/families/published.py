"""The checkpoints of the study by name: where they are, what they are made of, what their authors report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """One public checkpoint.

    repo: on the Hugging Face hub; layout of the original package. family: a key of `FAMILIES`. size: gigabytes
    (10^9) to download. frames: per video unless told, as its authors evaluate it. tokens: of one frame, and beside
    them. parity: what its family is compared with in the tests, stage by stage on tiny weights. scores: percent on
    Video-MME (without subtitles), MVBench and EgoSchema as reported for it, None where no figure is confirmed.
    overrides: fields of our config that its own config.json leaves open or states otherwise.
    """

    repo: str
    family: str
    tower: str
    frames: int
    tokens: str
    size: float
    scores: tuple[float | None, float | None, float | None]
    parity: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


_ORIGINAL, _BOTH = "original", "original, transformers"
SIGLIP, CLIP, INTERNVIT = "SigLIP so400m-384", "CLIP L/14-336", "InternViT-300M-448"

SHIPPED = ("tiny",)  # comes with the package

PUBLISHED: dict[str, Published] = {
    "longva-7b": Published(
        "lmms-lab/LongVA-7B", "longva", CLIP, 128, "144", 15.9, (52.6, None, None), _ORIGINAL, {"n_frames": 128}
    ),
    "longva-7b-dpo": Published(
        "lmms-lab/LongVA-7B-DPO", "longva", CLIP, 128, "144", 15.9, (None, None, None), _ORIGINAL, {"n_frames": 128}
    ),
    "internvideo2.5-8b": Published(
        "OpenGVLab/InternVideo2_5_Chat_8B", "internvideo2.5", INTERNVIT, 32, "16 + text", 16.8, (65.1, 75.7, None),
        _ORIGINAL,
    ),
    # Its config.json's own pool mode holds, bilinear where it names none (210 tokens a frame, as in training); its
    # authors' evaluation command pools by average (182): overrides={"projector.pool": "average"}.
    "llava-video-7b": Published(
        "lmms-lab/LLaVA-Video-7B-Qwen2", "llava-video", SIGLIP, 64, "210", 16.1, (63.3, 58.6, 57.3), _ORIGINAL,
        {"n_frames": 64},
    ),
    "llava-onevision-7b": Published(
        "lmms-lab/llava-onevision-qwen2-7b-ov", "llava-onevision", SIGLIP, 32, "196 + 1", 16.1, (58.2, 56.7, 60.1),
        _BOTH,
    ),
    "llava-onevision-0.5b": Published(
        "lmms-lab/llava-onevision-qwen2-0.5b-ov", "llava-onevision", SIGLIP, 32, "196 + 1", 1.8, (None, None, None),
        _BOTH,
    ),
    "llava-next-video-32b": Published(
        "lmms-lab/LLaVA-NeXT-Video-32B-Qwen", "llava-next-video-qwen", SIGLIP, 32, "182", 65.9, (60.2, None, 60.85),
        _ORIGINAL,
    ),
    # Its authors' script pools before the projector, adds no newline and, for 32 frames (4608 tokens), doubles
    # Vicuna's 4096 positions by linear scaling; none of it stands in config.json.
    "llava-next-video-7b": Published(
        "lmms-lab/LLaVA-NeXT-Video-7B", "llava-next-video", CLIP, 32, "144", 14.1, (43.0, 46.5, 43.9), _BOTH,
        {
            "projector.pool": "average", "projector.pool_before": True, "projector.newline": "none",
            "decoder.rope.scaling": "linear", "decoder.rope.factor": 2.0, "decoder.n_ctx": 8192, "max_length": 8192,
        },
    ),
}  # fmt: skip


def of_repo(repo: str) -> Published | None:
    """The published checkpoint of a hub repository, letter case aside."""
    return next((p for p in PUBLISHED.values() if p.repo.lower() == repo.lower()), None)
