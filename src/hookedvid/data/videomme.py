"""Video-MME: 900 videos of 11 s to an hour with three questions each, options lettered in the file.

`videomme/test-*.parquet`, `videos_chunked_01.zip` … `20.zip` with `data/<videoID>.mp4`, and `subtitle.zip` with
`subtitle/<videoID>.srt`; or any of them extracted. 156 of the videos have no subtitles, none of these long.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hookedvid.data.annotations import Problems, Row, read_table, without_letters
from hookedvid.data.convention import (
    DIRECTLY,
    LINES,
    LMMS_EVAL,
    Convention,
    Extractor,
    Options,
    dated,
    index_of,
)
from hookedvid.data.dataset import Dataset, Entry, PublishedDataset, check_options, finished, placed
from hookedvid.data.folder import Folder, shards
from hookedvid.data.item import Item
from hookedvid.errors import DataError
from hookedvid.families.prompts import QuestionForm

NAME = "videomme"
DURATIONS = ("short", "medium", "long")
SUBTITLES = "subtitles"
# Where plain extraction, VLMEvalKit and a flat copy put the videos; and what they may end in.
PLACES = ("data/", "video/", "videos/", "")
SUFFIXES = (".mp4", ".MP4", ".mkv")
SUBTITLE_PLACES = ("subtitle/", "subtitles/", "")

COLUMNS = {
    name: "text"
    for name in ("video_id", "duration", "domain", "sub_category", "videoID", "question_id", "task_type", "question")
} | {"options": "texts", "answer": "text"}
LABELS = ("duration", "domain", "sub_category")
KEPT = ("video_id", "videoID", "question_id", "url")
TASKS = (
    "Temporal Perception", "Spatial Perception", "Attribute Perception", "Action Recognition", "Object Recognition",
    "OCR Problems", "Counting Problem", "Temporal Reasoning", "Spatial Reasoning", "Action Reasoning",
    "Object Reasoning", "Information Synopsis",
)  # fmt: skip


def read(path: Path, options: tuple[str, ...]) -> Dataset:
    """See `registry.read_dataset`."""
    check_options(NAME, options, (*DURATIONS, SUBTITLES))
    folder = Folder(path)
    tables = folder.files("videomme/test-*.parquet", "test-*.parquet", "*.parquet", "*/*.parquet")
    if not tables:
        raise DataError(f"{path} has no annotations of Video-MME; they are in videomme/test-00000-of-00001.parquet")
    durations = [d for d in DURATIONS if d in options] or DURATIONS
    problems = Problems()
    rows = [row for table in shards(tables) for row in read_table(table, COLUMNS, problems)]
    entries = [entry for row in rows if (entry := _read(row, folder, SUBTITLES in options))]
    _unique([e.item for e in entries], problems)
    problems.check(path)
    entries = [e for e in entries if e.item.meta["duration"] in durations]
    published = {"duration": dict.fromkeys(durations, 900)}
    if durations == DURATIONS:
        # How many questions a task has is not among what the authors tell.
        published["task"] = dict.fromkeys([*TASKS, *(e.item.family for e in entries)], 0)
    notes = _without_subtitles(entries) if SUBTITLES in options else []
    return finished(NAME, options, folder, entries, published, notes)


def _read(row: Row, folder: Folder, subtitles: bool) -> Entry | None:
    video, number = row.name("videoID"), row.label("question_id")
    meta = {key: row.label(key, DURATIONS if key == "duration" else ()) for key in LABELS}
    meta |= {key: value for key in KEPT if isinstance(value := row.values.get(key), str)}
    texts, raw = without_letters(row, row.texts("options"))
    answer = row.letter("answer", len(texts)) if texts else 0
    if "/" in video:
        row.wrong(f"videoID {video!r} has a slash in it")
    question, family = row.text("question"), row.label("task_type")
    candidates = [f"{place}{video}{suffix}" for place in PLACES for suffix in SUFFIXES]
    srt = folder.find(f"{place}{video}.srt" for place in SUBTITLE_PLACES) if subtitles and video else None
    where, status, reason = placed(folder.find(candidates) if video else None, candidates[0])
    if srt is not None and srt.trouble:
        status, reason = "missing", f"{srt.where}: {srt.trouble}"
    item = row.item(
        id=number, video=where, question=question, options=texts, answer=answer, family=family,
        subtitles="" if srt is None else srt.where, meta=meta | raw,
    )  # fmt: skip
    return item and Entry(item, status, reason)


def _unique(items: list[Item], problems: Problems) -> None:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            problems.add(f"question {item.id!r}", "is there more than once")
        seen.add(item.id)


def _without_subtitles(entries: list[Entry]) -> list[str]:
    if not any(e.item.subtitles for e in entries):
        return ["no subtitles found: they are in subtitle.zip, or in subtitle/ beside the videos"]
    bare = {e.item.meta["videoID"] for e in entries if e.item.meta["duration"] == "long" and not e.item.subtitles}
    shown = ", ".join(map(str, sorted(bare)[:3]))
    return [f"{len(bare)} long videos have no subtitles, and all should: {shown}"] if bare else []


# ---- how it is scored -------------------------------------------------------------------------------------------

_FOUR = "ABCD"
_PHRASES = (
    *("the answer is", "answer is", "the correct answer is", "correct answer is", "the best answer is"),
    *("best answer is", "the correct option is", "correct option is", "the best option is", "best option is"),
    *("the choice is", "choice is", "the correct choice is", "correct choice is", "i choose", "i select", "i pick"),
    *("my answer is", "my choice is", "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)


def lmms_eval_2026_04(text: str, options: Options) -> int | None:
    """Candidates of several forms, ranked by form and then by how late they stand; capitals alone count."""
    if not text.strip():
        return None
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    text = f" {text} "
    candidates = _by_form(text) + _by_phrase(text) + _at_the_ends(text)
    if not candidates:
        candidates = [(0, text.rfind(x), x) for x in _FOUR if x in text]
    best = max(candidates, key=lambda c: c[:2], default=(0, 0, ""))  # max keeps the first of equals
    return index_of(best[2], len(options))


Candidate = tuple[int, int, str]  # priority, position, letter


def _by_form(text: str) -> list[Candidate]:
    forms = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
    written = [(form.format(x), priority, x) for form, priority in forms for x in _FOUR]
    return [(priority, text.rfind(w), x) for w, priority, x in written if w in text]


def _by_phrase(text: str) -> list[Candidate]:
    candidates = []
    lower = text.lower()
    for phrase in _PHRASES:
        at = lower.find(phrase)
        if at >= 0:
            after = at + len(phrase)
            candidates += [(7, text.find(x, after), x) for x in _FOUR if text.find(x, after) >= 0]
    return candidates


def _at_the_ends(text: str) -> list[Candidate]:
    bare = text.strip()
    if not bare:
        return []
    candidates = []
    if bare[0] in _FOUR and not bare[1:2].isalpha():
        candidates.append((10, 0, bare[0]))
    if bare[-1] in _FOUR and not bare[-2:-1].isalpha():
        candidates.append((9, len(bare) - 1, bare[-1]))
    return candidates


_PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer")


def _first_capital(text: str, options: Options, prefixes: Sequence[str]) -> int | None:
    text = text.strip()
    for prefix in prefixes:
        text = text.replace(prefix, "")
    match = re.search("[ABCD]", text)
    return index_of(match[0], len(options)) if match else None


def lmms_eval_2024_06(text: str, options: Options) -> int | None:
    """The first capital A to D anywhere, once a few phrases are deleted: the official rule too.

    The originals list more phrases, run together by missing commas: what that deletes, nobody says.
    """
    return _first_capital(text, options, _PREFIXES)


def vlmevalkit(text: str, options: Options) -> int | None:
    """VLMEvalKit's first stage, before it asks a judge: as `lmms_eval_2024_06`, with two more phrases deleted."""
    return _first_capital(text, options, (*_PREFIXES, "Answer:", "Option:"))


# ---- how it is asked --------------------------------------------------------------------------------------------

_SELECT = "Select the best answer to the following multiple-choice question based on the video"
_LETTER_ONLY = ". Respond with only the letter (A, B, C, or D) of the correct option.\n"
_BEST = "\nThe best answer is:"
# "and the subtitles" stands in the prompt of the task without subtitles too.
_FORM = QuestionForm(before=f"{_SELECT} and the subtitles{_LETTER_ONLY}", option=LINES, instruction=_BEST)
_FIRST_CAPITAL = Extractor(f"{NAME}/lmms-eval@2024-06", lmms_eval_2024_06)
_LMMS = Convention(
    name="lmms-eval@2026-04",
    dataset=NAME,
    form=replace(_FORM, instruction=f"\n{DIRECTLY}"),
    evaluator=LMMS_EVAL,
    forms={"llava_vid": _FORM},
    rule=Extractor(f"{NAME}/lmms-eval@2026-04", lmms_eval_2026_04),
    unparsed="wrong",
    options=4,
)
_SUBTITLED = replace(
    _LMMS,
    name="lmms-eval@2026-04+subtitles",
    form=replace(_FORM, before=f"This video's subtitles are listed below: \n{{subtitles}}\n{_FORM.before}"),
    forms={},
)
_OFFICIAL = Convention(
    name="official",
    dataset=NAME,
    form=replace(_FORM, before=_SELECT + _LETTER_ONLY),
    rule=_FIRST_CAPITAL,
    unparsed="dropped",
    options=4,
)
_VLMEVALKIT = Convention(
    name="vlmevalkit",
    dataset=NAME,
    form=QuestionForm(
        before=f"\nThese are the frames of a video. {_SELECT}{_LETTER_ONLY}",
        question="Question: {question}",
        option=LINES,
        instruction="\nAnswer: ",
    ),
    sampler="inner",
    rule=Extractor(f"{NAME}/vlmevalkit", vlmevalkit),
    unparsed="wrong",
    unit="fraction",
    options=4,
)

# One date serves all datasets: 2026-04 is when Video-MME's extractor was replaced, 2026-07 when EgoSchema's answers
# were cut to 16 tokens.
DATASET = PublishedDataset(
    name=NAME,
    title="Video-MME",
    read=read,
    axes=(*LABELS, "task_type"),
    conventions=(
        *dated(_LMMS, "lmms-eval@2026-07", "lmms-eval@2026-04"),
        *dated(replace(_LMMS, rule=_FIRST_CAPITAL), "lmms-eval@2024-06"),
        *dated(_SUBTITLED, "lmms-eval@2026-07+subtitles", "lmms-eval@2026-04+subtitles"),
        *dated(replace(_SUBTITLED, rule=_FIRST_CAPITAL), "lmms-eval@2024-06+subtitles"),
        _OFFICIAL,
        _VLMEVALKIT,
    ),
)
