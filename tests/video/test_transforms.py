"""Preprocessing against the PIL image processors of Transformers, bit for bit."""

import numpy as np
import pytest
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from hookedvid.values.config import VisionConfig
from hookedvid.video.transforms import preprocess

CLIP = dict(
    resize="crop",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SIZES = [(90, 160), (160, 90), (427, 241), (241, 427), (56, 56), (57, 56), (30, 41), (1, 50), (50, 1), (1, 1)]


def vision(image_size=56, **choices):
    return VisionConfig(n_layers=1, d_model=8, n_heads=1, d_mlp=8, image_size=image_size, patch_size=14, **choices)


def noise(height, width, n=2):
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (n, height, width, 3), np.uint8)


def processed(processor, frames):
    # A 1-pixel side looks like a grey channel unless the order of axes is said.
    return processor(list(frames), return_tensors="pt", input_data_format="channels_last")["pixel_values"]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("size", [56, 61])
def test_crop_equals_clip(height, width, size):
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    frames = noise(height, width)
    assert torch.equal(preprocess(frames, vision(size, **CLIP)), processed(processor, frames))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_squash_equals_siglip(height, width):
    processor = SiglipImageProcessorPil(size={"height": 56, "width": 56})
    frames = noise(height, width)
    assert torch.equal(preprocess(frames, vision()), processed(processor, frames))


def test_squash_normalises_as_configured():
    processor = SiglipImageProcessorPil(
        size={"height": 56, "width": 56}, image_mean=IMAGENET["mean"], image_std=IMAGENET["std"]
    )
    frames = noise(90, 160)
    assert torch.equal(preprocess(frames, vision(**IMAGENET)), processed(processor, frames))


def test_frames_of_the_right_size_are_only_scaled():
    frames = noise(56, 56)
    expected = (torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.5
    # Two float32 roundings of numbers up to 1, at half a unit in the last place each.
    torch.testing.assert_close(preprocess(frames, vision()).double(), expected, rtol=0, atol=2.0**-23)


@pytest.mark.parametrize("choices", [{}, CLIP], ids=["squash", "crop"])
def test_each_frame_is_its_own(choices):
    frames = noise(90, 160, n=3)
    together = preprocess(frames, vision(**choices))
    alone = torch.cat([preprocess(frames[i : i + 1], vision(**choices)) for i in range(3)])
    assert together.shape == (3, 3, 56, 56) and together.dtype == torch.float32
    assert torch.equal(together, alone)


def test_crop_keeps_the_centre_and_squash_keeps_all():
    frames = np.zeros((1, 56, 112, 3), np.uint8)
    frames[:, :, 28:84] = 255
    plain = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert preprocess(frames, vision(resize="crop", **plain)).eq(1).all()
    assert preprocess(frames, vision(**plain)).mean().item() == pytest.approx(0.5, abs=0.01)


def test_frames_are_left_alone():
    frames = noise(90, 160)
    before = frames.copy()
    preprocess(frames, vision(**CLIP))
    assert np.array_equal(frames, before)


def test_strided_frames_are_read_in_their_own_order():
    frames = noise(90, 160)
    turned = np.rot90(frames, axes=(1, 2))
    assert torch.equal(preprocess(turned, vision()), preprocess(np.ascontiguousarray(turned), vision()))
