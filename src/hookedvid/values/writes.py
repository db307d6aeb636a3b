"""What positions hold, replaced: by another run's, by a function of itself, by less or more of it.

They write rows of a hook point; `hookedvid.values.interventions` has them with the other kinds. `hook` is a hook
point's name: `resid_post`, `z`, `mlp_out`, … in the decoder's blocks, `embed` before block 0 (the merged stream),
`vision.resid_post`, … in the tower's blocks, `vision.patch_embed`, `vision.embed` and `vision.out` outside them,
`projector.in`, `projector.out`, `projector.deepstack.0.in`, … in the projector. Layers count the blocks of the part
that `hook` is in; hooks outside of blocks have none.

`at` selects positions of the layout. In tower and projector a position of the video stands for the rows that its token
is made of: the patch, the patches that are joined or pooled into it, or of merged clips all patches of the clip, which
are then written together. A class token that is no position goes with its frame where all of the frame's positions are
selected. Newlines have no rows there, dropped cells have no position; other positions are refused.
"""

# What users give is looked at, whatever its type says.
# pyright: reportUnnecessaryIsInstance=false
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ClassVar, TypeVar, get_args

from jaxtyping import Float
from torch import Tensor

from hookedvid.errors import InterventionError
from hookedvid.values.effects import At, By, Effects, Intervention, Write
from hookedvid.values.hook_names import in_blocks, is_map, part_of
from hookedvid.values.layer_range import EVERYWHERE, LayerRange, as_number, as_range, set_fields, spelled
from hookedvid.values.selectors import as_selector
from hookedvid.values.serial import is_number
from hookedvid.values.spelling import Spelling, number
from hookedvid.values.vectors import Vector, as_vector

LATER: dict[str, Any] = {"later": True}
_T = TypeVar("_T")


def as_source(value: Any, what: str) -> Any:
    """What a patch can take activations from by their names.

    Raises:
        InterventionError: For what holds none.
    """
    if isinstance(value, str) or not hasattr(value, "__getitem__"):
        raise InterventionError(f"{what}: its source is {value!r}; give the cache of another run")
    return value


def _as_block(layer: object, what: str) -> int:
    """The number of one block; a text or a range may name it."""
    if isinstance(layer, str | LayerRange | range):
        blocks = as_range(layer)
        if blocks.outside or blocks.stop != blocks.start + 1:
            raise InterventionError(
                f"{what} writes in one block, and layer is {layer!r}; give one for each: [{what}(…, i, …) for i in …]"
            )
        return blocks.start
    return as_number(layer, f"a block that {what} could write in")


def _as_hook(hook: object, what: str, maps: bool = True) -> str:
    if not isinstance(hook, str):
        raise InterventionError(f"{hook!r} is no hook point; give its name, such as 'resid_post' or 'z'")
    if is_map(hook) and not maps:
        raise InterventionError(
            f"{what} writes channels of positions, and {hook!r} is an attention map; name what positions hold, such as "
            "'z', or give an Edit"
        )
    if is_map(hook) and part_of(hook) == "tower":
        raise InterventionError(
            f"{what} cannot write to {hook!r}: attention in the tower is inside frames, among patches that no selector "
            "names; put a hook on it (model.hooks)"
        )
    return hook


def _as_layers(layers: object, hook: str, what: str) -> LayerRange:
    """The blocks of a hook point, all of them for one outside of blocks."""
    if in_blocks(hook):
        return as_range(layers)
    if layers is not None and as_range(layers) != EVERYWHERE:
        raise InterventionError(f"{what}: {hook!r} stands in no block, and layers is {layers!r}; leave it out")
    return EVERYWHERE


class _RowsWriter(Intervention):
    """A kind that writes rows `at` of hook points."""

    hook: str
    at: str

    def _where(self, layers: LayerRange) -> str:
        """For labels; layers counted from 1."""
        return f"{self.hook} {layers.label()} at {self.at}" if in_blocks(self.hook) else f"{self.hook} at {self.at}"

    def _effects(self, layers: LayerRange, n_layers: int, **what: Any) -> Effects:
        """A write in each block of the decoder, or one before it."""
        inside = part_of(self.hook) == "blocks"
        tower = EVERYWHERE if inside else layers
        each = layers.layers(n_layers) if inside else (None,)
        writes = tuple(Write(self.hook, i, self.at, self.label(), tower=tower, **what) for i in each)
        return Effects(((),) * n_layers, writes=writes)

    @property
    def sources(self) -> tuple[str, ...]:
        """Keys that a run's `sources` have to hold."""
        named = self._source()
        return (named,) if isinstance(named, str) else ()

    def _source(self) -> Any:
        return None


@spelled
@dataclass(frozen=True)
class Patch(_RowsWriter):
    """The activation at `hook` of block `layer` is replaced at positions `at` by the one in `source`.

    `hook` is a short name (`resid_post`, `z`, `mlp_out`, …; see the module for those outside of the decoder's blocks).
    `source` is a cache of another run, or the key of one in the `sources` given at run time (then the value has a JSON
    form). `from_layer` takes the activation of another block (back-patching). Selected positions of both runs must be
    equally many; their order pairs them. Generated tokens are patched by the source's own, of which it may hold more; a
    source without any patches the prompt alone. A source cached without names_filter ran the explicit kernel in every
    layer: for bitwise comparisons cache only the hook that is patched.
    """

    kind: ClassVar[str] = "patch"
    instead: ClassVar[str] = "give a key of sources for it, or run it from Python"
    spelling = Spelling(
        "patch",
        "patch resid_post @ 4 at video[3] from source",
        {
            "@": ("layer", number), "at": ("at", str), "from": ("source", str), "layer": ("from_layer", number),
        },
        ("hook", str),
    )  # fmt: skip
    hook: str
    layer: int | None = None
    at: str = "all"
    source: Any = "source"
    from_layer: int | None = field(default=None, metadata=LATER)

    def __post_init__(self):
        set_fields(self, at=as_selector(self.at), hook=_as_hook(self.hook, "Patch"))
        if not in_blocks(self.hook):
            _as_layers(self.layer, self.hook, "Patch")
        if not in_blocks(self.hook) and self.from_layer is not None:
            raise InterventionError(f"Patch: {self.hook!r} stands in no block; leave from_layer out")
        for name in ("layer", "from_layer"):
            given = getattr(self, name)
            if in_blocks(self.hook) and (given is not None or name == "layer"):
                set_fields(self, **{name: _as_block(given, "Patch")})
        if not isinstance(self.source, str):
            as_source(self.source, self.label())

    def effect(self, n_layers: int) -> Effects:
        """Its write."""
        taken: dict[str, Any] = {"source": self.source, "from_layer": self.from_layer}
        if part_of(self.hook) == "blocks":  # one beyond the last is told with the model's
            return Effects(((),) * n_layers, writes=(Write(self.hook, self.layer, self.at, self.label(), **taken),))
        return self._effects(EVERYWHERE if self.layer is None else as_range(self.layer), n_layers, **taken)

    def label(self) -> str:
        """For tables and plots; layers counted from 1."""
        layer = "" if self.layer is None else f" layer {self.layer + 1}"
        back = "" if self.from_layer is None else f" from layer {self.from_layer + 1}"
        return f"patch {self.hook}{layer} at {self.at}{back}"

    def _source(self) -> Any:
        return self.source


def _renamed(**names: str) -> Callable[[type[_T]], type[_T]]:
    """A value that still takes fields by keywords that were theirs."""

    def of(cls: type[_T]) -> type[_T]:
        init: Callable[..., None] = vars(cls)["__init__"]

        @wraps(init)
        def taking(self: _T, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **{names.get(k, k): v for k, v in kwargs.items()})

        setattr(cls, "__init__", taking)  # noqa: B010 - assigned, a checker would hold it against the dataclass's own
        return cls

    return of


@dataclass(frozen=True)
class _OfRows:
    """A function that asks for nothing but the rows."""

    fn: Callable[[Any], Any]

    def __call__(self, act: Any, at: At) -> Any:
        return self.fn(act)


def _of_rows_and_place(fn: Any, what: str) -> Callable[[Any, At], Any]:
    """A function of the rows, or of the rows and where they are, as the latter.

    Raises:
        InterventionError: For one that takes neither.
    """
    if not callable(fn):
        raise InterventionError(f"{what}: fn is {fn!r}; give a function of the activation")
    try:
        signature = inspect.signature(fn)
    except ValueError:  # of functions written in C
        return _OfRows(fn)
    for n, taken in ((1, _OfRows(fn)), (2, fn)):
        try:
            signature.bind(*[None] * n)
        except TypeError:
            continue
        return taken
    raise InterventionError(f"{what}: fn takes {signature}; give a function of the activation, or of (act, at)")


@_renamed(layer="layers")
@spelled
@dataclass(frozen=True)
class Edit(_RowsWriter):
    """The activation at `hook` of every block in `layers` is replaced at positions `at` by `fn` of itself.

    For what no other value says. `fn` takes one item's rows [1, chosen, …] (for attention maps [1, head, chosen, key],
    without padding), in the order of their positions, and returns as many. One of two arguments is also told where
    (`hookedvid.values.effects.At`: layout, positions, item, layer). Rows of the prompt come in one call; a generated
    token's come alone, of a map with the keys up to its own, so that generation does the same with and without a
    key-value cache. As a Python function an edit has no JSON form. `name` is for tables; equal edits have the same
    function.
    """

    hook: str
    layers: LayerRange
    fn: Callable[..., Any]
    at: str = "all"
    name: str = field(default="edit", compare=False)

    def __post_init__(self):
        hook = _as_hook(self.hook, "Edit")
        layers = _as_layers(self.layers, hook, "Edit")
        set_fields(self, layers=layers, at=as_selector(self.at), hook=hook)
        set_fields(self, _fn=_of_rows_and_place(self.fn, f"Edit of {hook!r}"))

    def effect(self, n_layers: int) -> Effects:
        """Its write in each of its layers."""
        return self._effects(self.layers, n_layers, fn=vars(self)["_fn"])

    def to_json(self) -> dict[str, Any]:
        """Raises InterventionError: it is a function."""
        raise InterventionError(
            f"{self.label()}: an edit is a Python function, which no file can hold; run it from Python"
        )

    def label(self) -> str:
        """For tables and plots; layers counted from 1."""
        layers = self.layers.label() if in_blocks(self.hook) else ""
        if layers[:1].isdigit():
            layers = f"layer {layers}" if layers.isdigit() else f"layers {layers}"
        return " ".join(x for x in (self.name, self.hook, layers, f"at {self.at}") if x)


@spelled
@dataclass(frozen=True)
class Ablate(_RowsWriter):
    """The activation at `hook` of every block in `layers` loses, at positions `at`, what it says.

    `by` is what takes its place:

    * `zero`.
    * `mean`: over the positions `at` of the prompt, for generated ones among them too. Or over a reference set, where
      `source` names one: a mapping from full hook names to mean and standard deviation of each channel, [2, …].
    * `resample`: what another run has there. `source` is its cache, or its key; positions are paired as a Patch's.
    * `noise`: normal, each channel with the mean and the variance (the covariance's diagonal) of the positions, or of
      the reference set. What is drawn depends on `seed`, on the item, the hook point and the position, and on no
      other position, so that runs alone, in batches, in sweeps and step by step agree.

    At `deepstack` zero cuts what a tower's earlier features add to a frame behind the first blocks, which no knockout
    of attention reaches: a frame is gone where its embedding and all of these are. The model refuses blocks without the
    hook point.
    """

    kind: ClassVar[str] = "ablate"
    instead: ClassVar[str] = "give a key of sources for it, or run it from Python"
    spelling = Spelling(
        "ablate",
        "ablate mlp_out @ 4:8 at video by mean",
        {
            "@": ("layers", str), "at": ("at", str), "by": ("by", str), "from": ("source", str),
            "seed": ("seed", number),
        },
        ("hook", str),
    )  # fmt: skip
    hook: str
    layers: LayerRange = EVERYWHERE
    at: str = "all"
    by: By = field(default="zero", metadata=LATER)
    source: Any = field(default=None, metadata=LATER)
    seed: int = field(default=0, metadata=LATER)

    def __post_init__(self):
        if self.by not in get_args(By):
            raise InterventionError(f"Ablate: by is {self.by!r}; it can be {', '.join(get_args(By))}")
        hook = _as_hook(self.hook, f"Ablate by {self.by}", maps=self.by in ("zero", "resample"))
        layers = _as_layers(self.layers, hook, "Ablate")
        set_fields(self, layers=layers, at=as_selector(self.at), hook=hook, seed=as_number(self.seed, "a seed"))
        if self.source is not None and self.by == "zero":
            raise InterventionError(f"{self.label()}: zero is taken from nowhere; leave source out")
        if self.source is None and self.by == "resample":
            raise InterventionError(f"{self.label()}: give the source, another run's cache or its key in sources")
        if self.source is not None and not isinstance(self.source, str):
            as_source(self.source, self.label())
        if self.seed and self.by != "noise":
            raise InterventionError(f"{self.label()}: only noise is drawn; leave seed out")

    def effect(self, n_layers: int) -> Effects:
        """Its write in each of its layers."""
        what: dict[str, Any] = {"by": self.by, "source": self.source, "seed": self.seed}
        if self.by == "zero":
            what = {"fn": _zero}
        if self.by == "resample":
            what = {"source": self.source}
        return self._effects(self.layers, n_layers, **what)

    def label(self) -> str:
        """For tables and plots; layers counted from 1."""
        of = f" of {self.source!r}" if isinstance(self.source, str) else ""
        seed = f" {self.seed}" if self.by == "noise" and self.seed else ""
        return f"ablate {self._where(self.layers)}" + ("" if self.by == "zero" else f" by {self.by}{seed}{of}")

    def _source(self) -> Any:
        return self.source


def _zero(act: Any, at: At) -> Any:
    return act.new_zeros(act.shape)


@spelled
@dataclass(frozen=True, eq=False)
class Steer(_RowsWriter):
    """`scale` times a vector is added to the activation at `hook` of every block in `layers` at positions `at`.

    Attributes:
        vector: [d] of as many numbers as the hook point holds for a position ([head, d_head] at `z`). A tensor; or the
            path of a safetensors file, with `:name` behind it where that holds several; or a key of `sources`. The
            latter two have a JSON form.
        digest: Of the vector's numbers, where they are given. A file that holds others by now is refused.
    """

    kind: ClassVar[str] = "steer"
    instead: ClassVar[str] = "save the vector as safetensors and give the file's path, or give a key of sources"
    spelling = Spelling(
        "steer",
        "steer resid_post @ 4:8 at last along vector scale 2",
        {"@": ("layers", str), "at": ("at", str), "along": ("vector", str), "scale": ("scale", number)},
        ("hook", str),
    )
    hook: str
    layers: LayerRange = EVERYWHERE
    at: str = "all"
    vector: str | Float[Tensor, "*channels"] = "vector"
    scale: float = 1.0
    digest: str = field(default="", metadata=LATER)

    def __post_init__(self):
        hook = _as_hook(self.hook, "Steer", maps=False)
        layers = _as_layers(self.layers, hook, "Steer")
        set_fields(self, layers=layers, at=as_selector(self.at), hook=hook)
        if not is_number(self.scale) or not math.isfinite(self.scale):
            raise InterventionError(f"{self._head()}: scale is {self.scale!r}; give a number")
        set_fields(self, scale=float(self.scale), _held=as_vector(self.vector, self._head()))
        held = self._given()
        new = held.digest if isinstance(held, Vector) else ""
        if self.digest not in ("", new):
            raise InterventionError(
                f"{self._head()}: {self.vector!r} holds other numbers than when this was written (digest {new}, not "
                f"{self.digest}); give the file that it was made with, or leave digest out"
            )
        set_fields(self, digest=new)

    def _given(self) -> Vector | str:
        return vars(self)["_held"]

    def _same(self) -> tuple[Any, ...]:
        return (self.hook, self.layers, self.at, self._given(), self.scale)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steer) and self._same() == other._same()

    def __hash__(self) -> int:
        return hash(self._same())

    def effect(self, n_layers: int) -> Effects:
        """Its write in each of its layers."""
        return self._effects(self.layers, n_layers, by="vector", source=self._given(), scale=self.scale)

    def line_head(self) -> tuple[str, Sequence[str]]:
        """The digest is left out: the file that the line names has its numbers."""
        head, said = super().line_head()
        return head, (*said, "digest")

    def label(self) -> str:
        """For tables and plots; layers counted from 1."""
        return f"{self._head()} by {self.scale:g}" + (f" × {self.vector}" if isinstance(self.vector, str) else "")

    def _head(self) -> str:
        return f"steer {self._where(self.layers)}"

    def _source(self) -> Any:
        return self._given()
