"""Choosing among an item's options: what the scorings share that tell right answers from wrong ones."""

import math
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hookedvid.data.item import Item
from hookedvid.errors import InputError
from hookedvid.model.answers import score_options
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.study.scorings.scoring import Scoring
from hookedvid.values.inputs import VideoInputs


class Choice(Scoring):
    """One option is chosen, by its logit unless a subclass says otherwise; the share of right ones is the accuracy."""

    requires = "options"
    purpose = "choose from"

    def has(self, item: Item) -> bool:
        """Two options or more."""
        return len(item.options) >= 2

    def outcome(self, model: Any, item: Item, values: Float[Tensor, " value"], inputs: VideoInputs) -> Outcome:
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


def chance(item: Item) -> float:
    """Accuracy of guessing; options of the right one's text are right, too."""
    return max(1, len(item.right)) / len(item.options) if item.options else math.nan
