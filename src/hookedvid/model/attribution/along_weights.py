"""Attribution along edges' weights, from 0 to 1: all edges asked about have the weight w at once.

With F the metric, a set's share of F(1) - F(0) is the integral of its dF/dw = (dF/dlog w) / w from 0 to 1 (Aumann and
Shapley; integrated gradients, arXiv 1703.01365). A peaked softmax changes over many orders of w, and there at once, so
the rule goes by t with w = t^p, and takes the next point where the slopes at two points tell least of what F changed
between them.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.model.attribution.backward import Watch, backward
from hookedvid.model.attribution.edge_values import EdgeValues
from hookedvid.model.attribution.request import Request
from hookedvid.model.attribution.result import Attribution
from hookedvid.model.run import running
from hookedvid.values.edge_sets import together
from hookedvid.values.masks import NoEdgeWarning
from hookedvid.values.progress import bar

POWER = 8  # p: the first point inside is at w = 1/256


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
        done(1)
        return Point(values, [edges.of(i) * (POWER / t) for i in range(batch.batch_size)])

    with warnings.catch_warnings(), bar(n_steps, "along the path", "steps") as done:
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
