"""A tower's preprocessing as the fields of an official processor's config ask for it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hookedvid.errors import ConfigError, InputError, nearest
from hookedvid.values.config import VisionConfig
from hookedvid.values.processor import Processor
from hookedvid.values.serial import counted, is_number

FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
DROP_BELOW = 0.1  # VideoLLaMA3's, which its config cannot change
# qwen-vl-utils' bounds in tokens, as transformers names them: of a video with Qwen2's budget, of a frame with Qwen3's.
VIDEO_TOKENS = {"frame": 128_000, "clip": 768}
USED = 0.9  # the share of them that a video may have
# What changes no frames that were sampled before.
INERT = (
    "default_to_square do_convert_rgb fps image_processor_type initial_shift max_duration max_frames min_frames "
    "num_frames processor_class return_metadata video_processor_type"
).split()
# Steps that are always taken, or never, and the form of what they give, which older files state.
FIXED: dict[str, Any] = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "do_sample_frames": False,
    "data_format": "channels_first",
}  # fmt: skip

Fields = dict[str, Any]
Reader = Callable[[VisionConfig, Mapping[str, Any]], Fields]


def configured(vision: VisionConfig, settings: Mapping[str, Any], processor: Processor) -> VisionConfig:
    """The tower with its frames preprocessed as a processor of these settings does it.

    Args:
        vision: The tower as its family has it.
        settings: Fields of the official processor's config, by its names; one that is None is as if it were not there.
        processor: Which settings it takes besides those of its kind.

    Raises:
        InputError: For fields that it does not have, and for what it could do and we do not.
    """
    if not isinstance(settings, Mapping):
        raise InputError(f"settings are {settings!r:.80}; give fields of the processor's config by their names")
    given = {name: value for name, value in settings.items() if value is not None}
    readers = READERS[vision.resize]
    fixed = FIXED | {"do_center_crop": vision.resize == "crop", "do_pad": vision.resize == "squash_twice"}
    known = [*COMMON, *readers, *fixed, *INERT, *processor.inert]
    if unknown := [name for name in given if name not in known]:
        raise InputError(f"this processor has no setting {unknown[0]!r}; {nearest(unknown[0], known)}")
    for name, always in fixed.items():
        if name in given and given[name] != always:
            raise InputError(
                f"{name} = {given[name]!r} is not done here: frames come as they were sampled, and are then resized, "
                f"scaled and normalised as this tower takes them ({name} = {always})"
            )
    try:
        for name, read in {**COMMON, **readers}.items():  # in this order, since budgets are counted in patches
            if name in given:
                vision = replace(vision, **read(vision, given))
        return vision
    except ConfigError as e:
        raise InputError(f"these settings do not go together: {e}") from e


def _sides(given: Mapping[str, Any], name: str, *keys: str) -> list[int]:
    """Numbers of pixels of a setting like `{"shortest_edge": 224}`, all keys and no other."""
    asked: Any = given[name]
    sides = {k: v for k, v in asked.items() if v is not None} if isinstance(asked, Mapping) else {}
    if set(sides) != set(keys):
        raise InputError(f"{name} = {asked!r} is not what this tower's frames are resized by; give {', '.join(keys)}")
    return [counted(f"{name}[{key!r}]", sides[key]) for key in keys]


def _square(given: Mapping[str, Any], name: str) -> int:
    height, width = _sides(given, name, "height", "width")
    if height != width:
        raise InputError(f"{name} = {given[name]!r} is no square, which this tower takes")
    return height


def _three(given: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values: Any = [given[name]] * 3 if is_number(given[name]) else given[name]
    if not (isinstance(values, list | tuple) and all(map(is_number, values))):
        raise InputError(f"{name} = {values!r}; give a number, or one for each of three channels")
    return tuple(float(x) for x in values)


def _resample(vision: VisionConfig, given: Mapping[str, Any]) -> Fields:
    if given["resample"] not in list(FILTERS):
        raise InputError(f"resample = {given['resample']!r} is none of Pillow's numbers known here: {FILTERS}")
    library = "pil_" if vision.resample.startswith("pil_") else ""
    return {"resample": library + FILTERS[given["resample"]]}


def _patches(vision: VisionConfig, given: Mapping[str, Any]) -> Fields:
    merge = counted("merge_size", given.get("merge_size", vision.multiple // vision.patch_size))
    size = counted("patch_size", given.get("patch_size", vision.patch_size))
    return {"patch_size": size, "multiple": size * merge}


def _budget(vision: VisionConfig, given: Mapping[str, Any]) -> Fields:
    assert vision.budget is not None
    if vision.budget.per == "clip" and not {"min_pixels", "max_pixels"}.isdisjoint(given):
        raise InputError(
            "min_pixels and max_pixels change nothing where the budget is a whole clip's; give both sides of `size`"
        )
    least, most = vision.budget.least, vision.budget.most
    if "size" in given:
        least, most = _sides(given, "size", "shortest_edge", "longest_edge")
    least = counted("min_pixels", given.get("min_pixels", least))
    most = counted("max_pixels", given.get("max_pixels", most))
    return {"budget": replace(vision.budget, least=least, most=most)}


def _cap(vision: VisionConfig, given: Mapping[str, Any]) -> Fields:
    assert vision.budget is not None
    per = vision.budget.per
    if not given["cap_pixels_per_frame"]:
        return {"budget": replace(vision.budget, cap=None)}
    if per == "share":
        raise InputError("cap_pixels_per_frame is Qwen's; frames of this model have a share of all pixels already")
    pixels = counted("max_video_tokens", given.get("max_video_tokens", VIDEO_TOKENS[per])) * vision.multiple**2
    return {"budget": replace(vision.budget, cap=pixels if per == "clip" else int(pixels * USED) * vision.patch_frames)}


def _video_size(vision: VisionConfig, given: Mapping[str, Any]) -> Fields:
    """Of the settings of a sampling, the size that frames are brought to first, unless `size` states another."""
    said = given["video_sampling"]
    if not isinstance(said, Mapping):
        raise InputError(f"video_sampling = {said!r}; give its fields, of which video_size is read")
    return {"first_size": _sides(said, "video_size", "longest_edge")[0]} if "video_size" in said else {}


def _last_size(vision: VisionConfig, size: int) -> Fields:
    """Another size at the end, whatever frames are brought to first."""
    return {"image_size": size, "first_size": vision.first_size or vision.image_size}


COMMON: dict[str, Reader] = {
    "image_mean": lambda vision, given: {"mean": _three(given, "image_mean")},
    "image_std": lambda vision, given: {"std": _three(given, "image_std")},
    "rescale_factor": lambda vision, given: {"scale": given["rescale_factor"]},
    "resample": _resample,
}
# What a processor reads besides, by the way in which a tower's frames are brought to size.
READERS: dict[str, dict[str, Reader]] = {
    "squash": {"size": lambda vision, given: {"image_size": _square(given, "size")}},
    "crop": {
        "size": lambda vision, given: {
            "first_size": _sides(given, "size", "shortest_edge")[0],
            "image_size": _square(given, "crop_size") if "crop_size" in given else vision.image_size,
        },
        "crop_size": lambda vision, given: _last_size(vision, _square(given, "crop_size")),
    },
    "squash_twice": {
        "video_sampling": _video_size,
        "size": lambda vision, given: {"first_size": _sides(given, "size", "longest_edge")[0]},
        "max_image_size": lambda vision, given: _last_size(vision, _sides(given, "max_image_size", "longest_edge")[0]),
    },
    "fit": {
        "patch_size": _patches,
        "merge_size": _patches,
        "temporal_patch_size": lambda vision, given: {
            "patch_frames": counted("temporal_patch_size", given["temporal_patch_size"])
        },
        "size": _budget,
        "min_pixels": _budget,
        "max_pixels": _budget,
        "cap_pixels_per_frame": _cap,
        "max_video_tokens": lambda vision, given: {},
        "use_token_compression": lambda vision, given: {
            "drop_below": (vision.drop_below or DROP_BELOW) if given["use_token_compression"] else None
        },
    },
}
