"""Attribution: what edges and activations are worth to a metric, all of them from gradients.

An edge's value is the derivative of the metric by its log-weight, P_ij g_i . (v_j - z_i), summed over sets
(`nn.edge_sums`); a node's is gradient x (activation - reference). Either estimates what is lost without it:
metric(run) - metric(edges cut, or activation replaced). One step takes the gradients of the run itself, a path those of
several runs on the way to it (`attribution_paths`).
"""

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import torch

from hookedvid.errors import InputError, nearest
from hookedvid.model.attention_maps import as_blocks
from hookedvid.model.attribution import Attribution, Path, Softmax
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
    softmax: Softmax = "slope",
) -> Attribution:
    """What edges of attention, and activations, are worth to a metric of one item's run.

    Each value estimates what is lost without: metric(run) - metric(the edges cut), as a sweep of knockouts measures
    it, or metric(run) - metric(the activation as in the reference), as patches do. To first order: values of heads and
    layers add up. Time and memory are said in `model.backward`.

    Args:
        model: The model.
        inputs: Of one item.
        metric: Logits [batch, kept, d_vocab] to a number, or to [batch]; `logit_diff` and `log_prob` make some.
        edges: Sets of edges by their sources: `frames` (steps of the video; the default where no nodes are asked for),
            `segments` (kinds), `cells` (of every frame); or knockouts without layers and heads, one set each.
        readers: Selectors of who reads along these edges, each on its own: `text` by default, for segments each kind.
        nodes: Hook points of the blocks: `resid_pre`, `z`, `mlp_out`, …
        reference: Of nodes: `zero`; `mean`, over the positions of their kind of segment; a cache of another run, or its
            inputs; or a reference set as an Ablate's source.
        layers: Blocks (0-based, negative from the end); all by default. None before the first is gone back through.
        path: None for one step. `weights`: edges, all that are asked about at once, from weight 0 to 1 (Aumann and
            Shapley's shares of what cutting all of them loses). `clip`: nodes, from the inputs that are the reference.
        n_steps: Runs along the path, nearer to each other where the metric changes.
        interventions, sources: As in `forward`: the run is under them. Functions of an Edit, and hooks, are called
            twice on the same rows, and have to give the same.
        logits_to_keep: How many last positions' logits the metric is given; None: all.
        softmax: Of edges' one step. `slope`: the derivative by the logarithm of their weight (a Knockout's, at 1), near
            0 where a softmax is saturated. `cut`: what cutting them makes of attention's output, the rest renormalised,
            times the gradient there.

    Raises:
        InputError: On a batch, for a metric without a gradient, for what is no edge or node.
        InterventionError: For nodes and knockouts that do not fit, and where Replace acts in a block asked about.
        HookError: Where something listens on scores or pattern of a block asked about.
    """
    if (n := model.inputs_of(inputs).batch_size) != 1:
        raise InputError(f"attribute is about one item, and this batch holds {n}: use attributions")
    asked = request(
        model, inputs, metric, edges, readers, nodes, reference, layers, interventions, sources, logits_to_keep, softmax
    )
    return attributed(asked, path, n_steps)[0]


def attributions(
    model: Model, inputs: VideoInputs, metric: Metric, *, path: Path | None = None, n_steps: int = 32, **how: Any
) -> list[Attribution]:
    """`attribute` of each item of a batch, whose metric gives a number an item.

    Args:
        model: The model.
        inputs: Of any number of items.
        metric: Logits [batch, kept, d_vocab] to [batch].
        path, n_steps, how: As of `attribute`.
    """
    return attributed(request(model, inputs, metric, **how), path, n_steps)


def request(
    model: Model,
    inputs: VideoInputs,
    metric: Metric,
    edges: Edges = None,
    readers: str | Sequence[str] | None = None,
    nodes: str | Sequence[str] = (),
    reference: Any = "zero",
    layers: int | Iterable[int] | None = None,
    interventions: Asked = None,
    sources: Any = None,
    logits_to_keep: int | None = 1,
    softmax: Softmax = "slope",
) -> Request:
    """Arguments of `attribute`, checked."""
    if model.cfg.decoder is None:
        raise InputError("this model is a vision tower alone; it has no decoder to go back through")
    if softmax not in get_args(Softmax):
        raise InputError(f"no softmax {softmax!r} ({nearest(str(softmax), get_args(Softmax))})")
    names = (nodes,) if isinstance(nodes, str) else tuple(nodes)
    if edges is None and not names:
        edges = "frames"
    sets = tuple(edges) if isinstance(edges, Iterable) and not isinstance(edges, str) else edges
    batch, rest = shown(model, model.inputs_of(inputs), interventions)
    keep = None if logits_to_keep is None else counted("logits_to_keep", logits_to_keep)
    blocks = as_blocks(layers, model.cfg.n_layers)
    return Request(model, batch, metric, blocks, sets, readers, names, reference, rest, sources, keep, softmax)


def attributed(asked: Request, path: Path | None, n_steps: int) -> list[Attribution]:
    """What was asked for, of each item."""
    n = counted("n_steps", n_steps)
    if path is not None and asked.softmax != "slope":
        raise InputError("a path goes by the softmax's slopes: leave softmax out")
    with torch.inference_mode(False), asked.model.turn(hooked=True):
        if path == "weights":
            return along_weights(asked, n)
        if path == "clip":
            return along_clip(asked, n)
        if path is None:
            return one_step(asked)
    raise InputError(f"no path {path!r}; it can be 'weights', 'clip', or None for one step")
