"""`tracing`: the video is corrupted by noise, and one place of the intact run is put back. Where is the answer held?"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from hookedvid.study.protocols import Condition
from hookedvid.study.protocols.protocol import Protocol, Reading, Setting, Sheet
from hookedvid.study.results.cells import star
from hookedvid.study.results.charts import HeatMap
from hookedvid.study.results.evidence import Effect, Evidence, Finding
from hookedvid.study.results.group import Group
from hookedvid.study.results.statistics import LEVEL, Interval, holm
from hookedvid.values.interventions import Ablate, Patch
from hookedvid.values.layout import step_name

INTACT = "intact run"  # the source's name
ROLES = ("video", "question", "options", "last")
SHOWN = 12  # places in the table


class Tracing(Protocol):
    """Causal tracing (Meng et al., arXiv 2202.05262): a map of what each place brings back.

    Noise of the embedded video's own mean and variance takes its place. Then the stream of the item's intact run is
    put back at one role, or at one step of the video (frames whose tokens are the same), after one layer. Recovery is
    the share of what noise took from the right answer's margin (or the score) that comes back; 0 is none of it, 1 all.
    What DeepStack adds stays.
    """

    name: ClassVar[str] = "tracing"
    sources: ClassVar[Mapping[str, Any]] = {INTACT: {"paired": "itself"}}

    def conditions(self, s: Setting) -> list[Condition]:
        """Noise alone, then every role and step after every `grid`-th layer, or every eighth of the depth."""
        noise = Ablate("embed", at="video", by="noise", seed=s.seed)
        conditions = [Condition("noise", (noise,), self.name, "noise")]
        step, frames = s.grid or -(-s.n_layers // 8), range(s.n_frames)
        steps = [step_name(frames[i : i + s.frames_together]) for i in frames[:: s.frames_together]]
        for after in range(step, s.n_layers + 1, step):
            for at in (*steps, *ROLES):
                back = Patch("resid_post", after - 1, at, source=INTACT)
                conditions.append(Condition(f"{at} after layer {after}", (noise, back), self.name, at, after))
        return conditions

    def read(self, group: Group) -> Reading:
        """Recovery of every place, the places that bring back half, and the map."""
        noise, *places = group.conditions(self.name)
        e = group.evidence([noise, *places], group.finest)
        back = {c.label: _recovery(e, noise, c) for c in places}
        gains = _tested(e, [{c.label: 1.0, noise.label: -1.0} for c in places])
        halves = _tested(e, [{c.label: 1.0, e.baseline: -0.5, noise.label: -0.5} for c in places])
        shown = [c for c, (x, p) in zip(places, halves, strict=True) if x.enough and p < LEVEL and x.size.low > 0]
        some = {c.label: p for c, (_, p) in zip(places, gains, strict=True)}
        marked = {c.label for c in shown}
        return Reading(
            _sheet(group, e, noise, places, back, some), [_finding(group, e, noise, shown)],
            _map(group, places, back, marked),
        )  # fmt: skip


def _tested(e: Evidence, sums: Sequence[Mapping[str, float]]) -> list[tuple[Effect, float]]:
    """Weighted sums with p values corrected for all of them."""
    each = e.effects(sums)
    return list(zip(each, holm([x.p for x in each]).tolist(), strict=True))


def _recovery(e: Evidence, noise: Condition, c: Condition) -> Interval:
    """The share that comes back, a ratio of means, with percentiles over resampled videos."""
    intact, corrupted, restored = e.scores[[0, e.row[noise.label], e.row[c.label]]]
    return e.resamples.quotient(restored - corrupted, intact - corrupted)


def _sheet(
    group: Group, e: Evidence, noise: Condition, places: Sequence[Condition], back: Mapping[str, Interval],
    ps: Mapping[str, float],
) -> Sheet:  # fmt: skip
    order = sorted(places, key=lambda c: -np.nan_to_num(back[c.label].value, nan=-np.inf))
    cost = e.cost[noise.label]
    rows = [["noise, nothing put back", str(cost.n), f"costs {group.amount(group.finest)(cost.size)}", ""]]
    for c in order[:SHOWN]:
        i = back[c.label]
        rows.append([c.label, str(e.cost[c.label].n), f"{i.value:z.2f} [{i.low:z.2f}, {i.high:z.2f}]",
                     f"{ps[c.label]:.3f}{star(ps[c.label])}"])  # fmt: skip
    title = f"{len(places)} places put back, those that bring back most {group.finest}; p of all (Holm)"
    return Sheet(title, ("place", "n", "recovery", "p"), rows)


def _finding(group: Group, e: Evidence, noise: Condition, shown: Sequence[Condition]) -> Finding:
    """Of each role the layers after which it brings back half, proven."""
    law, cost = "where the answer is held", e.cost[noise.label]
    text = f"noise in place of the video costs {group.amount(group.finest)(cost.size)}"
    if not e.costs(noise.label):
        return Finding(law, False, f"{text}, which is not told from nothing ({cost.on})")
    layers: dict[str, list[str]] = {}
    for c in shown:
        layers.setdefault(c.knockout, []).append(str(c.layer))
    if not layers:
        return Finding(law, False, f"{text}; no single place is shown to bring back half of it ({cost.on})")
    named = "; ".join(f"{role} after layer {', '.join(some)}" for role, some in layers.items())
    return Finding(law, True, f"{text}; shown to bring back half of it or more: {named} ({cost.on})")


def _map(group: Group, places: Sequence[Condition], back: Mapping[str, Interval], marked: set[str]) -> HeatMap:
    layers = sorted({c.layer or 0 for c in places})
    roles = list(dict.fromkeys(c.knockout for c in places))
    values = np.full((len(layers), len(roles)), np.nan)
    cells: list[tuple[int, int]] = []
    for c in places:
        at = layers.index(c.layer or 0), roles.index(c.knockout)
        values[at] = back[c.label].value
        if c.label in marked:
            cells.append(at)
    return HeatMap(
        f"Put back after noise, {group.name} questions", "place", "after layer", "recovery",
        [str(i) for i in layers], roles, values, cells, "outlined: half is shown to come back",
    )  # fmt: skip
