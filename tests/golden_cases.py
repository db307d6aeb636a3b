"""The golden cases: original weights and outputs of every family, read into our model for tests."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from hookedvid.config import DecoderConfig, MergeConfig, ProjectorConfig, RopeConfig, VideoLLMConfig
from hookedvid.conversion import tables
from hookedvid.families import CLIP_L_336, INTERNVIT_300M, SIGLIP_SO400M
from hookedvid.loading import fill
from hookedvid.model import HookedVideoLLM

SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden"
FOLDER = Path(os.environ.get("HOOKEDVID_GOLDEN", SHARED))
CASES = sorted(p.name for p in FOLDER.iterdir() if (p / "case.json").is_file()) if FOLDER.is_dir() else []


class Golden(NamedTuple):
    """A case: our model with its weights, the token ids, the pixels, the original outputs."""

    model: HookedVideoLLM
    ids: torch.Tensor
    pixels: torch.Tensor
    expected: dict[str, torch.Tensor]


def load(name: str, dtype: torch.dtype = torch.float32) -> Golden:
    folder = FOLDER / name
    config, case = (json.loads((folder / f"{n}.json").read_text()) for n in ("config", "case"))
    weights, expected = (load_file(folder / f"{n}.safetensors") for n in ("model", "expected"))
    intern = "llm_config" in config
    model = _internvideo(config, weights) if intern else _llava(config, case, weights)
    ids = torch.tensor(case["input_ids"]) if intern else torch.tensor([*case["prefix_ids"], -200, *case["suffix_ids"]])
    return Golden(model.to(dtype), ids, expected.pop("pixel_values").to(dtype), expected)


def _decoder(c: dict, rope: RopeConfig) -> DecoderConfig:
    return DecoderConfig(
        n_layers=c["num_hidden_layers"], d_model=c["hidden_size"], n_heads=c["num_attention_heads"],
        n_kv_heads=c["num_key_value_heads"], d_head=c["hidden_size"] // c["num_attention_heads"],
        d_mlp=c["intermediate_size"], d_vocab=c["vocab_size"], n_ctx=c["max_position_embeddings"],
        eps=c["rms_norm_eps"], rope=rope, qkv_bias=c.get("architectures") == ["LlavaQwenForCausalLM"],
    )  # fmt: skip


def _tower(like, v: dict, n_layers: int):
    return replace(
        like, n_layers=n_layers, d_model=v["hidden_size"], n_heads=v["num_attention_heads"],
        d_mlp=v["intermediate_size"], image_size=v["image_size"], patch_size=v["patch_size"],
    )  # fmt: skip


def _llava(c: dict, case: dict, weights: dict) -> HookedVideoLLM:
    siglip, v = "siglip" in c["mm_vision_tower"], case["vision_config"]
    prefix = "model.vision_tower.vision_tower.vision_model."
    held = 1 + max(int(k.split("layers.")[1].split(".")[0]) for k in weights if k.startswith(f"{prefix}encoder"))
    tower = _tower(SIGLIP_SO400M if siglip else CLIP_L_336, v, held if siglip else held - 1)
    newline = {"grid": "row", "one_token": "once", "no_token": "none", "frame": "frame"}[
        c.get("mm_newline_position", "one_token")
    ]
    projector = ProjectorConfig(
        d_in=v["hidden_size"], d_out=c["hidden_size"], pool=c["mm_spatial_pool_mode"],
        newline=newline if "unpad" in c["mm_patch_merge_type"] else "none",
    )  # fmt: skip
    decoder = _decoder(c, RopeConfig(theta=c["rope_theta"]))
    table = [
        *tables.llama(decoder),
        *tables.clip_like(tower, prefix),
        *tables.mlp2x(
            "model.mm_projector.0", "model.mm_projector.2", "model.image_newline", projector.newline != "none"
        ),
    ]
    cfg = VideoLLMConfig(family="golden", vision=tower, projector=projector, decoder=decoder)
    return fill(HookedVideoLLM(cfg), weights, table, "golden")


def _internvideo(c: dict, weights: dict) -> HookedVideoLLM:
    llm, v = c["llm_config"], c["vision_config"]
    scaling = llm.get("rope_scaling") or {}
    rope = RopeConfig(
        theta=float(llm["rope_theta"]), scaling=scaling.get("type", "none"), factor=scaling.get("factor", 1.0)
    )
    decoder = _decoder(llm, rope)
    tower = _tower(INTERNVIT_300M, v, v["num_hidden_layers"])
    projector = ProjectorConfig(
        d_in=4 * v["hidden_size"], d_out=llm["hidden_size"], shuffle=2, input_norm=True,
        merge=MergeConfig(metric_heads=llm["num_attention_heads"]),
    )  # fmt: skip
    table = [*tables.internlm2(decoder), *tables.internvit(tower), *tables.intern_projector()]
    cfg = VideoLLMConfig(family="golden", vision=tower, projector=projector, decoder=decoder, placeholder_id=90)
    return fill(HookedVideoLLM(cfg), weights, table, "golden")
