"""A real browser opens views: what they show, how they answer, where they put a token."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from browser import opened
from hookedvid.viewer.index import write_index
from models import UNLIKE, random_model

pytestmark = pytest.mark.shapes_unchecked

SIZE = (48, 90)  # of the frames: neither square nor a multiple of anything
TITLE = "what is there ?"


def inputs_of(model):
    video = np.random.default_rng(0).integers(0, 255, (4, *SIZE, 3), np.uint8)
    return model.prepare(video, TITLE, ["ring", "square"], folder_fps=2.0, n_frames=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A page of each kind of sequence, with all that a page can show."""
    folder = tmp_path_factory.mktemp("views")
    for i, name in enumerate(UNLIKE):
        model = random_model(name, n_layers=2)
        about = {"id": name, "family": "even" if i % 2 == 0 else "odd"}
        inputs = inputs_of(model)
        if name == "llava-video":  # with a sink, in the first frame
            inputs = model.encoded(inputs)
            features = inputs.features[0].clone()
            features[1] *= 50
            inputs = replace(inputs, features=(features,))
        cuts = ("text", "last")[: 2 if name == "qwen3-vl" else 1]
        view = model.view(inputs, answer=0, about=about, cuts=cuts)
        view.save(folder / f"{name}.html")
    (folder / "framed").mkdir()
    (folder / "framed" / "view.html").write_text(f"<!doctype html><title>a notebook</title>{view._repr_html_()}")
    write_index(folder)
    return folder


def until(tab, condition: str) -> None:
    """The page's own rules forbid what playwright would wait by."""
    for _ in range(100):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(20)
    raise AssertionError(condition)


def shown(tab, id: str) -> str:
    return tab.text_content(f"#{id}")


@pytest.mark.parametrize("name", UNLIKE[::2])
def test_a_page_opens_at_both_widths_and_in_both_themes(tab, folder, name):
    for width in (400, 1600):
        papers = []
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            opened(tab, folder / f"{name}.html", width=width)
            assert not tab.wrong
            assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            papers.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert papers[0] != papers[1]


def test_everything_is_reached_by_keyboard(tab, folder):
    opened(tab, folder / "llava-video.html")
    press = tab.keyboard.press
    for key in "Home ArrowRight ArrowRight ArrowLeft ArrowUp ArrowDown ] ] [ q x Escape s d".split():
        press(key)
    said = tab.evaluate("({...state})")
    assert (said["frame"], said["layer"], said["head"], said["query"]) == (1, 0, 0, 1)
    assert said["sinks"] == "hidden" and shown(tab, "token").startswith("row 0, column 1 · frame 1")
    last = tab.evaluate("frames.length - 1")
    press("m")
    press("End")
    press("Escape")
    assert tab.evaluate("[state.head, state.frame, state.token]") == ["mean", last, -1]
    press(" ")
    until(tab, "state.frame === 0")
    press(" ")
    assert shown(tab, "play") == "Play"
    # By Tab alone all of them can be reached, too, in some round.
    tab.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(12):
        press("Tab")
        reached.add(tab.evaluate("document.activeElement.id || document.activeElement.name"))
    assert {"play", "scrub", "query", "layer", "head", "sinks", "scale", "curve", "cut", "target", "measure"} <= reached
    assert not tab.wrong


def test_sinks_are_ringed_or_left_out(tab, folder):
    opened(tab, folder / "llava-video.html", "#frame=0&layer=1&sinks=shown")
    assert shown(tab, "n-sinks") == "1 in this layer"
    marks = tab.evaluate("$('mark').toDataURL()")
    mass = tab.evaluate("maps.stepsAt(0, 'mean', 'shown')[0] - maps.stepsAt(0, 'mean', 'hidden')[0]")
    assert mass == pytest.approx(tab.evaluate("maps.sinksAt(0, 'mean')[0]"), rel=1e-5)
    tab.keyboard.press("x")
    until(tab, "location.hash.includes('sinks=hidden')")
    assert tab.evaluate("$('mark').toDataURL()") != marks
    assert tab.evaluate("maps.most(0, 'mean', 'hidden') <= maps.most(0, 'mean', 'shown')")


def test_long_texts_leave_the_frames_in_sight(tab, tmp_path):
    model = random_model("llava-video", n_layers=1)
    about = {"id": "x" * 300}
    view = model.view(inputs_of(model), (), cuts=(), n_words=0, question=TITLE * 500, about=about)
    view.save(tmp_path / "view.html")
    for width in (400, 1600):
        opened(tab, tmp_path / "view.html", width=width)
        assert tab.locator("#picture").bounding_box()["y"] < 500
    opened(tab, write_index(tmp_path), width=400)
    assert tab.locator(".card").bounding_box()["height"] < 600 and tab.text_content("h1") == "1 question"
    assert not tab.wrong


def test_a_merged_sink_is_left_out_of_the_step_it_stands_at(tab, tmp_path):
    model = random_model("internvideo2.5", n_layers=2)
    inputs = model.encoded(inputs_of(model))
    places, segments = model.places(inputs), inputs.layout.segments
    stands = [next(s.frame for s in segments if s.start <= p < s.stop) for p in places.position]
    sink = next(i for i, frame in enumerate(stands) if places.frames[i][0] != frame)
    features = inputs.features[0].clone()
    features[sink] *= 50
    view = model.view(replace(inputs, features=(features,)), (), cuts=(), n_words=0)
    assert view.maps.sinks[0].tolist() == [sink]
    opened(tab, view.save(tmp_path / "view.html"))
    shown, hidden = (tab.evaluate(f"[...maps.stepsAt(0, 'mean', '{x}')]") for x in ("shown", "hidden"))
    of = view.maps.queries["last"].sinks[0][-1, 0]
    assert of > 1e-3
    assert np.subtract(shown, hidden) == pytest.approx([of * (i == stands[sink]) for i in range(4)], abs=1e-6)


def test_a_page_opens_inside_a_notebook(tab, folder):
    tab.wrong.clear()
    tab.goto(f"file://{folder / 'framed' / 'view.html'}")
    tab.frame_locator("iframe").locator("body[data-ready=yes]").wait_for()
    assert not tab.wrong


def test_a_link_shows_what_was_seen(tab, folder):
    path = folder / "qwen3-vl.html"
    opened(tab, path)
    tab.select_option("#query", index=1)
    tab.evaluate("change({frame: 2, layer: 1, head: 1, sinks: 'hidden', curve: 'root', measure: 'points', cut: 1})")
    tab.keyboard.press("s")
    until(tab, "location.hash.includes('token=')")
    first, hash = tab.evaluate("({...state})"), tab.evaluate("location.hash")
    texts = [shown(tab, id) for id in ("summary", "where", "token", "table", "most")]
    opened(tab, path, hash)
    assert tab.evaluate("({...state})") == first
    assert [shown(tab, id) for id in ("summary", "where", "token", "table", "most")] == texts
    tab.evaluate("maps.most = () => 2.344e-7; draw()")
    assert shown(tab, "most") == "0.0000234 % of the mass", "a scale has an end, however small"
    opened(tab, path, "#frame=99&layer=x&head=-4&query=none&token=1e9&cut=%3Cb%3E")
    assert not tab.wrong
    tab.evaluate("location.hash = 'frame=1&layer=1'")
    until(tab, "state.frame === 1 && state.layer === 0")


def test_a_slider_answers_in_a_tenth_of_a_second(tab, folder):
    opened(tab, folder / "llava-video.html")
    took = tab.evaluate(SLIDE)
    assert min(took) < 100, took  # other tests run beside this one, and take the processor from some


SLIDE = """async () => {
  const took = [];
  for (const layer of [1, 2, 1, 2, 1, 2, 1, 2]) {
    const slider = document.getElementById("layer");
    slider.value = layer;
    const start = performance.now();
    slider.dispatchEvent(new Event("input"));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    took.push(performance.now() - start);
  }
  return took;
}"""


@pytest.mark.parametrize("name", UNLIKE)
def test_a_cell_is_where_its_pixels_are(tab, tmp_path, name):
    model = random_model(name, n_layers=1)
    inputs = inputs_of(model)
    view = model.view(inputs, (), cuts=(), n_words=1)
    opened(tab, view.save(tmp_path / "view.html"), "#frame=2", width=900)
    places, picture = view.places, tab.locator("#picture").bounding_box()
    assert picture["width"] / picture["height"] == pytest.approx(SIZE[1] / SIZE[0], rel=0.02)
    unit = picture["width"] / SIZE[1]
    here = [i for i in range(len(places.position)) if places.frames[i][0] <= 2 < places.frames[i][1]]
    pieces = [k for k, (first, stop) in enumerate(places.pieces.frames) if first <= 2 < stop]
    placed = set(places.pieces.token.tolist())
    assert tab.locator("#loose button").count() == len([i for i in here if i not in placed])
    for k in pieces[:1] + pieces[-1:]:
        i = int(places.pieces.token[k])
        x0, y0, x1, y1 = places.pieces.box[k].tolist()
        tab.mouse.move(picture["x"] + (x0 + x1) / 2 * unit, picture["y"] + (y0 + y1) / 2 * unit)
        said = shown(tab, "token")
        cell = "merged, no cell" if places.row[i] < 0 else f"row {places.row[i]}, column {places.column[i]}"
        assert f"{cell} · frame" in said
        assert f"position {places.position[i]} " in said
        word = view.vocabulary[int(view.maps.words[0, places.position[i], 0])]
        assert shown(tab, "lens").strip().startswith("1" + repr(word)[1:-1][:1])
        # The painted cell, between canvas and screen: its corners, a pixel inside.
        painted = tab.evaluate(PAINTED, [(x0 + 0.02) * unit + 1, (y0 + 0.02) * unit + 1, x1 * unit - 2, y1 * unit - 2])
        mass = tab.evaluate("(i) => maps.videoAt(0, 'mean')[i] / maps.most(0, 'mean', 'shown')", i)
        assert painted[0] == painted[1] == pytest.approx(255 * 0.85 * (round(255 * mass) / 255) ** 0.6, abs=2)
    assert not tab.wrong


def test_numbers_that_were_given_are_told_as_numbers(tab, tmp_path):
    model = random_model("llava-onevision", n_layers=2)
    view = model.view(inputs_of(model), (), cuts=(), n_words=0)
    numbers = np.linspace(0, 12, len(view.places.position))
    view.with_numbers({"feature 7": numbers}).save(tmp_path / "view.html")
    opened(tab, tmp_path / "view.html")
    for query, told in (("feature 7", "feature 7 sums to"), ("last", "of its attention on frame")):
        tab.select_option(
            "#query", label=next(x for x in tab.locator("#query option").all_text_contents() if x.startswith(query))
        )
        until(tab, f"document.getElementById('summary').textContent.includes('{told}')")
        assert ("%" in shown(tab, "most")) == (query == "last") and ("no heads" in shown(tab, "head")) == (
            query != "last"
        )
    assert not tab.wrong


PAINTED = """([x0, y0, x1, y1]) => {
  const canvas = document.getElementById("heat");
  const [pen, unit] = [canvas.getContext("2d"), canvas.width / canvas.clientWidth];
  const at = (x, y) => pen.getImageData(Math.floor(x * unit), Math.floor(y * unit), 1, 1).data[3];
  return [at(x0, y0), at(x1, y1)];
}"""


def test_an_index_filters(tab, folder):
    opened(tab, folder / "index.html", width=400)
    assert not tab.wrong and tab.locator(".card:visible").count() == 4
    assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    tab.select_option("#family", "odd")
    assert tab.locator(".card:visible").count() == 2 and shown(tab, "n") == "2 shown"
    hash = tab.evaluate("location.hash")
    opened(tab, folder / "index.html", hash)
    assert tab.locator(".card:visible").count() == 2
    tab.locator(".card:visible").first.click()
    tab.wait_for_selector("body[data-ready=yes] #stage")
    assert not tab.wrong
