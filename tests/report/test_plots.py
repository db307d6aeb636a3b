"""Figures say what they were given: numbers, names, units and n are read back, and every text can be read."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from hookedvid.errors import ConfigError, InputError
from hookedvid.report import plots
from hookedvid.report.plots import style
from models import random_model

pytestmark = pytest.mark.shapes_unchecked

SIZE = (48, 90)  # of the frames: neither square nor a multiple of anything
ABOUT = "random weights, 4 frames, float32, sdpa, n = 1 question"


@pytest.fixture(scope="module", params=["llava-video", "qwen3-vl"])
def asked(request):
    """A model and a question; the steps of Qwen are pairs of frames."""
    video = np.random.default_rng(0).integers(0, 255, (4, *SIZE, 3), np.uint8)
    model = random_model(request.param, n_layers=2)
    return model, model.prepare(video, "what is there ?", ["ring", "square"], folder_fps=2.0, n_frames=4)


def drawn(figure) -> set[str]:
    """Every text in a figure, once it is drawn; none may stick out of it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FigureCanvasAgg(figure).draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 > -0.01 and box.y0 > -0.01 and box.x1 < width + 0.01 and box.y1 < height + 0.01, box
    return {t.get_text() for t in figure.findobj(Text) if t.get_visible() and t.get_text()}


@pytest.mark.parametrize("width", [plots.COLUMN, plots.FULL])
def test_frames_carry_their_tokens_numbers_and_their_bars(asked, width):
    model, inputs = asked
    read, steps = model.attention(inputs, layers=1), inputs.layout.steps
    cost = [0.5 * i - 0.25 for i in range(len(steps))]
    figure = plots.over_frames(
        inputs, read, cost=cost, cost_label="log-prob. lost, nats", title="what is there ?", about=ABOUT, width=width
    )
    texts = drawn(figure)
    assert {"attention mass,\nlayer 2,\nmean of 8 heads", "log-prob. lost, nats", f"{cost[-1]:.2f}"} <= texts
    assert " ".join(figure.get_suptitle().split()) == f"what is there ? {ABOUT}"
    *pictures, _, bars = figure.axes
    assert len(pictures) == 2 * len(steps) and [p.get_height() for p in bars.patches] == cost
    mass = read[1].double().mean((0, 1))[inputs.places.position]
    for k, step in enumerate(steps):
        bare, under = pictures[2 * k], pictures[2 * k + 1]
        for axes in (bare, under):
            assert np.array_equal(axes.images[0].get_array(), inputs.frames[step.start])
        expected = inputs.places.on_frame(mass, step.start, *SIZE).numpy()
        assert np.array_equal(np.asarray(under.images[1].get_array()), expected, equal_nan=True)
        assert (under.images[1].norm.vmin, under.images[1].norm.vmax) == (0, mass.max().item())
        middle = (under.bbox.x0 + under.bbox.x1) / 2
        assert bars.transData.transform((k, 0))[0] == pytest.approx(middle, abs=0.01)
    numbers = [str(s.start) if len(s) == 1 else f"{s.start}–{s.stop - 1}" for s in steps]
    room = width > plots.COLUMN or len(steps) < 4
    assert {f"{n} · {s.start / 2:.2f} s" if room else n for n, s in zip(numbers, steps, strict=True)} <= texts


def test_numbers_that_are_not_one_a_token_are_refused(asked):
    model, inputs = asked
    one = torch.ones(len(inputs.places.position))
    with pytest.raises(InputError, match="are not one for each of"):
        plots.over_frames(inputs, one[1:])
    with pytest.raises(InputError, match="no colour here"):
        plots.over_frames(inputs, -one)
    with pytest.raises(InputError, match="steps of the video"):
        plots.over_frames(inputs, one, cost=[1.0])
    with pytest.raises(InputError, match="not all among this video's 0 to"):
        plots.over_frames(inputs, one, steps=[9])
    with pytest.raises(InputError, match="has no tokens; read attention"):
        plots.over_frames(inputs, model.attention(inputs, reduce="frames"))


def test_tall_frames_stay_on_the_page_above_their_bars():
    model = random_model("llava-video")
    video = np.random.default_rng(0).integers(0, 255, (2, 201, 33, 3), np.uint8)
    inputs = model.prepare(video, "what ?", ["a", "b"], folder_fps=2.0, n_frames=2)
    figure = plots.over_frames(inputs, torch.ones(len(inputs.places.position)), "a share", cost=np.ones(2))
    assert figure.get_figheight() < 9
    *pictures, _, bars = figure.axes
    for k in range(2):
        box, bar = pictures[2 * k].get_position(), bars.patches[k].get_window_extent()
        middle = figure.transFigure.inverted().transform((bar.x0 + bar.width / 2, 0))[0]
        assert (box.x0 + box.x1) / 2 == pytest.approx(middle, abs=0.01)


def test_a_part_of_many_frames_is_shown_and_all_bars():
    model = random_model("llava-video", n_layers=1)
    video = np.random.default_rng(0).integers(0, 255, (30, 24, 24, 3), np.uint8)
    inputs = model.prepare(video, "what ?", ["a", "b"], folder_fps=2.0, n_frames=30)
    figure = plots.over_frames(inputs, torch.rand(len(inputs.places.position)), "a share", cost=np.ones(30))
    drawn(figure)
    *pictures, scale, bars = figure.axes
    assert len(pictures) == 2 * 11 and len(bars.patches) == 30 and scale.get_ylabel() == "a share"
    shown = [t.get_text() for t in bars.get_xticklabels()]
    assert shown[0] == "0" and shown[-1] == "29" and len(shown) == 11


# ---- heat maps and curves --------------------------------------------------------------------------------------


def long(layers: int, column: str, names, **values) -> pd.DataFrame:
    return pd.DataFrame([(i, name) for i in range(layers) for name in names], columns=["layer", column]).assign(
        **values
    )


def read(figure) -> tuple[np.ndarray, list[str], list[str], list[str]]:
    """Colours' numbers, the names of rows and columns, and what stands in the cells."""
    axes = figure.axes[0]
    names = [[t.get_text() for t in ticks] for ticks in (axes.get_yticklabels(), axes.get_xticklabels())]
    return np.ma.filled(axes.images[0].get_array(), np.nan), *names, [t.get_text() for t in axes.texts]


@pytest.mark.parametrize("width", [plots.COLUMN, plots.FULL])
def test_maps_say_what_their_tables_say(width):
    effect = [-3.5, 0.001, 0.0, 0.25, float("nan"), 1.0]
    table = long(2, "column", ["video[0]", "video[1:3]", "rest"], effect=effect)
    figure = plots.frames_by_layers(table, "change, nats", value="effect", centre=0, about=ABOUT, width=width)
    values, rows, columns, texts = read(figure)
    assert np.array_equal(values, [[-3.5, 0.001], [0.25, np.nan]], equal_nan=True)
    assert (rows, columns, texts) == (["1", "2"], ["0", "1:3"], ["-3.50", "0.00", "0.25", "–"])
    image = figure.axes[0].images[0]
    assert (image.norm.vmin, image.norm.vmax) == (-3.5, 3.5) and image.origin == "lower"
    said = drawn(figure)
    assert {"frame (from 0)", "layer (from 1)", "change, nats"} <= said and ABOUT in " ".join(
        figure.get_suptitle().split()
    )
    heads = long(2, "head", [0, 1], mass=[0.1, 0.2, 0.3, 0.4])
    parts = pd.concat([heads.assign(query=q, column=c) for q in (5, 6) for c in ("video[0]", "video[1]", "rest")])
    values, rows, columns, _ = read(plots.heads_by_layers(parts, width=width))
    assert np.allclose(values, [[0.2, 0.4], [0.6, 0.8]]) and (rows, columns) == (["1", "2"], ["0", "1"])
    words = long(2, "position", [7, 8], word=["a", "<b>", "$c$", "_"], prob=[0.1, 0.2, 0.3, 0.9])
    figure = plots.lens_grid(words, about=ABOUT, width=width)
    assert read(figure)[3] == ["a", "<b>", "$c$", " _"] and {"probability", "after layer", "position"} <= drawn(figure)
    places = pd.DataFrame([[0.0, -2.0], [1.0, 0.5]], columns=["video", "last"])
    figure = plots.patching_map(places, "change, nats", about=ABOUT, width=width)
    assert read(figure)[1:3] == (["1", "2"], ["video", "last"]) and "patched at" in drawn(figure)


def test_selectors_of_places_stay_whole_where_not_all_are_frames():
    mixed = pd.DataFrame([[0.0, -2.0, 1.0]], columns=["video[0]", "patches[0][1,2]", "option[1]"])
    assert read(plots.patching_map(mixed, ""))[2] == ["video[0]", "patches[0][1,2]", "option[1]"]


def test_names_that_would_stand_over_each_other_are_upright_and_short():
    long_names = pd.DataFrame(np.ones((1, 12)), columns=[f"{i} " + "fine-grained " * 20 for i in range(12)])
    axes = plots.heat_map(long_names, "", width=plots.FULL).axes[0]
    ticks = axes.get_xticklabels()
    assert {t.get_rotation() for t in ticks} == {90} and max(len(t.get_text()) for t in ticks) == style.NAME
    assert style.written([3e-8, -1e-9, float("nan"), 0]) == ["3.0e-08", "-1.0e-09", "–", "0.0e+00"]


def test_segments_are_neither_frames_nor_a_heads_share(asked):
    model, inputs = asked
    read = model.attention(inputs, reduce="segments")
    with pytest.raises(InputError, match="are no frames: read by frames"):
        plots.frames_by_layers(read)
    with pytest.raises(InputError, match="sum to 1"):
        plots.heads_by_layers(read)


def test_a_scale_says_where_numbers_lie_beyond_it():
    table = pd.DataFrame([[0.5, 1.4], [float("nan"), -0.2]])
    for limits, extend in (((0, 1), "both"), ((None, 1), "max"), ((0, None), "min"), ((None, None), "neither")):
        figure = plots.heat_map(table, "a share", limits=limits)
        assert figure.axes[0].images[0].colorbar.extend == extend
    image = plots.heat_map(table, "", centre=0.0, limits=(None, 1)).axes[0].images[0]
    assert (image.norm.vmin, image.norm.vmax, image.colorbar.extend) == (-1, 1, "max"), "colours part at the centre"
    assert plots.heat_map(table * float("nan"), "").axes[0].images[0].colorbar.extend == "neither"


def test_attention_is_read_as_it_is(asked):
    model, inputs = asked
    map = model.attention(inputs, queries="question", reduce="frames")
    n = len(inputs.layout.steps)
    values, _, columns, _ = read(plots.frames_by_layers(map))
    expected = torch.stack([map[i].mean((0, 1))[:n] for i in map.layers])
    assert np.allclose(values, expected, atol=1e-7) and len(columns) == n
    expected = torch.stack([map[i].mean(1)[:, :n].sum(-1) for i in map.layers])
    assert np.allclose(read(plots.heads_by_layers(map))[0], expected, atol=1e-6)


def test_curves_count_layers_from_1_and_carry_intervals():
    table = long(3, "name", ["video", "last"], value=range(6)).assign(low=-1.0, high=[6.0] * 6)
    figure = plots.tracing_curves(table, "recovery", about=ABOUT)
    said = drawn(figure)
    assert {"put back after layer", "recovery", "video", "last"} <= said
    line, _, (bars,) = figure.axes[0].containers[1].lines
    assert [*line.get_xdata()] == [1, 2, 3] and [*line.get_ydata()] == [1, 3, 5]
    assert np.array_equal([s[:, 1] for s in bars.get_segments()], [[-1, 6]] * 3)
    dose = pd.DataFrame({"name": "LV-K", "weight": [0, 1e-4, 1, 0.1], "value": [3.0, 2.0, 0.0, 1.0]})
    axes = plots.dose_curves(dose, "log-prob. lost, nats").axes[0]
    assert [*axes.containers[0].lines[0].get_ydata()] == [3, 2, 1, 0] and axes.xaxis_inverted()
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "0.0001", "0.1", "1"]


def test_tables_that_lack_something_are_refused():
    whole = long(1, "column", ["video[0]"], mass=1.0)
    for draw, needed in ((plots.heads_by_layers, "head"), (plots.lens_grid, "position, word, prob")):
        with pytest.raises(InputError, match=f"it lacks {needed}"):
            draw(whole)
    with pytest.raises(InputError, match="it lacks name, weight, value"):
        plots.dose_curves(whole, "")
    with pytest.raises(InputError, match="one word for each position"):
        plots.lens_grid(long(1, "position", [1, 1], word="a", prob=0.5))
    with pytest.raises(InputError, match="no cells"):
        plots.heat_map(pd.DataFrame(), "")


# ---- ink and files ---------------------------------------------------------------------------------------------


def test_ink_stands_out_from_every_cell():
    assert style.contrast("black", "white") == pytest.approx(21) and style.contrast("0.5", "0.5") == 1
    assert style.luminance("#d55e00") == pytest.approx(0.2215, abs=1e-4)  # by hand, of WCAG's formula
    values = np.linspace(-1, 1, 121).reshape(11, 11)
    for how in ({}, {"centre": 0.0}):
        axes = plots.heat_map(pd.DataFrame(values), "", width=plots.FULL, **how).axes[0]
        assert len(axes.texts) == values.size
        for text in axes.texts:
            x, y = map(int, text.get_position())
            cell = axes.images[0].to_rgba(values[y, x])
            assert style.contrast(text.get_color(), cell) >= 4.5
    assert not plots.heat_map(pd.DataFrame(np.ones((60, 60))), "").axes[0].texts, "too small to read"


def test_files_are_the_same_again_and_embed_their_fonts(tmp_path):
    def figure():
        return plots.heat_map(pd.DataFrame([[0.1, 0.9]]), "a share", about=ABOUT)

    for kind in plots.FORMATS:
        path = plots.save(figure(), tmp_path / f"figure.{kind}")
        assert path.read_bytes() == plots.contents(figure(), kind)
    pdf = (tmp_path / "figure.pdf").read_bytes()
    assert b"/FontFile2" in pdf and b"/CIDFontType2" in pdf and b"/Type3" not in pdf
    assert b"/MediaBox [ 0 0 237.6 " in pdf  # 3.3 inches
    with pytest.raises(ConfigError, match=r"give one of \.png, \.pdf, \.svg"):
        plots.save(figure(), tmp_path / "figure.gif")
