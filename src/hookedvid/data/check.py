"""What `hookedvid check-data` says of a dataset's folder."""

from collections import Counter
from collections.abc import Iterable, Iterator

from rich import box
from rich.table import Table

from hookedvid.data.dataset import Dataset, Entry
from hookedvid.data.item import Item

SHOWN = 3  # names given for each reason


def table(dataset: Dataset) -> Table:
    """Questions there, missing and left out, by the groups that the field reports, and in all."""
    subtitles = any(e.item.subtitles for e in dataset.entries)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("", no_wrap=True)
    for column in ("published", "questions", "videos", "there", "missing", "left out", "subtitles")[
        : 7 if subtitles else 6
    ]:
        grid.add_column(column, justify="right", no_wrap=True)
    total = 0
    for axis, groups in dataset.published.items():
        total = total or sum(groups.values())
        for group, n in groups.items() if axis else ():
            grid.add_row(group, *_counts([e for e in dataset.entries if _group(e.item, axis) == group], n, subtitles))
        if axis:
            grid.add_section()
    grid.add_row("all", *_counts(dataset.entries, total, subtitles))
    return grid


def reasons(dataset: Dataset) -> Iterator[str]:
    """Lines that say what is missing, what is left out and why, and what else is wrong."""
    missing: dict[str, Entry] = {e.item.video: e for e in dataset.entries if e.status == "missing"}
    if missing:
        n = len(dataset.missing)
        shown = "; ".join(e.reason for e in list(missing.values())[:SHOWN])
        yield f"missing: {len(missing)} videos of {n} questions, which will fail: {shown}{_more(missing)}"
    for reason, n in Counter(dataset.left_out.values()).items():
        yield f"left out: {n} questions: {reason}"
    yield from (f"note: {note}" for note in dataset.notes)


def _group(item: Item, axis: str) -> str:
    return item.family if axis == "task" else str(item.meta.get(axis, ""))


def _counts(entries: Iterable[Entry], published: int, subtitles: bool) -> list[str]:
    entries = list(entries)
    by = Counter(e.status for e in entries)
    numbers = [len(entries), len({e.item.video for e in entries}), *(by[s] for s in ("there", "missing", "left out"))]
    n_videos = len({e.item.video for e in entries if e.item.subtitles})
    return [str(published or ""), *map(str, numbers), *([str(n_videos)] if subtitles else [])]


def _more(found: dict) -> str:
    return f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
