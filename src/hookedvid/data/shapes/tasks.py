"""What a shapes clip is asked besides multiple choice: to be described, answered in words, and when things happen."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from hookedvid.data.item import Item
from hookedvid.data.shapes.questions import caption
from hookedvid.data.shapes.scene import N_FRAMES, Scenes, things
from hookedvid.data.shapes.words import COLORS, DESCRIBE, SHAPES

FPS = 8
# Between each two sampled states a clip has one frame half-way: state t is first seen in frame 2t.
N_CLIP_FRAMES = 2 * N_FRAMES - 1
DURATION = N_CLIP_FRAMES / FPS


def described(clip: str, video: str, scene: Scenes) -> Item:
    """The request to describe a clip, with its caption."""
    words = caption(things(scene, 0))
    return Item(id=f"{clip}-caption", video=video, question=DESCRIBE, reference=" ".join(words), meta=_meta(scene))


def answered(items: Sequence[Item]) -> list[Item]:
    """Multiple-choice questions in the open form, the right option's word as reference."""
    return [replace(i, options=(), answer=None, reference=i.options[i.answer]) for i in items if i.answer is not None]


def located(clip: str, video: str, scene: Scenes) -> list[Item]:
    """When each object is there, and when it has which colour, unless that is the whole clip; spans in seconds."""
    moments = sorted(_moments(scene), key=lambda m: m[1])
    return [
        Item(
            id=f"{clip}-when-{number}",
            video=video,
            question=f"when is the {what} ?",
            span=(2 * start / FPS, min(2 * stop / FPS, DURATION)),
            family=family,
            meta=_meta(scene),
        )
        for number, (family, what, start, stop) in enumerate(moments)
    ]


def _moments(scene: Scenes) -> Iterator[tuple[str, str, int, int]]:
    """(family, what, first sampled frame, the one after the last)."""
    for k in np.flatnonzero(scene.visible[0].any(1)):
        shape, seen = SHAPES[scene.shape[0, k]], np.flatnonzero(scene.visible[0, k])
        if len(seen) < N_FRAMES:
            yield "presence", f"{shape} there", int(seen[0]), int(seen[-1]) + 1
        colors = scene.color[0, k, seen]
        if len(set(colors.tolist())) == 2:
            for color in dict.fromkeys(colors.tolist()):
                here = seen[colors == color]
                yield "color", f"{shape} {COLORS[color]}", int(here[0]), int(here[-1]) + 1


def _meta(scene: Scenes) -> dict[str, int | float]:
    return {"n_objects": int(scene.n[0]), "duration": DURATION}
