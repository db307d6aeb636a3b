"""Studies of published datasets from the command line: flags, study files, what is missing, left out, hidden or cut."""

import json
from dataclasses import replace

import pytest
import torch

import miniatures
from clips import write_clip
from hookedvid.cli.commands import main
from hookedvid.data.item import Item, video_path
from hookedvid.data.mvbench import WHY_NOT
from hookedvid.data.registry import read_dataset
from hookedvid.errors import ConfigError, DataError
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.study.definition import Study, plan
from hookedvid.study.run.manifest import Manifest
from hookedvid.study.run.tasks import run
from hookedvid.values.interventions import Knockout
from miniatures import BOUND
from models import random_model

pytestmark = pytest.mark.shapes_unchecked

STUDY = 'protocols = ["baseline"]\nn_resamples = 50\n'


@pytest.fixture(scope="module")
def model():
    return HookedVideoLLM.from_pretrained("tiny")


@pytest.fixture(scope="module")
def of_five(tmp_path_factory):
    """A line of a study file: a model whose tokenizer knows a fifth letter, as the shipped one's does not."""
    folder = tmp_path_factory.mktemp("model") / "random"
    random_model("llava-onevision", torch.float32).save_pretrained(folder)
    return f'model = "{folder}"\n'


def rows_of(out):
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("make", "options", "n"),
    [
        (miniatures.videomme, {"layout": "zip"}, 9),
        (miniatures.videomme, {"layout": "flat"}, 9),
        (miniatures.mvbench, {}, 38),
        (miniatures.mvbench, {"branch": "video", "layout": "test.json"}, 40),
        (miniatures.egoschema, {"route": "hub"}, 2),
        (miniatures.egoschema, {"route": "authors", "layout": "extracted"}, 2),
    ],
)
def test_every_dataset_runs_from_a_study_file(tmp_path, of_five, make, options, n):
    make(tmp_path / "set", **options)
    (tmp_path / "study.toml").write_text(f'{of_five}{STUDY}dataset = "{make.__name__}"\ndata = "set"\n')
    assert main(["study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out")
    assert len(rows) == n and {r["status"] for r in rows} == {"ok"}
    assert (tmp_path / "out" / "report.html").exists()


def test_what_is_missing_fails_and_what_nobody_has_is_left_out(tmp_path, capsys):
    folder, out = miniatures.mvbench(tmp_path / "set", layout="extracted"), tmp_path / "out"
    miniatures.without(folder, "video/ssv2_video/action_antonym0.webm")
    (tmp_path / "study.toml").write_text(STUDY)
    name = "mvbench:action_antonym:fine_grained_pose"
    command = ["study", str(tmp_path / "study.toml"), "--dataset", name, "--data", str(folder), "--out", str(out)]
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "missing: 1 videos of 1 questions, which will fail: there is no video/ssv2_video/action_antonym0.webm"
        in printed
    )
    assert f"left out: 2 questions: {WHY_NOT}" in printed
    failed = [r for r in rows_of(out) if r["status"] != "ok"]
    assert [r["item"] for r in failed] == ["action_antonym-0"] and "there is no such file" in failed[0]["reason"]
    kept = Manifest.load(out)
    assert kept.left_out == dict.fromkeys(["fine_grained_pose-0", "fine_grained_pose-1"], WHY_NOT)
    assert (kept.study.dataset, kept.study.data) == (name, str(folder))
    assert main(["plot", str(out)]) == 0


def test_hidden_answers_are_asked_and_not_scored(tmp_path, of_five):
    out = tmp_path / "out"
    (tmp_path / "study.toml").write_text(f'{of_five}{STUDY}dataset = "egoschema:full"\ndata = "set"\n')
    miniatures.egoschema(tmp_path / "set")
    assert main(["study", str(tmp_path / "study.toml"), "--out", str(out)]) == 0
    rows = rows_of(out)
    assert all(r["chosen"] in range(5) and r["correct"] is r["prob"] is None for r in rows)
    assert main(["submission", str(out)]) == 0
    [sent] = (out / "submissions").iterdir()  # the same, whether the study or the command writes it
    assert json.loads(sent.read_text()) == {r["item"]: r["chosen"] for r in rows}


def test_bounds_and_rates_reach_the_model_and_the_key(model, tmp_path):
    dataset = read_dataset("mvbench:action_sequence:episodic_reasoning", miniatures.mvbench(tmp_path / "set"))
    study = Study(protocols=("baseline",), reuse="none")  # the same bits as the model alone
    laid = plan(study, model, dataset.folder, items=dataset.items)
    rows = {r["item"]: r for r in run(laid, model, tmp_path / "out")}
    for item in dataset.items:
        inputs = model.prepare(
            video_path(item, dataset.folder), item.question, item.options, bound=BOUND, folder_fps=item.folder_fps
        )
        assert rows[item.id]["prob"] == model.answer(inputs).probs[item.answer]
    whole = [replace(i, bound=None, folder_fps=None) for i in dataset.items]
    other = plan(study, model, dataset.folder, items=whole)
    assert not {t.key for _, _, t in laid.tasks} & {t.key for _, _, t in other.tasks}
    again = {r["item"]: r["prob"] for r in run(other, model, tmp_path / "out")}
    assert again["action_sequence-0"] != rows["action_sequence-0"]["prob"]


def test_times_of_a_part_are_its_own(tmp_path):
    """Where positions count seconds, those between the frames of the part and not of the whole video."""
    model = random_model("qwen2.5-vl", torch.float32)
    clip = str(write_clip(tmp_path / "a.mp4"))
    item = Item(id="a", video=clip, question="what ?", options=("x", "y"), answer=0, bound=BOUND)
    laid = plan(Study(protocols=("baseline",), reuse="none"), model, tmp_path, items=[item])
    [row] = run(laid, model, tmp_path / "out")
    inputs = model.prepare(item.video, item.question, item.options, bound=BOUND)
    assert row["prob"] == model.answer(inputs).probs[item.answer]


def test_the_same_frames_at_two_rates_share_no_sweep(tmp_path):
    """Their tokens and pixels are equal; positions that count seconds are not, nor what seconds of a selector mean."""
    for number in range(4):
        (tmp_path / "frames").mkdir(exist_ok=True)
        (tmp_path / "frames" / f"{number}.jpg").write_bytes(miniatures.jpeg(number))
    same = {"video": "frames", "question": "what ?", "options": ("x", "y"), "answer": 0}
    items = [Item(id=str(fps), folder_fps=fps, **same) for fps in (1, 3)]
    sampling = {"n_frames": 4, "sampler": "linspace"}
    for family, under in (("qwen2.5-vl", ()), ("longva", (Knockout("video[0s:1s]", "text"),))):
        model = random_model(family, torch.float64)
        study = Study(protocols=("baseline",), custom=(under,) if under else (), **sampling)
        rows = run(plan(study, model, tmp_path / "items.jsonl", items=items), model, tmp_path / family)
        for item, row in zip(items, rows[:: len(rows) // 2], strict=True):
            asked = model.prepare(
                tmp_path / "frames", item.question, item.options, folder_fps=item.folder_fps, **sampling
            )
            assert row["prob"] == pytest.approx(model.answer(asked).probs[0], abs=1e-9)
            if under:
                cut = rows[rows.index(row) + 1]
                assert cut["prob"] == pytest.approx(model.answer(asked, under).probs[0], abs=1e-9) != row["prob"]


def test_what_the_prompt_and_the_order_are_made_of_is_in_the_key(tmp_path):
    """Options as their source prints them, under a convention; the video's name where its frames are shuffled by it."""
    model = random_model("longva", torch.float32)
    clip = write_clip(tmp_path / "a.mp4", n=8)
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "a.mp4").write_bytes(clip.read_bytes())
    item = Item(id="a", video="a.mp4", question="what ?", options=("x", "y", "z", "w"), answer=0)

    def keys(item, **how):
        laid = plan(Study(protocols=("baseline",), **how), model, tmp_path, items=[item])
        return {task.key for _, _, task in laid.tasks}

    printed = replace(item, meta={"options": "A) x\nB) y\nC) z\nD) w"})
    assert keys(printed) == keys(item)
    assert not keys(printed, convention="videomme/official") & keys(item, convention="videomme/official")
    moved = replace(item, video="moved/a.mp4")
    assert keys(moved) == keys(item)
    assert not keys(moved, frame_order="shuffled") & keys(item, frame_order="shuffled")


def test_extracting_the_archives_repeats_no_row(model, tmp_path):
    keys = []
    for layout in ("zip", "data"):
        dataset = read_dataset("videomme", miniatures.videomme(tmp_path / layout, layout))
        laid = plan(Study(protocols=("baseline",)), model, dataset.folder, items=dataset.items)
        keys.append([t.key for _, _, t in laid.tasks])
    assert keys[0] == keys[1]


def test_shuffled_frames_come_from_the_part_that_is_asked_about(model, tmp_path):
    dataset = read_dataset("mvbench:action_sequence:episodic_reasoning", miniatures.mvbench(tmp_path / "set"))
    study = Study(protocols=("baseline",), frame_order="shuffled")
    laid = plan(study, model, dataset.folder, items=dataset.items)
    assert {r["status"] for r in run(laid, model, tmp_path / "out")} == {"ok"}


def test_half_a_dataset_or_two_are_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match="either its items or a dataset"):
        Study(items="a.jsonl", dataset="mvbench")
    assert main(["study", "--dataset", "mvbench"]) == 2
    assert "needs its name and its folder" in capsys.readouterr().err
    assert main(["study", "--dataset", "mvbench", "--data", str(tmp_path)]) == 2
    assert "has no annotations of MVBench" in capsys.readouterr().err
    for named in ('items = "a.jsonl"', 'dataset = "mvbench"\ndata = "set"'):
        (tmp_path / "study.toml").write_text(named)
        assert main(["study", str(tmp_path / "study.toml"), "--task", "captions", "--plan"]) == 2
        assert "and --task asks the shapes clips; leave out one of the two" in capsys.readouterr().err
    (tmp_path / "study.toml").write_text('items = "a.jsonl"')
    over = ["--dataset", "mvbench", "--data", str(tmp_path)]
    assert main(["study", str(tmp_path / "study.toml"), *over, "--plan"]) == 2
    assert "asks its items 'a.jsonl', and --dataset a dataset; leave out one" in capsys.readouterr().err
    with pytest.raises(DataError, match="no options to choose from"):
        item = read_dataset("egoschema", miniatures.egoschema(tmp_path)).items[0]
        plan(Study(), HookedVideoLLM.from_pretrained("tiny"), tmp_path, items=[replace(item, options=(), answer=None)])


def test_subtitles_reach_the_prompt_and_the_key(tmp_path, model, monkeypatch):
    data = read_dataset("videomme:subtitles", miniatures.videomme(tmp_path / "set", layout="data"))
    name = "videomme/lmms-eval@2026-04+subtitles"
    study = Study(dataset=data.name, data="set", protocols=("baseline",), convention=name, scoring="generate")
    laid = plan(study, model, data.folder, None, data.items)
    said = {}
    prepare = type(model).prepare

    def overheard(self, video, question, options, *, form, **given):
        said[video.source] = form.subtitles
        return prepare(self, video, question, options, form=form, **given)

    monkeypatch.setattr(type(model), "prepare", overheard)
    rows = run(laid, model, tmp_path / "out")
    assert {r["status"] for r in rows} <= {"ok", "unparsed"}, rows[0]["reason"]
    assert len(said) == 3 and all(bool(said[str(video_path(i, data.folder))]) == bool(i.subtitles) for i in data.items)
    spoken = next(i for i in data.items if i.subtitles)
    path = data.folder / spoken.subtitles
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    again = plan(study, model, data.folder, None, data.items)
    changed = {a.item for (_, _, a), (_, _, b) in zip(laid.tasks, again.tasks, strict=True) if a.key != b.key}
    assert changed == {i.id for i in data.items if i.subtitles == spoken.subtitles}
