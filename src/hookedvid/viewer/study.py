"""Views of a study's items, as the study asked them, beside its report."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hookedvid.data.item import Item, video_path
from hookedvid.errors import DataError, InputError, nearest
from hookedvid.nn.model import Model
from hookedvid.study.definition import Plan
from hookedvid.study.records import Records
from hookedvid.study.results.examples import N_EXAMPLES, VIEWS, varied, view_file
from hookedvid.study.results.file_names import own_folder
from hookedvid.study.rows import Row
from hookedvid.study.run.inputs import prepared
from hookedvid.study.run.manifest import Manifest
from hookedvid.video.clip_files import ClipRequest
from hookedvid.viewer.index import write_index
from hookedvid.viewer.view import view


def view_items(
    folder: Path,
    run: Manifest,
    model: Model,
    ids: Sequence[str] = (),
    conditions: Iterable[Any] | None = None,
    said: Callable[[str], object] = print,
    **how: Any,
) -> Path:
    """A page for each item in the study's folder, and their index; where that is.

    Args:
        folder: The study's.
        run: What it asked.
        model: The one that it asked.
        ids: Of the items; those that the report shows as examples unless given.
        conditions: As in `view`; the study's own of all layers unless given.
        said: Told a line about each page.
        how: As in `view`.

    Raises:
        InputError: For an item that the study did not ask.
        DataError: Where rows are missing.
        DecodingError: Where a video is another one by now.
    """
    rows: dict[str, Row] = {row["item"]: row for row in run.rows(Records(folder))}
    own = [c.interventions for c in run.conditions if c.protocol == "all layers"]
    conditions = list(conditions or own) or None
    own_folder(folder / VIEWS)
    for item in _chosen(run, rows, ids):
        inputs = _inputs(run, model, item, rows[item.id])
        about = {"id": item.id, "family": item.family}
        page = view(model, inputs, conditions, answer=item.answer, question=item.question, about=about, **how)
        path = page.save(folder / view_file(item.id))
        said(f"{path}: {', '.join([item.question, *page.about['outcome']])}")
    return write_index(folder / VIEWS)


def _chosen(run: Manifest, rows: dict[str, Row], ids: Sequence[str]) -> list[Item]:
    items = {item.id: item for item in run.items}
    if unknown := [i for i in ids if i not in items]:
        raise InputError(
            f"this study has no item {unknown[0]!r} ({nearest(unknown[0], list(items))}; {len(items)} asked)"
        )
    if ids:
        return [items[i] for i in dict.fromkeys(ids)]
    return varied([i for i in run.items if rows[i.id]["status"] != "failed"])[:N_EXAMPLES]


def _inputs(run: Manifest, model: Model, item: Item, row: Row) -> Any:
    """What the study's own run of this item was given."""
    settings = dict(run.settings)
    plan = Plan(run.study, run.items, run.annotations, run.conditions, settings, run.convention)
    if "video" not in row["settings"]:
        raise DataError(f"the row of item {item.id!r} does not say what its video was; run the study again")
    sampling = (settings["n_frames"], settings["sampler"], item.bound, item.folder_fps)
    clip = ClipRequest(str(video_path(item, run.annotations)), *sampling, content=row["settings"]["video"]).read()
    return prepared(plan, model, item, None, clip)
