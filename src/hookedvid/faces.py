"""What the command line's verbs do and print."""

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from hookedvid import plots
from hookedvid.data.item import Item, read_items
from hookedvid.errors import InterventionError, nearest
from hookedvid.interventions import LV_K, PATHWAYS, VS_K, VT_K, Knockout, LayerRange
from hookedvid.model import HookedVideoLLM
from hookedvid.study.protocols import paper
from hookedvid.study.study import Row, Summary, run, summarise

# The clips a study without --items asks about: held out, since training draws from another split.
HELD_OUT = {"seed": 0, "split": "test", "n_videos": 24, "questions_per_video": 5}


def run_study(name: str, annotations: Path | None, out: Path, limit: int | None, device: str | None) -> int:
    """`hookedvid study`: rows, table and plots of the paper's three protocols."""
    console = Console()
    model = HookedVideoLLM.from_pretrained(name, device=device)
    annotations = annotations or _held_out(out, console)
    items = read_items(annotations)[:limit]
    conditions = paper(model.cfg.n_layers)
    console.print(
        f"[bold]{model.cfg.model_name or name}[/]: {model.cfg.n_layers} layers, {model.cfg.n_frames} frames, "
        f"{str(model.embed.weight.dtype).removeprefix('torch.')}, {model.kernel} attention on {model.device}; "
        f"{len(items)} questions x {len(conditions)} conditions"
    )
    rows: list[Row] = []
    steps = run(model, items, annotations, conditions)
    for row in track(steps, "asking", total=len(items) * len(conditions), console=console):
        rows.append(row)
    summaries = summarise(rows, conditions)
    console.print(study_table(summaries))
    for reason in dict.fromkeys(r.reason for r in rows if r.status == "failed"):
        console.print(f"[red]failed[/]: {reason}", highlight=False)
    _write(out, rows, summaries, items)
    console.print(f"rows.csv, summary.csv and three plots are in [bold]{out}[/]")
    return 0


def study_table(summaries: Sequence[Summary]) -> Table:
    """Accuracy and probability for each condition; layers counted from 1."""
    table = Table(title="Layers are counted from 1, as in the paper", title_style="dim", title_justify="left")
    for column in ("protocol", "condition"):
        table.add_column(column)
    for column in ("n", "failed", "accuracy", "ratio", "p(right)"):
        table.add_column(column, justify="right")
    last = ""
    for s in summaries:
        protocol = s.condition.protocol
        if last and protocol != last:
            table.add_section()
        shown = "" if protocol == last else protocol
        last = protocol
        failed = str(s.failed) if s.failed else ""
        table.add_row(
            shown, s.condition.label, str(s.n), failed, f"{s.accuracy:.1%}", f"{s.ratio:.1%}", f"{s.prob:.3f}"
        )
    return table


def _held_out(out: Path, console: Console) -> Path:
    from hookedvid.data.shapes import make_dataset

    folder = out / "videos"
    if not (folder / "items.jsonl").exists():
        console.print(f"making {HELD_OUT['n_videos']} held-out clips in {folder}")
        make_dataset(folder, **HELD_OUT)
    return folder / "items.jsonl"


def _write(out: Path, rows: Sequence[Row], summaries: Sequence[Summary], items: Sequence[Item]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "rows.csv", [asdict(r) for r in rows])
    columns = ("n", "failed", "accuracy", "prob", "ratio")
    _write_csv(
        out / "summary.csv",
        [
            {"protocol": s.condition.protocol, "condition": s.condition.label, "layer": s.condition.layer}
            | {c: getattr(s, c) for c in columns}
            for s in summaries
        ],
    )
    chance = sum(1 / len(i.options) for i in items) / len(items)
    for name, draw in (
        ("cumulative", plots.layer_curve),
        ("windows", plots.window_curves),
        ("all-layers", plots.all_layers),
    ):
        draw(summaries, chance).savefig(out / f"{name}.png")


def _write_csv(path: Path, rows: Sequence[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def parse_knockout(text: str) -> Knockout:
    """`LV-K @ 4:8`, `video->question`, `cross-frame @ ~2:4`; layers 0-based and half-open, all if not given."""
    body, _, layers = (part.strip() for part in text.partition("@"))
    known = {k.name: k for k in (LV_K, VT_K, VS_K, *PATHWAYS.values())}
    if body in known:
        knockout = known[body]
    elif "->" in body:
        knockout = Knockout(*(s.strip() for s in body.split("->", 1)))
    else:
        raise InterventionError(f"no knockout {body!r} ({nearest(body, known)}); or write source->destination")
    return knockout.at(LayerRange.parse(layers)) if layers else knockout


def ask(
    name: str, video: str, question: str, options: Sequence[str], knockouts: Sequence[str], n_frames: int | None,
    device: str | None,
) -> int:  # fmt: skip
    """`hookedvid ask`: the answer, intact and under the knockouts."""
    console = Console()
    model = HookedVideoLLM.from_pretrained(name, device=device)
    cuts = [parse_knockout(k) for k in knockouts]
    inputs = model.prepare(video, question, options, n_frames=n_frames)
    console.print(str(inputs.layout), highlight=False)
    for given in ([], cuts) if cuts else ([],):
        title = " + ".join(k.label() for k in given) or "intact"
        if options:
            answer = model.answer(inputs, given)
            said = f"{answer.letter}. {answer.text}  (p = {answer.prob:.3f})"
        else:
            said = model.generate(inputs, given)
        console.print(f"[bold]{title}[/]: {said}", highlight=False)
    return 0


def inspect(name: str, hooks: bool) -> int:
    """`hookedvid inspect`: config, sizes, hook points."""
    console = Console()
    model = HookedVideoLLM.from_pretrained(name)
    console.print(model.cfg.to_json())
    console.print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(model.hook_dict)} hook points")
    if hooks:
        for point in model.hook_dict:
            console.print(point, highlight=False)
    return 0
