"""Frames processed as the official processors do it: every tensor, bit for bit, whatever the settings."""

import inspect
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor
from transformers.models.video_llava.video_processing_video_llava import VideoLlavaVideoProcessor

from hookedvid import HookedVideoLLM, small_config
from hookedvid.errors import InputError
from hookedvid.families import registry
from hookedvid.values import parts
from hookedvid.values.processor import Processor
from hookedvid.video.processed import process
from hookedvid.video.transforms import preprocess
from versions import processors_of_today

QWEN = Processor(extras=("video_grid_thw",))
QWEN2_5 = Processor(extras=("video_grid_thw", "second_per_grid_ts"))
QWEN3 = Processor(extras=("video_grid_thw",), inert=("max_image_size",))
VIDEOLLAMA3 = Processor(extras=("video_grid_thw", "video_merge_sizes", "video_compression_mask"))
SMOLVLM = Processor(pixels="pixel_values", form="video", extras=("pixel_attention_mask",))
SAMPLING = {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 84}}}
INTERNVL = Processor(pixels="pixel_values", form="frames")
VIDEO_LLAVA = Processor(form="video")
INTERNVIT = replace(parts.INTERNVIT_300M, resample="bicubic")
VIDEOLLAMA3_VIT = replace(parts.VIDEOLLAMA3_VIT, resample="bicubic")

SMALL = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 20}
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
CAPPED = {"size": {"shortest_edge": 3136, "longest_edge": 60_000}, "cap_pixels_per_frame": True}
SMOLVLM_512 = {"max_image_size": {"longest_edge": 512}}
NONE = {"max_image_size": {"longest_edge": 9}}  # which Qwen3-VL's processor does not heed
QWEN2 = {"size": {"shortest_edge": 3136, "longest_edge": 12_845_056}, **CLIP}
CASES = [
    (parts.QWEN2_VIT, QWEN, Qwen2VLVideoProcessor, {}, QWEN2),
    (parts.QWEN2_VIT, QWEN, Qwen2VLVideoProcessor, {"size": SMALL, **HALVES}, CLIP),
    (parts.QWEN2_VIT, QWEN, Qwen2VLVideoProcessor, {"min_pixels": 50_000, "max_pixels": 60_000}, QWEN2),
    (parts.QWEN2_VIT, QWEN, Qwen2VLVideoProcessor, {"patch_size": 7, "merge_size": 3, "size": SMALL}, CLIP),
    (parts.QWEN2_VIT, QWEN, Qwen2VLVideoProcessor, {"temporal_patch_size": 3, "resample": 2, "size": SMALL}, CLIP),
    (parts.QWEN2_VIT, QWEN, Qwen2VLVideoProcessor, {"max_video_tokens": 20, **CAPPED}, QWEN2),
    (parts.QWEN2_VIT, QWEN, Qwen2VLVideoProcessor, {"max_video_tokens": 12, "temporal_patch_size": 4, **CAPPED}, QWEN2),
    (parts.RICE, QWEN2_5, Qwen2VLVideoProcessor, {"temporal_patch_size": 1, "size": SMALL}, CLIP),
    (parts.QWEN3_VIT_300M, QWEN3, Qwen3VLVideoProcessor, {"size": SMALL, **NONE}, HALVES),
    (parts.QWEN3_VIT_300M, QWEN3, Qwen3VLVideoProcessor, {"max_video_tokens": 6, **CAPPED}, HALVES),
    (VIDEOLLAMA3_VIT, VIDEOLLAMA3, VideoLlama3VideoProcessor, {"size": SMALL}, {}),
    (VIDEOLLAMA3_VIT, VIDEOLLAMA3, VideoLlama3VideoProcessor, {"size": SMALL, "temporal_patch_size": 4}, {}),
    (VIDEOLLAMA3_VIT, VIDEOLLAMA3, VideoLlama3VideoProcessor, {"size": SMALL, "use_token_compression": False}, {}),
    (parts.SMOLVLM_SIGLIP_512, SMOLVLM, SmolVLMVideoProcessor, {"size": {"longest_edge": 70}}, SMOLVLM_512),
    (
        parts.SMOLVLM_SIGLIP_384, SMOLVLM, SmolVLMVideoProcessor,
        {"size": {"longest_edge": 70}, "max_image_size": {"longest_edge": 42}, "rescale_factor": 1 / 127.5}, {},
    ),
    (parts.SMOLVLM_SIGLIP_512, SMOLVLM, SmolVLMVideoProcessor, SAMPLING, SMOLVLM_512),
    (parts.SMOLVLM_SIGLIP_512, SMOLVLM, SmolVLMVideoProcessor, {**SAMPLING, "size": {"longest_edge": 70}}, SMOLVLM_512),
    (INTERNVIT, INTERNVL, InternVLVideoProcessor, {"size": {"height": 56, "width": 56}, "image_mean": 0.4, **CLIP}, {}),
    (
        parts.CLIP_L_224, VIDEO_LLAVA, VideoLlavaVideoProcessor,
        {"size": {"shortest_edge": 60}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": True}, {},
    ),
    (parts.CLIP_L_224, VIDEO_LLAVA, VideoLlavaVideoProcessor, {"crop_size": {"height": 56, "width": 56}}, {}),
]  # fmt: skip


def video(n_frames, height, width):
    """Noise of which every other frame repeats the one before, but for a corner."""
    frames = np.random.default_rng(n_frames).integers(0, 256, (n_frames, height, width, 3), np.uint8)
    for i in range(1, n_frames, 2):
        frames[i, 20:] = frames[i - 1, 20:]
    return frames


@processors_of_today
@pytest.mark.parametrize("n_frames", [2, 5])
@pytest.mark.parametrize(("height", "width"), [(70, 100), (84, 58), (30, 200)])
@pytest.mark.parametrize(("vision", "processor", "official", "asked", "defaults"), CASES)
def test_tensors_are_those_of_the_official_processor(
    vision, processor, official, asked, defaults, height, width, n_frames
):
    """`defaults` are of the hub's files, which the tower has without being asked."""
    frames = video(n_frames, height, width)
    plain = {} if official is not Qwen3VLVideoProcessor else {"do_sample_frames": False}
    given = {"return_tensors": "pt", "input_data_format": "channels_last"}
    expected = dict(official(**deepcopy({**defaults, **asked, **plain}))(videos=[torch.from_numpy(frames)], **given))
    expected.pop("video_metadata", None)
    if processor is INTERNVL:  # whose processor hands frames on as pictures
        expected = {"pixel_values": expected["pixel_values_videos"].flatten(0, 1)}
    made = process(frames, vision, processor, None, asked)
    assert list(made) == list(expected)
    for name, tensor in expected.items():
        assert made[name].dtype == tensor.dtype and torch.equal(made[name], tensor), name
    same = {**asked, "do_rescale": True, "fps": 2, "num_frames": None, "data_format": "channels_first"}  # no more
    again = process(torch.from_numpy(frames), vision, processor, 1.5, same)
    assert all(torch.equal(again[name], made[name]) for name in made)


def test_a_single_frame_may_be_one_of_a_reversed_video():
    """Which NumPy calls contiguous, and torch refuses."""
    frames = video(1, 60, 70)
    made, turned = (process(x, parts.QWEN2_VIT, QWEN)["pixel_values_videos"] for x in (frames, frames[::-1]))
    assert torch.equal(made, turned)


def test_seconds_of_a_group_follow_the_rate():
    frames = video(4, 60, 60)
    assert process(frames, parts.QWEN2_5_VIT, QWEN2_5, 4.0)["second_per_grid_ts"].tolist() == [0.5]
    assert "second_per_grid_ts" not in process(frames, parts.QWEN2_5_VIT, QWEN2_5)
    assert "second_per_grid_ts" not in process(frames, parts.QWEN2_VIT, QWEN, 4.0)


@pytest.mark.parametrize(
    ("vision", "settings", "text"),
    [
        (parts.QWEN2_VIT, {"patch": 14}, r"no setting 'patch'; nearest: 'patch_size'"),
        (parts.QWEN2_VIT, {"max_image_size": {"longest_edge": 9}}, r"no setting 'max_image_size'"),
        (INTERNVIT, {"patch_size": 14}, r"no setting 'patch_size'"),
        (parts.QWEN2_VIT, {"do_resize": False}, r"do_resize = False is not done here: .* \(do_resize = True\)"),
        (parts.QWEN2_VIT, {"do_sample_frames": True}, r"do_sample_frames = True is not done here: frames come as they"),
        (parts.QWEN2_VIT, {"data_format": "channels_last"}, r"data_format = 'channels_last' is not done here"),
        (INTERNVIT, {"do_center_crop": True}, r"do_center_crop = True is not done here"),
        (parts.QWEN2_VIT, {"size": {"height": 28, "width": 28}}, r"size = .* give shortest_edge, longest_edge"),
        (parts.QWEN2_VIT, {"size": 28}, r"size = 28 is not what this tower's frames are resized by"),
        (parts.QWEN2_VIT, {"size": {"shortest_edge": 9, "longest_edge": 8}}, r"do not go together: a budget of 9 to 8"),
        (INTERNVIT, {"size": {"height": 28, "width": 56}}, r"is no square, which this tower takes"),
        (INTERNVIT, {"size": {"height": 28, "width": 2.5}}, r"size\['width'\] is 2.5; ask for at least one"),
        (parts.CLIP_L_224, {"crop_size": {"height": 300, "width": 300}}, r"a centre of 300 pixels is more than the"),
        (parts.QWEN2_VIT, {"resample": [3]}, r"resample = \[3\] is none of Pillow's numbers known here"),
        (parts.QWEN2_VIT, {"resample": 0}, r"resample = 0 is none of Pillow's numbers known here: {1: 'lanczos'"),
        (parts.QWEN2_VIT, {"image_mean": "0.5"}, r"image_mean = '0.5'; give a number, or one for each of three"),
        (parts.QWEN2_VIT, {"image_std": [0.5, 0.5, 0.0]}, r"do not go together: mean .* std above 0"),
        (parts.QWEN2_VIT, {"patch_size": 14.5}, r"patch_size is 14.5; ask for at least one"),
        (
            parts.QWEN3_VIT_300M,
            {"max_pixels": 9},
            r"change nothing where the budget is a whole clip's; give both sides",
        ),
        (parts.VIDEOLLAMA3_VIT, {"cap_pixels_per_frame": True}, r"frames of this model have a share of all pixels"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(vision, settings, text):
    with pytest.raises(InputError, match=text):
        process(video(2, 60, 60), vision, QWEN, None, settings)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 60, 60, 3), np.float32), np.zeros((2, 3, 60, 60), np.uint8), np.zeros((60, 60, 3), np.uint8),
        np.zeros((0, 60, 60, 3), np.uint8), torch.zeros(2, 60, 60, 4, dtype=torch.uint8),
    ],
)  # fmt: skip
def test_what_are_no_frames_is_refused(frames):
    with pytest.raises(InputError, match=r"frames are .*; give uint8 RGB \[frame, height, width, 3\]"):
        inspect.unwrap(process)(frames, parts.QWEN2_VIT, QWEN)


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(2, 60, 60, 3, dtype=torch.bfloat16), [np.zeros((5, 5, 3), np.uint8), np.zeros((6, 6, 3), np.uint8)]],
)
def test_what_is_no_array_of_bytes_is_refused(frames):
    with pytest.raises(InputError, match=r"frames are no array of bytes \(.*\); give uint8 RGB"):
        inspect.unwrap(process)(frames, parts.QWEN2_VIT, QWEN)


@pytest.mark.parametrize("settings", ["patch_size", [("patch_size", 14)]])
def test_settings_are_fields_by_their_names(settings):
    with pytest.raises(InputError, match=r"settings are .*; give fields of the processor's config by their names"):
        inspect.unwrap(process)(video(2, 60, 60), parts.QWEN2_VIT, QWEN, None, settings)


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), "2", True])
def test_rates_are_numbers_above_0(fps):
    with pytest.raises(InputError, match=r"fps is .*; give how many of the frames were taken per second"):
        inspect.unwrap(process)(video(2, 60, 60), parts.QWEN2_VIT, QWEN, fps)


@pytest.mark.parametrize("family", ["llava-video", "no family's"])
def test_a_family_that_states_no_processor_says_so(family):
    model = HookedVideoLLM.from_config(replace(small_config("llava-video"), family=family))
    with pytest.raises(InputError, match="this model states no official processor; `prepare` takes a video"):
        model.process(video(2, 60, 60))


def test_a_model_processes_as_its_family_does(monkeypatch):
    llava_video = registry.family("llava-video")
    monkeypatch.setitem(registry.FAMILIES, "llava-video", replace(llava_video, processor=VIDEO_LLAVA))
    model = HookedVideoLLM.from_config(small_config("llava-video"))
    made = model.process(video(2, 60, 60), settings={"image_mean": 0.0})
    assert torch.equal(
        made["pixel_values_videos"], preprocess(video(2, 60, 60), replace(model.cfg.vision, mean=(0.0, 0.0, 0.0)))[None]
    )
