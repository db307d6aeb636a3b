"""Counterfactual clips as values: what becomes of a video's decoded frames before a model sees them.

A condition holds them with interventions, `model.answer(inputs, [Reversed(), LV_K])`; they are applied in order, before
anything runs. Frames are counted among the sampled ones (0-based, negative from the end). The pictures change alone:
texts, times and positions in the prompt stay as they were, but for tokens that there are only by the pictures' doing
(VideoLLaMA3 drops what repeats, and another video may have another shape).
"""

# What users give is looked at, whatever its type says.
# pyright: reportUnnecessaryIsInstance=false
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
from jaxtyping import UInt8

from hookedvid.errors import InterventionError
from hookedvid.values.effects import Effects, FrameChange, Intervention
from hookedvid.values.layer_range import as_number, set_fields, spelled
from hookedvid.values.serial import is_number
from hookedvid.values.spelling import Spelling, number, numbers

Frames = UInt8[np.ndarray, "frame _height _width 3"]
Read = Callable[[str], Frames]  # another video's frames, as many, sampled in the same way
REACH = 4.0  # standard deviations at which a Gaussian is cut off: 1 in 16,000 of it lies beyond


def _box_said(text: str) -> tuple[float, ...]:
    return tuple(float(x) for x in text.split(","))


class ClipChange(Intervention, FrameChange):
    """Another clip in place of a video's own, frame by frame."""

    def effect(self, n_layers: int) -> Effects:
        """Nothing inside the model: it is shown another clip."""
        return Effects(((),) * n_layers, clips=(self,))


class Order(ClipChange):
    """The sampled frames at other places; its fields are numbers of frames, unless it says otherwise."""

    def __post_init__(self):
        set_fields(self, **{name: as_number(value, "a frame's number") for name, value in vars(self).items()})

    def order(self, n_frames: int) -> tuple[int, ...]:
        """Which frame each place shows."""
        raise NotImplementedError

    def change(self, frames: Frames, read: Read) -> Frames:
        """The frames in that order."""
        return frames[list(self.order(len(frames)))]


@spelled
@dataclass(frozen=True)
class Reversed(Order):
    """The frames from last to first."""

    kind: ClassVar[str] = "reversed"
    spelling = Spelling("reversed", "reversed")

    def order(self, n_frames: int) -> tuple[int, ...]:
        """From last to first."""
        return tuple(reversed(range(n_frames)))

    def label(self) -> str:
        """For tables and plots."""
        return "reversed"


@spelled
@dataclass(frozen=True)
class Shuffled(Order):
    """The frames in an order drawn by NumPy's default generator: the same for the same seed and number of frames.

    `of` makes it another one for each text, such as a video's path. A permutation may leave frames where they were.
    """

    kind: ClassVar[str] = "shuffled"
    spelling = Spelling("shuffled", "shuffled seed 3", {"seed": ("seed", number), "of": ("of", str)})
    seed: int = 0
    of: str = ""

    def __post_init__(self):
        set_fields(self, seed=as_number(self.seed, "a seed"))
        if self.seed < 0 or not isinstance(self.of, str):
            raise InterventionError(f"Shuffled({self.seed}, {self.of!r}): give a seed from 0 up, and a text")

    def order(self, n_frames: int) -> tuple[int, ...]:
        """The permutation: its i-th number is the frame that place i shows."""
        rng = np.random.default_rng([self.seed, *self.of.encode(errors="surrogatepass")])
        return tuple(int(i) for i in rng.permutation(n_frames))

    def label(self) -> str:
        """For tables and plots."""
        return f"shuffled by seed {self.seed}" + (f" of {self.of}" if self.of else "")


@spelled
@dataclass(frozen=True)
class Frozen(Order):
    """One frame in all places."""

    kind: ClassVar[str] = "frozen"
    spelling = Spelling("frozen", "frozen frame 2", {"frame": ("frame", number)})
    frame: int = 0

    def order(self, n_frames: int) -> tuple[int, ...]:
        """That frame, everywhere."""
        return _numbers(self, (self.frame,), n_frames) * n_frames

    def label(self) -> str:
        """For tables and plots."""
        return f"frozen at frame {self.frame}"


@spelled
@dataclass(frozen=True)
class Swapped(Order):
    """Frames `i` and `j` at each other's place."""

    kind: ClassVar[str] = "swapped"
    spelling = Spelling("swapped", "swapped 1 with 3", {"with": ("j", number)}, ("i", number))
    i: int
    j: int

    def order(self, n_frames: int) -> tuple[int, ...]:
        """Each frame at its place but for these two."""
        i, j = _numbers(self, (self.i, self.j), n_frames)
        return tuple({i: j, j: i}.get(f, f) for f in range(n_frames))

    def label(self) -> str:
        """For tables and plots."""
        return f"frames {self.i} and {self.j} swapped"


@spelled
@dataclass(frozen=True)
class Black(ClipChange):
    """Frames without a picture: all bytes 0. `frames` are numbers, a range, or None for all."""

    kind: ClassVar[str] = "black"
    spelling = Spelling("black", "black frames 0,2", {"frames": ("frames", numbers)})
    frames: tuple[int, ...] | None = None

    def __post_init__(self):
        set_fields(self, frames=_as_frames(self.frames))

    def change(self, frames: Frames, read: Read) -> Frames:
        """The clip with these frames black."""
        shown = frames.copy()
        shown[list(_numbers(self, self.frames, len(frames)))] = 0
        return shown

    def label(self) -> str:
        """For tables and plots."""
        return f"black{_said(self.frames)}"


@spelled
@dataclass(frozen=True)
class Blurred(ClipChange):
    """Frames, or a box of them, blurred by a Gaussian.

    `sigma` is its standard deviation in pixels of the video as decoded; it is cut off at 4 of them, and what lies
    beyond a frame's edge is as the edge. `box` is (x0, y0, x1, y1) in the same pixels: every pixel that it touches
    becomes the mean around it, which reads pixels outside the box too; None is the whole frame. `frames` as of Black.
    """

    kind: ClassVar[str] = "blurred"
    spelling = Spelling(
        "blurred",
        "blurred frames 2:5 in 40,20,90,60 sigma 4",
        {"frames": ("frames", numbers), "in": ("box", _box_said), "sigma": ("sigma", number)},
    )
    frames: tuple[int, ...] | None = None
    box: tuple[float, ...] | None = None
    sigma: float = 8.0

    def __post_init__(self):
        set_fields(self, frames=_as_frames(self.frames), box=_as_box(self.box))
        if not (is_number(self.sigma) and 0 < self.sigma < math.inf):
            raise InterventionError(f"Blurred: sigma is {self.sigma!r}; give a standard deviation in pixels, above 0")
        set_fields(self, sigma=float(self.sigma))

    def change(self, frames: Frames, read: Read) -> Frames:
        """The clip with these pixels blurred, rounded to whole numbers."""
        _, height, width, _ = frames.shape
        x0, y0, x1, y1 = (0, 0, width, height) if self.box is None else self.box
        ends = ((y0, y1), (x0, x1))
        rows, columns = (slice(max(0, math.floor(a)), max(0, math.ceil(b))) for a, b in ends)
        shown = frames.copy()
        if not shown[:, rows, columns].size:
            raise InterventionError(f"{self.label()}: the box lies outside the frames of {width} x {height} pixels")
        for i in set(_numbers(self, self.frames, len(frames))):
            mean = _gaussian(frames[i].astype(np.float64), self.sigma, 0, rows)
            shown[i, rows, columns] = np.rint(_gaussian(mean, self.sigma, 1, columns))
        return shown

    def label(self) -> str:
        """For tables and plots."""
        box = "" if self.box is None else f" in ({', '.join(f'{x:g}' for x in self.box)})"
        return f"blurred by {self.sigma:g}{_said(self.frames)}{box}"


@spelled
@dataclass(frozen=True)
class From(ClipChange):
    """The frames of another video, `path`, as many and sampled in the same way."""

    kind: ClassVar[str] = "from"
    spelling = Spelling("from", "from other.mp4", first=("path", str))
    path: str

    def __post_init__(self):
        if not isinstance(self.path, str | os.PathLike) or not os.fspath(self.path):
            raise InterventionError(f"From({self.path!r}): give the path of another video")
        set_fields(self, path=os.fspath(self.path))

    @property
    def files(self) -> tuple[str, ...]:
        """Its path."""
        return (self.path,)

    def change(self, frames: Frames, read: Read) -> Frames:
        """The other video's frames."""
        other = read(self.path)
        if len(other) != len(frames):
            raise InterventionError(
                f"{self.label()}: {len(other)} frames are sampled of it, and {len(frames)} of the video whose place "
                "it takes; prepare both with a sampler that gives as many of each (linspace)"
            )
        return other

    def label(self) -> str:
        """For tables and plots."""
        return f"frames of {os.path.basename(self.path)}"


def parted(
    interventions: Sequence[Intervention], n_layers: int
) -> tuple[tuple[Intervention, ...], tuple[Intervention, ...]]:
    """The clip changes of a condition, in order, and all the rest of it."""
    clips = tuple(bool(i.effect(n_layers).clips) for i in interventions)
    parts = ([i for i, c in zip(interventions, clips, strict=True) if c == wanted] for wanted in (True, False))
    return tuple(next(parts)), tuple(next(parts))


def by_clip(
    conditions: Sequence[Sequence[Intervention]], n_layers: int
) -> dict[tuple[Intervention, ...], list[tuple[int, tuple[Intervention, ...]]]]:
    """Conditions by the clip that they show: its changes -> the number of each condition, and the rest of it."""
    grouped: dict[tuple[Intervention, ...], list[tuple[int, tuple[Intervention, ...]]]] = {}
    for i, condition in enumerate(conditions):
        clips, rest = parted(condition, n_layers)
        grouped.setdefault(clips, []).append((i, rest))
    return grouped


def _numbers(change: ClipChange, frames: Sequence[int] | None, n_frames: int) -> tuple[int, ...]:
    """Frames counted from the first. Raises InterventionError for one that is not there."""
    asked = range(n_frames) if frames is None else frames
    if beyond := [f for f in asked if not -n_frames <= f < n_frames]:
        raise InterventionError(
            f"{change.label()}: no frame {beyond[0]}; this clip has {n_frames} sampled frames, numbered from 0"
        )
    return tuple(f % n_frames for f in asked)


def _as_frames(frames: Any) -> tuple[int, ...] | None:
    if frames is None:
        return None
    several = cast(Iterable[Any], frames) if isinstance(frames, Iterable) and not isinstance(frames, str) else [frames]
    numbers = tuple(as_number(f, "a frame's number") for f in several)
    if not numbers:
        raise InterventionError("no frames are given; give their numbers, or None for all")
    return numbers


def _as_box(box: Any) -> tuple[float, ...] | None:
    if box is None:
        return None
    sides = cast(Sequence[Any], box) if isinstance(box, tuple | list) else ()
    if len(sides) != 4 or not all(is_number(x) and math.isfinite(x) for x in sides):
        raise InterventionError(f"box is {box!r}; give (x0, y0, x1, y1) in pixels of the video as decoded")
    x0, y0, x1, y1 = (float(x) for x in sides)
    if not (x0 < x1 and y0 < y1):
        raise InterventionError(f"box {box!r} is empty; x0 is left of x1, and y0 above y1")
    return x0, y0, x1, y1


def _said(frames: tuple[int, ...] | None) -> str:
    return "" if frames is None else f" frames {','.join(map(str, frames))}"


def _gaussian(picture: np.ndarray, sigma: float, axis: int, part: slice) -> np.ndarray:
    """A part of a picture along an axis, each value the mean around it in the whole picture."""
    reach = math.ceil(REACH * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    around = [(reach, reach) if a == axis else (0, 0) for a in range(picture.ndim)]
    padded: Any = np.pad(picture, around, mode="edge")
    first, stop, _ = part.indices(picture.shape[axis])
    mean: Any = 0.0
    for d, weight in enumerate(weights):
        mean = mean + weight * padded.take(range(first + d, stop + d), axis)
    return mean
