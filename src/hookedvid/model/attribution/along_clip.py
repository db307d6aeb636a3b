"""Attribution along a straight line of streams, from another clip's to the run's.

The merged stream and what DeepStack adds go from the reference's to the run's, and a node's share is the line integral
of its gradient along the way that its own activation takes (conductance, arXiv 1805.12233): over a whole residual
stream it sums to F(run) - F(reference), F the metric. Forwards along the line say where F changes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.model.attribution.backward import Watch, backward
from hookedvid.model.attribution.node_values import NodeValues, wide
from hookedvid.model.attribution.request import Request
from hookedvid.model.attribution.result import Attribution
from hookedvid.model.run import Run, running
from hookedvid.nn.model import Model
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.progress import bar
from hookedvid.values.tensors import floats


class _Conductance(NodeValues):
    """Nodes along a path of runs: gradient x the activation's change from run to run, by the trapezoid rule."""

    def __init__(self, model: Model, names: Sequence[str], layers: Sequence[int]):
        super().__init__(model, names, layers, "zero")
        self._before: dict[tuple[str, int, int], tuple[Tensor, Tensor]] = {}

    def value(
        self, run: Run, place: tuple[str, int, int], act: Tensor, grad: Tensor, pos: Int[Tensor, " row"]
    ) -> Float[Tensor, "row *head"]:
        """Of the step that ends with this run; 0 of the first one."""
        last = self._before.get(place, (act, grad))
        self._before[place] = act, grad
        if last[0].shape != act.shape:
            raise InputError("other positions left along the path than in the run: leave out exits that decide late")
        before, slope, act, grad = map(wide, (*last, act, grad))
        return ((slope + grad) / 2 * (act - before)).sum(-1)


def along_clip(asked: Request, n_steps: int) -> list[Attribution]:
    """Shares of nodes in what another clip's stream in place of the run's loses."""
    model, other = asked.model, asked.other
    if asked.edges is not None or not asked.nodes or not isinstance(other, VideoInputs):
        raise InputError(
            "a path from a clip is one of nodes alone, from other inputs: nodes=[…], reference=model.prepare(…) or "
            "model.counterfactual(…); for edges there is path='weights'"
        )
    if [x.segments for x in other.layouts] != [x.segments for x in asked.batch.layouts]:
        raise InputError("the reference's prompt is laid out otherwise; give as many tokens of every kind")
    for here, there in zip(asked.batch.layouts, other.layouts, strict=True):
        if not torch.equal(here.position_ids, there.position_ids):
            raise InputError(
                "the reference's tokens are numbered otherwise, as of another time between frames or other dropped "
                "cells, and a path has one numbering; give a video of the same rate and cells"
            )
    batch, other = model.encoded(asked.batch), model.encoded(other.to(model.device))
    nodes = _Conductance(model, asked.nodes, asked.layers)
    with torch.no_grad():
        ends = model.embed_inputs(other), model.embed_inputs(batch)

    def between(share: float) -> dict[str, Any]:
        features = _between(other.features, batch.features, share)
        return {"input": torch.lerp(*ends, share), "start_at_layer": 0, "inputs": replace(batch, features=features)}

    values: list[list[float]] = []
    with bar(n_steps + 1, "along the path", "steps") as done:
        for share in placed([asked.value(**between(step / n_steps)) for step in range(n_steps + 1)]):
            with running(model, **between(share), interventions=asked.interventions, sources=asked.sources) as run:
                watch = Watch(min(asked.layers), {}, nodes.hooks(run))
                values.append(backward(model, run, asked.metric, asked.logits_to_keep, watch))
            done(1)
    found: list[Attribution] = []
    for i, (start, value) in enumerate(zip(values[0], values[-1], strict=True)):
        of = nodes.of(i)
        gap = _gap(of, value - start, [layer >= model.cfg.n_deepstack for layer in asked.layers])
        path: dict[str, Any] = {"path": "clip", "n_steps": n_steps, "change": value - start, "gap": gap}
        found.append(asked.result(i, value, nodes=of, reference=asked.name, **path))
    return found


def placed(values: Sequence[Sequence[float]]) -> list[float]:
    """Points from 0 to 1, as many as equally distant ones were tried: half of them by where these changed most.

    Args:
        values: Of each point that was tried, those of all items.
    """
    tried = torch.tensor(values, dtype=torch.float64)
    n = len(tried) - 1
    moved = tried.diff(dim=0).abs().sum(1)
    share = (moved / moved.sum().clamp(min=1e-300) + 1 / n) / 2
    ends = torch.cat([torch.zeros(1, dtype=torch.float64), share.cumsum(0) / share.sum()])
    wanted = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    k = torch.searchsorted(ends, wanted).clamp(1, n)
    found = (k - 1 + (wanted - ends[k - 1]) / (ends[k] - ends[k - 1])) / n
    return [0.0, *floats(found[1:-1]), 1.0]


def _between(a: Sequence[Tensor | None], b: Sequence[Tensor | None], share: float) -> tuple[Tensor | None, ...]:
    return tuple(y if x is None or y is None else torch.lerp(x, y, share) for x, y in zip(a, b, strict=True))


def _gap(nodes: dict[str, Tensor], change: float, whole: list[bool]) -> float | None:
    """Of whole residual streams, the largest difference to the change; blocks that DeepStack adds behind are none."""
    sums = [x[torch.tensor(whole)].sum(-1, dtype=torch.float64) for n, x in nodes.items() if n.startswith("resid_")]
    apart = torch.cat(sums) - change if sums else torch.zeros(0)
    return float(apart.abs().max()) if len(apart) else None
