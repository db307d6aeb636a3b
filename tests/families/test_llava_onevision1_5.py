"""LLaVA-OneVision-1.5: what its code's mistake with class tokens changes, and what not."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from golden_cases import load, original
from hf_models import random_pixels
from hookedvid import HookedVideoLLM, small_config
from hookedvid.errors import ConfigError
from hookedvid.values.serial import override
from models import apart, perturb

QUESTION = [7, 8, 9]
CHOICES = ("released", "each_frame")


def model(choice: str) -> HookedVideoLLM:
    cfg = override(small_config("llava-onevision-1.5"), {"vision.cls_cut": choice}, ConfigError)
    made = HookedVideoLLM.from_config(cfg)
    perturb(made)
    return made


@torch.no_grad()
def features(choice: str, pixels: torch.Tensor) -> torch.Tensor:
    """Video tokens by frame."""
    made = model(choice)
    inputs = made.inputs_from_tensors([5, -200, *QUESTION], pixels)
    return made.encode_video(inputs).unflatten(0, (len(pixels), -1))


VIDEO = random_pixels(4, 3, 56, 84)


def test_the_mistake_is_the_default():
    assert small_config("llava-onevision-1.5").vision.cls_cut == "released"


@pytest.mark.parametrize("choice", CHOICES)
def test_frames_before_do_not_change_with_those_after(choice):
    assert apart(features(choice, VIDEO[:2]), features(choice, VIDEO)[:2]) < 1e-6


def test_one_frame_is_right_either_way_and_later_ones_are_not():
    released, each = (features(choice, VIDEO) for choice in CHOICES)
    assert apart(released[0], each[0]) < 1e-6
    assert all(apart(released[i], each[i]) > 1e-2 for i in range(1, 4))


def test_each_frame_has_its_own_tokens():
    alone = torch.cat([features("each_frame", VIDEO[i : i + 1]) for i in range(4)])
    assert apart(features("each_frame", VIDEO), alone) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("choice", CHOICES)
def test_videos_of_unlike_sizes_in_a_batch_are_those_alone(choice):
    made, videos = model(choice), [VIDEO, random_pixels(2, 3, 84, 56)]
    ids = [5, -200, *QUESTION]
    alone = [made(made.inputs_from_tensors(ids, v))[0] for v in videos]
    inputs = made.inputs_from_tensors([ids, ids], videos)
    for logits, single, pad in zip(made(inputs), alone, inputs.pads, strict=True):
        assert apart(logits[pad:], single) < 3e-6


def _on_the_hub(found: re.Match[str]) -> str:
    return found[1] or "model."


@torch.no_grad()
def test_names_of_the_hub_load_too(tmp_path):
    """`visual.…` and `model.…`; the recorded case has those of a model in memory."""
    case = original("llava-onevision-1.5-2")
    tensors = load_file(case / "model.safetensors")
    hub = {
        re.sub(r"^model\.language_model\.", "model.", n).replace("model.visual.", "visual."): x
        for n, x in tensors.items()
    }
    assert not hub.keys() & {n for n in tensors if n.startswith("model.visual.")}
    shutil.copy(case / "config.json", tmp_path)
    save_file(hub, tmp_path / "model.safetensors", {"format": "pt"})
    golden = load("llava-onevision-1.5-2")
    assert torch.equal(HookedVideoLLM.from_pretrained(tmp_path)(golden.inputs), golden.model(golden.inputs))
