"""Preprocessing against the processors of Transformers, those on Pillow and those on torchvision, bit for bit."""

import numpy as np
import pytest
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
from transformers.models.video_llava.video_processing_video_llava import VideoLlavaVideoProcessor

from hookedvid.errors import InputError
from hookedvid.values.config import VisionConfig
from hookedvid.values.parts import QWEN2_VIT
from hookedvid.video import transforms
from hookedvid.video.transforms import preprocess
from versions import processors_of_today

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


def from_torchvision(processor, frames):
    """[frame, 3, height, width] of a processor on torchvision."""
    given = dict(input_data_format="channels_last", return_tensors="pt")
    (pixels,) = processor(videos=[torch.from_numpy(frames)], **given)[processor.model_input_names[0]]
    return pixels


@processors_of_today
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("resample", "name"), [(3, "bicubic"), (2, "bilinear"), (1, "lanczos")])
def test_squash_equals_internvl(height, width, resample, name):
    processor = InternVLVideoProcessor(
        size={"height": 56, "width": 56}, image_mean=IMAGENET["mean"], image_std=IMAGENET["std"], resample=resample
    )
    frames = noise(height, width)
    assert torch.equal(preprocess(frames, vision(resample=name, **IMAGENET)), from_torchvision(processor, frames))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("first", "size"), [(56, 56), (61, 56), (57, 57)])
def test_crop_equals_video_llava(height, width, first, size):
    processor = VideoLlavaVideoProcessor(size={"shortest_edge": first}, crop_size={"height": size, "width": size})
    frames = noise(height, width)
    made = preprocess(frames, vision(size, first_size=first, resample="bicubic", **CLIP))
    assert torch.equal(made, from_torchvision(processor, frames))


@processors_of_today
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("first", "size"), [(56, 56), (90, 56), (40, 57)])
def test_squash_twice_equals_smolvlm(height, width, first, size):
    processor = SmolVLMVideoProcessor(size={"longest_edge": first}, max_image_size={"longest_edge": size})
    frames = noise(height, width)
    made = preprocess(frames, vision(size, resize="squash_twice", first_size=first, resample="lanczos"))
    assert torch.equal(made, from_torchvision(processor, frames))


@pytest.mark.parametrize("factor", [1 / 255, 1 / 127.5, 0.01])
def test_bytes_are_scaled_as_configured(factor):
    frames = noise(60, 90)
    processor = InternVLVideoProcessor(size={"height": 56, "width": 56}, rescale_factor=factor)
    made = preprocess(frames, vision(resample="bicubic", scale=factor, mean=CLIP["mean"], std=CLIP["std"]))
    assert torch.equal(made, from_torchvision(processor, frames))
    processor = SiglipImageProcessorPil(size={"height": 56, "width": 56}, rescale_factor=factor)
    assert torch.equal(preprocess(frames, vision(scale=factor)), processed(processor, frames))


@pytest.mark.parametrize(("height", "width"), [(90, 160), (160, 90), (427, 241), (57, 56), (30, 41), (2, 50)])
def test_fit_keeps_the_shape_and_equals_qwen(height, width):
    frames = noise(height, width)
    made = preprocess(frames, QWEN2_VIT)
    budget = {"shortest_edge": QWEN2_VIT.budget.least, "longest_edge": QWEN2_VIT.budget.most}
    # As one group of all frames and one patch of the whole frame, rows are [channel, frame, height, width].
    whole = dict(patch_size=28, merge_size=1, temporal_patch_size=1)
    processor = Qwen2VLVideoProcessor(size=budget, cap_pixels_per_frame=False, **whole)
    given = dict(input_data_format="channels_last", return_tensors="pt")
    official = processor(videos=[torch.from_numpy(frames)], **given)
    n, rows, columns = official["video_grid_thw"][0].tolist()
    patches = official["pixel_values_videos"].view(n, rows, columns, 3, 28, 28)
    assert torch.equal(made, patches.permute(0, 3, 1, 4, 2, 5).reshape(n, 3, rows * 28, columns * 28))


def test_torch_without_lanczos_is_told_of_pillows(monkeypatch):
    def none_such(*args, **kwargs):
        raise NotImplementedError("Input Error: Only 3D, 4D and 5D input Tensors supported (got 4D input)")

    monkeypatch.setattr(transforms.torch.nn.functional, "interpolate", none_such)
    with pytest.raises(InputError, match=r"cannot resize by 'lanczos', which Lanczos needs 2.12 for; .*'pil_lanczos'"):
        preprocess(noise(60, 90), vision(resample="lanczos"))
    assert preprocess(noise(60, 90), vision(resample="pil_lanczos")).shape == (2, 3, 56, 56)
