"""What a family's official processor gives for a video, and the files that hold its settings."""

from dataclasses import dataclass
from typing import Literal, get_args

Extra = Literal[
    "video_grid_thw", "second_per_grid_ts", "video_merge_sizes", "video_compression_mask", "pixel_attention_mask"
]
NAMES: tuple[str, ...] = get_args(Extra)
# Today's transformers writes all into the first, by the names `video_processor` and `image_processor`.
PROCESSOR_FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The tensors of an official processor, by its own names.

    Attributes:
        pixels: What it calls the pixels.
        form: `rows` of patches (`hookedvid.values.patch_rows`), `frames` [frame, 3, height, width], or these as one
            `video` of a batch, [1, frame, 3, height, width].
        extras: What it gives besides; `second_per_grid_ts` only where the frame rate is known.
        inert: Fields of its config that change nothing, besides those that no processor heeds.
    """

    pixels: str = "pixel_values_videos"
    form: Literal["rows", "frames", "video"] = "rows"
    extras: tuple[Extra, ...] = ()
    inert: tuple[str, ...] = ()
