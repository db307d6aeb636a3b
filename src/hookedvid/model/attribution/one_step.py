"""Attribution by one step: the gradients of the run itself."""

from typing import Any

from hookedvid.model.attribution.backward import Watch, backward
from hookedvid.model.attribution.edge_values import EdgeValues
from hookedvid.model.attribution.node_values import NodeValues
from hookedvid.model.attribution.request import Request
from hookedvid.model.attribution.result import Attribution
from hookedvid.model.cache import VideoCache
from hookedvid.model.run import running
from hookedvid.values.inputs import VideoInputs


def one_step(asked: Request) -> list[Attribution]:
    """By the gradients of the run itself."""
    reference = asked.other
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
        other = reference.layouts[i] if isinstance(reference, VideoCache) else None
        of_nodes = {"nodes": nodes.of(i), "reference": asked.name, "other": other}
        found.append(asked.result(i, value, **of_edges, **of_nodes))
    return found


def _cache(asked: Request, reference: VideoInputs) -> Any:
    """The reference's run, of the nodes."""
    names = [(n, i) for n in asked.nodes for i in asked.layers]
    return asked.model.run_with_cache(
        reference, names_filter=names, interventions=asked.interventions, sources=asked.sources, return_type=None
    )[1]
