"""What happens in a shapes video: which object is where, in which colour, in which sampled frame.

Scenes are drawn symmetrically: permuting the colours or the shapes, or mirroring the picture, leaves their
distribution as it is. That is why no question about them can be answered from its wording alone.
No pixels and no words here.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from hookedvid.data.shapes.words import COLORS, DIRECTIONS, PLACES, SHAPES

N_FRAMES = 8
SIDE = 64  # pixels of a frame's side: four 16-pixel patches
RADIUS = 8  # pixels from an object's centre to its edge
N_OBJECTS = 4  # slots; a scene fills the first 1 to 4 of them
COUNT_SHARE = np.array([0.15, 0.2, 0.3, 0.35])  # of scenes with 1, 2, 3, 4 objects: crowded ones ask more

_STEP = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])  # x, y of DIRECTIONS
_N_TRIES = 16  # start points tried per object; the one farthest from the others is kept
_CLEAR = 4  # pixels from a centre line within which a place has no name
_ABSENT = 99  # a distance or time beyond any that occurs


@dataclass(frozen=True)
class Scenes:
    """A batch of clips as tables. `shape` and `color` index SHAPES and COLORS; `center` is x, y in pixels.

    An object that is visible in no frame is an empty slot.
    """

    shape: Int[np.ndarray, "batch object"]
    color: Int[np.ndarray, "batch object frame"]
    center: Int[np.ndarray, "batch object frame 2"]
    visible: Bool[np.ndarray, "batch object frame"]

    @property
    def n(self) -> Int[np.ndarray, " batch"]:
        """Objects of each clip, whenever they are visible."""
        return self.visible.any(2).sum(1)

    def __len__(self) -> int:
        return len(self.shape)

    def at(self, frames: Int[np.ndarray, "batch chosen"]) -> "Scenes":
        """The same clips with only the frames named for each, in the order given."""
        each = frames[:, None]
        return Scenes(
            shape=self.shape,
            color=np.take_along_axis(self.color, each, 2),
            center=np.take_along_axis(self.center, each[..., None], 2),
            visible=np.take_along_axis(self.visible, each, 2),
        )

    def select(self, rows: Int[np.ndarray, " chosen"]) -> "Scenes":
        """Some of the clips, in the order given."""
        return Scenes(self.shape[rows], self.color[rows], self.center[rows], self.visible[rows])


def sample_scenes(rng: np.random.Generator, n: int) -> Scenes:
    """Draw `n` clips of N_FRAMES frames.

    Half of them bring their objects in one by one, half recolour one object, 0.4 let one vanish (never
    the recoloured one); each object moves with probability 0.6 in one of four directions at 3 or 4 pixels
    a frame. Events leave at least two frames before and after them.
    """
    slot = np.arange(N_OBJECTS)[None]
    count = rng.choice(N_OBJECTS, size=n, p=COUNT_SHARE) + 1
    alive = slot < count[:, None]
    shape = rng.random((n, len(SHAPES))).argsort(1)[:, :N_OBJECTS]
    palette = rng.random((n, len(COLORS))).argsort(1)
    first, stop = _lifetimes(rng, count)
    recolored, when = _recoloring(rng, count, first, stop)
    frame = np.arange(N_FRAMES)
    late = recolored[..., None] & (frame >= when[:, None, None])
    # The palette's next colour is nobody else's, so "the red object" stays unambiguous.
    color = np.where(late, palette[:, N_OBJECTS, None, None], palette[:, :N_OBJECTS, None])
    visible = alive[..., None] & (frame >= first[..., None]) & (frame < stop[..., None])
    return Scenes(shape, color, _paths(rng, visible, first, stop), visible)


def _lifetimes(
    rng: np.random.Generator, count: Int[np.ndarray, " batch"]
) -> tuple[Int[np.ndarray, "batch object"], Int[np.ndarray, "batch object"]]:
    """First frame, and the one after the last, of every slot."""
    n = len(count)
    times = rng.random((n, N_FRAMES - 2)).argsort(1)[:, :N_OBJECTS]  # distinct, at most N_FRAMES - 3
    first = np.where(rng.random((n, 1)) < 0.5, times, 0)
    stop = np.full((n, N_OBJECTS), N_FRAMES)
    who = _anyone(rng, count)
    when = rng.integers(4, N_FRAMES, size=n)
    vanishes = (rng.random(n) < 0.4) & (first[np.arange(n), who] <= when - 2)
    stop[np.arange(n)[vanishes], who[vanishes]] = when[vanishes]
    return first, stop


def _recoloring(
    rng: np.random.Generator,
    count: Int[np.ndarray, " batch"],
    first: Int[np.ndarray, "batch object"],
    stop: Int[np.ndarray, "batch object"],
) -> tuple[Bool[np.ndarray, "batch object"], Int[np.ndarray, " batch"]]:
    """Which slot changes colour, if any, and in which frame the new colour is first seen."""
    n = len(count)
    who, rows = _anyone(rng, count), np.arange(n)
    when = rng.integers(3, N_FRAMES - 1, size=n)
    happens = (rng.random(n) < 0.5) & (first[rows, who] <= when - 2) & (stop[rows, who] == N_FRAMES)
    return (np.arange(N_OBJECTS) == who[:, None]) & happens[:, None], when


def _anyone(rng: np.random.Generator, count: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
    return (rng.random(len(count)) * count).astype(int)


def _paths(
    rng: np.random.Generator,
    visible: Bool[np.ndarray, "batch object frame"],
    first: Int[np.ndarray, "batch object"],
    stop: Int[np.ndarray, "batch object"],
) -> Int[np.ndarray, "batch object frame 2"]:
    """Straight paths inside the frame; objects placed one by one, each as far from the others as can be."""
    n = len(visible)
    moves = rng.random((n, N_OBJECTS)) < 0.6
    speed = rng.integers(3, 5, size=(n, N_OBJECTS)) * moves
    velocity = _STEP[rng.integers(0, 4, size=(n, N_OBJECTS))] * speed[..., None]
    total = velocity * (stop - 1 - first)[..., None]
    low = np.maximum(RADIUS, RADIUS - total)
    high = np.minimum(SIDE - 1 - RADIUS, SIDE - 1 - RADIUS - total)
    # An object stands still before it appears and after it has vanished.
    age = np.clip(np.arange(N_FRAMES), first[..., None], stop[..., None] - 1) - first[..., None]
    center = np.zeros((n, N_OBJECTS, N_FRAMES, 2), int)
    for k in range(N_OBJECTS):
        room = (high - low + 1)[:, None, k]
        start = low[:, None, k] + (rng.random((n, _N_TRIES, 2)) * room).astype(int)
        path = start[:, :, None] + velocity[:, None, k, None] * age[:, None, k, :, None]
        if k:
            gap = np.abs(path[:, :, None] - center[:, None, :k]).max(-1)  # [batch, try, other object, frame]
            both = visible[:, None, :k] & visible[:, None, k, None]
            best = np.where(both, gap, _ABSENT).min((2, 3)).argmax(1)
        else:
            best = np.zeros(n, int)
        center[:, k] = path[np.arange(n), best]
    return center


class Thing(NamedTuple):
    """One object's story in words, for asking about it.

    `start` and `end` are None where the object is too near a centre line for its place to have a name, and
    `direction` where it stands still or moves less than 9 pixels. `vanishes` is the first frame without it.
    """

    shape: str
    color: str
    new_color: str | None
    start: str | None
    end: str | None
    moves: bool
    direction: str | None
    appears: int
    vanishes: int | None


def things(scenes: Scenes, row: int) -> list[Thing]:
    """The objects of one clip, in slot order."""
    return [_thing(scenes, row, int(k)) for k in np.flatnonzero(scenes.visible[row].any(1))]


def _thing(scenes: Scenes, row: int, k: int) -> Thing:
    seen = np.flatnonzero(scenes.visible[row, k])
    first, last = int(seen[0]), int(seen[-1])
    center = scenes.center[row, k]
    begin, finish = (tuple(center[t].tolist()) for t in (first, last))
    x, y = finish[0] - begin[0], finish[1] - begin[1]
    early, late = (COLORS[scenes.color[row, k, t]] for t in (first, last))
    way = (0 if x < 0 else 1) if x else (2 if y < 0 else 3)
    return Thing(
        shape=SHAPES[scenes.shape[row, k]],
        color=early,
        new_color=late if late != early else None,
        start=place(*begin),
        end=place(*finish),
        moves=(x, y) != (0, 0),
        direction=DIRECTIONS[way] if abs(x) + abs(y) > RADIUS else None,
        appears=first,
        vanishes=last + 1 if last + 1 < scenes.visible.shape[2] else None,
    )


def place(x: int, y: int) -> str | None:
    """The quarter of the frame that a centre lies in; None within 4 pixels of a centre line."""
    middle = (SIDE - 1) / 2
    if min(abs(x - middle), abs(y - middle)) <= _CLEAR:
        return None
    return PLACES[2 * (y > middle) + (x > middle)]
