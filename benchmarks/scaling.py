"""How a sweep's time and memory grow with frames, conditions and questions."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.measuring import cost, timed
from benchmarks.models import TOY, Shape, build, joined, questions, study
from benchmarks.printing import mib, over, spread, table
from hookedvid.sweep.run import sweep

TITLE = "Scaling of a sweep"
FRAMES = Shape(8, 256, 8, 2, 768, side=4)
DEPTH = Shape(16, 128, 4, 2, 384, side=4)


class Point(NamedTuple):
    """One size: seconds of each round of the sweep and of one forward, peak bytes of both."""

    size: int
    swept: list[float]
    forward: list[float]
    peak: int
    forward_peak: int


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section."""
    rounds = rounds or (1 if quick else 3)
    frames, depth = (TOY, TOY) if quick else (FRAMES, DEPTH)
    n_conditions = len(joined(study(depth.n_layers)))
    counts = sorted({max(2, round(n_conditions / 2**k)) for k in ((2, 0) if quick else range(5))})
    asked = (1, 2) if quick else (1, 2, 3, 5, 10)
    return [
        f"n = {rounds} rounds, in each of which every size runs once; peak memory of tensors alive above the model "
        "(n = 1). Slopes are least squares on the medians. The forward is our own, intact.",
        "",
        *_part("Frames", "frames", frames, ladder(frames, (2, 4) if quick else (8, 16, 32, 64, 128), rounds), _power),
        *_part("Conditions", "conditions", depth, widths(depth, counts, rounds), _line),
        *_part("Questions on one video", "questions", depth, several(depth, asked, rounds), _line),
    ]


def ladder(shape: Shape, frames: Sequence[int], rounds: int) -> list[Point]:
    """The whole study on one question, more and more frames."""
    shapes = [shape._replace(n_frames=n) for n in frames]
    return _points(frames, rounds, [_run(s, 1, None) for s in shapes])


def widths(shape: Shape, counts: Sequence[int], rounds: int) -> list[Point]:
    """One question, so many of the study's conditions, evenly through it."""
    return _points(counts, rounds, [_run(shape, 1, n) for n in counts])


def several(shape: Shape, asked: Sequence[int], rounds: int) -> list[Point]:
    """The whole study on so many questions."""
    return _points(asked, rounds, [_run(shape, n, None) for n in asked])


Pair = tuple[Callable[[], object], Callable[[], object]]


def _run(shape: Shape, n_questions: int, n_conditions: int | None) -> Pair:
    """The sweep and the forward of one size."""
    model, conditions = build(shape), joined(study(shape.n_layers))
    if n_conditions is not None:
        conditions = [conditions[i * len(conditions) // n_conditions] for i in range(n_conditions)]
    inputs = questions(model, shape, n_questions)
    return lambda: sweep(model, inputs, conditions), lambda: model(inputs[0], logits_to_keep=1)


def _points(sizes: Sequence[int], rounds: int, pairs: Sequence[Pair]) -> list[Point]:
    peaks = [tuple(cost(call).peak for call in pair) for pair in pairs]  # and warm
    seconds = [[tuple(timed(call)[0] for call in pair) for pair in pairs] for _ in range(rounds)]
    return [
        Point(size, [r[i][0] for r in seconds], [r[i][1] for r in seconds], *peaks[i]) for i, size in enumerate(sizes)
    ]


# ---- what is printed -------------------------------------------------------------------------------------------


def _part(title: str, of: str, shape: Shape, points: Sequence[Point], fit: Callable[..., str]) -> list[str]:
    rows = [
        [p.size, spread(p.swept, 3), spread(over(p.swept, p.forward), 1), mib(p.peak), f"{p.peak / p.forward_peak:.2f}"]
        for p in points
    ]
    sizes = [p.size for p in points]
    time, memory = [statistics.median(p.swept) for p in points], [p.peak / 2**20 for p in points]
    return [
        f"### {title}", "", f"{shape}, but for what the table varies.", "",
        *table([of, "sweep, s", "in forwards", "peak, MiB", "of a forward's"], rows),
        f"{fit(sizes, time, 's')}; {fit(sizes, memory, 'MiB')}.", "",
    ]  # fmt: skip


def _slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    fit = statistics.linear_regression(x, y)
    return fit.slope, fit.intercept


def _power(x: Sequence[float], y: Sequence[float], unit: str) -> str:
    """The exponent in y = c x^a."""
    slope, _ = _slope([math.log(v) for v in x], [math.log(v) for v in y])
    return f"{unit} ∝ n^{slope:.2f} (log-log)"


def _line(x: Sequence[float], y: Sequence[float], unit: str) -> str:
    slope, start = _slope(x, y)
    return f"{start:.3f} {unit} and {slope:.4f} {unit} for each (linear)"
