"""Studies whose score is no accuracy: likelihood of a reference, overlap of spans. Rows to table, csv and findings.

As in `summary`: intervals by bootstrap over videos, every condition paired with the baseline on the same items.
"""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from hookedvid.data.item import Item
from hookedvid.study import grounding, statistics
from hookedvid.study.laws import PLATEAU_SHARE, Finding
from hookedvid.study.protocols import Condition
from hookedvid.study.statistics import Interval
from hookedvid.study.summary import Outcomes


@dataclass(frozen=True)
class Measure:
    """What a scoring measures on each row that did not fail.

    values: a row's numbers by name, the first of which is the score; NaN takes no part. unit: of the score.
    level: of a group's items, the score of knowing nothing, NaN where it is not known; level_name says what it is,
    empty where there is none. bounded: the score lies from 0 to 1. note: what a reader must know.
    """

    title: str
    values: Callable[[Item, Mapping[str, Any]], dict[str, float]]
    unit: str
    level: Callable[[Sequence[Item]], float]
    level_name: str
    bounded: bool
    note: str


def likelihood(item: Item, row: Mapping[str, Any]) -> dict[str, float]:
    """Mean and sum of the reference's token log-likelihoods in nats, its end included, and how many they are."""
    each = row["log_probs"]
    return {"per_token": math.fsum(each) / len(each), "total": math.fsum(each), "n_tokens": float(len(each))}


MEASURES: dict[str, Measure] = {
    "likelihood": Measure(
        "log-likelihood per token",
        likelihood,
        "nats",
        lambda items: math.nan,
        "",
        False,
        "Log-likelihood of the reference and its end, mean over its tokens, then over items; knockouts hold for the "
        "reference's tokens too, random controls cut edges of the prompt alone.",
    ),
    "grounding": Measure(
        "mean IoU",
        grounding.values,
        "IoU",
        grounding.whole_video,
        "whole video",
        True,
        "Intersection over union of the span that was said with the right one, 0 where none was said; parsed: mean "
        "over those that said one. whole video: what always naming all of it scores.",
    ),
}


@dataclass(frozen=True)
class Measured:
    """One condition on one group of items.

    group: as in `Summary`. n: items with a score. means: of each of the measure's values over the items. change:
    of the score against the baseline, on the items both have; p: two-sided, that changes are as often up as down
    (Wilcoxon's signed ranks of the videos' mean changes); p_holm: adjusted for all conditions of the group.
    attention_share, decoder_share: as in `Summary`.
    """

    condition: Condition
    group: str
    n: int
    failed: int
    unparsed: int
    means: Mapping[str, Interval]
    change: Interval
    p: float
    p_holm: float
    level: float
    attention_share: float
    decoder_share: float

    @property
    def score(self) -> Interval:
        """The measure's first value."""
        return next(iter(self.means.values()))


class Values(Outcomes):
    """Rows as arrays [condition, item] by name, NaN where there is no value; names in the measure's order."""

    def __init__(
        self, measure: Measure, items: Sequence[Item], conditions: Sequence[Condition], rows: Sequence[Mapping]
    ):
        super().__init__(items, conditions, rows)
        self.measure = measure
        column = {item.id: i for i, item in enumerate(items)}
        line = {c.label: i for i, c in enumerate(conditions)}
        self.values: dict[str, Float[np.ndarray, "condition item"]] = {}
        for row in rows:
            if row["status"] == "failed":
                continue
            at = line[row["condition"]], column[row["item"]]
            for name, value in measure.values(self.items[at[1]], row).items():
                self.values.setdefault(name, np.full(self.status.shape, np.nan))[at] = value
        if not self.values:
            self.values = {"score": np.full(self.status.shape, np.nan)}

    @property
    def score(self) -> Float[np.ndarray, "condition item"]:
        """The measure's first value."""
        return next(iter(self.values.values()))


def summarise(v: Values, n_resamples: int = 2000, seed: int = 0) -> list[Measured]:
    """One line a condition, group by group; the first condition is what the others are held against."""
    found = []
    for group, columns in v.groups().items():
        items = [item for item, inside in zip(v.items, columns, strict=True) if inside]
        videos = [item.video for item in items]
        weights = statistics.video_weights(videos, n_resamples, seed)
        changes = v.score[:, columns] - v.score[0, columns]
        ps = [signed_ranks(videos, change) for change in changes]
        adjusted = [1.0, *statistics.holm(ps[1:])]
        for i, condition in enumerate(v.conditions):
            status = v.status[i, columns]
            found.append(
                Measured(
                    condition,
                    group,
                    n=int((~np.isnan(v.score[i, columns])).sum()),
                    failed=int((status == "failed").sum()),
                    unparsed=int((status == "unparsed").sum()),
                    means={name: statistics.mean(weights, x[i, columns]) for name, x in v.values.items()},
                    change=statistics.mean(weights, changes[i]),
                    p=ps[i],
                    p_holm=float(adjusted[i]),
                    level=v.measure.level(items),
                    attention_share=statistics.known_mean(v.attention_share[i, columns]),
                    decoder_share=statistics.known_mean(v.decoder_share[i, columns]),
                )
            )
    return found


def signed_ranks(videos: Sequence[str], changes: Float[np.ndarray, " item"]) -> float:
    """Wilcoxon's two-sided p of the videos' mean changes; 1 where nothing changes or no item has a change."""
    known = ~np.isnan(changes)
    names, index = np.unique(np.asarray(videos)[known], return_inverse=True)
    if not len(names):
        return 1.0
    means = np.bincount(index, changes[known]) / np.bincount(index)
    if not (means != 0).any():
        return 1.0
    test: Any = stats.wilcoxon(means[means != 0])
    return float(test.pvalue)


def findings(v: Values, group: str, n_layers: int, n_resamples: int = 2000, seed: int = 0) -> list[Finding]:
    """What the rows of one group say; layers counted from 1.

    What a knockout cuts is worth the intact score minus that with the cut in every layer, cumulative's first condition;
    the kept share of that takes the place of the paper's performance ratio.
    """
    columns = v.groups()[group]
    videos = [item.video for item, inside in zip(v.items, columns, strict=True) if inside]
    weights = statistics.video_weights(videos, n_resamples, seed)
    means = {c.label: statistics.resampled_mean(weights, v.score[i, columns]) for i, c in enumerate(v.conditions)}
    base = means[v.conditions[0].label]
    by_protocol: dict[str, list[Condition]] = {}
    for c in v.conditions:
        by_protocol.setdefault(c.protocol, []).append(c)
    found = []
    if "cumulative" in by_protocol:
        found.append(_plateau(v.measure, by_protocol["cumulative"], means, base, n_layers))
    if "all layers" in by_protocol:
        found.append(_dominant(v.measure, by_protocol["all layers"], means, base))
    if "windows" in by_protocol:
        changes = v.score[:, columns] - v.score[0, columns]
        ps = {c.label: signed_ranks(videos, changes[i]) for i, c in enumerate(v.conditions)}
        found.append(_critical(v.measure, by_protocol["windows"], means, base, ps))
    return found


def _plateau(m: Measure, conditions: Sequence[Condition], means: dict, base: np.ndarray, n_layers: int) -> Finding:
    curves = np.stack([means[c.label] for c in conditions])  # [layer, resample]
    gain = statistics.interval(base - curves[0])
    body = f"what {conditions[0].knockout} cuts is worth {_amount(m, gain)}"
    if not gain.low > 0:
        return Finding("two stages", False, f"not supported: {body}")
    worst_after = np.minimum.accumulate(curves[::-1], axis=0)[::-1]
    flat = worst_after - curves[0] >= PLATEAU_SHARE * (base - curves[0])
    layers = np.array([c.layer for c in conditions])
    start = statistics.interval(np.where(flat.any(0), layers[flat.argmax(0)], n_layers).astype(float))
    supported = start.high < n_layers and start.value > 0
    body += (
        f", all up to layer {start.value:.0f} of {n_layers} [{start.low:.0f}, {start.high:.0f}] "
        f"({start.value / n_layers:.0%} of the depth); later cuts keep {PLATEAU_SHARE:.0%} of that"
    )
    return Finding("two stages", supported, body if supported else f"not supported: {body}")


def _dominant(m: Measure, conditions: Sequence[Condition], means: dict, base: np.ndarray) -> Finding:
    drops = {c.knockout: base - means[c.label] for c in conditions}
    first = max(drops, key=lambda k: drops[k][0])
    rest = [x for k, x in drops.items() if k != first]
    drop = statistics.interval(drops[first])
    body, supported = f"{first} in every layer costs {_amount(m, drop)}", drop.low > 0
    if rest:
        lead = statistics.interval(drops[first] - np.max(rest, axis=0))
        body, supported = f"{body}, {_amount(m, lead)} more than the next", lead.low > 0
    return Finding("which flow dominates", supported, body if supported else f"not supported: {body}")


def _critical(m: Measure, conditions: Sequence[Condition], means: dict, base: np.ndarray, ps: dict) -> Finding:
    adjusted = statistics.holm([ps[c.label] for c in conditions])
    drops = {c.label: statistics.interval(base - means[c.label]) for c in conditions}
    costly = [c.label for c, p in zip(conditions, adjusted, strict=True) if p < 0.05 and drops[c.label].value > 0]
    costly.sort(key=lambda label: -drops[label].value)
    if not costly:
        return Finding("critical windows", False, "not supported: no window costs anything beyond chance variation")
    return Finding("critical windows", True, "; ".join(f"{x} costs {_amount(m, drops[x])}" for x in costly))


def _amount(m: Measure, i: Interval) -> str:
    return f"{i.value:.3f} {m.unit} [{i.low:.3f}, {i.high:.3f}]"


def write_csv(lines: Sequence[Measured], path: Path) -> None:
    """One line a condition and group, intervals as three columns; layers counted from 1."""
    table = []
    for m in lines:
        line: dict[str, Any] = {
            "group": m.group,
            "protocol": m.condition.protocol,
            "condition": m.condition.label,
            "knockout": m.condition.knockout,
            "layer": m.condition.layer,
            "n": m.n,
            "failed": m.failed,
            "unparsed": m.unparsed,
            "level": m.level,
        }
        for name, value in (*m.means.items(), ("change", m.change)):
            line |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        line |= {"wilcoxon_p": m.p, "wilcoxon_p_holm": m.p_holm}
        table.append(line | {"attention_share": m.attention_share, "decoder_share": m.decoder_share})
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
