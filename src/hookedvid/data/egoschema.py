"""EgoSchema: 5,031 clips of exactly three minutes with one question of five options each; 500 answers are public.

From the hub: `Subset/`, `MC/`, `GENERATION/` with Parquet tables, `videos_chunked_01.zip` … with `videos/<id>.mp4`,
options lettered. From the authors: `questions.json`, `subset_answers.json`, `videos/<id>.mp4`, options without
letters. Either way an item's id is the clip's, which is what a submission names.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hookedvid.data.annotations import LETTERS, Problems, Row, read_json, read_table, rows, without_letters
from hookedvid.data.convention import DIRECTLY, LINES, LMMS_EVAL, Convention, Extractor, Options, dated
from hookedvid.data.dataset import Dataset, Entry, PublishedDataset, Submission, check_options, finished, placed
from hookedvid.data.folder import Folder, shards
from hookedvid.data.item import Item
from hookedvid.errors import DataError
from hookedvid.families.prompts import QuestionForm, lettered

NAME = "egoschema"
N_OPTIONS = 5
PUBLISHED = {"subset": 500, "full": 5031}
PLACES = ("videos/", "video/", "data/", "")
SUFFIXES = (".mp4", ".MP4")
COLUMNS = {"question_idx": "scalar", "question": "text", "video_idx": "text", "option": "texts", "answer": "scalar"}


def read(path: Path, options: tuple[str, ...]) -> Dataset:
    """See `registry.read_dataset`."""
    check_options(NAME, options, PUBLISHED)
    part = "full" if "full" in options else "subset"
    folder, problems = Folder(path), Problems()
    tables = ("Subset/test-*.parquet",) if part == "subset" else ("MC/test-*.parquet", "GENERATION/test-*.parquet")
    if files := folder.files(*tables):
        read_rows = [row for table in shards(files) for row in read_table(table, COLUMNS, problems)]
        entries = [_from_hub(row, folder, part) for row in read_rows]
    elif questions := folder.files("questions.json"):
        entries = list(_from_authors(questions[0], folder, part, problems))
    else:
        raise DataError(
            f"{path} has no annotations of {NAME}:{part}; they are in {tables[0]}, or in questions.json"
            + (" and subset_answers.json" if part == "subset" else "")
        )
    seen: set[str] = set()
    for entry in filter(None, entries):
        if entry.item.id in seen:
            problems.add(f"clip {entry.item.id!r}", "is asked about more than once")
        seen.add(entry.item.id)
    problems.check(path)
    published = {"": {"": PUBLISHED[part]}}
    return finished(NAME, options, folder, [e for e in entries if e], published)


def _from_hub(row: Row, folder: Folder, part: str) -> Entry | None:
    texts, raw = without_letters(row, row.texts("option"))
    answer = _index(row, row.values["answer"]) if part == "subset" else None
    meta = {"question_idx": str(row.values["question_idx"])}
    return _entry(row, row.name("video_idx"), texts, answer, folder, meta | raw)


def _from_authors(path: Path, folder: Folder, part: str, problems: Problems) -> Iterable[Entry | None]:
    answers: dict[str, Any] = {}
    if part == "subset":
        files = folder.files("subset_answers.json")
        answers = read_json(files[0]) if files else {}
        if not isinstance(answers, dict) or not answers:
            raise DataError(f"{folder.path} has no subset_answers.json that gives answers by clip; or ask {NAME}:full")
    left = set(answers)
    for row in rows(read_json(path), path.name, problems):
        uid = row.name("q_uid")
        if part == "subset" and uid not in answers:
            continue
        left.discard(uid)
        options = tuple(row.text(f"option {i}") for i in range(N_OPTIONS))
        answer = _index(row, answers[uid]) if part == "subset" else None
        yield _entry(row, uid, options, answer, folder, {})
    if left:
        problems.add(
            "subset_answers.json", f"{len(left)} clips have no question: {', '.join(map(repr, sorted(left)[:3]))}"
        )


def _index(row: Row, answer: Any) -> int | None:
    if isinstance(answer, int | str) and str(answer) in list("01234"):
        return int(answer)
    row.wrong(f"answer should be 0 to {N_OPTIONS - 1}, got {answer!r}")
    return None


def _entry(
    row: Row, uid: str, options: tuple[str, ...], answer: int | None, folder: Folder, meta: dict[str, str]
) -> Entry | None:
    if options and len(options) != N_OPTIONS:
        row.wrong(f"there should be {N_OPTIONS} options, {LETTERS[:N_OPTIONS]}, got {len(options)}")
    if "/" in uid:
        row.wrong(f"clip {uid!r} has a slash in it")
    candidates = [f"{place}{uid}{suffix}" for place in PLACES for suffix in SUFFIXES]
    where, status, reason = placed(folder.find(candidates) if uid else None, candidates[0])
    question = row.text("question")
    item = row.item(id=uid, video=where, question=question, options=options, answer=answer, meta=meta)
    return item and Entry(item, status, reason)


# ---- how it is scored -------------------------------------------------------------------------------------------


def lmms_eval(text: str, options: Options) -> int | None:
    """Capitals in `(X)`, `X ` or `X.`, else an option's whole text; of several the one whose last place is first.

    Where this finds nothing, the original guesses; what is made of it is the convention's to say.
    """
    for mark in ",.!?;:'":
        text = text.strip(mark)
    text = f" {text} "
    letters = LETTERS[: len(options)]
    written = [(form.format(x), i) for form in ("({})", "{} ", "{}.") for i, x in enumerate(letters)]
    if places := [(text.rfind(w), i) for w, i in written if w in text]:
        return min(places)[1]
    if len(text.split()) <= 5:
        return None
    words = text.lower()
    spoken = [(words.rfind(o.lower()), i) for i, o in enumerate(lettered(options)) if o.lower() in words]
    return min(spoken)[1] if spoken else None


# ---- how it is asked --------------------------------------------------------------------------------------------

_LMMS = Convention(
    name="lmms-eval@2026-07",
    dataset=NAME,
    form=QuestionForm(option=LINES, instruction=DIRECTLY),
    evaluator=LMMS_EVAL,
    rule=Extractor(f"{NAME}/lmms-eval", lmms_eval),
    unparsed="guess",
    unit="fraction",
    options=5,
)

# ---- what its server takes -----------------------------------------------------------------------------------


def clip_of(item: Item) -> str:
    """The clip's id: the item's `video_idx` in its meta, or else its video's name."""
    return str(item.meta.get("video_idx") or Path(item.video).stem)


DATASET = PublishedDataset(
    name=NAME,
    title="EgoSchema",
    read=read,
    conventions=(
        _LMMS,
        *dated(replace(_LMMS, max_new_tokens=1024), "lmms-eval@2026-04", "lmms-eval@2024-06"),
    ),
    submission=Submission(entry=clip_of, file="inference_results_egoschema_MC"),  # as lmms-eval names it
)
