"""What is left of a study to run, before it runs: operations, forwards' worth and memory, by grade of reuse.

No video is opened: prompts are laid out as the run does it, for as many frames as are asked for (a short clip may have
fewer), taken as 480 x 854 pixels and without repetition where frames keep their shape, with a minute's times and the
subtitles of a video that ends with the last of them. Of many videos some are looked at and stand for the others. Runs
of sources are counted as the run makes them, reference sets as often as they are not stored yet. Memory is the largest
tensors alive at once, beside the weights and what is kept of sources; b is a number's bytes, d the model's width,
kv = 2 n_kv_heads d_head.

* A forward of N rows: b N (3 d + 2 d_mlp + kv), the stream before and inside a block, its MLP's intermediates and its
  keys and values. `layers` also keeps the stream before every block: b N d n_layers.
* A sweep: a stream [video and before, d] for each branching of the tree above a block, the text states of every block
  on the way there, and what the stream (few states of text behind it), or the texts run at once, take inside a block:
  of N rows b N (6 d + 2 kv) in attention, then b (N (2 d + kv) + n (2 d + 2 d_mlp)), n rows at a time in the MLP
  (all where a patch or an edit writes to them).
* An attribution: what `layers` keeps, each block's activations being computed anew for its backward. One of nodes
  also keeps them of the other run, or along a path them and their gradients of the run before: b N d, or twice that,
  for each hook point.
* The tower: b rows (3 d + 2 d_mlp) of all frames at once, and their pixels twice.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hookedvid.data.item import Item
from hookedvid.model.flops import (
    Costs,
    Flops,
    block_linear,
    head_pairs,
    keys_values,
    pair,
    patch_grid,
    unembedding,
    video,
)
from hookedvid.model.prepare import USUAL
from hookedvid.nn.model import Model
from hookedvid.study.definition import Plan, Reuse
from hookedvid.study.records import Folder, Records
from hookedvid.study.results.adaptive import Course
from hookedvid.study.run.failures import attempt
from hookedvid.study.run.gradients import ATTENTION, LINEAR, worth
from hookedvid.study.run.inputs import prepared
from hookedvid.study.run.rounds import at_most
from hookedvid.study.run.sharing import Tasks, swept_together
from hookedvid.study.run.sources import Asked, Given, Need, store_in
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.sweep.run import mlp_pieces, states_a_call
from hookedvid.sweep.tree import Changes, Node, Sweep, shareable
from hookedvid.values.clips import by_clip, parted
from hookedvid.values.config import DecoderConfig, VideoLLMConfig
from hookedvid.values.effects import Cut, Intervention, effects
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.layout import TokenLayout

LOOKED_AT = 16  # videos; prompts differ by their questions alone

Interventions = tuple[Intervention, ...]
Questions = list[tuple[VideoInputs, Tasks]]  # on one video
T = TypeVar("T")


@dataclass(frozen=True)
class Work:
    """What one grade of reuse takes: operations, and bytes at the peak beside the weights."""

    reuse: Reuse
    flops: float | int
    memory: int


@dataclass(frozen=True)
class Estimate:
    """A study's size and what is left of it to run.

    Generated text is not in it, only its prompts.

    Attributes:
        n_left: Videos with rows to run.
        n_looked_at: Those laid out of them.
        n_distinct: Conditions that do different things.
        forward: Operations of an intact forward from the pixels, mean of the prompts laid out.
        tokens: The shortest and the longest of them.
        works: None where nothing is left, or no prompt can be laid out. Of an adaptive study, all that it may ask.
        least: Of an adaptive study, the videos that a condition takes at least to be critical, and to be not.
        size: Height and width that all frames are taken to have; None where the tower brings them to its own.
    """

    reuse: Reuse
    n_conditions: int
    n_distinct: int
    n_questions: int
    n_videos: int
    n_rows: int
    n_done: int
    n_left: int
    n_looked_at: int
    n_frames: int
    tokens: tuple[int, int]
    forward: Flops
    weights: int
    works: tuple[Work, ...]
    least: tuple[int, int] | None = None
    size: tuple[int, int] | None = None

    def __str__(self) -> str:
        distinct = f" ({self.n_distinct} distinct)" if self.n_distinct < self.n_conditions else ""
        lines = [
            f"{self.n_conditions} conditions{distinct} x {self.n_questions} questions on {self.n_videos} videos: "
            f"{self.n_rows:,} rows, {self.n_done:,} of them done"
        ]
        if not self.works:
            return "\n".join([*lines, "nothing left that could be run"])
        f, (short, long) = self.forward, self.tokens
        parts = ", ".join(f"{p} {getattr(f, p) / f.total:.0%}" for p in ("linear", "attention", "tower", "projector"))
        tokens = f"{short:,}" if short == long else f"{short:,}–{long:,}"
        size = "" if self.size is None else " taken as {}x{}".format(*self.size)
        lines.append(f"{tokens} tokens, {self.n_frames} frames{size}: {_si(f.total)}FLOP a forward ({parts})")
        for w in self.works:
            mark = "  <- this study" if w.reuse == self.reuse and len(self.works) > 1 else ""
            lines.append(
                f"reuse {w.reuse:<16} {w.flops / f.total:>11,.0f} forwards {_si(w.flops):>7}FLOP "
                f"{_si(w.memory + self.weights):>7}B with weights{mark}"
            )
        if self.least is not None:
            lines.append(self._adaptive(next(w for w in reversed(self.works) if w.reuse in (self.reuse, "none"))))
        if self.n_looked_at < self.n_left:
            lines.append(f"reckoned from {self.n_looked_at} of {self.n_left} videos")
        return "\n".join(lines)

    def _adaptive(self, work: Work) -> str:
        """What is spent at least, and at most where no verdict can be settled."""
        assert self.least is not None
        kinds = zip(("critical", "not critical"), self.least, strict=True)
        said = [f"{n}{' (there are fewer)' * (n > self.n_videos)} to be {kind}" for kind, n in kinds]
        rest = max(0.0, self.n_rows * min(1.0, min(self.least) / self.n_videos) - self.n_done)
        most = work.flops / self.forward.total
        return (
            f"adaptive: of {self.n_videos} videos a condition takes at least {' and '.join(said)}; "
            f"{most * rest / max(1, self.n_rows - self.n_done):,.0f} to {most:,.0f} forwards"
        )


def estimate(plan: Plan, model: Model, folder: Folder | None = None) -> Estimate:
    """What `run` will take for the rows that are not in `folder` yet; nothing is run and no video opened."""
    done: Collection[str] = () if folder is None else Records.of(folder).read().keys()
    least = None
    if plan.study.adaptive:
        course = Course(plan.study, plan.items, plan.conditions, plan.scoring)
        plan, least = at_most(plan, course), course.least()
    keys = {t.key for _, _, t in plan.tasks}
    cfg = model.cfg
    given = _Counted(plan, model, None if folder is None else store_in(folder))
    videos, n_left, share = _laid_out(plan, model, done, given)
    layouts = [inputs.layout for questions in videos for inputs, _ in questions]
    intact = [Costs(cfg, layout).of() for layout in layouts]
    works = _works(plan, cfg, videos, share, given, next(model.parameters()).dtype.itemsize) if layouts else ()
    lengths = [layout.n_tokens for layout in layouts]
    return Estimate(
        plan.study.reuse,
        len(plan.conditions),
        len({(*_does(c.interventions, cfg.n_layers), c.estimate) for c in plan.conditions}),
        len(plan.items),
        len({i.video for i in plan.items}),
        len(keys),
        len(keys.intersection(done)),
        n_left,
        len(videos),
        plan.settings["n_frames"],
        (min(lengths, default=0), max(lengths, default=0)),
        _mean(intact),
        sum(p.numel() * p.dtype.itemsize for p in model.parameters()),
        works,
        least,
        USUAL if cfg.vision is not None and cfg.vision.resize == "fit" else None,
    )


def _does(interventions: Interventions, n_layers: int) -> tuple[Any, ...]:
    does = effects(interventions, n_layers)
    return tuple(map(frozenset, does.cuts)), does.writes, does.exits, does.swaps, does.clips, does.same_time


class _Counted(Given):
    """A study's sources, their runs counted in place of being made.

    Attributes:
        runs: Operations of other items' runs.
        sets: Of reference sets.
    """

    def __init__(self, plan: Plan, model: Model, store: Path | None):
        super().__init__(plan, model, store)
        self.runs, self.sets = 0, 0.0

    def _cache(self, inputs: VideoInputs, hooks: Iterable[str]) -> Any:
        self.runs += self._run_of(inputs)

    def _computed(self, key: str, items: Sequence[Item], needs: Sequence[Need], asked: Asked) -> dict[str, Tensor]:
        several = [self._run_of(asked(item)) for item in _some(items)]
        self.sets += sum(several) / len(several) * len(items)
        return {}

    def _run_of(self, inputs: VideoInputs) -> int:
        return Costs(self._model.cfg, inputs.layout).of(logits_to_keep=0).total


def _some(things: Sequence[T]) -> list[T]:
    """At most `LOOKED_AT` of them, evenly."""
    return [things[int(i)] for i in np.linspace(0, len(things) - 1, min(LOOKED_AT, len(things)))]


def _laid_out(plan: Plan, model: Model, done: Collection[str], given: _Counted) -> tuple[list[Questions], int, float]:
    """Prompts of some videos with what is left to ask of them, of how many, and how many rows each row stands for.

    What their conditions take from sources is counted by `given`.
    """
    rest: dict[str, dict[str, tuple[Item, Tasks]]] = {}
    for item, condition, task in {t.key: (i, c, t) for i, c, t in plan.tasks if t.key not in done}.values():
        rest.setdefault(item.video, {}).setdefault(item.id, (item, []))[1].append((condition, task))

    def asked(item: Item) -> VideoInputs:
        return prepared(plan, model, item, None)

    videos: list[Questions] = []
    for name in _some(list(rest)):
        questions: Questions = []
        for item, tasks in rest[name].values():
            inputs = attempt(prepared, plan, model, item, tasks[0][1])
            if isinstance(inputs, Outcome):  # failed rows, which the run will tell of
                continue
            costs = Costs(model.cfg, inputs.layout)
            placed = [(c, t) for c, t in tasks if not isinstance(attempt(_placed, costs, c.interventions), Outcome)]
            possible = [(c, t) for c, t in placed if not isinstance(attempt(given.of, item, c, t, asked), Outcome)]
            questions.append((inputs, possible))
        videos.append(questions)
    rows = sum(len(tasks) for video in rest.values() for _, tasks in video.values())
    looked_at = sum(len(tasks) for questions in videos for _, tasks in questions)
    return videos, len(rest), rows / max(1, looked_at)


def _placed(costs: Costs, interventions: Interventions) -> None:
    """Raises SelectorError where a layout lacks what interventions select."""
    costs.of(parted(interventions, costs.cfg.n_layers)[1], left=())
    shareable(interventions, costs.layout, costs.cfg.n_layers)


def _works(
    plan: Plan, cfg: VideoLLMConfig, videos: Sequence[Questions], share: float, given: _Counted, size: int
) -> tuple[Work, ...]:
    everything = [one for questions in videos for one in questions]
    n, lm = max(inputs.layout.n_tokens for inputs, _ in everything), cfg.lm
    backward = sum(_backward(cfg, x.layout, tasks) for x, tasks in everything)
    nodes = max((worth(c, lm.n_layers).nodes for _, tasks in everything for c, _ in tasks if c.estimate), default=0)
    videos = [[(x, [(c, t) for c, t in tasks if c.estimate is None]) for x, tasks in some] for some in videos]
    everything = [one for questions in videos for one in questions]
    tower = max(_tower_memory(cfg, inputs.layout, size) for inputs, _ in everything)
    whole = _forward_memory(lm, n, size)

    def work(reuse: Reuse, flops: float, memory: int) -> Work:
        held = kept + nodes * stream if backward else 0
        return Work(reuse, share * (flops + backward + given.runs) + given.sets, max(memory, held))

    stream = size * n * lm.d_model
    kept = max(tower, whole + stream * lm.n_layers)
    inside = [(x.layout, parted(c.interventions, lm.n_layers)[1]) for x, tasks in everything for c, _ in tasks]
    naive = sum(Costs(cfg, layout).of(rest, left=()).total for layout, rest in inside)
    works = [work("none", naive, max(tower, whole))]
    if plan.scoring.reads_text:
        return tuple(works)
    works.append(work("layers", sum(_by_layers(cfg, x.layout, tasks) for x, tasks in everything), kept))
    flops, memory = 0, tower
    for questions in videos:
        swept, peak, keys = _swept(cfg, questions, size)
        alone = [(x.layout, [(c, t) for c, t in tasks if t.key not in keys]) for x, tasks in questions]
        flops += swept + sum(_by_layers(cfg, layout, tasks) for layout, tasks in alone if tasks)
        memory = max([memory, peak, *(kept for _, tasks in alone if tasks)])
    works.append(work("layers+positions", flops, memory))
    return tuple(works)


def _backward(cfg: VideoLLMConfig, layout: TokenLayout, tasks: Tasks) -> float:
    """What gradients take, an item's own tower run once for all."""
    asked = [worth(c, cfg.n_layers) for c, _ in tasks if c.estimate is not None]
    intact, steps, runs, clips = Costs(cfg, layout).of(), *(sum(w[i] for w in asked) for i in range(3))
    step, encoded = LINEAR * intact.linear + ATTENTION * intact.attention, intact.total - intact.decoder
    return steps * step + runs * intact.decoder + (clips + bool(asked)) * encoded


def _by_layers(cfg: VideoLLMConfig, layout: TokenLayout, tasks: Tasks) -> int:
    """The intact forward, and of each condition the blocks from its first changed one on.

    Another clip, or one that is written to inside the tower, is encoded as well.
    """
    costs = Costs(cfg, layout)
    total = costs.of().total
    for c, _ in tasks:
        does = effects(c.interventions, cfg.n_layers)
        if does.first_layer < cfg.n_layers:
            its = costs.of(parted(c.interventions, cfg.n_layers)[1], does.first_layer, left=())
            total += its.total if does.clips or does.encodes else its.decoder
    return total


def _swept(cfg: VideoLLMConfig, questions: Questions, size: int) -> tuple[int, int, set[str]]:
    """Operations and peak of the sweeps of one video's questions, and the rows that they give."""
    flops, memory, keys = 0, 0, set[str]()
    for conditions, inputs, tasks in swept_together(questions, cfg.n_layers):
        keys |= {t.key for some in tasks for _, t in some}
        for members in by_clip(conditions, cfg.n_layers).values():
            plan = Sweep(cfg.n_layers, inputs, [rest for _, rest in members])
            flops += sweep_flops(cfg, plan).total
            memory = max(memory, sweep_memory(cfg.lm, plan, size))
    return flops, memory, keys


def sweep_flops(cfg: VideoLLMConfig, plan: Sweep) -> Flops:
    """Operations of a sweep: of its tower once, its stream blocks and its text states, all as long as the longest.

    Random edges take a mask over all pairs and save none.
    """
    lm, n, last = cfg.lm, plan.n_stream, plan.n_layers - 1
    stream, n_text = torch.arange(n), _text_rows(plan)
    n_of: dict[tuple[int, tuple[Cut, ...], int], int] = {}

    def pairs(question: int, changes: Changes, rows: torch.Tensor) -> int:
        cuts = tuple(cut for cut, _ in changes.cuts if not cut.drawn)
        what = (question, cuts, len(rows))
        if what not in n_of:
            n_of[what] = head_pairs(plan.layouts[question], cuts, lm.n_heads, rows)
        return n_of[what]

    linear, attention = 0, 0
    for node in plan.nodes():
        if node.layer == last and not node.changes.writes:
            linear += n * keys_values(lm)
        else:
            linear += n * block_linear(lm)
            attention += pairs(0, node.changes, stream)
        first = plan.first_made(node.layer, node.texts)
        for t in node.texts:
            layout = plan.layouts[t.question]
            read = 1 + layout.n_tokens - layout.n_prompt
            linear += first * keys_values(lm) + (n_text - first) * block_linear(lm)
            linear += (node.layer == last) * read * unembedding(lm)
            attention += pairs(t.question, t.changes, torch.arange(n + first, layout.n_tokens))
    return Flops(linear, attention * pair(lm)) + video(cfg, plan.layouts[0])


def sweep_memory(lm: DecoderConfig, plan: Sweep, size: int) -> int:
    """Bytes at the peak of a sweep's walk, its weights apart; see the module."""
    row, n, n_text = size * lm.d_model, plan.n_stream, _text_rows(plan)
    keys = size * n * 2 * lm.n_kv_heads * lm.d_head
    few, at_once = states_a_call(n, n_text)

    def inside(rows: int, changes: Sequence[Changes]) -> int:
        written = any(several.writes for several in changes)
        kv, in_mlp = 2 * lm.n_kv_heads * lm.d_head, rows if written else math.ceil(rows / mlp_pieces(rows, n))
        in_attention = rows * (6 * lm.d_model + 2 * kv)
        return size * max(in_attention, rows * (2 * lm.d_model + kv) + in_mlp * 2 * (lm.d_model + lm.d_mlp))

    def walk(nodes: Sequence[Node], streams: int, states: int) -> int:
        peak = 0
        for i, node in enumerate(nodes):
            below = streams + (i < len(nodes) - 1) * n * row
            new = len(node.texts) * n_text * row
            together = n + (len(node.texts) * n_text if len(node.texts) <= few else 0)
            of_texts = [t.changes for t in node.texts]
            in_block = inside(together, [node.changes, *of_texts]) if node.children else n * row + keys
            on_stream = streams + states + in_block
            at_work = inside(min(at_once, len(node.texts)) * n_text, of_texts)
            on_texts = streams + 2 * n * row + keys + states + new + at_work
            above = states if i < len(nodes) - 1 else 0
            peak = max(peak, on_stream, on_texts, walk(node.children, below, above + new))
        return peak

    return walk(plan.tree, 0, len(plan.layouts) * n_text * row)


def _text_rows(plan: Sweep) -> int:
    return max(layout.n_tokens for layout in plan.layouts) - plan.n_stream


def _forward_memory(lm: DecoderConfig, n: int, size: int) -> int:
    return size * n * (3 * lm.d_model + 2 * lm.d_mlp + 2 * lm.n_kv_heads * lm.d_head)


def _tower_memory(cfg: VideoLLMConfig, layout: TokenLayout, size: int) -> int:
    v = cfg.vision
    if v is None or not layout.steps:
        return 0
    height, width = patch_grid(cfg, layout)
    inside = (height * width + v.cls_token) * (3 * v.d_model + 2 * v.d_mlp)
    pixels = v.patch_frames * height * width * v.patch_size**2 if v.resize == "fit" else v.image_size**2
    return size * len(layout.steps) * (inside + 2 * 3 * pixels)


def _mean(several: Sequence[Flops]) -> Flops:
    n = max(1, len(several))
    parts = ("linear", "attention", "tower", "projector")
    return Flops(*(sum(getattr(f, p) for f in several) // n for p in parts))


def _si(x: float | int) -> str:
    """`91.6 T`: three figures with a prefix."""
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if x < 999.5 or prefix == "E":
            return f"{x:.3g} {prefix}"
        x /= 1000
    raise AssertionError
