"""MVBench: twenty tasks of 200 questions, in either of its two published layouts.

Branch `main`: `json/<task>.json`, zip files under `video/`; whole videos with the part that is asked about in
seconds, frames at 3 a second for one task, and one task whose videos are not shipped. Branch `video`: the parts cut
out beforehand, as mp4 in folders; `json/<task>.json`, or all tasks in `test.json`. Where a video was found says
which it is, so a mixture reads right: a part is never cut twice.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from hookedvid.data.annotations import LETTERS, Problems, Row, read_json, rows
from hookedvid.data.convention import LMMS_EVAL, Convention, Extractor, Options, dated, index_of
from hookedvid.data.dataset import Dataset, Entry, PublishedDataset, check_options, finished, placed
from hookedvid.data.folder import Folder
from hookedvid.errors import DataError
from hookedvid.families.prompts import QuestionForm
from hookedvid.video.archive import unsafe

NAME = "mvbench"
N_QUESTIONS = 200  # of every task
# Frames of TV shows, numbered from 1: frame k was taken (k - 1) / 3 s after the first.
FRAMES, FRAMES_FPS = "tvqa/frames_fps3_hq", 3.0
PLACES = ("video/", "", "videos/")
# Clips that replaced some of the first release on 2024-06-13; they unpack beside what they replace.
REPLACED = ("clevrer/", "star/")
REPLACEMENTS = "data0613/"
NOT_SHIPPED = "fine_grained_pose"
WHY_NOT = "NTU RGB+D videos are not in the download since 2024-10-18; they are to be had from the ROSE lab"


class Folders(NamedTuple):
    """Where a task's videos are in branch `main` and in branch `video`, where `cut` says that they are parts."""

    main: str
    video: str
    cut: bool = False


def _same(folder: str) -> Folders:
    return Folders(folder, folder)


_STAR = Folders("star/Charades_v1_480", "star/Charades_segment", cut=True)
TASKS: dict[str, Folders] = {
    "action_sequence": _STAR,
    "action_prediction": _STAR,
    "action_antonym": Folders("ssv2_video", "ssv2_video_mp4"),
    "fine_grained_action": _same("Moments_in_Time_Raw/videos"),
    "unexpected_action": _same("FunQA_test/test"),
    "object_existence": _same("clevrer/video_validation"),
    "object_interaction": _STAR,
    "object_shuffle": _same("perception/videos"),
    "moving_direction": _same("clevrer/video_validation"),
    "action_localization": Folders("sta/sta_video", "sta/sta_video_segment", cut=True),
    "scene_transition": _same("scene_qa/video"),
    "action_count": _same("perception/videos"),
    "moving_count": _same("clevrer/video_validation"),
    "moving_attribute": _same("clevrer/video_validation"),
    "state_change": _same("perception/videos"),
    NOT_SHIPPED: Folders("nturgbd", "nturgbd_convert"),
    "character_order": _same("perception/videos"),
    "egocentric_navigation": _same("vlnqa"),
    "episodic_reasoning": Folders(FRAMES, "tvqa/video_fps3_hq_segment", cut=True),
    "counterfactual_inference": _same("clevrer/video_validation"),
}


def read(path: Path, options: tuple[str, ...]) -> Dataset:
    """See `registry.read_dataset`."""
    check_options(NAME, options, TASKS)
    wanted = [t for t in TASKS if t in options] or list(TASKS)
    folder = Folder(path, zips=("*.zip", *(f"{place}*.zip" for place in PLACES if place)))
    problems, notes, entries = Problems(), [], []
    for task, roots, task_rows in _annotations(folder, problems, notes):
        if task in wanted:
            read_rows = [e for n, row in enumerate(task_rows) if (e := _read(row, f"{task}-{n}", task, roots, folder))]
            entries += _left_out(read_rows) if task == NOT_SHIPPED else read_rows
    problems.check(path)
    there = {e.item.family for e in entries}
    if absent := [t for t in wanted if t not in there]:
        notes.append(f"{len(absent)} of {len(wanted)} tasks have no annotations: {', '.join(absent)}")
    entries.sort(key=lambda e: wanted.index(e.item.family))
    return finished(NAME, options, folder, entries, {"task": dict.fromkeys(wanted, N_QUESTIONS)}, notes)


def _annotations(
    folder: Folder, problems: Problems, notes: list[str]
) -> Iterator[tuple[str, list[str], Iterable[Row]]]:
    """Tasks with the folders that the annotations themselves name, and their rows."""
    files = folder.files("json/*.json")
    unknown = [f.name for f in files if f.stem not in TASKS]
    if files:
        yield from ((f.stem, [], rows(read_json(f), f"json/{f.name}", problems)) for f in files if f.stem in TASKS)
    elif files := folder.files("test.json", "json/test.json"):
        whole = read_json(files[0])
        meta, roots = (whole.get(key) if isinstance(whole, dict) else None for key in ("meta", "root"))
        if not isinstance(meta, Mapping) or not isinstance(roots, Mapping):
            raise DataError(f"{files[0]} should hold an object with the keys root and meta, each by task")
        unknown = [repr(t) for t in meta if t not in TASKS]
        for task in (t for t in meta if t in TASKS):
            yield task, _roots(roots.get(task)), rows(meta[task], f"{files[0].name}, {task}", problems)
    else:
        raise DataError(f"{folder.path} has no annotations of MVBench; they are json/<task>.json, or test.json")
    if unknown:
        notes.append(f"no tasks of MVBench, not read: {', '.join(unknown[:5])}")


def _roots(root: Any) -> list[str]:
    """A folder that `test.json` names, if it is one below ours; the authors' own disks are of no use here."""
    if not isinstance(root, str) or unsafe(root):
        return []
    return [root.removeprefix("./").rstrip("/")]


def _read(row: Row, id: str, task: str, roots: list[str], folder: Folder) -> Entry | None:
    folders, values = TASKS[task], row.values
    video, question, options = row.name("video"), row.text("question"), row.texts("candidates")
    answer = row.text("answer")
    if options and answer not in options:
        row.wrong(f"answer {answer[:60]!r} is none of the candidates")
    whole = folders.cut and ("start" in values or "end" in values)
    bound = (row.seconds("start"), row.seconds("end")) if whole else None
    if bound and not bound[0] < bound[1]:
        row.wrong(f"the part from {bound[0]} to {bound[1]} s is empty")
    if not (video and answer in options) or (bound and not bound[0] < bound[1]):
        return None
    # Branch `video` holds mp4 alone, and parts that need no cutting.
    of_main = whole or not video.endswith(".mp4")
    tops = [folders.main, folders.video] if of_main else [*roots, folders.video, folders.main]
    usual = f"{PLACES[0]}{tops[0]}/{video}"
    file = folder.find(_candidates(tops, video))
    name = file.name if file else usual
    where, status, reason = placed(file, usual)
    cut = folders.cut and not _below(name, folders.main)
    if folders.cut and not cut and not whole:
        row.wrong(f"{where} is a whole video, and the row does not say which part of it (start, end)")
    meta = {
        key: value
        for key, value in values.items()
        if key not in ("video", "question", "candidates", "answer", "start", "end")
        and isinstance(value, str | int | float) and not isinstance(value, bool)
    }  # fmt: skip
    item = row.item(
        id=id, video=where, question=question, options=options, answer=options.index(answer), family=task,
        bound=None if cut else bound, folder_fps=FRAMES_FPS if _below(name, FRAMES) else None,
        meta=meta | {"video_name": video},
    )  # fmt: skip
    return item and Entry(item, status, reason)


def _candidates(tops: Iterable[str], video: str) -> Iterator[str]:
    """Where a video may be, replacements first."""
    for top in tops:
        if top.startswith(REPLACED):
            yield from (f"{place}{REPLACEMENTS}{top}/{video}" for place in PLACES)
        yield from (f"{place}{top}/{video}" for place in PLACES)


def _below(name: str, top: str) -> bool:
    return f"/{top}/" in f"/{name}"


def _left_out(entries: list[Entry]) -> list[Entry]:
    """Rows of a task that nobody can download, unless somebody has put some of its videos there."""
    if any(e.status == "there" for e in entries):
        return entries
    return [Entry(e.item, "left out", WHY_NOT) for e in entries]


# ---- how it is scored -------------------------------------------------------------------------------------------

_DOTTED = re.compile(r"([A-E])\.\s*(.+)$", re.IGNORECASE)
_STANDING = re.compile(r"\b([A-E])\b", re.IGNORECASE)
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_MOST_STOPS = 32  # the original passes a flag where the count of replacements stands


def lmms_eval(text: str, options: Options) -> int | None:
    """`B. …`, else the first letter a to e that stands alone: the article of "A person is cooking" too."""
    match = _DOTTED.match(text.strip())
    if match is None:
        text = text.replace("\n", " ").replace("\t", " ").strip()
        text = _without_marks(text).strip("'").strip('"').strip("(").strip(")").strip()
        match = _STANDING.search(text.lower())
    return index_of(match[1].upper(), len(options)) if match else None


def _without_marks(text: str) -> str:
    words = text
    glued = re.search(r"\d,\d", words) is not None
    for mark in _MARKS:
        touches_blank = f"{mark} " in words or f" {mark}" in words
        text = text.replace(mark, "" if touches_blank or glued else " ")
    return re.sub(r"\.(?!\d)", "", text, count=_MOST_STOPS)


def official_check(text: str, answer: int) -> bool:
    """Whether a text passes for the right option in the original's check, which VLMEvalKit took over.

    Its first word, lower-cased, must be part of `(x)`, or hold `(x)`. Nothing at all, `(` and `)` are part of
    every `(x)` and so pass for every question.
    """
    first = text.lower().split(" ")[0]
    right = f"({LETTERS[answer].lower()})"
    return first.replace(".", "") in right or right in first


def official(text: str, options: Options) -> int | None:
    """The one option for which a text passes the check; None where it passes for several, or for none."""
    passed = [i for i in range(len(options)) if official_check(text, i)]
    return passed[0] if len(passed) == 1 else None


# ---- how it is asked --------------------------------------------------------------------------------------------

_SYSTEM = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)
_ORIGINAL = QuestionForm(
    system=_SYSTEM,
    question="Question: {question}\nOptions:",
    option="\n({letter}) {option}",
    instruction="\nOnly give the best option.",
    prefill="Best option:(",
)
_LMMS = Convention(
    name="lmms-eval@2026-04",
    dataset=NAME,
    form=QuestionForm(
        question="Question:{question}\nOption:\n",
        option="({letter}) {option}\n",
        instruction="Only give the best option.\n",
    ),
    evaluator=LMMS_EVAL,
    rule=Extractor(f"{NAME}/lmms-eval", lmms_eval),
    unparsed="dropped if empty",
    options=5,
)
_OFFICIAL = Convention(
    name="official",
    dataset=NAME,
    form=_ORIGINAL,
    sampler="mid_segment",
    n_frames=16,
    rule=Extractor(f"{NAME}/official", official, official_check),
    unparsed="check",
    echo="(",
    options=5,
    gold="last",
)

DATASET = PublishedDataset(
    name=NAME,
    title="MVBench",
    read=read,
    axes=("task",),
    conventions=(
        *dated(_LMMS, "lmms-eval@2026-07", "lmms-eval@2026-04", "lmms-eval@2024-06"),
        _OFFICIAL,
        replace(_OFFICIAL, name="vlmevalkit", n_frames=None, echo=""),
    ),
)
