"""The whole study on one video: the sweep against a forward a condition, ours, transformers', TransformerLens's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.bound import Work, work
from benchmarks.measuring import CPU, matrix_rate, timed
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
from benchmarks.printing import over, spread, table
from hookedvid.model.flops import Costs
from hookedvid.sweep.run import sweep
from hookedvid.sweep.tree import Sweep

TITLE = "The whole study on one video"
LV = ("cumulative LV-K", "LV-K in all layers", "LV-K in windows")
OURS, SDPA, EAGER = "our forwards", "transformers, sdpa", "transformers, eager"


class Way(NamedTuple):
    """Another way to the study's logits: a forward a condition, of which `plan` says which are timed."""

    run: Callable[[Any, Condition], torch.Tensor]
    plan: list[tuple[str, Condition, float]]


class Found(NamedTuple):
    """What rounds gave: seconds of each sweep and, by way and sweep, of its forward a condition (scaled).

    plain: seconds of our forwards without interventions. apart: of each way's logits to the sweep's; noise: of
    transformers' two kernels to each other. bitwise: how many of our forwards' logits equal the sweep's, of how many.
    """

    sweeps: dict[str, list[float]]
    forwards: dict[tuple[str, str], list[float]]
    plain: list[float]
    apart: dict[str, float]
    noise: float
    bitwise: tuple[int, int]


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section."""
    if quick:
        return measure("toy", TOY, rounds or 1)
    return [
        *measure("deep", DEEP, rounds or 2),
        *measure("long", LONG, rounds or 3),
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
    rates += [least.video / min(found.sweeps["one"]), forward / min(found.plain)]
    return [
        f"### {name}: {shape}", "", *_about(model, layout, len(joined(kinds)), least, rounds), "",
        *_ratios(found, least), *_rates(rates, least, found),
    ]  # fmt: skip


def run(model: Any, inputs: list, kinds: dict[str, list[Condition]], ways: dict[str, Way], rounds: int) -> Found:
    """Everything once a round: our forwards and transformers' sdpa between the blocks of each sweep, others after."""
    device, whole = model.device, joined(kinds)
    lv = [c for kind in LV for c in kinds[kind]]
    asked = {
        "one": (1, whole, (OURS, SDPA), tuple(kinds)),
        "three": (3, whole, (OURS, SDPA), tuple(kinds)),
        "LV-K, one": (1, lv, (OURS,), LV),
        "LV-K, three": (3, lv, (OURS,), LV),
    }
    forwards: dict[tuple[str, str], list[float]] = {(way, what): [] for way in ways for what in asked}
    found = Found({what: [] for what in asked}, forwards, [], dict.fromkeys(ways, 0.0), 0.0, (0, 0))
    equal = total = 0
    noise = 0.0
    for way in ways.values():
        _warm(way.run, inputs[0])
    for _ in range(rounds):
        swept: dict[str, list[list[torch.Tensor]]] = {}
        seen: dict[str, dict[Condition, torch.Tensor]] = {way: {} for way in ways}
        for what, (n, conditions, beside, of) in asked.items():
            timing = [(way, *one) for one in ways[OURS].plan if one[0] in of for way in beside]
            calls = [lambda way=way, c=c: ways[way].run(inputs[0], c) for way, _, c, _ in timing]
            seconds, swept[what], done = in_turn(model, inputs[:n], conditions, calls)
            found.sweeps[what].append(seconds)
            for way in beside:
                forwards[way, what].append(0.0)
            for (way, kind, c, stands_for), (spent, last) in zip(timing, done, strict=True):
                seen[way][c] = last
                forwards[way, what][-1] += spent * stands_for
                if way == OURS and kind == "baseline":
                    found.plain.append(spent)
        for way in (way for way in ways if way not in (OURS, SDPA)):
            seconds = 0.0
            for _, c, stands_for in ways[way].plan:
                spent, seen[way][c] = timed(lambda way=way, c=c: ways[way].run(inputs[0], c), device)
                seconds += spent * stands_for
            for what in ("one", "three"):
                forwards[way, what].append(seconds)
        logits = [dict(zip(whole, row, strict=True)) for row in (swept["one"][0], *swept["three"])]
        for way, rows in seen.items():
            found.apart[way] = max(found.apart[way], *(apart(a, of[c]) for c, a in rows.items() for of in logits[:2]))
        noise = max(noise, *(apart(a, seen[EAGER][c]) for c, a in seen[SDPA].items() if c in seen[EAGER]))
        equal += sum(torch.equal(a, logits[0][c]) for c, a in seen[OURS].items())
        total += len(seen[OURS])
        print({k: round(v[-1], 2) for k, v in (found.sweeps | forwards).items() if v}, flush=True)
    for x, of in zip(inputs[1:], logits[2:], strict=True):
        far = [apart(ways[OURS].run(x, c), of[c]) for _, c, _ in ways[OURS].plan[::2]]
        found.apart[OURS] = max(found.apart[OURS], *far)
    return found._replace(noise=noise, bitwise=(equal, total))


def in_turn(
    model: Any, inputs: list, conditions: list[Condition], calls: list[Callable[[], torch.Tensor]]
) -> tuple[float, list[list[torch.Tensor]], list[tuple[float, torch.Tensor]]]:
    """A sweep's seconds and logits and those of each call: these run evenly between its blocks.

    A machine's speed moves within minutes, by more than what is to be told here.
    """
    counts = Sweep(model.cfg.n_layers, inputs, conditions).counts
    blocks, done = counts.stream + counts.keys_values, []

    def progress(_: int) -> None:
        nonlocal blocks_done
        blocks_done += 1
        while len(done) * blocks < blocks_done * len(calls):
            done.append(timed(calls[len(done)], model.device))

    blocks_done = 0
    seconds, logits = timed(lambda: sweep(model, inputs, conditions, progress), model.device)
    return seconds - sum(spent for spent, _ in done), logits, done


@torch.no_grad()
def _warm(run: Callable[..., torch.Tensor], x: Any) -> None:
    if isinstance(run, Elsewhere):
        for k in CUTS:
            run.masks(x, (k,))
    run(x, ())


def _few(plan: list[tuple[str, Condition, float]], kinds: tuple[str, ...]) -> list[tuple[str, Condition, float]]:
    """These kinds alone, standing for all."""
    total = sum(n for _, _, n in plan)
    return [(kind, c, total / len(kinds)) for kind, c, _ in plan if kind in kinds]


# ---- what is printed -------------------------------------------------------------------------------------------


def _about(model: Any, layout: Any, n: int, least: Work, rounds: int) -> list[str]:
    return [
        f"{int(layout.mask('video').sum()):,} video tokens of {layout.n_tokens:,}; {n} conditions, {least.distinct} of "
        f"them distinct. A forward a condition runs {n * model.cfg.n_layers:,} blocks; a sweep needs {least.blocks} on "
        f"rows of the video and {least.last} times keys and values alone. n = {rounds} rounds. Our forwards and "
        "transformers' sdpa run two conditions of each kind in every sweep, evenly between its blocks, since a "
        "machine's speed moves within minutes; after them eager runs one of each kind, TransformerLens two in all. "
        "Their seconds are scaled by how many of the kind there are; a ratio is of one round. Dense masks are made "
        "beforehand. Three questions are set against three times the forwards of one."
    ]


def _ratios(found: Found, least: Work) -> list[str]:
    def times(way: str, what: str, n: int, digits: int = 2) -> str:
        return spread(over([n * s for s in found.forwards[way, what]], found.sweeps[what]), digits)

    rows: list[list[object]] = [
        [way, times(way, "one", 1), times(way, "three", 3), f"{far:.1e}"] for way, far in found.apart.items()
    ]
    lv_rows = [times(OURS, "LV-K, one", 1, 1), times(OURS, "LV-K, three", 3, 1)]
    rows.append(["our forwards, LV-K's protocols alone", *lv_rows, "as above"])
    rows.append(["bound by operations, against our forwards", f"{least.bound(1):.2f}", f"{least.bound(3):.2f}", ""])
    head = ["times as fast as", "one question a video", "three questions", "largest difference of a logit"]
    return table(head, rows)


def _rates(rates: list[float], least: Work, found: Found) -> list[str]:
    best, sweeping, forward = (r / 1e9 for r in rates)
    equal, total = found.bitwise
    return [
        f"The sweep takes {spread(found.sweeps['one'])} s for one question and {spread(found.sweeps['three'])} s for "
        f"three, a plain forward {spread(found.plain)} s. Transformers' sdpa and eager differ from each "
        f"other by {found.noise:.1e}; {equal} of {total} of our forwards' logits are the sweep's bit for bit. The "
        "bound holds for exact methods that evaluate blocks whole, each distinct state once and of the video only "
        "rows a cut can have changed; it is in operations, so seconds can pass it where larger products run at a "
        f"higher rate. The work on the video alone, {least.video / 1e9:,.0f} G operations, goes at {sweeping:,.0f} "
        f"G/s, a plain forward at {forward:,.0f}, one square product at {best:,.0f}.",
        "",
    ]
