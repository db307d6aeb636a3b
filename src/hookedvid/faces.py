"""What the command line's verbs do and print."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from hookedvid import converting, plots, report, scores
from hookedvid.checkpoint import home
from hookedvid.conversion.provenance import Provenance
from hookedvid.data.check import reasons, table
from hookedvid.data.dataset import Dataset, read_dataset
from hookedvid.data.shapes import held_out
from hookedvid.errors import ConfigError
from hookedvid.model import HookedVideoLLM
from hookedvid.progress import conduct
from hookedvid.published import PUBLISHED, SHIPPED
from hookedvid.study import efficiency
from hookedvid.study import study as studies
from hookedvid.study.estimate import estimate
from hookedvid.study.execution import Execution
from hookedvid.study.laws import CHEAPEST, Finding, findings
from hookedvid.study.manifest import Manifest
from hookedvid.study.records import frame
from hookedvid.study.statistics import Interval
from hookedvid.study.study import Study, parse_knockout
from hookedvid.study.summary import Outcomes, Summary, summarise, write_csv

MIN_WIDTH = 92  # columns the tables need; narrower terminals wrap


def run_study(
    file: Path | None,
    out: Path,
    limit: int | None,
    device: str | None,
    only: Sequence[str],
    model_name: str | None,
    plan_only: bool = False,
    data: tuple[str | None, Path | None] = (None, None),
    how: Execution | None = None,
) -> int:
    """`hookedvid study`: rows, table, plots and report; rows already in `out` are not run again.

    data: a dataset's name and folder, over the file's. On a cluster the device is that of its actors; here the model
    is loaded on the CPU, for its hash. A shard prints the table once all the others' rows are there.
    """
    how, console = how or Execution(), Console()
    console.width = max(console.width, MIN_WIDTH)
    study = Study.from_toml(file) if file else Study()
    study = replace(study, protocols=tuple(only) or study.protocols, model=model_name or study.model)
    beside = file.parent if file else Path()
    dataset = _dataset(study, beside, *data, console)
    if dataset is not None:
        study = replace(study, items="", dataset=dataset.name, data=str(dataset.folder))
    loading = {"name_or_path": study.model, "dtype": study.dtype, "kernel": study.kernel, "overrides": study.overrides}
    net = HookedVideoLLM.from_pretrained(**loading, device=None if how.ray else device)
    if dataset is not None:
        annotations, items, left_out = dataset.folder, dataset.items, dataset.left_out
    else:
        annotations, items, left_out = beside / study.items if study.items else held_out(out / "videos"), None, None
    device_type = torch.device(device or "cpu").type
    laid = studies.plan(study, net, annotations, limit, items, left_out, device_type)
    where = f"{laid.settings['device']} on Ray" if how.ray else net.device
    about = f"{studies.describe(laid.settings)}; {len(laid.items)} questions, {where}"
    console.print(about, highlight=False)
    console.print(str(estimate(laid, net, out)), highlight=False, markup=False, soft_wrap=True)
    if plan_only:
        return 0
    n_layers, model = net.cfg.n_layers, {**loading, "device": device} if how.ray else net
    del net  # the actors have their own
    try:
        audit, timing = conduct(laid, model, out, how, console)
    except KeyboardInterrupt:
        console.print(f"stopped; every finished row is in {out}: run the same command to go on")
        return 130
    manifest = Manifest.of(laid, n_layers, about, audit, timing)
    manifest.save(out)
    if how.shard.count > 1 and (left := manifest.missing(out)):
        console.print(
            f"shard {how.shard.index}/{how.shard.count} is done; {left} rows of other shards are missing in {out}"
        )
        return 0
    _present(manifest, manifest.rows(out), out, console)
    return 0


def _dataset(study: Study, beside: Path, name: str | None, folder: Path | None, console: Console) -> Dataset | None:
    """The published dataset that a study asks, if it does; says what of it cannot be asked."""
    name, folder = name or study.dataset, folder or (beside / study.data if study.data else None)
    if not name and folder is None:
        return None
    if not name or folder is None:
        raise ConfigError("a dataset needs its name and its folder: --dataset mvbench --data DIR, or both in the file")
    dataset = read_dataset(name, folder)
    for line in reasons(dataset):
        console.print(line, style="yellow", highlight=False, markup=False)
    return dataset


def check_data(name: str, folder: Path) -> int:
    """`hookedvid check-data`: what a folder holds of a dataset; status 1 unless all that can be asked is there."""
    console = Console()
    console.width = max(console.width, 110)
    dataset = read_dataset(name, folder)
    console.print(f"{dataset.name} in {dataset.folder}", highlight=False, markup=False, soft_wrap=True)
    console.print(table(dataset))
    for line in reasons(dataset):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print("complete" if dataset.complete else "not complete", highlight=False)
    return 0 if dataset.complete else 1


def plot(out: Path) -> int:
    """`hookedvid plot`: table, plots and report of a finished run once more, from its rows alone."""
    console = Console()
    console.width = max(console.width, MIN_WIDTH)
    manifest = Manifest.load(out)
    console.print(manifest.about, highlight=False)
    _present(manifest, manifest.rows(out), out, console)
    return 0


def _present(run: Manifest, rows: Sequence[Mapping], out: Path, console: Console) -> None:
    outcomes = Outcomes(run.items, run.conditions, rows, run.convention)
    summaries = summarise(outcomes, run.study.n_resamples, run.study.seed)
    tables: dict[str, list[Summary]] = {}
    for s in summaries:
        tables.setdefault(s.group, []).append(s)
    main = "video" if "video" in tables else "all"
    protocols = {c.protocol for c in run.conditions}
    write_csv(summaries, out / "summary.csv")
    frame(rows).to_parquet(out / "rows.parquet")
    generated = run.settings["scoring"] == "generate"
    console.width = max(console.width, scores.MIN_WIDTH if generated else MIN_WIDTH)
    if protocols != {"baseline", efficiency.PROTOCOL}:
        shown = scores.text_table(tables[main], run.convention) if generated else condition_table(tables[main])
        console.print(shown)
    if efficiency.PROTOCOL in protocols:
        console.print(cost_table(tables[main]))
    failures = list(dict.fromkeys(f"{r['item']}: {r['reason']}" for r in rows if r["status"] == "failed"))
    for reason in failures[:5]:
        console.print(f"failed: {reason}", style="red", highlight=False, markup=False)
    scored = tables["all"][0].n > 0
    if scored and 1 < len(tables) <= scores.MANY:
        console.print(family_table(tables))
    scores.present(run, rows, outcomes, out, console)
    if not scored:  # every answer is hidden, or every row failed
        console.print(f"nothing to score; what was answered is in [bold]{out / 'rows.parquet'}[/]", soft_wrap=True)
        return
    asked = (run.study.n_resamples, run.study.seed, run.study.keep)
    told = {g: findings(outcomes, g, run.n_layers, *asked) for g in tables}
    looked = [g for g in tables if any(f.law == CHEAPEST for f in told[g])]
    searches = {g: efficiency.search(outcomes, g, run.study.keep, *asked[:2]) for g in looked}
    if len(searches) > 1:
        console.print(choice_table(searches))
    for f in told[main]:
        console.print(f"[bold]{f.law}[/]: {f.sentence}", highlight=False)
    figures = draw(tables, main, run.n_layers, run.settings)
    if efficiency.PROTOCOL in protocols:
        chosen = {g: s.choice.condition.label for g, s in searches.items() if s.choice}
        figures |= draw_pareto(tables, main, chosen, run)
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


def draw_pareto(tables: Mapping[str, Sequence[Summary]], main: str, chosen: Mapping[str, str], run: Manifest) -> dict:
    """The figures of the search for cheaper inference, by file name; chosen: labels by group."""
    about = studies.brief(run.settings, tables[main][0].n)
    figures = {"pareto": plots.pareto(tables[main], run.study.keep, chosen.get(main, ""), about)}
    if len(tables) > 1:
        families = [s for g, group in tables.items() if g not in ("all", "video") for s in group]
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
    (out / "report.html").write_text(page, encoding="utf-8")


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
        star = "*" if s.p_holm < 0.05 else " "
        lost = str(s.failed + s.unparsed or "")
        table.add_row(
            s.condition.label, str(s.n), lost, _short(s.accuracy) + star, _short(s.ratio), f"{s.prob.value:.3f}"
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
        shares = (f"{100 * share:.1f}" for share in (s.decoder_share, s.attention_share))
        star = "*" if s.p_holm < 0.05 else " "
        table.add_row(s.condition.label, *shares, _short(s.accuracy) + star, f"{100 * s.ratio.value:.1f}")
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
        shares = (f"{100 * share:.1f}" for share in (c.decoder_share, c.attention_share))
        table.add_row(group, c.condition.label, *shares, _short(c.held_out))
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
