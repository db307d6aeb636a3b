"""Running a study's tasks: video by video, each row stored as soon as its video is done."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hookedvid.data.item import Item, subtitles_path, video_path
from hookedvid.errors import HookedVidError, InputError
from hookedvid.flops import Costs
from hookedvid.inputs import VideoInputs
from hookedvid.masks import first_layer
from hookedvid.sharing import shareable, stream_length
from hookedvid.study import grounding, scoring
from hookedvid.study.protocols import Condition
from hookedvid.study.records import Records, Shard, Task
from hookedvid.study.scoring import Outcome
from hookedvid.study.study import Plan
from hookedvid.sweep import sweep
from hookedvid.video.subtitles import shown_subtitles

# A row whose key falls on a multiple of this is run once more from the pixels.
AUDITED = 100
# Rounding moves logits of order 1 to 10 by far less than this; a wrong share moves them by tenths.
THRESHOLD = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}

Asked = list[tuple[Condition, Task]]  # what is asked of one item


class Audit:
    """Rows that were run again without sharing anything, and how far their logits or log-probabilities were off."""

    def __init__(self) -> None:
        self.n = 0
        self.largest = 0.0

    def check(self, model: Any, inputs: VideoInputs, condition: Condition, values: Tensor) -> None:
        """Run a condition from the pixels; raises HookedVidError beyond what rounding can do."""
        whole = model(inputs, interventions=condition.interventions, logits_to_keep=scoring.n_last(inputs))
        off = (scoring.read(model, whole[0], inputs).double() - values.double()).abs().max().item()
        self.n, self.largest = self.n + 1, max(self.largest, off)
        if not off <= THRESHOLD[whole.dtype]:
            raise HookedVidError(
                f"{condition.label}: logits of the sweep are off by {off:.2e} from a plain run, more than rounding "
                'does; please report it, and run with reuse = "layers"'
            )


def run(
    laid: Plan,
    model: Any,
    folder: Path,
    on_row: Callable[[dict, bool], None] | None = None,
    shard: Shard | None = None,
    audit: Audit | None = None,
) -> list[dict]:
    """One row for each item and condition, in plan order; those already in the folder are not run again.

    Conditions of different protocols that do the same share one stored row. `on_row(row, fresh)` is called
    for each as it is known. Killed at any moment, at most the rows of the video in flight are lost. With a
    shard, only its videos' rows.
    """
    shard, audit = shard or Shard(), audit or Audit()
    records = Records(folder, shard)
    done, cut_short = records.read(), records.last_video()
    found: dict[str, dict] = {}
    mine: set[str] = set()
    with records.writer() as writer:
        for number, (video, items) in enumerate(_by_video(laid).items()):
            if number % shard.count != shard.index:
                continue
            mine.add(video)
            distinct = [(item, _distinct(asked)) for item, asked in items]
            missing = [(item, [(c, t) for c, t in asked if t.key not in done]) for item, asked in distinct]
            # Rows computed together share their rounding: of a video cut short, all are computed once more.
            work = distinct if video == cut_short and any(asked for _, asked in missing) else missing
            for (_, task), outcome in _run_video(laid, model, [(i, a) for i, a in work if a], audit):
                if task.key not in done:
                    found[task.key] = done[task.key] = writer.append(task, outcome)
            for _, asked in items:
                for _, task in asked:
                    if on_row is not None:
                        on_row(_named(done[task.key], task), found.pop(task.key, None) is not None)
    return [_named(done[t.key], t) for i, _, t in laid.tasks if i.video in mine]


def _named(row: dict, task: Task) -> dict:
    names = {"condition": task.condition, "protocol": task.protocol, "knockout": task.knockout, "layer": task.layer}
    return row | names


def _by_video(laid: Plan) -> dict[str, list[tuple[Item, Asked]]]:
    grouped: dict[str, dict[str, tuple[Item, Asked]]] = {}
    for item, condition, task in laid.tasks:
        grouped.setdefault(item.video, {}).setdefault(item.id, (item, []))[1].append((condition, task))
    return {video: list(items.values()) for video, items in grouped.items()}


def _distinct(asked: Asked) -> Asked:
    return list({t.key: (c, t) for c, t in reversed(asked)}.values())[::-1]


@torch.no_grad()
def _run_video(
    laid: Plan, model: Any, items: Sequence[tuple[Item, Asked]], audit: Audit
) -> Iterator[tuple[tuple[Condition, Task], Outcome]]:
    """Outcomes of all that is asked about one video, in order."""
    prepared: dict[str, VideoInputs | HookedVidError] = {}
    for item, _ in items:
        try:
            prepared[item.id] = _prepare(laid, model, item)
        except HookedVidError as e:
            prepared[item.id] = e
    values: dict[str, Tensor] = {}
    if laid.study.reuse == "layers+positions" and laid.study.scoring not in scoring.GENERATED:
        values = _swept(model, [(prepared[i.id], asked) for i, asked in items], audit)
    for item, asked in items:
        inputs = prepared[item.id]
        if isinstance(inputs, HookedVidError):
            yield from ((one, Outcome.failed(inputs)) for one in asked)
            continue
        left = [one for one in asked if one[1].key not in values]
        alone = iter(_alone(laid, model, item, inputs, [c for c, _ in left]))
        costs = Costs(model.cfg, inputs.layout)
        for one in asked:
            swept = one[1].key in values
            found = scoring.outcome(model, item, values[one[1].key], inputs) if swept else next(alone)
            yield one, _priced(found, costs, one[0])


def _prepare(laid: Plan, model: Any, item: Item) -> VideoInputs:
    sampling = {k: laid.settings[k] for k in ("n_frames", "sampler", "time_instruction", "markers_are_language")}
    if laid.study.frame_order == "time":  # shuffled frames come sampled
        sampling |= {"bound": item.bound, "folder_fps": item.folder_fps}
    form = laid.convention.form_for(model.cfg.family) if laid.convention else None
    subtitles = None
    if laid.convention is not None and form is not None and form.wants_subtitles:
        n = laid.convention.subtitle_frames_for(model.cfg.family)
        subtitles = shown_subtitles(subtitles_path(item, laid.annotations), video_path(item, laid.annotations), n)
    return scoring.prepare(model, item, _video(laid, item), laid.study.scoring, form, subtitles, **sampling)


def _swept(model: Any, asked: Sequence[tuple[VideoInputs | HookedVidError, Asked]], audit: Audit) -> dict[str, Tensor]:
    """What outcomes are made of, by row, of all that one or several sweeps can share; what fails is left out."""
    groups: dict[Any, list[tuple[VideoInputs, Asked]]] = {}
    for inputs, conditions in asked:
        if not isinstance(inputs, VideoInputs) or not (n := stream_length(inputs.layout)):
            continue
        shared = [one for one in conditions if shareable(one[0].interventions, inputs.layout)]
        if shared:
            # Questions asked under the same conditions, behind the same tokens.
            alike = (tuple(inputs.tokens[0, :n].tolist()), tuple(c.interventions for c, _ in shared))
            groups.setdefault(alike, []).append((inputs, shared))
    kept: dict[str, Tensor] = {}
    for (_, interventions), members in groups.items():
        several = [inputs for inputs, _ in members]
        try:
            found = sweep(
                model, several, interventions, read=lambda q, logits, x=several: scoring.read(model, logits, x[q])
            )
        except HookedVidError:  # said of the condition it comes from, when that is run alone
            continue
        for (inputs, shared), row in zip(members, found, strict=True):
            for (condition, task), values in zip(shared, row, strict=True):
                kept[task.key] = values
                if int(task.key[:12], 16) % AUDITED == 0:
                    audit.check(model, inputs, condition, values)
    return kept


def _alone(
    laid: Plan, model: Any, item: Item, inputs: VideoInputs, conditions: Sequence[Condition]
) -> Iterator[Outcome]:
    """Outcomes of conditions run one by one, from the pixels or from their first changed block."""
    if not conditions:
        return
    generates, n = laid.study.scoring in scoring.GENERATED, scoring.n_last(inputs)
    intact, streams = None, None
    if not generates and laid.study.reuse != "none":
        intact, streams = model.run_with_cache(inputs, names_filter="resid_pre", logits_to_keep=n)
    for c in conditions:
        try:
            if generates:
                yield _generated(laid, model, item, inputs, c)
                continue
            first = first_layer(c.interventions, model.cfg.n_layers)
            if streams is None or intact is None:
                logits = model(inputs, interventions=c.interventions, logits_to_keep=n)
            elif first == model.cfg.n_layers:
                logits = intact
            else:
                logits = model(
                    streams["resid_pre", first], start_at_layer=first, inputs=inputs, interventions=c.interventions,
                    logits_to_keep=n,
                )  # fmt: skip
            yield scoring.outcome(model, item, scoring.read(model, logits[0], inputs), inputs)
        except InputError as e:
            yield Outcome.failed(e)


def _generated(laid: Plan, model: Any, item: Item, inputs: VideoInputs, condition: Condition) -> Outcome:
    if laid.study.scoring == "grounding":
        return grounding.generated(model, item, inputs, condition.interventions)
    return scoring.generated(model, item, inputs, condition.interventions, laid.convention)


def _priced(outcome: Outcome, costs: Costs, condition: Condition) -> Outcome:
    """The outcome with what its prompt's run costs, as shares of the intact one."""
    if outcome.status == "failed":
        return outcome
    shares = costs.shares(condition.interventions)
    return replace(outcome, attention_share=shares.attention, decoder_share=shares.decoder)


def _video(laid: Plan, item: Item) -> Any:
    path = video_path(item, laid.annotations)
    if laid.study.frame_order == "time":
        return path
    from hookedvid.video.frames import read_frames

    part = {"bound": item.bound, "folder_fps": item.folder_fps}
    frames = read_frames(path, laid.settings["n_frames"], laid.settings["sampler"], **part)
    # A clip's own order: the same for every question on it, whatever else the study asks.
    rng = np.random.default_rng([laid.study.seed, *item.video.encode()])
    return frames[rng.permutation(len(frames))]
