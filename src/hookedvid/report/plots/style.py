"""How figures look: widths of a paper, colours that all can tell apart, text that reads on any cell, files."""

import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

from hookedvid.errors import ConfigError
from hookedvid.values.files import write_bytes
from hookedvid.values.texts import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN, FULL = 3.3, 6.9  # inches: one column of a paper of two, and both
SEQUENTIAL, DIVERGING = "viridis", "RdBu"  # even in lightness; losses are red, gains blue
MISSING = "0.85"  # the grey of cells without a value
# Okabe and Ito's colours (2008), which colour-blind readers tell apart; those too light for a line on white are darker.
COLOURS = {"LV-K": "#d55e00", "VT-K": "#0072b2", "VS-K": "#009e73"}
GROUPS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#b8860b", "#4a5568")
STYLES = tuple((colour, line) for line in ("-", "--", ":", "-.") for colour in GROUPS)  # of groups, one after another
LABEL, SMALL, SMALLEST = 8.0, 7.0, 4.5  # points: of axes and titles; of ticks and legends; the least that is read
PER_INCH = 15  # characters of a title
NAME = 32  # characters of a tick's name
LONGEST = 100  # characters of a label or a title's line
FORMATS = ("png", "pdf", "svg")


class Canvas(NamedTuple):
    """A figure and its panels, from the left."""

    figure: Any
    panels: list[Any]


def canvas(width: float = FULL, height: float = 4.2, panels: int = 1, shared: bool = True, rows: int = 1) -> Canvas:
    """An empty figure, in inches, of panels in rows; they share their y unless told."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    made = [*figure.subplots(rows, -(-panels // rows), sharey=shared, squeeze=False).flat]
    for axes in made[panels:]:
        axes.remove()
    made = made[:panels]
    for axes in made:
        axes.spines[["top", "right"]].set_visible(False)
        dressed(axes)
    return Canvas(figure, made)


def dressed(axes: Any) -> None:
    """Give an axis its sizes of text."""
    axes.tick_params(labelsize=SMALL)
    for side in (axes.xaxis, axes.yaxis):
        side.label.set_size(LABEL)
        side.offsetText.set_size(SMALL)


def fit_names(axes: Any, names: Sequence[str], width: float) -> None:
    """Turn the names below an axis upright where they would stand over each other in a figure so wide (inches)."""
    if sum(min(NAME, len(name)) + 1 for name in names) > 13 * width - 10:
        axes.tick_params(axis="x", labelrotation=90)


def colour_bar(figure: Any, image: Any, axes: Any, label: str, **where: Any) -> None:
    """The scale of a picture's colours, beside it or in an axis of its own (`cax`).

    It ends in a point where numbers lie beyond its colours.
    """
    from numpy import ma

    low, high = image.get_clim()
    known = ma.masked_invalid(image.get_array()).compressed()
    below, above = (known < low).any(), (known > high).any()
    where["extend"] = ("both" if above else "min") if below else "max" if above else "neither"
    bar = figure.colorbar(image, **({} if "cax" in where else {"ax": axes}), label=drawn(label), **where)
    dressed(bar.ax)


def titled(figure: Any, axes: Any, title: str, about: str, columns: int = 2) -> Any:
    """The figure with its title, and a legend of so many columns; of none without."""
    head(figure, title, about)
    if columns and len(axes.get_legend_handles_labels()[1]) > len(GROUPS):  # too many to lie over the lines
        axes.legend(frameon=False, fontsize=SMALL - 1, loc="upper left", bbox_to_anchor=(1, 1))
    elif columns and figure.get_figwidth() < FULL:  # no room for it among the lines
        axes.legend(frameon=False, fontsize=SMALL, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1))
    elif columns:
        axes.legend(frameon=False, fontsize=SMALL, ncols=columns)
    return literal(figure)


def head(figure: Any, title: str, about: str) -> None:
    """A title over what the figure is of (model, frames, dtype, n), in as many lines as its width asks for."""
    wide = int(PER_INCH * figure.get_figwidth())
    lines = [part for line in (title, about) if line for part in wrap(drawn(line), wide)]
    if lines:
        figure.suptitle("\n".join(lines), fontsize=LABEL)


def literal(figure: Any) -> Any:
    """The figure, every text in it as it stands: what is between two dollars is no formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def luminance(colour: Any) -> float:
    """How light a colour is, 0 to 1: relative luminance as of WCAG 2 (its part above a white page, where it is clear).

    Args:
        colour: As matplotlib takes it.
    """
    from matplotlib.colors import to_rgba

    *rgb, alpha = to_rgba(colour)
    linear = [((c + 0.055) / 1.055) ** 2.4 if c > 0.04045 else c / 12.92 for c in (alpha * c + 1 - alpha for c in rgb)]
    return sum(c * weight for c, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


def contrast(a: Any, b: Any) -> float:
    """Of two colours, 1 to 21 (WCAG 2); text needs 4.5."""
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def ink(cell: Any) -> str:
    """The colour of text on a cell: black or white, whichever stands out more: by 4.58 at least."""
    return max(("black", "white"), key=lambda colour: contrast(colour, cell))


@cache
def _characters(font: str) -> frozenset[int]:
    from matplotlib.font_manager import get_font

    return frozenset(get_font(font).get_charmap())


def drawn(text: str, longest: int = LONGEST) -> str:
    r"""A text as labels show it: one line, not long, what the font lacks as its escape (`\u7aef`)."""
    from matplotlib.font_manager import FontProperties, findfont

    known = _characters(findfont(FontProperties()))
    shown = "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in one_line(text))
    shown = shown if len(shown) <= longest else shown[: longest - 1] + "…"
    return f" {shown}" if shown.startswith("_") else shown  # matplotlib leaves labels out that begin so


def written(values: Any) -> list[str]:
    """Numbers as texts, all with as many decimals as the largest needs for two digits, two at least; – of NaN.

    Where six decimals do not show two digits, powers of ten do.
    """
    known = [abs(float(v)) for v in values if math.isfinite(v)]
    most = max(known, default=0.0) or 1.0
    if most < 1e-5:
        return [f"{v:z.1e}" if math.isfinite(v) else "–" for v in values]
    decimals = min(6, max(2, 1 - math.floor(math.log10(most)))) if most < 100 else 0
    return [f"{v:z.{decimals}f}" if math.isfinite(v) else "–" for v in values]


def size_in(width: float, height: float, texts: Sequence[str]) -> float:
    """The size at which the longest of some texts fits a cell, in points; 0 where it would be too small to read.

    Args:
        width, height: Of a cell, in points.
    """
    size = min(SMALL, 0.9 * width / (0.62 * max(map(len, texts), default=1) or 1), 0.75 * height)
    return size if size >= SMALLEST else 0.0


def contents(figure: "Figure", kind: str = "png", dpi: float | None = None) -> bytes:
    """A figure as a file's bytes, the same when it is made anew; fonts of PDF are embedded as TrueType (Type 42).

    Args:
        figure: Any of matplotlib's.
        kind: png, pdf or svg.
        dpi: Of png, the figure's own unless given.
    """
    from matplotlib import rc_context

    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    buffer = io.BytesIO()
    with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "hookedvid"}):
        figure.savefig(buffer, format=kind, dpi=dpi or "figure", metadata=dates.get(kind))
    return buffer.getvalue()


def save(figure: "Figure", path: str | Path, dpi: float | None = None) -> Path:
    """Write a figure as `contents` has it; where it is.

    Raises:
        ConfigError: For a path that ends in none of .png, .pdf, .svg.
    """
    path = Path(path)
    if (kind := path.suffix[1:].lower()) not in FORMATS:
        raise ConfigError(f"{path} says no kind of picture by its end; give one of .{', .'.join(FORMATS)}")
    write_bytes(path, contents(figure, kind, dpi))
    return path
