"""A video's frames in a row: a number of each token over them, what cutting each costs below."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hookedvid.errors import InputError
from hookedvid.model.attention_maps import AttentionMap
from hookedvid.report.plots.style import (
    FULL,
    GROUPS,
    LABEL,
    SMALL,
    colour_bar,
    drawn,
    dressed,
    head,
    literal,
    size_in,
    written,
)
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.places import TokenPlaces

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEFT, RIGHT, GAP = 0.65, 0.9, 0.05  # inches: margins, and between frames
LEAST, NAMED = 0.4, 0.6  # inches: how wide a frame is, at least, unless they are chosen; and with its time above it
HIGH = 3.0  # inches: how high a frame is, at most
NAMES, BARS, FOOT, LINE = 0.16, 0.85, 0.4, 0.14  # inches: between rows, of the bars and below them, of a title's line
HEAT = "inferno"  # even in lightness, and its light end stands out on frames
COVER = 0.85  # how much of the frame the largest number hides


class _Row(NamedTuple):
    """Where frames are drawn, in inches."""

    left: float
    width: float
    height: float
    slot: float = 0.0  # the room of each, in whose middle it is


def over_frames(
    inputs: VideoInputs,
    values: "AttentionMap | Sequence[float] | Any",
    label: str = "",
    *,
    cost: "Sequence[float] | Any | None" = None,
    cost_label: str = "cost",
    cost_x: str = "frame that text may not look at",
    steps: Sequence[int] | None = None,
    places: TokenPlaces | None = None,
    title: str = "",
    about: str = "",
    width: float = FULL,
) -> "Figure":
    """Frames as they are, the same under a number of each token, and a bar below each of what cutting it costs.

    Every pixel has the number of the token made of it, whatever the family does to frames (`TokenPlaces.on_frame`); the
    more of the largest, the lighter it is and the more of the frame it hides. Frames are the first of each step.

    Args:
        inputs: Of one item, with a video that was decoded.
        values: One a video position, in the order of `places.position`, none below 0; or attention read with
            `reduce="none"`, of which the mean over all its layers, heads and queries is drawn.
        label: What the number is, with its unit; of attention it says what was read unless given.
        cost: One a step of the video (a frame; of Qwen-VL two), all of them; with no bars unless given.
        cost_label: What it is, with its unit.
        cost_x: What a bar is of.
        steps: Which are shown, 0-based; as many as there is room for unless given, from first to last.
        places: `model.places(inputs)`, which merged tokens need; `inputs.places` unless given.
        title: Above it.
        about: Model, frames, dtype and n, under the title.
        width: In inches, `COLUMN` or `FULL` of a paper.

    Raises:
        InputError: Where numbers are not one a token or a step, or there are no frames.
    """
    places, layout = places or inputs.places, inputs.layout
    frames = inputs.frames
    numbers, said = _numbers(values, places)
    costs = None if cost is None else _costs(cost, len(layout.steps))
    shown = _shown(steps, len(layout.steps), width)
    n, (high, wide) = len(shown), frames.shape[1:3]
    side = (width - LEFT - RIGHT - (n - 1) * GAP) / n
    least = min(side, HIGH * wide / high)
    row = _Row(LEFT + (side - least) / 2, least, least * high / wide, side)
    figure = _figure(width, row, costs is not None, title, about)
    top = figure.get_figheight() - LINE * (1 + _lines(figure)) - 0.05
    bottom = top - 2 * row.height - GAP
    firsts = [layout.steps[step].start for step in shown]
    pictures = [places.on_frame(torch.as_tensor(numbers), frame, high, wide).numpy() for frame in firsts]
    titles = [_named(layout.steps[step], inputs.times, side) for step in shown]
    most = float(np.nanmax(numbers, initial=0.0)) or 1.0
    image = _pictures(figure, frames[firsts], pictures, most, titles, row, top)
    _scale(figure, image, label or said, bottom, row)
    if costs is not None:
        names = [_named(step, (), side) for step in layout.steps]
        _bars(figure, costs, shown, names, (cost_x, cost_label), row, bottom)
    return literal(figure)


def _pictures(
    figure: Any, frames: np.ndarray, pictures: Sequence[np.ndarray], most: float, titles: Sequence[str], row: _Row,
    top: float,
) -> Any:  # fmt: skip
    """A row of frames above one of the same under their numbers; a picture of these, whose colours all share."""
    image = None
    for k, (frame, picture) in enumerate(zip(frames, pictures, strict=True)):
        left = row.left + k * (row.slot + GAP)
        bare = _axes(figure, left, top - row.height, row)
        bare.set_title(titles[k], fontsize=SMALL, pad=2)
        under = _axes(figure, left, top - 2 * row.height - GAP, row)
        for axes in (bare, under):
            axes.imshow(frame)
            axes.set_axis_off()
        share = np.nan_to_num(picture / most)
        image = under.imshow(picture, cmap=HEAT, vmin=0, vmax=most, alpha=COVER * share**0.6)
    return image


def _numbers(values: Any, places: TokenPlaces) -> tuple[np.ndarray, str]:
    """One a video position, and what they are."""
    said = "a number of each token"
    if isinstance(values, AttentionMap):
        if values.reduce != "none":
            raise InputError(f'a map read by {values.reduce!r} has no tokens; read attention with reduce="none"')
        said = _read(values)
        rows = torch.stack([m.double().mean((0, 1)) for m in values.maps.values()]).mean(0).cpu()
        values = rows[places.position]
    elif isinstance(values, torch.Tensor):
        values = values.detach().cpu()
    numbers = np.asarray(values, dtype=float)
    if numbers.shape != (len(places.position),):
        raise InputError(f"{numbers.shape} numbers are not one for each of {len(places.position)} video positions")
    if np.isinf(numbers).any():
        raise InputError("infinite numbers have no colour; give NaN where there is none")
    if (numbers < 0).any():
        raise InputError("numbers below 0 have no colour here; draw what is gained and what is lost apart")
    return numbers, said


def _read(read: AttentionMap) -> str:
    """`attention mass, layer 4, mean of 4 heads`, in three lines."""
    which = f"layer {read.layers[0] + 1}" if len(read.layers) == 1 else f"mean of {len(read.layers)} layers"
    heads = f"head {read.heads[0]}" if len(read.heads) == 1 else f"mean of {len(read.heads)} heads"
    return f"attention mass,\n{which},\n{heads}"


def _costs(cost: Any, n_steps: int) -> np.ndarray:
    costs = np.asarray(cost, dtype=float)
    if costs.shape != (n_steps,):
        raise InputError(f"{costs.shape} costs are not one for each of {n_steps} steps of the video")
    return costs


def _shown(steps: Sequence[int] | None, n_steps: int, width: float) -> list[int]:
    """Numbers of steps, evenly from first to last where there is no room for all."""
    room = max(1, int((width - LEFT - RIGHT + GAP) / (LEAST + GAP)))
    chosen = np.linspace(0, n_steps - 1, min(room, n_steps)).round().astype(int).tolist() if steps is None else [*steps]
    if not chosen or not all(0 <= step < n_steps for step in chosen):
        raise InputError(f"steps {chosen} are not all among this video's 0 to {n_steps - 1}")
    return chosen


def _figure(width: float, row: _Row, with_bars: bool, title: str, about: str) -> Any:
    """An empty one, as high as its title and rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 1), dpi=150)
    head(figure, title, about)
    lines = LINE * (1 + _lines(figure)) + 0.05
    figure.set_figheight(lines + 2 * row.height + GAP + (NAMES + BARS + FOOT if with_bars else 0.06))
    if figure.get_suptitle():
        figure.suptitle(figure.get_suptitle(), fontsize=LABEL, y=1 - 0.03 / figure.get_figheight(), va="top")
    return figure


def _lines(figure: Any) -> int:
    text = figure.get_suptitle()
    return text.count("\n") + 1 if text else 0


def _axes(figure: Any, left: float, bottom: float, row: _Row) -> Any:
    """An axis at a place in inches."""
    width, height = figure.get_size_inches()
    return figure.add_axes((left / width, bottom / height, row.width / width, row.height / height))


def _named(step: range, times: Sequence[float], side: float) -> str:
    """`3 · 1.5 s`, the time where it is known and there is room."""
    number = f"{step.start}" if len(step) == 1 else f"{step.start}–{step.stop - 1}"
    return f"{number} · {times[step.start]:.2f} s" if times and side >= NAMED else number


def _scale(figure: Any, image: Any, label: str, bottom: float, row: _Row) -> None:
    """The colours' scale, right of the row that they are in."""
    left = figure.get_figwidth() - RIGHT + 0.08
    high = row.height if row.height >= 1 else 2 * row.height + GAP
    axes = _axes(figure, left, bottom, _Row(left, 0.09, high))
    colour_bar(figure, image, None, "", cax=axes)
    axes.set_ylabel("\n".join(map(drawn, label.split("\n"))), fontsize=SMALL - 1)
    axes.locator_params(axis="y", nbins=3)


def _bars(
    figure: Any, costs: np.ndarray, shown: Sequence[int], names: Sequence[str], labels: tuple[str, str], row: _Row,
    bottom: float,
) -> None:  # fmt: skip
    """A bar for every step, under its frame where all are shown."""
    x, label = labels
    across = figure.get_figwidth() - LEFT - RIGHT
    axes = _axes(figure, LEFT, bottom - NAMES - BARS, _Row(LEFT, across, BARS))
    dressed(axes)
    axes.spines[["top", "right"]].set_visible(False)
    axes.bar(range(len(costs)), costs, width=0.7, color=GROUPS[0])
    axes.axhline(0, color="k", lw=0.8)
    axes.margins(y=0.2)
    axes.locator_params(axis="y", nbins=4)
    numbers = written(costs)
    if size := size_in(72 * across / len(costs), SMALL * 2, numbers):
        for i, number in enumerate(numbers):
            axes.text(i, max(0.0, float(np.nan_to_num(costs[i]))), number, ha="center", va="bottom", fontsize=size)
    every = [*shown] == [*range(len(costs))]
    margin = row.slot / (row.slot + GAP) / 2 if every else 0.6
    axes.set_xlim(-margin, len(costs) - 1 + margin)
    axes.set_xticks(list(shown), [names[i] for i in shown])
    axes.set_ylabel(drawn(label), fontsize=SMALL)
    axes.set_xlabel(drawn(x), fontsize=LABEL)
