"""What is done to attention's edges, as values: cut or weighted, in some layers and heads."""

# What users give is looked at, whatever its type says.
# pyright: reportUnnecessaryIsInstance=false
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, SupportsIndex

from torch import Tensor

from hookedvid.errors import InterventionError
from hookedvid.values.effects import Cut, Effects, Intervention, Relation
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
        if self.relation not in ("any", "same_frame", "other_frame"):
            raise InterventionError(f"relation is {self.relation!r}; it can be any, same_frame or other_frame")
        if not isinstance(self.keep_self, bool):
            raise InterventionError(f"keep_self is {self.keep_self!r}; it can be True or False")
        if is_by_layer(self.heads) and not self._told:
            raise InterventionError(f"heads are told of layers {[i for i, _ in self.heads]}, none in {self.layers}")

    @property
    def _told(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Heads by layer, of its layers."""
        return tuple((i, some) for i, some in self.heads if i in self.layers)

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
        return _in_layers(self, self, n_layers)

    def label(self) -> str:
        """For tables and plots: name or arrow, then the layers counted from 1, heads from 0, a weight other than 0."""
        frames = {"any": "", "same_frame": " same frame", "other_frame": " other frames"}[self.relation]
        weight = "" if isinstance(self.weight, float) and not self.weight else f"weight {_number(self.weight):g}"
        arrow = self.name or f"{self.src}→{self.dst}{frames}"
        where = [label_of(self._told)] if is_by_layer(self.heads) else [self.layers.label(), label_of(self.heads)]
        return " ".join(filter(None, (arrow, *where, weight)))


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

    def at(self, layers: LayerRange | SupportsIndex | str | range) -> "RandomEdges":
        """The same control in other layers."""
        return replace(self, like=self.like.at(layers))

    @cached_property
    def cut(self) -> Cut:
        """What it does in each of its layers."""
        return replace(self.like.cut, seed=self.seed, label=self.label())

    def effect(self, n_layers: int) -> Effects:
        """Its cut in each of its layers."""
        return _in_layers(self, self.like, n_layers)

    @property
    def name(self) -> str:
        """The knockout's name with its role."""
        return f"random like {self.like.name or 'it'}"

    def label(self) -> str:
        """For tables and plots."""
        return f"random like {self.like.label()}".removesuffix(" all layers")


def _in_layers(k: Knockout | RandomEdges, like: Knockout, n_layers: int) -> Effects:
    layers = k.layers.layers(n_layers)
    if is_by_layer(like.heads):
        _check_layers(k, [i for i, _ in like.heads], n_layers)
        layers = tuple(i for i in layers if heads_in(like.heads, i))
    if not layers:
        raise InterventionError(
            f"{k.label()}: layers {k.layers} hold none of this model's {n_layers} blocks, numbered 0 to {n_layers - 1}"
        )
    if isinstance(like.weight, float) and like.weight == 1.0:
        layers = ()
    own = is_by_layer(like.heads)
    each = {i: replace(k.cut, heads=heads_in(like.heads, i)) if own else k.cut for i in layers}
    return Effects(tuple((each[i],) if i in layers else () for i in range(n_layers)))


def _check_layers(k: Knockout | RandomEdges, layers: list[int], n_layers: int) -> None:
    if max(layers) >= n_layers:
        raise InterventionError(
            f"{k.label()}: heads are told of layer {max(layers)} (0-based), beyond this model's {n_layers} blocks"
        )
