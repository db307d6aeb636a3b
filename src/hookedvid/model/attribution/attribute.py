"""Attribution: what edges and activations are worth to a metric, all of them from gradients.

An edge's value is the derivative of the metric by its log-weight, P_ij g_i . (v_j - z_i), summed over sets
(`nn.edge_sums`); a node's is gradient x (activation - reference). Either estimates what is lost without it:
metric(run) - metric(edges cut, or activation replaced). One step takes the gradients of the run itself, a path those of
several runs on the way to it.
"""

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import Any, Concatenate, ParamSpec, cast, get_args

import torch

from hookedvid.errors import InputError, nearest
from hookedvid.model.attention_maps import as_blocks
from hookedvid.model.attribution.along_clip import along_clip
from hookedvid.model.attribution.along_weights import along_weights
from hookedvid.model.attribution.backward import Metric
from hookedvid.model.attribution.one_step import one_step
from hookedvid.model.attribution.request import Request
from hookedvid.model.attribution.result import Attribution, Path, Softmax
from hookedvid.model.counterfactual import shown
from hookedvid.nn.model import Model
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import Asked
from hookedvid.values.serial import counted

Edges = Asked  # knockouts, or one of the words for sets of edges
P = ParamSpec("P")


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
    n_steps: int | None = None,
    interventions: Asked = None,
    sources: Any = None,
    logits_to_keep: int | None = 1,
    softmax: Softmax = "slope",
) -> list[Attribution]:
    """What edges of attention, and activations, are worth to a metric, of each item of a batch.

    Each value estimates what is lost without: metric(run) - metric(the edges cut), as a sweep of knockouts measures
    it, or metric(run) - metric(the activation as in the reference), as patches do. To first order: values of heads and
    layers add up. Time and memory are said in `attribution.backward`.

    Args:
        model: The model.
        inputs: Of any number of items, for `attribute` one.
        metric: Logits [batch, kept, d_vocab] to a number an item [batch]; `logit_diff` and `log_prob` make some.
        edges: Sets of edges by their sources: `frames` (steps of the video; the default where no nodes are asked for),
            `segments` (kinds), `cells` (of every frame); or knockouts without layers and heads, one set each.
        readers: Selectors of who reads along these edges, each on its own: `text` by default, for segments each kind.
        nodes: Hook points of the blocks: `resid_pre`, `z`, `mlp_out`, …
        reference: Of nodes: `zero`; `mean`, over the positions of their kind of segment; a cache of another run, its
            inputs, or a reference set as an Ablate's source, or the key of one of these in `sources`.
        layers: Blocks (0-based, negative from the end); all by default. None before the first is gone back through.
        path: None for one step. `weights`: edges, all that are asked about at once, from weight 0 to 1 (Aumann and
            Shapley's shares of what cutting all of them loses). `clip`: nodes, from the inputs that are the reference.
        n_steps: Runs along the path, nearer to each other where the metric changes; 32 unless told.
        interventions, sources: As in `forward`: the run is under them. Functions of an Edit, and hooks, are called
            twice on the same rows, and have to give the same.
        logits_to_keep: How many last positions' logits the metric is given; None: all.
        softmax: Of edges' one step. `slope`: the derivative by the logarithm of their weight (a Knockout's, at 1), near
            0 where a softmax is saturated. `cut`: what cutting them makes of attention's output, the rest renormalised,
            times the gradient there.

    Raises:
        InputError: For a metric without a gradient, for what is no edge or node.
        InterventionError: For nodes and knockouts that do not fit, and where Replace acts in a block asked about.
        HookError: Where something listens on scores or pattern of a block asked about.
    """
    batch, rest = shown(model, _decoder_inputs(model, inputs), interventions)
    names = _names(nodes)
    _check(metric, names, reference)
    if edges is None and names and (readers is not None or softmax != "slope"):
        raise InputError("readers and softmax are of edges, and nodes have none: ask for edges=…, or leave them out")
    sets, blocks = _sets(edges, names), as_blocks(layers, model.cfg.n_layers)
    keep = None if logits_to_keep is None else counted("logits_to_keep", logits_to_keep)
    asked = Request(model, batch, metric, blocks, sets, readers, names, reference, rest, sources, keep, softmax)
    if path is None and n_steps is not None:
        raise InputError("n_steps are of a path: give path='weights' or path='clip', or leave n_steps out")
    return _by(asked, path, counted("n_steps", 32 if n_steps is None else n_steps))


def _names(nodes: Any) -> tuple[str, ...]:
    """Each hook point once."""
    one = isinstance(nodes, str) or not isinstance(nodes, Iterable)
    names: tuple[Any, ...] = tuple(dict.fromkeys([nodes] if one else cast(Any, nodes)))
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{name!r} is no hook point; name nodes, such as 'z', and give layers=… on their own")
    return names


def _check(metric: Any, nodes: Sequence[str], reference: Any) -> None:
    if not callable(metric):
        raise InputError(f"the metric is {metric!r:.60}; give a function of the logits, such as logit_diff(inputs, 0)")
    if not nodes and not (isinstance(reference, str) and reference == "zero"):
        raise InputError("the reference is of nodes, and edges have none: ask for nodes=[…], or leave reference out")


def like(
    each: Callable[Concatenate[Model, VideoInputs, P], list[Attribution]],
) -> Callable[[Callable[..., Attribution]], Callable[Concatenate[Model, VideoInputs, P], Attribution]]:
    """Gives a function of one item the arguments, and what is said of them, that one of a batch states."""

    def of_one(one: Callable[..., Attribution]) -> Callable[Concatenate[Model, VideoInputs, P], Attribution]:
        cast(Any, one).__signature__ = signature(each).replace(return_annotation=Attribution)
        one.__doc__ = "\n".join([one.__doc__ or "", *(each.__doc__ or "").splitlines()[1:]])
        return one

    return of_one


@like(attributions)
def attribute(model: Model, inputs: VideoInputs, *how: Any, **named: Any) -> Attribution:
    """`attributions` of one item, whose metric may give a number alone."""
    if (n := model.inputs_of(inputs).batch_size) != 1:
        raise InputError(f"attribute is about one item, and this batch holds {n}: use attributions")
    return attributions(model, inputs, *how, **named)[0]


def _decoder_inputs(model: Model, inputs: VideoInputs) -> VideoInputs:
    if model.cfg.decoder is None:
        raise InputError("this model is a vision tower alone; it has no decoder to go back through")
    return model.inputs_of(inputs)


def _sets(edges: Edges, nodes: Sequence[str]) -> Any:
    """Edges as `EdgeSets.of` takes them: frames, unless nodes are asked for alone."""
    if edges is None and not nodes:
        return "frames"
    return tuple(edges) if isinstance(edges, Iterable) and not isinstance(edges, str) else edges


def _by(asked: Request, path: Path | None, n_steps: int) -> list[Attribution]:
    """What was asked for, of each item."""
    if asked.softmax not in get_args(Softmax):
        raise InputError(f"no softmax {asked.softmax!r} ({nearest(str(asked.softmax), get_args(Softmax))})")
    if path is not None and asked.softmax != "slope":
        raise InputError("a path goes by the softmax's slopes: leave softmax out")
    with torch.inference_mode(False), asked.model.turn(hooked=True):
        if path == "weights":
            return along_weights(asked, n_steps)
        if path == "clip":
            return along_clip(asked, n_steps)
        if path is None:
            return one_step(asked)
    raise InputError(f"no path {path!r}; it can be 'weights', 'clip', or None for one step")
