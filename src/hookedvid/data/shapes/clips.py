"""The shapes dataset: made clips with questions whose answers are known, the same ones for the same seed."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hookedvid.data.item import Item, jsonl
from hookedvid.data.shapes.mp4 import mp4_bytes
from hookedvid.data.shapes.questions import FACTS, FAMILY, Question, draw_options, questions
from hookedvid.data.shapes.render import render
from hookedvid.data.shapes.scene import Scenes, sample_scenes, things
from hookedvid.data.shapes.tasks import FPS, answered, described, located
from hookedvid.data.shapes.words import LETTERS
from hookedvid.errors import DataError, nearest
from hookedvid.values.files import locked, write_if_other
from hookedvid.values.progress import bar

LOCK = ".lock"  # in the folder, held by the one process that makes data there
PATIENCE = 600  # seconds to wait for another process; the held-out set takes some ten

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

# The annotation file of each task; all are about the same clips.
TASKS: dict[str, str] = {
    "questions": "items.jsonl",
    "captions": "captions.jsonl",
    "answers": "answers.jsonl",
    "grounding": "grounding.jsonl",
}
# The questions a study asks unless told: clips the tiny model never saw, since training draws another split.
HELD_OUT: dict[str, Any] = {"seed": 0, "split": "test", "n_videos": 50, "questions_per_video": 5}


def stream(seed: int, split: Split, *path: int) -> np.random.Generator:
    """The generator of one split, or of one clip or training step of it; all streams are independent.

    Nothing is carried from one to the next, so a run resumes anywhere without stored generator states.
    """
    # A spawn key, not a longer seed: seeds that differ in trailing zeros alone give the same stream.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), *path)))


def make_dataset(
    folder: str | os.PathLike[str], *, seed: int, split: Split, n_videos: int, questions_per_video: int
) -> Path:
    """Write clips to `folder/clips` and their questions to `folder/items.jsonl`; returns the latter's path.

    Beside it lie the files of the other TASKS: captions, the questions in the open form, and when things happen.

    A clip lasts 15 frames of 64 x 64 at 8 a second: linspace sampling of 8 frames meets every state that
    its questions are about, the odd frames lie half-way between. Clip i is the same whatever `n_videos`.

    One process at a time makes data in a folder. Files appear whole, the questions' last, and those that are right
    already are left alone.

    Raises:
        RunError: Where another process makes data there for more than `PATIENCE` seconds.
    """
    folder = Path(folder)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, PATIENCE):
        _make(folder, seed, split, n_videos, questions_per_video)
    return folder / TASKS["questions"]


def _make(folder: Path, seed: int, split: Split, n_videos: int, questions_per_video: int) -> None:
    tasks: dict[str, list[Item]] = {task: [] for task in TASKS}
    with bar(n_videos, "making clips", "clips") as done:
        for index, (scene, asked) in enumerate(make_items(seed, split, n_videos, questions_per_video)):
            clip, video = _clip(split, seed, index), asked[0].video
            picture = render(stream(seed, split, index, 1), in_between(scene))[0]
            write_if_other(folder / video, mp4_bytes(picture, fps=FPS))
            tasks["questions"] += asked
            tasks["captions"].append(described(clip, video, scene))
            tasks["answers"] += answered(asked)
            tasks["grounding"] += located(clip, video, scene)
            done(1)
    for task in reversed(TASKS):
        write_if_other(folder / TASKS[task], jsonl(tasks[task]))


def held_out(folder: str | os.PathLike[str], task: str = "questions") -> Path:
    """The annotation file of one of the TASKS of the held-out set in a folder, made there if it is not.

    Several processes may ask at once: one makes it, the others wait for it.
    """
    if task not in TASKS:
        raise DataError(f"no task {task!r} of the shapes clips ({nearest(task, TASKS)})")
    folder = Path(folder)
    if not _is_made(folder):
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK, PATIENCE):
            if not _is_made(folder):
                _make(folder, **HELD_OUT)
    return folder / TASKS[task]


def _is_made(folder: Path) -> bool:
    return all((folder / name).exists() for name in TASKS.values())


def make_items(seed: int, split: Split, n_videos: int, questions_per_video: int) -> Iterator[tuple[Scenes, list[Item]]]:
    """Every clip's scene (a batch of one) with its items, nothing rendered.

    Families, the kinds in them, the answers of a kind and the places of the right option are all kept
    as even as the clips allow. A clip that runs out of questions carries fewer.
    """
    if n_videos < 1 or questions_per_video < 1:
        raise DataError(f"asked for {n_videos} videos with {questions_per_video} questions each; ask for 1 or more")
    tally: Counter[Any] = Counter()
    for index in range(n_videos):
        rng = stream(seed, split, index)
        scene = sample_scenes(rng, 1)
        clip = _clip(split, seed, index)
        items = []
        for number, question in enumerate(_choose(rng, scene, questions_per_video, tally)):
            gold = min(rng.permutation(len(LETTERS)).tolist(), key=lambda g: tally[question.kind, "gold", g])
            tally[question.kind, "gold", gold] += 1
            items.append(
                Item(
                    id=f"{clip}-{number}",
                    video=f"clips/{clip}.mp4",
                    question=question.text,
                    options=draw_options(rng, question, gold),
                    answer=gold,
                    family=FAMILY[question.kind],
                    meta={"kind": question.kind, "n_objects": int(scene.n[0])},
                )
            )
        yield scene, items


def _clip(split: Split, seed: int, index: int) -> str:
    return f"{split}-{seed}-{index:05d}"


def _choose(rng: np.random.Generator, scene: Scenes, n: int, tally: Counter[Any]) -> Iterator[Question]:
    """Up to `n` different questions on a clip: each time the family, kind and answer used least so far."""
    choices = [*questions(things(scene, 0)), *FACTS]
    # Asking "how many" of whichever scene offers it would favour scenes that offer little else: keep even.
    fewest = min(tally["count", word] for word in ("one", "two", "three", "four"))
    choices = [q for q in choices if q.kind != "count" or tally["count", q.answer] == fewest]
    choices = [choices[i] for i in rng.permutation(len(choices))]
    for _ in range(min(n, len(choices))):
        question = min(choices, key=lambda q: (tally[FAMILY[q.kind]], tally[q.kind], tally[q.kind, q.answer]))
        choices.remove(question)
        tally.update([FAMILY[question.kind], question.kind, (question.kind, question.answer)])
        yield question


def in_between(scenes: Scenes) -> Scenes:
    """The clips with a frame half-way between each two: positions averaged, events not yet come."""
    n_frames = scenes.visible.shape[2]
    step = np.arange(2 * n_frames - 1)
    before, after = (scenes.at(np.tile(t, (len(scenes), 1))) for t in (step // 2, (step + 1) // 2))
    return Scenes(before.shape, before.color, (before.center + after.center) // 2, before.visible)
