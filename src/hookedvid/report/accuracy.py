"""Tables, figures and report of a study that scores accuracy."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from hookedvid.report import page as report
from hookedvid.report import plots, scores
from hookedvid.report.page import number, short, star
from hookedvid.report.terminal import Terminal
from hookedvid.study import definition as studies
from hookedvid.study.records import write_parquet
from hookedvid.study.results import efficiency
from hookedvid.study.results.findings import CHEAPEST, Finding, findings
from hookedvid.study.results.summary import OURS, Outcomes, Summary, summarise, write_csv
from hookedvid.study.run.manifest import Manifest
from hookedvid.values.files import write_text, written

MIN_WIDTH = 92  # columns the tables need; narrower terminals wrap


def present(run: Manifest, rows: Sequence[Mapping], out: Path, console: Terminal) -> None:
    """Print the tables and what they support; write csv, parquet, figures and the report."""
    outcomes = Outcomes(run.items, run.conditions, rows, run.convention)
    summaries = summarise(outcomes, run.study.n_resamples, run.study.seed)
    tables: dict[str, list[Summary]] = {}
    for s in summaries:
        tables.setdefault(s.group, []).append(s)
    main = "video" if "video" in tables else "all"
    protocols = {c.protocol for c in run.conditions}
    write_csv(summaries, out / "summary.csv")
    write_parquet(rows, out / "rows.parquet")
    generated = run.settings["scoring"] == "generate"
    console.widen(scores.MIN_WIDTH if generated else MIN_WIDTH)
    if protocols != {"baseline", efficiency.PROTOCOL}:
        shown = scores.text_table(tables[main], run.convention) if generated else condition_table(tables[main])
        console.print(shown)
    if efficiency.PROTOCOL in protocols:
        console.print(cost_table(tables[main]))
    failures = list(dict.fromkeys(f"{r['item']}: {r['reason']}" for r in rows if r["status"] == "failed"))
    for reason in failures[:5]:
        console.say(f"failed: {reason}", style="red")
    scored = tables["all"][0].n > 0
    if scored and 1 < len(tables) <= scores.MANY:
        console.print(family_table(tables))
    scores.present(run, rows, outcomes, out, console)
    if not scored:  # every answer is hidden, or every row failed
        console.say(f"nothing to score; what was answered is in {out / 'rows.parquet'}")
        return
    asked = (run.study.n_resamples, run.study.seed, run.study.keep)
    told = {g: findings(outcomes, g, run.n_layers, *asked) for g in tables}
    looked = [g for g in tables if any(f.law == CHEAPEST for f in told[g])]
    searches = {g: efficiency.search(outcomes, g, run.study.keep, *asked[:2]) for g in looked}
    if len(searches) > 1:
        console.print(choice_table(searches))
    for f in told[main]:
        console.say(f": {f.verdict}", lead=f.law)
    figures = draw(tables, main, run.n_layers, run.settings)
    if efficiency.PROTOCOL in protocols:
        chosen = {g: s.choice.condition.label for g, s in searches.items() if s.choice}
        figures |= draw_pareto(tables, main, chosen, run)
    for name, figure in figures.items():
        with written(out / f"{name}.png") as part:
            figure.savefig(part)
    _write_report(run, rows, out, told, figures, tables, failures, main)
    console.say(f"; also summary.csv, rows.parquet, {report.pictures(figures)}", lead=str(out / "report.html"))


def draw(tables: Mapping[str, Sequence[Summary]], main: str, n_layers: int, settings: Mapping) -> dict:
    """The figures of the protocols that were run, by file name."""
    families = [s for g, group in tables.items() if g not in OURS or len(tables) == 1 for s in group]
    families = families or list(tables["all"])
    ran = {s.condition.protocol for s in families}
    about = studies.brief(settings, sum(s.n for s in families if s.condition.protocol == "baseline"))
    found = {}
    if "cumulative" in ran:
        found["cumulative"] = plots.layer_curve(families, n_layers, about)
    if "all layers" in ran:
        found["all-layers"] = plots.all_layers(families, about)
    if "windows" in ran:
        found["windows"] = plots.window_curves(tables[main], studies.brief(settings, tables[main][0].n))
        first = next(s.condition.knockout for s in families if s.condition.protocol == "windows")
        found["windows-by-family"] = plots.window_heatmap(families, first, about)
    return found


def draw_pareto(tables: Mapping[str, Sequence[Summary]], main: str, chosen: Mapping[str, str], run: Manifest) -> dict:
    """The figures of the search for cheaper inference, by file name; chosen: labels by group."""
    about = studies.brief(run.settings, tables[main][0].n)
    figures = {"pareto": plots.pareto(tables[main], run.study.keep, chosen.get(main, ""), about)}
    if len(tables) > 1:
        families = [s for g, group in tables.items() if g not in OURS for s in group]
        about = studies.brief(run.settings, sum(s.n for s in families if s.condition.protocol == "baseline"))
        figures["pareto-by-family"] = plots.pareto_by_group(families, chosen, about)
    return figures


def _write_report(
    run: Manifest, rows: Sequence[Mapping], out: Path, told: Mapping[str, Sequence[Finding]], figures: Mapping,
    tables: Mapping[str, Sequence[Summary]], failures: Sequence[str], main: str,
) -> None:  # fmt: skip
    shown = [c.label for c in run.conditions if c.protocol in ("baseline", "all layers")]
    examples = report.examples(run.items, run.annotations, rows, shown, run.settings)
    ordered = {main: tables[main], **{g: t for g, t in tables.items() if g != main}}
    page = report.render("Knockout study", run.about, told, list(figures.values()), ordered, failures, examples)
    write_text(out / "report.html", page)


def condition_table(summaries: Sequence[Summary]) -> Table:
    """Every condition of one group but exits and windows, which have `cost_table`; layers counted from 1."""
    title = f"{summaries[0].group} questions; layers from 1; % [95 % interval]; * p < 0.05 (Holm)"
    table = _table(title)
    table.add_column("condition", no_wrap=True)
    for column in ("n", "lost", "accuracy", "ratio", "p(right)"):
        table.add_column(column, justify="right", no_wrap=True)
    last = ""
    for s in summaries:
        if s.condition.protocol == efficiency.PROTOCOL:
            continue
        if s.condition.protocol != last:
            last = s.condition.protocol
            table.add_section()
        lost = str(s.failed + s.unparsed or "")
        table.add_row(
            s.condition.label,
            str(s.n),
            lost,
            short(s.accuracy) + star(s.p_holm),
            short(s.ratio),
            number(s.prob.value, 3),
        )
    return table


def cost_table(summaries: Sequence[Summary]) -> Table:
    """Exits and windows of one group that no other beats at its cost, cheapest first, and the intact model."""
    tried = [s for s in summaries if s.condition.protocol == efficiency.PROTOCOL]
    best = efficiency.front([s.decoder_share for s in tried], [s.accuracy.value for s in tried])
    table = _table(f"% of operations left: {len(best)} of {len(tried)} exits and windows, which no other beats")
    table.add_column("condition", no_wrap=True)
    for column in ("decoder", "attention", "accuracy", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)
    for s in (*(tried[i] for i in best), summaries[0]):
        shares = (number(100 * share) for share in (s.decoder_share, s.attention_share))
        table.add_row(s.condition.label, *shares, short(s.accuracy) + star(s.p_holm), number(100 * s.ratio.value))
    return table


def choice_table(searches: Mapping[str, efficiency.Search]) -> Table:
    """The cheapest exit and window of each group, and what it keeps on the videos it was not chosen on."""
    table = _table("cheapest by group; % of operations left, and of accuracy kept on other videos")
    table.add_column("group", no_wrap=True)
    table.add_column("condition", no_wrap=True)
    for column in ("decoder", "attention", "kept"):
        table.add_column(column, justify="right", no_wrap=True)
    for group, found in searches.items():
        if (c := found.choice) is None:
            table.add_row(group, "none keeps enough")
            continue
        shares = (number(100 * share) for share in (c.decoder_share, c.attention_share))
        table.add_row(group, c.condition.label, *shares, short(c.held_out))
    return table


def family_table(tables: Mapping[str, Sequence[Summary]]) -> Table:
    """Accuracy of each group under the conditions that hold in every layer."""
    table = _table("accuracy by group, %")
    table.add_column("condition", no_wrap=True)
    for group in tables:
        table.add_column(group, justify="right", no_wrap=True)
    wanted = ("baseline", "all layers", "random control", "custom")
    for i, s in enumerate(tables["all"]):
        if s.condition.protocol in wanted:
            table.add_row(s.condition.label, *(number(100 * rows[i].accuracy.value) for rows in tables.values()))
    table.add_section()
    table.add_row("chance", *(number(100 * rows[0].chance) for rows in tables.values()))
    table.add_row("n", *(str(rows[0].n) for rows in tables.values()))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_style="dim", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
