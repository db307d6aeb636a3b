"""The paper's efficient setting, exit after layer 18 of 28 and frames apart in the first 8, beside the intact model."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.measuring import CPU, cost, now
from benchmarks.models import Condition, Shape, apart, build, questions
from benchmarks.printing import mib, over, spread, table
from hookedvid import VT_K, EarlyExit, LayerRange
from hookedvid.model.flops import Costs

TITLE = "Early exit and frames apart"
# Qwen2-0.5B's width and the depth of its 7B sibling, which the paper's setting is for.
SHAPE = Shape(28, 896, 14, 2, 4864, n_frames=32, side=14, prefix=15, text=100)
SMALL = Shape(28, 32, 4, 2, 48, n_frames=4, side=2, text=6)
EFFICIENT: Condition = (EarlyExit(18), VT_K.at(LayerRange(0, 8)))
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
    runs: dict[str, list[Run]] = {"intact": [], "exit 18, VT-K in blocks 0 to 7": []}
    for r in range(rounds):
        for what, given in list(zip(runs, ((), EFFICIENT), strict=True))[:: 1 if r % 2 == 0 else -1]:
            runs[what].append(generated(model, x, given))
            print(what, runs[what][-1], flush=True)
    intact, efficient = runs.values()
    shares = Costs(model.cfg, x.layout).shares(EFFICIENT)
    rows: list[list[object]] = [
        [what, *(spread([getattr(r, f) for r in some], 3) for f in ("prefill", "token")), mib(_peak(some))]
        for what, some in runs.items()
    ]
    times = [over([getattr(r, f) for r in efficient], [getattr(r, f) for r in intact]) for f in ("prefill", "token")]
    rows.append(["the second of the first", *(spread(t, 3) for t in times), f"{_peak(efficient) / _peak(intact):.3f}"])
    return [
        f"{shape}: {x.layout.n_tokens:,} tokens, {model.embed.weight.dtype}, n = {rounds} rounds. Prefill is the time "
        f"of `generate` until the first token (the tower costs next to nothing here), a token the mean of the "
        f"{NEW_TOKENS - 1} after it; peak: of tensors alive above the model, keys and values kept included.",
        "",
        *table(["run", "prefill, s", "a token, s", "peak, MiB"], rows),
        f"By operations the setting keeps {shares.attention:.1%} of attention pairs (`edge_share`), "
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
