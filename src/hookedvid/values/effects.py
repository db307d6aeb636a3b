"""What interventions do to a model, resolved once: who is cut off from whom, which rows are written, which rows leave.

An intervention answers for itself (`Intervention.effect`). Masks, kernels, run plans, sweeps, costs, readings and
estimates know no kinds of it: they read `Effects`. Positions stay selectors there. So nothing grows with the sequence,
and one value serves every item of a batch, every question of a sweep and every step of a generation.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar, cast

from jaxtyping import Int
from torch import Tensor

from hookedvid.errors import HookedVidError, InterventionError
from hookedvid.values.hook_names import part_of
from hookedvid.values.layer_range import EVERYWHERE, LayerRange
from hookedvid.values.layout import TokenLayout
from hookedvid.values.markup import line
from hookedvid.values.serial import to_dict
from hookedvid.values.spelling import Spelling, line_of

Relation = Literal["any", "same_frame", "other_frame"]
By = Literal["zero", "mean", "resample", "noise"]
_C = TypeVar("_C", bound="Cut")


@dataclass(frozen=True)
class Cut:
    """What becomes of attention's edges from queries `dst` to keys `src` in one block.

    Attributes:
        src, dst, relation, keep_self: As of a Knockout. They say which edges.
        seed: If given, as many edges drawn with it from all of the prompt but a token's own, in place of these.
        heads: Numbers of the heads (0-based) that it is about; None for all.
        weight: What exp(score) of an edge is multiplied by before softmax; 0 removes the edge. A tensor may be 0 and
            never removes: the run is differentiable in it.
        name, label: For messages. Cuts that differ in nothing else are equal.
    """

    src: str
    dst: str
    relation: Relation = "any"
    keep_self: bool = True
    seed: int | None = None
    heads: tuple[int, ...] | None = None
    weight: float | Tensor = 0.0
    name: str = field(default="", compare=False)
    label: str = field(default="", compare=False)

    @property
    def drawn(self) -> bool:
        """Whether its edges are drawn at random, so that only a dense mask can hold them."""
        return self.seed is not None

    @property
    def removes(self) -> bool:
        """Whether its edges are gone."""
        return not isinstance(self.weight, Tensor) and self.weight == 0

    @property
    def is_nothing(self) -> bool:
        """Whether its edges are left as they are."""
        return not isinstance(self.weight, Tensor) and self.weight == 1

    @property
    def dense(self) -> bool:
        """Whether only a mask of all pairs can hold it."""
        return self.drawn or isinstance(self.weight, Tensor)


@dataclass(frozen=True)
class Swap(Cut):
    """Other values along a block's edges, for those readers alone; the weights of attention stay.

    Attributes:
        by: What flows instead: nothing, a mean, values of another run, or noise about a mean.
        source: What holds the values, or the mean and deviation; a cache, a mapping, or the key of one. None: the mean
            and deviation of `src`. Two are the same if they are one object.
        draw: Seed of the noise.
    """

    weight: float | Tensor = 1.0
    by: By = "mean"
    source: Any = field(default=None, compare=False)
    source_id: int | str | None = None
    draw: int = 0

    def __post_init__(self):
        key = self.source if isinstance(self.source, str | None) else id(self.source)
        object.__setattr__(self, "source_id", key)

    @property
    def of_its_own(self) -> bool:
        """Whether values are made of the source's own."""
        return self.by in ("mean", "noise") and self.source is None


@dataclass(frozen=True, eq=False)
class At:
    """Where a function of an activation writes.

    The rows it is given are [1, chosen, …], of `z` and its like [1, chosen, head, d_head], of attention maps
    [1, head, chosen, key].

    Attributes:
        layout: Of the item's sequence.
        positions: Of the layout, ascending: those of the rows. In tower and projector a row stands for several
            positions or a position for several rows; there they are all that are selected.
        item: The item's number in its batch, 0-based.
        layer: The block (0-based) of decoder or tower; None outside of blocks.
    """

    layout: TokenLayout
    positions: Int[Tensor, " chosen"]
    item: int
    layer: int | None


@dataclass(frozen=True, eq=False)
class Write:
    """Rows of a hook point that become something else. Two are equal where they do the same.

    Attributes:
        hook: Its name, see `hook_names`.
        layer: The decoder's block it is in; None before block 0.
        at: A selector of the rows.
        label: For messages.
        fn: Gives the new rows from the old ones.
        by: Without `fn`, what they become: the source's `rows`, the `mean` of positions, `noise` that is distributed
            as positions are, or themselves with a `vector` added.
        source: What holds rows, moments or the vector, or its key; without one, moments are those of the positions.
        from_layer: The block of the source that rows are taken from, if it is another.
        scale: What a vector is multiplied by.
        seed: Of noise.
        tower: The blocks of the tower, for a hook point inside them.
    """

    hook: str
    layer: int | None
    at: str
    label: str
    fn: Callable[[Any, At], Any] | None = None
    by: Literal["rows", "mean", "noise", "vector"] = "rows"
    source: Any = None
    from_layer: int | None = None
    scale: float = 1.0
    seed: int = 0
    tower: LayerRange = EVERYWHERE

    @cached_property
    def _does(self) -> tuple[Any, ...]:
        place = (self.hook, self.layer, self.at, self.tower)
        return (*place, self.by, self.from_layer, self.scale, self.seed, _comparable(self.fn), _comparable(self.source))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Write) and self._does == other._does

    def __hash__(self) -> int:
        return hash(self._does)

    @property
    def of_positions(self) -> bool:
        """Whether what it writes is made of all of an item's selected positions together."""
        return self.by in ("mean", "noise") and self.source is None

    @property
    def block(self) -> int:
        """The first of the decoder's blocks that reads what is written, or that it is in."""
        return 0 if self.layer is None else self.layer


def _comparable(value: Any) -> Any:
    """The value, or which object it is where it is a tensor or cannot be a key."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return id(value) if isinstance(value, Tensor) else value


Rank = Literal["attention", "text_attention", "norm", "time", "space", "uniform", "random"]
Rule = Literal["mass", "answer", "entropy"]


@dataclass(frozen=True)
class Exit:
    """Positions `drop` that leave the sequence before block `layer`: all of them, or those that rank last.

    Attributes:
        keep: The share of those still there that stays, the first by `rank`.
        rank: By what positions are ordered where some stay; none where all leave.
        seed: Of a random order.
        rule: If given, what an item's run has to show, at this block or a later one, before the positions leave.
        threshold: Of the rule.
        label: For messages.
    """

    layer: int
    drop: str
    keep: float = 0.0
    rank: Rank | None = None
    seed: int = 0
    rule: Rule | None = None
    threshold: float = 0.0
    label: str = field(default="", compare=False)

    @property
    def decided_late(self) -> bool:
        """Whether the run itself decides who leaves, or when."""
        return self.rule is not None or self.rank is not None

    @property
    def reads_attention(self) -> bool:
        """Whether it looks at the pattern of the block before."""
        return self.rule == "mass" or self.rank in ("attention", "text_attention")

    @property
    def first_layer(self) -> int:
        """The first block whose run it has to see, at most `layer`."""
        back = int(self.threshold) - 1 if self.rule == "answer" else int(self.reads_attention)
        return max(0, self.layer - back)


class FrameChange:
    """What makes other frames of a clip's decoded ones; see `hookedvid.values.clips`."""

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of other videos that it reads."""
        return ()

    def change(self, frames: Any, read: Callable[[str], Any]) -> Any:
        """The frames that are shown; those given stay as they are.

        Args:
            frames: Sampled ones, uint8 RGB [frame, height, width, 3], as decoded.
            read: Gives another video's.

        Raises:
            InterventionError: For frames that are not there.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Effects:
    """What interventions do to a model.

    Attributes:
        cuts: Of each block.
        exits: In the order of their blocks.
        swaps: Of each block, or empty where there are none at all.
        clips: What becomes of the decoded frames before a run, in order: done where a run begins, and then gone.
        same_time: Whether the time axis of positions has one number for the whole video (`SameTime`).
    """

    cuts: tuple[tuple[Cut, ...], ...]
    writes: tuple[Write, ...] = ()
    exits: tuple[Exit, ...] = ()
    swaps: tuple[tuple[Swap, ...], ...] = ()
    clips: tuple[FrameChange, ...] = ()
    same_time: bool = False

    @property
    def by_rule(self) -> bool:
        """Whether a rule decides in the run when positions leave."""
        return any(exit.rule is not None for exit in self.exits)

    @property
    def every_cut(self) -> tuple[Cut, ...]:
        """The cuts and swaps of all blocks, one by one."""
        return tuple(cut for cuts in (*self.cuts, *self.swaps) for cut in cuts)

    def swaps_of(self, layer: int) -> tuple[Swap, ...]:
        """Those of one block."""
        return self.swaps[layer] if self.swaps else ()

    @property
    def selectors(self) -> tuple[str, ...]:
        """Every selector that they name positions by."""
        every = (*self.every_cut, *(swap for swaps in self.swaps for swap in swaps))
        cuts = (s for cut in every for s in (cut.src, cut.dst))
        named = (*cuts, *(w.at for w in self.writes), *(e.drop for e in self.exits))
        return tuple(dict.fromkeys(named))

    @property
    def enters(self) -> bool:
        """Whether it shows another clip or writes before block 0, so that a run has to begin with the inputs."""
        return bool(self.clips) or any(w.layer is None for w in self.writes)

    @property
    def encodes(self) -> bool:
        """Whether it writes to the tower or the projector, so that features made without it do not serve."""
        return any(part_of(w.hook) in ("tower", "projector") for w in self.writes)

    @property
    def first_layer(self) -> int:
        """The first block that is changed: all before it compute what the intact model does. n_layers if none."""
        if self.clips or self.same_time:
            return 0
        touched = [i for of in (self.cuts, self.swaps) for i, cuts in enumerate(of) if cuts]
        written, left = (w.block for w in self.writes), (e.first_layer for e in self.exits)
        return min([*touched, *written, *left], default=len(self.cuts))


class Intervention:
    """What is done to a run, as a frozen value. A new kind is a subclass that says what it does and how it is called.

    `kind` is its name in JSON, `spelling` how a line of text says it, where one can. A kind without a `kind`, or a
    value that no file can hold, refuses `to_json` in words; `instead` says what to do then.
    """

    kind: ClassVar[str] = ""
    instead: ClassVar[str] = "run it from Python"
    spelling: ClassVar[Spelling | None] = None

    def effect(self, n_layers: int) -> Effects:
        """What it does to a model of `n_layers` blocks.

        Raises:
            InterventionError: Where it does not fit one.
        """
        raise NotImplementedError

    def label(self) -> str:
        """For tables and plots; layers counted from 1."""
        raise NotImplementedError

    def line(self) -> str:
        """Its line of text, from which `hookedvid.values.interventions.parse` reads an equal value; layers from 0.

        Raises:
            InterventionError: Where no line says it: tensors and caches, heads told by layer.
        """
        text = None
        if self.spelling is not None:
            head, said = self.line_head()
            rest = {f.name: getattr(self, f.name) for f in fields(cast(Any, self)) if f.compare and f.name not in said}
            plain = {f.name: f.default for f in fields(cast(Any, self))}
            told = {k: str(v) if isinstance(v, LayerRange) else v for k, v in rest.items() if v != plain[k]}
            text = line_of(self.spelling, head, told)
        if text is None:
            raise InterventionError(f"{self.label()}: no line of text says it; {self._otherwise()}")
        return text

    def _otherwise(self) -> str:
        """What to do with a value that no line says."""
        try:
            self.to_json()
        except HookedVidError:
            return self.instead
        return "keep it as a value, or as to_json gives"

    def line_head(self) -> tuple[str, Sequence[str]]:
        """What stands before all words in its line, and the fields that this says."""
        assert self.spelling is not None
        if self.spelling.first is None:
            return self.spelling.begins, ()
        name = self.spelling.first[0]
        return f"{self.spelling.begins} {getattr(self, name)}", (name,)

    def _repr_html_(self) -> str:
        """Its line of text, and what tables call it."""
        try:
            return line(self.line(), self.label())
        except InterventionError:
            return line(type(self).__name__, self.label())

    def to_json(self) -> dict[str, Any]:
        """Its JSON object, `kind` first.

        Raises:
            InterventionError: Where no file can hold it.
        """
        if not self.kind:
            raise InterventionError(f"{self.label()}: {type(self).__name__} has no JSON form; {self.instead}")
        try:
            return {"kind": self.kind, **to_dict(self, brief=True)}
        except HookedVidError as e:
            raise InterventionError(f"{self.label()}: {e}; {self.instead}") from e

    @property
    def sources(self) -> tuple[str, ...]:
        """Keys that a run's `sources` have to hold."""
        return ()


def effects(interventions: Iterable[Intervention], n_layers: int) -> Effects:
    """What interventions do together to a model of `n_layers` blocks.

    Raises:
        InterventionError: For one that does not fit such a model.
    """
    each = [i.effect(n_layers) for i in interventions]
    swapping = [one for one in each if one.swaps]
    return Effects(
        tuple(tuple(cut for one in each for cut in one.cuts[layer]) for layer in range(n_layers)),
        tuple(w for one in each for w in one.writes),
        tuple(sorted((e for one in each for e in one.exits), key=lambda e: e.layer)),
        tuple(tuple(s for one in swapping for s in one.swaps[layer]) for layer in range(n_layers if swapping else 0)),
        tuple(c for one in each for c in one.clips),
        any(one.same_time for one in each),
    )


def by_heads(cuts: Sequence[_C], heads: Sequence[int]) -> list[tuple[tuple[int, ...], tuple[_C, ...]]]:
    """Heads that are under the same cuts, as their places among `heads`, and these cuts, as of all heads."""
    if all(cut.heads is None for cut in cuts):
        return [(tuple(range(len(heads))), tuple(cuts))]
    groups: dict[tuple[_C, ...], list[int]] = {}
    for place, head in enumerate(heads):
        mine = (cut for cut in cuts if cut.heads is None or head in cut.heads)
        groups.setdefault(tuple(replace(cut, heads=None) for cut in mine), []).append(place)
    return [(tuple(places), mine) for mine, places in groups.items()]


def check_heads(cuts: Iterable[Cut], n_heads: int) -> None:
    """Raise InterventionError for a cut of heads that a model of `n_heads` heads a block does not have."""
    for cut in cuts:
        if beyond := [h for h in cut.heads or () if h >= n_heads]:
            raise InterventionError(f"{cut.label}: no head {beyond[0]}; this model's are numbered 0 to {n_heads - 1}")
