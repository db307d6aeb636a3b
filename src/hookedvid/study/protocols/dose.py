"""`dose`: each knockout in every layer, its edges left a weight from 1 down to 0. Is the effect graded?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from hookedvid.study.protocols import Condition
from hookedvid.study.protocols.protocol import Protocol, Reading, Setting, Sheet
from hookedvid.study.results.cells import short, star
from hookedvid.study.results.charts import Curves, Line
from hookedvid.study.results.evidence import Evidence, Finding
from hookedvid.study.results.group import Group
from hookedvid.study.results.statistics import LEVEL, Interval, Resamples, holm
from hookedvid.values.effects import effects
from hookedvid.values.interventions import LayerRange, label

# Weight 1 is the baseline. A weight adds its logarithm to a score: sharp heads feel only small ones.
WEIGHTS = (0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-6, 1e-8, 0.0)
TENTH = 0.1  # of what the cut costs: less than that is nothing, and so far from it is all


class Dose(Protocol):
    """Curves of dose and effect, one for each knockout.

    The effect is what the right answer's margin loses where there is one, or the score. Half of it lies where the
    curve, joined by straight lines of the weight's logarithm, first reaches half of what weight 0 costs.
    """

    name: ClassVar[str] = "dose"

    def conditions(self, s: Setting) -> list[Condition]:
        """Each knockout at each weight."""
        conditions: list[Condition] = []
        for k in s.knockouts:
            name = k.name or label((k,))
            for w in WEIGHTS:
                soft = replace(k.at(LayerRange()), weight=w)
                conditions.append(Condition(f"{name} weight {w:g}", (soft,), self.name, name))
        return conditions

    def read(self, group: Group) -> Reading:
        """Costs at each weight, where half of them is, whether weights between differ from both ends."""
        conditions, measure = group.conditions(self.name), group.finest
        e = group.evidence(conditions, measure)
        by_name: dict[str, list[Condition]] = {}
        for c in conditions:
            by_name.setdefault(c.knockout, []).append(c)
        lines = [
            Line(
                name,
                [1.0, *(_weight(c) for c in some)],
                [Interval(0.0, 0.0, 0.0), *(-e.cost[c.label].size for c in some)],
            )
            for name, some in by_name.items()
        ]
        chart = Curves(
            f"Knockouts of some weight in every layer, {group.name} questions", "weight that edges keep",
            group.change(measure), lines, straight_to=WEIGHTS[-2], falling=True,
        )  # fmt: skip
        found = [_finding(group, e, name, some) for name, some in by_name.items()]
        return Reading(_sheet(group, e, conditions), found, chart)


def _weight(c: Condition) -> float:
    return float(effects(c.interventions, 1).cuts[0][0].weight)


def _sheet(group: Group, e: Evidence, conditions: Sequence[Condition]) -> Sheet:
    amount, base = group.amount(group.finest), group.outcomes.conditions[0]
    rows = [["baseline", str(e.n), "", "", short(group.score(base), _times(group))]]
    for c in conditions:
        p = f"{e.p_holm[c.label]:.3f}{star(e.p_holm[c.label])}"
        cells = (str(e.cost[c.label].n), amount(e.cost[c.label].size), p, short(group.score(c), _times(group)))
        rows.append([c.label, *cells])
    title = f"{group.name} questions, edges left a weight in every layer; p corrected for all (Holm)"
    return Sheet(title, ("condition", "n", f"{group.finest} lost", "p", group.scoring.title), rows)


def _times(group: Group) -> int:
    return 100 if group.scoring.chooses else 1


def _finding(group: Group, e: Evidence, name: str, some: Sequence[Condition]) -> Finding:
    """Graded: some weight is shown to cost between one and nine tenths of the cut, and none a tenth less than before.

    `known` are the items that all weights have.
    """
    law, last = f"is the effect of {name} graded", some[-1]
    known = e.known([c.label for c in some])
    cut = e.costs_on([last.label], known)[0]
    text = f"at weight 0 it costs {group.amount(group.finest)(cut.size)}"
    if not (e.costs(last.label) and cut.enough and cut.size.low > 0):
        return Finding(law, False, f"{text}, which is not told from nothing ({cut.on})")
    between = some[:-1]
    over = [{e.baseline: 1 - TENTH, c.label: -1.0, last.label: TENTH} for c in between]
    under = [{c.label: 1.0, e.baseline: -TENTH, last.label: TENTH - 1} for c in between]
    sides = _shown(e, [*over, *under], known)
    graded = [c for i, c in enumerate(between) if sides[i] and sides[i + len(between)]]
    back = [_turn(e.baseline, a.label, b.label, last.label) for a, b in pairwise(some)]
    turns = [b for (_, b), shown in zip(pairwise(some), _shown(e, back, known), strict=True) if shown]
    weights = [1.0, *map(_weight, some)]
    costs = e.scores[0] - e.scores[[0, *(e.row[c.label] for c in some)]]
    at = half(weights, np.where(known, costs, np.nan), e.resamples)
    if at.value > 0:
        span = "" if np.isnan(at.low) else f" [{at.low:.2g}, {at.high:.2g}]"
        text += f"; half of that is reached at weight {at.value:.2g}{span}"
    else:
        text += f"; half of that is reached only below weight {weights[-2]:g}"
    if turns:
        text += f"; but {turns[0].label} costs less than the weight before, by a tenth of that or more"
    elif graded:
        text += f"; weight {', '.join(f'{_weight(c):g}' for c in graded)} costs between one and nine tenths of it"
    else:
        text += "; no weight is shown to cost between one and nine tenths of it"
    return Finding(law, bool(graded) and not turns, f"{text} ({cut.on})")


def _turn(baseline: str, before: str, here: str, last: str) -> dict[str, float]:
    """A sum that is above 0 where one weight costs less than that before it, by a tenth of the last one's or more."""
    parts = dict.fromkeys((baseline, before, here, last), 0.0)
    for name, weight in ((baseline, -TENTH), (before, -1.0), (here, 1.0), (last, TENTH)):
        parts[name] += weight / (1 + TENTH)  # weights above 0 come to 1, as those of any sum of evidence
    return parts


def _shown(e: Evidence, sums: Sequence[Mapping[str, float]], known: Bool[np.ndarray, " item"]) -> list[bool]:
    """Which weighted sums are above 0, by interval and by p corrected for all of them."""
    each = e.effects(sums, known)
    adjusted = holm([x.p for x in each])
    return [p < LEVEL and x.size.low > 0 for x, p in zip(each, adjusted, strict=True)]


def half(weights: Sequence[float], costs: Float[np.ndarray, "weight item"], resamples: Resamples) -> Interval:
    """The weight at which costs first reach half of the last one's, with percentiles over resampled videos.

    0 where that is below the smallest positive weight.

    Args:
        weights: From 1 down to 0.
        costs: NaN for items that take no part, the same under every weight.
    """
    known = np.logical_not(np.isnan(costs).max(axis=0))
    totals = resamples.totals(costs[:, known], known)  # sizes cancel
    return resamples.percentiles(np.array([_crossing(weights, curve) for curve in totals]))


def _crossing(weights: Sequence[float], curve: Float[np.ndarray, " weight"]) -> float:
    """Where a curve first reaches half of its end, by straight lines of the weight's logarithm."""
    target = curve[-1] / 2
    if not target > 0:
        return np.nan
    i = int(np.argmax(curve >= target))
    if weights[i] == 0:
        return 0.0
    share = (target - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(weights[i - 1] * (weights[i] / weights[i - 1]) ** share)
