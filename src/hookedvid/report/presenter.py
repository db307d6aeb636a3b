"""What a study prints and writes of its rows, whatever its scoring: tables, csv, findings, figures, one page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from hookedvid.report import adaptive, page, plots, words
from hookedvid.report.terminal import Terminal
from hookedvid.study.protocols import EFFICIENCY
from hookedvid.study.protocols.protocol import Reading, Sheet
from hookedvid.study.protocols.registry import REGISTRY
from hookedvid.study.records import write_parquet
from hookedvid.study.results import breakdown, efficiency, submission
from hookedvid.study.results.adaptive import write_csv as write_decisions
from hookedvid.study.results.cells import number, short, star
from hookedvid.study.results.findings import findings
from hookedvid.study.results.group import Group
from hookedvid.study.results.summary import Outcomes, Summary, summarise, write_csv
from hookedvid.study.run.manifest import Manifest
from hookedvid.study.scorings.generate import as_printed
from hookedvid.study.scorings.scoring import Scoring
from hookedvid.values.files import write_bytes, write_text
from hookedvid.values.progress import bar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a presentation writes, all of it or in part.
PRESENTED = (
    "report.html", "summary.csv", "breakdown.csv", "decisions.csv", "rows.parquet",
    *(f"{name}.{kind}" for name in (*plots.FIGURES, adaptive.FIGURE) for kind in plots.FORMATS),
)  # fmt: skip
MIN_WIDTH = 92  # columns the default study needs; narrower terminals wrap
MANY = 8  # groups that stand side by side; more of them stand below each other
MOST = 20  # values of an axis that are printed; of more, only the means, the rest is in breakdown.csv
STEADY = ("baseline", "all layers", "random control", "custom")  # protocols of what holds in every layer

Tables = Mapping[str, Sequence[Summary]]


def present(
    run: Manifest, rows: Sequence[Mapping], out: Path, console: Terminal, formats: Sequence[str] = ()
) -> None:  # fmt: skip
    """Print the tables and what they support; write csv, parquet, figures and the page.

    Args:
        run: What was asked.
        rows: Of it.
        out: The study's folder.
        console: Where tables and findings are printed.
        formats: Of figures' files besides png: pdf, svg.
    """
    write_parquet(rows, out / "rows.parquet")
    failures = list(dict.fromkeys(f"{r['item']}: {r['reason']}" for r in rows if r["status"] == "failed"))
    if run.study.adaptive:
        _present_adaptive(run, rows, failures, out, console, formats)
        return
    outcomes = Outcomes(run.items, run.conditions, rows, run.scoring)
    summaries = summarise(outcomes, run.study.n_resamples, run.study.seed)
    tables: dict[str, list[Summary]] = {}
    for s in summaries:
        tables.setdefault(s.group, []).append(s)
    main = "video" if "video" in tables else "all"
    write_csv(summaries, out / "summary.csv")
    console.widen(run.scoring.width)
    for table in _of_conditions(tables[main]):
        console.print(table)
    readings = _readings(run, outcomes, main)
    for reading in readings.values():
        console.print(sheet_table(reading.sheet))
    _print_failures(failures, console)
    scored = tables["all"][0].n > 0
    if scored and len(tables) > 1:
        print_groups(tables, console)
    if run.scoring.chooses:
        _present_parts(run, outcomes, out, console)
    _submit(run, rows, out, console)
    if scored:
        _conclude(run, rows, outcomes, tables, main, readings, failures, out, console, formats)
    else:  # every answer is hidden, or every row failed
        console.say(f"nothing to score; what was answered is in {out / 'rows.parquet'}")


def _conclude(
    run: Manifest, rows: Sequence[Mapping], outcomes: Outcomes, tables: Tables, main: str,
    readings: Mapping[str, Reading], failures: Sequence[str], out: Path, console: Terminal, formats: Sequence[str],
) -> None:  # fmt: skip
    """Findings, figures and the page."""
    sampling = (run.study.n_resamples, run.study.seed)
    laws = {g: findings(outcomes, g, run.n_layers, *sampling, run.study.keep) for g in tables}
    looked = [g for g in tables if any(f.law == efficiency.CHEAPEST for f in laws[g])]
    searches = {g: efficiency.search(outcomes, g, run.study.keep, *sampling) for g in looked}
    if run.scoring.note:
        console.say(run.scoring.note, style="dim")
    if len(searches) > 1:
        console.print(choice_table(searches))
    for f in laws[main]:
        console.say(f": {f.verdict}", lead=f.law)
    chosen = {g: s.choice.condition.label for g, s in searches.items() if s.choice}
    figures = _drawn(plots.draw(plots.Results(run, tables, main, chosen, readings)), out, formats)
    shown = [c.label for c in run.conditions if c.protocol in ("baseline", "all layers")]
    examples = page.examples(run.scoring, run.items, run.annotations, rows, shown, run.settings, out)
    ordered = {main: tables[main], **{g: t for g, t in tables.items() if g != main}}
    sheets = [reading.sheet for reading in readings.values()]
    first = words.opening(run, tables, laws[main], main)
    text = page.render("Knockout study", run.about, laws, figures, ordered, failures, examples, sheets, first)
    write_text(out / "report.html", text)
    console.say(f"; also summary.csv, rows.parquet, {page.pictures(figures, formats)}", lead=str(out / "report.html"))


def _present_adaptive(
    run: Manifest, rows: Sequence[Mapping], failures: Sequence[str], out: Path, console: Terminal,
    formats: Sequence[str],
) -> None:  # fmt: skip
    """Verdicts, what they rest on and every decision; nothing that holds only for a number of videos fixed before."""
    told = adaptive.Told(run, rows)
    write_decisions(told.course.decisions, out / "decisions.csv")
    write_decisions(told.last, out / "summary.csv")
    console.print(sheet_table(told.sheet))
    _print_failures(failures, console)
    console.say(told.stopped)
    for f in told.findings:
        console.say(f": {f.verdict}", lead=f.law)
    figures = _drawn({adaptive.FIGURE: told.figure()}, out, formats)
    seen = {row["item"] for row in rows}
    shown = [c.label for c in run.conditions[:1]]  # the one that all of them were asked under
    items = [item for item in told.course.items if item.id in seen]
    examples = page.examples(run.scoring, items, run.annotations, rows, shown, run.settings, out)
    text = page.render(
        "Adaptive knockout study", run.about, {told.course.group: told.findings}, figures, {}, failures, examples,
        [told.sheet], told.opening, run.scoring, adaptive.BRACKETS,
    )  # fmt: skip
    write_text(out / "report.html", text)
    files = f"; also decisions.csv, summary.csv, rows.parquet, {page.pictures(figures, formats)}"
    console.say(files, lead=str(out / "report.html"))


def _drawn(figures: Mapping[str, "Figure"], out: Path, formats: Sequence[str]) -> dict[str, bytes]:
    """Figures as png by their names, written in all formats; this takes as long as a small study."""
    drawn: dict[str, bytes] = {}
    with bar(len(figures), "drawing", "figures") as advance:
        for name, figure in figures.items():
            drawn[name] = plots.contents(figure)
            write_bytes(out / f"{name}.png", drawn[name])
            for kind in formats:  # png is the page's as well
                plots.save(figure, out / f"{name}.{kind}")
            advance(1)
    return drawn


def _print_failures(failures: Sequence[str], console: Terminal) -> None:
    for reason in failures[:5]:
        console.say(f"failed: {reason}", style="red")


def _of_conditions(summaries: Sequence[Summary]) -> Iterator[Table]:
    """The tables of one group: every condition, and what exits and windows cost."""
    scoring, ran = summaries[0].scoring, {s.condition.protocol for s in summaries}
    if ran - {"baseline", *REGISTRY, *((EFFICIENCY,) if scoring.chooses else ())} or ran == {"baseline"}:
        yield condition_table(summaries)
    if scoring.chooses and EFFICIENCY in ran:
        yield cost_table(summaries)


def condition_table(summaries: Sequence[Summary]) -> Table:
    """Every condition of one group but for those of protocols that have a table of their own; layers from 1."""
    scoring, baseline = summaries[0].scoring, summaries[0]
    title = f"{baseline.group} questions; layers from 1; {scoring.interval}; * p < 0.05 (Holm)"
    apart = {*REGISTRY, *((EFFICIENCY,) if scoring.exits_apart else ())}
    lines = [s for s in summaries if s.condition.protocol not in apart]
    columns = [c for c in scoring.columns if not c.optional or any(c.cell(s) for s in lines)]
    title = "\n".join(line for line in (title, scoring.subtitle) if line)
    table, last = _table(title, "condition", *(c.name for c in columns)), ""
    for s in lines:
        if s.condition.protocol != last:
            last = s.condition.protocol
            table.add_section()
        table.add_row(s.condition.label, *(c.cell(s) for c in columns))
    if any(c.level for c in columns):
        table.add_section()
        table.add_row(scoring.level_name, *(c.level(baseline) if c.level else "" for c in columns))
    return table


def cost_table(summaries: Sequence[Summary]) -> Table:
    """Exits and windows of one group that no other beats at its cost, cheapest first, and the baseline."""
    tried = [s for s in summaries if s.condition.protocol == EFFICIENCY]
    best = efficiency.front([s.decoder_share for s in tried], [s.score.value for s in tried])
    title = f"% of operations left: {len(best)} of {len(tried)} exits and windows, which no other beats"
    table = _table(title, "condition", "decoder", "attention", "accuracy", "ratio")
    for s in (*(tried[i] for i in best), summaries[0]):
        shares = (number(100 * share) for share in (s.decoder_share, s.attention_share))
        table.add_row(s.condition.label, *shares, short(s.score) + star(s.p_holm), number(100 * s.kept.value))
    return table


def _readings(run: Manifest, outcomes: Outcomes, main: str) -> dict[str, Reading]:
    """What the protocols with tables of their own say of one group, by their names."""
    ran = {c.protocol for c in run.conditions}
    group = Group(outcomes, main, run.n_layers, run.study.n_resamples, run.study.seed, run.study.keep)
    readings = {name: protocol.read(group) for name, protocol in REGISTRY.items() if name in ran}
    return {name: reading for name, reading in readings.items() if reading is not None}


def sheet_table(sheet: Sheet) -> Table:
    """A protocol's table."""
    table = _table(sheet.title, *sheet.columns)
    for row in sheet.rows:
        table.add_row(*row)
    return table


def choice_table(searches: Mapping[str, efficiency.Search]) -> Table:
    """The cheapest exit and window of each group, and what it keeps on the videos it was not chosen on."""
    title = "cheapest by group; % of operations left, and of accuracy kept on other videos"
    table = _table(title, "group", "condition", "decoder", "attention", "kept", n_left=2)
    for group, search in searches.items():
        if (c := search.choice) is None:
            table.add_row(group, "none keeps enough")
            continue
        shares = (number(100 * share) for share in (c.decoder_share, c.attention_share))
        table.add_row(group, c.condition.label, *shares, short(c.held_out))
    return table


def print_groups(tables: Tables, console: Terminal) -> None:
    """Groups side by side, or a line that says where they are."""
    if len(tables) <= MANY:
        console.print(group_table(tables))
    else:
        console.say(f"{len(tables)} groups are too many to stand side by side; summary.csv and report.html have each")


def group_table(tables: Tables) -> Table:
    """The score of each group under the conditions that hold in every layer."""
    scoring, baselines = tables["all"][0].scoring, [rows[0] for rows in tables.values()]
    table = _table(f"{scoring.title} by group, {scoring.unit}", "condition", *tables)
    for i, s in enumerate(tables["all"]):
        if s.condition.protocol in STEADY:
            table.add_row(s.condition.label, *(scoring.brief(rows[i].score.value) for rows in tables.values()))
    table.add_section()
    if scoring.level_name:
        table.add_row(scoring.level_name, *(scoring.brief(s.level) for s in baselines))
    table.add_row("n", *(str(s.n) for s in baselines))
    return table


def _present_parts(run: Manifest, outcomes: Outcomes, out: Path, console: Terminal) -> None:
    """Accuracy by what the items say of themselves."""
    parts = breakdown.breakdown(outcomes, run.study.n_resamples, run.study.seed)
    if parts:
        breakdown.write_csv(parts, out / "breakdown.csv")
    if any(p.n for p in parts):
        for table in breakdown_tables(parts, run.scoring):
            console.print(table)


def breakdown_tables(parts: Sequence[breakdown.Part], scoring: Scoring) -> list[Table]:
    """One table an axis, of the conditions that hold in every layer; of many values only the means."""
    by = scoring.convention if scoring.printed else None
    parts = [p for p in parts if p.condition.protocol in STEADY]
    if len({p.value for p in parts if p.axis == "family"}) <= MANY:  # the study's own table has them
        parts = [p for p in parts if p.axis != "family"]
    labels = list(dict.fromkeys(p.condition.label for p in parts))
    tables = []
    for axis in dict.fromkeys(p.axis for p in parts):
        title = f"accuracy by {axis}, %" + (f" (as {by.name} prints it)" if by else "")
        table = _table(title, axis, "n", "chance", *labels, wrap=True)
        rows: dict[str, list[breakdown.Part]] = {}
        for p in parts:
            if p.axis == axis:
                rows.setdefault(p.value, []).append(p)
        for value, row in rows.items():
            if value == "micro":
                table.add_section()
            if value in ("micro", "macro") or len(rows) <= MOST + 2:
                printed = (f" ({as_printed(p.as_printed.value, by)})" if by else "" for p in row)
                cells = (scoring.brief(p.accuracy.value) + said for p, said in zip(row, printed, strict=True))
                table.add_row(value, str(row[0].n), scoring.brief(row[0].chance), *cells)
        tables.append(table)
    return tables


def _submit(run: Manifest, rows: Sequence[Mapping], out: Path, console: Terminal) -> None:
    """The file for the evaluation server, where answers are hidden that it knows."""
    form = submission.form_of(run.items, run.dataset)
    if form and not all(run.scoring.scored(item) for item in run.items):
        answers = submission.submission(form, run.items, rows, "baseline", run.convention)
        path = submission.write(form, answers, out)
        console.say(f"baseline's answers for the evaluation server: {path}")


def _table(title: str, *columns: str, n_left: int = 1, wrap: bool = False) -> Table:
    """An empty one. All but the first `n_left` columns hold numbers, which stay whole where it is narrow.

    Args:
        title: Above it.
        columns: Their heads.
        n_left: How many of them hold words, which wrap.
        wrap: Whether the heads of numbers wrap instead.
    """
    table = Table(title=title, title_style="dim", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        left = i < n_left
        table.add_column(column, justify="left" if left else "right", no_wrap=left == wrap)
    return table
