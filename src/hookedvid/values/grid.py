"""Where a video's tokens are in their frames: rows and columns of each step, what is dropped, how positions count."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
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
        shifted: Patches along a cell's side where tokens are made of their neighbours' patches, since class tokens are
            cut as LLaVA-OneVision-1.5's published code does (`hookedvid.values.places`); else 0.
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
    shifted: int = 0

    @classmethod
    def of(cls, cfg: VideoLLMConfig, shape: VideoShape) -> "Grid":
        """The cells that a model makes of a video of some shape."""
        assert cfg.projector is not None and cfg.vision is not None
        patch = cfg.vision.patch_size
        rows, columns = cfg.projector.cells(shape.height // patch, shape.width // patch)
        heights, widths = ((), ()) if shape.source is None else pixel_spans(cfg, shape.n_frames, *shape.source)
        shifted = cfg.vision.multiple // patch if cfg.vision.cls_cut == "released" else 0
        plain = cls(rows, columns, shape.dropped, heights=heights, widths=widths, times=shape.times, shifted=shifted)
        if cfg.decoder is None:
            return plain
        rope = cfg.decoder.rope
        rate = 1.0
        if rope.per_second is not None and shape.seconds is not None:
            rate = float(torch.tensor(shape.seconds, dtype=torch.float32) * rope.per_second)
        return replace(plain, n_axes=rope.n_axes, rate=rate, text_after=rope.text_after)

    @property
    def seen(self) -> Float[Tensor, " 4"]:
        """x0, y0, x1, y1 of all pixels of the frames as they were decoded that are in some cell."""
        sides = (self.widths[0][0], self.heights[0][0], self.widths[-1][1], self.heights[-1][1])
        return torch.tensor(sides, dtype=torch.float64)

    def boxes(self, numbers: Int[Tensor, " cell"], parts: int = 1) -> Float[Tensor, "cell 4"]:
        """x0, y0, x1, y1 of some cells, in pixels of the frames as they were decoded.

        Args:
            numbers: Of the cells, in raster order.
            parts: Into how many each cell is divided on each side: their numbers are then those of these parts.
        """
        y, x = (_divided(spans, parts) for spans in (self.heights, self.widths))
        y, x = y[numbers // len(x)], x[numbers % len(x)]
        return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)

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
        # Rounded to float32 before it is cut, as the authors' code does: step 3 of 3.3333333 s each is at 10, not at 9.
        passed = torch.tensor(self.rate, dtype=torch.float32) * since
        time = torch.full_like(cells, int(passed))
        return torch.stack([time, cells // self.columns, cells % self.columns])


def _divided(spans: Spans, parts: int) -> Float[Tensor, "part 2"]:
    start, stop = torch.tensor(spans, dtype=torch.float64).T
    bounds = [start + (stop - start) * i / parts for i in range(parts)] + [stop]
    return torch.stack([torch.stack(bounds[:-1], 1), torch.stack(bounds[1:], 1)], -1).flatten(0, 1)
