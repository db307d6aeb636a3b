"""Attribution by one step, or integrated along a path: edges' weights from 0 to 1, or the stream from another clip's.

Along weights, all edges asked about have the weight w at once. With F the metric, a set's share of F(1) - F(0) is the
integral of its dF/dw = (dF/dlog w) / w from 0 to 1 (Aumann and Shapley; integrated gradients, arXiv 1703.01365). A
peaked softmax changes over many orders of w, and there at once, so the rule goes by t with w = t^p, and takes the next
point where the slopes at two points tell least of what F changed between them.

Along clips, the merged stream and what DeepStack adds go from the reference's to the run's in a straight line, and a
node's share is the line integral of its gradient along the way that its own activation takes (conductance, arXiv
1805.12233): over a whole residual stream it sums to F(run) - F(reference). Forwards along the line say where F changes.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.model.attribution import Attribution, Softmax
from hookedvid.model.backward import Metric, Watch, backward, numbers
from hookedvid.model.edge_values import EdgeValues
from hookedvid.model.node_values import NodeValues
from hookedvid.model.run import Run, running
from hookedvid.nn.model import Model
from hookedvid.values.edge_sets import WORDS, EdgeSets, together
from hookedvid.values.edges import Knockout
from hookedvid.values.effects import Intervention
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.masks import NoEdgeWarning, warn_of_idle
from hookedvid.values.tensors import floats

POWER = 8  # p: the first point inside is at w = 1/256


class Request(NamedTuple):
    """An attribution's arguments.

    Attributes:
        batch: Of the clips that are shown.
        edges, readers: As `EdgeSets.of` takes them; no edges: None.
    """

    model: Model
    batch: VideoInputs
    metric: Metric
    layers: tuple[int, ...]
    edges: Any
    readers: str | Sequence[str] | None
    nodes: tuple[str, ...]
    reference: Any
    interventions: tuple[Intervention, ...]
    sources: Any
    logits_to_keep: int | None
    softmax: Softmax

    @property
    def sets(self) -> list[EdgeSets]:
        """The sets of edges of each item."""
        layouts, edges, readers = self.batch.layouts, self.edges, self.readers
        found = [EdgeSets.of(x, edges, readers) for x in layouts]
        asked: Sequence[Knockout] = found[0].knockouts
        if isinstance(edges, str) and edges in WORDS:  # which have empty sets of their own: what comes later
            asked = [Knockout("all", r) for r in ((readers,) if isinstance(readers, str) else readers or ())]
        warn_of_idle([k.cut for k in asked], layouts, grows=False)
        return found

    @torch.no_grad()
    def value(self, input: Any, more: Sequence[Intervention] = (), **start: Any) -> list[float]:
        """The metric of each item of a run, under more interventions."""
        how = {"interventions": (*self.interventions, *more), "sources": self.sources, **start}
        logits = self.model(input, logits_to_keep=self.logits_to_keep, **how)
        return floats(numbers(self.metric(logits), self.batch.batch_size))

    def result(self, item: int, value: float, **found: Any) -> Attribution:
        """What was found of an item."""
        return Attribution(value, self.batch.layouts[item], self.layers, self.model.cfg.n_layers, **found)


def one_step(asked: Request) -> list[Attribution]:
    """By the gradients of the run itself."""
    reference = asked.reference
    if isinstance(reference, VideoInputs):
        reference = _cache(asked, reference)
    nodes = NodeValues(asked.model, asked.nodes, asked.layers, reference)
    sets = [] if asked.edges is None else asked.sets
    with running(asked.model, asked.batch, interventions=asked.interventions, sources=asked.sources) as run:
        edges = EdgeValues(sets, asked.layers, run, asked.softmax)
        watch = Watch(min(asked.layers), edges.probes, nodes.hooks(run))
        values = backward(asked.model, run, asked.metric, asked.logits_to_keep, watch)
    found: list[Attribution] = []
    for i, value in enumerate(values):
        of_edges = {"edges": edges.of(i), "knockouts": sets[i].knockouts, "softmax": asked.softmax} if sets else {}
        found.append(asked.result(i, value, **of_edges, nodes=nodes.of(i)))
    return found


def _cache(asked: Request, reference: VideoInputs) -> Any:
    """The reference's run, of the nodes."""
    names = [(n, i) for n in asked.nodes for i in asked.layers]
    return asked.model.run_with_cache(
        reference, names_filter=names, interventions=asked.interventions, sources=asked.sources, return_type=None
    )[1]


def along_weights(asked: Request, n_steps: int) -> list[Attribution]:
    """Shares of edges in what cutting all of them loses."""
    if asked.edges is None or asked.nodes:
        raise InputError("a path of weights is one of edges alone: ask for edges; for nodes there is path='clip'")
    sets, model = asked.sets, asked.model  # which warns of those without edges, by their own names
    layouts, cuts = together(sets)
    batch = replace(model.encoded(asked.batch), layouts=layouts)

    def at(t: float) -> Point:
        """The metric, and the integrand, of each item."""
        under = [*asked.interventions, *(replace(c, weight=t**POWER).at(i) for c in cuts for i in asked.layers)]
        with running(model, batch, interventions=under, sources=asked.sources) as run:
            edges = EdgeValues(sets, asked.layers, run)
            values = backward(
                model, run, asked.metric, asked.logits_to_keep, Watch(min(asked.layers), edges.probes, [])
            )
        return Point(values, [edges.of(i) * (POWER / t) for i in range(batch.batch_size)])

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "attributed_", NoEdgeWarning)
        cut = asked.value(batch, [c.at(i) for c in cuts for i in asked.layers])
        end = at(1.0)
        points = {0.0: Point(cut, [torch.zeros_like(x) for x in end.slopes]), 1.0: end}
        parts = refined(points, at, n_steps)
    found: list[Attribution] = []
    for i, value in enumerate(end.values):
        edges = sum(part * points[t].slopes[i] for t, part in parts.items())
        assert isinstance(edges, Tensor)
        gap = abs(float(edges.sum(dtype=torch.float64)) - (value - cut[i]))
        path: dict[str, Any] = {"path": "weights", "n_steps": n_steps, "change": value - cut[i], "gap": gap}
        found.append(asked.result(i, value, edges=edges, knockouts=sets[i].knockouts, **path))
    return found


class Point(NamedTuple):
    """On a path: of each item the metric, and the slopes by the path's parameter of what makes it up."""

    values: list[float]
    slopes: list[Tensor]


def refined(points: dict[float, Point], at: Callable[[float], Point], n_steps: int) -> dict[float, float]:
    """What the slope at each of `n_steps` points (besides that at 0) counts for in the integral from 0 to 1.

    An interval's trapezoid should be what the metric changes over it. Where it is farthest from that, the interval is
    halved. Two halves that are not halved again count by Simpson's rule, others by the trapezoid.
    """
    totals = {t: [float(x.sum(dtype=torch.float64)) for x in p.slopes] for t, p in points.items()}

    def apart(a: float, b: float) -> float:
        each = zip(points[a].values, points[b].values, totals[a], totals[b], strict=True)
        return max(abs((y + x) / 2 * (b - a) - (to - start)) for start, to, x, y in each)

    leaves = {(0.0, 1.0): apart(0.0, 1.0)}
    halved: set[tuple[float, float]] = set()
    for _ in range(n_steps - 1):
        a, b = max(leaves, key=lambda leaf: leaves[leaf])
        m = (a + b) / 2
        points[m] = at(m)
        totals[m] = [float(x.sum(dtype=torch.float64)) for x in points[m].slopes]
        del leaves[a, b]
        halved.add((a, b))
        leaves |= {(a, m): apart(a, m), (m, b): apart(m, b)}
    parts = dict.fromkeys(points, 0.0)
    whole = {(a, b) for a, b in halved if {(a, (a + b) / 2), ((a + b) / 2, b)} <= set(leaves)}
    for a, b in whole:
        m, h = (a + b) / 2, b - a
        del leaves[a, m], leaves[m, b]
        for t, share in ((a, h / 6), (m, 4 * h / 6), (b, h / 6)):
            parts[t] += share
    for a, b in leaves:
        for t in (a, b):
            parts[t] += (b - a) / 2
    return parts


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
        return ((last[1] + grad) / 2 * (act - last[0])).sum(-1)


def along_clip(asked: Request, n_steps: int) -> list[Attribution]:
    """Shares of nodes in what another clip's stream in place of the run's loses."""
    model, other = asked.model, asked.reference
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
    for share in placed([asked.value(**between(step / n_steps)) for step in range(n_steps + 1)]):
        with running(model, **between(share), interventions=asked.interventions, sources=asked.sources) as run:
            watch = Watch(min(asked.layers), {}, nodes.hooks(run))
            values.append(backward(model, run, asked.metric, asked.logits_to_keep, watch))
    found: list[Attribution] = []
    for i, (start, value) in enumerate(zip(values[0], values[-1], strict=True)):
        of = nodes.of(i)
        gap = _gap(of, value - start, [layer >= model.cfg.n_deepstack for layer in asked.layers])
        path: dict[str, Any] = {"path": "clip", "n_steps": n_steps, "change": value - start, "gap": gap}
        found.append(asked.result(i, value, nodes=of, **path))
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
