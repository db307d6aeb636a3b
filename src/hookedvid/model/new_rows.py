"""What a write puts in place of rows: a function's, a vector added, the rows' mean, noise that is like them.

Rows of another run are taken in `patching` and `tower_rows`, which know where they stand.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.errors import InterventionError, nearest
from hookedvid.model.cache import VideoCache
from hookedvid.model.hook_points import hooks_of
from hookedvid.nn.model import Model
from hookedvid.values.effects import At, Write
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.layer_range import as_range
from hookedvid.values.layout import TokenLayout, stream_length
from hookedvid.values.tensors import floats, ints
from hookedvid.values.vectors import Vector, checked
from hookedvid.values.writes import as_source

Sources = Mapping[str, Any] | None
Value = Callable[[Tensor, Int[Tensor, " which"]], Tensor]  # (rows, which of a place's) -> as many rows
Notes = MutableMapping[tuple[Write, str, int], Tensor]  # moments of a write's prompt rows, by hook point and item
SAMPLE = 64  # numbers of a video that tell it from others


class Place(NamedTuple):
    """The rows of one item at one hook point that a write is about.

    Attributes:
        name: The hook point's full name.
        layer: The block, None outside of blocks.
        item: Its number in `inputs`.
        positions: Those of the layout that are selected.
        rows: Those of the item at the hook point that are written: the positions, but in tower and projector.
        n_rows: How many rows the item's video has there; None where rows are positions.
    """

    name: str
    layer: int | None
    inputs: VideoInputs
    item: int
    positions: Int[Tensor, " chosen"]
    rows: Int[Tensor, " row"]
    n_rows: int | None = None

    @property
    def layout(self) -> TokenLayout:
        """The item's."""
        return self.inputs.layouts[self.item]

    def at(self, which: Int[Tensor, " which"]) -> At:
        """What a function is told about some of the rows."""
        positions = self.positions[which] if self.n_rows is None else self.positions
        return At(self.layout, positions, self.item, self.layer)

    def of_prompt(self, which: Int[Tensor, " which"]) -> bool:
        """Whether these rows, which come from one call, are the prompt's and not a generated token's."""
        return self.n_rows is not None or int(self.rows[which[0]]) < self.layout.n_prompt


def new_rows(write: Write, place: Place, sources: Sources, notes: Notes) -> Value:
    """What a write makes of rows, unless it takes another run's.

    Args:
        notes: Keeps moments of the prompt's rows for generated ones, which may come in later steps.

    Raises:
        InterventionError: When it does not fit.
    """
    if write.fn is not None:
        return _function(write, place)
    if write.by == "vector":
        return _added(write, sources)
    return _moved(write, place, sources, notes)


def _function(write: Write, place: Place) -> Value:
    assert write.fn is not None
    fn = write.fn

    def value(act: Tensor, which: Tensor) -> Tensor:
        out = fn(act, place.at(which))
        if not isinstance(out, Tensor) or out.shape != act.shape:
            returned = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise InterventionError(f"{write.label}: fn gave {returned} for {tuple(act.shape)}; return the same shape")
        check_mask(write.label, out, act)
        return out

    return value


def _added(write: Write, sources: Sources) -> Value:
    given = source_of(write, sources, "vector")
    vector = given if isinstance(given, Vector) else checked(given, write.label)

    def value(act: Tensor, which: Tensor) -> Tensor:
        if vector.numbers.shape != act.shape[2:]:
            raise InterventionError(
                f"{write.label}: its vector is {tuple(vector.numbers.shape)}, and {write.hook!r} holds "
                f"{tuple(act.shape[2:])} numbers for a position; give as many"
            )
        return act + write.scale * vector.numbers.to(act)

    return value


def _moved(write: Write, place: Place, sources: Sources, notes: Notes) -> Value:
    """Rows become their mean, or noise about it."""
    given = None if write.source is None else _moments_given(write, place.name, source_of(write, sources, "moments"))
    of_prompt = len(place.rows) if place.n_rows is not None else int((place.rows < place.layout.n_prompt).sum())
    if given is None and of_prompt < 2:
        raise InterventionError(
            f"{write.label}: {of_prompt} positions of the prompt are selected, and one alone is its own mean; select "
            "more, or give a reference set (source=…)"
        )
    key = (write, place.name, place.item)

    def value(act: Tensor, which: Tensor) -> Tensor:
        if given is None and place.of_prompt(which):
            notes[key] = _moments(act[0], 1 if write.by == "mean" else 2)
        if given is None and key not in notes:
            raise InterventionError(f"{write.label}: none of these positions of the prompt is left to take moments of")
        moments = notes[key] if given is None else given.to(act.device)
        if moments.shape[1:] != act.shape[2:]:
            raise InterventionError(
                f"{write.label}: its reference set holds moments of {tuple(moments.shape[1:])}, and {write.hook!r} "
                f"holds {tuple(act.shape[2:])} numbers for a position"
            )
        mean, *spread = moments.to(torch.promote_types(act.dtype, torch.float32))
        if write.by == "mean":
            return mean.expand_as(act)
        return mean + spread[0] * _normal(write.seed, place, place.rows[which], act.shape[2:])[None].to(mean)

    return value


def _moments(rows: Float[Tensor, "chosen *channels"], n: int) -> Float[Tensor, "n *channels"]:
    """The first `n` of mean and standard deviation of each channel over rows, whose number divides."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    mean = wide.mean(0)
    if n == 1:
        return mean[None]
    return torch.stack([mean, (wide - mean).square().mean(0).sqrt()])  # a tenth of what `std` takes


def _moments_given(write: Write, name: str, source: Any) -> Tensor:
    try:
        given = source[name]
    except (KeyError, IndexError, TypeError) as e:
        held = list(map(str, cast(Mapping[Any, Any], source))) if isinstance(source, Mapping) else []
        raise InterventionError(
            f"{write.label}: its reference set has nothing of {name!r} ({nearest(name, held)}); give a mapping from "
            "full hook names to mean and standard deviation, [2, …]"
        ) from e
    if not isinstance(given, Tensor) or not given.is_floating_point() or given.ndim < 2 or len(given) != 2:
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise InterventionError(f"{write.label}: its reference set gave {shape}; give mean and deviation, [2, …]")
    return given


def _normal(seed: int, place: Place, rows: Int[Tensor, " some"], channels: torch.Size) -> Float[Tensor, "some ..."]:
    """Standard normal numbers for rows, on the CPU in float32: those of a row are the same whichever are asked for.

    What stands before the end of the video draws by that alone, so that all questions on it have the same; what
    follows draws by the whole prompt.
    """
    drawn = torch.empty(len(rows), *channels)
    for start, stop, known in _drawn_together(place, rows):
        here = (rows >= start) & (rows < stop)
        if bool(here.any()):
            told = f"{seed} {place.name} {start} {ints(_ids(place)[:known])} {_sample(place)}"
            number = int.from_bytes(hashlib.sha256(told.encode()).digest()[:7])
            block = torch.randn(stop - start, *channels, generator=torch.Generator().manual_seed(number))
            drawn[here] = block[rows[here] - start]
    return drawn


def _drawn_together(place: Place, rows: Tensor) -> Iterable[tuple[int, int, int]]:
    """Runs of rows [start, stop), and by how many of the prompt's tokens they are drawn."""
    n_stream, n_prompt = stream_length(place.layout), place.layout.n_prompt
    if place.n_rows is not None:
        return [(0, place.n_rows, n_stream)]
    generated = ((p, p + 1, n_prompt) for p in ints(rows) if p >= n_prompt)
    return [(0, n_stream, n_stream), (n_stream, n_prompt, n_prompt), *generated]


def _ids(place: Place) -> Tensor:
    return place.inputs.tokens[place.item, place.inputs.pads[place.item] :].cpu()


def _sample(place: Place) -> list[float]:
    pixels = place.inputs.pixel_values[place.item]
    return [] if pixels is None else floats(pixels.flatten()[:: max(1, pixels.numel() // SAMPLE)].float())


def source_of(write: Write, sources: Sources, what: str = "cache") -> Any:
    """What a write takes something from: given with it, or by its key among a run's `sources`.

    Raises:
        InterventionError: For a key that has none.
    """
    if not isinstance(write.source, str):
        return write.source  # looked at where the value was made
    if not sources or write.source not in sources:
        raise InterventionError(
            f"{write.label} takes its {'activation' if what == 'cache' else what} from {write.source!r}; pass "
            f"sources={{{write.source!r}: {what}}} (given: {sorted(sources or ())})"
        )
    return as_source(sources[write.source], write.label)


class Theirs(NamedTuple):
    """What a source holds of the hook point that rows are taken from.

    Attributes:
        name: The hook point's full name.
        layer: Its block, None outside of blocks.
    """

    source: Any
    act: Tensor
    name: str
    layer: int | None


def theirs_of(model: Model, write: Write, sources: Sources, name: str, layer: int | None) -> Theirs:
    """What a source holds for a write to a hook point; of another block where the write says so."""
    source = source_of(write, sources)
    if isinstance(source, VideoCache) and source.sliced:
        raise InterventionError(f"{write.label}: its source was cut by pos_slice; cache the source without it")
    if write.from_layer is not None:
        block = {"layer": write.from_layer} if layer == write.layer else {"tower": as_range(write.from_layer)}
        ((name, layer),) = hooks_of(model, replace(write, **block))
    try:
        return Theirs(source, source[name], name, layer)
    except (KeyError, IndexError, TypeError) as e:
        raise InterventionError(f"{write.label}: its source holds no {name!r}; cache that hook point") from e


def check_alike(label: str, taken: Tensor, act: Tensor) -> None:
    """Raise InterventionError where a source's rows hold other numbers than those they are to replace."""
    if taken.shape[2:] != act.shape[2:]:
        raise InterventionError(
            f"{label}: its source holds {tuple(taken.shape[2:])} numbers for a position, and there are "
            f"{tuple(act.shape[2:])} here: it is of another model, or of another hook point"
        )


def check_mask(label: str, value: Tensor, act: Tensor) -> None:
    """Raise InterventionError where a mask would be written to by other than booleans."""
    if act.dtype == torch.bool and value.dtype != torch.bool:
        raise InterventionError(f"{label}: {value.dtype} for a mask; give booleans, True where a query may look")
