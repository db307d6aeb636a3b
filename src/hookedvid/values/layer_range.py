"""Ranges of layers, as interventions take them, and the spellings of fields."""

# What users give is looked at, whatever its type says.
# pyright: reportUnnecessaryIsInstance=false
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hookedvid.errors import InterventionError
from hookedvid.values.serial import as_whole

_T = TypeVar("_T")


def spelled(cls: type[_T]) -> type[_T]:
    """A value that reads the spellings of its fields itself, wider than their types, and refuses others in words."""
    vars(cls)["__init__"].__no_type_check__ = True  # no checker at run time speaks before it does
    return cls


def set_fields(value: Any, **fields: Any) -> None:
    """Set fields of a frozen value while it is made."""
    for name, new in fields.items():
        object.__setattr__(value, name, new)


@spelled
@dataclass(frozen=True)
class LayerRange:
    """Blocks [start, stop), 0-based; `stop=None` runs to the last block; `outside` takes all the others.

    `label()` counts from 1, as the paper does: LayerRange(4, 8) prints as 5–8.
    """

    start: int = 0
    stop: int | None = None
    outside: bool = False

    def __post_init__(self):
        stop = None if self.stop is None else as_number(self.stop, "where a LayerRange ends")
        set_fields(self, start=as_number(self.start, "where a LayerRange begins"), stop=stop)
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise InterventionError(
                f"LayerRange({self.start}, {self.stop}) holds no layer; layers are 0-based, start < stop"
            )

    @classmethod
    def window(cls, centre: int, width: int, n_layers: int) -> "LayerRange":
        """`width` blocks around block `centre` (0-based), clipped to the model, as Map the Flow takes them."""
        return cls(max(0, centre - width // 2), min(n_layers, centre - width // 2 + width))

    @classmethod
    def ending(cls, x: int, width: int) -> "LayerRange":
        """The paper's window {x-width+1, …, x}, `x` counted from 1; raises if it starts before layer 1."""
        if x < width:
            raise InterventionError(f"a window of {width} layers cannot end at layer {x}; the first ends at {width}")
        return cls(x - width, x)

    @classmethod
    def parse(cls, text: str) -> "LayerRange":
        """`12:16`, `12:`, `:4`, `7` or `~12:16` (outside), 0-based and half-open as in Python."""
        body = text.strip()
        outside, body = body.startswith("~"), body.removeprefix("~")
        start, colon, stop = body.partition(":")
        try:
            first = int(start) if start or not colon else 0
            end = (int(stop) if stop else None) if colon else first + 1
        except ValueError as e:
            raise InterventionError(f"cannot read layers {text!r}; write 12:16, 12:, :4, 7 or ~12:16") from e
        return cls(first, end, outside)

    def layers(self, n_layers: int) -> tuple[int, ...]:
        """The blocks of an `n_layers` model this names, ascending. Raises if it names one beyond the last."""
        stop = n_layers if self.stop is None else self.stop
        if stop > n_layers or self.start > n_layers:
            raise InterventionError(
                f"layers {self} reach beyond this model's {n_layers} blocks, numbered 0 to {n_layers - 1}"
            )
        inside = range(self.start, stop)
        return tuple(i for i in range(n_layers) if (i in inside) != self.outside)

    def __contains__(self, layer: int) -> bool:
        return (self.start <= layer and (self.stop is None or layer < self.stop)) != self.outside

    def label(self) -> str:
        """The range as the paper prints it, counted from 1, both ends included."""
        if self.start == 0 and self.stop is None:
            return "no layer" if self.outside else "all layers"
        body = f"{self.start + 1}–" if self.stop is None else f"{self.start + 1}–{self.stop}"
        body = str(self.start + 1) if self.stop == self.start + 1 else body
        return f"not {body}" if self.outside else body

    def __invert__(self) -> "LayerRange":
        return replace(self, outside=not self.outside)

    def __str__(self) -> str:
        return ("~" if self.outside else "") + f"{self.start}:{'' if self.stop is None else self.stop}"


def as_range(layers: object) -> LayerRange:
    """A LayerRange from one of its spellings: itself, one block's number, a `range`, or `parse`'s text."""
    if isinstance(layers, LayerRange):
        return layers
    if isinstance(layers, str):
        return LayerRange.parse(layers)
    if isinstance(layers, range) and layers.step == 1:
        return LayerRange(layers.start, layers.stop)
    if (block := as_whole(layers)) is not None:
        return LayerRange(block, block + 1)
    raise InterventionError(
        f'{layers!r} is no range of layers; write 7, "12:16", "12:", "~12:16" or LayerRange(12, 16)'
    )


def as_number(value: object, what: str) -> int:
    """A whole number, of numpy or torch as well.

    Raises:
        InterventionError: Saying `what` it should have been.
    """
    if (number := as_whole(value)) is None:
        raise InterventionError(f"{value!r} is not {what}; give a whole number")
    return number


EVERYWHERE = LayerRange()
