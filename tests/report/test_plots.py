"""Figures say what they were given: numbers, names, units and n are read back, and every text can be read."""

import warnings

import numpy as np
import pytest
import torch

from hookedvid.errors import InputError
from hookedvid.report import plots
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


def test_a_part_of_many_frames_is_shown_and_all_bars():
    model = random_model("llava-video", n_layers=1)
    video = np.random.default_rng(0).integers(0, 255, (30, 24, 24, 3), np.uint8)
    inputs = model.prepare(video, "what ?", ["a", "b"], folder_fps=2.0, n_frames=30)
    figure = plots.over_frames(inputs, torch.rand(len(inputs.places.position)), "a share", cost=np.ones(30))
    drawn(figure)
    *pictures, scale, bars = figure.axes
    assert len(pictures) == 2 * 12 and len(bars.patches) == 30 and scale.get_ylabel() == "a share"
    shown = [t.get_text() for t in bars.get_xticklabels()]
    assert shown[0] == "0" and shown[-1] == "29" and len(shown) == 12
