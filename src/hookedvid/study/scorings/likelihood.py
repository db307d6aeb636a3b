"""`likelihood`: the question alone, its reference after it, the log-probability of each of the reference's tokens."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hookedvid.data.item import Item
from hookedvid.model.answers import answer_log_probs
from hookedvid.nn.model import Model
from hookedvid.study.results.cells import number, short, star
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.study.scorings.scoring import COSTS, LOST, Ask, Column, N, Scoring
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.tensors import floats


class Likelihood(Scoring):
    """Of captions and open answers, which no option stands for."""

    name = "likelihood"
    requires = "reference"
    tasks = ("captions", "answers")
    reads = "log-probabilities"
    title, unit, label = "log-likelihood per token", "nats", "log-likelihood per token, nats"
    kept_label = f"{label}: change"
    measures = ("per_token", "total", "n_tokens")
    interval = "nats [95 % interval]"
    note = (
        "Log-likelihood of the reference and its end, mean over its tokens, then over items; knockouts hold for the "
        "reference's tokens too, random controls cut edges of the prompt alone."
    )
    columns = (
        N,
        replace(LOST, optional=True),
        Column("log p/token", lambda s: short(s.score, 1)),
        Column("change", lambda s: short(s.against["change"], 1) + star(s.p_holm)),
        Column("perplexity", lambda s: number(_exp(-s.score.value), 2)),
        Column("log p", lambda s: number(s.means["total"].value)),
        *COSTS,
    )

    def inputs(self, ask: Ask, model: Model, item: Item, subtitles: str | None = None) -> VideoInputs:
        """The reference stands where a generated answer would."""
        return ask(item.question, answer=item.reference)

    def n_last(self, inputs: VideoInputs) -> int:
        """The prompt's last position and the reference's."""
        return 1 + inputs.layout.n_tokens - inputs.layout.n_prompt

    def read(self, model: Model, logits: Float[Tensor, "last d_vocab"], inputs: VideoInputs) -> Float[Tensor, " value"]:
        """The log-probability of each of the reference's tokens, its end included."""
        return answer_log_probs(logits, inputs, model.cfg.n_tokens)

    def outcome(self, model: Model, item: Item, values: Float[Tensor, " value"], inputs: VideoInputs) -> Outcome:
        """The log-probabilities as they are."""
        return Outcome("ok", log_probs=tuple(floats(values)))

    def metric(
        self, model: Model, item: Item, values: Float[Tensor, " value"], inputs: VideoInputs
    ) -> Float[Tensor, ""]:
        """The mean over the reference's tokens, in nats."""
        return values.mean()

    def values(self, item: Item, row: Mapping[str, Any]) -> dict[str, float]:
        """Mean and sum of the reference's token log-likelihoods in nats, its end included, and how many they are."""
        each = row["log_probs"]
        return {"per_token": math.fsum(each) / len(each), "total": math.fsum(each), "n_tokens": float(len(each))}

    def said(self, item: Item, row: Mapping[str, Any]) -> tuple[str, str]:
        """How likely the reference was."""
        if not row["log_probs"]:
            return super().said(item, row)
        mean = sum(row["log_probs"]) / len(row["log_probs"])
        return "", f"{mean:.3f} nats per token of {item.reference!r}"


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
