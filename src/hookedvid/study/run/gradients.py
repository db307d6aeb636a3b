"""What gradients say that a study's conditions cost: one row for all that one attribution answers."""

from jaxtyping import Float
from torch import Tensor

from hookedvid.data.item import Item
from hookedvid.model.attribution.attribute import attribute
from hookedvid.nn.model import Model
from hookedvid.study.definition import Plan
from hookedvid.study.protocols import Condition
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.values.inputs import VideoInputs

# Of a forward's operations, at most: it, the same once more block by block, and a backward of twice as many.
PER_STEP = 4


def estimated(plan: Plan, model: Model, item: Item, inputs: VideoInputs, condition: Condition) -> Outcome:
    """What each condition that one estimates takes off the scoring's metric, of one item.

    Args:
        plan: Its conditions are looked up by their labels.
        condition: With an estimate; its interventions are knockouts, whose edges are asked together.
    """
    assert condition.estimate is not None
    scoring, asked = plan.scoring, condition.estimate
    known = {c.label: c.interventions for c in plan.conditions}

    def metric(logits: Float[Tensor, "batch kept d_vocab"]) -> Float[Tensor, ""]:
        return scoring.metric(model, item, scoring.read(model, logits[0], inputs), inputs)

    found = attribute(
        model, inputs, metric, edges=condition.interventions, path="weights" if asked.how == "path" else None,
        n_steps=asked.n_steps, softmax=asked.softmax, logits_to_keep=scoring.n_last(inputs),
    )  # fmt: skip
    return Outcome("ok", estimates=tuple(found.estimate(known[label]) for label in asked.of))
