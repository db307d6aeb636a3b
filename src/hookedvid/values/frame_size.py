"""The size that a tower takes frames in."""

from hookedvid.values.config import VisionConfig

LARGEST = 4096  # the longest side that SmolVLM's preprocessing makes


def frame_size(vision: VisionConfig, n_frames: int, height: int, width: int) -> tuple[int, int]:
    """Height and width in pixels of preprocessed frames.

    Args:
        vision: The tower.
        n_frames: Of the video: budgets may be for all of them.
        height: Of the frames as they come, in pixels.
        width: Of the frames as they come, in pixels.

    Raises:
        InputError: For frames more than 200 times as long as wide, where they keep their shape.
    """
    if vision.budget is None:
        return vision.image_size, vision.image_size
    return vision.budget.frame_size(n_frames, height, width, vision.multiple, vision.patch_frames)


def sizes_in_turn(vision: VisionConfig, n_frames: int, height: int, width: int) -> list[tuple[int, int]]:
    """The heights and widths that frames are resized to one after the other, before their centre is cut out.

    Raises:
        InputError: As `frame_size` does.
    """
    first = vision.first_size or vision.image_size
    if vision.resize == "crop":
        short = min(height, width)
        return [(int(first * height / short), int(first * width / short))]
    last = frame_size(vision, n_frames, height, width)
    return [_within(first, height, width), last] if vision.resize == "squash_twice" else [last]


def _within(longest: int, height: int, width: int) -> tuple[int, int]:
    """The longer side as asked, the other in proportion and even: transformers' rule for SmolVLM."""
    longest = min(longest, LARGEST)
    ratio = width / height  # divided by, or multiplied with, after rounding: as upstream
    other = int(longest / ratio) if width >= height else int(longest * ratio)
    other = max(other + other % 2, 1)
    return (other, longest) if width >= height else (longest, other)
