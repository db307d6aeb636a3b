"""Training batches of shapes videos: pixels, packed texts and what each text should lead to. Numpy only.

Several texts follow one video, side by side: each sees the video and itself, none sees another. So the
video's tokens are paid for once, and every text is read exactly as it would be alone.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hookedvid.data.shapes.questions import FACTS, KINDS, Question, caption, draw_options, questions
from hookedvid.data.shapes.render import Frames, render, rounded
from hookedvid.data.shapes.scene import COUNT_SHARE, N_FRAMES, N_OBJECTS, Scenes, sample_scenes, things
from hookedvid.data.shapes.words import COLORS, DESCRIBE, DIRECTIONS, LETTERS, NUMBERS, PLACES, SHAPES, TOKEN

# Tokens of the longest text of each form: "which way does the red object move ?" has 8 words; a caption of
# four objects, 4 x 4 and 3 commas, "then red", "vanishes" and "describe" before them.
CHOICE, OPEN, CAPTION = 1 + 8 + 9, 1 + 8 + 1, 1 + 16 + 3 + 3
FORMS = ("letter", "word", "caption")
PATCH = 16
# Scenes hold 4 objects oftener than 1. Asking "how many" this often makes the four answers equally likely.
COUNT_KEPT: np.ndarray = COUNT_SHARE.min() / COUNT_SHARE
# "choose red ?": of no use to a reader, but it teaches a model to turn an option into its letter.
CHOICES: tuple[Question, ...] = tuple(
    Question("choose", f"choose {word} ?", word, pool)
    for pool in (COLORS, SHAPES, DIRECTIONS, PLACES, NUMBERS)
    for word in pool
)


def choice_prompt(question: str, options: tuple[str, ...]) -> str:
    """The text after the video when the reply is to be a letter."""
    lettered = " ".join(f"{letter} {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"question {question} {lettered} answer"


def open_prompt(question: str) -> str:
    """The text after the video when the reply is to be the answer's own word."""
    return f"question {question}"


def codec_noise(rng: np.random.Generator, frames: Frames) -> Frames:
    """Frames roughly as H.264 gives them back: half-resolution colour, softened brightness, a little error.

    For training without encoding; the amount varies from clip to clip.
    """
    n = len(frames)
    amount = rng.uniform(0, 1, size=(n, 1, 1, 1, 1)).astype(np.float32)
    pixels = frames.astype(np.float32)
    luma = pixels @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    chroma = pixels - luma[..., None]
    b, t, h, w, _ = chroma.shape
    chroma = chroma.reshape(b, t, h // 2, 2, w // 2, 2, 3).mean((3, 5))
    chroma = chroma.repeat(2, axis=2).repeat(2, axis=3)
    soft = (luma + np.roll(luma, 1, 2) + np.roll(luma, 1, 3) + np.roll(luma, (1, 1), (2, 3))) / 4
    luma = luma + 0.5 * amount[..., 0] * (soft - luma)
    error = rng.standard_normal((1, t, h, w), dtype=np.float32) * 3 * amount[..., 0]
    return rounded((luma + error)[..., None] + chroma)


class Plan(NamedTuple):
    """How many texts of each sort follow one video."""

    choice: int
    open: int
    caption: int


class Texts(NamedTuple):
    """Packed texts, one row per video.

    The token after position `scored` should be `target`, which is one of FORMS: the letter of the right
    option, the answer's own word, or the next word of a caption (or the end of a text). `kind` indexes KINDS,
    -1 in captions. Both are -1 where nothing is scored.
    """

    tokens: Int[np.ndarray, "batch pos"]
    scored: Int[np.ndarray, "batch target"]
    target: Int[np.ndarray, "batch target"]
    form: Int[np.ndarray, "batch target"]
    kind: Int[np.ndarray, "batch target"]


def layout(plan: Plan) -> tuple[Int[np.ndarray, " pos"], Int[np.ndarray, " pos"]]:
    """For every packed position the text it belongs to and its place in that text, both from 0."""
    lengths = np.repeat([CHOICE, OPEN, CAPTION], plan)
    text = np.repeat(np.arange(len(lengths)), lengths)
    return text, np.concatenate([np.arange(0), *(np.arange(length) for length in lengths)])


def video_batch(
    rng: np.random.Generator,
    n: int,
    plan: Plan,
    *,
    weights: Mapping[str, float] | None = None,
    still: bool = False,
) -> tuple[Frames, Texts]:
    """`n` videos, half of them as a codec leaves them, with texts about them.

    `still` shows the last frame alone and asks about that. `weights` makes kinds of questions rarer
    (below 1) or commoner; a kind not named weighs 1.
    """
    scenes = sample_scenes(rng, n)
    if still:
        scenes = scenes.at(np.full((n, 1), N_FRAMES - 1))
    frames = render(rng, scenes)
    frames[: n // 2] = codec_noise(rng, frames[: n // 2])
    rows = [_Row(plan) for _ in range(n)]
    for number, row in enumerate(rows):
        cast = things(scenes, number)
        for slot, question in enumerate(_pick(rng, questions(cast), plan.choice + plan.open, weights or {})):
            row.ask(rng, slot, question)
        for slot in range(plan.caption):
            row.describe(slot, caption(cast))
    return frames, _stack(rows)


def language_batch(rng: np.random.Generator, n: int, plan: Plan) -> Texts:
    """Texts that need no video: facts and "choose WORD ?", half and half."""
    rows = [_Row(plan) for _ in range(n)]
    for row in rows:
        for slot in range(plan.choice + plan.open):
            source = FACTS if rng.random() < 0.5 else CHOICES
            row.ask(rng, slot, source[rng.integers(len(source))])
    return _stack(rows)


class _Row:
    """One video's packed texts while they are filled in: choices, open questions, captions."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.start: list[int] = np.cumsum([0, *np.repeat([CHOICE, OPEN, CAPTION], plan)]).tolist()
        self.tokens = np.full(self.start[-1], TOKEN["<pad>"])
        self.scored: list[tuple[int, int, int, int]] = []

    def ask(self, rng: np.random.Generator, slot: int, question: Question) -> None:
        """Fill a choice or open slot.

        The word is asked for where the question ends, in both sorts: up to there they are the same text, and
        a model that has the answer there has only to find it among the options. (With a place of its own for
        the word, open questions about colour were learned and lettered ones stayed at chance for 500 steps.)
        """
        kind, answer = KINDS.index(question.kind), TOKEN[question.answer]
        stop = self._write(slot, open_prompt(question.text))
        self._score(stop, answer, "word", kind)
        if slot < self.plan.choice:
            gold = int(rng.integers(len(LETTERS)))
            stop = self._write(slot, choice_prompt(question.text, draw_options(rng, question, gold)))
            self._score(stop, TOKEN[LETTERS[gold]], "letter", kind)
        else:
            stop = self._write(slot, f"{open_prompt(question.text)} {question.answer}")
            self._score(stop, TOKEN["<eos>"], "caption", -1)

    def describe(self, slot: int, words: Sequence[str]) -> None:
        """Fill a caption slot, every word scored."""
        slot += self.plan.choice + self.plan.open
        self._write(slot, " ".join([DESCRIBE, *words]))
        for place, word in enumerate([*words, "<eos>"]):
            self._score(self.start[slot] + place, TOKEN[word], "caption", -1)

    def _write(self, slot: int, text: str) -> int:
        """Write a text into a slot; the position of its last word."""
        ids = [TOKEN[word] for word in text.split()]
        start = self.start[slot]
        assert len(ids) <= self.start[slot + 1] - start
        self.tokens[start : start + len(ids)] = ids
        return start + len(ids) - 1

    def _score(self, position: int, target: int, form: str, kind: int) -> None:
        self.scored.append((position, target, FORMS.index(form), kind))


def _stack(rows: Sequence[_Row]) -> Texts:
    """Rows as arrays; rows with fewer scored positions end in ones that count for nothing."""
    most = max(len(row.scored) for row in rows)
    table = np.zeros((len(rows), most, 4), int)
    table[..., 2:] = -1
    for number, row in enumerate(rows):
        table[number, : len(row.scored)] = np.array(row.scored).reshape(-1, 4)
    return Texts(np.stack([row.tokens for row in rows]), *table.transpose(2, 0, 1))


def _pick(rng: np.random.Generator, asked: Sequence[Question], n: int, weights: Mapping[str, float]) -> list[Question]:
    """Up to `n` questions in random order, kinds before repetitions of a kind.

    Whether "how many" is among them depends on nothing but the count: were it to compete with the
    other kinds, clips that offer few of those would have it oftener, and one object would be the best guess.
    """
    by_kind: dict[str, list[Question]] = {}
    for i in rng.permutation(len(asked)):
        by_kind.setdefault(asked[i].kind, []).append(asked[i])
    picked = []
    for question in by_kind.pop("count", []):
        n_objects = question.pool.index(question.answer) + 1
        if rng.random() < COUNT_KEPT[n_objects - 1] * weights.get("count", 1.0):
            picked.append(question)
    facts = [FACTS[i] for i in rng.choice(len(FACTS), size=n, replace=False)]
    by_kind["fact"] = facts
    # The smallest of exponential draws with rates w is a weighted choice without replacement.
    rank = {kind: rng.exponential() / weights.get(kind, 1.0) for kind in by_kind}
    order = sorted(by_kind, key=lambda kind: rank[kind])
    depth = max(len(group) for group in by_kind.values())
    picked += [by_kind[kind][i] for i in range(depth) for kind in order if i < len(by_kind[kind])]
    return [picked[i] for i in rng.permutation(min(n, len(picked)))]


class Cells(NamedTuple):
    """What lies in each patch: index into SHAPES and COLORS plus 1 (0 = nothing), and where in it.

    `offset` is the object's centre from the patch's, in half patches (-1 to 1); 0 where there is nothing.
    """

    shape: Int[np.ndarray, "batch frame patch"]
    color: Int[np.ndarray, "batch frame patch"]
    offset: Float[np.ndarray, "batch frame patch 2"]


def cells(scenes: Scenes, side: int) -> Cells:
    """Dense labels for a tower whose frames have `side` x `side` patches: objects by their centres."""
    n, _, n_frames = scenes.visible.shape
    shape, color = (np.zeros((n, n_frames, side**2), int) for _ in range(2))
    offset = np.zeros((n, n_frames, side**2, 2), np.float32)
    row, frame = np.arange(n)[:, None], np.arange(n_frames)
    for k in range(N_OBJECTS):
        x, y = scenes.center[:, k, :, 0], scenes.center[:, k, :, 1]
        patch, here = (y // PATCH) * side + x // PATCH, scenes.visible[:, k]
        shape[row, frame, patch] = np.where(here, scenes.shape[:, k, None] + 1, shape[row, frame, patch])
        color[row, frame, patch] = np.where(here, scenes.color[:, k] + 1, color[row, frame, patch])
        inside = scenes.center[:, k] % PATCH / (PATCH / 2) - 1
        offset[row, frame, patch] = np.where(here[..., None], inside, offset[row, frame, patch])
    return Cells(shape, color, offset)
