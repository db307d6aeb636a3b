"""From uint8 frames to a vision tower's pixels: resized, scaled and normalised as its authors trained it.

Bit for bit what the processors of Transformers give: those on Pillow (`CLIPImageProcessorPil`,
`SiglipImageProcessorPil`) where `resample` is Pillow's, those on torchvision elsewhere. The two resize differently, by
1 or 2 levels of 255 on pictures and up to 40 on noise, and round otherwise.
"""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.values.config import VisionConfig
from hookedvid.values.frame_size import sizes_in_turn

Frames = UInt8[np.ndarray, "frame _height _width 3"]


def preprocess(frames: Frames, vision: VisionConfig) -> Float[Tensor, "frame 3 height width"]:
    """RGB frames as float32 pixels of the size that the tower takes, (x * scale - mean) / std for each channel.

    `resize="squash"` resizes both sides to `image_size`; `crop` resizes the short side, the long side in proportion
    (rounded down), and keeps the centre; `squash_twice` makes the long side fit before it squashes; `fit` keeps the
    shape, within the budget (`hookedvid.values.frame_size`).

    Raises:
        InputError: For frames that are too long or wide, and where this torch lacks the filter.
    """
    for size in sizes_in_turn(vision, *frames.shape[:3]):
        frames = _resized(frames, size, vision.resample)
    if vision.resize == "crop":
        top, left = ((side - vision.image_size) // 2 for side in frames.shape[1:3])
        frames = frames[:, top : top + vision.image_size, left : left + vision.image_size]
    n_frames, height, width, _ = frames.shape
    pixels = np.empty((n_frames, 3, height, width), np.float32)
    levels = _levels(vision)
    for out, frame in zip(pixels, frames, strict=True):
        for channel in range(3):
            out[channel] = levels[frame[..., channel], channel]
    return torch.from_numpy(pixels)


def _levels(vision: VisionConfig) -> Float[np.ndarray, "256 3"]:
    """The normalised value of each byte in each channel: a table, since bytes have only 256 values."""
    mean, std = np.array(vision.mean, np.float32), np.array(vision.std, np.float32)
    if vision.resample.startswith("pil_"):
        # Scaled in float64 and normalised in float32, the order that Transformers rounds in.
        return ((np.arange(256) * vision.scale).astype(np.float32)[:, None] - mean) / std
    whole = np.float32(1 / vision.scale)  # mean and std are scaled in place of the bytes, again as Transformers does
    return (np.arange(256, dtype=np.float32)[:, None] - mean * whole) / (std * whole)


def _resized(frames: Frames, size: tuple[int, int], resample: str) -> Frames:
    if resample.startswith("pil_"):
        return _by_pillow(frames, size, resample.removeprefix("pil_"))
    return _by_torch(frames, size, resample)


def _by_pillow(frames: Frames, size: tuple[int, int], name: str) -> Frames:
    from PIL import Image

    method = Image.Resampling[name.upper()]
    return np.stack([np.asarray(Image.fromarray(f).resize((size[1], size[0]), method)) for f in frames])


def _by_torch(frames: Frames, size: tuple[int, int], name: str) -> Frames:
    if frames.shape[1:3] == size:
        return frames
    # Raveled too, since torch refuses the negative stride of a single frame that was reversed, which is contiguous.
    whole = np.require(frames, requirements=["C", "W"]).ravel().reshape(frames.shape)
    pictures = torch.from_numpy(whole).permute(0, 3, 1, 2)
    try:
        resized = torch.nn.functional.interpolate(pictures, size, mode=name, antialias=True)
    except (NotImplementedError, ValueError) as e:
        raise InputError(
            f"torch {torch.__version__} cannot resize by {name!r}, which Lanczos needs 2.12 for; take a newer one, or "
            f"Pillow's filter: load the model with overrides={{'vision.resample': 'pil_{name}'}}"
        ) from e
    return resized.permute(0, 2, 3, 1).numpy()
