"""What positions hold, replaced: by another run's, by a function of itself, by zero.

They write rows of a hook point; `hookedvid.values.interventions` has them with the other kinds.
"""

# What users give is looked at, whatever its type says.
# pyright: reportUnnecessaryIsInstance=false
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from hookedvid.errors import InterventionError
from hookedvid.values.effects import Effects, Intervention, Write
from hookedvid.values.layer_range import EVERYWHERE, LayerRange, as_number, as_range, set_fields, spelled
from hookedvid.values.selectors import as_selector


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


def _as_hook(hook: object) -> str:
    if not isinstance(hook, str):
        raise InterventionError(f"{hook!r} is no hook point; give its name, such as 'resid_post' or 'z'")
    return hook


@spelled
@dataclass(frozen=True)
class Patch(Intervention):
    """The activation at `hook` of block `layer` is replaced at positions `at` by the one in `source`.

    `hook` is a short name (`resid_post`, `z`, `mlp_out`, …). `source` is a cache of another run, or the key
    of one in the `sources` given at run time (then the value has a JSON form). Selected positions of both
    runs must be equally many; their order pairs them. Generated tokens are patched by the source's own, of which it
    may hold more; a source without any patches the prompt alone. A source cached without names_filter ran the
    explicit kernel in every layer: for bitwise comparisons cache only the hook that is patched.
    """

    kind: ClassVar[str] = "patch"
    hook: str
    layer: int
    at: str = "all"
    source: Any = "source"

    def __post_init__(self):
        set_fields(self, layer=_as_block(self.layer, "Patch"), at=as_selector(self.at), hook=_as_hook(self.hook))
        if not isinstance(self.source, str):
            as_source(self.source, self.label())

    @cached_property
    def write(self) -> Write:
        """What it does to its hook point."""
        return Write(self.hook, self.layer, self.at, self.label(), source=self.source)

    def effect(self, n_layers: int) -> Effects:
        """Its write."""
        return Effects(((),) * n_layers, writes=(self.write,))

    def label(self) -> str:
        """For tables and plots; the layer counted from 1."""
        return f"patch {self.hook} layer {self.layer + 1} at {self.at}"


@spelled
@dataclass(frozen=True)
class Edit(Intervention):
    """The activation at `hook` of block `layer` is replaced at positions `at` by `fn` of itself.

    For what no other value says: scaling, means, noise, steering. `fn` takes one item's rows [1, chosen, …] (for
    attention maps [1, head, chosen, key], without padding), in the order of their positions, and returns as many. Rows
    of the prompt come in one call; a generated token's come alone, of a map with the keys up to its own, so that
    generation does the same with and without a key-value cache. As a Python function an edit has no JSON form. `name`
    is for tables; equal edits have the same function.
    """

    hook: str
    layer: int
    fn: Callable[[Any], Any]
    at: str = "all"
    name: str = field(default="edit", compare=False)

    def __post_init__(self):
        set_fields(self, layer=_as_block(self.layer, "Edit"), at=as_selector(self.at), hook=_as_hook(self.hook))
        if not callable(self.fn):
            raise InterventionError(f"Edit of {self.hook!r}: fn is {self.fn!r}; give a function of the activation")

    @cached_property
    def write(self) -> Write:
        """What it does to its hook point."""
        return Write(self.hook, self.layer, self.at, self.label(), fn=self.fn)

    def effect(self, n_layers: int) -> Effects:
        """Its write."""
        return Effects(((),) * n_layers, writes=(self.write,))

    def to_json(self) -> dict[str, Any]:
        """Raises InterventionError: it is a function."""
        raise InterventionError(
            f"{self.label()}: an edit is a Python function, which no file can hold; run it from Python"
        )

    def label(self) -> str:
        """For tables and plots; the layer counted from 1."""
        return f"{self.name} {self.hook} layer {self.layer + 1} at {self.at}"


@spelled
@dataclass(frozen=True)
class Ablate(Intervention):
    """The activation at `hook` of every block in `layers` becomes zero at positions `at`.

    At `deepstack` it cuts what a tower's earlier features add to a frame behind the first blocks, which no knockout of
    attention reaches: a frame is gone where its embedding and all of these are. The model refuses blocks without the
    hook point.
    """

    kind: ClassVar[str] = "ablate"
    hook: str
    layers: LayerRange = EVERYWHERE
    at: str = "all"

    def __post_init__(self):
        set_fields(self, layers=as_range(self.layers), at=as_selector(self.at), hook=_as_hook(self.hook))

    def effect(self, n_layers: int) -> Effects:
        """Its write in each of its layers."""
        layers = self.layers.layers(n_layers)
        writes = tuple(Write(self.hook, i, self.at, self.label(), fn=_zero) for i in layers)
        return Effects(((),) * n_layers, writes=writes)

    def label(self) -> str:
        """For tables and plots; layers counted from 1."""
        return f"ablate {self.hook} {self.layers.label()} at {self.at}"


def _zero(act: Any) -> Any:
    return act.new_zeros(act.shape)
