"""Small models, questions and studies to sweep."""

from functools import cache

import numpy as np
import torch

from hookedvid import LV_K, VS_K, VT_K, HookedVideoLLM, small_config
from hookedvid.study import protocols
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import Intervention
from models import terse_tokenizer

N = 4  # blocks
QUESTIONS = (
    ("what is it ?", ["a", "bb"]),
    ("where does the thing go ?", ["left", "right", "up"]),
    ("why ?", ["x", "y", "z", "w"]),
)


def noise(size: int, n: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@cache
def model(family: str, dtype: torch.dtype = torch.float64, n_layers: int = N, kernel: str = "sdpa") -> HookedVideoLLM:
    """A small model away from its initial weights."""
    cfg = small_config(family, n_layers=n_layers)
    m = HookedVideoLLM.from_config(cfg, kernel=kernel, tokenizer=terse_tokenizer(cfg))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return m.to(dtype)


@cache
def asked(family: str, dtype: torch.dtype = torch.float64, markers: bool = False) -> tuple[VideoInputs, ...]:
    """Questions of unequal length, with and without options, on one video."""
    m = model(family, dtype)
    assert m.cfg.vision is not None
    frames = noise(m.cfg.vision.image_size)
    return tuple(
        m.prepare(frames, q, o, n_frames=8, sampler="linspace", folder_fps=2.0, markers_are_language=markers)
        for q, o in QUESTIONS
    )


def full_study(n: int, width: int) -> list[tuple[Intervention, ...]]:
    """Baseline, cumulative at every layer, all layers and windows of three knockouts."""
    cuts = (LV_K, VT_K, VS_K)
    conditions = [protocols.BASELINE, *protocols.cumulative(LV_K, n), *protocols.everywhere(cuts)]
    conditions += [c for k in cuts for c in protocols.windows(k, n, width)]
    return [c.interventions for c in conditions]
