"""How large frames may be that keep their shape, and the size that this leaves a frame."""

import math
from dataclasses import dataclass
from typing import Literal

from hookedvid.errors import ConfigError, InputError

NARROWEST = 200  # longer side to shorter, of the frames that Qwen's code takes
FLOOR = 1.05  # times `least`: what a cap leaves a frame at least (qwen-vl-utils)


@dataclass(frozen=True, kw_only=True)
class PixelBudget:
    """How many pixels frames may have.

    Attributes:
        least: Pixels of a frame; of all frames together where `per` is `clip`.
        most: Pixels of a frame; of all together where `per` is `clip`; where it is `share`, of all together, and a
            frame has its share of them.
        per: What is counted: Qwen2-VL's and Qwen2.5-VL's `frame`, Qwen3-VL's `clip`, VideoLLaMA3's `share`.
        cap: The bound that `most` is not, pixels of all frames where `per` is `frame`, of a frame where it is `clip`. A
            frame then has the smaller of the two, but no less than 1.05 x `least`, as qwen-vl-utils has it. None: no
            such.
    """

    least: int
    most: int
    per: Literal["frame", "clip", "share"] = "frame"
    cap: int | None = None

    def __post_init__(self):
        if not 0 < self.least <= self.most:
            raise ConfigError(f"a budget of {self.least} to {self.most} pixels holds nothing")
        if self.cap is not None and (self.cap < 1 or self.per == "share"):
            raise ConfigError(f"cap {self.cap} of a budget per {self.per}: give pixels, and none where frames share")

    def frame_size(self, n_frames: int, height: int, width: int, unit: int, group: int) -> tuple[int, int]:
        """Height and width of frames brought within the budget, their shape kept as far as whole units allow.

        Both sides are rounded to units, half to even. If this is beyond the budget, they are scaled to it and rounded
        down, or up where it was too little.

        Args:
            n_frames: Of the video; where a clip is counted, fewer than `group` are one group, which the last one fills.
            height: In pixels.
            width: In pixels.
            unit: Pixels that both sides are a multiple of.
            group: Frames that are one patch.

        Raises:
            InputError: For frames more than 200 times as long as wide.
        """
        if self.per == "clip":
            n_frames = max(n_frames, group)
        if self.per == "clip" and min(height, width) < unit:
            scale = max(unit / height, unit / width)
            height, width = int(height * scale), int(width * scale)
        if max(height, width) > NARROWEST * min(height, width):
            raise InputError(
                f"a frame of {height} x {width} pixels is more than {NARROWEST} times as long as wide, which this "
                "tower's preprocessing does not take; cut the frames"
            )
        # Frames that are counted, and as how many: Qwen rounds these to groups, though not the area that it scales.
        counted, whole = (n_frames, round(n_frames / group) * group) if self.per == "clip" else (1, 1)
        most = self._most(n_frames)
        area = counted * height * width
        rows, columns = round(height / unit), round(width / unit)
        pixels = whole * rows * columns * unit**2
        if pixels > most:
            shrink = math.sqrt(area / most)
            rows, columns = (max(1, math.floor(side / shrink / unit)) for side in (height, width))
        elif pixels < self.least:
            grow = math.sqrt(self.least / area)
            rows, columns = (math.ceil(side * grow / unit) for side in (height, width))
        return rows * unit, columns * unit

    def _most(self, n_frames: int) -> int:
        """The most pixels of what is counted."""
        if self.per == "share":
            return max(1, self.most // n_frames)
        if self.cap is None:
            return self.most
        floor = int(self.least * FLOOR)
        if self.per == "clip":
            return n_frames * max(min(self.cap, self.most // n_frames), floor)
        return max(min(self.most, self.cap // n_frames), floor)
