"""From uint8 frames to a vision tower's pixels: resized, scaled and normalised as its authors trained it.

Bit for bit what the PIL processors of Transformers give (`CLIPImageProcessorPil`, `SiglipImageProcessorPil`).
The torchvision ones resize a little differently, by whole levels of 255.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hookedvid.values.config import VisionConfig

if TYPE_CHECKING:
    from PIL import Image


def preprocess(
    frames: UInt8[np.ndarray, "frame height width 3"], vision: VisionConfig
) -> Float[Tensor, "frame 3 size size"]:
    """RGB frames as float32 pixels of `vision.image_size` squared, (x / 255 - mean) / std for each channel.

    `resize="squash"` resizes both sides to `image_size`; `resize="crop"` resizes the short side to it, the
    long side in proportion (rounded down), and keeps the centre. Bicubic, on bytes.
    """
    from PIL import Image

    pixels = np.empty((len(frames), 3, vision.image_size, vision.image_size), np.float32)
    levels = _levels(vision)
    for out, frame in zip(pixels, frames, strict=True):
        square = np.asarray(_squared(Image.fromarray(frame), vision))  # [size, size, 3]
        for channel in range(3):
            out[channel] = levels[square[..., channel], channel]
    return torch.from_numpy(pixels)


def _levels(vision: VisionConfig) -> Float[np.ndarray, "256 3"]:
    """The normalised value of each byte in each channel: a table, since bytes have only 256 values."""
    # Scaled in float64 and normalised in float32, the order that Transformers rounds in.
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    return (scaled[:, None] - np.array(vision.mean, np.float32)) / np.array(vision.std, np.float32)


def _squared(image: "Image.Image", vision: VisionConfig) -> "Image.Image":
    from PIL import Image

    size = vision.image_size
    if vision.resize == "squash":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))
