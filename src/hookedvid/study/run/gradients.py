"""What gradients say that a study's conditions cost: one row for all that one attribution answers."""

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from hookedvid.data.item import Item
from hookedvid.model.attribution.attribute import attribute
from hookedvid.model.attribution.result import Path
from hookedvid.model.run import Sources
from hookedvid.nn.model import Model
from hookedvid.study.definition import Plan
from hookedvid.study.protocols import Condition
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.values.effects import effects
from hookedvid.values.inputs import VideoInputs

# What a step takes of a forward's operations: it, its blocks once more, and the way back. That takes as much again in
# products with weights, which get no gradients, and 2.5 times attention, whose fused kernel computes scores anew.
# What was measured against it stands in docs/study.md; sums over edges are not in it.
LINEAR, ATTENTION = 3, 4.5


class Worth(NamedTuple):
    """What an estimate takes.

    Attributes:
        steps: Runs that are gone back through.
        runs: Others, of the decoder.
        clips: Of other items that are encoded.
        nodes: Streams that are held for their nodes.
    """

    steps: int
    runs: int
    clips: int
    nodes: int


def worth(condition: Condition, n_layers: int) -> Worth:
    """Of a condition with an estimate. A path of edges begins with the cut run, one of nodes with as many forwards."""
    assert condition.estimate is not None
    n, writes = condition.estimate.n_steps, len(effects(condition.interventions, n_layers).writes)
    if not writes:
        return Worth(n, n > 1, 0, 0)
    return Worth(n + 1, n + 1, 1, 2 * writes) if n > 1 else Worth(1, 1, 1, writes)


def estimated(
    plan: Plan, model: Model, item: Item, inputs: VideoInputs, condition: Condition, sources: Sources
) -> Outcome:
    """What each condition that one estimates takes off the scoring's metric, of one item.

    Args:
        plan: Its conditions are looked up by their labels.
        condition: With an estimate. Its interventions are knockouts, whose edges are asked together, or writes from
            one source, whose nodes are.
        sources: Inputs of the other runs that it takes from, by name.
    """
    assert condition.estimate is not None
    scoring, asked = plan.scoring, condition.estimate
    known = {c.label: c.interventions for c in plan.conditions}

    def metric(logits: Float[Tensor, "batch kept d_vocab"]) -> Float[Tensor, ""]:
        return scoring.metric(model, item, scoring.read(model, logits[0], inputs), inputs)

    what: dict[str, Any] = {"edges": condition.interventions}
    if writes := effects(condition.interventions, model.cfg.n_layers).writes:
        hooks, layers = ({getattr(w, name): None for w in writes} for name in ("hook", "layer"))
        what = {"nodes": [*hooks], "layers": [*layers], "reference": writes[0].source, "sources": sources}
    path: Path | None = ("clip" if writes else "weights") if asked.how == "path" else None
    found = attribute(
        model, inputs, metric, **what, path=path, n_steps=asked.n_steps if path else None, softmax=asked.softmax,
        logits_to_keep=scoring.n_last(inputs),
    )  # fmt: skip
    return Outcome("ok", estimates=tuple(found.estimate(known[label]) for label in asked.of))
