"""Table, figures and report of a study that scores something else than accuracy."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from hookedvid.report import page as report
from hookedvid.report import plots
from hookedvid.report.page import number, short, star
from hookedvid.report.terminal import Terminal
from hookedvid.study import definition as studies
from hookedvid.study.records import write_parquet
from hookedvid.study.results import efficiency
from hookedvid.study.results.measures import MEASURES, Measure, Measured, Values, findings, summarise, write_csv
from hookedvid.study.results.summary import OURS
from hookedvid.study.run.manifest import Manifest
from hookedvid.study.scorings.grounding import THRESHOLDS
from hookedvid.values.files import write_text, written

MIN_WIDTH = 98  # columns the tables need
COSTS_WIDTH = 30  # and those of what exits and windows cost
Columns = Mapping[str, Callable[[Measured], str]]


def present(run: Manifest, rows: Sequence[Mapping], out: Path, console: Terminal) -> None:
    """Print the table and what it supports; write csv, parquet, figures and the report."""
    measure, asked = MEASURES[run.study.scoring], (run.study.n_resamples, run.study.seed)
    values = Values(measure, run.items, run.conditions, rows)
    tables: dict[str, list[Measured]] = {}
    for line in summarise(values, *asked):
        tables.setdefault(line.group, []).append(line)
    main = "video" if "video" in tables else "all"
    tables = {main: tables[main], **{g: t for g, t in tables.items() if g != main}}
    told = {g: findings(values, g, run.n_layers, *asked) for g in tables}
    columns = columns_of(run.study.scoring)
    searched = any(c.protocol == efficiency.PROTOCOL for c in run.conditions)
    console.widen(MIN_WIDTH + COSTS_WIDTH * searched)
    console.print(condition_table(tables[main], measure, columns))
    if len(tables) > 1:
        console.print(group_table(tables, measure))
    console.say(measure.note, style="dim")
    for f in told[main]:
        console.say(f": {f.verdict}", lead=f.law)
    failures = list(dict.fromkeys(f"{r['item']}: {r['reason']}" for r in rows if r["status"] == "failed"))
    for reason in failures[:5]:
        console.say(f"failed: {reason}", style="red")
    write_csv([line for lines in tables.values() for line in lines], out / "summary.csv")
    write_parquet(rows, out / "rows.parquet")
    figures = draw(tables, main, run, measure)
    for name, figure in figures.items():
        with written(out / f"{name}.png") as part:
            figure.savefig(part)
    shown = [c.label for c in run.conditions if c.protocol in ("baseline", "all layers")]
    examples = report.examples(run.items, run.annotations, rows, shown, run.settings)
    page = report.render(
        "Knockout study", run.about, told, list(figures.values()), tables, failures, examples, columns, measure.note
    )
    write_text(out / "report.html", page)
    console.say(f"; also summary.csv, rows.parquet, {report.pictures(figures)}", lead=str(out / "report.html"))


def columns_of(scoring: str) -> Columns:
    """What the table shows of a line, by column."""
    shared: dict[str, Callable[[Measured], str]] = {
        "n": lambda m: str(m.n), "lost": lambda m: str(m.failed + m.unparsed or ""),
    }  # fmt: skip
    # What exits and windows cost, which are tried for that.
    costs: dict[str, Callable[[Measured], str]] = {
        part: lambda m, part=part: _cost(m, f"{part}_share") for part in ("decoder", "attention")
    }
    if scoring == "likelihood":
        return {
            **shared,
            "log p/token": lambda m: short(m.score, 1),
            "change": lambda m: short(m.change, 1) + star(m.p_holm),
            "perplexity": lambda m: number(_exp(-m.score.value), 2),
            "log p": lambda m: number(m.means["total"].value) if "total" in m.means else "",
            **costs,
        }
    recalls = {f"R@{t}": lambda m, t=t: _percent(m, f"recall_{t}") for t in THRESHOLDS}
    return {
        **shared,
        "mIoU": lambda m: short(m.score),
        "change": lambda m: short(m.change) + star(m.p_holm),
        **recalls,
        "parsed": lambda m: _percent(m, "iou_parsed") if m.unparsed else "",
        **costs,
    }


def condition_table(lines: Sequence[Measured], measure: Measure, columns: Columns) -> Table:
    """Every condition of one group, columns that are empty throughout left out; layers counted from 1."""
    columns = {name: cell for name, cell in columns.items() if any(cell(m) for m in lines)}
    unit = "%" if measure.bounded else measure.unit
    table = _table(f"{lines[0].group} questions; layers from 1; {unit} [95 % interval]; * p < 0.05 (Holm)")
    table.add_column("condition", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    last = ""
    for m in lines:
        if m.condition.protocol != last:
            last = m.condition.protocol
            table.add_section()
        table.add_row(m.condition.label, *(cell(m) for cell in columns.values()))
    if measure.level_name:
        table.add_section()
        known = "not known" if math.isnan(lines[0].level) else number(100 * lines[0].level)
        table.add_row(measure.level_name, *(known if name == "mIoU" else "" for name in columns))
    return table


def group_table(tables: Mapping[str, Sequence[Measured]], measure: Measure) -> Table:
    """The score of each group under the conditions that hold in every layer."""
    table = _table(f"{measure.title} by group, {measure.unit}")
    table.add_column("condition", no_wrap=True)
    for group in tables:
        table.add_column(group, justify="right", no_wrap=True)
    wanted = ("baseline", "all layers", "random control", "custom")
    for i, m in enumerate(tables["all"]):
        if m.condition.protocol in wanted:
            table.add_row(m.condition.label, *(number(lines[i].score.value, 3) for lines in tables.values()))
    table.add_section()
    if measure.level_name:
        table.add_row(measure.level_name, *(number(lines[0].level, 3) for lines in tables.values()))
    table.add_row("n", *(str(lines[0].n) for lines in tables.values()))
    return table


def draw(tables: Mapping[str, Sequence[Measured]], main: str, run: Manifest, measure: Measure) -> dict:
    """The figures of the protocols that were run, by file name."""
    families = [m for g, lines in tables.items() if g not in OURS or len(tables) == 1 for m in lines]
    ran, scale = {m.condition.protocol for m in families}, plots.scale_of(measure)
    about = studies.brief(run.settings, sum(m.n for m in families if m.condition.protocol == "baseline"))
    found = {}
    if "cumulative" in ran:
        found["cumulative"] = plots.layer_curve(families, run.n_layers, about, scale)
    if "all layers" in ran:
        found["all-layers"] = plots.all_layers(families, about, scale)
    if "windows" in ran:
        found["windows"] = plots.window_curves(tables[main], studies.brief(run.settings, tables[main][0].n), scale)
        first = next(m.condition.knockout for m in families if m.condition.protocol == "windows")
        found["windows-by-family"] = plots.window_heatmap(families, first, about, scale)
    return found


def _percent(m: Measured, name: str) -> str:
    return number(100 * m.means[name].value) if name in m.means else ""


def _cost(m: Measured, share: str) -> str:
    return number(100 * getattr(m, share)) if m.condition.protocol == efficiency.PROTOCOL else ""


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _table(title: str) -> Table:
    return Table(title=title, title_style="dim", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
