"""The golden cases: original weights and outputs of every family, converted as a user would, for tests."""

import os
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from hookedvid import HookedVideoLLM
from hookedvid.checkpoints.convert import convert
from hookedvid.checkpoints.parity import Recorded

SHARED = Path(__file__).resolve().parents[2] / "shared" / "golden"
FOLDER = Path(os.environ.get("HOOKEDVID_GOLDEN", SHARED))
CASES = sorted(p.name for p in FOLDER.iterdir() if (p / "case.json").is_file()) if FOLDER.is_dir() else []
WORK = TemporaryDirectory(prefix="hookedvid-golden-")


class Golden(NamedTuple):
    """A case: our model with its weights, the token ids, the pixels, the original outputs by our stages' names."""

    model: HookedVideoLLM
    ids: torch.Tensor
    pixels: torch.Tensor
    expected: dict[str, torch.Tensor]


@cache
def converted(name: str) -> Path:
    """The folder of a case's converted checkpoint."""
    case = Recorded.load(FOLDER / name)
    return convert(FOLDER / name, Path(WORK.name) / name, overrides=case.overrides, progress=False)


def load(name: str, dtype: torch.dtype = torch.float32) -> Golden:
    case = Recorded.load(FOLDER / name)
    model = HookedVideoLLM.from_pretrained(converted(name), dtype=dtype)
    return Golden(model, case.tokens, case.pixels.to(dtype), dict(case.theirs))
