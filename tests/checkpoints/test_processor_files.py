"""What a checkpoint's processor files say of videos: taken or told, and nothing is told at published values."""

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

import hf_models
from golden_cases import original as golden
from hookedvid import HookedVideoLLM, VideoLLMConfig
from hookedvid.checkpoints.byte_tokenizer import byte_tokenizer
from hookedvid.checkpoints.convert import convert, export
from hookedvid.checkpoints.processor_files import ProcessorFileWarning, differences, read, settled
from hookedvid.conversion.provenance import Provenance
from hookedvid.families.registry import family
from hookedvid.values import parts
from hookedvid.values.config import VisionConfig
from hookedvid.values.processor import PROCESSOR_FILES
from hookedvid.video.transforms import preprocess
from originals import OVERRIDES, original
from versions import processors_of_today

pytestmark = [pytest.mark.shapes_unchecked, processors_of_today]

NESTED, VIDEOS, IMAGES = PROCESSOR_FILES
CLIP = {"image_mean": list(parts.CLIP_MEAN), "image_std": list(parts.CLIP_STD)}
IMAGENET = {"image_mean": list(parts.IMAGENET_MEAN), "image_std": list(parts.IMAGENET_STD)}
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
OTHER = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 1 / 128}
QWEN = {"size": {"shortest_edge": 3136, "longest_edge": 12_845_056}}
QWEN3 = {"size": {"shortest_edge": 4096, "longest_edge": 25_165_824}}
SMOLVLM = {"max_image_size": {"longest_edge": 64}}
SAMPLED = {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 64}}}
SHARED = {"size": {"shortest_edge": 16 * 28**2, "longest_edge": 16_384 * 28**2}}
CROP = {"size": {"shortest_edge": 70}, "crop_size": {"height": 70, "width": 70}}


def square(side: int) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}}


class Kind(NamedTuple):
    """A tiny model of transformers' and its processors, with the settings that the hub's files have at full size.

    Attributes:
        model: Makes the model.
        whole: The class of the whole processor.
        videos: The class of the one for videos, and its settings.
        images: The class of the one for images, and its settings.
        told: A setting of another size or budget, and what is told of it.
    """

    model: Any
    whole: str
    videos: tuple[Any, dict[str, Any]]
    images: tuple[str, dict[str, Any]]
    told: tuple[dict[str, Any], str]


LESS = {"size": {"shortest_edge": 3136, "longest_edge": 401_408}}
MOST = r"has vision.budget.most = \d+; to follow the file: overrides={'vision.budget.most': 401408}"
KINDS = {
    "qwen2-vl": Kind(
        lambda: hf_models.qwen_vl("Qwen2VL"), "Qwen2VLProcessor", (transformers.Qwen2VLVideoProcessor, QWEN),
        ("Qwen2VLImageProcessor", QWEN), (LESS, MOST),
    ),
    "qwen2.5-vl": Kind(
        hf_models.qwen_vl, "Qwen2_5_VLProcessor", (transformers.Qwen2VLVideoProcessor, QWEN),
        ("Qwen2VLImageProcessor", QWEN), (LESS, MOST),
    ),
    "qwen3-vl": Kind(
        lambda: hf_models.qwen_vl("Qwen3VL"), "Qwen3VLProcessor", (transformers.Qwen3VLVideoProcessor, QWEN3),
        ("Qwen2VLImageProcessor", {"size": {"shortest_edge": 65536, "longest_edge": 16_777_216}, **HALVES}),
        ({"size": {"shortest_edge": 4096, "longest_edge": 401_408}}, MOST),
    ),
    "internvl": Kind(
        hf_models.internvl, "InternVLProcessor", (InternVLVideoProcessor, {**square(56), **IMAGENET}),
        ("GotOcr2ImageProcessor", {**square(56), **IMAGENET}),
        (square(28), "weights are made for vision.image_size = 56, which stays"),
    ),
    "smolvlm2": Kind(
        hf_models.smolvlm, "SmolVLMProcessor",
        (transformers.SmolVLMVideoProcessor, {"size": {"longest_edge": 64}, **SMOLVLM, **SAMPLED}),
        ("SmolVLMImageProcessor", {"size": {"longest_edge": 256}, **SMOLVLM}),
        # As transformers saves what it read of the published files.
        ({"size": {"longest_edge": 256}}, r"has vision.first_size = 64; .* overrides={'vision.first_size': 256}"),
    ),
    "videollama3": Kind(
        hf_models.videollama3, "VideoLlama3Processor", (transformers.VideoLlama3VideoProcessor, SHARED),
        ("VideoLlama3ImageProcessor", {}), ({"size": {"shortest_edge": 12544, "longest_edge": 401_408}}, MOST),
    ),
    "video-llava": Kind(
        hf_models.video_llava, "VideoLlavaProcessor", (transformers.VideoLlavaVideoProcessor, CROP),
        ("VideoLlavaImageProcessor", CROP), ({"size": {"shortest_edge": 84}}, r"overrides={'vision.first_size': 84}"),
    ),
    "llava-onevision": Kind(
        hf_models.onevision, "LlavaOnevisionProcessor",
        (transformers.LlavaOnevisionVideoProcessor, {**square(70), **HALVES}),
        ("LlavaOnevisionImageProcessor", {**square(70), **HALVES}),
        (square(56), "weights are made for vision.image_size = 70, which stays"),
    ),
    "llava-next-video": Kind(
        hf_models.next_video, "LlavaNextVideoProcessor", (transformers.LlavaNextVideoVideoProcessor, CROP),
        ("LlavaNextImageProcessor", CROP),
        ({"crop_size": {"height": 56, "width": 56}}, "weights are made for vision.image_size = 70, which stays"),
    ),
}  # fmt: skip
each = pytest.mark.parametrize("name", KINDS)
WORK = TemporaryDirectory(prefix="hookedvid-processors-")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOOKEDVID_HOME", str(tmp_path / "home"))


@cache
def bare(name: str) -> Path:
    """The checkpoint of a kind, without processor files."""
    KINDS[name].model().save_pretrained(folder := Path(WORK.name) / name)
    return folder


@cache
def plain(name: str) -> VideoLLMConfig:
    """The config of a kind without processor files."""
    return HookedVideoLLM.from_pretrained(convert(bare(name), f"{bare(name)}-ours", progress=False)).cfg


def tokenizer() -> Any:
    """What processors take for one of theirs."""
    made: Any = byte_tokenizer(300)
    for token in ("image", "video", "start_image", "end_image", "context_image", "fake_image", "global_image"):
        setattr(made, f"{token}_token", "a")
        setattr(made, f"{token}_token_id", 1)
    return made


def theirs(where: Path, name: str, *, nested: bool = True, both: Mapping[str, Any] = {}, **videos: Any) -> Path:
    """A checkpoint with the official processor's own files, some settings of which differ."""
    kind = KINDS[name]
    shutil.copytree(bare(name), where)
    ours = deepcopy({**kind.videos[1], **both, **videos})
    if name == "smolvlm2" and "size" in videos:
        ours["video_sampling"]["video_size"] = videos["size"]
    of_videos = kind.videos[0](**ours)
    of_images = getattr(transformers, kind.images[0])(**{**kind.images[1], **both})
    if not nested:  # as transformers 4 saved them
        of_videos.save_pretrained(where)
        of_images.save_pretrained(where)
        return where
    whole = getattr(transformers, kind.whole)(
        image_processor=of_images, video_processor=of_videos, tokenizer=tokenizer()
    )
    whole.save_pretrained(where.with_name("processor"))
    shutil.copy(where.with_name("processor") / NESTED, where)
    return where


def loaded(where: Path, **given: Any) -> HookedVideoLLM:
    """Converted, then loaded, each as a user does; any warning is an error."""
    ours = where.with_name(f"{where.name}-ours")
    return HookedVideoLLM.from_pretrained(convert(where, ours, progress=False, **given))


def told(where: Path, **given: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded(where, **given)
    assert {w.category for w in caught} <= {ProcessorFileWarning}
    return [str(w.message) for w in caught]


def tower(name: str, vision: VisionConfig) -> VideoLLMConfig:
    """What of a family's config processor files are held against."""
    known = family(name)
    return VideoLLMConfig(family=name, vision=vision, n_frames=known.n_frames, sampler=known.sampler)


# ---- the official processor's files, by family --------------------------------------------------------------


@each
@pytest.mark.parametrize("nested", [True, False])
def test_published_settings_change_nothing_and_nothing_is_said(name, nested, tmp_path):
    model = loaded(theirs(tmp_path / "theirs", name, nested=nested))
    assert model.cfg.family == name
    assert model.cfg == plain(name)
    notes = Provenance.load(tmp_path / "theirs-ours").notes
    assert not [n for n in notes if "processor" in n]


@each
def test_other_means_are_those_of_prepared_and_processed_frames(name, tmp_path):
    model = loaded(theirs(tmp_path / "theirs", name, both=OTHER))
    vision = model.cfg.vision
    assert (list(vision.mean), list(vision.std), vision.scale) == (*list(OTHER.values())[:2], 1 / 128)
    assert sum(": taken" in n for n in Provenance.load(tmp_path / "theirs-ours").notes) == 3
    frames = np.random.default_rng(0).integers(0, 256, (4, 90, 70, 3), dtype=np.uint8)
    video = KINDS[name].videos[0](**deepcopy({**KINDS[name].videos[1], **OTHER}))
    plain = {"do_sample_frames": False} if name == "qwen3-vl" else {}
    given = {"return_tensors": "pt", "input_data_format": "channels_last", **plain}
    expected = dict(video(videos=[torch.from_numpy(frames)], **given))
    if family(name).processor is None:  # and Pillow's filter, by 1 or 2 levels of 255 on pictures and more on noise
        frames = np.repeat(np.repeat(frames[:, :1, :1], 90, 1), 70, 2)  # of which plain ones are spared
        expected = dict(video(videos=[torch.from_numpy(frames)], **given))["pixel_values_videos"][0]
        # torch's processor folds the factor into mean and std, Pillow's does not: a rounding of values up to 3
        torch.testing.assert_close(preprocess(frames, vision), expected, rtol=0, atol=2e-6)
        return
    made = model.process(frames)
    pixels = family(name).processor.pixels
    official = expected.get(pixels, expected.get("pixel_values_videos"))
    assert torch.equal(made[pixels], official.flatten(0, 1) if name == "internvl" else official)


@each
def test_another_size_is_told_with_what_to_do(name, tmp_path):
    settings, text = KINDS[name].told
    where = theirs(tmp_path / "theirs", name, **settings)
    file = r"processor_config.json \(video_processor\)"
    with pytest.warns(ProcessorFileWarning, match=f"theirs-ours: {file} says .*{text}") as caught:
        assert loaded(where).cfg == plain(name)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    with pytest.warns(ProcessorFileWarning, match=file):  # of a converted folder every time
        HookedVideoLLM.from_pretrained(tmp_path / "theirs-ours")


def test_what_the_user_chose_is_followed_and_not_told(tmp_path):
    where = theirs(tmp_path / "theirs", "qwen2.5-vl", both=OTHER, **LESS)
    chosen = {"vision.mean": [0.0, 0.0, 0.0], "vision.budget.most": 500_000}
    vision = HookedVideoLLM.from_pretrained(where, overrides=chosen).cfg.vision
    assert vision.mean == (0.0, 0.0, 0.0) and list(vision.std) == OTHER["image_std"]
    assert vision.budget.most == 500_000
    HookedVideoLLM.from_pretrained(where, overrides=chosen)  # found converted


def test_frames_that_a_file_samples_are_told_unless_chosen(tmp_path):
    where = theirs(tmp_path / "theirs", "qwen3-vl", max_frames=64, fps=4, min_frames=8)
    texts = told(where)
    assert len(texts) == 3 and "n_frames = 768; to follow the file: overrides={'n_frames': 64}" in texts[0]
    assert "says fps = 4, and this model's sampler 'qwen' takes 2" in texts[1]
    assert "says min_frames = 8, and this model's sampler 'qwen' takes 4" in texts[2]
    with pytest.warns(ProcessorFileWarning) as caught:
        HookedVideoLLM.from_pretrained(tmp_path / "theirs-ours", overrides={"n_frames": 64})
    assert len(caught) == 2


def test_where_settings_of_images_contradict_ours_stay(tmp_path):
    where = theirs(tmp_path / "theirs", "llava-onevision", nested=False, **CLIP)  # as its class has it for videos
    with pytest.warns(ProcessorFileWarning) as caught:
        assert loaded(where).cfg.vision.mean == (0.5, 0.5, 0.5)
    of_std, of_mean = (str(w.message) for w in caught)
    assert "says image_std" in of_std
    assert re.search(r"image_mean = \[0.48.*\] \(of images it is \[0.5, .*overrides={'vision.mean': \[0.48", of_mean)


def test_files_travel_and_a_changed_one_is_read_anew(tmp_path):
    where = theirs(tmp_path / "theirs", "video-llava", nested=False)
    before = HookedVideoLLM.from_pretrained(where).cfg.vision
    for name in (VIDEOS, IMAGES):
        settings = json.loads((where / name).read_text())
        (where / name).write_text(json.dumps({**settings, "image_mean": [0.0, 0.0, 0.0]}))
    after = HookedVideoLLM.from_pretrained(where).cfg.vision
    assert before.mean == parts.CLIP_MEAN and after.mean == (0.0, 0.0, 0.0)
    back = export(convert(where, tmp_path / "ours", progress=False), tmp_path / "back", progress=False)
    assert all((back / name).read_bytes() == (where / name).read_bytes() for name in (VIDEOS, IMAGES))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        (VIDEOS, "{", VIDEOS + r" is not read \(Expecting property name"),
        (VIDEOS, "[" * 100_000, VIDEOS + " is not read"),
        (IMAGES, "[1]", IMAGES + r" is not read \(it holds list, not an object\)"),
        (NESTED, "\xff", NESTED + r" is not read \(.*utf-8"),
        (VIDEOS, '{"brightness": 2, "fps": null}', VIDEOS + " has 'brightness', which is not known here"),
        (VIDEOS, '{"do_normalize": false}', "says do_normalize = False, and this model has do_normalize = True"),
        (IMAGES, '{"do_rescale": false}', "says do_rescale = False, and this model has do_rescale = True"),
        (VIDEOS, '{"do_center_crop": true}', "says do_center_crop = True, and this model has do_center_crop = False"),
        (VIDEOS, '{"size": 224}', "says size = 224, which cannot be followed"),
        (VIDEOS, '{"image_mean": [0.5, 0.5]}', "which cannot be followed"),
        (VIDEOS, '{"image_std": [1e999, 1, 1]}', "which cannot be followed"),
        (VIDEOS, f'{{"image_mean": [1{"0" * 400}, 1, 1]}}', "which cannot be followed"),
        (VIDEOS, '{"rescale_factor": true}', "which cannot be followed"),
        (VIDEOS, '{"rescale_factor": "1/255"}', "which cannot be followed"),
        (VIDEOS, '{"resample": {}}', "which cannot be followed"),
        (VIDEOS, '{"temporal_patch_size": 4}', "weights are made for vision.patch_frames = 2, which stays"),
        (VIDEOS, '{"patch_size": 16}', "weights are made for .*vision.patch_size = 14"),
        (VIDEOS, '{"do_sample_frames": true, "num_frames": "many"}', "says num_frames = 'many', and this model takes"),
        (IMAGES, '{"image_mean": 0.4}', r"preprocessor_config.json says image_mean = 0.4, .*overrides={'vision.mean'"),
        (IMAGES, '{"max_pixels": 1003520}', r"says max_pixels = 1003520, .*overrides={'vision.budget.most': 1003520}"),
    ],
)
def test_whatever_a_file_holds_is_told_in_one_line(file, text, said, tmp_path):
    (tmp_path / file).write_text(text, encoding="latin-1")
    cfg, (line,) = settled(before := tower("qwen2.5-vl", parts.QWEN2_5_VIT), read(tmp_path), {})
    assert cfg == before and re.search(said, line) and "\n" not in line


def test_a_file_that_is_no_json_is_told_at_every_loading(tmp_path):
    shutil.copytree(bare("qwen2.5-vl"), tmp_path / "theirs")
    (tmp_path / "theirs" / VIDEOS).write_text("{")
    for _ in range(2):
        with pytest.warns(ProcessorFileWarning, match=f"{VIDEOS} is not read .Expecting .*: frames are prepared as"):
            model = HookedVideoLLM.from_pretrained(tmp_path / "theirs")
    assert model.cfg == plain("qwen2.5-vl")


# ---- layouts of the authors ---------------------------------------------------------------------------------


def test_code_whose_pixels_are_constants_reads_no_file(tmp_path):
    where = original(tmp_path / "theirs", "llava-onevision")
    (where / IMAGES).write_text(json.dumps(CLIP))
    (where / VIDEOS).write_text("{")
    assert loaded(where, overrides=OVERRIDES).cfg.vision.mean == (0.5, 0.5, 0.5)
    assert not (tmp_path / "theirs-ours" / IMAGES).exists()


@pytest.mark.parametrize("case", ["llava-onevision-1.5-2", "videollama3-original"])
def test_code_that_reads_them_is_followed_in_words(case, tmp_path):
    where = Path(shutil.copytree(golden(case), tmp_path / case))
    (where / IMAGES).write_text(json.dumps(OTHER))
    texts = told(where)
    assert len(texts) == 3 and all(f"{IMAGES} says" in x and "overrides={'vision." in x for x in texts)


# ---- what the hub's files hold at full size -----------------------------------------------------------------


STEPS = dict.fromkeys(("do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True)
USUAL = {**STEPS, "resample": 3, "rescale_factor": 0.00392156862745098}
PATCHES = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
QWEN2_FILE = {**CLIP, **PATCHES, "min_pixels": 3136, "max_pixels": 12_845_056, "processor_class": "Qwen2VLProcessor"}
# As transformers 4.5 shows and saves what it reads of a file of images alone.
NULLS = dict.fromkeys(
    "crop_size device do_center_crop do_pad fps input_data_format num_frames size_divisor video_metadata".split()
)
QWEN2_5_VIDEO = {
    **USUAL, **NULLS, **QWEN2_FILE, **QWEN, "data_format": "channels_first", "default_to_square": True,
    "do_sample_frames": False, "max_frames": 768, "min_frames": 4, "video_processor_type": "Qwen2VLVideoProcessor",
}  # fmt: skip
QWEN3_PATCHES = {**HALVES, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
QWEN3_IMAGE = {**QWEN3_PATCHES, "size": {"shortest_edge": 65536, "longest_edge": 16_777_216}}
QWEN3_VIDEO = {
    **USUAL, **QWEN3_PATCHES, **QWEN3, "do_sample_frames": True, "fps": 2, "max_frames": 768, "min_frames": 4,
    "return_metadata": False, "video_processor_type": "Qwen3VLVideoProcessor",
}  # fmt: skip
INTERNVL_IMAGE = {
    **USUAL, **NULLS, **IMAGENET, **square(448), "crop_to_patches": False, "max_patches": 12, "min_patches": 1,
    "image_processor_type": "GotOcr2ImageProcessorFast", "model_valid_processing_keys": ["do_resize"],
    "return_tensors": None, "video_processor_type": "InternVLVideoProcessor",
}  # fmt: skip
SMOLVLM_FILE = {
    **USUAL, **HALVES, "do_image_splitting": True, "do_pad": True, "resample": 1, "size": {"longest_edge": 2048},
    "max_image_size": {"longest_edge": 512},
    "video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}},
}  # fmt: skip
ONEVISION_FILE = {**USUAL, **HALVES, **square(384), "do_pad": True, "image_grid_pinpoints": [[384, 768]]}
NEXT_FILE = {
    **USUAL, **CLIP, "aspect_ratio_setting": "anyres", "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336}, "do_center_crop": True,
}  # fmt: skip
VIDEOLLAMA3_FILE = {**USUAL, **HALVES, "patch_size": 14, "min_tokens": 16, "max_tokens": 16384}
VIDEOLLAMA3_IMAGE = {
    **USUAL, **HALVES, "patch_size": 14, "temporal_patch_size": 1, "merge_size": 1, "min_pixels": 3136,
    "max_pixels": 3_211_264,
}  # fmt: skip
VIDEOLLAMA3_VIDEO = {
    **USUAL, **HALVES, "patch_size": 14, "temporal_patch_size": 1, "merge_size": 2, "min_pixels": 12_544,
    "max_pixels": 12_845_056, "min_frames": 4, "max_frames": 180, "do_sample_frames": False, "return_metadata": True,
    "use_token_compression": True, "video_processor_type": "VideoLlama3VideoProcessor",
}  # fmt: skip
HUB = [
    ("qwen2-vl", parts.QWEN2_VIT, {IMAGES: QWEN2_FILE}),
    ("qwen2-vl", parts.QWEN2_VIT, {IMAGES: {**QWEN2_FILE, "size": {"max_pixels": 12_845_056, "min_pixels": 3136}}}),
    ("qwen2.5-vl", parts.QWEN2_5_VIT, {IMAGES: QWEN2_FILE}),
    ("qwen2.5-vl", parts.QWEN2_5_VIT, {IMAGES: QWEN2_FILE, VIDEOS: QWEN2_5_VIDEO, NESTED: {"processor_class": "x"}}),
    ("llava-onevision-1.5", parts.RICE, {IMAGES: {**QWEN2_FILE, "temporal_patch_size": 1}}),
    ("qwen3-vl", parts.QWEN3_VIT_300M, {IMAGES: QWEN3_IMAGE, VIDEOS: QWEN3_VIDEO}),
    ("qwen3-vl", parts.QWEN3_VIT_300M, {IMAGES: QWEN3_IMAGE}),
    ("qwen3-vl", parts.QWEN3_VIT_300M, {NESTED: {"image_processor": QWEN3_IMAGE, "video_processor": QWEN3_VIDEO}}),
    ("internvl", parts.INTERNVIT_300M, {IMAGES: INTERNVL_IMAGE}),
    ("internvl", parts.INTERNVIT_300M, {IMAGES: INTERNVL_IMAGE, VIDEOS: INTERNVL_IMAGE}),  # saved once more
    ("smolvlm2", parts.SMOLVLM_SIGLIP_512, {IMAGES: SMOLVLM_FILE, NESTED: {"image_seq_len": 64}}),
    ("videollama3", parts.VIDEOLLAMA3_VIT, {IMAGES: VIDEOLLAMA3_FILE}),
    ("videollama3", parts.VIDEOLLAMA3_VIT, {IMAGES: VIDEOLLAMA3_IMAGE, VIDEOS: VIDEOLLAMA3_VIDEO}),
    ("llava-onevision", parts.SIGLIP_SO400M, {IMAGES: ONEVISION_FILE, NESTED: {"num_image_tokens": 729}}),
    ("llava-onevision", parts.SIGLIP_SO400M, {IMAGES: ONEVISION_FILE, VIDEOS: ONEVISION_FILE}),
    ("llava-next-video", parts.CLIP_L_336, {IMAGES: NEXT_FILE, NESTED: {"patch_size": 14}}),
    ("video-llava", parts.CLIP_L_224, {IMAGES: {**USUAL, **CLIP, "size": {"shortest_edge": 224}}}),
]


def written(folder: Path, files: Mapping[str, Any]) -> Path:
    for name, settings in files.items():
        (folder / name).write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(("name", "vision", "files"), HUB)
def test_nothing_is_said_of_the_hubs_files(name, vision, files, tmp_path):
    assert settled(cfg := tower(name, vision), read(written(tmp_path, files)), {}) == (cfg, [])


def test_of_files_that_contradict_each_other_ours_stay(tmp_path):
    """InternVL3.5's in transformers' layout, whose settings for videos are its class's defaults."""
    files = {IMAGES: INTERNVL_IMAGE, VIDEOS: {**USUAL, **CLIP, **square(384)}}
    cfg, lines = settled(tower("internvl", parts.INTERNVIT_300M), read(written(tmp_path, files)), {})
    assert cfg.vision == parts.INTERNVIT_300M and len(lines) == 3
    assert "made for vision.image_size = 448, which stays" in lines[0]


def test_defaults_of_transformers_classes_are_not_taken_for_a_models(tmp_path):
    """A processor made from its class's defaults has other budgets than any published one."""
    transformers.Qwen3VLVideoProcessor().save_pretrained(tmp_path)
    (one,) = differences(tower("qwen3-vl", parts.QWEN3_VIT_300M), read(tmp_path), {})
    assert one.changes == {"vision.budget.least": 131_072, "vision.budget.most": 786_432} and not one.taken


def test_settings_of_images_are_not_those_of_videos(tmp_path):
    """But for what is an image's and a frame's alike."""
    files = {IMAGES: {**QWEN3_IMAGE, "merge_size": 1, "size": {"longest_edge": 9}, "image_std": [0.1, 0.1, 0.1]}}
    (one,) = differences(tower("qwen3-vl", parts.QWEN3_VIT_300M), read(written(tmp_path, files)), {})
    assert one.changes == {"vision.std": [0.1, 0.1, 0.1]} and not one.taken
