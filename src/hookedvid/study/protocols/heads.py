"""`heads`: the first knockout in one head of one layer at a time. Which heads does the flow run through?"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from hookedvid.errors import ConfigError
from hookedvid.study.protocols import Condition
from hookedvid.study.protocols.protocol import Protocol, Reading, Setting, Sheet
from hookedvid.study.results.cells import star
from hookedvid.study.results.charts import HeatMap
from hookedvid.study.results.evidence import MIN_VIDEOS, Effect, Evidence, Finding
from hookedvid.study.results.group import Group
from hookedvid.study.results.statistics import LEVEL, Interval
from hookedvid.values.effects import effects
from hookedvid.values.interventions import LayerRange, label

SHOWN = 10  # heads in the table
NAMED = 5  # heads in the sentence


class Heads(Protocol):
    """A map of layers and heads.

    A head is read by the margin of the right answer where there is one: a single head seldom turns an answer, and
    its logit tells before that. One more condition cuts every head of every layer.
    """

    name: ClassVar[str] = "heads"
    against_baseline: ClassVar[bool] = True

    def conditions(self, s: Setting) -> list[Condition]:
        """Every head of every layer, or of every `step`-th.

        Raises:
            ConfigError: Where nobody says how many heads there are.
        """
        if not s.n_heads:
            raise ConfigError("heads are counted from a model: conditions(n_layers, n_heads) needs both")
        whole = s.first(self.name).at(LayerRange())
        name = whole.name or label((whole,))
        conditions = [Condition(f"{name} every head", (whole,), self.name, name)]
        for i in range(0, s.n_layers, s.step):
            for head in range(s.n_heads):
                one = replace(whole.at(LayerRange(i, i + 1)), heads=(head,))
                conditions.append(Condition(f"{name} layer {i + 1} head {head}", (one,), self.name, name, i + 1))
        return conditions

    def read(self, group: Group) -> Reading:
        """The heads that matter most, those whose cut alone lowers the measure, and the map."""
        whole, *each = group.conditions(self.name)
        measure = group.finest
        e = group.evidence(each, measure)
        reference = group.evidence([whole], measure).cost[whole.label]
        order = sorted(each, key=lambda c: -np.nan_to_num(e.cost[c.label].size.value, nan=-np.inf))
        return Reading(
            _sheet(group, e, whole, reference, order),
            [_finding(group, e, reference, order)],
            _map(group, e, each),
        )


def _place(c: Condition, n_layers: int) -> tuple[int, int]:
    """Layer (0-based) and head."""
    layer = (c.layer or 1) - 1
    (cut,) = effects(c.interventions, n_layers).cuts[layer]
    return layer, (cut.heads or (0,))[0]


def _sheet(group: Group, e: Evidence, whole: Condition, reference: Effect, order: Sequence[Condition]) -> Sheet:
    measure, scoring = group.finest, group.scoring

    def row(c: Condition, cost: Effect, p: str) -> list[str]:
        shown = group.amount(measure)(cost.size)
        return [c.label, str(cost.n), shown, p, scoring.brief(group.score(c).value)]

    rows = [row(whole, reference, "")]
    rows += [row(c, e.cost[c.label], f"{e.p_holm[c.label]:.3f}{star(e.p_holm[c.label])}") for c in order[:SHOWN]]
    rows.append(["baseline", str(e.n), "", "", scoring.brief(group.score(group.outcomes.conditions[0]).value)])
    title = f"{len(order)} heads of {whole.knockout}, those that cost most {measure}; p of looking at all (Holm)"
    return Sheet(title, ("cut", "n", f"{measure} lost", "p", scoring.title), rows)


def _finding(group: Group, e: Evidence, reference: Effect, order: Sequence[Condition]) -> Finding:
    law, n, amount = "which heads matter", len(order), group.amount(group.finest)
    # The least p of a test over this many videos, all of which change the same way.
    videos = max((e.cost[c.label].n_videos for c in order), default=0)
    if 0.5 ** (videos - 1) * n >= LEVEL:
        needed = max(MIN_VIDEOS, int(np.floor(np.log2(n / LEVEL))) + 2)
        return Finding(law, False, f"{videos} videos cannot tell one of {n} heads from chance; {needed} could")
    gainers = [c for c in order if e.cost[c.label].enough and e.starred(c.label) and e.cost[c.label].size.high < 0]
    rest = f"; {len(gainers)} raise it" if gainers else ""
    rest += f"; every head of every layer at once costs {amount(reference.size)} ({reference.on})"
    if readers := [c for c in order if e.costs(c.label)]:
        text = "; ".join(f"{c.label} {amount(e.cost[c.label].size)}" for c in readers[:NAMED])
        more = f"; and {len(readers) - NAMED} more" if len(readers) > NAMED else ""
        text = f"cut alone, {len(readers)} of {n} heads lower the {group.finest}: {text}{more}{rest}"
        return Finding(law, True, text)
    most = e.cost[order[0].label]
    text = f"none of {n} heads, cut alone, lowers the {group.finest} beyond chance variation; most does "
    return Finding(law, False, f"{text}{order[0].label}, by {amount(most.size)}{rest}")


def _map(group: Group, e: Evidence, each: Sequence[Condition]) -> HeatMap:
    places = [_place(c, group.n_layers) for c in each]
    layers, heads = sorted({layer for layer, _ in places}), sorted({head for _, head in places})
    values = np.full((len(layers), len(heads)), np.nan)
    marked: list[tuple[int, int]] = []
    for c, (layer, head) in zip(each, places, strict=True):
        at = layers.index(layer), heads.index(head)
        size: Interval = e.cost[c.label].size
        values[at] = -size.value
        if e.cost[c.label].enough and e.starred(c.label):
            marked.append(at)
    return HeatMap(
        f"{each[0].knockout} in one head of one layer, {group.name} questions", "head (from 0)", "layer (from 1)",
        group.change(group.finest), [str(layer + 1) for layer in layers], [str(h) for h in heads], values, marked,
        "outlined: p < 0.05 after correction for all",
    )  # fmt: skip
