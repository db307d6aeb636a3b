"""Activations of a model over many questions, kept in a folder as each is done."""

import importlib.metadata
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hookedvid.activations.files import Record, Writer, add_questions, fix_settings, outcomes
from hookedvid.activations.rows import POOLS, Kept, Pool, Taker
from hookedvid.activations.store import Activations
from hookedvid.data.dataset import Dataset
from hookedvid.data.item import Item, jsonl, read_items, video_path
from hookedvid.errors import HookedVidError, HookError, InputError, InterventionError, NonFiniteError
from hookedvid.model.counterfactual import shown
from hookedvid.model.hook_verbs import Name
from hookedvid.nn.model import Model
from hookedvid.study.definition import check_bare
from hookedvid.study.records import model_hash
from hookedvid.study.rows import canonical, digest, key_of
from hookedvid.study.run.failures import PASSING, UNFORESEEN, attempt
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.values.effects import Intervention, effects
from hookedvid.values.files import locked
from hookedvid.values.hook_names import is_map, part_of
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import Asked, as_interventions, to_json
from hookedvid.values.layout import FrameBlendWarning
from hookedvid.values.progress import bar
from hookedvid.values.selectors import BY_FRAME, NAMES, as_selector, parse_selector, unknown_name
from hookedvid.values.serial import counted
from hookedvid.video import samplers
from hookedvid.video.clip_files import ClipRequest
from hookedvid.video.decoders import Decoders
from hookedvid.video.frames import Clip
from hookedvid.video.source import video_hash

LOCK = "lock"
Source = Iterable[Item] | Dataset | str | os.PathLike[str]


def collect(
    model: Model,
    items: Source,
    hooks: Name | Sequence[Name] | Callable[[str], bool],
    at: str | Sequence[str] = "all",
    *,
    folder: str | os.PathLike[str],
    pool: Pool | None = None,
    dtype: torch.dtype | str | None = None,
    interventions: Asked = None,
    n_frames: int | None = None,
    sampler: str | None = None,
    annotations: str | os.PathLike[str] = ".",
    batch_size: int = 1,
    retry_failed: bool = False,
    decoders: Decoders | None = None,
) -> Activations:
    """Activations of every item at the positions of a selector, kept in a folder and read back lazily.

    Items whose activations are in the folder are not run again, so that a call that was interrupted goes on: each batch
    is on disk before the next one runs. What goes wrong with one item is its record (`Activations.failed`), and the
    next is run. Videos are decoded ahead in processes of their own, and each goes through the tower once. A run goes no
    further than the last block that is asked for. Memory: the chosen rows of one batch, and a shard of 256 MiB where
    one is made of the files of single items.

    Args:
        model: Without hooks of its own.
        items: An items.jsonl, a dataset, or items, whose paths are relative to `annotations`.
        hooks: Names as `run_with_cache` takes them, of the stream, the decoder's blocks, tower or projector.
        at: A selector. In tower and projector it means the rows that its positions are made of.
        folder: Made if it is not there.
        pool: None keeps every row, with its position, frame, row and column; "mean" one mean an item; "frame" a mean
            for each frame (or frames that share tokens); "last" the last chosen position's.
        dtype: Rows are stored as; the model's unless given. Means are taken in float32 at least.
        interventions: Under which the items run; those that take nothing from other runs and are no functions.
        n_frames: Of each video; the config's unless given.
        sampler: Of frames; the config's unless given.
        batch_size: Items of one forward. It moves roundings alone.
        retry_failed: Run failed items again, whatever their reason; those of a reason that may pass are anyway.
        decoders: Decoding processes, with a cache of frames if they have one.

    Raises:
        HookError: For hooks on the model, and for hook points that hold no rows of positions.
        SelectorError: For a name that is no selector, and no group of any item.
        DataError: Where the folder holds activations of other settings.
        RunError: Where another process writes there, or nothing can be written: call again when that is mended.
    """
    check_bare(model)
    questions, beside = _questions(items, annotations)
    asked = as_interventions(interventions)
    job = _Job(model, beside, _names(model, hooks), at, pool, _dtype(model, dtype), asked, n_frames, sampler)
    job.check(questions)
    batch_size = counted("batch_size", batch_size)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, 1):
        fix_settings(folder, job.settings)
        with nullcontext(decoders) if decoders else Decoders() as running:
            _fill(folder, job, list(job.tasks(questions)), batch_size, retry_failed, running)
    return Activations(folder)


def _fill(
    folder: Path, job: "_Job", tasks: Sequence["Task"], batch_size: int, retry_failed: bool, decoders: Decoders
) -> None:
    """Run what the folder does not hold yet."""
    add_questions(folder, tasks)
    known = outcomes(folder)
    todo = [(item, key) for item, key in tasks if key not in known or _again(known[key].record, retry_failed)]
    writer = Writer(folder)
    units = ((unit, job.requests(unit)) for unit in _units(todo, batch_size))
    with bar(len(tasks), "collecting", "items") as done:
        done(len(tasks) - len(todo))
        for unit, batch in decoders.ahead(units):
            for record, rows in job.run(unit, batch.clips, batch_size):
                writer.append(record, rows)
                done(1)
    writer.merge()


def _questions(items: Source, annotations: str | os.PathLike[str]) -> tuple[list[Item], Path]:
    """Items, and the file or folder that their paths are relative to."""
    if isinstance(items, str | os.PathLike):
        return read_items(items), Path(items)
    if isinstance(items, Dataset):
        return items.items, items.folder
    questions = list(items)
    if strange := [x for x in questions if not isinstance(x, Item)]:
        raise InputError(
            f"{type(strange[0]).__name__} is no item: collect takes an items.jsonl, a dataset, or a list of "
            "hookedvid.data.item.Item; of inputs at hand run_with_cache keeps the activations"
        )
    jsonl(questions)  # raises where two share an id
    return questions, Path(annotations)


def _names(model: Model, hooks: Any) -> list[str]:
    if hooks is None:
        raise HookError("say which hook points are to be collected, such as 'resid_post'; all of them are too many")
    names: list[str] = model.names(hooks)
    if maps := [n for n in names if is_map(n)]:
        raise HookError(f"{maps[0]} is an attention map, as large as two sequences: read sums of it by model.attention")
    if late := [n for n in names if n.startswith("ln_final")]:
        raise HookError(f"{late[0]} is behind the last block: collect its resid_post, and give that to model.ln_final")
    return names


def _dtype(model: Model, dtype: torch.dtype | str | None) -> torch.dtype:
    own = next(model.parameters()).dtype
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else own if dtype is None else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype is {dtype!r}; activations are stored as float16, bfloat16, float32 or float64")
    return found


def _again(record: Record, retry_failed: bool) -> bool:
    return record.status == "failed" and (retry_failed or record.fault in (*PASSING, UNFORESEEN))


Task = tuple[Item, str]  # with its key


def _units(tasks: Sequence[Task], batch_size: int) -> Iterator[list[Task]]:
    """Tasks video by video; several videos are one unit where a batch has room for all that is asked of them."""
    by_video: dict[tuple[Any, ...], list[Task]] = {}
    for item, key in tasks:
        by_video.setdefault((item.video, item.bound, item.folder_fps), []).append((item, key))
    unit: list[Task] = []
    for own in by_video.values():
        if unit and len(unit) + len(own) > batch_size:
            yield unit
            unit = []
        unit += own
    if unit:
        yield unit


class _Job:
    """What is done to every item of one call.

    Attributes:
        settings: What fixes every number.
    """

    def __init__(
        self, model: Model, annotations: Path, names: list[str], at: Any, pool: Any, dtype: torch.dtype,
        interventions: tuple[Intervention, ...], n_frames: int | None, sampler: str | None,
    ):  # fmt: skip
        cfg = model.cfg
        if pool is not None and pool not in POOLS:
            raise InputError(f"pool is {pool!r}; it can be None, {', '.join(map(repr, POOLS))}")
        if taken := [name for i in interventions for name in getattr(i, "sources", ())]:
            raise InterventionError(
                f"an intervention takes from {taken[0]!r}, which nothing here holds; run those inputs with sources=… "
                "and keep their caches (VideoCache.save)"
            )
        clips = effects(interventions, cfg.n_layers).clips
        if files := [f for clip in clips for f in clip.files]:
            raise InterventionError(
                f"an intervention shows frames of {files[0]}, and the keys of items say nothing of that file's bytes; "
                "collect items of that file"
            )
        self._model, self._annotations, self._names, self._dtype = model, annotations, names, dtype
        self._pool: Pool | None = pool
        self._at, self._interventions, self._cuts = as_selector(at), interventions, canonical(to_json(interventions))
        self._n_frames = cfg.n_frames if n_frames is None else n_frames
        self._sampler = sampler or cfg.sampler
        samplers.check(self._sampler, self._n_frames)
        blocks = [int(n.split(".")[1]) for n in names if n.startswith("blocks.")]
        self._stop = 1 + max(blocks, default=-1)
        self._encodes_once = not clips and not any(part_of(n) in ("tower", "projector") for n in names)
        self.settings: dict[str, Any] = {
            "model": model_hash(model),
            "model_name": cfg.model_name or cfg.family,
            "n_layers": cfg.n_layers,
            "hooks": names,
            "at": self._at,
            "pool": pool,
            "stored": str(dtype).removeprefix("torch."),
            "interventions": to_json(interventions),
            "n_frames": self._n_frames,
            "sampler": self._sampler,
            "prompt": cfg.prompt,
            "time_instruction": cfg.time_instruction,
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "kernel": model.kernel,
            "device": model.device.type,
            **{p: importlib.metadata.version(p) for p in ("hookedvid", "torch", "av")},
        }

    def check(self, items: Sequence[Item]) -> None:
        """Raise, before anything runs, for selectors that no item has, and for means by frame of what is in none."""
        at = [term.name for term in parse_selector(self._at)]
        groups = list(dict.fromkeys(name for item in items for name in item.groups))
        others = effects(self._interventions, self._model.cfg.n_layers).selectors
        for selector in (self._at, *others):
            for term in parse_selector(selector):
                if term.name not in (*NAMES, *groups):
                    raise unknown_name(term.name, selector, groups)
        if self._pool == "frame" and not any(name in (*BY_FRAME, "all", *groups) for name in at):
            raise InputError(f"no position of {self._at!r} is in a frame, so that there is nothing to pool by frame")

    def tasks(self, items: Sequence[Item]) -> Iterator[Task]:
        """Each item with the key of all that fixes its rows; a video is read once, for its hash."""
        self._hashes: dict[str, str] = {}
        with bar(len(items), "hashing videos", "items") as done:
            for item in items:
                path = str(video_path(item, self._annotations))
                if path not in self._hashes:
                    self._hashes[path] = video_hash(path)
                own = [item.question, item.options, item.bound, item.folder_fps, item.groups]
                fixed = self.settings | {"video": self._hashes[path], "question": digest(canonical(own))}
                yield item, key_of(item.id, self._cuts, canonical(fixed))
                done(1)

    def request(self, item: Item) -> ClipRequest:
        """An item's clip."""
        path = str(video_path(item, self._annotations))
        sampling = (self._n_frames, self._sampler, item.bound, item.folder_fps)
        return ClipRequest(path, *sampling, content=self._hashes[path])

    def requests(self, unit: Sequence[Task]) -> list[ClipRequest]:
        """The clips of a unit."""
        return list(dict.fromkeys(self.request(item) for item, _ in unit))

    def run(
        self, unit: Sequence[Task], clips: Mapping[ClipRequest, Clip | HookedVidError], batch_size: int
    ) -> Iterator[tuple[Record, dict[str, Kept]]]:
        """What becomes of each item, in order of batches."""
        ready: list[tuple[Task, VideoInputs]] = []
        seen: dict[ClipRequest, VideoInputs] = {}
        several = Counter(self.request(item) for item, _ in unit)
        for item, key in unit:
            request = self.request(item)
            inputs = attempt(self._prepared, item, clips[request])
            if several[request] > 1 and self._encodes_once and not isinstance(inputs, Outcome):
                inputs = attempt(self._encoded, inputs, request, seen)
            if isinstance(inputs, Outcome):
                yield _failed(key, inputs), {}
            else:
                ready.append(((item, key), inputs))
        for start in range(0, len(ready), batch_size):
            some = ready[start : start + batch_size]
            found = attempt(self._kept, [inputs for _, inputs in some])
            if isinstance(found, Outcome):  # whose fault it was: each alone
                outcomes = [found] if len(some) == 1 else [attempt(self._kept, [inputs]) for _, inputs in some]
                each = [o if isinstance(o, Outcome) else o[0] for o in outcomes]
            else:
                each = found
            for ((_, key), _), one in zip(some, each, strict=True):
                if not isinstance(one, Outcome):
                    one = attempt(self._finite, one)
                if isinstance(one, Outcome):
                    yield _failed(key, one), {}
                else:
                    yield Record(key), one

    def _prepared(self, item: Item, clip: Clip | HookedVidError) -> VideoInputs:
        if isinstance(clip, HookedVidError):
            raise clip
        ask = partial(self._model.prepare, clip, n_frames=self._n_frames, sampler=self._sampler)
        return ask(item.question, item.options).with_groups(item.groups)

    def _encoded(self, inputs: VideoInputs, request: ClipRequest, seen: dict[ClipRequest, VideoInputs]) -> VideoInputs:
        """The inputs with what the tower gives of their clip, which questions on one clip share."""
        if request not in seen:
            seen[request] = self._model.encoded(inputs)
        return replace(inputs, features=seen[request].features, encoder=seen[request].encoder)

    @torch.no_grad()
    def _kept(self, several: Sequence[VideoInputs]) -> list[dict[str, Kept]]:
        """The rows of each item, by hook point, of one forward."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FrameBlendWarning)  # the labels say which frames share tokens
            inputs, rest = shown(self._model, VideoInputs.stack(several), self._interventions)
            taker = Taker(self._model, inputs.layouts, self._at, self._pool, self._dtype)
            self._model.run_with_hooks(
                inputs, fwd_hooks=[(name, taker) for name in self._names], interventions=rest, record=taker.record,
                stop_at_layer=self._stop, return_type=None,
            )  # fmt: skip
        return [{name: kept[i] for name, kept in taker.kept.items()} for i in range(len(several))]

    def _finite(self, kept: dict[str, Kept]) -> dict[str, Kept]:
        for name, (values, _) in kept.items():
            if not bool(torch.isfinite(values).all()):
                raise NonFiniteError(
                    f"{name} is not finite as {self.settings['stored']}: store it as bfloat16 or float32, or look at "
                    "the model's own dtype"
                )
        return kept


def _failed(key: str, outcome: Outcome) -> Record:
    return Record(key, "failed", outcome.reason, outcome.fault)
