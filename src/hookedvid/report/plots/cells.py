"""Heat maps: a table's numbers as coloured cells, written in them where they can be read."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hookedvid.errors import InputError
from hookedvid.model.attention_maps import AttentionMap
from hookedvid.model.attribution.result import Attribution
from hookedvid.model.lens import LensTable
from hookedvid.report.plots.style import (
    COLUMN,
    DIVERGING,
    FULL,
    MISSING,
    NAME,
    SEQUENTIAL,
    canvas,
    colour_bar,
    drawn,
    fit_names,
    ink,
    size_in,
    titled,
    written,
)
from hookedvid.values.columns import REST

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

FRAME = re.compile(r"video\[([\d:]+)\]")
MOST_TICKS = 32  # of a map's side that are named, in a figure of full width
ROW, HEAD = 0.24, 1.25  # inches: of a row of cells, and of what stands above and below them
HIGHEST = 6.0  # inches, of a figure


def cells(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    *,
    x: str = "",
    y: str = "",
    title: str = "",
    about: str = "",
    centre: float | None = None,
    limits: Sequence[float | int | None] = (None, None),
    words: Sequence[Sequence[str]] | None = None,
    marked: Sequence[tuple[int, int]] = (),
    down: bool = False,
    width: float = COLUMN,
) -> "Figure":
    """A heat map.

    Args:
        values: [row, column]; NaN is grey.
        rows: Their names, the lowest first, as layers are.
        columns: Their names.
        label: What the numbers are, with their unit.
        x, y: What columns and rows are.
        title: Above it.
        about: Model, frames, dtype and n, under the title.
        centre: Where given, colours part there, as far on both sides; else they rise from the least to the largest.
        limits: The ends of the colours, where the values' own are not meant; about a centre the farther one holds on
            both sides. The scale ends in a point where numbers lie beyond.
        words: Written in the cells in place of the numbers.
        marked: Cells that are outlined, by row and column.
        down: Whether the first row is the highest.
        width: In inches, `COLUMN` or `FULL` of a paper.
    """
    from matplotlib.patches import Rectangle

    values = np.asarray(values, dtype=float)
    n_rows, n_columns = values.shape
    figure, (axes,) = canvas(width, min(HIGHEST, HEAD + max(3, n_rows) * ROW))
    look = {**_colours(values, centre, limits), "aspect": "auto", "origin": "upper" if down else "lower"}
    image = axes.imshow(np.ma.masked_invalid(values), **look)
    _ticks(axes, rows, columns, width)
    texts: Any = words or np.array(written(values.ravel())).reshape(values.shape).tolist()
    size = _size(figure, texts, n_rows, n_columns)
    for (i, j), value in np.ndenumerate(values) if size else ():
        cell = image.to_rgba(value) if np.isfinite(value) else MISSING
        shown = drawn(texts[i][j])
        axes.text(j, i, shown, ha="center", va="center", fontsize=size, color=ink(cell), clip_on=True)
    for i, j in marked:
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, ec="k", lw=1.2, clip_on=False))
    colour_bar(figure, image, axes, label)
    axes.set(xlabel=drawn(x), ylabel=drawn(y))
    return titled(figure, axes, title, about, columns=0)


def heat_map(table: "DataFrame", label: str, **how: Any) -> "Figure":
    """A table as it stands as a heat map: its rows upwards, its columns across, their names beside them.

    Args:
        table: Of numbers.
        label: What they are, with their unit.
        how: As of `cells`: x, y, title, about, centre, limits, words, marked, down, width.
    """
    if not table.size:
        raise InputError("this table has no cells to draw")
    return cells(table.to_numpy(float), *_names(table), label, **how)


def frames_by_layers(
    table: "AttentionMap | Attribution | DataFrame", label: str = "attention mass", *, value: str = "mass", **how: Any
) -> "Figure":
    """A number of each frame in each layer: attention read by frames, or the effect of cutting one.

    Args:
        table: `model.attention(…, reduce="frames")`, `model.attribute(…)` (heads summed), or a long table with the
            columns layer (0-based) and column (`video[0]`, …); the mean over whatever else it tells apart (heads,
            queries). `rest` is left out.
        label: What the number is, with its unit.
        value: The table's column that holds it.
        how: As of `cells`.

    Raises:
        InputError: For columns that are no frames, such as attention that was read by segments.
    """
    if isinstance(table, Attribution):
        value, how = "value", {"centre": 0.0, **how}
        table = table.to_frame(sum_heads=True)
    long = _long(table, ("layer", "column", value))
    if other := [c for c in dict.fromkeys(map(str, long["column"])) if c != REST and not FRAME.fullmatch(c)]:
        more = f" and {len(other) - 4} more" * (len(other) > 4)
        raise InputError(f"{', '.join(other[:4])}{more} are no frames: read by frames, or draw heat_map of a table")
    wide = long.groupby(["layer", "column"], sort=False)[value].mean().unstack()
    wide = wide[[c for c in dict.fromkeys(long["column"]) if c != REST]].sort_index()
    return heat_map(_plain(wide), label, **{"x": "frame (from 0)", "y": "layer (from 1)", **how})


def heads_by_layers(
    table: "AttentionMap | Attribution | DataFrame", label: str = "attention mass", *, value: str = "mass", **how: Any
) -> "Figure":
    """A number of each head in each layer: the attention mass of what was read, or the effect of cutting the head.

    Args:
        table: `model.attention(…, reduce="frames")`, `model.attribute(…)`, or a long table with the columns layer
            (0-based) and head; where it has columns of mass they are summed but for `rest`, so take the rows of one to
            see it alone. The mean over queries.
        label: What the number is, with its unit.
        value: The table's column that holds it.
        how: As of `cells`.

    Raises:
        InputError: For attention that was read by segments, which sum to 1 whatever was read.
    """
    if isinstance(table, AttentionMap) and table.labels and REST not in table.labels:
        raise InputError(
            f"{', '.join(table.labels)} sum to 1 in every head: take the rows of some, "
            'such as table = read.to_frame(); table[table["column"] == "patches"]'
        )
    if isinstance(table, Attribution):
        table, value, how = table.to_frame(), "value", {"centre": 0.0, **how}
    long = _long(table, ("layer", "head", value))
    axes = [axis for axis in ("layer", "head", "query") if axis in long]
    if "column" in long:
        long = long[long["column"] != REST].groupby(axes, sort=False)[value].sum().reset_index()
    wide = long.groupby(["layer", "head"], sort=False)[value].mean().unstack().sort_index().sort_index(axis=1)
    return heat_map(_plain(wide), label, **{"x": "head (from 0)", "y": "layer (from 1)", **how})


def lens_grid(table: "LensTable | DataFrame", label: str = "probability", **how: Any) -> "Figure":
    """What a logit lens reads: the likeliest word of each position in each layer, coloured by its probability.

    Args:
        table: As `model.lens` gives it; or long, with the columns layer (0-based), position, word and prob.
        label: What the colour is.
        how: As of `cells`.
    """
    long = _long(table, ("layer", "position", "word", "prob"))
    if "rank" in long:
        long = long[long["rank"] == 0]
    n_cells = long["layer"].nunique() * long["position"].nunique()
    if long.duplicated(["layer", "position"]).any() or len(long) != n_cells:
        raise InputError("a lens's grid needs one word for each position in each layer")
    wide = long.set_index(["layer", "position"])[["word", "prob"]].unstack()
    order = list(dict.fromkeys(long["position"]))
    probs, words = wide["prob"][order].sort_index(), wide["word"][order].sort_index()
    texts = [[str(w) for w in line] for line in words.to_numpy()]
    how = {"x": "position", "y": "after layer", "limits": (0, 1), "width": FULL, **how}
    return heat_map(_plain(probs), label, words=texts, **how)


def patching_map(table: "DataFrame", label: str, **how: Any) -> "Figure":
    """What patching one place in one layer does: layers upwards, places across.

    Args:
        table: Rows of layers (0-based), columns of places (selectors), as `patch_sweep` returns numbers.
        label: What was measured, with its unit.
        how: As of `cells`; colours part at `centre`, 0 unless given.
    """
    return heat_map(_plain(table), label, **{"x": "patched at", "y": "after layer", "centre": 0.0, **how})


def _long(table: "AttentionMap | LensTable | DataFrame", needed: Sequence[str]) -> Any:  # a DataFrame has no types
    long = table.to_frame() if isinstance(table, AttentionMap | LensTable) else table
    if missing := [c for c in needed if c not in long]:
        raise InputError(f"this table has {', '.join(map(str, long.columns))}; it lacks {', '.join(missing)}")
    return long


def _plain(wide: Any) -> Any:
    """Layers counted from 1, and frames by their numbers alone where the columns are frames."""
    columns = [str(c) for c in wide.columns]
    if all(map(FRAME.fullmatch, columns)):
        columns = [FRAME.sub(r"\1", c) for c in columns]
    return wide.set_axis([int(i) + 1 for i in wide.index], axis=0).set_axis(columns, axis=1)


def _names(table: "DataFrame") -> tuple[list[str], list[str]]:
    return [str(i) for i in table.index], [str(c) for c in table.columns]


def _colours(values: np.ndarray, centre: float | None, limits: Sequence[float | int | None]) -> dict[str, Any]:
    """The colour map and its ends."""
    import matplotlib

    known = values[np.isfinite(values)]
    cmap = matplotlib.colormaps[SEQUENTIAL if centre is None else DIVERGING].with_extremes(bad=MISSING)
    if centre is None:
        low, high = limits
    else:
        ends = [e for e in limits if e is not None]
        most = np.abs((np.array(ends) if ends else known) - centre).max(initial=0.0) or 1.0
        low, high = centre - most, centre + most
    return {"cmap": cmap, "vmin": low, "vmax": high}


def _ticks(axes: Any, rows: Sequence[str], columns: Sequence[str], width: float) -> None:
    """Names along both sides, as many as there is room for; upright where they would stand over each other."""
    most = max(1, int(MOST_TICKS * width / FULL))
    sides: list[tuple[Callable[..., Any], Sequence[str], int]] = [
        (axes.set_xticks, columns, most), (axes.set_yticks, rows, MOST_TICKS)
    ]  # fmt: skip
    for ticks, names, n in sides:
        every = -(-len(names) // n)
        ticks(range(0, len(names), every), [drawn(name, NAME) for name in names[::every]])
    fit_names(axes, columns[:: -(-len(columns) // most)], width)


def _size(figure: Any, texts: Sequence[Sequence[str]], n_rows: int, n_columns: int) -> float:
    """The size of the texts in cells, in points; 0 where they cannot be read."""
    wide, high = (72 * inches for inches in figure.get_size_inches())
    return size_in((wide - 100) / n_columns, (high - 72 * HEAD) / n_rows, [t for line in texts for t in line])
