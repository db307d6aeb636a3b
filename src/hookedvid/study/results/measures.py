"""Studies whose score is no accuracy: likelihood of a reference, overlap of spans. Rows to table, csv and findings.

As in `summary`: intervals by bootstrap over videos, every condition paired with the baseline on the same items.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from hookedvid.data.item import Item
from hookedvid.study.protocols import Condition
from hookedvid.study.results import statistics
from hookedvid.study.results.evidence import Evidence
from hookedvid.study.results.findings import Finding, compared, too_few
from hookedvid.study.results.statistics import UNKNOWN, Bounds, Interval, Resamples
from hookedvid.study.results.summary import Outcomes
from hookedvid.study.scorings import grounding
from hookedvid.values.files import write_text
from hookedvid.values.texts import csv_text


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

    @property
    def bounds(self) -> Bounds | None:
        """The lowest and highest score there is, if there are."""
        return (0.0, 1.0) if self.bounded else None


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

    group: as in `Summary`. n: items with a score; videos: that they are on. means: of each of the measure's values
    over the items. change: of the score against the baseline, on the items both have; p: of no change
    (`statistics.sign_flips`); p_holm: adjusted for all conditions of the group.
    attention_share, decoder_share: as in `Summary`.
    """

    condition: Condition
    group: str
    n: int
    videos: int
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
        resamples = Resamples.of([item.video for item in items], n_resamples, seed)
        score = v.score[:, columns]
        changes = score - score[0]
        bounds, span = v.measure.bounds, v.measure.bounds and (-1.0, 1.0)
        means = {name: resamples.means(x[:, columns], bounds) for name, x in v.values.items()}
        itself, *changed = resamples.means(changes, span)
        none = UNKNOWN if np.isnan(itself.value) else Interval(0.0, 0.0, 0.0)
        ps = [statistics.paired_p(change, resamples.video) for change in changes]
        adjusted = [1.0, *statistics.holm(ps[1:])]
        for i, condition in enumerate(v.conditions):
            status = v.status[i, columns]
            found.append(
                Measured(
                    condition,
                    group,
                    n=int((~np.isnan(score[i])).sum()),
                    videos=resamples.n_videos(~np.isnan(score[i])),
                    failed=int((status == "failed").sum()),
                    unparsed=int((status == "unparsed").sum()),
                    means={name: each[i] for name, each in means.items()},
                    change=[none, *changed][i],
                    p=ps[i],
                    p_holm=float(adjusted[i]),
                    level=v.measure.level(items),
                    attention_share=statistics.known_mean(v.attention_share[i, columns]),
                    decoder_share=statistics.known_mean(v.decoder_share[i, columns]),
                )
            )
    return found


def findings(v: Values, group: str, n_layers: int, n_resamples: int = 2000, seed: int = 0) -> list[Finding]:
    """What the rows of one group say, by the laws of accuracies but that on random edges; layers counted from 1."""
    columns = v.groups()[group]
    videos = [item.video for item, inside in zip(v.items, columns, strict=True) if inside]
    resamples = Resamples.of(videos, n_resamples, seed)
    evidence = Evidence(v.conditions, v.score[:, columns], resamples, v.measure.bounds)
    few = too_few(evidence)
    return [few] if few else compared(evidence, n_layers, lambda i: _amount(v.measure, i))


def _amount(m: Measure, i: Interval) -> str:
    return f"{i.value:z.3f} {m.unit} [{i.low:z.3f}, {i.high:z.3f}]"


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
            "videos": m.videos,
            "failed": m.failed,
            "unparsed": m.unparsed,
            "level": m.level,
        }
        for name, value in (*m.means.items(), ("change", m.change)):
            line |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        line |= {"sign_flip_p": m.p, "sign_flip_p_holm": m.p_holm}
        table.append(line | {"attention_share": m.attention_share, "decoder_share": m.decoder_share})
    write_text(path, csv_text(table))
