"""Video-MME: 900 videos of 11 s to an hour with three questions each, options lettered in the file.

`videomme/test-*.parquet`, `videos_chunked_01.zip` … `20.zip` with `data/<videoID>.mp4`, and `subtitle.zip` with
`subtitle/<videoID>.srt`; or any of them extracted. 156 of the videos have no subtitles, none of these long.
"""

from pathlib import Path

from hookedvid.data.annotations import Problems, Row, read_table, without_letters
from hookedvid.data.dataset import Dataset, Entry, check_options, finished, placed
from hookedvid.data.folder import Folder, shards
from hookedvid.data.item import Item
from hookedvid.errors import DataError

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
    asked = [found for row in rows if (found := _read(row, folder, SUBTITLES in options))]
    _unique([e.item for e in asked], problems)
    problems.check(path)
    asked = [e for e in asked if e.item.meta["duration"] in durations]
    published = {"duration": dict.fromkeys(durations, 900)}
    if durations == DURATIONS:
        # How many questions a task has is not among what the authors tell.
        published["task"] = dict.fromkeys([*TASKS, *(e.item.family for e in asked)], 0)
    notes = _without_subtitles(asked) if SUBTITLES in options else []
    return finished(NAME, options, folder, asked, published, notes)


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
