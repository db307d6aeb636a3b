"""What a study supports, in sentences: each of the paper's findings, with an interval, or "not supported"."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hookedvid.study import efficiency, statistics
from hookedvid.study.scoring import chance
from hookedvid.study.statistics import Interval
from hookedvid.study.summary import Outcomes, paired_test

CHEAPEST = "cheapest inference"
PLATEAU_SHARE = 0.97  # of the intact accuracy: from where on later cuts count as costing nothing


class Finding(NamedTuple):
    """One law: its name, whether the data support it, and the sentence to print."""

    law: str
    supported: bool
    sentence: str


def findings(
    o: Outcomes, group: str, n_layers: int, n_resamples: int = 2000, seed: int = 0, keep: float = 0.97
) -> list[Finding]:
    """The laws whose protocols were run, on one group of items; layers counted from 1. keep: as in a Study."""
    columns = o.groups()[group]
    items = [item for item, inside in zip(o.items, columns, strict=True) if inside]
    weights = statistics.video_weights([item.video for item in items], n_resamples, seed)
    accuracy = {c.label: statistics.resampled_mean(weights, o.correct[i, columns]) for i, c in enumerate(o.conditions)}
    by_protocol: dict[str, list] = {}
    for c in o.conditions:
        by_protocol.setdefault(c.protocol, []).append(c)
    base = accuracy[o.conditions[0].label]
    guess = float(np.mean([chance(item) for item in items]))
    if (intact := statistics.interval(base)).low <= guess:
        body = f"not supported: the intact model's accuracy, {_percent(intact)}, is not above chance, {guess:.0%}"
        return [Finding("any law", False, body)]
    found = []
    if "cumulative" in by_protocol:
        found.append(_plateau(by_protocol["cumulative"], accuracy, base, n_layers))
    if "all layers" in by_protocol:
        found.append(_dominant(by_protocol["all layers"], accuracy, base))
    if "windows" in by_protocol:
        intact_right = o.correct[0, columns]
        ps = {c.label: paired_test(intact_right, o.correct[i, columns]).p for i, c in enumerate(o.conditions)}
        found.append(_critical(by_protocol["windows"], accuracy, base, ps))
    if "random control" in by_protocol and "all layers" in by_protocol:
        found.append(_specific(by_protocol["all layers"], by_protocol["random control"], accuracy))
    if "efficiency" in by_protocol:
        found.append(_cheapest(efficiency.search(o, group, keep, n_resamples, seed), keep))
    return found


def _plateau(conditions: Sequence, accuracy: dict, base: np.ndarray, n_layers: int) -> Finding:
    layers = [c.layer for c in conditions]
    curves = np.stack([accuracy[c.label] for c in conditions])  # [layer, resample]
    # From layer i on, no later cut costs more than the share allows.
    worst_after = np.minimum.accumulate(curves[::-1], axis=0)[::-1]
    flat = worst_after >= PLATEAU_SHARE * base
    starts = np.where(flat.any(0), np.array(layers)[flat.argmax(0)], n_layers).astype(float)
    start = statistics.interval(starts)
    supported = start.high < n_layers and start.value > 0
    body = (
        f"text needs the video up to layer {start.value:.0f} of {n_layers} [{start.low:.0f}, {start.high:.0f}] "
        f"({start.value / n_layers:.0%} of the depth); later cuts keep {PLATEAU_SHARE:.0%} of the accuracy"
    )
    return Finding("two stages", supported, body if supported else f"not supported: {body}")


def _dominant(conditions: Sequence, accuracy: dict, base: np.ndarray) -> Finding:
    drops = {c.knockout: base - accuracy[c.label] for c in conditions}
    first = max(drops, key=lambda k: drops[k][0])
    rest = [v for k, v in drops.items() if k != first]
    drop = statistics.interval(drops[first])
    body = f"{first} in every layer costs {_points(drop)}"
    if not rest:
        return Finding("which flow dominates", drop.low > 0, body)
    lead = statistics.interval(drops[first] - np.max(rest, axis=0))
    body += f", {_points(lead)} more than the next"
    supported = lead.low > 0
    return Finding("which flow dominates", supported, body if supported else f"not supported: {body}")


def _critical(conditions: Sequence, accuracy: dict, base: np.ndarray, ps: dict[str, float]) -> Finding:
    """Windows whose exact McNemar test holds after Holm's correction over all windows; the costliest first."""
    adjusted = statistics.holm([ps[c.label] for c in conditions])
    drops = {c.label: statistics.interval(base - accuracy[c.label]) for c in conditions}
    critical = [c.label for c, p in zip(conditions, adjusted, strict=True) if p < 0.05 and drops[c.label].value > 0]
    critical.sort(key=lambda label: -drops[label].value)
    if not critical:
        return Finding("critical windows", False, "not supported: no window costs accuracy beyond chance variation")
    body = "; ".join(f"{label} costs {_points(drops[label])}" for label in critical)
    return Finding("critical windows", True, body)


def _specific(real: Sequence, random: Sequence, accuracy: dict) -> Finding:
    parts, supported = [], True
    control = {c.knockout: accuracy[c.label] for c in random}
    for c in real:
        if c.knockout in control:
            more = statistics.interval(control[c.knockout] - accuracy[c.label])
            parts.append(f"{c.knockout} costs {_points(more)} more than as many random edges")
            supported &= more.low > 0 or more.high < 0
    body = "; ".join(parts)
    return Finding("these edges or fewer edges", supported, body if supported else f"not told apart for all: {body}")


def _cheapest(found: efficiency.Search, keep: float) -> Finding:
    choice = found.choice
    if choice is None:
        body = (
            f"none of {found.n_tried} exits and windows keeps {keep:.0%} of the accuracy on {found.n_chosen_on} videos"
        )
        return Finding(CHEAPEST, False, f"not supported: {body}")
    body = (
        f"{choice.condition.label} takes {choice.decoder_share:.1%} of the decoder's operations "
        f"({choice.attention_share:.1%} of attention) and keeps {_percent(choice.held_out)} of the accuracy on "
        f"{found.n_held_out} other videos ({choice.accuracy.value:.1%} there; {choice.chosen_on.value:.1%} kept on the "
        f"{found.n_chosen_on} it was chosen on, to keep {keep:.0%})"
    )
    supported = choice.held_out.low >= keep
    return Finding(CHEAPEST, supported, body if supported else f"not supported: {body}")


def _percent(i: Interval) -> str:
    return f"{i.value:.1%} [{i.low:.1%}, {i.high:.1%}]"


def _points(i: Interval) -> str:
    return f"{i.value * 100:.1f} points [{i.low * 100:.1f}, {i.high * 100:.1f}]"
