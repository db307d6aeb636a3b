"""What the command line's verbs do and print."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hookedvid import converting, measured, plots, report
from hookedvid.checkpoint import home
from hookedvid.conversion.provenance import Provenance
from hookedvid.data.shapes import held_out
from hookedvid.errors import InterventionError, nearest
from hookedvid.interventions import Knockout, LayerRange
from hookedvid.model import HookedVideoLLM
from hookedvid.published import PUBLISHED, SHIPPED
from hookedvid.study import study as studies
from hookedvid.study.laws import Finding, findings
from hookedvid.study.manifest import Manifest
from hookedvid.study.measures import MEASURES
from hookedvid.study.records import Shard, frame
from hookedvid.study.running import Audit, run
from hookedvid.study.scoring import Scoring
from hookedvid.study.statistics import Interval
from hookedvid.study.study import KNOCKOUTS, Plan, Study
from hookedvid.study.summary import Outcomes, Summary, summarise, write_csv

# How each task of the shapes clips is scored, and which of them a study file asks that names no items.
SCORING_OF: dict[str, Scoring] = {
    "questions": "letters", "captions": "likelihood", "answers": "likelihood", "grounding": "grounding",
}  # fmt: skip
TASK_OF: dict[Scoring, str] = {"likelihood": "captions", "grounding": "grounding"}
MIN_WIDTH = 92  # columns the tables need; narrower terminals wrap


def run_study(
    file: Path | None,
    out: Path,
    limit: int | None,
    device: str | None,
    only: Sequence[str],
    model: str | None,
    shard: Shard,
    task: str | None = None,
) -> int:
    """`hookedvid study`: rows, table, plots and report; rows already in `out` are not run again.

    task: what is asked of the shapes clips, and with it the scoring. A shard prints the table only when all the
    others' rows are there.
    """
    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    study = Study.from_toml(file) if file else Study()
    study = replace(study, protocols=tuple(only) or study.protocols, model=model or study.model)
    if task is not None:
        study = replace(study, items="", scoring=SCORING_OF[task])
    net = HookedVideoLLM.from_pretrained(
        study.model, device=device, dtype=study.dtype, kernel=study.kernel, overrides=study.overrides
    )
    beside = file.parent if file else Path()
    annotations = (
        beside / study.items
        if study.items
        else held_out(out / "videos", task or TASK_OF.get(study.scoring, "questions"))
    )
    laid = studies.plan(study, net, annotations, limit)
    about = f"{studies.describe(laid.settings)}; {len(laid.items)} questions, {net.device}"
    console.print(about, highlight=False)
    try:
        audit = _run(laid, net, out, console, shard)
    except KeyboardInterrupt:
        console.print(f"stopped; every finished row is in {out}: run the same command to go on")
        return 130
    manifest = Manifest.of(laid, net.cfg.n_layers, about, audit)
    manifest.save(out)
    if shard.count > 1 and (left := manifest.missing(out)):
        console.print(f"shard {shard.index}/{shard.count} is done; {left} rows of other shards are missing in {out}")
        return 0
    _present(manifest, manifest.rows(out), out, console)
    return 0


def plot(out: Path) -> int:
    """`hookedvid plot`: table, plots and report of a finished run once more, from its rows alone."""
    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    manifest = Manifest.load(out)
    console.print(manifest.about, highlight=False)
    _present(manifest, manifest.rows(out), out, console)
    return 0


def _run(laid: Plan, net: HookedVideoLLM, out: Path, console: Console, shard: Shard) -> Audit:
    audit = Audit()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(
            f"{len(laid.items)} questions x {len(laid.conditions)} conditions", total=len(laid.tasks)
        )
        fresh = 0

        def step(row: dict, new: bool) -> None:
            nonlocal fresh
            fresh += new
            progress.advance(bar)

        rows = run(laid, net, out, step, shard, audit)
    different = len({row["key"] for row in rows})
    console.print(f"{fresh} rows run, {different - fresh} found in {out}", highlight=False, soft_wrap=True)
    what = "log-probabilities" if laid.study.scoring == "likelihood" else "logits"
    if audit.n:
        console.print(
            f"{audit.n} rows run again in full: {what} differ by {audit.largest:.1e} at most",
            highlight=False,
            soft_wrap=True,
        )
    return audit


def _present(run: Manifest, rows: Sequence[Mapping], out: Path, console: Console) -> None:
    if run.study.scoring in MEASURES:
        return measured.present(run, rows, out, console)
    outcomes = Outcomes(run.items, run.conditions, rows)
    summaries = summarise(outcomes, run.study.n_resamples, run.study.seed)
    tables: dict[str, list[Summary]] = {}
    for s in summaries:
        tables.setdefault(s.group, []).append(s)
    main = "video" if "video" in tables else "all"
    told = {g: findings(outcomes, g, run.n_layers, run.study.n_resamples, run.study.seed) for g in tables}
    console.print(condition_table(tables[main]))
    if len(tables) > 1:
        console.print(family_table(tables))
    for f in told[main]:
        console.print(f"[bold]{f.law}[/]: {f.sentence}", highlight=False)
    failures = list(dict.fromkeys(f"{r['item']}: {r['reason']}" for r in rows if r["status"] == "failed"))
    for reason in failures[:5]:
        console.print(f"failed: {reason}", style="red", highlight=False, markup=False)
    write_csv(summaries, out / "summary.csv")
    frame(rows).to_parquet(out / "rows.parquet")
    figures = draw(tables, main, run.n_layers, run.settings)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png")
    _write_report(run, rows, out, told, figures, tables, failures, main)
    console.print(f"[bold]{out / 'report.html'}[/]; also summary.csv, rows.parquet, {', '.join(figures)} as .png")


def draw(tables: Mapping[str, Sequence[Summary]], main: str, n_layers: int, settings: Mapping) -> dict:
    """The figures of the protocols that were run, by file name."""
    families = [s for g, group in tables.items() if g not in ("all", "video") or len(tables) == 1 for s in group]
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


def _write_report(
    run: Manifest, rows: Sequence[Mapping], out: Path, told: Mapping[str, Sequence[Finding]], figures: Mapping,
    tables: Mapping[str, Sequence[Summary]], failures: Sequence[str], main: str,
) -> None:  # fmt: skip
    shown = [c.label for c in run.conditions if c.protocol in ("baseline", "all layers")]
    examples = report.examples(run.items, run.annotations, rows, shown, run.settings)
    ordered = {main: tables[main], **{g: t for g, t in tables.items() if g != main}}
    page = report.render("Knockout study", run.about, told, list(figures.values()), ordered, failures, examples)
    (out / "report.html").write_text(page, encoding="utf-8")


def condition_table(summaries: Sequence[Summary]) -> Table:
    """Every condition of one group; layers counted from 1."""
    title = f"{summaries[0].group} questions; layers from 1; % [95 % interval]; * p < 0.05 (Holm)"
    table = _table(title)
    table.add_column("condition", no_wrap=True)
    for column in ("n", "lost", "accuracy", "ratio", "p(right)"):
        table.add_column(column, justify="right", no_wrap=True)
    last = ""
    for s in summaries:
        if s.condition.protocol != last:
            last = s.condition.protocol
            table.add_section()
        star = "*" if s.p_holm < 0.05 else " "
        lost = str(s.failed + s.unparsed or "")
        table.add_row(
            s.condition.label, str(s.n), lost, _short(s.accuracy) + star, _short(s.ratio), f"{s.prob.value:.3f}"
        )
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
            table.add_row(s.condition.label, *(f"{rows[i].accuracy.value * 100:.1f}" for rows in tables.values()))
    table.add_section()
    table.add_row("chance", *(f"{rows[0].chance * 100:.1f}" for rows in tables.values()))
    table.add_row("n", *(str(rows[0].n) for rows in tables.values()))
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_style="dim", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _short(i: Interval) -> str:
    return f"{i.value * 100:.1f} [{i.low * 100:.0f}, {i.high * 100:.0f}]"


def parse_knockout(text: str) -> Knockout:
    """`LV-K @ 4:8`, `video->question`, `cross-frame @ ~2:4`; layers 0-based and half-open, all if not given."""
    body, _, layers = (part.strip() for part in text.partition("@"))
    if body in KNOCKOUTS:
        knockout = KNOCKOUTS[body]
    elif "->" in body:
        src, dst = (s.strip() for s in body.split("->", 1))
        knockout = Knockout(src, dst)
    else:
        raise InterventionError(f"no knockout {body!r} ({nearest(body, KNOCKOUTS)}); or write source->destination")
    return knockout.at(LayerRange.parse(layers)) if layers else knockout


def ask(
    name: str, video: str, question: str, options: Sequence[str], knockouts: Sequence[str], n_frames: int | None,
    device: str | None, dtype: str | None, overrides: Mapping,
) -> int:  # fmt: skip
    """`hookedvid ask`: the answer, intact and under the knockouts."""
    console = Console()
    model = HookedVideoLLM.from_pretrained(name, device=device, dtype=dtype, overrides=overrides)
    cuts = [parse_knockout(k) for k in knockouts]
    inputs = model.prepare(video, question, options, n_frames=n_frames)
    console.print(str(inputs.layout), highlight=False, markup=False)
    for given in ([], cuts) if cuts else ([],):
        title = " + ".join(k.label() for k in given) or "intact"
        if options:
            answer = model.answer(inputs, given)
            said = f"{answer.letter}. {answer.text}  (p = {answer.prob:.3f})"
        else:
            said = model.generate(inputs, given)
        console.print(f"{title}: {said}", highlight=False, markup=False)
    return 0


def inspect(name: str, hooks: bool) -> int:
    """`hookedvid inspect`: config, sizes, hook points."""
    console = Console()
    model = HookedVideoLLM.from_pretrained(name)
    console.print(model.cfg.to_json(), highlight=False)
    console.print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(model.hook_dict)} hook points")
    if hooks:
        for point in model.hook_dict:
            console.print(point, highlight=False)
    return 0


def models() -> int:
    """`hookedvid models`: what `from_pretrained` knows by name."""
    console = Console()
    console.width = max(console.width, 134)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    words = ("name", "vision tower", "same as")
    numbers = ("frames", "tokens", "GB", "Video-MME", "MVBench", "EgoSchema")
    for column in (*words[:2], *numbers, words[2]):
        table.add_column(column, justify="left" if column in words else "right", no_wrap=column in words)
    for name, p in PUBLISHED.items():
        scores = ("–" if s is None else f"{s:g}" for s in p.scores)
        table.add_row(name, p.tower, str(p.frames), p.tokens, f"{p.size:g}", *scores, p.parity)
    console.print(table)
    console.print(
        "tokens: of one frame; + 1 ends the video; + text: markers around frames. Scores: percent as reported for "
        "the original code, Video-MME without subtitles, – where no figure is confirmed. same as: the code its family "
        "agrees with, stage by stage, on tiny weights.\n"
        f"Also: {', '.join(SHIPPED)}, which ships with the package; any hub repository (owner/name); a folder in the "
        f"original, the transformers or our layout. Converted once into {home()}.",
        highlight=False,
    )
    return 0


def convert(
    source: str, folder: Path, dtype: str | None, overrides: Mapping, ignore: Sequence[str], revision: str | None
) -> int:
    """`hookedvid convert`: a checkpoint into our layout."""
    console = Console()
    made = converting.convert(source, folder, dtype=dtype, overrides=overrides, ignore=ignore, revision=revision)
    origin = Provenance.load(made)
    size = sum(p.stat().st_size for p in made.iterdir())
    console.print(
        f"{made}: {len(origin.tensors)} tensors, {size / 1e9:.2f} GB, from {origin.source} ({origin.architecture})",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    return 0


def export(folder: Path, out: Path) -> int:
    """`hookedvid export`: a converted checkpoint back into its original layout."""
    console = Console()
    made = converting.export(folder, out)
    origin = Provenance.load(folder)
    same = "the files that were converted, byte for byte" if origin.dtype is None else f"weights as {origin.dtype}"
    console.print(f"{made}: {len(origin.files)} file(s), {same}", highlight=False, markup=False, soft_wrap=True)
    return 0
