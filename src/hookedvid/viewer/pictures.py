"""Frames as small pictures: WebP, as large as their part of a page's bytes allows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from hookedvid.errors import InputError
from hookedvid.nn.model import Model
from hookedvid.values.inputs import VideoInputs
from hookedvid.video.pictures import webp

# Longest side in pixels and WebP's quality, the first that fits.
SIZES = ((640, 80), (448, 75), (320, 70), (224, 60), (160, 50), (96, 40))


@dataclass(frozen=True)
class Pictures:
    """Frames of one video.

    Attributes:
        files: WebP, one a frame.
        height, width: Of the frames before they were made smaller: the pixels that boxes are counted in.
        decoded: Whether they are the video's; else they are what the tower reads, cropped and resized.
    """

    files: tuple[bytes, ...]
    height: int
    width: int
    decoded: bool


def pictures(model: Model, inputs: VideoInputs, budget: float | int) -> Pictures:
    """The frames of a single item, in so many bytes.

    Raises:
        InputError: Where even small ones are larger.
    """
    decoded = bool(inputs.footage) and inputs.footage[0] is not None
    frames = inputs.frames if decoded else _of_tensors(model, inputs)
    for side, quality in SIZES:
        files = tuple(webp(frame, side, quality) for frame in frames)
        if sum(map(len, files)) <= budget:
            return Pictures(files, frames.shape[1], frames.shape[2], decoded)
    raise InputError(
        f"{len(frames)} frames take more than {budget / 1e6:.1f} MB even as small pictures: give a larger budget, or "
        "fewer frames"
    )


def _of_tensors(model: Model, inputs: VideoInputs) -> UInt8[np.ndarray, "frame height width 3"]:
    """What the tower reads, as bytes."""
    cfg, pixels = model.cfg.vision, inputs.pixel_values[0]
    assert cfg is not None and pixels is not None
    shown = pixels.float().cpu().numpy().transpose(0, 2, 3, 1) * np.array(cfg.std) + np.array(cfg.mean)
    return (shown / cfg.scale).round().clip(0, 255).astype(np.uint8)
