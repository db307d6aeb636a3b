"""The golden cases: original weights and outputs of every family, converted as a user would, for tests.

Weights and pixels were drawn at random, so that they are drawn again; tests/golden/README.md says how.
"""

import hashlib
import json
import os
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from hookedvid import HookedVideoLLM, VideoInputs
from hookedvid.checkpoints.convert import convert
from hookedvid.checkpoints.recorded import Recorded, variants

RECORDED = Path(__file__).with_name("golden")
# Of whole cases, with weights and pixels in their files, where somebody has more of them.
OTHERS = os.environ.get("HOOKEDVID_GOLDEN")
CASES = sorted(p.parent.name for p in Path(OTHERS or RECORDED).glob("*/case.json"))
DRAWN = [name for name in CASES if (RECORDED / name / "drawn.json").is_file() and not OTHERS]
AS_ON_THE_HUB = [name for name in CASES if (Path(OTHERS or RECORDED) / name / "config.hub.json").is_file()]
VARIANTS = [(name, v) for name in CASES for v in variants(Path(OTHERS or RECORDED) / name)]
WORK = TemporaryDirectory(prefix="hookedvid-golden-")


class Golden(NamedTuple):
    """A case: our model with its weights, and what the original code was given and made of it."""

    model: HookedVideoLLM
    case: Recorded

    @property
    def inputs(self) -> VideoInputs:
        case = self.case
        pixels = case.pixels.to(self.model.embed.weight.dtype)
        return self.model.inputs_from_tensors(case.tokens, pixels, **case.processed)


class Drawn(NamedTuple):
    """What a case draws at random: weights by their original names, and pixels."""

    weights: dict[str, torch.Tensor]
    pixels: torch.Tensor
    about: dict[str, Any]

    @classmethod
    def of(cls, name: str) -> "Drawn":
        about = json.loads((RECORDED / name / "drawn.json").read_text(encoding="utf-8"))
        g = torch.Generator().manual_seed(0)
        weights = {n: torch.randn(shape, generator=g) * 0.08 + centre for n, shape, centre in about["tensors"]}
        if about["pixels_seed"] is not None:
            g.manual_seed(about["pixels_seed"])
        return cls(weights, torch.randn(about["pixel_values"], generator=g).half(), about)

    def sha256(self) -> str:
        """Of all weights and the pixels, in the order they are drawn."""
        parts = (t.contiguous().view(torch.uint8).numpy().tobytes() for t in (*self.weights.values(), self.pixels))
        return hashlib.sha256(b"".join(parts)).hexdigest()


@cache
def original(name: str) -> Path:
    """The folder of a case: its checkpoint in the original layout, inputs and outputs."""
    if OTHERS or not (RECORDED / name / "drawn.json").is_file():
        return Path(OTHERS or RECORDED) / name
    folder = Path(WORK.name) / "original" / name
    shutil.copytree(RECORDED / name, folder)
    drawn = Drawn.of(name)
    save_file(drawn.weights, folder / "model.safetensors", metadata={"format": "pt"})
    expected = load_file(folder / "expected.safetensors")
    if other := drawn.about.get("vision_tower_of"):
        expected["vision_tower"] = load_file(RECORDED / other / "expected.safetensors")["vision_tower"]
    expected["input_embeds"], expected["pixel_values"] = expected["hidden.0"].clone(), drawn.pixels
    save_file(expected, folder / "expected.safetensors")
    return folder


@cache
def spelled_as_on_the_hub(name: str) -> Path:
    """The folder of a case with its config.json as repositories on the hub have it."""
    folder = Path(WORK.name) / "hub" / name
    shutil.copytree(original(name), folder, copy_function=os.symlink)
    (folder / "config.json").unlink()
    (folder / "config.hub.json").rename(folder / "config.json")
    return folder


def converted(name: str, variant: str = "") -> Path:
    """The folder of a case's converted checkpoint."""
    return _converted(name, variant)


@cache
def _converted(name: str, variant: str) -> Path:
    case = Recorded.load(original(name), variant)
    into = Path(WORK.name) / "ours" / name / (variant or "plain")
    return convert(original(name), into, overrides=case.overrides, progress=False)


def load(name: str, variant: str = "", dtype: torch.dtype = torch.float32) -> Golden:
    model = HookedVideoLLM.from_pretrained(converted(name, variant), dtype=dtype)
    return Golden(model, Recorded.load(original(name), variant))
