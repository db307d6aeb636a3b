"""Running a study's tasks: video by video, each row stored as soon as its video is done.

Videos are decoded ahead of the model in processes of their own (`video.decoders`). One process writes the rows; the
model is in that one (`run`) or in others (`cluster`), which answer in the same way. What goes wrong with one video or
one item becomes failed rows, which say why; what goes wrong with the run itself stops it, for a restart to go on.
"""

import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from hookedvid.data.item import Item, video_path
from hookedvid.errors import HookedVidError, InputError, RunError
from hookedvid.model.counterfactual import counterfactual
from hookedvid.model.flops import Costs, Left, Shares, moves_tokens
from hookedvid.model.leaving import RunRecord
from hookedvid.nn.model import Model
from hookedvid.study.definition import Plan, check_bare
from hookedvid.study.protocols import Condition
from hookedvid.study.records import Folder, Records, Shard, Writer
from hookedvid.study.rows import Row, Task, named_by
from hookedvid.study.run.failures import PASSING, UNFORESEEN, attempt
from hookedvid.study.run.gradients import estimated
from hookedvid.study.run.inputs import clip_request, prepared
from hookedvid.study.run.rounds import Planned, check_whole, rounds
from hookedvid.study.run.sharing import Tasks, swept_together
from hookedvid.study.run.sources import Given, store_in
from hookedvid.study.run.timing import Timing
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.study.scorings.scoring import Scoring
from hookedvid.study.sources import names
from hookedvid.sweep.run import sweep
from hookedvid.values.clips import parted
from hookedvid.values.effects import Effects, effects
from hookedvid.values.inputs import VideoInputs
from hookedvid.video.clip_files import ClipRequest
from hookedvid.video.decoders import Batch, Decoders, gathered
from hookedvid.video.frames import Clip

# A row whose key falls on a multiple of this is run once more from the pixels.
AUDITED = 100
# Rounding moves logits of order 1 to 10 by far less than this; a wrong share moves them by tenths.
THRESHOLD = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}

Clips = Mapping[ClipRequest, Clip | HookedVidError]
Sources = Callable[[Item, Condition, Task], dict[str, Any] | None]  # what a condition takes from elsewhere


class Audit:
    """Rows that were run again without sharing anything, and how far their logits or log-probabilities were off."""

    def __init__(self) -> None:
        self.n = 0
        self.largest = 0.0

    def add(self, other: "Audit") -> None:
        """Count another's rows."""
        self.n, self.largest = self.n + other.n, max(self.largest, other.largest)

    def check(self, scoring: Scoring, model: Model, inputs: VideoInputs, condition: Condition, values: Tensor) -> None:
        """Run a condition from the pixels; raises RunError beyond what rounding can do."""
        whole = model(inputs, interventions=condition.interventions, logits_to_keep=scoring.n_last(inputs))
        off = (scoring.read(model, whole[0], inputs).double() - values.double()).abs().max().item()
        self.n, self.largest = self.n + 1, max(self.largest, off)
        if not off <= THRESHOLD[whole.dtype]:
            raise RunError(
                f"{condition.label}: logits of the sweep are off by {off:.2e} from a plain run, more than rounding "
                'does; please report it, and run with reuse = "layers"'
            )


def run(
    plan: Plan,
    model: Model,
    folder: Folder,
    on_row: Callable[[Row, bool], None] | None = None,
    shard: Shard | None = None,
    audit: Audit | None = None,
    *,
    decoders: Decoders | None = None,
    retry_failed: bool = False,
    timing: Timing | None = None,
) -> list[Row]:
    """Carry a plan out in this process, with `decoders` (without a cache, unless given); see `carry_out`."""
    timing = timing or Timing()
    with Decoders() if decoders is None else nullcontext(decoders) as pool:
        timing.n_processes = pool.n
        engine = Answering(plan, model, pool, store_in(folder)).answers
        return carry_out(plan, engine, folder, on_row, shard, audit, retry_failed=retry_failed, timing=timing)


def carry_out(
    plan: Plan,
    engine: "Engine",
    folder: Folder,
    on_row: Callable[[Row, bool], None] | None = None,
    shard: Shard | None = None,
    audit: Audit | None = None,
    *,
    retry_failed: bool = False,
    timing: Timing | None = None,
) -> list[Row]:
    """One row for each item and condition, in plan order; those already in the folder are not run again.

    Of an adaptive study, one for each that it asked, in the order in which it did.

    Conditions of different protocols that do the same share one stored row. `on_row(row, fresh)` is called
    for each as it is known. Killed at any moment, at most the rows of the videos in flight are lost. With a
    shard, which is that of the records if they are given for the folder, only its videos' rows. Damaged rows and
    failed ones of a cause that may pass (`PASSING`) are run again, all failed ones with `retry_failed`. `audit` and
    `timing` are added to.

    Raises:
        ConfigError: For a shard of an adaptive study.
        RunError: Where no run can go on, such as on a full disk: run it again when that is mended.
    """
    records = Records.of(folder, shard)
    audit, timing, shard = audit or Audit(), timing or Timing(), records.shard
    check_whole(plan.study, shard.count)
    asked: dict[tuple[str, str, str], Task] = {}  # by item and name, once each: rounds take the baseline again
    with records.writer() as writer:  # first: another process may have written what is read then
        records.read()
        cut_short = None if records.damaged else {records.last_video}  # whose rows damaged ones were, nobody knows
        for tasks in rounds(plan, records.read):
            several = enumerate(_by_video(tasks).items())
            videos = {v: items for n, (v, items) in several if n % shard.count == shard.index}
            mine = (t for i, _, t in tasks if i.video in videos)
            asked |= {(t.item, t.condition, t.protocol): t for t in mine}
            _run_round(videos, engine, records, writer, on_row, audit, timing, retry_failed, cut_short)
    rows = records.read()
    return [named_by(rows[t.key], t) for t in asked.values()]


def _run_round(
    videos: Mapping[str, list[tuple[Item, Tasks]]], engine: "Engine", records: Records, writer: Writer,
    on_row: Callable[[Row, bool], None] | None, audit: Audit, timing: Timing, retry_failed: bool,
    cut_short: Collection[str | None] | None,
) -> None:  # fmt: skip
    """The rows of some tasks, by video.

    Args:
        cut_short: Videos of which everything is computed once more if anything is; None: all.
    """
    stored = records.read()
    done = {key: row for key, row in stored.items() if not _again(row, retry_failed)}

    def report(video: str, fresh: Mapping[str, Row]) -> None:
        new = set(fresh)
        for task in (t for _, tasks in videos[video] for _, t in tasks):
            if on_row is not None:
                on_row(named_by(fresh.get(task.key) or done[task.key], task), task.key in new)
            new.discard(task.key)

    whole = {v: cut_short is None or v in cut_short for v in videos}
    units = [Unit(v, _work(items, done, stored, whole[v])) for v, items in videos.items()]
    for unit in units:
        if not unit.items:
            report(unit.video, {})
    with closing(engine([unit for unit in units if unit.items])) as answers:
        for unit, (outcomes, unit_audit, unit_timing) in answers:
            pairs = zip(unit.tasks, outcomes, strict=True)
            report(unit.video, writer.append((t, outcome) for t, outcome in pairs if t.key not in done))
            audit.add(unit_audit)
            timing.add(unit_timing)


class Unit(NamedTuple):
    """What is left to ask about one video: one process runs it in one piece, since its rows share their rounding."""

    video: str
    items: list[tuple[Item, Tasks]]

    @property
    def tasks(self) -> list[Task]:
        """In the order of their outcomes."""
        return [task for _, tasks in self.items for _, task in tasks]


class Answers(NamedTuple):
    """The outcomes of a unit's tasks, and what they took."""

    outcomes: list[Outcome]
    audit: Audit
    timing: Timing


# What runs units and gives each back, in any order, with its answers. Closing it ends what is in flight.
Engine = Callable[[Sequence[Unit]], Generator[tuple[Unit, Answers], None, None]]


class Answering:
    """One process's model and decoders at work on one plan.

    Args:
        plan: Its tasks may be elsewhere.
        model: That answers.
        decoders: Of its videos.
        store: A folder for the reference sets of its sources; None keeps them in memory.
    """

    def __init__(self, plan: Plan, model: Model, decoders: Decoders, store: Path | None = None):
        check_bare(model)
        self._plan, self._model, self._decoders = plan, model, decoders
        self._given = Given(plan, model, store)
        self._n_lost = decoders.n_lost

    def answers(self, units: Iterable[Unit]) -> Generator[tuple[Unit, Answers], None, None]:
        """Units in order, their videos decoded ahead."""
        for unit, batch in self._decoders.ahead((unit, self.requests(unit)) for unit in units):
            yield unit, self.answer(unit, batch)

    def requests(self, unit: Unit) -> list[ClipRequest]:
        """The clips that a unit needs, those of other items' runs among them; reference sets ask for their own."""
        own = {clip_request(self._plan, item, tasks[0][1].settings): None for item, tasks in unit.items}
        others = {self._request_of(one): None for item, tasks in unit.items for one in self._others(item, tasks)}
        return list(own | others)

    def _others(self, item: Item, tasks: Tasks) -> list[Item]:
        """The items whose runs an item's conditions take from."""
        used = dict.fromkeys(name for c, _ in tasks for name in names(c.interventions))
        sources = [self._plan.sources[name] for name in used]
        return [one for s in sources if not s.reference for one in s.items(item, self._plan.pool)]

    def _request_of(self, item: Item) -> ClipRequest:
        path = str(video_path(item, self._plan.annotations))
        return clip_request(self._plan, item, {**self._plan.settings, "video": self._plan.videos[path]})

    def _sources(self, clips: Clips) -> "Sources":
        def asked(item: Item) -> VideoInputs:
            request = self._request_of(item)
            found = clips if request in clips else gathered({request: self._decoders.submit(request)}).clips
            clip = found[request]
            if isinstance(clip, HookedVidError):
                raise InputError(f"source {item.id!r}: {clip}") from clip
            return prepared(self._plan, self._model, item, None, clip)

        return lambda item, c, task: self._given.of(item, c, task, asked)

    @torch.no_grad()  # on a generator it may be lost under decorators
    def answer(self, unit: Unit, batch: Batch) -> Answers:
        """Run a unit on its clips. Raises what is no fault of the video or of an item."""
        audit, start = Audit(), time.perf_counter()
        sources = self._sources(batch.clips)
        outcomes = [o for _, o in _run_video(self._plan, self._model, unit.items, batch.clips, audit, sources)]
        seconds, before, self._n_lost = time.perf_counter() - start, self._n_lost, self._decoders.n_lost
        videos = {unit.video: {"decoding": round(batch.decoding, 3), "model": round(seconds, 3)}}
        timing = Timing(batch.decoding, seconds, batch.waited, videos=videos)
        timing.n_clips, timing.n_cached, timing.n_lost = len(batch.clips), batch.n_cached, self._n_lost - before
        return Answers(outcomes, audit, timing)


def _again(row: Mapping[str, Any], retry_failed: bool) -> bool:
    return row["status"] == "failed" and (retry_failed or row.get("fault") in (*PASSING, UNFORESEEN))


def _work(
    items: Sequence[tuple[Item, Tasks]], done: Mapping[str, Any], stored: Mapping[str, Any], whole: bool
) -> list[tuple[Item, Tasks]]:
    """What of a video's items is run: what has no row yet; nothing where all have.

    Rows computed together share their rounding, so of a video that may have been cut short (`whole`), or of which
    failed rows are run again, everything is computed once more.
    """
    distinct = [(item, _distinct(tasks)) for item, tasks in items]
    missing = [(item, [(c, t) for c, t in tasks if t.key not in done]) for item, tasks in distinct]
    rest = [(item, tasks) for item, tasks in missing if tasks]
    return distinct if rest and (whole or any(t.key in stored for _, tasks in rest for _, t in tasks)) else rest


def _by_video(planned: Iterable[Planned]) -> dict[str, list[tuple[Item, Tasks]]]:
    grouped: dict[str, dict[str, tuple[Item, Tasks]]] = {}
    for item, condition, task in planned:
        grouped.setdefault(item.video, {}).setdefault(item.id, (item, []))[1].append((condition, task))
    return {video: list(items.values()) for video, items in grouped.items()}


def _distinct(tasks: Tasks) -> Tasks:
    return list({t.key: (c, t) for c, t in reversed(tasks)}.values())[::-1]


def _run_video(
    plan: Plan, model: Model, items: Sequence[tuple[Item, Tasks]], clips: Clips, audit: Audit, sources: Sources
) -> Iterator[tuple[tuple[Condition, Task], Outcome]]:
    """Outcomes of all that is asked about one video, in order."""
    results: dict[str, Tensor | Outcome] = {}
    shares: dict[str, Shares] = {}
    prices: dict[str, Costs] = {}
    ready: dict[str, VideoInputs] = {}
    runnable: dict[str, Tasks] = {}
    for item, tasks in items:
        inputs = attempt(_prepare, plan, model, item, clips[clip_request(plan, item, tasks[0][1].settings)], tasks)
        if isinstance(inputs, Outcome):
            results |= {task.key: inputs for _, task in tasks}
            continue
        results |= _estimated(plan, model, item, inputs, tasks, sources)
        tasks = [(c, t) for c, t in tasks if c.estimate is None]
        ready[item.id], prices[item.id] = inputs, Costs(model.cfg, inputs.layout)
        for condition, task in tasks:
            priced = attempt(_shares, model, inputs, prices[item.id], condition, ())
            if isinstance(priced, Outcome):
                results[task.key] = priced
            else:
                shares[task.key] = priced
        runnable[item.id] = [(c, t) for c, t in tasks if t.key in shares]
    if plan.study.reuse == "layers+positions" and not plan.scoring.reads_text:
        results |= _swept(plan.scoring, model, [(ready[i], tasks) for i, tasks in runnable.items()], audit)
    for item, tasks in items:
        rest = [(c, t) for c, t in runnable.get(item.id, ()) if t.key not in results]
        if rest:
            outcomes = _alone(plan, model, item, ready[item.id], rest, sources)
            results |= zip((task.key for _, task in rest), outcomes, strict=True)
        for condition, task in tasks:
            outcome = results[task.key]
            if isinstance(outcome, Tensor):
                outcome = attempt(plan.scoring.outcome, model, item, outcome, ready[item.id])
            if outcome.left is not None:  # of which the run alone could tell
                shares[task.key] = _shares(model, ready[item.id], prices[item.id], condition, outcome.left)
            yield (condition, task), _priced(outcome, shares.get(task.key))


def _estimated(
    plan: Plan, model: Model, item: Item, inputs: VideoInputs, tasks: Tasks, sources: Sources
) -> dict[str, Tensor | Outcome]:
    """Outcomes of the conditions that gradients are asked of, by row; the item's tower runs once for all."""
    asked = [(c, t) for c, t in tasks if c.estimate is not None]
    start = attempt(model.encoded, inputs) if asked else inputs
    if isinstance(start, Outcome):
        return {t.key: start for _, t in asked}
    given = {t.key: attempt(sources, item, c, t) for c, t in asked}
    return {
        t.key: g if isinstance(g := given[t.key], Outcome) else attempt(estimated, plan, model, item, start, c, g)
        for c, t in asked
    }


def _prepare(plan: Plan, model: Model, item: Item, clip: Clip | HookedVidError, tasks: Tasks) -> VideoInputs:
    if isinstance(clip, HookedVidError):
        raise clip
    return prepared(plan, model, item, tasks[0][1], clip)


def _swept(
    scoring: Scoring, model: Model, questions: Sequence[tuple[VideoInputs, Tasks]], audit: Audit
) -> dict[str, Tensor | Outcome]:
    """What outcomes are made of, by row, of all that one or several sweeps can share.

    What fails there is left out, to be run alone; but where memory runs out the rows fail: run alone, they would
    not repeat to the last bit.
    """
    results: dict[str, Tensor | Outcome] = {}
    for interventions, several, tasks in swept_together(questions, model.cfg.n_layers):
        rows = attempt(
            sweep, model, several, interventions, lambda n: None,  # a study shows its own bar
            read=lambda q, logits, x=several: scoring.read(model, logits, x[q]),
        )  # fmt: skip
        if isinstance(rows, Outcome):
            if rows.fault not in PASSING:  # said of the condition it comes from, when that is run alone
                continue
            rows = [[rows] * len(interventions)] * len(several)
        for inputs, shared, row in zip(several, tasks, rows, strict=True):
            for (condition, task), values in zip(shared, row, strict=True):
                results[task.key] = values
                if isinstance(values, Tensor) and int(task.key[:12], 16) % AUDITED == 0:
                    failure = attempt(audit.check, scoring, model, inputs, condition, values)
                    results[task.key] = values if failure is None else failure
    return results


def _alone(
    plan: Plan, model: Model, item: Item, inputs: VideoInputs, tasks: Tasks, sources: Sources
) -> Iterator[Outcome]:
    """Outcomes of conditions run one by one, from the pixels or from their first changed block."""
    start = attempt(_start, plan, model, inputs)
    for c, task in tasks:
        given = attempt(sources, item, c, task)
        if isinstance(start, Outcome) or isinstance(given, Outcome):
            yield start if isinstance(start, Outcome) else cast(Outcome, given)
        else:
            yield attempt(_run_alone, plan, model, item, start, c, given)


class _Start(NamedTuple):
    """Inputs as conditions begin from, with the baseline's last logits and the streams before its blocks."""

    inputs: VideoInputs
    logits: Tensor | None = None
    streams: Any = None


def _start(plan: Plan, model: Model, inputs: VideoInputs) -> _Start:
    if plan.study.reuse == "none":
        return _Start(inputs)
    inputs = model.encoded(inputs)
    if plan.scoring.reads_text:
        return _Start(inputs)
    n = plan.scoring.n_last(inputs)
    return _Start(inputs, *model.run_with_cache(inputs, names_filter="resid_pre", logits_to_keep=n))


def _run_alone(plan: Plan, model: Model, item: Item, start: _Start, c: Condition, sources: Any) -> Outcome:
    does, record = effects(c.interventions, model.cfg.n_layers), RunRecord()
    how = {"interventions": c.interventions, "sources": sources}
    if plan.scoring.reads_text:
        outcome = plan.scoring.generated(model, item, start.inputs, **how)
        if does.by_rule:  # a generation goes on as its prompt decides
            model(start.inputs, **how, return_type=None, record=record)
    else:
        logits = _logits(model, start, does, logits_to_keep=plan.scoring.n_last(start.inputs), record=record, **how)
        values = plan.scoring.read(model, logits[0], start.inputs)
        outcome = plan.scoring.outcome(model, item, values, start.inputs)
    return replace(outcome, left=tuple(of[0] for of in record.left)) if does.by_rule else outcome


def _logits(model: Model, start: _Start, does: Effects, **how: Any) -> Tensor:
    """Of the last positions, from the pixels or from the first changed block."""
    if start.logits is None or does.enters:
        return model(start.inputs, **how)
    if does.first_layer == model.cfg.n_layers:
        return start.logits
    first = does.first_layer
    return model(start.streams["resid_pre", first], start_at_layer=first, inputs=start.inputs, **how)


def _shares(model: Model, inputs: VideoInputs, intact: Costs, c: Condition, left: Left) -> Shares:
    """What a condition leaves of the intact run's operations, where another clip may have tokens of its own."""
    n = model.cfg.n_layers
    if not moves_tokens(model.cfg, effects(c.interventions, n).clips):
        return intact.shares(c.interventions, left)
    clips, rest = parted(c.interventions, n)
    return Costs(model.cfg, counterfactual(model, inputs, clips).layout).of(rest, left=left).shares(intact.of())


def _priced(outcome: Outcome, shares: Shares | None) -> Outcome:
    """The outcome with what its prompt's run costs, as shares of the baseline's."""
    if outcome.status == "failed" or shares is None:
        return outcome
    return replace(outcome, attention_share=shares.attention, decoder_share=shares.decoder)
