"""The whole study on one video: the sweep against a forward a condition, ours, transformers', TransformerLens's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.bound import Work, work
from benchmarks.measuring import CPU, matrix_rate, over, spread, table, timed
from benchmarks.models import (
    CUTS,
    DEEP,
    LONG,
    TOY,
    WIDE,
    Bridge,
    Condition,
    Elsewhere,
    Masked,
    Shape,
    apart,
    build,
    joined,
    questions,
    samples,
    study,
)
from hookedvid.flops import Costs
from hookedvid.sweep import sweep

TITLE = "The whole study on one video"
LV = ("cumulative LV-K", "LV-K in all layers", "LV-K in windows")
OURS, SDPA, EAGER = "our forwards", "transformers, sdpa", "transformers, eager"


class Way(NamedTuple):
    """Another way to the study's logits: a forward a condition, of which `plan` says which are timed."""

    run: Callable[[Any, Condition], torch.Tensor]
    plan: list[tuple[str, Condition, float]]


class Found(NamedTuple):
    """What rounds gave: seconds of each sweep and of each way's forwards (scaled), of these LV-K's protocols alone.

    apart: of each way's logits to the sweep's; noise: of transformers' two kernels to each other. bitwise: how many
    of our forwards' logits equal the sweep's, of how many.
    """

    sweeps: dict[str, list[float]]
    ways: dict[str, list[float]]
    lv: list[float]
    apart: dict[str, float]
    noise: float
    bitwise: tuple[int, int]


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section."""
    if quick:
        return measure("toy", TOY, rounds or 1)
    return [
        *measure("deep", DEEP, rounds or 3),
        *measure("long", LONG, rounds or 2),
        *measure("wide", WIDE, rounds or 2),
    ]


def measure(name: str, shape: Shape, rounds: int, device: torch.device = CPU, dtype: Any = torch.float32) -> list[str]:
    """One shape's part of the section."""
    model = build(shape, device, dtype)
    kinds = study(shape.n_layers)
    ways = {
        OURS: Way(lambda x, c: model(x, interventions=c, logits_to_keep=1)[0, -1], samples(kinds, 2)),
        SDPA: Way(Masked(model, "sdpa"), samples(kinds, 2)),
        EAGER: Way(Masked(model, "eager"), samples(kinds, 1)),
        # Its cost does not depend on which layers are cut, so two conditions stand for all.
        "TransformerLens's bridge": Way(Bridge(model), _few(samples(kinds, 1), ("cumulative LV-K", "VS-K in windows"))),
    }
    found = run(model, questions(model, shape, 3), kinds, ways, rounds)
    layout = questions(model, shape, 1)[0].layout
    least = work(model.cfg, layout, joined(kinds))
    forward = Costs(model.cfg, layout).of().decoder
    rates = [matrix_rate(device, dtype, 512 if device.type == "cpu" else 8192)]
    rates += [least.video / min(found.sweeps["one"]), forward / min(found.ways["one forward"])]
    return [
        f"### {name}: {shape}", "", *_about(model, layout, len(joined(kinds)), least, rounds), "",
        *_ratios(found, least), *_rates(rates, least, found),
    ]  # fmt: skip


def run(model: Any, inputs: list, kinds: dict[str, list[Condition]], ways: dict[str, Way], rounds: int) -> Found:
    """Everything once a round, in an order that moves on from round to round."""
    device, whole = model.device, joined(kinds)
    lv = [c for kind in LV for c in kinds[kind]]
    asked = {"one": (1, whole), "three": (3, whole), "LV-K, one": (1, lv), "LV-K, three": (3, lv)}
    sweeps, seconds_of = {k: [] for k in asked}, {k: [] for k in (*ways, "one forward")}
    found = Found(sweeps, seconds_of, [], dict.fromkeys(ways, 0.0), 0.0, (0, 0))
    order = [*ways, *asked]
    equal = total = 0
    noise = 0.0
    for way in ways.values():
        _warm(way.run, inputs[0])
    for r in range(rounds):
        swept: dict[str, list[list[torch.Tensor]]] = {}
        seen: dict[str, list[tuple[Condition, torch.Tensor]]] = {}
        for what in order[r % len(order) :] + order[: r % len(order)]:
            if what in asked:
                n, conditions = asked[what]
                seconds, swept[what] = timed(lambda n=n, c=conditions: sweep(model, inputs[:n], c), device)
                found.sweeps[what].append(seconds)
                continue
            parts, seen[what] = _forwards(ways[what], inputs[0], device)
            found.ways[what].append(sum(parts.values()))
            if what == OURS:
                found.lv.append(sum(parts[kind] for kind in LV))
                found.ways["one forward"].append(parts["baseline"])
        logits = [dict(zip(whole, row, strict=True)) for row in (swept["one"][0], *swept["three"])]
        for what, rows in seen.items():
            far = [apart(a, of[c]) for c, a in rows for of in logits[:2]]
            found.apart[what] = max(found.apart[what], *far)
        eager = dict(seen[EAGER])
        noise = max(noise, *(apart(a, eager[c]) for c, a in seen[SDPA] if c in eager))
        equal += sum(torch.equal(a, logits[0][c]) for c, a in seen[OURS])
        total += len(seen[OURS])
        print({k: round(v[-1], 2) for k, v in (found.sweeps | found.ways).items()}, flush=True)
    for x, of in zip(inputs[1:], logits[2:], strict=True):
        far = [apart(ways[OURS].run(x, c), of[c]) for _, c, _ in ways[OURS].plan[::2]]
        found.apart[OURS] = max(found.apart[OURS], *far)
    return found._replace(noise=noise, bitwise=(equal, total))


@torch.no_grad()
def _warm(run: Callable[..., torch.Tensor], x: Any) -> None:
    if isinstance(run, Elsewhere):
        for k in CUTS:
            run.masks(x, (k,))
    run(x, ())


def _forwards(way: Way, x: Any, device: torch.device) -> tuple[dict[str, float], list[tuple[Condition, torch.Tensor]]]:
    """Seconds of each kind's forwards, scaled from those timed, and the logits of these."""
    parts: dict[str, float] = {}
    rows = []
    for kind, condition, stands_for in way.plan:
        seconds, logits = timed(lambda c=condition: way.run(x, c), device)
        parts[kind] = parts.get(kind, 0.0) + seconds * stands_for
        rows.append((condition, logits))
    return parts, rows


def _few(plan: list[tuple[str, Condition, float]], kinds: tuple[str, ...]) -> list[tuple[str, Condition, float]]:
    """These kinds alone, standing for all."""
    total = sum(n for _, _, n in plan)
    return [(kind, c, total / len(kinds)) for kind, c, _ in plan if kind in kinds]


# ---- what is printed -------------------------------------------------------------------------------------------


def _about(model: Any, layout: Any, n: int, least: Work, rounds: int) -> list[str]:
    return [
        f"{int(layout.mask('video').sum()):,} video tokens of {layout.n_tokens:,}; {n} conditions, {least.distinct} of "
        f"them distinct. A forward a condition runs {n * model.cfg.n_layers:,} blocks; a sweep needs {least.blocks} on "
        f"rows of the video and {least.last} times keys and values alone. n = {rounds} rounds, in each of which every "
        "way runs once: our forwards and transformers' sdpa on two conditions of each kind, eager on one, "
        "TransformerLens on two in all, scaled by how many of the kind there are; a ratio is of one round. Dense masks "
        "are made beforehand. Three questions are set against three times the forwards of one."
    ]


def _ratios(found: Found, least: Work) -> list[str]:
    one, three = found.sweeps["one"], found.sweeps["three"]
    rows: list[list[object]] = [
        [way, spread(over(found.ways[way], one)), spread(over([3 * s for s in found.ways[way]], three)), f"{far:.1e}"]
        for way, far in found.apart.items()
    ]
    lv = found.sweeps["LV-K, one"], found.sweeps["LV-K, three"]
    lv_rows = [spread(over(found.lv, lv[0]), 1), spread(over([3 * s for s in found.lv], lv[1]), 1)]
    rows.append(["our forwards, LV-K's protocols alone", *lv_rows, "as above"])
    rows.append(["bound by operations, against our forwards", f"{least.bound(1):.2f}", f"{least.bound(3):.2f}", ""])
    head = ["times as fast as", "one question a video", "three questions", "largest difference of a logit"]
    return table(head, rows)


def _rates(rates: list[float], least: Work, found: Found) -> list[str]:
    best, sweeping, forward = (r / 1e9 for r in rates)
    equal, total = found.bitwise
    return [
        f"The sweep takes {spread(found.sweeps['one'])} s for one question and {spread(found.sweeps['three'])} s for "
        f"three, a plain forward {spread(found.ways['one forward'])} s. Transformers' sdpa and eager differ from each "
        f"other by {found.noise:.1e}; {equal} of {total} of our forwards' logits are the sweep's bit for bit. The "
        "bound holds for exact methods that evaluate blocks whole, each distinct state once and of the video only "
        "rows a cut can have changed; it is in operations, so seconds can pass it where larger products run at a "
        f"higher rate. The work on the video alone, {least.video / 1e9:,.0f} G operations, goes at {sweeping:,.0f} "
        f"G/s, a plain forward at {forward:,.0f}, one square product at {best:,.0f}.",
        "",
    ]
