"""Views of a study's items, as the study asked them, beside its report."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from hookedvid.data.item import Item, video_path
from hookedvid.errors import DataError, InputError, VideoError, nearest
from hookedvid.nn.model import Model
from hookedvid.study.definition import Plan
from hookedvid.study.records import Records
from hookedvid.study.results.examples import N_EXAMPLES, VIEWS, varied, view_file
from hookedvid.study.results.file_names import own_folder
from hookedvid.study.rows import Row, Task
from hookedvid.study.run.inputs import prepared
from hookedvid.study.run.manifest import Manifest
from hookedvid.video.clip_files import ClipRequest
from hookedvid.viewer.index import write_index
from hookedvid.viewer.view import View, outcomes, view


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
        VideoError: Where no video is to be had, or it or its subtitles are not what they were; of some, their items are
            said to have no page.
    """
    rows: dict[str, dict[str, Row]] = {}
    for row in run.rows(Records(folder)):
        rows.setdefault(row["item"], {})[row["condition"]] = row
    own = [c.interventions for c in run.conditions if c.protocol == "all layers"]
    conditions = list(conditions or own) or None
    own_folder(folder / VIEWS)
    chosen, wrong = _chosen(run, rows, ids), list[VideoError]()
    for item in chosen:
        try:
            inputs = _inputs(run, model, item, rows[item.id]["baseline"])
        except VideoError as e:  # one that is gone is no reason to show none
            wrong.append(e)
            said(f"{item.id}: no page: {e}")
            continue
        answer = item.answer if inputs.options and inputs.options[0] else None  # of spans and captions nothing is right
        about = {"id": item.id, "family": item.family}
        page = view(model, inputs, conditions, answer=answer, question=item.question, about=about, **how)
        page = _as_scored(page, rows[item.id])
        path = page.save(folder / view_file(item.id))
        said(f"{path}: {', '.join([item.question, *page.about['outcome']])}")
    if wrong and len(wrong) == len(chosen):
        raise wrong[0]
    return write_index(folder / VIEWS)


def _as_scored(page: View, rows: dict[str, Row]) -> View:
    """The page with the study's own outcomes, which other scorings than by letters may read otherwise."""
    right = {name: rows[name]["correct"] for name in page.conditions if name in rows}
    if len(right) < len(page.conditions) or None in right.values():
        return page
    return replace(page, about={**page.about, "outcome": outcomes(right)})


def _chosen(run: Manifest, rows: dict[str, dict[str, Row]], ids: Sequence[str]) -> list[Item]:
    items = {item.id: item for item in run.items if item.id in rows}  # an adaptive study asks not all
    if unknown := [i for i in ids if i not in items]:
        raise InputError(
            f"this study has no item {unknown[0]!r} ({nearest(unknown[0], list(items))}; {len(items)} asked)"
        )
    if ids:
        return [items[i] for i in dict.fromkeys(ids)]
    return varied([i for i in items.values() if rows[i.id]["baseline"]["status"] != "failed"])[:N_EXAMPLES]


def _inputs(run: Manifest, model: Model, item: Item, row: Row) -> Any:
    """What the study's own run of this item was given."""
    settings = dict(run.settings)
    plan = Plan(run.study, run.items, run.annotations, run.conditions, settings, run.convention)
    if "video" not in row["settings"]:
        raise DataError(f"the row of item {item.id!r} does not say what its video was; run the study again")
    sampling = (settings["n_frames"], settings["sampler"], item.bound, item.folder_fps)
    clip = ClipRequest(str(video_path(item, run.annotations)), *sampling, content=row["settings"]["video"]).read()
    task = Task(**{f.name: row[f.name] for f in fields(Task)})  # which says of what bytes its subtitles were
    return prepared(plan, model, item, task, clip)
