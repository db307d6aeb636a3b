"""Every head of every layer: knockouts of one head swept, against forwards and whole layers; replaced values."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.measuring import timed
from benchmarks.models import LONG, TOY, Condition, Shape, apart, build, questions
from benchmarks.printing import over, spread, table
from hookedvid import LV_K, Replace
from hookedvid.sweep.run import sweep
from hookedvid.sweep.tree import Sweep
from hookedvid.values.interventions import PATHWAYS, Knockout

TITLE = "Every head of every layer"
CUTS = (LV_K, PATHWAYS["video→last"])
SAMPLES = 4  # forwards; one costs as many blocks as are left behind its layer, so middles of equal parts have the mean


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section."""
    return measure(TOY, rounds or 1) if quick else measure(LONG, rounds or 3)


def measure(shape: Shape, rounds: int) -> list[str]:
    """One shape: heads and layers of two knockouts, then values replaced where they would be cut."""
    model = build(shape)
    (x,) = questions(model, shape, 1)
    x = model.encoded(x)
    found = {k.name: _heads(model, x, k, rounds) for k in CUTS}
    head = [
        "knockout", "conditions", "text states", "times as fast as forwards", "of whole layers' time",
        "largest difference of a logit",
    ]  # fmt: skip
    rows: list[list[object]] = [
        [name, f"{n} against {whole}", f"{states[0]:,} against {states[1]:,}", spread(forwards, 1), spread(layers), far]
        for name, (n, whole, states, forwards, layers, far) in found.items()
    ]
    return [
        f"{shape}: {x.layout.n_tokens:,} tokens. One head of one layer is cut, each once. Swept against our forwards "
        f"from the layer that is changed, on a residual stream that is kept ({SAMPLES} of them, evenly through the "
        "layers, scaled to all): how many times as fast. And against a sweep that cuts all heads of a layer at once, "
        f"each layer once: its time is 1. n = {rounds} rounds; a ratio is of one round.",
        "",
        *table(head, rows),
        "Values of the video replaced by their mean along the edges that LV-K cuts, against LV-K:",
        "",
        *table(["run", "of the cut's time"], _replaced(model, x, rounds)),
    ]


def _heads(
    model: Any, x: Any, cut: Knockout, rounds: int
) -> tuple[int, int, tuple[int, int], list[float], list[float], str]:
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    each = [(replace(cut.at(i), heads=h),) for i in layers for h in heads]
    whole = [(cut.at(i),) for i in layers]
    some = each[len(each) // (2 * SAMPLES) :: len(each) // SAMPLES][:SAMPLES]
    streams, seconds, far = _streams(model, x), [[], [], []], 0.0
    _timed(model, x, whole[:2]), _forwards(model, x, some[:1], streams)
    for _ in range(rounds):
        for i, conditions in enumerate((each, whole)):
            spent, logits = _timed(model, x, conditions)
            seconds[i].append(spent)
            if i == 0:
                swept = dict(zip(each, logits, strict=True))
        spent, logits = _forwards(model, x, some, streams)
        seconds[2].append(spent * len(each) / len(some))
        far = max(far, *(apart(a, swept[c]) for a, c in zip(logits, some, strict=True)))
        print(cut.name, [round(s[-1], 2) for s in seconds], flush=True)
    states = tuple(Sweep(model.cfg.n_layers, [x], c).counts.text_states for c in (each, whole))
    return len(each), len(whole), states, over(seconds[2], seconds[0]), over(seconds[0], seconds[1]), f"{far:.1e}"


def _timed(model: Any, x: Any, conditions: Sequence[Condition]) -> tuple[float, list[torch.Tensor]]:
    seconds, logits = timed(lambda: sweep(model, [x], conditions))
    return seconds, logits[0]


@torch.no_grad()
def _streams(model: Any, x: Any) -> Callable[[int], torch.Tensor]:
    _, cache = model.run_with_cache(x, names_filter="resid_pre")
    return lambda layer: cache["resid_pre", layer]


def _forwards(
    model: Any, x: Any, conditions: Sequence[Condition], streams: Callable[[int], torch.Tensor]
) -> tuple[float, list[torch.Tensor]]:
    def run() -> list[torch.Tensor]:
        return [
            model(
                streams(c[0].layers.start), start_at_layer=c[0].layers.start, inputs=x, interventions=c,
                logits_to_keep=1,
            )[0, -1]
            for c in conditions
        ]  # fmt: skip

    return timed(run)


def _replaced(model: Any, x: Any, rounds: int) -> list[list[object]]:
    """Forwards in one layer and in all, and a sweep of each layer."""
    layers = range(model.cfg.n_layers)
    other = Replace(LV_K.src, LV_K.dst)
    pairs: dict[str, Callable[[Any], Any]] = {
        "a forward, in one layer": lambda k: model(x, interventions=k.at(len(layers) // 2), logits_to_keep=1),
        "a forward, in all layers": lambda k: model(x, interventions=k, logits_to_keep=1),
        "a sweep, in each layer": lambda k: sweep(model, [x], [k.at(i) for i in layers]),
    }
    rows: list[list[object]] = []
    for what, run in pairs.items():
        seconds: list[list[float]] = [[], []]
        for r in range(5 * rounds + 1):  # short runs: more of them, in turn, the first to warm up
            for i in (0, 1) if r % 2 else (1, 0):
                spent = timed(partial(run, (other, LV_K)[i]))[0]
                if r:
                    seconds[i].append(spent)
        rows.append([what, spread(over(*seconds), 3)])
        print(what, rows[-1][1], flush=True)
    return rows
