"""Running conditions over items: one row for each pair, and the table of what they come to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hookedvid.answering import score_options
from hookedvid.data.item import Item, video_path
from hookedvid.errors import DataError, HookedVidError, InputError
from hookedvid.study.protocols import Condition


@dataclass(frozen=True)
class Row:
    """One item under one condition.

    status: `ok`, or `failed` with the reason (say, a video that cannot be read); a failed row has no answer.
    prob: probability of the right option's letter over the vocabulary. chosen: 0-based option.
    """

    item: str
    family: str
    condition: str
    status: str = "ok"
    reason: str = ""
    chosen: int | None = None
    correct: bool | None = None
    prob: float | None = None


@dataclass(frozen=True)
class Summary:
    """What one condition comes to: n answered and failed items, accuracy, mean probability of the right letter.

    ratio: accuracy over the baseline's (the paper's performance ratio), on the same items.
    """

    condition: Condition
    n: int
    failed: int
    accuracy: float
    prob: float
    ratio: float


def run(
    model: Any,
    items: Sequence[Item],
    annotations: Path,
    conditions: Sequence[Condition],
    *,
    n_frames: int | None = None,
) -> Iterator[Row]:
    """Rows item by item, every condition of an item in turn.

    Each video is decoded and goes through the tower once; conditions start from the merged stream. Raises
    DataError before running for items that have no options or no known answer.
    """
    unusable = [i.id for i in items if not i.options or i.answer is None]
    if unusable:
        raise DataError(f"{len(unusable)} items have no options or no answer to score against: {unusable[:3]}")
    for item in items:
        try:
            inputs = model.prepare(video_path(item, annotations), item.question, item.options, n_frames=n_frames)
            with torch.no_grad():
                stream = model(inputs, stop_at_layer=0)
        except HookedVidError as e:
            yield from (Row(item.id, item.family, c.label, "failed", str(e)) for c in conditions)
            continue
        for condition in conditions:
            try:
                yield _answer(model, item, inputs, stream, condition)
            except InputError as e:
                yield Row(item.id, item.family, condition.label, "failed", str(e))


@torch.no_grad()
def _answer(model: Any, item: Item, inputs: Any, stream: torch.Tensor, condition: Condition) -> Row:
    logits = model(stream, start_at_layer=0, inputs=inputs, interventions=condition.interventions, logits_to_keep=1)
    answer = score_options(logits[0, -1], inputs)
    assert item.answer is not None
    return Row(
        item.id,
        item.family,
        condition.label,
        chosen=answer.index,
        correct=answer.index == item.answer,
        prob=answer.probs[item.answer],
    )


def summarise(rows: Sequence[Row], conditions: Sequence[Condition]) -> list[Summary]:
    """One summary for each condition, in their order; the first is what ratios refer to."""
    by_condition: dict[str, list[Row]] = {c.label: [] for c in conditions}
    for row in rows:
        by_condition[row.condition].append(row)
    summaries: list[Summary] = []
    for c in conditions:
        answered = [r for r in by_condition[c.label] if r.status == "ok"]
        n = len(answered)
        accuracy = sum(bool(r.correct) for r in answered) / n if n else float("nan")
        prob = sum(r.prob or 0.0 for r in answered) / n if n else float("nan")
        base = summaries[0].accuracy if summaries else accuracy
        ratio = accuracy / base if base else float("nan")
        summaries.append(Summary(c, n, len(by_condition[c.label]) - n, accuracy, prob, ratio))
    return summaries
