"""The modules a config asks for: what a model is made of, and what a conversion takes its names and shapes from."""

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

import torch
from torch import nn

from hookedvid.nn.decoder import Block
from hookedvid.nn.hooks import HookPoint
from hookedvid.nn.layers import RMSNorm
from hookedvid.nn.projector import Projector
from hookedvid.nn.vision import VisionTower
from hookedvid.values.config import VideoLLMConfig


def parts(cfg: VideoLLMConfig) -> dict[str, nn.Module]:
    """The modules of a model by name, in the order they run; their weights hold no values yet.

    A part that the config does not have is left out: a plain decoder has no tower, a bare tower no decoder.
    """
    found: dict[str, nn.Module] = {}
    if cfg.vision is not None:
        found["vision"] = VisionTower(cfg.vision)
    if cfg.projector is not None:
        found["projector"] = Projector(cfg.projector)
    if (lm := cfg.decoder) is not None:
        embed = nn.Embedding.from_pretrained(torch.empty(lm.d_vocab, lm.d_model), freeze=False)  # no values drawn
        unembed = nn.Linear(lm.d_model, lm.d_vocab, bias=False)
        if lm.tied:
            unembed.weight = embed.weight
        found |= {
            "embed": embed,
            "hook_embed": HookPoint(),
            "blocks": nn.ModuleList(Block(lm, i < cfg.n_deepstack) for i in range(lm.n_layers)),
            "ln_final": RMSNorm(lm.d_model, lm.eps),
            "unembed": unembed,
        }
    return found


@lru_cache(4)  # a conversion asks before it begins and again
def parameter_shapes(cfg: VideoLLMConfig) -> Mapping[str, torch.Size]:
    """Names and shapes of a model's parameters; no memory is taken. A tied head is the embedding's."""
    with torch.device("meta"):
        return MappingProxyType({k: p.shape for k, p in nn.ModuleDict(parts(cfg)).named_parameters()})
