"""Where a video's tokens are in their frames: rows and columns of each step, what is dropped, how positions count."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.fitting import Spans, pixel_spans


@dataclass(frozen=True)
class VideoShape:
    """What preprocessing made of a video.

    Attributes:
        n_frames: Sampled frames.
        height, width: Of each, in the tower's pixels.
        dropped: Cells that are no tokens, numbered through all steps in raster order, ascending.
        seconds: From one step to the next; None where nobody asks.
        source: Height and width of the frames as they were decoded; None where nobody knows.
        times: Seconds of the original video at which each frame was sampled; empty where nobody knows.
    """

    n_frames: int
    height: int
    width: int
    dropped: tuple[int, ...] = ()
    seconds: float | None = None
    source: tuple[int, int] | None = None
    times: tuple[float, ...] = ()


@dataclass(frozen=True)
class Grid:
    """Cells of each step's tokens, in raster order.

    Attributes:
        rows, columns: Of a step.
        dropped: Cells that are no tokens, numbered through all steps, ascending.
        n_axes: Numbers that a position has.
        rate: By how much a step moves on the time axis.
        text_after: Where text goes on behind video, see `RopeConfig`.
        heights, widths: Of each row and each column, the pixels [from, to) of the frames as they were decoded that its
            tokens are made of; empty where nothing says so.
        times: Seconds of the original video at which each frame was sampled; empty where nobody knows.
    """

    rows: int
    columns: int
    dropped: tuple[int, ...] = ()
    n_axes: int = 1
    rate: float = 1.0
    text_after: Literal["largest", "sides"] = "largest"
    heights: Spans = ()
    widths: Spans = ()
    times: tuple[float, ...] = ()

    @classmethod
    def of(cls, cfg: VideoLLMConfig, shape: VideoShape) -> "Grid":
        """The cells that a model makes of a video of some shape."""
        assert cfg.projector is not None and cfg.vision is not None
        patch = cfg.vision.patch_size
        rows, columns = cfg.projector.cells(shape.height // patch, shape.width // patch)
        heights, widths = ((), ()) if shape.source is None else pixel_spans(cfg, shape.n_frames, *shape.source)
        plain = cls(rows, columns, shape.dropped, heights=heights, widths=widths, times=shape.times)
        if cfg.decoder is None:
            return plain
        rope = cfg.decoder.rope
        rate = 1.0 if rope.per_second is None or shape.seconds is None else shape.seconds * rope.per_second
        return replace(plain, n_axes=rope.n_axes, rate=rate, text_after=rope.text_after)

    def kept(self, step: int) -> Int[Tensor, " cell"]:
        """The cells of a step that are tokens, 0-based in raster order."""
        n = self.rows * self.columns
        gone = {c - step * n for c in self._dropped(step)}
        return torch.tensor([c for c in range(n) if c not in gone], dtype=torch.long)

    def n_kept(self, step: int) -> int:
        """How many cells of a step are tokens."""
        return self.rows * self.columns - len(self._dropped(step))

    def _dropped(self, step: int) -> tuple[int, ...]:
        n = self.rows * self.columns
        return self.dropped[slice(*(bisect_left(self.dropped, i * n) for i in (step, step + 1)))]

    def places(self, since: int, step: int) -> Int[Tensor, "3 cell"]:
        """Time, row and column of a step's tokens, counted from where their run of video begins.

        Args:
            since: Steps since then.
            step: Its number.
        """
        cells = self.kept(step)
        time = torch.full_like(cells, int(since * self.rate))
        return torch.stack([time, cells // self.columns, cells % self.columns])
