"""Which attention heads an intervention is about, in the spellings that it takes; heads are counted from 0."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from hookedvid.errors import InterventionError
from hookedvid.values.layer_range import as_number, as_range
from hookedvid.values.serial import as_whole

Some = tuple[int, ...]
# None: all heads. Heads, ascending. Or of each layer (ascending, 0-based) its own.
Heads = Some | tuple[tuple[int, Some], ...] | None


def as_heads(heads: Any) -> Heads:
    """Heads from one of their spellings: `3`, `[0, 3]`, `slice(0, 4)`, `range(4)`, or by layer `{12: [3, 7]}`.

    Raises:
        InterventionError: For what names no heads, or as many as only a model could tell.
    """
    if heads is None or (isinstance(heads, slice) and heads == slice(None)):
        return None
    if isinstance(heads, Mapping):
        return _by_layer(cast(Mapping[Any, Any], heads).items())
    several = _listed(heads)
    if several and all(isinstance(one, list | tuple) for one in several):
        if wrong := [one for one in several if len(one) != 2]:
            raise InterventionError(f"heads by layer are pairs (layer, heads), and {wrong[0]!r} is none")
        return _by_layer(several)
    return _some(several[0] if len(several) == 1 else several)


def heads_in(heads: Heads, layer: int) -> Some | None:
    """Those of one layer, None for all; none at all where they are told by layer and this is not among them."""
    if heads is None or not is_by_layer(heads):
        return cast(Some | None, heads)
    return dict(cast(tuple[tuple[int, Some], ...], heads)).get(layer, ())


def is_by_layer(heads: Heads) -> bool:
    """Whether each layer has its own."""
    return bool(heads) and isinstance(heads[0], tuple)


def label_of(heads: Heads) -> str:
    """For tables and plots: heads counted from 0, layers that have their own from 1."""
    if heads is None:
        return ""
    if not is_by_layer(heads):
        return _named(cast(Some, heads))
    return ", ".join(f"layer {i + 1} {_named(some)}" for i, some in cast(tuple[tuple[int, Some], ...], heads))


def _named(heads: Some) -> str:
    return f"head{'s' * (len(heads) > 1)} {','.join(map(str, heads))}"


def _some(heads: Any) -> Some:
    if isinstance(heads, slice):
        ends = cast(Any, heads)
        start, stop, step = (
            None if end is None else as_number(end, "an end of heads") for end in (ends.start, ends.stop, ends.step)
        )
        if stop is None or min(start or 0, stop) < 0:
            raise InterventionError(f"{heads} counts from the last head, which a model knows; give both ends from 0 up")
        heads = range(start or 0, stop, step or 1)
    numbers = sorted({as_number(one, "a head") for one in _listed(heads)})
    if not numbers or numbers[0] < 0:
        raise InterventionError(
            f"heads are {heads!r}; give numbers from 0 up, as 3, [0, 3], slice(0, 4) or {{12: [3, 7]}}, or None for all"
        )
    return tuple(numbers)


def _listed(heads: Any) -> list[Any]:
    """Several one by one; what is one number, of numpy or torch as well, alone."""
    one = as_whole(heads)
    if one is not None or isinstance(heads, str) or not isinstance(heads, Iterable):
        return [heads if one is None else one]
    return list(cast(Iterable[Any], heads))


def _by_layer(pairs: Iterable[Any]) -> tuple[tuple[int, Some], ...]:
    of: dict[int, set[int]] = {}
    for layers, heads in pairs:
        blocks = as_range(layers)
        if blocks.stop is None or blocks.outside:
            raise InterventionError(f"heads of layers {blocks}: name each layer, or a range with its end, as '4:8'")
        for i in range(blocks.start, blocks.stop):
            of.setdefault(i, set()).update(_some(heads))
    if not of:
        raise InterventionError("heads name no layer; give {layer: heads}, or None for all heads of all layers")
    return tuple((i, tuple(sorted(some))) for i, some in sorted(of.items()))
