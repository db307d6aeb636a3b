"""What the command line's verbs do and print."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from hookedvid import accuracy, converting, measured
from hookedvid.conversion.provenance import Provenance
from hookedvid.data.check import reasons, table
from hookedvid.data.dataset import Dataset, read_dataset
from hookedvid.data.shapes import held_out
from hookedvid.errors import ConfigError
from hookedvid.model import HookedVideoLLM
from hookedvid.progress import conduct
from hookedvid.study import study as studies
from hookedvid.study.estimate import estimate
from hookedvid.study.execution import Execution
from hookedvid.study.manifest import Manifest
from hookedvid.study.measures import MEASURES
from hookedvid.study.records import Records
from hookedvid.study.results import renewed
from hookedvid.study.scoring import Scoring
from hookedvid.study.study import Study, parse_knockout

# How each task of the shapes clips is scored, and which of them a study file asks that names no items.
SCORING_OF: dict[str, Scoring] = {
    "questions": "letters", "captions": "likelihood", "answers": "likelihood", "grounding": "grounding",
}  # fmt: skip
TASK_OF: dict[Scoring, str] = {"likelihood": "captions", "grounding": "grounding"}


def run_study(
    file: Path | None,
    out: Path,
    limit: int | None,
    device: str | None,
    only: Sequence[str],
    model_name: str | None,
    plan_only: bool = False,
    data: tuple[str | None, Path | None] = (None, None),
    task: str | None = None,
    how: Execution | None = None,
) -> int:
    """`hookedvid study`: rows, table, plots and report; rows already in `out` are not run again.

    plan_only: print what it will take, no more. data: a dataset's name and folder, over the file's; task: what is
    asked of the shapes clips instead, and with it the scoring. On a cluster the device is that of its actors; here the
    model is loaded on the CPU, for its hash. A shard prints the table once all the others' rows are there.
    """
    how, console = how or Execution(), Console()
    console.width = max(console.width, accuracy.MIN_WIDTH)
    study = Study.from_toml(file) if file else Study()
    study = replace(study, protocols=tuple(only) or study.protocols, model=model_name or study.model)
    beside = file.parent if file else Path()
    if task is not None:
        if any(data):
            raise ConfigError("a study asks either a task of the shapes clips or a dataset; give one of the two")
        study = replace(study, items="", dataset="", data="", scoring=SCORING_OF[task])
    dataset = _dataset(study, beside, *data, console)
    if dataset is not None:
        study = replace(study, items="", dataset=dataset.name, data=str(dataset.folder))
    loading = {"name_or_path": study.model, "dtype": study.dtype, "kernel": study.kernel, "overrides": study.overrides}
    net = HookedVideoLLM.from_pretrained(**loading, device=None if how.ray else device)
    device_type = torch.device(device or "cpu").type
    if dataset is not None:
        laid = studies.plan(study, net, dataset.folder, limit, dataset.items, dataset.left_out, device_type)
    else:
        task = task or TASK_OF.get(study.scoring, "questions")
        items = beside / study.items if study.items else held_out(out / "videos", task)
        laid = studies.plan(study, net, items, limit, device=device_type)
    where = f"{laid.settings['device']} on Ray" if how.ray else net.device
    about = f"{studies.describe(laid.settings)}; {len(laid.items)} questions, {where}"
    console.print(about, highlight=False)
    records = Records(out, how.shard)
    console.print(str(estimate(laid, net, records)), highlight=False, markup=False, soft_wrap=True)
    if plan_only:
        return 0
    n_layers, model = net.cfg.n_layers, {**loading, "device": device} if how.ray else net
    del net  # the actors have their own
    try:
        audit, timing = conduct(laid, model, records, how, console)
    except KeyboardInterrupt:
        console.print(f"stopped; every finished row is in {out}: run the same command to go on")
        return 130
    return _finish(Manifest.of(laid, n_layers, about, audit, timing), records, console)


def _finish(manifest: Manifest, records: Records, console: Console) -> int:
    """Keep what was asked beside its rows and show these, unless other shards have yet to run theirs."""
    out, shard = records.folder, records.shard
    if earlier := manifest.save(out):
        said = f"what {out} showed before, of another study, is in {earlier}"
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    if shard.count > 1 and (left := manifest.missing(records)):
        part = f"shard {shard.index}/{shard.count}"
        console.print(f"{part} is done; {left} rows of other shards are missing in {out}")
        return 0
    return _present(manifest, manifest.rows(records), out, console)


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
    console.width = max(console.width, accuracy.MIN_WIDTH)
    manifest, records = Manifest.load(out), Records(out)
    console.print(manifest.about, highlight=False)
    rows = manifest.rows(records)
    if records.damaged:
        console.print(records.damaged, highlight=False, markup=False, soft_wrap=True)
    return _present(manifest, rows, out, console)


def _present(run: Manifest, rows: Sequence[Mapping], out: Path, console: Console) -> int:
    """The status: 1 where nothing was scored that could be."""
    present = measured.present if run.study.scoring in MEASURES else accuracy.present
    with renewed(out):
        present(run, rows, out, console)
    hidden = {item.id for item in run.items if item.answer is None} if run.study.scoring not in MEASURES else set()
    scorable = [row for row in rows if row["item"] not in hidden] or rows
    if any(row["status"] != "failed" for row in scorable):
        return 0
    console.print("no row could be scored: every one of them failed", style="red", highlight=False)
    return 1


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
