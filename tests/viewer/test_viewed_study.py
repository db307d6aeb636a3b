"""Views of a study: its own items as it asked them, their index, and the links of its report."""

import json
import math
import re
from dataclasses import replace

import pytest

import miniatures
from hookedvid.cli.commands import main
from hookedvid.data.item import video_path
from hookedvid.data.registry import read_dataset
from hookedvid.data.shapes import make_dataset
from hookedvid.errors import VideoError
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.report import page
from hookedvid.study.definition import Study, plan
from hookedvid.study.results.examples import view_file
from hookedvid.study.run.manifest import Manifest
from hookedvid.study.run.tasks import run
from hookedvid.viewer.study import view_items

pytestmark = pytest.mark.shapes_unchecked


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A finished study of two questions, without its presentation."""
    folder = tmp_path_factory.mktemp("study")
    items = make_dataset(folder / "clips", seed=4, split="test", n_videos=1, questions_per_video=3)
    model = HookedVideoLLM.from_pretrained("tiny")
    study = Study(protocols=("all-layers",), knockouts=("LV-K",), n_frames=3, frame_order="shuffled")
    laid = plan(study, model, items, limit=2)
    rows = run(laid, model, folder)
    manifest = Manifest.of(laid, model.cfg.n_layers, "about")
    manifest.save(folder, ())
    return folder, manifest, rows


def about(path) -> dict:
    return json.loads(re.search(r'id="about">(.*?)</script>', path.read_text(), re.S)[1])


def conditions(path) -> dict:
    return json.loads(re.search(r'id="values">(.*?)</script>', path.read_text(), re.S)[1])["conditions"]


def test_a_studys_items_are_viewed_as_they_were_asked(studied, capsys):
    folder, manifest, rows = studied
    assert main(["view", str(folder), "--items", manifest.items[1].id]) == 0
    path = folder / view_file(manifest.items[1].id)
    asked = {row["condition"]: row for row in rows if row["item"] == manifest.items[1].id}
    for name, row in asked.items():
        # Float32, summed in the order of a sweep there and of a run here.
        assert math.exp(conditions(path)[name][manifest.items[1].answer]) == pytest.approx(row["prob"], abs=1e-5)
    said = about(path)
    assert said["n_frames"] == 3 and said["family"] == manifest.items[1].family
    right = {name: row["correct"] for name, row in asked.items()}
    assert said["outcome"][0] == ("right" if right["baseline"] else "wrong")
    assert len(said["outcome"]) == 1 + (right["LV-K all layers"] != right["baseline"])
    assert str(folder / "view" / "index.html") in capsys.readouterr().out.replace("\n", "")
    index = (folder / "view" / "index.html").read_text()
    assert path.name in index and index.count('class="card"') == 1


def test_a_convention_asks_in_the_view_as_it_did_in_the_study(studied, tmp_path, monkeypatch):
    """By letters too, where nothing is printed as the convention's authority would."""
    _, shapes, _ = studied
    model = HookedVideoLLM.from_pretrained("tiny")
    study = Study(protocols=("baseline",), n_frames=2, convention="mvbench/lmms-eval@2026-07")
    laid = plan(study, model, shapes.annotations, items=shapes.items[:1])
    asked = []
    prepare = HookedVideoLLM.prepare
    monkeypatch.setattr(HookedVideoLLM, "prepare", lambda *a, **k: asked.append(prepare(*a, **k)) or asked[-1])
    run(laid, model, tmp_path)
    manifest = Manifest.of(laid, model.cfg.n_layers, "about")
    view_items(tmp_path, manifest, model, cuts=(), n_words=0)
    assert len(asked) == 2 and asked[0].tokens.tolist() == asked[1].tokens.tolist()


def test_other_subtitles_than_the_studys_are_not_shown_for_its(tmp_path):
    model = HookedVideoLLM.from_pretrained("tiny")
    data = read_dataset("videomme:short:subtitles", miniatures.videomme(tmp_path / "set", layout="data"))
    name = "videomme/lmms-eval@2026-07+subtitles"
    laid = plan(Study(protocols=("baseline",), n_frames=2, convention=name), model, data.folder, items=data.items[:1])
    run(laid, model, tmp_path)
    manifest = Manifest.of(laid, model.cfg.n_layers, "about")
    assert view_items(tmp_path, manifest, model, cuts=(), n_words=0).exists()
    spoken = data.folder / data.items[0].subtitles
    spoken.write_bytes(spoken.read_bytes().replace(b"hello", b"good bye"))
    with pytest.raises(VideoError, match="not those that were hashed when the study was planned"):
        view_items(tmp_path, manifest, model, cuts=(), n_words=0)


def test_a_report_links_what_was_viewed(studied):
    folder, manifest, rows = studied
    viewed, other = manifest.items[1], manifest.items[0]
    shown = page.examples(
        manifest.scoring, manifest.items, manifest.annotations, rows, ["baseline"], manifest.settings, folder
    )
    links = {e.question: e.view for e in shown}
    assert links == {viewed.question: view_file(viewed.id), other.question: ""}


def test_outcomes_are_the_studys_and_a_video_that_is_gone_stops_no_other(studied, tmp_path, capsys):
    _, manifest, rows = studied
    first, second = manifest.items
    clip = video_path(first, manifest.annotations)
    other = replace(second, video=str(tmp_path / "gone.mp4"))
    model = HookedVideoLLM.from_pretrained("tiny")
    odd = [{**row, "correct": row["condition"] != "baseline"} for row in rows]  # as another scoring might find
    run = replace(manifest, items=[first, other])
    object.__setattr__(run, "rows", lambda records: odd)
    index = view_items(tmp_path, run, model, cuts=(), n_words=0)
    assert about(tmp_path / view_file(first.id))["outcome"] == ["wrong", "turned right by LV-K all layers"]
    assert index.read_text().count('class="card"') == 1 and clip.exists()
    assert f"{other.id}: no page: " in capsys.readouterr().out
    with pytest.raises(VideoError):
        view_items(tmp_path, run, model, [other.id], cuts=(), n_words=0)


def test_answers_of_options_that_were_not_shown_are_none(tmp_path):
    items = make_dataset(tmp_path / "clips", seed=4, split="test", n_videos=1, questions_per_video=1)
    spans = tmp_path / "clips" / "spans.jsonl"
    lines = [json.loads(line) | {"span": [0, 1]} for line in items.read_text().splitlines()]
    spans.write_text("\n".join(map(json.dumps, lines)))
    study = Study(protocols=("all-layers",), knockouts=("LV-K",), n_frames=2, scoring="grounding")
    model = HookedVideoLLM.from_pretrained("tiny")
    laid = plan(study, model, spans)
    run(laid, model, tmp_path)
    view_items(tmp_path, Manifest.of(laid, model.cfg.n_layers, ""), model, cuts=(), n_words=0)
    said = about(next(p for p in (tmp_path / "view").iterdir() if p.name != "index.html"))
    assert said["answer"] is None and said["outcome"] == [] and said["options"] == []


def test_what_a_study_does_not_have_is_refused(studied, capsys):
    folder, manifest, _ = studied
    wrong = {
        ("--items", "nothing"): "no item 'nothing'",
        ("--frames", "2"): "has its own --frames",
        ("--dtype", "float64"): "has its own --dtype",
    }
    for arguments, message in wrong.items():
        assert main(["view", str(folder), *arguments]) == 2
        assert message in capsys.readouterr().err
    other = replace(manifest, settings={**manifest.settings, "model": "0" * 16})
    other.save(folder, ())
    assert main(["view", str(folder)]) == 2
    assert "has other weights than" in capsys.readouterr().err
    manifest.save(folder, ())
