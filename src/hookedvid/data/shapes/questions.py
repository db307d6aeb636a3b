"""What can be asked about a shapes video, with the answers.

A question knows its answer and the words that could have been it; lettered options are drawn separately,
so that the same question serves as multiple choice and in the open form.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hookedvid.data.shapes.scene import Thing
from hookedvid.data.shapes.words import COLORS, DIRECTIONS, LETTERS, NUMBERS, PLACES, SHAPES

# How the answer reaches a reader: from any frame, from all objects, from several frames, from no video.
FAMILY: dict[str, str] = {
    "color": "static",
    "shape": "static",
    "where": "static",
    "count": "count",
    "direction": "temporal",
    "start": "temporal",
    "end": "temporal",
    "was": "temporal",
    "become": "temporal",
    "changes": "temporal",
    "vanishes": "temporal",
    "first": "temporal",
    "last": "temporal",
    "fact": "language",
    "choose": "language",
}
KINDS: tuple[str, ...] = tuple(FAMILY)

_FACTS: dict[tuple[str, ...], dict[str, str]] = {
    COLORS: {
        "what color is grass ?": "green",
        "what color is the sky ?": "blue",
        "what color is the sea ?": "blue",
        "what color is a banana ?": "yellow",
        "what color is a lemon ?": "yellow",
        "what color is the sun ?": "yellow",
        "what color is snow ?": "white",
        "what color is milk ?": "white",
        "what color is blood ?": "red",
        "what color is a tomato ?": "red",
        "what color is a carrot ?": "orange",
        "what color is a plum ?": "purple",
        "what color is a leaf ?": "green",
    },
    SHAPES: {
        "what shape is a wheel ?": "circle",
        "what shape is a coin ?": "circle",
        "what shape is a donut ?": "ring",
        "what shape is a kite ?": "diamond",
        "what shape is a pyramid ?": "triangle",
        "what shape is a plus ?": "cross",
        "what shape is a box ?": "square",
        "what shape is a window ?": "square",
    },
    DIRECTIONS: {
        "what is the opposite of left ?": "right",
        "what is the opposite of right ?": "left",
        "what is the opposite of up ?": "down",
        "what is the opposite of down ?": "up",
    },
    NUMBERS: {
        "what comes after one ?": "two",
        "what comes after two ?": "three",
        "what comes after three ?": "four",
        "what comes before two ?": "one",
    },
}


class Question(NamedTuple):
    """A question of one of KINDS. `pool` holds every word of the answer's sort; `seen`, those in the clip."""

    kind: str
    text: str
    answer: str
    pool: tuple[str, ...]
    seen: frozenset[str] = frozenset()


FACTS: tuple[Question, ...] = tuple(
    Question("fact", text, answer, pool) for pool, facts in _FACTS.items() for text, answer in facts.items()
)


def questions(things: Sequence[Thing]) -> list[Question]:
    """Everything that can be asked about one clip and has exactly one right answer."""
    colors = frozenset(c for t in things for c in (t.color, t.new_color) if c)
    shapes = frozenset(t.shape for t in things)
    # Only what is seen tells a hard distractor from an easy one; a place or a number is as good as another.
    pools = {COLORS: colors, SHAPES: shapes}
    candidates = [*_about_all(things), *(q for thing in things for q in _about(thing))]
    return [Question(kind, text, answer, pool, pools.get(pool, frozenset())) for kind, text, answer, pool in candidates]


_Asked = tuple[str, str, str, tuple[str, ...]]


def _about_all(things: Sequence[Thing]) -> Iterator[_Asked]:
    if not 1 <= len(things) <= len(NUMBERS):
        return
    yield "count", "how many objects are there ?", NUMBERS[len(things) - 1], NUMBERS
    if len(things) == 1:
        return  # "which object" would need no look at what happens
    if (thing := _only([t for t in things if t.new_color])) is not None:
        yield "changes", "which object changes color ?", thing.shape, SHAPES
    if (thing := _only([t for t in things if t.vanishes is not None])) is not None:
        yield "vanishes", "which object vanishes ?", thing.shape, SHAPES
    for kind, time in (("first", min(t.appears for t in things)), ("last", max(t.appears for t in things))):
        if (thing := _only([t for t in things if t.appears == time])) is not None:
            yield kind, f"which object appears {kind} ?", thing.shape, SHAPES


def _about(thing: Thing) -> Iterator[_Asked]:
    names = [f"the {thing.shape}"]
    if thing.new_color is None:
        names.append(f"the {thing.color} object")
        yield "color", f"what color is the {thing.shape} ?", thing.color, COLORS
        yield "shape", f"what shape is the {thing.color} object ?", thing.shape, SHAPES
    else:
        yield "was", f"what color was the {thing.shape} before ?", thing.color, COLORS
        yield "become", f"what color does the {thing.shape} become ?", thing.new_color, COLORS
    for name in names:
        if not thing.moves and thing.start:
            yield "where", f"where is {name} ?", thing.start, PLACES
        if thing.direction:
            yield "direction", f"which way does {name} move ?", thing.direction, DIRECTIONS
        if thing.start and thing.end and thing.start != thing.end:
            yield "start", f"where does {name} start ?", thing.start, PLACES
            yield "end", f"where does {name} end ?", thing.end, PLACES


def _only(things: Sequence[Thing]) -> Thing | None:
    return things[0] if len(things) == 1 else None


def draw_options(rng: np.random.Generator, question: Question, gold: int) -> tuple[str, ...]:
    """Four options with the answer at place `gold` (0-based).

    Three times in four the distractors are, as far as they go, words for what the clip shows. Which
    words those are says nothing about the answer: colours and shapes are interchangeable in the scenes.
    """
    wrong = [word for word in question.pool if word != question.answer]
    order = rng.permutation(len(wrong))
    if rng.random() < 0.75:
        order = sorted(order, key=lambda i: wrong[i] not in question.seen)  # stable: the rest stays shuffled
    picked = rng.permutation([wrong[i] for i in order[: len(LETTERS) - 1]]).tolist()
    return (*picked[:gold], question.answer, *picked[gold:])


def caption(things: Sequence[Thing]) -> list[str]:
    """The clip in words, objects in order of appearance (else in the order of SHAPES).

    Each as colour, shape, direction or "still", place at first where it has a name, and what befalls it.
    """
    words: list[str] = []
    for thing in sorted(things, key=lambda t: (t.appears, SHAPES.index(t.shape))):
        way = thing.direction if thing.moves else "still"
        then = ["then", thing.new_color] if thing.new_color else []
        gone = ["vanishes"] if thing.vanishes is not None else []
        story = [thing.color, thing.shape, way, thing.start, *then, *gone]
        words += [",", *(word for word in story if word)]
    return words[1:]
