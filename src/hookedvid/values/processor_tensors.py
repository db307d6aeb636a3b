"""What an official processor gives for a video, as the pixels that our models read."""

from collections.abc import Collection, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.values.config import VideoLLMConfig, VisionConfig
from hookedvid.values.grid import VideoShape
from hookedvid.values.inputs import PatchRows, Pixels, Tokens, ids_of
from hookedvid.values.patch_rows import to_frames
from hookedvid.values.tensors import ints

# What processors say of ids, and once more of both.
OF_IDS = ("attention_mask", "mm_token_type_ids", "video_metadata")


def unprocessed(
    cfg: VideoLLMConfig,
    tokens: Tokens,
    pixel_values: Pixels | PatchRows,
    processed: Mapping[str, Any],
    names: Collection[str],
) -> tuple[Tokens, Pixels, list[VideoShape | None] | None]:
    """Ids, pixels [frame, 3, height, width] of each video and their shapes, for `from_tokens`.

    Shapes are None where pixels tell them.

    Args:
        cfg: The model's.
        tokens: Ids.
        pixel_values: Frames, or the rows of patches that Qwen's processors make.
        processed: What else the processor gives, by its names; None stands for absent.
        names: What of a video, besides pixels, this model's processor gives.

    Raises:
        InputError: For other names, and for what does not fit the ids, the pixels or the model.
    """
    told = {name: value for name, value in processed.items() if value is not None}
    if unknown := sorted(told.keys() - {*names, *OF_IDS}):
        raise InputError(
            f"inputs_from_tensors knows nothing of {unknown} for this model; besides ids and pixels it takes "
            f"{(*names, *OF_IDS)}"
        )
    if "attention_mask" in told:
        tokens = _unpadded(tokens, told["attention_mask"])
    given = {name: _tensor(name, value) for name, value in told.items() if name not in OF_IDS}
    return tokens, *_videos(cfg, pixel_values, given, names)


def _unpadded(tokens: Tokens, attention_mask: Any) -> list[list[int]]:
    """The ids of every item without those that fill up a batch, where `attention_mask` is 0.

    Raises:
        InputError: For a mask that is not of these ids, or hides others than the first or the last.
    """
    items = ids_of(tokens)
    mask = _tensor("attention_mask", attention_mask)
    rows: list[list[int]] = cast(Any, mask if mask.ndim == 2 else mask[None]).tolist()
    if [len(row) for row in rows] != [len(ids) for ids in items] or not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(f"attention_mask is {mask.dtype} {tuple(mask.shape)}; give 0 or 1 for each of the ids")
    kept: list[list[int]] = []
    for ids, row in zip(items, rows, strict=True):
        stays = [i for i, m in enumerate(row) if m]
        if not stays or stays[-1] - stays[0] + 1 != len(stays):
            raise InputError("attention_mask hides ids between others, or all; only those that fill up a batch may go")
        kept.append(ids[stays[0] : stays[-1] + 1])
    return kept


def _videos(
    cfg: VideoLLMConfig, pixel_values: Pixels | PatchRows, given: Mapping[str, Tensor], names: Collection[str]
) -> tuple[Pixels, list[VideoShape | None] | None]:
    if pixel_values is None and given:
        raise InputError(f"{sorted(given)} tell of a video, and there are no pixel_values")
    if isinstance(pixel_values, np.ndarray):
        raise InputError("pixel_values are an array of NumPy; give a tensor (a processor's return_tensors='pt')")
    rows = isinstance(pixel_values, Tensor) and pixel_values.ndim == 2 and "video_grid_thw" in names
    if pixel_values is None or cfg.vision is None or not (given or rows):
        return pixel_values, None
    if isinstance(pixel_values, Tensor) and rows:
        videos = _from_rows(cfg.vision, pixel_values, given)
    elif "video_grid_thw" in given:
        raise InputError("video_grid_thw goes with rows of patches [patch, values], and these pixels are frames")
    else:
        one = isinstance(pixel_values, Tensor) and pixel_values.ndim != 5
        videos: list[Tensor | None] = [cast(Tensor, pixel_values)] if one else list(pixel_values)
    if "pixel_attention_mask" in given:
        mask = given["pixel_attention_mask"]
        if mask.ndim != 4 or len(mask) != len(videos):
            raise InputError(
                f"pixel_attention_mask is {tuple(mask.shape)} for {len(videos)} video(s); give "
                "[video, frame, height, width]"
            )
        videos = [_without_padding(v, m) for v, m in zip(videos, mask, strict=True)]
    return cast(Pixels, videos), _shapes(cfg, videos, given)


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as e:
        raise InputError(f"{name} is {value!r:.80}, of which no tensor can be made; give what a processor gives") from e


def _whole(name: str, given: Mapping[str, Tensor], what: str, each: int = 1) -> list[int]:
    """A tensor's numbers. Raises InputError unless they are whole, and `each` for every video."""
    tensor = given[name]
    if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.numel() % each or not tensor.numel():
        raise InputError(f"{name} is {cast(Any, tensor).tolist()!r:.80}; give whole numbers {what} for each video")
    return ints(tensor.flatten())


def _from_rows(vision: VisionConfig, rows: Tensor, given: Mapping[str, Tensor]) -> list[Tensor | None]:
    if "video_grid_thw" not in given:
        raise InputError(f"pixel_values are rows {tuple(rows.shape)}: pass their video_grid_thw too")
    numbers = iter(_whole("video_grid_thw", given, "of groups of frames, rows and columns of patches", each=3))
    grids = list(zip(numbers, numbers, numbers, strict=True))
    sizes = [t * h * w for t, h, w in grids]
    if sum(sizes) != len(rows):
        raise InputError(
            f"pixel_values are {len(rows)} rows, and the grids {grids} of video_grid_thw hold {sum(sizes)}"
        )
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [to_frames(rows[i : i + n], grid, vision) for i, n, grid in zip(starts, sizes, grids, strict=True)]


def _without_padding(frames: Tensor | None, mask: Tensor) -> Tensor | None:
    """Frames that hold anything: those of zeros alone pad a batch. A pixel mask inside a frame is refused."""
    if frames is None:
        return None
    if mask.shape != frames[:, 0].shape:
        raise InputError(
            f"pixel_attention_mask has {tuple(mask.shape)} for a video of frames {tuple(frames.shape)}; give "
            "[frame, height, width] of each"
        )
    stays = (frames != 0).flatten(1).any(1)
    if not bool(mask.to(stays.device)[stays].all()):
        raise InputError("pixel_attention_mask hides parts of frames, and videos have whole frames alone here")
    return frames[stays]


def _shapes(cfg: VideoLLMConfig, videos: list[Tensor | None], given: Mapping[str, Tensor]) -> list[VideoShape | None]:
    n = len(videos)
    assert cfg.vision is not None and cfg.projector is not None
    if "video_merge_sizes" in given:
        sizes = _whole("video_merge_sizes", given, "of patches on a token's side")
        if set(sizes) != {cfg.projector.pool_stride}:
            raise InputError(f"video_merge_sizes must be {cfg.projector.pool_stride} for the videos of this model")
    each = _seconds(given.get("second_per_grid_ts"), n)
    shapes: list[VideoShape | None] = []
    first, mask = 0, given.get("video_compression_mask")
    if mask is not None and not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError("video_compression_mask holds other numbers than 0 and 1; give which tokens stay")
    for video, second in zip(videos, each, strict=True):
        if video is None or video.ndim != 4 or (mask is None and second is None):
            shapes.append(None)
            continue
        shape = VideoShape(len(video), video.shape[2], video.shape[3], (), second)
        if mask is not None:
            rows, columns = cfg.projector.cells(*(side // cfg.vision.patch_size for side in video.shape[2:]))
            cells = -(-len(video) // cfg.vision.patch_frames) * rows * columns
            own, first = mask.reshape(-1)[first : first + cells], first + cells
            if len(own) != cells:
                raise InputError(f"video_compression_mask has {mask.numel()} entries, and a video has {cells} cells")
            if not bool(own.any()):
                raise InputError("video_compression_mask keeps no token of a video; leave the video out")
            gone = tuple(ints((~own.bool()).nonzero().flatten()))
            shape = VideoShape(shape.n_frames, shape.height, shape.width, gone, second)
        shapes.append(shape)
    if mask is not None and first != mask.numel():
        raise InputError(f"video_compression_mask has {mask.numel()} entries, and the videos have {first} cells")
    return shapes


def _seconds(given: Tensor | None, n: int) -> list[float] | list[None]:
    """Seconds between the steps of each of `n` videos, of which one number may be for all."""
    if given is None:
        return [None] * n
    seconds = given.double().flatten()
    if len(seconds) not in (1, n) or not bool((seconds.isfinite() & (seconds > 0)).all()):
        raise InputError(
            f"second_per_grid_ts is {cast(Any, given).tolist()!r:.80} for {n} video(s); give seconds above 0, a number "
            "for each"
        )
    return [float(s) for s in seconds.expand(n)]
