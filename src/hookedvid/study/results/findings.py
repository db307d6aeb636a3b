"""What a study supports, in sentences: each of the paper's findings with number, interval and videos, or why not.

A law is supported if the table's own test of its effect holds (marked there by a star), its interval says so too, and
there are videos and items enough. docs/statistics.md says how often that errs.
"""

from collections.abc import Callable, Sequence

import numpy as np

from hookedvid.study.protocols import EFFICIENCY, Condition
from hookedvid.study.protocols.registry import REGISTRY
from hookedvid.study.results import efficiency, statistics
from hookedvid.study.results.evidence import MIN_ITEMS, MIN_VIDEOS, Effect, Evidence, Finding, enough, on
from hookedvid.study.results.group import Group
from hookedvid.study.results.statistics import LEVEL, Interval
from hookedvid.study.results.summary import Outcomes

# From where on later cuts count as costing next to nothing: this share of what the cut in every layer costs. Of the
# 50 videos of a small study, none of which loses anything, one in twenty may all the same.
NEXT_TO_NOTHING = 1 / 10

Amount = Callable[[Interval], str]


def findings(
    o: Outcomes, group: str, n_layers: int, n_resamples: int = 2000, seed: int = 0, keep: float = 0.97
) -> list[Finding]:
    """The laws whose protocols were run, on one group of items; layers counted from 1.

    Args:
        keep: As in a Study.
    """
    of, scoring = Group(o, group, n_layers, n_resamples, seed, keep), o.scoring
    evidence = of.evidence(o.conditions[1:], scoring.measures[0])
    if not enough(evidence.n, evidence.n_videos):
        few = f"{on(evidence.n, evidence.n_videos)}; a finding needs {MIN_ITEMS} questions, {MIN_VIDEOS} videos"
        return [Finding("any law", False, few)]
    if not scoring.chooses:
        return _compared(evidence, n_layers, scoring.amount) + _read(of, evidence)
    baseline, guess = of.resamples.mean(evidence.scores[0], scoring.bounds), of.level
    if not baseline.low > guess:
        text = f"the baseline's accuracy, {efficiency.percents(baseline)}, is not above chance, {guess:.0%}"
        return [Finding("any law", False, text)]
    laws = _compared(evidence, n_layers, scoring.amount)
    if "random control" in evidence.by_protocol and "all layers" in evidence.by_protocol:
        laws.append(_specific(evidence, scoring.amount))
    if EFFICIENCY in evidence.by_protocol:
        laws.append(efficiency.cheapest(efficiency.search(o, group, keep, n_resamples, seed), keep))
    return laws + _read(of, evidence)


def _read(group: Group, e: Evidence) -> list[Finding]:
    """What the other protocols that were run find."""
    readings = [protocol.read(group) for name, protocol in REGISTRY.items() if name in e.by_protocol]
    return [finding for reading in readings if reading for finding in reading.findings]


def _compared(e: Evidence, n_layers: int, amount: Amount) -> list[Finding]:
    """The laws about costs of cuts, of those whose protocols were run.

    Args:
        amount: How a cost is written.
    """
    laws: list[Finding] = []
    if "cumulative" in e.by_protocol:
        laws.append(_stages(e, e.by_protocol["cumulative"], n_layers, amount))
    if "all layers" in e.by_protocol:
        laws.append(_dominant(e, e.by_protocol["all layers"], amount))
    if "windows" in e.by_protocol:
        laws.append(_critical(e, e.by_protocol["windows"], amount))
    return laws


def _stages(e: Evidence, conditions: Sequence[Condition], n_layers: int, amount: Amount) -> Finding:
    """The layer from which on every cut costs next to nothing, between bounds that intervals prove.

    Each bound is sought in one order of the layers, from its end up to the first that is not proven: such a sequence
    of tests errs as seldom as one of them, so it needs no correction.
    """
    labels, layers = [c.label for c in conditions], [c.layer or 0 for c in conditions]
    known, name = e.known(labels), conditions[0].knockout
    costs = dict(zip(labels, e.costs_on(labels, known), strict=True))
    whole = costs[labels[0]]
    text = f"{name} in every layer costs {amount(whole.size)}"
    if not (e.costs(labels[0]) and whole.enough and whole.size.low > 0):
        return Finding("two stages", False, f"{text} ({whole.on})")
    # How much more than next to nothing each cut costs; of the first that is 0.9 of what it costs, which is proven.
    rest = {e.baseline: 1 - NEXT_TO_NOTHING, labels[0]: NEXT_TO_NOTHING}
    over = [whole.size, *(x.size for x in e.effects([{**rest, label: -1.0} for label in labels[1:]], known))]
    ends = [*layers[1:], n_layers]

    def first_of_rest(small: Callable[[Interval], bool]) -> int:
        last = next((i for i in reversed(range(len(over))) if not small(over[i])), -1)
        return layers[0] if last < 0 else ends[last]

    start, high = first_of_rest(lambda x: x.value <= 0), first_of_rest(lambda x: x.high <= 0)
    low = next((layers[i] for i, x in enumerate(over) if not x.low > 0), n_layers)
    text += (
        f"; text needs the video up to layer {start} of {n_layers} [{low}, {high}], {start / n_layers:.0%} of the depth"
    )
    if high < n_layers:
        cost = amount(costs[labels[layers.index(high)]].size)
        text += f"; a cut after layer {high} costs {cost}, which is shown to be less than a tenth of that"
    else:
        text += "; no later cut is shown to cost less than a tenth of that"
    return Finding("two stages", low > 0 and high < n_layers, f"{text} ({whole.on})")


def _dominant(e: Evidence, conditions: Sequence[Condition], amount: Amount) -> Finding:
    """The flow that costs most, held against every other on the items that all have."""
    law, known = "which flow dominates", e.known([c.label for c in conditions])
    labels = [c.label for c in conditions]
    drops = dict(zip(labels, e.costs_on(labels, known), strict=True))
    first, *others = sorted(conditions, key=lambda c: -np.nan_to_num(drops[c.label].size.value, nan=-np.inf))
    drop = drops[first.label]
    text = f"{first.knockout} in every layer costs {amount(drop.size)}"
    if not others:
        return Finding(law, False, f"{text}, and no other flow was cut ({drop.on})")
    leads = e.effects([{c.label: 1.0, first.label: -1.0} for c in others], known)
    text += f", {amount(leads[0].size)} more than {others[0].knockout}, the next ({drop.on})"
    ahead = all(p < LEVEL for p in statistics.holm([x.p for x in leads])) and all(x.size.low > 0 for x in leads)
    return Finding(law, e.costs(first.label) and drop.enough and drop.size.low > 0 and ahead, text)


def _critical(e: Evidence, conditions: Sequence[Condition], amount: Amount) -> Finding:
    """Windows that cost something, the costliest first."""
    costs = {c.label: e.cost[c.label] for c in conditions}
    critical = sorted((x for x in costs if e.costs(x)), key=lambda x: -costs[x].size.value)
    if not critical:
        most = max(costs, key=lambda x: np.nan_to_num(costs[x].size.value, nan=-np.inf))
        text = f"no window costs anything beyond chance variation; most costs {most}, {amount(costs[most].size)}"
        return Finding("critical windows", False, f"{text} ({costs[most].on})")
    text = "; ".join(f"{x} costs {amount(costs[x].size)}" for x in critical)
    return Finding("critical windows", True, f"{text} ({_all_on([costs[x] for x in critical])})")


def _specific(e: Evidence, amount: Amount) -> Finding:
    """Each knockout against as many random edges; one of the two must cost or bring something at all."""
    control = {c.knockout: c.label for c in e.by_protocol["random control"]}
    pairs = [(c, control[c.knockout]) for c in e.by_protocol["all layers"] if c.knockout in control]
    more = e.effects([{random: 1.0, c.label: -1.0} for c, random in pairs])
    adjusted = statistics.holm([x.p for x in more])
    unlike = [
        p < LEVEL and x.enough and (x.size.low > 0 or x.size.high < 0) and (e.starred(c.label) or e.starred(random))
        for (c, random), x, p in zip(pairs, more, adjusted, strict=True)
    ]
    alike = ", and is not told apart from them"
    text = "; ".join(
        f"{c.knockout} costs {_more(x.size, amount)} than as many random edges{'' if apart else alike}"
        for (c, _), x, apart in zip(pairs, more, unlike, strict=True)
    )
    return Finding("these edges or fewer edges", bool(pairs) and all(unlike), f"{text} ({_all_on(more)})")


def _all_on(effects: Sequence[Effect]) -> str:
    """`176 questions, 50 videos`, of the fewest where they differ."""
    least = min(effects, key=lambda x: (x.n_videos, x.n))
    return least.on if len({(x.n, x.n_videos) for x in effects}) < 2 else f"at least {least.on}"


def _more(i: Interval, amount: Amount) -> str:
    return f"{amount(i)} more" if not i.value < 0 else f"{amount(-i)} less"
