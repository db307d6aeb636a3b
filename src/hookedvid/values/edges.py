"""What is done to attention's edges, as values: cut, weighted, or other values along them."""

# What users give is looked at, whatever its type says.
# pyright: reportUnnecessaryIsInstance=false
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, SupportsIndex, get_args

from torch import Tensor

from hookedvid.errors import InterventionError
from hookedvid.values.effects import By, Cut, Effects, Intervention, Relation, Swap
from hookedvid.values.heads import as_heads, heads_in, is_by_layer, label_of
from hookedvid.values.layer_range import EVERYWHERE, LayerRange, as_number, as_range, set_fields, spelled
from hookedvid.values.selectors import as_selector
from hookedvid.values.serial import is_number
from hookedvid.values.spelling import Spelling, choice, number, numbers


@spelled
@dataclass(frozen=True)
class Knockout(Intervention):
    """Attention from queries `dst` to keys `src` in `layers`, cut: the entries of M become -inf before softmax.

    `src` and `dst` are selectors, or sequences of them. `layers` takes a LayerRange's other spellings too (`4`,
    `"4:8"`, `range(4, 8)`). `relation` narrows the cut to pairs of positions that have frames, of the
    same frame or of different ones. `keep_self` leaves every token's attention to itself, so that a row
    cannot empty; a row that does empty yields zero, never a uniform row. What is left renormalises.

    Attributes:
        heads: Heads it is about, 0-based; None for all. A number, several, a `slice` or `range` with its end, or by
            layer (0-based) `{12: [3, 7]}`: then in these layers alone, of those that `layers` names.
        weight: What exp(score) of an edge is multiplied by before softmax. 0 is the cut; 1 leaves the run as it is, bit
            for bit; more than 1 amplifies. Several knockouts of an edge multiply. A tensor of one number makes the run
            differentiable in it: its layers take a dense mask, its 0 counts as 1e-30, and it has no JSON form.
    """

    kind: ClassVar[str] = "knockout"
    spelling = Spelling(
        "",
        "video->last @ 4:8 heads 0,3 weight 0.5",
        {
            "@": ("layers", str), "heads": ("heads", numbers), "weight": ("weight", number),
            "relation": ("relation", choice),
        },
    )  # fmt: skip
    src: str
    dst: str
    layers: LayerRange = EVERYWHERE
    relation: Relation = "any"
    keep_self: bool = True
    name: str = field(default="", compare=False)
    heads: Any = field(default=None, metadata={"later": True})
    weight: Any = field(default=0.0, metadata={"later": True})

    def __post_init__(self):
        set_fields(self, src=as_selector(self.src), dst=as_selector(self.dst), layers=as_range(self.layers))
        set_fields(self, heads=as_heads(self.heads), weight=as_weight(self.weight))
        _check_edges(self)

    def line_head(self) -> tuple[str, Sequence[str]]:
        """Its name where that is known, else an arrow."""
        return _line_head(self)

    def at(self, layers: LayerRange | SupportsIndex | str | range) -> "Knockout":
        """The same knockout in other layers."""
        return replace(self, layers=as_range(layers))

    @cached_property
    def cut(self) -> Cut:
        """What it does in each of its layers, which heads aside where they are told by layer."""
        heads = None if is_by_layer(self.heads) else self.heads
        return Cut(
            self.src, self.dst, self.relation, self.keep_self, heads=heads, weight=self.weight, name=self.name,
            label=self.label(),
        )  # fmt: skip

    def effect(self, n_layers: int) -> Effects:
        """Its cut in each of its layers."""
        cuts = _in_layers(self, self, n_layers)
        return Effects(((),) * n_layers if self.cut.is_nothing else cuts)

    def label(self) -> str:
        """For tables and plots: name or arrow, then the layers counted from 1, heads from 0, a weight other than 0."""
        weight = "" if isinstance(self.weight, float) and not self.weight else f" weight {_number(self.weight):g}"
        return f"{_where(self)}{weight}"


def as_weight(weight: Any) -> Any:
    """A weight of edges: a float, or a tensor of one number as it is.

    Raises:
        InterventionError: For what is none.
    """
    one = weight.numel() == 1 and weight.is_floating_point() if isinstance(weight, Tensor) else is_number(weight)
    if not one or not 0 <= _number(weight) < math.inf:
        raise InterventionError(
            f"weight is {weight!r}; give a number from 0 (cut) over 1 (nothing) up, or a floating tensor of one"
        )
    return weight.reshape(()) if isinstance(weight, Tensor) else float(weight) + 0.0


def _number(weight: Any) -> float:
    return float(weight.detach() if isinstance(weight, Tensor) else weight)


@spelled
@dataclass(frozen=True)
class RandomEdges(Intervention):
    """As many attention edges cut as `like` cuts, drawn from all causal ones but a token's own.

    The control that tells "fewer edges" from "these edges". Only the prompt's edges are drawn, the same ones
    for the same seed and prompt. They are cut in the heads of `like`, and weighted as it weights.
    """

    kind: ClassVar[str] = "random_edges"
    spelling = Spelling("random like", "random like LV-K @ 4:8 seed 1", {"seed": ("seed", number)}, ("like", str))
    like: Knockout
    seed: int = 0

    def __post_init__(self):
        if not isinstance(self.like, Knockout):
            raise InterventionError(f"RandomEdges are drawn like a Knockout, and like is {self.like!r}")
        set_fields(self, seed=as_number(self.seed, "a seed"))
        if not 0 <= self.seed < 2**64:
            raise InterventionError(f"the seed of RandomEdges is {self.seed}; give one from 0 up, below 2**64")

    @property
    def layers(self) -> LayerRange:
        """Where it applies: the layers of `like`."""
        return self.like.layers

    def line_head(self) -> tuple[str, Sequence[str]]:
        """The knockout's own line behind its words."""
        return f"random like {self.like.line()}", ("like",)

    def at(self, layers: LayerRange | SupportsIndex | str | range) -> "RandomEdges":
        """The same control in other layers."""
        return replace(self, like=self.like.at(layers))

    @cached_property
    def cut(self) -> Cut:
        """What it does in each of its layers."""
        return replace(self.like.cut, seed=self.seed, label=self.label())

    def effect(self, n_layers: int) -> Effects:
        """Its cut in each of its layers."""
        cuts = _in_layers(self, self.like, n_layers)
        return Effects(((),) * n_layers if self.cut.is_nothing else cuts)

    @property
    def name(self) -> str:
        """The knockout's name with its role."""
        return f"random like {self.like.name or 'it'}"

    def label(self) -> str:
        """For tables and plots."""
        return f"random like {self.like.label()}".removesuffix(" all layers")


@spelled
@dataclass(frozen=True)
class Replace(Intervention):
    """Other values along edges: attention's weights stay, what flows from keys `src` to queries `dst` is replaced.

    Other readers of `src` get what they got. Of several on an edge the last one counts. `src`, `dst`, `layers`,
    `relation`, `keep_self` and `heads` say which edges, as of a Knockout.

    Attributes:
        by: What flows instead.
            zero: nothing; unlike under a knockout, what is left does not renormalise.
            mean: the mean of the values v of `src`, over its positions in the prompt.
            noise: normal, each channel with the mean and the variance of the same positions; drawn as an Ablate's.
            resample: the values of another run, positions paired as a Patch pairs them.
        source: For `resample` a cache that holds `hook_v`. For `mean` and `noise` None, or a reference set in place of
            `src` itself: a mapping from `blocks.{i}.attn.hook_v` to mean and standard deviation [2, kv_head, d_head].
            Or the key of either in the `sources` given at run time, so that the value has a JSON form.
        seed: Of the noise.
    """

    kind: ClassVar[str] = "replace"
    spelling = Spelling(
        "replace",
        "replace video->last @ 4:8 heads 0,3 by mean",
        {
            "@": ("layers", str), "heads": ("heads", numbers), "relation": ("relation", choice), "by": ("by", str),
            "from": ("source", str), "seed": ("seed", number),
        },
        ("edges", str),
    )  # fmt: skip
    src: str
    dst: str
    layers: LayerRange = EVERYWHERE
    heads: Any = None
    relation: Relation = "any"
    by: By = "mean"
    source: Any = None
    seed: int = 0
    keep_self: bool = True
    name: str = field(default="", compare=False)

    def __post_init__(self):
        set_fields(self, src=as_selector(self.src), dst=as_selector(self.dst), layers=as_range(self.layers))
        set_fields(self, heads=as_heads(self.heads), seed=as_number(self.seed, "a seed"))
        _check_edges(self)
        if self.by not in get_args(By):
            raise InterventionError(f"by is {self.by!r}; it can be {', '.join(get_args(By))}")
        if self.seed and self.by != "noise":
            raise InterventionError(f"{self.label()}: only noise is drawn; leave seed out")
        if self.by == "zero" and self.source is not None:
            raise InterventionError("a Replace by zero takes nothing from a source; leave it out")
        if self.by == "resample" and not (isinstance(self.source, str) or hasattr(self.source, "__getitem__")):
            raise InterventionError(
                f"a Replace by resample takes values of another run, and its source is {self.source!r}; give the cache "
                "of a run, or the key of one in `sources`"
            )

    def line_head(self) -> tuple[str, Sequence[str]]:
        """The knockout's name or arrow behind its word."""
        head, said = _line_head(self)
        return f"replace {head}", said

    def at(self, layers: LayerRange | SupportsIndex | str | range) -> "Replace":
        """The same in other layers."""
        return replace(self, layers=as_range(layers))

    @cached_property
    def cut(self) -> Swap:
        """What it does in each of its layers, which heads aside where they are told by layer."""
        heads = None if is_by_layer(self.heads) else self.heads
        return Swap(
            self.src, self.dst, self.relation, self.keep_self, heads=heads, name=self.name, label=self.label(),
            by=self.by, source=self.source, draw=self.seed,
        )  # fmt: skip

    def effect(self, n_layers: int) -> Effects:
        """Its swap in each of its layers."""
        return Effects(((),) * n_layers, swaps=_in_layers(self, self, n_layers))

    def label(self) -> str:
        """For tables and plots: as a knockout's, and by what; layers counted from 1, heads from 0."""
        of = f" of {self.source!r}" if isinstance(self.source, str) else ""
        seed = f" {self.seed}" if self.by == "noise" and self.seed else ""
        return f"replace {_where(self)} by {self.by}{seed}{of}"

    @property
    def sources(self) -> tuple[str, ...]:
        """Keys that a run's `sources` have to hold."""
        return (self.source,) if isinstance(self.source, str) else ()


def _line_head(k: Knockout | Replace) -> tuple[str, Sequence[str]]:
    """As a line begins that says which edges, and the fields that this says."""
    known, edges = NAMED.get(k.name), ("src", "dst", "relation", "keep_self")
    if known is not None and all(getattr(k, f) == getattr(known, f) for f in edges):
        return k.name, edges
    return f"{k.src}->{k.dst}", edges[:2]


def _told(k: Knockout | Replace) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Heads by layer, of its layers."""
    return tuple((i, some) for i, some in k.heads if i in k.layers)


def _check_edges(k: Knockout | Replace) -> None:
    if k.relation not in get_args(Relation):
        raise InterventionError(f"relation is {k.relation!r}; it can be any, same_frame or other_frame")
    if not isinstance(k.keep_self, bool):
        raise InterventionError(f"keep_self is {k.keep_self!r}; it can be True or False")
    if is_by_layer(k.heads) and not _told(k):
        raise InterventionError(f"heads are told of layers {[i for i, _ in k.heads]}, none in {k.layers}")


def _where(k: Knockout | Replace) -> str:
    """Name or arrow, layers counted from 1, heads from 0."""
    frames = {"any": "", "same_frame": " same frame", "other_frame": " other frames"}[k.relation]
    where = [label_of(_told(k))] if is_by_layer(k.heads) else [k.layers.label(), label_of(k.heads)]
    return " ".join(filter(None, (k.name or f"{k.src}→{k.dst}{frames}", *where)))


def _in_layers(
    k: Knockout | RandomEdges | Replace, like: Knockout | Replace, n_layers: int
) -> tuple[tuple[Any, ...], ...]:
    """Its cut in each of its layers, of the heads there."""
    layers = k.layers.layers(n_layers)
    own = is_by_layer(like.heads)
    if own and max(i for i, _ in like.heads) >= n_layers:
        last = max(i for i, _ in like.heads)
        raise InterventionError(
            f"{k.label()}: heads are told of layer {last} (0-based), beyond this model's {n_layers} blocks"
        )
    if not layers:
        raise InterventionError(
            f"{k.label()}: layers {k.layers} hold none of this model's {n_layers} blocks, numbered 0 to {n_layers - 1}"
        )
    heads = [heads_in(like.heads, i) if i in layers else () for i in range(n_layers)]
    return tuple(() if some == () else (replace(k.cut, heads=some) if own else k.cut,) for some in heads)


def as_edges(intervention: Intervention) -> Knockout:
    """A knockout that says which edges and nothing else.

    Raises:
        InterventionError: For layers, heads, a weight, and for another kind.
    """
    k = intervention
    if not isinstance(k, Knockout) or k != Knockout(k.src, k.dst, relation=k.relation, keep_self=k.keep_self):
        raise InterventionError(
            f"{k.label()} says more than which edges: give knockouts without layers, heads and weight; every head is "
            "told apart, and layers= says which blocks"
        )
    return k


# The paper's three (facts: language-to-video, video temporal, video spatial).
LV_K = Knockout("video", "text", name="LV-K")
VT_K = Knockout("video", "video", relation="other_frame", name="VT-K")
VS_K = Knockout("video", "video", relation="same_frame", name="VS-K")

# The pathways of Map the Flow (arXiv 2510.13251). Its "question" is the question with its options, and its
# last→last also cuts the diagonal.
PATHWAYS: dict[str, Knockout] = {
    k.name: k
    for k in (
        Knockout("patches", "patches", relation="other_frame", name="cross-frame"),
        Knockout("video", "question+options", name="video→question"),
        Knockout("video", "last", name="video→last"),
        Knockout("question+options", "last", name="question→last"),
        Knockout("last", "last", keep_self=False, name="last→last"),
    )
}


NAMED: dict[str, Knockout] = {k.name: k for k in (LV_K, VT_K, VS_K, *PATHWAYS.values())}
