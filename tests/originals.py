"""Tiny checkpoints of every family in the layout of the original packages, with shards, index and tokenizer."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hookedvid.values.parts import CLIP_L_336, INTERNVIT_300M, SIGLIP_SO400M

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import synthesize_checkpoint as script

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 8}
TOWER = {"n_layers": 2, "d_model": 32, "n_heads": 4, "d_mlp": 48}
OVERRIDES = {"vision.n_heads": 4}  # what no tensor shows of towers this small
VOCABULARY = 330
NAMES = {
    "longva": "longva-7b",
    "llava-video": "llava-video-7b",
    "llava-onevision": "llava-onevision-7b",
    "llava-onevision-tied": "llava-onevision-0.5b",
    "llava-next-video-qwen": "llava-next-video-32b",
    "llava-next-video": "llava-next-video-7b",
    "internvideo2.5": "internvideo2.5-8b",
}


def recipe(family: str, **decoder: Any) -> Any:
    """The recipe of a published checkpoint at toy size."""
    known = script.RECIPES[NAMES[family]]
    like = known.tower
    size = {CLIP_L_336: 70, SIGLIP_SO400M: 70, INTERNVIT_300M: 224}[like]
    small = {**known.decoder, **SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": 4096}
    small["num_key_value_heads"] = 8 if family == "llava-next-video" else 2
    return replace(known, decoder={**small, **decoder}, vision=replace(like, image_size=size, **TOWER))


def original(
    folder: Path, family: str = "llava-onevision", *, shard: int = 100_000, seed: int = 0, **given: Any
) -> Path:
    """A checkpoint folder of a family; in several shards unless `shard` is large."""
    script.synthesize(family, folder, recipe=recipe(family, **given), shard=shard, seed=seed)
    return folder
