"""Leaving early: the paper's setting (exit after layer 18 of 28, frames apart in the first 8) and drops in stages."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.measuring import CPU, cost, now
from benchmarks.models import Condition, Shape, apart, build, questions
from benchmarks.printing import mib, over, spread, table
from hookedvid import VT_K, Drop, EarlyExit, LayerRange
from hookedvid.model.flops import Costs

TITLE = "Early exit, frames apart, drops in stages"
# Qwen2-0.5B's width and the depth of its 7B sibling, which the paper's setting is for.
SHAPE = Shape(28, 896, 14, 2, 4864, n_frames=32, side=14, prefix=15, text=100)
SMALL = Shape(28, 32, 4, 2, 48, n_frames=4, side=2, text=6)
EFFICIENT: Condition = (EarlyExit(18), VT_K.at(LayerRange(0, 8)))
SETTINGS: dict[str, Condition] = {
    "exit 18, VT-K in blocks 0 to 7": EFFICIENT,
    "drop half after 2 blocks by attention": (Drop(2, 0.5),),
    "half after 4, 10 and 18 by attention": (Drop(4, 0.5), Drop(10, 0.5), Drop(18, 0.5)),
    "half after 4, 10 and 18 by likeness in time": tuple(Drop(i, 0.5, "time") for i in (4, 10, 18)),
}
NEW_TOKENS = 5


class Run(NamedTuple):
    """One generation: seconds until the first token, seconds a token after it, peak bytes above the model."""

    prefill: float
    token: float
    peak: int


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section."""
    return measure(SMALL, rounds or 1) if quick else measure(SHAPE, rounds or 2)


def measure(shape: Shape, rounds: int, device: torch.device = CPU, dtype: Any = torch.float32) -> list[str]:
    """One shape: prompts and a few tokens after them, intact and in the setting, in turn."""
    model = build(shape, device, dtype)
    (x,) = questions(model, shape, 1)
    given: dict[str, Condition] = {"intact": (), **SETTINGS}
    runs: dict[str, list[Run]] = {what: [] for what in given}
    for r in range(rounds):
        for what, condition in list(given.items())[:: 1 if r % 2 == 0 else -1]:
            runs[what].append(generated(model, x, condition))
            print(what, runs[what][-1], flush=True)
    costs, intact = Costs(model.cfg, x.layout), runs["intact"]
    rows: list[list[object]] = []
    for what, some in runs.items():
        times, theirs = ([[getattr(r, f) for r in of] for f in ("prefill", "token")] for of in (some, intact))
        ratios = [spread(over(a, b), 3) for a, b in zip(times, theirs, strict=True)]
        ratios = [
            ratios[0],
            f"{costs.shares(given[what]).decoder:.3f}",
            ratios[1],
            f"{_peak(some) / _peak(intact):.3f}",
        ]
        row = [*(spread(t, 3) for t in times), mib(_peak(some)), *(ratios if given[what] else [""] * 4)]
        rows.append([what, *row])
    shares = costs.shares(EFFICIENT)
    columns = ["run", "prefill, s", "a token, s", "peak, MiB"]
    columns += ["prefill of intact", "operations of intact", "a token of intact", "peak of intact"]
    return [
        f"{shape}: {x.layout.n_tokens:,} tokens, {model.embed.weight.dtype}, n = {rounds} rounds. Prefill is the time "
        f"of `generate` until the first token (the tower costs next to nothing here), a token the mean of the "
        f"{NEW_TOKENS - 1} after it; peak: of tensors alive above the model, keys and values kept included. "
        "Operations: of the decoder, as `Costs` counts them.",
        "",
        *table(columns, rows),
        f"By operations the paper's setting keeps {shares.attention:.1%} of attention pairs (`edge_share`), "
        f"{shares.linear:.1%} of linear operations and {shares.decoder:.1%} of the decoder's. At the last position an "
        f"exit is its knockout: their logits differ by {against_knockout():.1e} at most on {SMALL} (float32).",
        "",
    ]


def _peak(runs: Sequence[Run]) -> float:
    return statistics.median(r.peak for r in runs)


class Ticks:
    """A streamer that notes when tokens come."""

    def __init__(self, device: torch.device):
        self.device, self.at = device, [now(device)]

    def put(self, _: object) -> None:
        """A token is there."""
        self.at.append(now(self.device))

    def end(self) -> None:
        """Nothing to do."""


def generated(model: Any, x: Any, given: Condition) -> Run:
    """One generation, timed by its tokens."""
    ticks = Ticks(model.device)
    found = cost(
        lambda: model.generate(x, given, max_new_tokens=NEW_TOKENS, stop_at_eos=False, streamer=ticks), model.device
    )
    steps = [b - a for a, b in zip(ticks.at, ticks.at[1:], strict=False)]
    return Run(steps[0], statistics.mean(steps[1:]), found.peak)


def against_knockout() -> float:
    """The largest difference of a last logit between the setting and the same with the exit as a knockout."""
    model = build(SMALL)
    (x,) = questions(model, SMALL, 1)
    masked = tuple(i.as_knockout() if isinstance(i, EarlyExit) else i for i in EFFICIENT)
    a, b = (model(x, interventions=c, logits_to_keep=1)[0, -1] for c in (EFFICIENT, masked))
    return apart(a, b)
