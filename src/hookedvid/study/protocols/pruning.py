"""`pruning`: some of the video's positions dropped by each rule, against as many drawn at random. Does a rule pay?"""

from collections.abc import Sequence
from typing import ClassVar, get_args

import numpy as np

from hookedvid.study.protocols import Condition
from hookedvid.study.protocols.protocol import Protocol, Reading, Setting, Sheet
from hookedvid.study.results import efficiency
from hookedvid.study.results.cells import number, short, star
from hookedvid.study.results.charts import Curves, Line
from hookedvid.study.results.evidence import Effect, Finding
from hookedvid.study.results.group import Group
from hookedvid.study.results.statistics import LEVEL, Interval, holm
from hookedvid.values.effects import Rank, effects
from hookedvid.values.interventions import Drop

KEEPS = (0.5, 0.25, 0.1)
DRAWS = 3  # random ones at each share, whose mean the rules are held against
RANDOM = "random"
RULES: tuple[Rank, ...] = tuple(rank for rank in get_args(Rank) if rank != RANDOM)


class Pruning(Protocol):
    """Rules by shares kept, all dropped before one block.

    What is dropped at one share is as many positions for every rule, so the operations are equal but for those of
    the rule itself, which are not counted. A rule is held against the mean of three random draws, on the same items.
    """

    name: ClassVar[str] = "pruning"

    def conditions(self, s: Setting) -> list[Condition]:
        """Every rule and some random draws at every share, after `drop_at` layers or a quarter of the depth."""
        after = s.drop_at or max(1, s.n_layers // 4)
        conditions: list[Condition] = []
        for keep in KEEPS:
            drops = [Drop(after, keep, rank) for rank in RULES]
            drops += [Drop(after, keep, RANDOM, seed=s.seed + i) for i in range(DRAWS)]
            for drop in drops:
                draw = f" {drop.seed}" if drop.rank == RANDOM else ""
                label = f"keep {keep:g} by {drop.rank.replace('_', ' ')}{draw}"
                conditions.append(Condition(label, (drop,), self.name, drop.rank, after))
        return conditions

    def read(self, group: Group) -> Reading:
        """Accuracy and operations of each rule and share, which rules beat random, the cheapest that keeps enough."""
        conditions = group.conditions(self.name)
        e = group.evidence(conditions, group.scoring.measures[0])
        by_keep: dict[float, dict[str, list[Condition]]] = {}
        for c in conditions:
            by_keep.setdefault(_keep(c), {}).setdefault(c.knockout, []).append(c)
        pairs = [(rule[0], some[RANDOM]) for some in by_keep.values() for name, rule in some.items() if name != RANDOM]
        more = e.effects([{c.label: 1.0, **dict.fromkeys((r.label for r in by), -1 / len(by))} for c, by in pairs])
        against = {c.label: (x, float(p)) for (c, _), x, p in zip(pairs, more, holm([x.p for x in more]), strict=True)}
        findings = [_beats(group, keep, [rule[0] for n, rule in some.items() if n != RANDOM], against)
                    for keep, some in by_keep.items()]  # fmt: skip
        if group.scoring.chooses:
            law, sampling = f"cheapest pruning after layer {conditions[0].layer}", (group.n_resamples, group.seed)
            found = efficiency.search(group.outcomes, group.name, group.keep, *sampling, among=_by_rule)
            findings.append(efficiency.cheapest(found, group.keep, law, "rules and shares"))
        return Reading(_sheet(group, conditions, against), findings, _chart(group, by_keep))


def _keep(c: Condition) -> float:
    """The share of the video's positions that stays."""
    return effects(c.interventions, c.layer or 0).exits[0].keep


def _by_rule(c: Condition) -> bool:
    return c.protocol == Pruning.name and c.knockout != RANDOM


Against = dict[str, tuple[Effect, float]]  # by the rule's label: what it has more than random, its corrected p


def _sheet(group: Group, conditions: Sequence[Condition], against: Against) -> Sheet:
    def row(c: Condition) -> list[str]:
        cells = [number(100 * group.decoder_share(c)), short(group.score(c), _times(group))]
        if c.label not in against:
            return [c.label, *cells, "", ""]
        x, p = against[c.label]
        return [c.label, *cells, short(x.size, _times(group)), f"{p:.3f}{star(p)}"]

    after = f"{group.name} questions, video dropped after layer {conditions[0].layer}"
    title = f"{after}; decoder: % of its operations left\np: a rule against the mean of {DRAWS} random draws (Holm)"
    columns = ("condition", "decoder", group.scoring.title, "more than random", "p")
    return Sheet(title, columns, [row(c) for c in (group.outcomes.conditions[0], *conditions)])


def _times(group: Group) -> int:
    return 100 if group.scoring.chooses else 1


def _beats(group: Group, keep: float, rules: Sequence[Condition], against: Against) -> Finding:
    """Whether some rule is worth its name at one share."""
    law, amount = f"a rule beats random at keep {keep:g}", group.scoring.amount
    order = sorted(rules, key=lambda c: -np.nan_to_num(against[c.label][0].size.value, nan=-np.inf))
    better = [c for c in order if _differs(against[c.label], 1)]
    worse = [c for c in order if _differs(against[c.label], -1)]
    most, _ = against[order[0].label]
    if better:
        text = "; ".join(f"{_name(c)} by {amount(against[c.label][0].size)}" for c in better)
    else:
        text = f"no rule beats random; most has {_name(order[0])}, {amount(most.size)} more"
    if worse:
        named = (f"{_name(c)} by {amount(-against[c.label][0].size)}" for c in worse)
        text += f"; worse than random: {', '.join(named)}"
    return Finding(law, bool(better), f"{text} ({most.on})")


def _differs(against: tuple[Effect, float], sign: int) -> bool:
    x, p = against
    return x.enough and p < LEVEL and (x.size.low > 0 if sign > 0 else x.size.high < 0)


def _name(c: Condition) -> str:
    return c.knockout.replace("_", " ")


def _chart(group: Group, by_keep: dict[float, dict[str, list[Condition]]]) -> Curves:
    base = group.outcomes.conditions[0]
    lines: list[Line] = []  # at equal operations
    for rank in (*RULES, RANDOM):
        points = [some[rank] for some in by_keep.values()]
        shares = [100 * group.decoder_share(p[0]) for p in points]
        lines.append(Line(rank.replace("_", " "), shares, [_mean(group, p) for p in points], control=rank == RANDOM))
    layer = next(c.layer for some in by_keep.values() for c in some[RANDOM])
    levels = {"intact": group.score(base).value}
    if group.scoring.level_name:
        levels[group.scoring.level_name] = group.level
    title = f"Video dropped after layer {layer}, {group.name} questions"
    return Curves(
        title,
        "decoder operations left, % (rules of one share stand beside each other)",
        group.scoring.label,
        lines,
        levels,
        apart=True,
    )


def _mean(group: Group, several: Sequence[Condition]) -> Interval:
    """The mean score of one condition, or of several together."""
    row = [group.outcomes.conditions.index(c) for c in several]
    return group.resamples.mean(group.outcomes.score[row][:, group.columns].mean(0), group.scoring.bounds)
