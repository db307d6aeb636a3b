"""Running a study's tasks: video by video, each row stored as soon as its video is done.

Videos are decoded ahead of the model in processes of their own (`video.decoders`). What goes wrong with one video
or one item becomes failed rows, which say why; what goes wrong with the run itself stops it, for a restart to go on.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hookedvid.data.item import Item, subtitles_path, video_path
from hookedvid.errors import DecodingError, HookedVidError, InputError, VideoError
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
from hookedvid.video.clip_files import ClipRequest
from hookedvid.video.decoders import Batch, Decoders
from hookedvid.video.frames import Clip
from hookedvid.video.subtitles import shown_subtitles

# A row whose key falls on a multiple of this is run once more from the pixels.
AUDITED = 100
# Rounding moves logits of order 1 to 10 by far less than this; a wrong share moves them by tenths.
THRESHOLD = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}

# Failures that another run may not meet; it tries their rows once more.
PASSING = ("timeout", "memory", "killed")
# How torch's allocators say that memory ran out where they do not raise torch.OutOfMemoryError.
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")

Asked = list[tuple[Condition, Task]]  # what is asked of one item
Clips = Mapping[ClipRequest, Clip | HookedVidError]


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


@dataclass
class Timing:
    """Where a run's seconds went: decoding (in the processes), the model, and waiting for frames; by video, too."""

    decoding: float = 0.0
    model: float = 0.0
    waited: float = 0.0
    n_processes: int = 0
    n_clips: int = 0
    n_cached: int = 0
    n_lost: int = 0
    videos: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, video: str, batch: Batch, seconds: float) -> None:
        """Count a video that was run in `seconds`, waiting left out."""
        self.decoding, self.waited = self.decoding + batch.decoding, self.waited + batch.waited
        self.model += seconds
        self.n_clips, self.n_cached = self.n_clips + len(batch.clips), self.n_cached + batch.n_cached
        self.videos[video] = {"decoding": round(batch.decoding, 3), "model": round(seconds, 3)}

    def __str__(self) -> str:
        line = (
            f"decoding {self.decoding:.1f} s in {self.n_processes} workers, model {self.model:.1f} s, "
            f"waited for frames {self.waited:.1f} s"
        )
        line += f"; {self.n_cached} of {self.n_clips} clips were kept from before" if self.n_cached else ""
        return line + (f"; {self.n_lost} workers hung or died" if self.n_lost else "")


def run(
    laid: Plan,
    model: Any,
    folder: Path,
    on_row: Callable[[dict, bool], None] | None = None,
    shard: Shard | None = None,
    audit: Audit | None = None,
    *,
    decoders: Decoders | None = None,
    retry_failed: bool = False,
    timing: Timing | None = None,
) -> list[dict]:
    """One row for each item and condition, in plan order; those already in the folder are not run again.

    Conditions of different protocols that do the same share one stored row. `on_row(row, fresh)` is called
    for each as it is known. Killed at any moment, at most the rows of the video in flight are lost. With a
    shard, only its videos' rows. Failed rows of a cause that may pass (`PASSING`) are run again, all failed ones
    with `retry_failed`. `decoders` without a cache, unless given; `timing` is added to.

    Raises RunError where no run can go on, such as on a full disk: run it again when that is mended.
    """
    shard, audit, timing = shard or Shard(), audit or Audit(), timing or Timing()
    records = Records(folder, shard)
    stored, cut_short = records.read(), records.last_video()
    done = {key: row for key, row in stored.items() if not _again(row, retry_failed)}
    units = [unit for n, unit in enumerate(_by_video(laid).items()) if n % shard.count == shard.index]
    work = ((unit, _work(unit[1], done, stored, whole=unit[0] == cut_short)) for unit in units)
    with records.writer() as writer, Decoders() if decoders is None else nullcontext(decoders) as pool:
        asked = (((video, items, left), _requests(laid, left)) for (video, items), left in work)
        for (video, items, left), batch in pool.ahead(asked):
            start = time.perf_counter()
            fresh: dict[str, dict] = {}
            for (_, task), outcome in _run_video(laid, model, left, batch.clips, audit):
                if task.key not in done:
                    fresh[task.key] = writer.append(task, outcome)
            if fresh:
                timing.add(video, batch, time.perf_counter() - start)
            if on_row is not None:
                new = set(fresh)
                for task in (t for _, asked in items for _, t in asked):
                    on_row(_named(fresh.get(task.key) or done[task.key], task), task.key in new)
                    new.discard(task.key)
        timing.n_processes, timing.n_lost = pool.n, pool.n_lost
    rows, mine = records.read(), {video for video, _ in units}
    return [_named(rows[t.key], t) for i, _, t in laid.tasks if i.video in mine]


def _again(row: Mapping[str, Any], retry_failed: bool) -> bool:
    return row["status"] == "failed" and (retry_failed or row.get("fault") in PASSING)


def _work(
    items: Sequence[tuple[Item, Asked]], done: Mapping[str, Any], stored: Mapping[str, Any], whole: bool
) -> list[tuple[Item, Asked]]:
    """What of a video's items is run: what has no row yet; nothing where all have.

    Rows computed together share their rounding, so of a video that was cut short (`whole`), or of which failed rows
    are run again, everything is computed once more.
    """
    distinct = [(item, _distinct(asked)) for item, asked in items]
    missing = [(item, [(c, t) for c, t in asked if t.key not in done]) for item, asked in distinct]
    left = [(item, asked) for item, asked in missing if asked]
    return distinct if left and (whole or any(t.key in stored for _, asked in left for _, t in asked)) else left


def _requests(laid: Plan, items: Sequence[tuple[Item, Asked]]) -> list[ClipRequest]:
    return list({_request(laid, item): None for item, _ in items})


def _request(laid: Plan, item: Item) -> ClipRequest:
    source = str(video_path(item, laid.annotations))
    return ClipRequest(source, laid.settings["n_frames"], laid.settings["sampler"], item.bound, item.folder_fps)


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
    laid: Plan, model: Any, items: Sequence[tuple[Item, Asked]], clips: Clips, audit: Audit
) -> Iterator[tuple[tuple[Condition, Task], Outcome]]:
    """Outcomes of all that is asked about one video, in order."""
    prepared = {item.id: _prepare(laid, model, item, clips[_request(laid, item)]) for item, _ in items}
    values: dict[str, Tensor | Outcome] = {}
    if laid.study.reuse == "layers+positions" and laid.study.scoring not in scoring.GENERATED:
        values = _swept(model, [(prepared[i.id], asked) for i, asked in items], audit)
    for item, asked in items:
        inputs = prepared[item.id]
        if isinstance(inputs, Outcome):
            yield from ((one, inputs) for one in asked)
            continue
        left = [one for one in asked if one[1].key not in values]
        alone = iter(_alone(laid, model, item, inputs, [c for c, _ in left]))
        costs = Costs(model.cfg, inputs.layout)
        for one in asked:
            found = values[one[1].key] if one[1].key in values else next(alone)
            outcome = found if isinstance(found, Outcome) else scoring.outcome(model, item, found, inputs)
            yield one, _priced(outcome, costs, one[0])


def _failed(e: Exception) -> Outcome:
    """What a failure comes to; one that has nothing to do with the video or the item is raised again.

    Memory that ran out is such an item's too: other items are shorter, and another run may find more free.
    """
    if isinstance(e, DecodingError):
        return Outcome.failed(e, e.fault)
    if isinstance(e, HookedVidError):
        return Outcome.failed(e, "video" if isinstance(e, VideoError) else "input")
    said = str(e).partition("\n")[0]
    if isinstance(e, MemoryError | torch.OutOfMemoryError) or any(words in said for words in NO_MEMORY):
        todo = 'free some, take fewer frames, or run with reuse = "layers" or "none"'
        return Outcome("failed", reason=f"the model ran out of memory ({said}); {todo}", fault="memory")
    raise e


def _prepare(laid: Plan, model: Any, item: Item, clip: Clip | HookedVidError) -> VideoInputs | Outcome:
    if isinstance(clip, HookedVidError):
        return _failed(clip)
    sampling = {k: laid.settings[k] for k in ("n_frames", "sampler", "time_instruction", "markers_are_language")}
    form = laid.convention.form_for(model.cfg.family) if laid.convention else None
    if laid.study.frame_order == "shuffled":
        clip = shuffled(clip, laid.study.seed, item.video)
    try:
        said = _subtitles(laid, model, item) if form is not None and form.wants_subtitles else None
        return scoring.prepare(model, item, clip, laid.study.scoring, form, said, **sampling)
    except (HookedVidError, RuntimeError, MemoryError) as e:
        return _failed(e)


def _subtitles(laid: Plan, model: Any, item: Item) -> str:
    assert laid.convention is not None
    n = laid.convention.subtitle_frames_for(model.cfg.family)
    return shown_subtitles(subtitles_path(item, laid.annotations), video_path(item, laid.annotations), n)


def _swept(
    model: Any, asked: Sequence[tuple[VideoInputs | Outcome, Asked]], audit: Audit
) -> dict[str, Tensor | Outcome]:
    """What outcomes are made of, by row, of all that one or several sweeps can share.

    What fails there is left out, to be run alone; but where memory runs out the rows fail: run alone, they would
    not repeat to the last bit.
    """
    groups: dict[Any, list[tuple[VideoInputs, Asked]]] = {}
    for inputs, conditions in asked:
        if not isinstance(inputs, VideoInputs) or not (n := stream_length(inputs.layout)):
            continue
        shared = [one for one in conditions if shareable(one[0].interventions, inputs.layout)]
        if shared:
            # Questions asked under the same conditions, behind the same tokens.
            alike = (tuple(inputs.tokens[0, :n].tolist()), tuple(c.interventions for c, _ in shared))
            groups.setdefault(alike, []).append((inputs, shared))
    kept: dict[str, Tensor | Outcome] = {}
    for (_, interventions), members in groups.items():
        several = [inputs for inputs, _ in members]
        try:
            found = sweep(
                model, several, interventions, read=lambda q, logits, x=several: scoring.read(model, logits, x[q])
            )
        except HookedVidError:  # said of the condition it comes from, when that is run alone
            continue
        except (RuntimeError, MemoryError) as e:
            kept |= dict.fromkeys((task.key for _, shared in members for _, task in shared), _failed(e))
            continue
        for (inputs, shared), row in zip(members, found, strict=True):
            for (condition, task), values in zip(shared, row, strict=True):
                kept[task.key] = values
                if int(task.key[:12], 16) % AUDITED == 0:
                    try:
                        audit.check(model, inputs, condition, values)
                    except (RuntimeError, MemoryError) as e:
                        kept[task.key] = _failed(e)
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
        try:
            intact, streams = model.run_with_cache(inputs, names_filter="resid_pre", logits_to_keep=n)
        except (RuntimeError, MemoryError) as e:
            yield from [_failed(e)] * len(conditions)
            return
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
        except (InputError, RuntimeError, MemoryError) as e:
            yield _failed(e)


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


def shuffled(clip: Clip, seed: int, video: str) -> Clip:
    """A clip in an order of its own: the same for every question on it, whatever else the study asks."""
    rng = np.random.default_rng([seed, *video.encode()])
    return clip._replace(frames=clip.frames[rng.permutation(len(clip.frames))])
