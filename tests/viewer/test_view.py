"""A view's numbers against runs by hand; the page says what it is given, as text."""

import base64
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from hookedvid.errors import InputError, SelectorError
from hookedvid.study.results.examples import view_file
from hookedvid.values.interventions import LV_K, Edit, Knockout
from hookedvid.viewer.index import write_index
from hookedvid.viewer.maps import coded, columns_of
from hookedvid.viewer.queries import queries_of, within
from models import ROUNDING, UNLIKE, random_model, rich_inputs

HOSTILE = '</script><script>alert(1)</script>"><img src=x onerror=alert(2)>\u202e&lt;'


def view_of(name: str, **how):
    model = random_model(name)
    return model, (inputs := rich_inputs(model)), model.view(inputs, **how)


def with_sink(model, inputs, token: int):
    """The inputs with one token of the video far longer than the others."""
    inputs = model.encoded(inputs)
    features = inputs.features[0].clone()
    features[token] *= 50
    return replace(inputs, features=(features,))


@pytest.mark.parametrize("name", UNLIKE)
def test_mass_is_the_patterns(name):
    model, inputs, view = view_of(name, cuts=(), conditions=(), n_words=2)
    _, cache = model.run_with_cache(inputs)
    layout = inputs.layout
    video = layout.mask("video")
    _, column = columns_of(layout)
    assert [q.name for q in view.queries[:3]] == ["last", "question", "options"] and all(q.apart for q in view.queries)
    for q in view.queries:
        of = view.maps.queries[q.name]
        for layer in range(model.cfg.n_layers):
            heads = cache["pattern", layer][0][:, list(q.positions)].mean(1)
            mass = torch.cat([heads, heads.mean(0, keepdim=True)])
            by_column = torch.stack([mass[:, column == c].sum(-1) for c in range(int(column.max()) + 1)], -1)
            assert np.abs(of.columns[layer] - by_column.numpy()).max() < 1e-12
            sinks = view.maps.sinks[layer]
            exact, shown = mass[:, video].numpy(), of.scale[layer][:, None] * (of.video[layer] / 255.0) ** 2
            assert np.abs(of.sinks[layer] - exact[:, sinks]).max(initial=0) < 1e-12
            shown[:, sinks] = exact[:, sinks]
            # Half a step of the root.
            assert (np.abs(np.sqrt(shown) - np.sqrt(exact)) <= np.sqrt(of.scale[layer])[:, None] / 510 + 1e-12).all()
    for layer in range(model.cfg.n_layers):
        probs = model.unembed(model.ln_final(cache["resid_post", layer]))[0, :, : model.cfg.n_tokens].softmax(-1)
        best = probs.detach().topk(2)
        assert (view.maps.words[layer] == best.indices.numpy()).all()
        assert np.abs(np.sqrt(best.values.numpy()) - view.maps.probs[layer] / 255.0).max() <= 1 / 510 + 1e-12


@pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning")  # of the runs by hand
@pytest.mark.parametrize("name", UNLIKE)
def test_effects_are_those_of_runs(name):
    model, inputs, view = view_of(name, n_words=0)
    steps = inputs.layout.step_names
    tokens = model(inputs, logits_to_keep=1)[0, -1][: model.cfg.n_tokens].topk(5).indices

    def under(*interventions) -> np.ndarray:
        logits = model(inputs, interventions=interventions, logits_to_keep=1)[0, -1][: model.cfg.n_tokens]
        return logits.log_softmax(-1)[tokens].detach().numpy()

    assert np.abs(view.conditions["baseline"] - under()).max() < ROUNDING
    assert np.abs(view.conditions["LV-K all layers"] - under(LV_K)).max() < ROUNDING
    for cut in view.cuts:
        some = Knockout(steps[1], cut.dst)
        assert np.abs(cut.everywhere[1] - under(some)).max() < ROUNDING
        assert np.abs(cut.by_layer[2, 1] - under(some.at(2))).max() < ROUNDING
    assert [c.dst for c in view.cuts] == ["text", "last"]
    assert view.cuts[0].by_layer.shape == (model.cfg.n_layers, len(steps), 5)


def test_sinks_are_those_that_find_sinks_finds():
    model = random_model("llava-video")
    inputs = with_sink(model, rich_inputs(model), 5)
    view = model.view(inputs, (), cuts=(), n_words=0)
    video = inputs.layout.positions("video")
    _, cache = model.run_with_cache(inputs, names_filter="pattern")
    for layer, found in enumerate(view.maps.sinks):
        assert video[found].tolist() == model.find_sinks(inputs, layer).layout.positions("sinks").tolist()
        of = view.maps.queries["last"]
        mass = cache["pattern", layer][0, :, -1, video].numpy()
        assert np.abs(of.sinks[layer][:-1] - mass[:, found]).max() < 1e-12
        assert np.abs(of.scale[layer][:-1] - np.delete(mass, found, 1).max(1)).max() < 1e-12


def test_a_budget_holds_heads_of_the_last_position_first():
    layout = rich_inputs(random_model("llava-video")).layout
    whole, tokens = queries_of(layout, ["video[1]"])
    assert [q.name for q in whole[:2]] == ["last", "video[1]"] and len(tokens) == 9
    cost, heads = 1000, 8
    held = [within(b, whole, tokens, lambda q, apart: cost * (1 + heads * apart)) for b in range(2000, 200_000, 2000)]
    for budget, some in zip(range(2000, 200_000, 2000), held, strict=True):
        assert sum(cost * (1 + heads * q.apart) for q in some) <= budget
    first_apart = next(some for some in held if any(q.apart for q in some))
    assert [q.name for q in first_apart if q.apart] == ["last"]
    assert all(q.apart for q in held[-1]) and len(held[-1]) == len(whole) + len(tokens)
    with pytest.raises(InputError, match="give a larger budget"):
        within(999, whole, tokens, lambda q, apart: cost)


def some_averaged(model, inputs, budget: int) -> bool:
    try:
        apart = [q.apart for q in model.view(inputs, (), cuts=(), n_words=0, budget=budget).queries]
    except InputError:
        return False
    return 0 < sum(apart) < len(apart)


def test_heads_that_a_budget_has_no_room_for_are_averaged_and_it_is_said():
    model = random_model("llava-video")
    inputs = rich_inputs(model)
    budget = next(b for b in range(104_000, 140_000, 4000) if some_averaged(model, inputs, b))
    small = model.view(inputs, (), cuts=(), n_words=0, budget=budget)
    assert len(small.html.encode()) < budget
    q = next(q for q in small.queries if not q.apart)
    assert small.maps.queries[q.name].scale.shape == (3, 1)


def test_numbers_stand_in_the_page():
    _, _, view = view_of("internvideo2.5", cuts=("last",), n_words=1)
    values = json.loads(re.search(r'id="values">(.*?)</script>', view.html, re.S)[1])
    for i, q in enumerate(view.queries):
        block = re.search(rf'id="array q{i}.video">(.*?)</script>', view.html, re.S)[1]
        stored = np.frombuffer(zlib.decompress(base64.b64decode(block)), np.uint8)
        assert (stored.reshape(values["arrays"][f"q{i}.video"]["shape"]) == view.maps.queries[q.name].video).all()
        assert values["queries"][i]["name"] == q.name
    assert len(re.findall('class="frame"', view.html)) == 4
    assert "http" not in re.sub(r'data:image/[^"]*', "", view.html).replace("http-equiv", "")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attrs):
        kind = dict(attrs).get("type", "")
        if kind != "text/plain":  # blocks of numbers, as many as there are queries
            self.seen.append((tag, kind, [name for name, _ in attrs if name.startswith("on")]))


def tags(html: str) -> list:
    parser = Tags()
    parser.feed(html)
    return parser.seen


def test_hostile_texts_are_text(tmp_path):
    model = random_model("llava-video")
    video = np.random.default_rng(0).integers(0, 255, (2, 30, 40, 3), np.uint8)
    pages = {}
    for text in (HOSTILE, "plain"):
        inputs = model.prepare(video, f"what {text}", [text, "b"])
        about = {"id": f"{text}/../x", "family": text}
        view = model.view(inputs, cuts=(), n_words=1, question=text, answer=0, about=about)
        path = view.save(tmp_path / text[:1].replace("<", "h") / view_file(about["id"]).rpartition("/")[2])
        pages[text] = view.html, write_index(path.parent).read_text()
        assert "\u202e" not in view.html
    for hostile, plain in zip(pages[HOSTILE], pages["plain"], strict=True):
        assert tags(hostile) == tags(plain)
        assert not any(handlers for *_, handlers in tags(hostile))
    framed = view._repr_html_()
    assert tags(framed) == [("iframe", "", [])] and 'sandbox="allow-scripts"' in framed


def test_files_of_ids_are_their_own_and_safe():
    ids = [
        "a",
        "A",
        "a/b",
        "a b",
        "../a",
        "index",
        "",
        "é",
        "e",
        "x" * 300,
        "x" * 299,
        "\ud800",
        "a.html",
        "con/..",
        HOSTILE,
    ]
    files = [view_file(i) for i in ids]
    assert len({f.lower() for f in files}) == len(ids)
    assert all(re.fullmatch(r"view/[a-z0-9_-]{0,80}\.html", f) for f in files)
    assert view_file("a") == "view/a.html" and view_file("index") != "view/index.html"


def test_codes_keep_small_numbers_apart():
    x = torch.tensor([0.0, 1e-4, 1e-2, 0.5, 1.0, 3.0], dtype=torch.float64)
    assert coded(x).tolist() == [0, 3, 26, 180, 255, 255]
    assert coded(x[None], torch.zeros(1)).tolist() == [[0, 255, 255, 255, 255, 255]]


def test_what_a_view_cannot_show_is_refused():
    model = random_model("llava-video")
    with pytest.raises(InputError, match="have none: prepare"):
        model.view(model.prepare(None, "what?", ["a", "b"]))
    inputs = rich_inputs(model)
    with pytest.raises(InputError, match="in a view already"):
        model.view(inputs, queries=["question"])
    with pytest.raises(InputError, match="answer 2 is none of the 0 options"):
        model.view(inputs, answer=2)
    with pytest.raises(InputError, match="larger budget"):
        model.view(inputs, budget=10_000)
    with pytest.raises(InputError, match="see is shown rows"):
        model.attention(inputs, reduce="frames", see=print)


def test_an_answer_that_inputs_hold_is_left_out():
    model = random_model("llava-video")
    inputs = rich_inputs(model)
    whole, longer = (
        model.view(x, conditions=(), cuts=(), n_words=0) for x in (inputs, inputs.extend(torch.tensor([[5, 6]])))
    )
    assert (whole.conditions["baseline"] == longer.conditions["baseline"]).all()
    assert whole.layout.n_tokens == longer.layout.n_tokens


def test_a_question_is_read_whole_where_letters_are_of_several_tokens():
    model = random_model("llava-video")
    video = np.zeros((1, 30, 40, 3), np.uint8)
    view = model.view(model.prepare(video, "哪个球 ? é", n_frames=1), (), cuts=(), n_words=0)
    assert view.about["question"] == "哪个球 ? é"


def test_groups_of_an_answer_go_with_it_and_their_rest_stays():
    model = random_model("llava-video")
    inputs = rich_inputs(model).extend(torch.tensor([[5, 6]]))
    n = inputs.layout.n_prompt
    inputs = inputs.with_group("both", positions=[n - 2, n]).with_group("answer_only", positions=[n + 1])
    how = {"conditions": (), "cuts": (), "n_words": 0}
    view = model.view(inputs, queries=["both"], **how)
    assert next(q for q in view.queries if q.name == "both").positions == (n - 2,)
    with pytest.raises(SelectorError, match="answer_only"):
        model.view(inputs, queries=["answer_only"], **how)


def test_unlike_conditions_of_one_label_each_have_their_answers():
    model = random_model("llava-video")
    inputs = rich_inputs(model)
    edits = [Edit("resid_pre", 1, lambda x, by=by: x * by, at="video") for by in (0.0, 2.0)]
    view = model.view(inputs, edits, cuts=(), n_words=0)
    name, again = [n for n in view.conditions if n != "baseline"]
    assert again == f"{name} (2)" and (view.conditions[name] != view.conditions[again]).any()


def test_means_of_half_precision_are_as_exact_as_what_they_are_of():
    model = random_model("llava-video", torch.bfloat16)
    inputs = rich_inputs(model)
    view = model.view(inputs, (), cuts=(), n_words=0)
    rows = model.attention(inputs, queries="question")
    for layer in range(model.cfg.n_layers):
        mass = rows[layer].double().mean((0, 1)).sum()
        assert view.maps.queries["question"].columns[layer, -1].sum() == pytest.approx(float(mass), abs=1e-6)


def test_the_command_makes_a_page(tmp_path, monkeypatch, capsys):
    from hookedvid.cli.commands import main
    from hookedvid.data.shapes import make_dataset

    monkeypatch.chdir(tmp_path)
    items = make_dataset("shapes", seed=4, split="test", n_videos=1, questions_per_video=2)
    clip = next((items.parent / "clips").iterdir())
    asked = [str(clip), "what color is the ring ?", "white", "red"]
    assert main(["view", *asked, "--frames", "3", "--answer", "b", "--under", "LV-K @ 1:3", "--out", "a.html"]) == 0
    assert "a.html: 0." in capsys.readouterr().out
    about = json.loads(re.search(r'id="about">(.*?)</script>', (tmp_path / "a.html").read_text(), re.S)[1])
    assert about["question"] == asked[1] and about["answer"] == 1 and about["n_frames"] == 3 and about["outcome"]
    for wrong in (["--items", "x"], ["--answer", "q"]):
        assert main(["view", *asked, *wrong]) == 2
    assert main(["view", "nowhere"]) == 2
    assert "holds no finished study" in capsys.readouterr().err


@pytest.mark.parametrize("name", UNLIKE)
def test_numbers_of_tokens_stand_beside_queries(name):
    model, inputs, view = view_of(name, cuts=(), conditions=(), n_words=0)
    n, n_layers = len(view.places.position), model.cfg.n_layers
    given = torch.rand(n_layers, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    more = view.with_numbers({"feature 7": given, "feature 9": given[0]})
    assert [q.name for q in more.queries[len(view.queries) :]] == ["feature 7", "feature 9"]
    steps = inputs.layout.frames[view.places.position]
    for layer, values in enumerate(given):
        of, sinks = more.maps.queries["feature 7"], view.maps.sinks[layer]
        shown = of.scale[layer, 0] * (of.video[layer, 0] / 255.0) ** 2
        shown[sinks] = of.sinks[layer][0]
        assert np.abs(np.sqrt(shown) - np.sqrt(values.numpy())).max() <= 1 / 510 + 1e-12
        for i, step in enumerate(inputs.layout.steps):
            assert abs(of.columns[layer, 0, i] - values[steps == step.start].sum().item()) < 1e-12
    assert "numbers given" in more.html and "numbers given" not in view.html
    for numbers, says in (
        ({"a": given[0, 1:]}, "a number for each"),
        ({"a": -given}, "below 0"),
        ({"last": given}, "there"),
    ):
        with pytest.raises(InputError, match=says):
            view.with_numbers(numbers)
