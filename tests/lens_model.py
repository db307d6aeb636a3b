"""The small model on which TransformerLens's tools are compared with computations by hand."""

from dataclasses import replace
from functools import cache

import torch

from hookedvid import HookedVideoLLM, VideoInputs, small_config

# Patching results and scores come back as float32, or through one.
STORED = 1e-6


@cache
def model(n_heads: int = 4, n_kv_heads: int = 2, bias: bool = True) -> HookedVideoLLM:
    """Two layers, one token a frame and a newline after the video; no weight at its initial value."""
    cfg = small_config("llava-onevision", n_layers=2)
    decoder = replace(
        cfg.lm, d_model=32, n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=8, d_mlp=12, d_vocab=40, o_bias=bias
    )
    assert cfg.vision is not None and cfg.projector is not None
    cfg = replace(
        cfg, vision=replace(cfg.vision, image_size=28), projector=replace(cfg.projector, d_out=32), decoder=decoder
    )
    made = HookedVideoLLM.from_config(cfg).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.2)
    return made


def inputs(m: HookedVideoLLM, seed: int) -> VideoInputs:
    """Two ids, two frames and a newline, two ids: seven positions, 2 to 4 video."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 40, (4,), generator=generator).tolist()
    return m.inputs_from_tensors(
        torch.tensor([*ids[:2], -200, *ids[2:]]), torch.randn(2, 3, 28, 28, generator=generator)
    )


def metric(logits: torch.Tensor) -> torch.Tensor:
    return logits[0, -1, 7] - logits[0, -1, 9]


@cache
def caches(m: HookedVideoLLM):
    """(clean cache, corrupted cache, model bound to the corrupted input)."""
    with torch.no_grad():
        return m.run_with_cache(inputs(m, 1))[1], m.run_with_cache(inputs(m, 2))[1], m.bind(m.encoded(inputs(m, 2)))
