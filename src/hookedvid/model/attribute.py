"""Attribution: what edges and activations are worth to a metric, all of them from gradients.

An edge's value is the derivative of the metric by its log-weight, P_ij g_i . (v_j - z_i), summed over sets
(`nn.edge_sums`); a node's is gradient x (activation - reference). Either estimates what is lost without it:
metric(run) - metric(edges cut, or activation replaced). One step takes the gradients of the run itself, a path those of
several runs on the way to it (`attribution_paths`).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from hookedvid.errors import InputError
from hookedvid.model.attention_maps import as_blocks
from hookedvid.model.attribution import Attribution, Path
from hookedvid.model.attribution_paths import Request, along_clip, along_weights, one_step
from hookedvid.model.backward import Metric
from hookedvid.model.counterfactual import shown
from hookedvid.nn.model import Model
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import Asked
from hookedvid.values.serial import counted

Edges = Asked  # knockouts, or one of the words for sets of edges


def attribute(
    model: Model,
    inputs: VideoInputs,
    metric: Metric,
    *,
    edges: Edges = None,
    readers: str | Sequence[str] | None = None,
    nodes: str | Sequence[str] = (),
    reference: Any = "zero",
    layers: int | Iterable[int] | None = None,
    path: Path | None = None,
    n_steps: int = 32,
    interventions: Asked = None,
    sources: Any = None,
    logits_to_keep: int | None = 1,
) -> Attribution:
    """What edges of attention, and activations, are worth to a metric of one item's run.

    Each value estimates what is lost without: metric(run) - metric(the edges cut), as a sweep of knockouts measures
    it, or metric(run) - metric(the activation as in the reference), as patches do. To first order: values of heads,
    layers and sets add up to the estimate of cutting them together.

    One step's value of edges is the derivative of the metric by the logarithm of their weight (a Knockout's, at 1).
    Where a softmax or what follows is saturated it is near 0, though a cut may lose much; a path sees that.

    It takes a forward and, of each block from the first that is asked about on, a forward and a backward; and memory
    for a forward, one stream [pos, d_model] a block and the graph of one block.

    Args:
        model: The model.
        inputs: Of one item.
        metric: Logits [batch, kept, d_vocab] to a number, or to [batch]; `logit_diff` and `log_prob` make some.
        edges: Sets of edges by their sources: `frames` (steps of the video), `segments` (kinds of segments), `cells`
            (of every frame); or knockouts, without layers and heads, one set each. Frames by default, where no nodes
            are asked for.
        readers: Selectors of who reads along these edges, each on its own: `text` by default, for segments each kind.
        nodes: Hook points of the blocks: `resid_pre`, `z`, `mlp_out`, …
        reference: Of nodes: `zero`; `mean`, over the positions of their kind of segment; a cache of another run, or its
            inputs; or a reference set as an Ablate's source.
        layers: Blocks (0-based, negative from the end); all by default. None before the first is gone back through.
        path: None for one step. `weights`: edges, all that are asked about at once, from weight 0 to 1 (Aumann and
            Shapley's shares of what cutting all of them loses). `clip`: nodes, from the inputs that are the reference,
            by the gradient along the way of the activation itself (conductance).
        n_steps: Runs along the path, of `weights` placed where the metric changes, of `clip` equally far apart. The
            result's `gap` says by how much the sum misses the metric's change.
        interventions: As in `forward`: the run is under them.
        sources: As in `forward`.
        logits_to_keep: How many last positions' logits the metric is given; None: all.

    Raises:
        InputError: On a batch, for a metric without a gradient, for what is no edge or node.
        InterventionError: For nodes and knockouts that do not fit, and where Replace acts in a block asked about.
        HookError: Where something listens on scores or pattern of a block asked about.
    """
    if (n := model.inputs_of(inputs).batch_size) != 1:
        raise InputError(f"attribute is about one item, and this batch holds {n}: use attributions")
    return attributions(
        model, inputs, metric, edges=edges, readers=readers, nodes=nodes, reference=reference, layers=layers,
        path=path, n_steps=n_steps, interventions=interventions, sources=sources, logits_to_keep=logits_to_keep,
    )[0]  # fmt: skip


def attributions(
    model: Model,
    inputs: VideoInputs,
    metric: Metric,
    *,
    edges: Edges = None,
    readers: str | Sequence[str] | None = None,
    nodes: str | Sequence[str] = (),
    reference: Any = "zero",
    layers: int | Iterable[int] | None = None,
    path: Path | None = None,
    n_steps: int = 32,
    interventions: Asked = None,
    sources: Any = None,
    logits_to_keep: int | None = 1,
) -> list[Attribution]:
    """`attribute` of each item of a batch, whose metric gives a number an item."""
    if model.cfg.decoder is None:
        raise InputError("this model is a vision tower alone; it has no decoder to go back through")
    names = (nodes,) if isinstance(nodes, str) else tuple(nodes)
    batch, rest = shown(model, model.inputs_of(inputs), interventions)
    asked = Request(
        model, batch, metric, as_blocks(layers, model.cfg.n_layers), _edges(edges, names), readers, names, reference,
        rest, sources, None if logits_to_keep is None else counted("logits_to_keep", logits_to_keep),
    )  # fmt: skip
    with torch.inference_mode(False), model.turn(hooked=True):
        if path == "weights":
            return along_weights(asked, counted("n_steps", n_steps))
        if path == "clip":
            return along_clip(asked, counted("n_steps", n_steps))
        if path is None:
            return one_step(asked)
    raise InputError(f"no path {path!r}; it can be 'weights', 'clip', or None for one step")


def _edges(edges: Edges, names: Sequence[str]) -> Any:
    if edges is None:
        return None if names else "frames"
    return tuple(edges) if isinstance(edges, Iterable) and not isinstance(edges, str) else edges
