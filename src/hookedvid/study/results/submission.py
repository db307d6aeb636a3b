"""A submission: the chosen option of every entry, for the server that knows the answers."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hookedvid.data.convention import Convention
from hookedvid.data.dataset import Submission
from hookedvid.data.item import Item
from hookedvid.data.registry import DATASETS
from hookedvid.errors import DataError, nearest
from hookedvid.study.results.file_names import own_folder
from hookedvid.values.files import write_text

FOLDER = "submissions"


def form_of(items: Sequence[Item], dataset: str) -> Submission | None:
    """The form of the submission that the items' dataset has: `dataset`, or what their meta says."""
    names = dict.fromkeys([dataset, *(item.meta.get("dataset") for item in items)])
    return next((d.submission for name, d in DATASETS.items() if name in names and d.submission), None)


def submission(
    form: Submission,
    items: Sequence[Item],
    rows: Sequence[Mapping[str, Any]],
    condition: str,
    convention: Convention | None = None,
) -> dict[str, int]:
    """0-based options by entry, the form's `unknown` where none was chosen and the convention guesses none.

    Raises:
        DataError: For a condition that was not run, and for two questions of one entry.
    """
    chosen = {row["item"]: row for row in rows if row["condition"] == condition}
    if not chosen:
        ran = dict.fromkeys(row["condition"] for row in rows)
        raise DataError(f"no condition {condition!r} was run ({nearest(condition, ran)})")
    answers: dict[str, int] = {}
    for item in items:
        entry = form.entry(item)
        if entry in answers:
            raise DataError(f"two questions are on {entry!r}; a submission holds one answer of each")
        row = chosen[item.id]
        option = row["chosen"]
        if convention is not None and row["status"] != "failed":
            option = convention.submitted(item, option)
        answers[entry] = form.unknown if option is None else option
    return answers


def write(form: Submission, answers: Mapping[str, int], out: Path, now: datetime | None = None) -> Path:
    """The file in `out`'s folder `submissions`, named as its form says; one that says the same is kept."""
    text = json.dumps(answers, indent=4)
    folder = own_folder(out / FOLDER)
    for path in sorted(folder.glob("*.json")):
        if path.read_text(encoding="utf-8") == text:
            return path
    at = now or datetime.now()
    while (path := folder / f"{form.file}_{at:%Y-%m-%d-%H-%M-%S}.json").exists():
        at += timedelta(seconds=1)  # another condition's, of the same second
    write_text(path, text)
    return path
