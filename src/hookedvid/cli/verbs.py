"""What the command line's verbs do and print."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any

from hookedvid.activations.collect import collect
from hookedvid.checkpoints import convert as converting
from hookedvid.checkpoints.devices import named_device
from hookedvid.cli.progress import conduct
from hookedvid.conversion.provenance import Provenance
from hookedvid.data import check_items
from hookedvid.data.check import reasons, table
from hookedvid.data.convention import Convention
from hookedvid.data.dataset import Dataset
from hookedvid.data.registry import DATASETS, read_dataset
from hookedvid.data.shapes.clips import held_out
from hookedvid.errors import ConfigError, DataError, RunError
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.report import presenter
from hookedvid.report.terminal import Terminal
from hookedvid.study import definition as studies
from hookedvid.study.conventions import NAMES, convention
from hookedvid.study.definition import Study
from hookedvid.study.extractors import extractor
from hookedvid.study.records import Records, model_hash, write_parquet
from hookedvid.study.results import rescoring, submission
from hookedvid.study.results.file_names import own_folder, renewed
from hookedvid.study.results.summary import Outcomes, summarise, write_csv
from hookedvid.study.run.estimate import estimate
from hookedvid.study.run.execution import Execution
from hookedvid.study.run.manifest import Manifest
from hookedvid.study.run.order import ordered
from hookedvid.study.run.rounds import check_whole
from hookedvid.study.scorings.generate import Generate
from hookedvid.study.scorings.registry import SCORINGS
from hookedvid.values.effects import Intervention
from hookedvid.values.interventions import label, parse
from hookedvid.video.decoders import Decoders
from hookedvid.viewer.study import view_items


def run_study(
    file: Path | None, out: Path, limit: int | None, device: str | None, only: Sequence[str], model_name: str | None,
    plan_only: bool = False, data: tuple[str | None, Path | None] = (None, None), task: str | None = None,
    how: Execution | None = None, figures: Sequence[str] = (),
) -> int:  # fmt: skip
    """`hookedvid study`: rows, table, plots and report; rows already in `out` are not run again.

    On a cluster the device is that of its actors; here the model is loaded on the CPU, for its hash. A shard prints the
    table once all the others' rows are there.

    Args:
        plan_only: Print what it will take, no more.
        data: A dataset's name and folder, over the file's.
        task: What is asked of the shapes clips instead, and with it the scoring.
        figures: As which files they are written besides png.
    """
    how, console = how or Execution(), Terminal(presenter.MIN_WIDTH)
    study = Study.from_toml(file) if file else Study()
    study = replace(study, protocols=tuple(only) or study.protocols, model=model_name or study.model)
    check_whole(study, how.shard.count, bool(how.ray))
    beside = file.parent if file else Path()
    _check_one_source(study, data, task)
    if task is not None:
        scoring = next(name for name, s in SCORINGS.items() if task in s.tasks)
        study = replace(study, items="", dataset="", data="", scoring=scoring)
    dataset = _dataset(study, beside, *data, console)
    if dataset is not None:
        study = replace(study, items="", dataset=dataset.name, data=str(dataset.folder))
    if not plan_only:
        _check_writable(out)
    loading = {"name_or_path": study.model, "dtype": study.dtype, "kernel": study.kernel, "overrides": study.overrides}
    net = HookedVideoLLM.from_pretrained(**loading, device=None if how.ray else device)
    device_type = named_device(device).type
    if dataset is not None:
        plan = studies.plan(study, net, dataset.folder, limit, dataset.items, dataset.left_out, device_type)
    else:
        task = task or next(iter(SCORINGS[study.scoring].tasks), "questions")
        items = beside / study.items if study.items else held_out(out / "videos", task)
        plan = studies.plan(study, net, items, limit, device=device_type)
    where = f"{plan.settings['device']} on Ray" if how.ray else net.device
    about = f"{studies.describe(plan.settings)}; {len(plan.items)} questions, {where}"
    console.say(about)
    records = Records(out, how.shard)
    console.say(str(estimate(plan, net, records)))
    if plan_only:
        return 0
    plan = ordered(plan, net, out, how.decoders)
    n_layers, model = net.cfg.n_layers, {**loading, "device": device} if how.ray else net
    del net  # the actors have their own
    try:
        audit, timing, taken = conduct(plan, model, records, how, console)
    except KeyboardInterrupt:
        console.say(f"stopped; every finished row is in {out}: run the same command to go on")
        return 130
    asked = taken if study.adaptive else None  # a shard takes a part of what is asked
    return _finish(Manifest.of(plan, n_layers, about, audit, timing, asked), records, console, figures)


def _finish(manifest: Manifest, records: Records, console: Terminal, figures: Sequence[str]) -> int:
    """Keep what was asked beside its rows and show these, unless other shards have yet to run theirs."""
    out, shard = records.folder, records.shard
    if earlier := manifest.save(out, presenter.PRESENTED):
        text = f"what {out} showed before, of another study, is in {earlier}"
        console.say(text)
    if shard.count > 1 and (left := manifest.missing(records)):
        part = f"shard {shard.index}/{shard.count}"
        console.say(f"{part} is done; {left} rows of other shards are missing in {out}")
        return 0
    return _present(manifest, manifest.rows(records), out, console, figures)


def _check_writable(folder: Path) -> None:
    """Raises RunError, before anything has run, for a place where results cannot be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
    except OSError as e:
        raise RunError(f"cannot keep results in {folder}: {e.strerror}; give --out another folder") from e


def _check_one_source(study: Study, data: tuple[str | None, Path | None], task: str | None) -> None:
    """Raises ConfigError where the command asks other questions than the file names, or two kinds itself."""
    if task is not None and any(data):
        raise ConfigError("a study asks either a task of the shapes clips or a dataset; give one of the two")
    own = f"items {study.items!r}" if study.items else f"dataset {(study.dataset or study.data)!r}"
    if task is not None and (study.items or study.dataset or study.data):
        raise ConfigError(f"the study file asks its {own}, and --task asks the shapes clips; leave out one of the two")
    if any(data) and study.items:
        raise ConfigError(f"the study file asks its {own}, and --dataset a dataset; leave out one of the two")


def _dataset(study: Study, beside: Path, name: str | None, folder: Path | None, console: Terminal) -> Dataset | None:
    """The published dataset that a study asks, if it does; says what of it cannot be asked."""
    name, folder = name or study.dataset, folder or (beside / study.data if study.data else None)
    if not name and folder is None:
        return None
    if not name or folder is None:
        raise ConfigError("a dataset needs its name and its folder: --dataset mvbench --data DIR, or both in the file")
    dataset = read_dataset(name, folder)
    for line in reasons(dataset):
        console.say(line, style="yellow")
    return dataset


def check_data(name: str, folder: Path | None) -> int:
    """`hookedvid check-data`: what a folder holds of a dataset, or what is wrong in one's own file of items.

    Returns:
        1 unless all that can be asked is there, or where a line has a problem.
    """
    if name.endswith(".jsonl"):
        return _check_items(Path(name), folder)
    if folder is None:
        raise DataError(
            f"{name} is asked of a folder: hookedvid check-data {name} FOLDER; your own file ends in .jsonl"
        )
    console = Terminal(110)
    dataset = read_dataset(name, folder)
    console.say(f"{dataset.name} in {dataset.folder}")
    console.print(table(dataset))
    for line in reasons(dataset):
        console.say(line)
    console.say("complete" if dataset.complete else "not complete")
    return 0 if dataset.complete else 1


def _check_items(path: Path, folder: Path | None) -> int:
    if folder is not None:
        raise DataError(f"{path} says itself where its videos are, beside it; leave out {folder}")
    console = Terminal()
    with Decoders() as decoders:
        found = check_items.report(path, decoders)
    console.say(f"{path}: {found.n_items} questions that can be read, about {found.n_videos} videos")
    for number, problems in found.problems.items():
        for problem in problems:
            console.say(f" {problem}", lead=f"line {number}:")
    for note in found.notes:
        console.say(f"note: {note}")
    n = sum(map(len, found.problems.values()))
    if not n and not found.n_items:
        raise DataError(f"{path} holds no items; write one JSON object a line")
    console.say(f"{n} problems on {len(found.problems)} lines" if n else "nothing is wrong")
    return 1 if n else 0


def plot(out: Path, figures: Sequence[str] = ()) -> int:
    """`hookedvid plot`: table, plots and report of a finished run once more, from its rows alone."""
    console = Terminal(presenter.MIN_WIDTH)
    manifest, records = Manifest.load(out), Records(out)
    console.say(manifest.about)
    rows = manifest.rows(records)
    if records.damaged:
        console.say(records.damaged)
    return _present(manifest, rows, out, console, figures)


def _present(run: Manifest, rows: Sequence[Mapping], out: Path, console: Terminal, figures: Sequence[str]) -> int:
    """The status: 1 where nothing was scored that could be."""
    with renewed(out, presenter.PRESENTED):
        presenter.present(run, rows, out, console, figures)
    hidden = {item.id for item in run.items if not run.scoring.scored(item)}
    scorable = [row for row in rows if row["item"] not in hidden] or rows
    if any(row["status"] != "failed" for row in scorable):
        return 0
    console.say("no row could be scored: every one of them failed", style="red")
    return 1


def _check_all_asked(run: Manifest, out: Path) -> None:
    """Raises DataError for a study that stopped by its scores as they were read then."""
    if run.study.adaptive:
        raise DataError(
            f"{out} is an adaptive study, which stopped asking by its own scores; run it with adaptive = false first: "
            "its rows count"
        )


def rescore(out: Path, name: str) -> int:
    """`hookedvid rescore`: a finished study's texts by another rule, without model or videos."""
    console = Terminal(Generate.width)
    run, records = Manifest.load(out), Records(out)
    _check_all_asked(run, out)
    rows = run.rows(records)
    by = convention(name, run.items, run.dataset) if name in NAMES else extractor(name)
    rescored = rescoring.rescore(run.items, rows, by)
    console.say(run.about)
    if records.damaged:
        console.say(records.damaged)
    now = by if isinstance(by, Convention) else None
    full = by.full_name if isinstance(by, Convention) else by.name
    for title, read, as_by in (("stored", rows, run.convention), (full, rescored.rows, now)):
        outcomes = Outcomes(run.items, run.conditions, read, Generate(as_by))
        summaries = summarise(outcomes, run.study.n_resamples, run.study.seed)
        console.say("", lead=title)
        console.print(presenter.condition_table([s for s in summaries if s.group == "all"]))
    console.say(f"{rescored.changed} of {rescored.n} answers read otherwise")
    folder = own_folder(out / "rescored")
    stem = full.replace("/", "-")
    write_parquet(rescored.rows, folder / f"{stem}.parquet")
    write_csv(summaries, folder / f"{stem}.csv")
    console.say("; also .csv; the stored rows are as they were", lead=f"{folder / stem}.parquet")
    return 0


def submit(out: Path, condition: str) -> int:
    """`hookedvid submission`: the file that a dataset's evaluation server takes, of a finished study."""
    run = Manifest.load(out)
    _check_all_asked(run, out)
    form = submission.form_of(run.items, run.dataset)
    if form is None:
        known = " or ".join(d.title for d in DATASETS.values() if d.submission)
        raise DataError(f"{out} is no study of {known} but of {run.dataset or 'other items'}; no server takes it")
    answers = submission.submission(form, run.items, run.rows(out), condition, run.convention)
    path = submission.write(form, answers, out)
    left = sum(option == form.unknown for option in answers.values())
    Terminal().say(f"{path}: {len(answers)} clips, {left} without an answer ({form.unknown}), under {condition!r}")
    return 0


def ask(
    name: str, video: str, question: str, options: Sequence[str], conditions: Sequence[str], n_frames: int | None,
    device: str | None, dtype: str | None, overrides: Mapping,
) -> int:  # fmt: skip
    """`hookedvid ask`: the answer, intact and under each condition."""
    console, under = Terminal(), _conditions(conditions)  # before a model is loaded for nothing
    model = HookedVideoLLM.from_pretrained(name, device=device, dtype=dtype, overrides=overrides)
    inputs = model.prepare(video, question, options, n_frames=n_frames)
    console.say(str(inputs.layout))
    for interventions in ((), *under):
        title = label(interventions) if interventions else "intact"
        if options:
            answer = model.answer(inputs, interventions)
            text = f"{answer.letter}. {answer.text}  (p = {answer.prob:.3f})"
        else:
            text = model.generate(inputs, interventions)
        console.say(f"{title}: {text}")
    return 0


def collect_items(
    items: Path, hooks: Sequence[str], at: str, pool: Any, out: Path, store: str | None, batch: int, name: str,
    n_frames: int | None, under: str | None, device: str | None, dtype: str | None, retry_failed: bool,
    overrides: Mapping,
) -> int:  # fmt: skip
    """`hookedvid collect`: activations of every item; those that are in the folder are not run again."""
    console, interventions = Terminal(), parse(under) if under else ()
    model = HookedVideoLLM.from_pretrained(name, device=device, dtype=dtype, overrides=overrides)
    try:
        acts = collect(
            model, items, list(hooks), at, folder=out, pool=pool, dtype=store, interventions=interventions,
            n_frames=n_frames, batch_size=batch, retry_failed=retry_failed,
        )  # fmt: skip
    except KeyboardInterrupt:
        console.say(f"stopped; every finished item is in {out}: run the same command to go on")
        return 130
    console.say(f": {acts!r}", lead=str(out))
    for item, reason in acts.failed.items():
        console.say(f"{item} failed: {reason}")
    return 0


def view(
    video: str, question: str | None, options: Sequence[str], conditions: Sequence[str], name: str | None,
    n_frames: int | None, device: str | None, dtype: str | None, overrides: Mapping, answer: str | None,
    items: Sequence[str], queries: Sequence[str], budget: int, out: Path | None,
) -> int:  # fmt: skip
    """`hookedvid view`: a page of one question, or of a study's items with their index."""
    console = Terminal()
    how: dict[str, Any] = {"queries": queries, "budget": budget}
    under = [parse(c) for c in conditions] or None
    if question is None:
        given = {"--out": out, "--answer": answer, "--frames": n_frames, "--dtype": dtype, "--override": overrides}
        if names := [flag for flag, value in given.items() if value]:
            raise ConfigError(f"without a question {video} is a study's folder, which has its own {', '.join(names)}")
        index = _view_study(Path(video), name, items, under, device, console, how)
        console.say(": open it in a browser", lead=str(index))
        return 0
    if items:
        raise ConfigError("--items are a study's: give its folder without a question, or leave them out")
    under = _conditions(conditions) or None
    right = None if answer is None else _option(answer, len(options))
    model = HookedVideoLLM.from_pretrained(name or "tiny", device=device, dtype=dtype, overrides=overrides)
    inputs = model.prepare(video, question, options, n_frames=n_frames)
    path = model.view(inputs, under, question=question, answer=right, **how).save(out or Path("view.html"))
    console.say(f": {path.stat().st_size / 1e6:.1f} MB; open it in a browser", lead=str(path))
    return 0


def _conditions(lines: Sequence[str]) -> list[tuple[Intervention, ...]]:
    """What is to be asked under, where one question has no other runs to take activations from.

    Raises:
        ConfigError: For what takes some from a source.
    """
    under = [parse(line) for line in lines]
    for one in (one for condition in under for one in condition if one.sources):
        raise ConfigError(
            f"{one.label()} takes from {one.sources[0]!r}, and one question on the command line has no such source; "
            "name it in a study file's [sources], or give it in Python: model.answer(inputs, …, sources={…})"
        )
    return under


def _option(letter: str, n: int) -> int:
    """The number of an option by its letter."""
    known = LETTERS[:n]
    if len(letter) != 1 or letter.upper() not in known:
        raise ConfigError(
            f"--answer {letter!r} is none of the options' letters: {', '.join(known) or 'there are none'}"
        )
    return known.index(letter.upper())


def _view_study(
    folder: Path, name: str | None, ids: Sequence[str], under: Any, device: str | None, console: Terminal,
    how: Mapping[str, Any],
) -> Path:  # fmt: skip
    """Where the index is; the model may lie elsewhere than the study had it."""
    run = Manifest.load(folder)
    study, name = run.study, name or run.study.model
    loading = {"dtype": study.dtype, "kernel": study.kernel, "overrides": study.overrides, "device": device}
    model = HookedVideoLLM.from_pretrained(name, **loading)
    if model_hash(model) != run.settings["model"]:
        raise ConfigError(
            f"{name} has other weights than {folder} was run with: give those by --model, or run the study again"
        )
    return view_items(folder, run, model, ids, under, console.say, **how)


def inspect(name: str, hooks: bool) -> int:
    """`hookedvid inspect`: config, sizes, hook points."""
    console = Terminal()
    model = HookedVideoLLM.from_pretrained(name)
    console.say(model.cfg.to_json())
    console.say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(model.hook_dict)} hook points")
    if hooks:
        for point in model.hook_dict:
            console.say(point)
    return 0


def convert(
    source: str, folder: Path, dtype: str | None, overrides: Mapping, ignore: Sequence[str], revision: str | None
) -> int:
    """`hookedvid convert`: a checkpoint into our layout."""
    console = Terminal()
    path = converting.convert(source, folder, dtype=dtype, overrides=overrides, ignore=ignore, revision=revision)
    origin = Provenance.load(path)
    size = sum(p.stat().st_size for p in path.iterdir())
    console.say(
        f"{path}: {len(origin.tensors)} tensors, {size / 1e9:.2f} GB, from {origin.source} ({origin.architecture})",
    )
    return 0


def export(folder: Path, out: Path) -> int:
    """`hookedvid export`: a converted checkpoint back into its original layout."""
    console = Terminal()
    path = converting.export(folder, out)
    origin = Provenance.load(folder)
    same = "the files that were converted, byte for byte" if origin.dtype is None else f"weights as {origin.dtype}"
    console.say(f"{path}: {len(origin.files)} file(s), {same}")
    return 0
