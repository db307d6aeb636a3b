"""How values show themselves: short texts on a terminal, escaped HTML in a notebook, names that editors complete."""

from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from hookedvid import LV_K, Edit, HookedVideoLLM, Knockout, VideoInputs, small_config
from hookedvid.model.answers import Answer
from hookedvid.values import contents
from models import random_inputs, random_model

pytestmark = pytest.mark.shapes_unchecked

HOSTILE = '<script>alert("x")</script>\u202e&amp;\n<img src=x onerror=alert(1)>'
FRAMES = np.random.default_rng(0).integers(0, 256, (5, 48, 80, 3), dtype=np.uint8)


class Page(HTMLParser):
    """A page's tags, which must close in order, and its text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.images, self.words = [], set(), [], ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert {name for name, _ in attrs} <= {"style", "src", "alt"}
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        else:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data + " "


def page(value):
    shown = Page(value._repr_html_())
    assert shown.tags <= set("div b span code table thead tbody tr th td figure figcaption img".split())
    assert all(src.startswith("data:image/webp;base64,") for src in shown.images)
    assert "\u202e" not in shown.words
    return shown


@pytest.fixture(scope="module")
def model():
    return HookedVideoLLM.from_config(small_config("llava-video", n_layers=2))


def asked(model, **how):
    how = {"options": (HOSTILE, "blue"), "n_frames": 5, "sampler": "linspace", "folder_fps": 2.0} | how
    return model.prepare(FRAMES, "what ?", **how)


def test_inputs_show_their_frames_and_roles_in_a_few_lines(model, monkeypatch):
    inputs = asked(model).with_group("ball", selector="video[3]")
    assert repr(inputs).startswith("VideoInputs: 1 item\n") and len(repr(inputs).splitlines()) == 2
    assert "5 frames of" in repr(inputs) and "0 s to 2 s" in repr(inputs) and "ball" in repr(inputs)
    shown = page(inputs)
    assert len(shown.images) == 5 and max(map(len, shown.images)) < 4000
    assert "video[4] 2 s" in " ".join(shown.words.split()) and "option[1]" in shown.words and "<script>" in shown.words
    assert len(page(VideoInputs.stack([inputs] * 6)).images) == 20
    assert repr(VideoInputs.stack([inputs] * 6)).splitlines()[-1] == "  … and 2 more"
    monkeypatch.setattr(contents, "FRAMES", 3)
    assert [f"video[{i}]" in page(inputs).words for i in range(5)] == [True, False, True, False, True]


def test_inputs_without_frames_say_so(model):
    inputs = asked(model)
    bare = model.inputs_from_tensors(inputs.tokens, inputs.pixel_values[0])
    assert "made of tensors" in page(bare).words and not page(bare).images
    assert "no video" in page(model.prepare(None, "what ?")).words
    tower = VideoInputs(torch.zeros(1, 0, dtype=torch.long), (), (torch.zeros(2, 3, 4, 4),))
    assert page(tower) and len(repr(tower)) < 80


def test_clips_and_places_are_said_in_a_line(model):
    inputs = asked(model)
    assert repr(inputs.footage[0].video) == "Clip: 5 of 5 frames of 80 x 48 pixels, 0 s to 2 s, of array"
    assert repr(inputs.places) == "TokenPlaces: 60 video positions of 5 frames, 45 boxes of pixels"


def test_a_layout_shows_its_table(model):
    layout = asked(model).layout
    assert repr(layout) == str(layout) and len(repr(layout)) < 1500
    words = page(layout).words
    assert all(name in words for name in ("TokenLayout", "video[0]", "video[4]", "option[1]"))


def test_an_answer_shows_its_options(model):
    answer = model.answer(asked(model))
    assert repr(answer).startswith(f"Answer({answer.letter}. ") and "\n" not in repr(answer)
    assert page(Answer(0, "A", HOSTILE, (0.75, 0.125), (2.0, -1.0))).words.count("0.750") == 1
    assert "margin" not in repr(Answer(0, "A", "red", (0.5,), (1.0,)))


@pytest.mark.parametrize("how", [{"reduce": r} for r in ("none", "segments", "frames", "patches")] + [
    {"reduce": "frames", "queries": "video", "mean_queries": True}
])  # fmt: skip
def test_an_attention_map_shows_mass_by_layer(how):
    model = random_model("llava-video")
    read = model.attention(random_inputs(model), **how)
    assert len(repr(read)) < 200 and "layers 0 to 2" in repr(read)
    words = page(read).words
    assert "layer 2" in words and ("video[3]" if how["reduce"] in ("frames", "patches") else "newline") in words


def test_an_attention_map_counts_frames_as_the_video_has_them():
    for name, said in (("llava-video", "4 frames and the rest"), ("qwen3-vl", "4 frames in 2 steps and the rest")):
        model = random_model(name, n_layers=1)
        inputs = random_inputs(model)
        assert f"1 query on {said}, " in repr(model.attention(inputs, reduce="frames"))
        n = len(model.attention(inputs, reduce="segments").labels)
        assert f"1 query on {n} segments, " in repr(model.attention(inputs, reduce="segments"))


def test_a_cache_shows_what_it_holds_and_completes_its_names():
    model = random_model("llava-video")
    _, cache = model.run_with_cache(
        random_inputs(model),
        names_filter=["resid_post", "z", "blocks.0.ln1.hook_scale", "blocks.0.ln2.hook_scale", "hook_embed"],
    )
    keys = cache._ipython_key_completions_()
    assert {("z", 2), ("resid_post", 0), "hook_embed", "blocks.1.attn.hook_z"} <= set(keys)
    assert all(cache[key] is not None for key in keys)
    size = sum(x.numel() * x.element_size() for x in cache.cache_dict.values()) / 2**20
    assert f"{size:,.1f} MiB" in repr(cache) and len(repr(cache).splitlines()) == 1
    assert "attn.z" in page(cache).words and "0:3" in page(cache).words


def test_interventions_show_their_line():
    assert "LV-K @ 4:8 weight 0.5" in page(Knockout("video", "text", "4:8", weight=0.5, name="LV-K")).words
    assert "Edit" in page(Edit("resid_post", 0, lambda x: x, "last")).words
    assert page(Knockout("video", "text", name=HOSTILE)).words
    assert LV_K.line() == "LV-K"
