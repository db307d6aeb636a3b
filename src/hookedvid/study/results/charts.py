"""What a protocol's figure shows, as plain values: curves with intervals, a map of cells, points about a diagonal.

`report` draws them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from hookedvid.study.results.statistics import Interval


@dataclass(frozen=True)
class Line:
    """Points of one kind, joined.

    Attributes:
        control: Whether it is what the others are held against.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[Interval]
    control: bool = False


@dataclass(frozen=True)
class Curves:
    """Lines over one axis.

    Attributes:
        x, y: What the axes are labelled.
        levels: Values of y by name, drawn straight across.
        straight_to: Where given, x is logarithmic from here up and straight from 0 to here.
        falling: Whether x runs from its largest value down.
        apart: Whether lines are drawn a little beside each other, where they share their xs.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    levels: Mapping[str, float] = field(default_factory=dict[str, float])
    straight_to: float | None = None
    falling: bool = False
    apart: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A value in each cell, coloured about zero.

    Attributes:
        x, y, label: What the axes and the colours are labelled.
        rows, columns: Names of the rows, the lowest first, and of the columns.
        marked: Cells that are outlined.
        note: What the outline says.
    """

    title: str
    x: str
    y: str
    label: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Float[np.ndarray, "row column"]
    marked: Sequence[tuple[int, int]] = ()
    note: str = ""


@dataclass(frozen=True)
class Points:
    """Points of one kind."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """Points of several kinds in one square, and what is said of them."""

    name: str
    points: Sequence[Points]
    note: str = ""


@dataclass(frozen=True)
class Scatters:
    """Panels of points about a diagonal, on which x is y.

    Attributes:
        x, y: What the axes of all panels are labelled.
    """

    title: str
    x: str
    y: str
    panels: Sequence[Panel]


Chart = Curves | HeatMap | Scatters
