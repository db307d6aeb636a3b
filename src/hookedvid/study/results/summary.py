"""From rows to the table: every condition, over all items and by family, with intervals and tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from hookedvid.data.item import Item
from hookedvid.study.conventions import Convention
from hookedvid.study.protocols import Condition
from hookedvid.study.results import statistics
from hookedvid.study.results.statistics import UNKNOWN, Interval, McNemar, Resamples
from hookedvid.study.scorings.choice import chance
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
    """One condition on one group of items.

    group: `all`, `video` (all but the language-only control) or a family, by `named`. answered: items with an
    outcome, failed ones not among them; n: those of them whose right answer is known, which alone are scored; videos:
    that these are on. accuracy: unparsed answers are wrong; of_parsed: they are left out; as_printed: as the study's
    convention counts, NaN without one. parsed: share of the answers that named an option; empty, degenerate
    (non-finite logits too): how many are flagged so. prob, margin: of the right option. ratio: accuracy over the
    baseline's on the same items, the paper's performance ratio; corrected: the same above chance. mcnemar: against
    the baseline; p_holm: its p, adjusted for all conditions of the group. attention_share, decoder_share: of the
    intact model's operations, mean over the items; NaN where rows do not tell.
    """

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
    accuracy: Interval
    of_parsed: Interval
    as_printed: Interval
    prob: Interval
    margin: Interval
    ratio: Interval
    corrected: Interval
    mcnemar: McNemar
    p_holm: float
    chance: float
    attention_share: float
    decoder_share: float


class Outcomes:
    """Rows as arrays [condition, item], NaN where there is no value; answers that are not known count nowhere."""

    def __init__(
        self,
        items: Sequence[Item],
        conditions: Sequence[Condition],
        rows: Sequence[Mapping],
        convention: Convention | None = None,
    ):
        self.items, self.conditions = list(items), list(conditions)
        column = {item.id: i for i, item in enumerate(items)}
        line = {c.label: i for i, c in enumerate(conditions)}
        shape = (len(conditions), len(items))
        self.correct, self.prob, self.margin, self.counted = (np.full(shape, np.nan) for _ in range(4))
        self.attention_share, self.decoder_share = (np.full(shape, np.nan) for _ in range(2))
        self.status = np.full(shape, "missing", dtype=object)
        self.flag = np.full(shape, "", dtype=object)
        for row in rows:
            at = line[row["condition"]], column[row["item"]]
            item = self.items[at[1]]
            self.status[at], self.flag[at] = row["status"], row.get("flag", "")
            for values, name in ((self.correct, "correct"), (self.prob, "prob"), (self.margin, "margin")):
                values[at] = np.nan if row[name] is None else float(row[name])
            for values, name in ((self.attention_share, "attention_share"), (self.decoder_share, "decoder_share")):
                values[at] = np.nan if row.get(name) is None else float(row[name])  # rows of before have none
            if item.answer is None or row["status"] == "failed":
                continue
            if row["status"] == "unparsed":
                self.correct[at] = 0.0
            if convention is not None and (counted := convention.counted(item, row["text"], row["chosen"])) is not None:
                self.counted[at] = counted

    @property
    def of_parsed(self) -> Float[np.ndarray, "condition item"]:
        """Correctness of what was parsed."""
        return np.where(self.status == "unparsed", np.nan, self.correct)

    def groups(self) -> dict[str, np.ndarray]:
        """Columns of each group, by name: ours, and families as `named` says them."""
        families = np.array([item.family for item in self.items])
        found = {"all": np.ones(len(families), dtype=bool)}
        control = np.isin(families, LANGUAGE_ONLY)
        if control.any() and not control.all():
            found["video"] = ~control
        return found | {named(f, OURS): families == f for f in dict.fromkeys(families.tolist()) if f}


def summarise(outcomes: Outcomes, n_resamples: int = 2000, seed: int = 0) -> list[Summary]:
    """Summaries by group, in the conditions' order; the first condition is what the others are held against."""
    return [s for g, columns in outcomes.groups().items() for s in _group(outcomes, g, columns, n_resamples, seed)]


def _group(o: Outcomes, name: str, columns: np.ndarray, n_resamples: int, seed: int) -> list[Summary]:
    items = [item for item, inside in zip(o.items, columns, strict=True) if inside]
    resamples = Resamples.of([item.video for item in items], n_resamples, seed)
    guess = float(np.mean([chance(item) for item in items]))
    correct = o.correct[:, columns]
    tests = [statistics.mcnemar(correct[0], x, resamples.video) for x in correct]
    adjusted = [1.0, *statistics.holm([t.p for t in tests[1:]])]
    share = (0.0, 1.0)
    intervals = {
        "accuracy": resamples.means(correct, share),
        "of_parsed": resamples.means(o.of_parsed[:, columns], share),
        "as_printed": resamples.means(o.counted[:, columns], share),
        "prob": resamples.means(o.prob[:, columns], share),
        "margin": resamples.means(o.margin[:, columns]),
        "ratio": _ratios(resamples, correct, 0.0),
        "corrected": _ratios(resamples, correct, guess),
    }
    found = []
    for i, condition in enumerate(o.conditions):
        status, flag = o.status[i, columns], o.flag[i, columns]
        answered = int((status != "failed").sum())
        found.append(
            Summary(
                condition,
                name,
                n=int((~np.isnan(correct[i])).sum()),
                videos=resamples.n_videos(~np.isnan(correct[i])),
                answered=answered,
                failed=int((status == "failed").sum()),
                unparsed=int((status == "unparsed").sum()),
                parsed=float((status == "ok").sum() / answered) if answered else np.nan,
                empty=int((flag == "empty").sum()),
                degenerate=int(np.isin(flag, ("degenerate", "non-finite")).sum()),
                mcnemar=tests[i],
                p_holm=float(adjusted[i]),
                chance=guess,
                attention_share=statistics.known_mean(o.attention_share[i, columns]),
                decoder_share=statistics.known_mean(o.decoder_share[i, columns]),
                **{measure: each[i] for measure, each in intervals.items()},
            )
        )
    return found


def _ratios(resamples: Resamples, correct: Float[np.ndarray, "condition item"], floor: float) -> list[Interval]:
    """Of each condition over the first, whose own is 1 and nothing else."""
    itself, *others = resamples.ratios(correct, correct[0], floor)
    return [UNKNOWN if np.isnan(itself.value) else Interval(1.0, 1.0, 1.0), *others]


def write_csv(summaries: Sequence[Summary], path: Path) -> None:
    """One line per summary, intervals as three columns; layers counted from 1."""
    lines = []
    for s in summaries:
        line: dict = {
            "group": s.group,
            "protocol": s.condition.protocol,
            "condition": s.condition.label,
            "knockout": s.condition.knockout,
            "layer": s.condition.layer,
            "n": s.n,
            "videos": s.videos,
            "answered": s.answered,
            "failed": s.failed,
            "unparsed": s.unparsed,
            "parsed": s.parsed,
            "empty": s.empty,
            "degenerate": s.degenerate,
            "chance": s.chance,
        }
        for name in ("accuracy", "of_parsed", "as_printed", "prob", "margin", "ratio", "corrected"):
            value: Interval = getattr(s, name)
            line |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        line |= {"mcnemar_p": s.mcnemar.p, "mcnemar_p_holm": s.p_holm}
        lines.append(line | {"attention_share": s.attention_share, "decoder_share": s.decoder_share})
    write_text(path, csv_text(lines))
