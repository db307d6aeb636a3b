"""`counterfactual`: other clips in place of the items' own, by family of questions. What do answers depend on?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from hookedvid.study.protocols import Condition
from hookedvid.study.protocols.protocol import Protocol, Reading, Setting, Sheet
from hookedvid.study.results.cells import short, star
from hookedvid.study.results.charts import HeatMap
from hookedvid.study.results.evidence import Effect, Finding
from hookedvid.study.results.group import Group
from hookedvid.study.results.statistics import LEVEL, holm
from hookedvid.study.results.summary import OURS, named
from hookedvid.values.clips import Black, Blurred, Frozen, Reversed, Shuffled


class Counterfactual(Protocol):
    """The clip reversed, shuffled, frozen at its first frame, blurred and black, each against the clip itself.

    Right answers stay those of the clip itself: what loses accuracy depends on what was taken away. Every change is
    looked at in every family, and tests are corrected for all of them.
    """

    name: ClassVar[str] = "counterfactual"
    against_baseline: ClassVar[bool] = True

    def conditions(self, s: Setting) -> list[Condition]:
        """Each change of the clip."""
        changes = {
            "reversed": Reversed(),
            "shuffled": Shuffled(s.seed),
            "frozen": Frozen(0),
            "blurred": Blurred(),
            "black": Black(),
        }
        return [Condition(f"clip {name}", (change,), self.name, name) for name, change in changes.items()]

    def read(self, group: Group) -> Reading:
        """What each change costs each family."""
        conditions, parts = group.conditions(self.name), _families(group)
        measure = group.scoring.measures[0]
        costs = {name: part.evidence(conditions, measure).cost for name, part in parts.items()}
        pairs = [(name, c.label) for c in conditions for name in parts]
        ps = holm([costs[name][label].p for name, label in pairs])
        effects = {(name, label): (costs[name][label], float(p)) for (name, label), p in zip(pairs, ps, strict=True)}
        findings = [_finding(group, c, {name: effects[name, c.label] for name in parts}) for c in conditions]
        return Reading(_sheet(group, conditions, parts, effects), findings, _map(group, conditions, parts, effects))


Costs = Mapping[tuple[str, str], tuple[Effect, float]]  # by family and condition, with the corrected p


def _families(group: Group) -> dict[str, Group]:
    """Parts of a group by family; the group alone where there are no families in it."""
    names = list(dict.fromkeys(item.family for item in group.items if item.family))
    if len(names) < 2:
        return {group.name: group}
    return {name: replace(group, name=named(name, OURS)) for name in names}


def _lost(effect: tuple[Effect, float]) -> bool:
    x, p = effect
    return x.enough and p < LEVEL and x.size.low > 0


def _finding(group: Group, c: Condition, costs: Mapping[str, tuple[Effect, float]]) -> Finding:
    law, amount = f"what a clip {c.knockout} breaks", group.scoring.amount
    order = sorted(costs, key=lambda name: -np.nan_to_num(costs[name][0].size.value, nan=-np.inf))
    broken, rest = [n for n in order if _lost(costs[n])], [n for n in order if not _lost(costs[n])]
    if not broken:
        most = costs[order[0]][0]
        text = f"nothing is shown to lose; most does {order[0]}, {amount(most.size)} ({most.on})"
        return Finding(law, False, text)
    text = "; ".join(f"{n} loses {amount(costs[n][0].size)} ({costs[n][0].on})" for n in broken)
    if rest:
        text += f"; not shown to lose: {', '.join(f'{n} {amount(costs[n][0].size)}' for n in rest)}"
    return Finding(law, True, text)


def _sheet(group: Group, conditions: Sequence[Condition], parts: Mapping[str, Group], costs: Costs) -> Sheet:
    base, times = group.outcomes.conditions[0], 100 if group.scoring.chooses else 1
    rows = [[base.label, *(short(part.score(base), times) for part in parts.values())]]
    for c in conditions:
        cells = (short(part.score(c), times) + star(costs[name, c.label][1]) for name, part in parts.items())
        rows.append([c.label, *cells])
    title = f"{group.scoring.title} of other clips by family, {group.scoring.unit}; * p < 0.05 for all cells (Holm)"
    return Sheet(title, ("clip", *parts), rows)


def _map(group: Group, conditions: Sequence[Condition], parts: Mapping[str, Group], costs: Costs) -> HeatMap:
    names, kinds = list(parts), conditions[::-1]
    values = np.array([[-costs[name, c.label][0].size.value for name in names] for c in kinds])
    marked = [
        (y, x) for y, c in enumerate(kinds) for x, name in enumerate(names) if _lost(costs[name, c.label])
    ]  # fmt: skip
    return HeatMap(
        f"Other clips in place of their own, {group.name} questions", "family", "clip",
        group.change(group.scoring.measures[0]), [c.knockout for c in kinds], names, values, marked,
        "outlined: shown to lose",
    )  # fmt: skip
