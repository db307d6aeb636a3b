"""What hook points cost while nobody listens, and what keeping every residual stream costs."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.measuring import timed
from benchmarks.models import TOY, Masked, Shape, apart, build, questions
from benchmarks.printing import over, spread, table

TITLE = "Idle hooks and cached residuals"
SHAPE = Shape(6, 896, 14, 2, 4864, n_frames=32, prefix=15, text=100)  # Qwen2-0.5B's width
RESIDUALS = ("resid_pre", "resid_mid", "resid_post")
THEIRS, OURS, AGAIN, CACHED = "transformers, sdpa", "our forward", "our forward, once more", "run_with_cache, residuals"


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section."""
    shape, rounds = (TOY, rounds or 2) if quick else (SHAPE, rounds or 10)
    model = build(shape)
    (x,) = questions(model, shape, 1)
    theirs = Masked(model, "sdpa")
    calls: dict[str, Callable[[], Any]] = {
        THEIRS: lambda: theirs(x, ()),
        OURS: lambda: model(x, logits_to_keep=1)[0, -1],
        AGAIN: lambda: model(x, logits_to_keep=1)[0, -1],
        CACHED: lambda: model.run_with_cache(x, names_filter=RESIDUALS, logits_to_keep=1)[0][0, -1],
    }
    logits: dict[str, torch.Tensor] = {name: call() for name, call in calls.items()}  # and warm
    times: dict[str, list[float]] = {name: [] for name in calls}
    for r in range(rounds):
        order = list(calls)
        for name in order[r % 4 :] + order[: r % 4]:
            times[name].append(timed(calls[name])[0])
    rows: list[list[object]] = [[THEIRS, spread(times[THEIRS]), "", "", ""]]
    for what, of in ((OURS, THEIRS), (AGAIN, OURS), (CACHED, OURS)):
        ratio, far = spread(over(times[what], times[of]), 3), apart(logits[what], logits[of])
        rows.append([what, spread(times[what]), of, ratio, f"{far:.1e}"])
    n_points = len(model.hook_dict)
    return [
        f"{shape}: {x.layout.n_tokens:,} tokens, float32, n = {rounds} rounds of all four, whose order moves on; "
        f"{n_points} hook points. The third line is the second's own noise. The last keeps {3 * shape.n_layers} "
        "residual streams.",
        "",
        *table(["run", "s", "against", "ratio", "largest difference of a logit"], rows),
    ]
