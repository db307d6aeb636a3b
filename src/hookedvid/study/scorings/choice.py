"""Choosing among an item's options: what the scorings share that tell right answers from wrong ones."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.data.item import Item
from hookedvid.errors import InputError
from hookedvid.model.answers import score_options
from hookedvid.nn.model import Model
from hookedvid.study.results.cells import number, percent, short, star
from hookedvid.study.results.statistics import UNKNOWN, Bounds, Interval, Resamples
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.study.scorings.scoring import FAILED, LOST, Column, N, Scoring
from hookedvid.values.inputs import VideoInputs

PROB = Column("p(right)", lambda s: number(s.means["prob"].value, 3))
# On the page: what is kept of the baseline's accuracy, and of its operations.
KEPT = (
    Column("ratio", lambda s: percent(s.against["ratio"])),
    Column("above chance", lambda s: percent(s.against["corrected"])),
)
SHARES = (
    Column("decoder", lambda s: f"{number(100 * s.decoder_share)} %"),
    Column("attention", lambda s: f"{number(100 * s.attention_share)} %"),
)


class Choice(Scoring):
    """One option is chosen, by its logit unless a subclass says otherwise; the share of right ones is the accuracy."""

    requires = "options"
    purpose = "choose from"
    title, unit, label = "accuracy", "%", "accuracy"
    measures = ("accuracy", "of_parsed", "as_printed", "prob", "margin")
    bounds = (0.0, 1.0)
    chooses = True
    level_name = level_column = "chance"
    counts = ("answered", "failed", "unparsed", "parsed", "empty", "degenerate")
    test, test_name = "mcnemar", "exact McNemar"
    kept, kept_label, baseline_kept = "ratio", "performance ratio", 1.0
    interval = "% [95 % interval]"
    width = 92
    exits_apart = True
    columns = (
        N,
        LOST,
        Column("accuracy", lambda s: short(s.score) + star(s.p_holm)),
        Column("ratio", lambda s: short(s.against["ratio"])),
        PROB,
    )
    page_columns = (
        N,
        FAILED,
        Column("accuracy", lambda s: percent(s.score) + star(s.p_holm)),
        *KEPT,
        PROB,
        *SHARES,
    )

    def has(self, item: Item) -> bool:
        """Two options or more."""
        return len(item.options) >= 2

    def gold(self, item: Item) -> tuple[Any, ...]:
        """Nothing besides the options."""
        return ()

    def outcome(self, model: Model, item: Item, values: Float[Tensor, " value"], inputs: VideoInputs) -> Outcome:
        """The option of the largest logit; failed where logits are not finite."""
        try:
            answer = score_options(values, inputs, n_tokens=model.cfg.n_tokens)
        except InputError as e:
            return Outcome.failed(e)
        if item.answer is None:
            return Outcome("ok", answer.index)
        others = [x for i, x in enumerate(answer.logits) if i not in item.right]
        margin = max(answer.logits[i] for i in item.right) - max(others) if others else None
        prob = sum(answer.probs[i] for i in item.right)
        return Outcome("ok", answer.index, answer.index in item.right, prob, margin)

    def metric(
        self, model: Model, item: Item, values: Float[Tensor, " value"], inputs: VideoInputs
    ) -> Float[Tensor, ""]:
        """The margin, as of `outcome`: which other option is best is found anew where the logits are."""
        if item.answer is None or len(item.right) == len(item.options):
            raise InputError(f"item {item.id!r} has no margin: no right option is known, or every one is right")
        logits = values[list(inputs.option_tokens[0])]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        right = torch.tensor([i in item.right for i in range(len(logits))], device=logits.device)
        return logits[right].max() - logits[~right].max()

    def values(self, item: Item, row: Mapping[str, Any]) -> dict[str, float]:
        """accuracy: unparsed answers are wrong; of_parsed: they are left out; as_printed: see `counted`.

        prob, margin: of the right option.
        """
        parsed, known = row["status"] != "unparsed", self.scored(item)
        correct = 0.0 if known and not parsed else _float(row["correct"])
        return {
            "accuracy": correct,
            "of_parsed": correct if parsed else math.nan,
            "as_printed": self.counted(item, row) if known else math.nan,
            "prob": _float(row["prob"]),
            "margin": _float(row["margin"]),
        }

    def counted(self, item: Item, row: Mapping[str, Any]) -> float:
        """What the convention's authority counts a row as; NaN without one, and for what it leaves out."""
        return math.nan

    def scored(self, item: Item) -> bool:
        """Items whose answer is hidden are not."""
        return item.answer is not None

    def bounds_of(self, measure: str) -> Bounds | None:
        """Margins have no ends."""
        return None if measure == "margin" else self.bounds

    def level(self, items: Sequence[Item]) -> float:
        """Of guessing."""
        return float(np.mean([chance(item) for item in items]))

    def against(
        self, resamples: Resamples, score: Float[np.ndarray, "condition item"], level: float
    ) -> dict[str, list[Interval]]:
        """ratio: accuracy over the baseline's, the paper's performance ratio; corrected: the same above chance."""
        return {name: _ratios(resamples, score, floor) for name, floor in (("ratio", 0.0), ("corrected", level))}

    def brief(self, score: float) -> str:
        """In per cent."""
        return number(100 * score)

    def amount(self, i: Interval) -> str:
        """In points."""
        return f"{i.value * 100:z.1f} points [{i.low * 100:z.1f}, {i.high * 100:z.1f}]"

    def said(self, item: Item, row: Mapping[str, Any]) -> tuple[str, str]:
        """The chosen option."""
        chosen: int | None = row["chosen"]
        if chosen is None:
            return super().said(item, row)
        return {True: "right", False: "wrong", None: ""}[row["correct"]], item.options[chosen]


def _ratios(resamples: Resamples, correct: Float[np.ndarray, "condition item"], floor: float) -> list[Interval]:
    """Of each condition over the first, whose own is 1 and nothing else."""
    itself, *others = resamples.ratios(correct, correct[0], floor)
    return [UNKNOWN if np.isnan(itself.value) else Interval(1.0, 1.0, 1.0), *others]


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def chance(item: Item) -> float:
    """Accuracy of guessing; options of the right one's text are right, too."""
    return max(1, len(item.right)) / len(item.options) if item.options else math.nan
