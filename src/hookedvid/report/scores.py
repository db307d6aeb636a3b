"""What generated answers came to: tables of parsed, empty and garbled texts, rescoring, submissions."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from hookedvid.data.registry import DATASETS
from hookedvid.errors import DataError
from hookedvid.report.page import number, short, star
from hookedvid.report.terminal import Terminal
from hookedvid.study.conventions import NAMES, Convention, convention
from hookedvid.study.extractors import extractor
from hookedvid.study.records import Records, write_parquet
from hookedvid.study.results import breakdown, rescoring, submission
from hookedvid.study.results.file_names import own_folder
from hookedvid.study.results.summary import Outcomes, Summary, summarise, write_csv
from hookedvid.study.run.manifest import Manifest

MIN_WIDTH = 116  # columns the tables need; narrower terminals wrap
MANY = 8  # groups that stand side by side; more of them stand below each other
MOST = 20  # values of an axis that are printed; of more, only the means, the rest is in breakdown.csv


def text_table(summaries: Sequence[Summary], by: Convention | None) -> Table:
    """One group's score under every condition, however unparsed answers count, and how the texts read."""
    title = f"{summaries[0].group} questions; layers from 1; % [95 % interval], unparsed wrong; * p < 0.05 (Holm)"
    table = _table(title + (f"\nas printed: the way of {by.full_name}" if by else ""))
    table.add_column("condition", no_wrap=True)
    columns = ("n", "failed", "parsed", "empty", "garbled", "accuracy", "of parsed", "ratio")
    for column in (*columns, "as printed") if by else columns:
        table.add_column(column, justify="right", min_width=max(map(len, column.split())), no_wrap=column == "accuracy")
    last = ""
    for s in summaries:
        if s.condition.protocol != last:
            last = s.condition.protocol
            table.add_section()
        failed, empty, degenerate = (str(n or "") for n in (s.failed, s.empty, s.degenerate))
        shown = [short(s.accuracy) + star(s.p_holm), _percent(s.of_parsed.value), _percent(s.ratio.value)]
        table.add_row(
            s.condition.label, str(s.n), failed, _percent(s.parsed), empty, degenerate, *shown,
            *([_printed(s.as_printed.value, by)] if by else []),
        )  # fmt: skip
    return table


def breakdown_tables(parts: Sequence[breakdown.Part], by: Convention | None) -> list[Table]:
    """One table an axis, of the conditions that hold in every layer; of many values only the means."""
    shown = ("baseline", "all layers", "random control", "custom")
    parts = [p for p in parts if p.condition.protocol in shown]
    if len({p.value for p in parts if p.axis == "family"}) <= MANY:  # the study's own table has them
        parts = [p for p in parts if p.axis != "family"]
    labels = list(dict.fromkeys(p.condition.label for p in parts))
    tables = []
    for axis in dict.fromkeys(p.axis for p in parts):
        table = _table(f"accuracy by {axis}, %" + (f" (as {by.name} prints it)" if by else ""))
        table.add_column(axis, no_wrap=True)
        for column in ("n", "chance", *labels):
            table.add_column(column, justify="right")
        rows: dict[str, list[breakdown.Part]] = {}
        for p in parts:
            if p.axis == axis:
                rows.setdefault(p.value, []).append(p)
        for value, row in rows.items():
            if value == "micro":
                table.add_section()
            if value in ("micro", "macro") or len(rows) <= MOST + 2:
                cells = (_both(p, by) for p in row)
                table.add_row(value, str(row[0].n), _percent(row[0].chance), *cells)
        tables.append(table)
    return tables


def present(run: Manifest, rows: Sequence[Mapping], outcomes: Outcomes, out: Path, console: Terminal) -> None:
    """What a study prints and writes of its groups, and its submission where one is wanted."""
    parts = breakdown.breakdown(outcomes, run.study.n_resamples, run.study.seed)
    if parts:
        breakdown.write_csv(parts, out / "breakdown.csv")
    if any(p.n for p in parts):
        for table in breakdown_tables(parts, run.convention):
            console.print(table)
    form = submission.form_of(run.items, run.dataset)
    if form and any(item.answer is None for item in run.items):
        answers = submission.submission(form, run.items, rows, "baseline", run.convention)
        path = submission.write(form, answers, out)
        console.say(f"baseline's answers for the evaluation server: {path}")


def rescore(out: Path, name: str) -> int:
    """`hookedvid rescore`: a finished study's texts by another rule, without model or videos."""
    console = Terminal(MIN_WIDTH)
    run, records = Manifest.load(out), Records(out)
    rows = run.rows(records)
    by = convention(name, run.items, run.dataset) if name in NAMES else extractor(name)
    found = rescoring.rescore(run.items, rows, by)
    console.say(run.about)
    if records.damaged:
        console.say(records.damaged)
    now = by if isinstance(by, Convention) else None
    full = by.full_name if isinstance(by, Convention) else by.name
    for title, read, as_by in (("stored", rows, run.convention), (full, found.rows, now)):
        outcomes = Outcomes(run.items, run.conditions, read, as_by)
        summaries = summarise(outcomes, run.study.n_resamples, run.study.seed)
        console.say("", lead=title)
        console.print(text_table([s for s in summaries if s.group == "all"], as_by))
    console.say(f"{found.changed} of {found.n} answers read otherwise")
    folder = own_folder(out / "rescored")
    stem = full.replace("/", "-")
    write_parquet(found.rows, folder / f"{stem}.parquet")
    write_csv(summaries, folder / f"{stem}.csv")
    console.say("; also .csv; the stored rows are as they were", lead=f"{folder / stem}.parquet")
    return 0


def submit(out: Path, condition: str) -> int:
    """`hookedvid submission`: the file that a dataset's evaluation server takes, of a finished study."""
    run = Manifest.load(out)
    form = submission.form_of(run.items, run.dataset)
    if form is None:
        known = " or ".join(d.title for d in DATASETS.values() if d.submission)
        raise DataError(f"{out} is no study of {known} but of {run.dataset or 'other items'}; no server takes it")
    answers = submission.submission(form, run.items, run.rows(out), condition, run.convention)
    path = submission.write(form, answers, out)
    left = sum(option == form.unknown for option in answers.values())
    Terminal().say(f"{path}: {len(answers)} clips, {left} without an answer ({form.unknown}), under {condition!r}")
    return 0


def _both(part: breakdown.Part, by: Convention | None) -> str:
    ours = _percent(part.accuracy.value)
    return f"{ours} ({_printed(part.as_printed.value, by)})" if by else ours


def _printed(value: float, by: Convention) -> str:
    return "–" if math.isnan(value) else by.printed(value)


def _percent(value: float) -> str:
    return number(100 * value)


def _table(title: str) -> Table:
    return Table(title=title, title_style="dim", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
