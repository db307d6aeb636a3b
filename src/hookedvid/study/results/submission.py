"""EgoSchema's submission: the chosen option of every clip, for the server that knows the answers."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from hookedvid.data.item import Item
from hookedvid.errors import DataError, nearest
from hookedvid.study.conventions import Convention
from hookedvid.study.results.file_names import own_folder
from hookedvid.values.files import write_text

FOLDER = "submissions"
UNKNOWN = -1  # as lmms-eval writes an answer that is none of the options


def submission(
    items: Sequence[Item], rows: Sequence[Mapping], condition: str, convention: Convention | None = None
) -> dict[str, int]:
    """0-based options by the clip's id, -1 where none was chosen and the convention guesses none.

    The id is the item's `video_idx` in its meta, or else its video's name. Raises DataError for a condition that
    was not run, and for two questions on one clip.
    """
    chosen = {row["item"]: row for row in rows if row["condition"] == condition}
    if not chosen:
        ran = dict.fromkeys(row["condition"] for row in rows)
        raise DataError(f"no condition {condition!r} was run ({nearest(condition, ran)})")
    found: dict[str, int] = {}
    for item in items:
        clip = str(item.meta.get("video_idx") or Path(item.video).stem)
        if clip in found:
            raise DataError(f"two questions are on {clip!r}; a submission holds one answer a clip")
        row = chosen[item.id]
        option = row["chosen"]
        if convention is not None and row["status"] != "failed":
            option = convention.submitted(item, option)
        found[clip] = UNKNOWN if option is None else option
    return found


def write(answers: Mapping[str, int], out: Path, now: datetime | None = None) -> Path:
    """The file in `out`'s folder `submissions`, named as lmms-eval names it; one that says the same is kept."""
    text = json.dumps(answers, indent=4)
    folder = own_folder(out / FOLDER)
    for path in sorted(folder.glob("*.json")):
        if path.read_text(encoding="utf-8") == text:
            return path
    at = now or datetime.now()
    while (path := folder / f"inference_results_egoschema_MC_{at:%Y-%m-%d-%H-%M-%S}.json").exists():
        at += timedelta(seconds=1)  # another condition's, of the same second
    write_text(path, text)
    return path
