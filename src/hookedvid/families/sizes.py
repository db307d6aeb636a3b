"""What each family of models is made of: tower, projector, decoder, prompt."""

from dataclasses import dataclass, replace
from typing import Any

from hookedvid.errors import ConfigError, nearest
from hookedvid.values.config import (
    DecoderConfig,
    MergeConfig,
    Newline,
    Pool,
    ProjectorConfig,
    RopeConfig,
    VideoLLMConfig,
    VisionConfig,
)

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Full-size towers (facts: Hugging Face configs). CLIP's last block and SigLIP's 27th never run: features are
# the stream after 23 of 24 and 26 of 27 blocks.
CLIP_L_336 = VisionConfig(
    n_layers=23, d_model=1024, n_heads=16, d_mlp=4096, image_size=336, patch_size=14, act="quick_gelu", eps=1e-5,
    patch_bias=False, cls_token=True, pre_norm=True, resize="crop", mean=CLIP_MEAN, std=CLIP_STD,
)  # fmt: skip
SIGLIP_SO400M = VisionConfig(
    n_layers=26,
    d_model=1152,
    n_heads=16,
    d_mlp=4304,
    image_size=384,
    patch_size=14,
    act="gelu_tanh",
    eps=1e-6,
)
INTERNVIT_300M = VisionConfig(
    n_layers=24, d_model=1024, n_heads=16, d_mlp=4096, image_size=448, patch_size=14, act="gelu", eps=1e-6,
    cls_token=True, layer_scale=True, mean=IMAGENET_MEAN, std=IMAGENET_STD,
)  # fmt: skip

QWEN2 = {"qkv_bias": True, "eps": 1e-6}
LLAMA = {"eps": 1e-5}
INTERNLM2 = {"eps": 1e-5}


@dataclass(frozen=True)
class Family:
    """The parts of a family, sizes left open where checkpoints of it differ.

    newlines, pools: what a config.json of the family may say of them, beside its own defaults here; empty: anything.
    """

    tower: VisionConfig
    projector: dict[str, Any]
    decoder: dict[str, Any]
    rope: RopeConfig
    prompt: str
    n_frames: int = 32
    sampler: str = "linspace"
    newlines: tuple[Newline, ...] = ()
    pools: tuple[Pool, ...] = ()


FAMILIES: dict[str, Family] = {
    "longva": Family(
        CLIP_L_336, {"pool": "average"}, QWEN2, RopeConfig(theta=1e9), "qwen_1_5", newlines=("none",)
    ),
    "llava-onevision": Family(
        SIGLIP_SO400M, {"pool": "bilinear", "newline": "once"}, QWEN2, RopeConfig(theta=1e6), "qwen_1_5",
        newlines=("once",),
    ),
    # Its authors train with bilinear pooling and evaluate with average.
    "llava-video": Family(
        SIGLIP_SO400M, {"pool": "bilinear", "newline": "row"}, QWEN2, RopeConfig(theta=1e6), "qwen_1_5", 64,
        newlines=("row",),
    ),
    "llava-next-video-qwen": Family(
        SIGLIP_SO400M, {"pool": "average", "newline": "row"}, QWEN2, RopeConfig(theta=1e6), "qwen_1_5",
        newlines=("row",), pools=("average", "max"),
    ),
    # The only family that pools before its projector.
    "llava-next-video": Family(
        CLIP_L_336, {"pool": "average", "pool_before": True}, LLAMA, RopeConfig(theta=1e4), "vicuna_v1"
    ),
    "internvideo2.5": Family(
        INTERNVIT_300M,
        {"shuffle": 2, "merge": MergeConfig(), "input_norm": True},
        INTERNLM2,
        RopeConfig(theta=1e6, scaling="dynamic", factor=2.0),
        "internvl2_5",
        sampler="mid_segment",
    ),
}  # fmt: skip


def family(name: str) -> Family:
    """The family of a name. Raises ConfigError listing those that exist."""
    if name not in FAMILIES:
        raise ConfigError(f"no family {name!r} ({nearest(name, FAMILIES)})")
    return FAMILIES[name]


def matching(tower: VisionConfig, qwen: bool, newline: Newline, pool: Pool) -> list[str]:
    """The families of the original LLaVA packages whose checkpoints have these parts.

    qwen: the decoder is a Qwen2. Only one family has Llama's, so that tells it whatever its tower.
    """
    return [
        name
        for name, f in FAMILIES.items()
        if (f.decoder is QWEN2 and f.tower == tower if qwen else f.decoder is LLAMA)
        and (not f.newlines or newline in f.newlines)
        and (not f.pools or pool in f.pools)
    ]


def named_in(name: str) -> str | None:
    """The family that a checkpoint's name states: the longest family name in the last part of a path or repository."""
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()
    return max((f for f in FAMILIES if f in last), key=len, default=None)


def small_config(name: str, *, n_layers: int = 3, d_vocab: int = 300) -> VideoLLMConfig:
    """A model of a family's exact structure at toy size (about 0.1 M parameters), for trials and tests."""
    f = family(name)
    merges = "merge" in f.projector
    side = 8 if merges else 5  # odd, so that pooling's flooring and ceiling differ
    tower = replace(f.tower, n_layers=2, d_model=32, n_heads=4, d_mlp=48, image_size=side * 14)
    projector = dict(f.projector)
    if merges:
        projector["merge"] = MergeConfig(frames_per_clip=4, tokens_per_clip=16, metric_heads=8)
    return VideoLLMConfig(
        family=name,
        vision=tower,
        projector=ProjectorConfig(d_in=32 * projector.get("shuffle", 1) ** 2, d_out=64, **projector),
        decoder=DecoderConfig(
            n_layers=n_layers, d_model=64, n_heads=8, n_kv_heads=2, d_head=8, d_mlp=96, d_vocab=d_vocab, rope=f.rope,
            **f.decoder,
        ),
        prompt=f.prompt,
        n_frames=8,
        sampler=f.sampler,
    )  # fmt: skip
