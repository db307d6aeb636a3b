"""The sizes of preprocessed frames against transformers' processors, and laws over all sizes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl import video_processing_qwen2_vl as qwen2
from transformers.models.qwen3_vl import video_processing_qwen3_vl as qwen3
from transformers.models.smolvlm import video_processing_smolvlm as smolvlm

from hookedvid.errors import ConfigError, InputError
from hookedvid.values import parts
from hookedvid.values.frame_size import frame_size, sizes_in_turn
from hookedvid.values.pixel_budget import PixelBudget
from versions import processors_of_today

PROCESSORS = json.loads((Path(__file__).parents[1] / "golden" / "processors.json").read_text())
TOWERS = {"qwen2.5-vl": parts.QWEN2_5_VIT, "qwen3-vl": parts.QWEN3_VIT_300M, "videollama3": parts.VIDEOLLAMA3_VIT}
law = settings(deadline=None)  # a loaded machine is no failure
sides = st.integers(1, 3000)
frames = st.integers(2, 800)


@pytest.mark.parametrize("name", PROCESSORS["sizes"])
def test_grids_are_those_of_the_official_processors(name):
    case = PROCESSORS["sizes"][name]
    tower = TOWERS[name.split()[0]]
    unit = case["patch_size"] * case["merge_size"]
    cap = None
    if "capped" in name:
        cap = 768 * unit**2 if name.startswith("qwen3") else 2 * int(0.9 * 128_000 * unit**2)
    budget = replace(tower.budget, least=case["size"]["shortest_edge"], most=case["size"]["longest_edge"], cap=cap)
    tower = replace(tower, budget=budget)
    for n_frames, height, width, grid, n_tokens in case["rows"]:
        rows, columns = frame_size(tower, n_frames, height, width)
        made = [-(-n_frames // tower.patch_frames), rows // tower.patch_size, columns // tower.patch_size]
        assert made == grid and made[0] * rows * columns // unit**2 == n_tokens


def test_short_sides_of_qwen3_are_enlarged_first():
    for n_frames, height, width, size in PROCESSORS["qwen3 smart_resize"]:
        assert list(frame_size(parts.QWEN3_VIT_300M, n_frames, height, width)) == size


@law
@given(frames, sides, sides, st.integers(1, 10**6), st.integers(1, 10**7))
def test_a_budget_of_each_frame_is_that_of_qwen2(n_frames, height, width, least, most):
    assume(max(height, width) <= 200 * min(height, width) and max(least, n_frames) <= most)
    tower = replace(parts.QWEN2_VIT, budget=PixelBudget(least=least, most=most))
    assert frame_size(tower, n_frames, height, width) == qwen2.smart_resize(height, width, 28, least, most)
    shared = replace(parts.VIDEOLLAMA3_VIT, budget=PixelBudget(least=least, most=most, per="share"))
    assert frame_size(shared, n_frames, height, width) == qwen2.smart_resize(height, width, 28, least, most // n_frames)


@processors_of_today
@law
@given(frames, sides, sides, st.integers(1, 10**6), st.integers(1, 10**8))
def test_a_budget_of_the_clip_is_that_of_qwen3(n_frames, height, width, least, most):
    assume(max(height, width, 32) <= 100 * min(height, width) and least <= most)
    tower = replace(parts.QWEN3_VIT_300M, budget=PixelBudget(least=least, most=most, per="clip"))
    assert frame_size(tower, n_frames, height, width) == qwen3.smart_resize(n_frames, height, width, 2, 32, least, most)


@law
@given(sides, sides, st.integers(16, 5000))
def test_the_longer_side_fits_first_as_in_smolvlm(height, width, longest):
    assume(max(height, width) <= 200 * min(height, width))
    tower = replace(parts.SMOLVLM_SIGLIP_512, first_size=longest)
    expected = smolvlm.get_resize_output_image_size(torch.empty(3, height, width, device="meta"), longest)
    assert sizes_in_turn(tower, 4, height, width) == [tuple(expected), (512, 512)]


@law
@given(frames, sides, sides)
def test_frames_that_fit_already_stay(n_frames, height, width):
    assume(max(height, width) <= 100 * min(height, width))
    size = frame_size(parts.QWEN2_VIT, n_frames, height, width)
    assert frame_size(parts.QWEN2_VIT, n_frames, *size) == size


def test_other_towers_have_one_size():
    for tower in (parts.SIGLIP_SO400M, parts.CLIP_L_224, parts.SMOLVLM_SIGLIP_512):
        assert frame_size(tower, 3, 480, 854) == (tower.image_size, tower.image_size)


def test_one_frame_is_as_large_as_the_pair_that_it_becomes():
    assert frame_size(parts.QWEN3_VIT_300M, 1, 480, 854) == frame_size(parts.QWEN3_VIT_300M, 2, 480, 854)


@pytest.mark.parametrize("tower", [parts.QWEN2_VIT, parts.QWEN3_VIT_300M, parts.VIDEOLLAMA3_VIT])
def test_frames_too_long_for_their_width_are_refused(tower):
    with pytest.raises(InputError, match=r"a frame of 10000 x 49 pixels is more than 200 times as long as wide"):
        frame_size(tower, 2, 10_000, 49)


@pytest.mark.parametrize(
    "wrong", [dict(least=5, most=4), dict(least=0, most=4), dict(least=1, most=4, cap=2, per="share")]
)
def test_budgets_that_hold_nothing_are_refused(wrong):
    with pytest.raises(ConfigError, match="budget"):
        PixelBudget(**wrong)


@pytest.mark.parametrize(
    ("tower", "wrong", "text"),
    [
        (parts.SIGLIP_SO400M, dict(first_size=512), "'squash' have no first size"),
        (parts.CLIP_L_224, dict(first_size=200), "a centre of 224 pixels is more than the short side, 200"),
        (parts.QWEN2_VIT, dict(multiple=0), "multiple = 0 must be at least 1"),
        (parts.QWEN2_VIT, dict(scale=float("nan")), "scale = nan must be a finite number above 0"),
        (parts.VIDEOLLAMA3_VIT, dict(drop_below=0.0), "drop_below = 0.0 must be a finite number above 0"),
    ],
)
def test_towers_that_cannot_take_frames_are_refused(tower, wrong, text):
    with pytest.raises(ConfigError, match=text):
        replace(tower, **wrong)
