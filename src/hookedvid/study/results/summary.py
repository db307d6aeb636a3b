"""From rows to the table: every condition, over all items and by family, with intervals and tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from hookedvid.data.item import Item
from hookedvid.study.protocols import Condition
from hookedvid.study.results import statistics
from hookedvid.study.results.statistics import Interval, McNemar, Resamples
from hookedvid.study.scorings.letters import Letters
from hookedvid.study.scorings.scoring import Scoring
from hookedvid.values.files import write_text
from hookedvid.values.texts import csv_text

# Families that no video is needed for: the control, kept out of the group `video`.
LANGUAGE_ONLY = ("language",)
OURS = ("all", "video")  # groups that are no family


def named(name: str, ours: Sequence[str]) -> str:
    """A user's name where names of ours stand too: itself, or `name “all”` if it could be taken for one of ours."""
    return f"name “{name}”" if name in ours or name.startswith("name “") else name


@dataclass(frozen=True)
class Summary:
    """One condition on one group of items. `s.accuracy`, `s.iou`: one of `means` or `against` by its name.

    Args:
        scoring: What names and explains the numbers.
        group: `all`, `video` (all but the language-only control) or a family, by `named`.
        n: Items with a score: those that did not fail, and whose right answer is known.
        videos: That these are on.
        answered: Items with an outcome, failed ones not among them.
        parsed: Share of the answers that could be read.
        empty: How many texts say nothing.
        degenerate: How many are garbled, or come from logits that are not finite.
        means: Of each of the scoring's measures over the items, the score first.
        against: The score held against the baseline's on the items that both have, as the scoring does.
        mcnemar: Of the condition against the baseline.
        p_holm: Its p, adjusted for all conditions of the group.
        level: What knowing nothing scores on the items that the baseline has a score of; NaN where that is not known.
        attention_share: Of the intact model's operations, mean over the items; NaN where rows do not tell.
        decoder_share: Likewise, linear layers included.
    """

    scoring: Scoring
    condition: Condition
    group: str
    n: int
    videos: int
    answered: int
    failed: int
    unparsed: int
    parsed: float
    empty: int
    degenerate: int
    means: Mapping[str, Interval]
    against: Mapping[str, Interval]
    mcnemar: McNemar
    p_holm: float
    level: float
    attention_share: float
    decoder_share: float

    @property
    def score(self) -> Interval:
        """The mean of the scoring's first measure."""
        return self.means[self.scoring.measures[0]]

    @property
    def kept(self) -> Interval:
        """What figures show of the score held against the baseline's."""
        return self.against[self.scoring.kept]

    def __getattr__(self, name: str) -> Interval:
        known = {**vars(self).get("means", {}), **vars(self).get("against", {})}
        if name not in known:
            raise AttributeError(f"a summary has no {name!r}; its numbers are {', '.join(known)}")
        return known[name]


class Outcomes:
    """Rows as arrays [condition, item], NaN where there is no value; answers that are not known count nowhere.

    Args:
        items: What was asked.
        conditions: Under which; the first is what the others are held against. Those that only estimate others are
            no lines: what they say is in `estimates`, by how it was found [condition, item].
        rows: Of each item under each condition; what is not there counts as missing.
        scoring: What is read of a row; choices among options unless given.
    """

    def __init__(
        self,
        items: Sequence[Item],
        conditions: Sequence[Condition],
        rows: Sequence[Mapping[str, Any]],
        scoring: Scoring | None = None,
    ):
        self.items, self.scoring = list(items), scoring or Letters()
        self.conditions = [c for c in conditions if c.estimate is None]
        column = {item.id: i for i, item in enumerate(items)}
        # Protocols may ask the same under one label, such as a window and a search that begins with it.
        lines: dict[str, list[int]] = {}
        for i, c in enumerate(self.conditions):
            lines.setdefault(c.label, []).append(i)
        shape = (len(self.conditions), len(items))
        self.values: dict[str, Float[np.ndarray, "condition item"]] = {
            name: np.full(shape, np.nan) for name in self.scoring.measures
        }
        self.attention_share, self.decoder_share = (np.full(shape, np.nan) for _ in range(2))
        # Blocks before the one where a rule let the first exit take place: inf where it did not, NaN without a rule.
        self.left = np.full(shape, np.nan)
        self.status = np.full(shape, "missing", dtype=object)
        self.flag = np.full(shape, "", dtype=object)
        asked = {c.label: c.estimate for c in conditions if c.estimate is not None}
        self.estimates: dict[str, Float[np.ndarray, "condition item"]] = {
            e.how: np.full(shape, np.nan) for e in asked.values()
        }
        for row in rows:
            if (e := asked.get(row["condition"])) is not None:
                self.estimates[e.how][[lines[label][0] for label in e.of], column[row["item"]]] = (
                    row.get("estimates") or np.nan
                )
                continue
            self._fill(lines[row["condition"]], column[row["item"]], row)

    def _fill(self, lines: Sequence[int], item: int, row: Mapping[str, Any]) -> None:
        self.status[lines, item], self.flag[lines, item] = row["status"], row.get("flag", "")
        for shares, name in ((self.attention_share, "attention_share"), (self.decoder_share, "decoder_share")):
            shares[lines, item] = np.nan if row.get(name) is None else float(row[name])  # rows of before have none
        if row.get("left"):
            self.left[lines, item] = np.inf if row["left"][0] is None else row["left"][0]
        if row["status"] != "failed":
            for name, value in self.scoring.values(self.items[item], row).items():
                self.values[name][lines, item] = value

    @property
    def score(self) -> Float[np.ndarray, "condition item"]:
        """Of the scoring's first measure."""
        return self.values[self.scoring.measures[0]]

    def level(self, columns: np.ndarray) -> float:
        """What knowing nothing scores on some items: on those that the first condition has a score of, if there are."""
        known = columns & ~np.isnan(self.score[0])
        counted = known if known.any() else columns
        return self.scoring.level([item for item, inside in zip(self.items, counted, strict=True) if inside])

    def groups(self) -> dict[str, np.ndarray]:
        """Columns of each group, by name: ours, and families as `named` says them."""
        families = np.array([item.family for item in self.items])
        groups = {"all": np.ones(len(families), dtype=bool)}
        control = np.isin(families, LANGUAGE_ONLY)
        if control.any() and not control.all():
            groups["video"] = ~control
        return groups | {named(f, OURS): families == f for f in dict.fromkeys(families.tolist()) if f}


def summarise(outcomes: Outcomes, n_resamples: int = 2000, seed: int = 0) -> list[Summary]:
    """Summaries by group, in the conditions' order; the first condition is what the others are held against."""
    return [s for g, columns in outcomes.groups().items() for s in _group(outcomes, g, columns, n_resamples, seed)]


def _group(o: Outcomes, name: str, columns: np.ndarray, n_resamples: int, seed: int) -> list[Summary]:
    items = [item for item, inside in zip(o.items, columns, strict=True) if inside]
    resamples = Resamples.of([item.video for item in items], n_resamples, seed)
    score, level = o.score[:, columns], o.level(columns)
    tests = [statistics.mcnemar(score[0], x, resamples.video) for x in score]
    ps = {c.label: t.p for c, t in zip(o.conditions[1:], tests[1:], strict=True)}  # each label is one test
    adjusted = dict(zip(ps, statistics.holm(list(ps.values())).tolist(), strict=True))
    means = {m: resamples.means(x[:, columns], o.scoring.bounds_of(m)) for m, x in o.values.items()}
    means |= {f"estimate_{how}": resamples.means(x[:, columns]) for how, x in o.estimates.items()}
    against = o.scoring.against(resamples, score, level)
    summaries: list[Summary] = []
    for i, condition in enumerate(o.conditions):
        status, flag = o.status[i, columns], o.flag[i, columns]
        answered = int((status != "failed").sum())
        summaries.append(
            Summary(
                o.scoring,
                condition,
                name,
                n=int((~np.isnan(score[i])).sum()),
                videos=resamples.n_videos(~np.isnan(score[i])),
                answered=answered,
                failed=int((status == "failed").sum()),
                unparsed=int((status == "unparsed").sum()),
                parsed=float((status == "ok").sum() / answered) if answered else np.nan,
                empty=int((flag == "empty").sum()),
                degenerate=int(np.isin(flag, ("degenerate", "non-finite")).sum()),
                means={measure: each[i] for measure, each in means.items()},
                against={measure: each[i] for measure, each in against.items()},
                mcnemar=tests[i],
                p_holm=adjusted.get(condition.label, 1.0),
                level=level,
                attention_share=statistics.known_mean(o.attention_share[i, columns]),
                decoder_share=statistics.known_mean(o.decoder_share[i, columns]),
            )
        )
    return summaries


def write_csv(summaries: Sequence[Summary], path: Path) -> None:
    """One line per summary, in the scoring's columns, intervals as three; layers counted from 1."""
    lines: list[dict[str, Any]] = []
    for s in summaries:
        line: dict[str, Any] = {
            "group": s.group,
            "protocol": s.condition.protocol,
            "condition": s.condition.label,
            "knockout": s.condition.knockout,
            "layer": s.condition.layer,
            "n": s.n,
            "videos": s.videos,
            **{name: getattr(s, name) for name in s.scoring.counts},
            s.scoring.level_column: s.level,
        }
        for name, value in (*s.means.items(), *s.against.items()):
            line |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        line |= {f"{s.scoring.test}_p": s.mcnemar.p, f"{s.scoring.test}_p_holm": s.p_holm}
        lines.append(line | {"attention_share": s.attention_share, "decoder_share": s.decoder_share})
    write_text(path, csv_text(lines))
