"""Frames as a family's official processor hands them on: its tensors, under its names, bit for bit."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.values.config import VisionConfig
from hookedvid.values.patch_rows import kept, patch_grid, to_rows
from hookedvid.values.processor import Processor
from hookedvid.values.serial import is_number
from hookedvid.video.processor_settings import configured
from hookedvid.video.transforms import preprocess

Frames = UInt8[np.ndarray, "frame height width 3"] | UInt8[Tensor, "frame height width 3"]


class Made(NamedTuple):
    """What a processor's tensors are made of: preprocessed frames, their tower, and how many were taken a second."""

    pixels: Float[Tensor, "frame 3 height width"]
    vision: VisionConfig
    fps: float | int | None


def process(
    frames: Frames,
    vision: VisionConfig | None,
    processor: Processor | None,
    fps: float | int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Tensor]:
    """The tensors of one video, as the official processor gives them.

    Args:
        frames: As they were sampled, RGB.
        vision: The tower that takes them; None of a model without one.
        processor: What its tensors are called; None where no official processor is stated.
        fps: Frames taken per second, for `second_per_grid_ts`.
        settings: Fields of the processor's config, in place of the tower's own.

    Raises:
        InputError: For what are no frames, for settings that the processor does not have or take, and without one.
    """
    if vision is None or processor is None:
        raise InputError("this model states no official processor; `prepare` takes a video to its own inputs")
    pictures = _checked(frames)
    if fps is not None and not (is_number(fps) and 0 < fps < math.inf):
        raise InputError(f"fps is {fps!r}; give how many of the frames were taken per second, or None")
    vision = configured(vision, settings or {}, processor)
    return tensors(preprocess(pictures, vision), vision, processor, fps)


def tensors(
    pixels: Float[Tensor, "frame 3 height width"],
    vision: VisionConfig,
    processor: Processor,
    fps: float | int | None = None,
) -> dict[str, Tensor]:
    """The tensors of one video's preprocessed frames; arguments as `process`."""
    made = Made(pixels, vision, fps)
    extras = {name: EXTRAS[name](made) for name in processor.extras}
    return {processor.pixels: FORMS[processor.form](made)} | {n: x for n, x in extras.items() if x is not None}


def _checked(frames: Any) -> UInt8[np.ndarray, "frame height width 3"]:
    try:
        array = frames.cpu().numpy() if isinstance(frames, Tensor) else np.asarray(frames)
    except (TypeError, ValueError, RuntimeError) as e:
        raise InputError(f"frames are no array of bytes ({e}); give uint8 RGB [frame, height, width, 3]") from e
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise InputError(f"frames are {array.dtype} {list(array.shape)}; give uint8 RGB [frame, height, width, 3]")
    return array


def _seconds(made: Made) -> Tensor | None:
    return None if made.fps is None else torch.tensor([made.vision.patch_frames / made.fps])


def _grid(made: Made) -> Tensor:
    n_frames, _, height, width = made.pixels.shape
    return torch.tensor([patch_grid(n_frames, height, width, made.vision)])


FORMS: dict[str, Callable[[Made], Tensor]] = {
    "rows": lambda made: to_rows(made.pixels, made.vision).rows,
    "frames": lambda made: made.pixels,
    "video": lambda made: made.pixels[None],
}
EXTRAS: dict[str, Callable[[Made], Tensor | None]] = {
    "video_grid_thw": _grid,
    "second_per_grid_ts": _seconds,
    "video_merge_sizes": lambda made: torch.tensor([made.vision.multiple // made.vision.patch_size]),
    "video_compression_mask": lambda made: kept(made.pixels, made.vision),
    "pixel_attention_mask": lambda made: torch.ones_like(made.pixels[None, :, 0], dtype=torch.int64),
}
