"""A study end to end: protocols, resuming, what a key holds, broken items, tables, plots and the report."""

import json
import multiprocessing
import re
import shutil
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from hookedvid.cli.commands import main
from hookedvid.data.item import read_items, write_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.data.shapes.words import VOCABULARY, tokenizer
from hookedvid.errors import ConfigError, DataError, HookedVidError, InterventionError
from hookedvid.families.registry import small_config
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.report import plots
from hookedvid.study import protocols
from hookedvid.study.definition import Study, plan
from hookedvid.study.extractors import leading_letter
from hookedvid.study.records import ROWS, Records, frame
from hookedvid.study.results import findings as laws
from hookedvid.study.results import summary
from hookedvid.study.run import tasks as running
from hookedvid.study.run.tasks import run
from hookedvid.study.scorings.generate import Generate
from hookedvid.study.scorings.words import Words
from hookedvid.values.clips import Shuffled
from hookedvid.values.effects import effects
from hookedvid.values.interventions import LV_K, VT_K, Ablate, EarlyExit, Edit, LayerRange, Steer, to_json
from hookedvid.values.masks import allowed
from hookedvid.video.frames import read_clip

pytestmark = pytest.mark.shapes_unchecked

NAMES = ("condition", "protocol", "knockout", "layer")  # of a row that conditions of two protocols share


@pytest.fixture(scope="module")
def model() -> HookedVideoLLM:
    cfg = replace(small_config("longva", n_layers=4, d_vocab=len(VOCABULARY)), prompt="tiny")
    model = HookedVideoLLM.from_config(cfg, tokenizer=tokenizer())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    return model


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A saved model and a set of 4 clips with 2 questions each."""
    at = tmp_path_factory.mktemp("study")
    model.save_pretrained(at / "model")
    make_dataset(at / "set", seed=3, split="test", n_videos=4, questions_per_video=2)
    (at / "study.toml").write_text(f'model = "{at}/model"\nitems = "set/items.jsonl"\nn_resamples = 200\n')
    return at


@pytest.fixture(scope="module")
def finished(folder, model):
    """The whole study, run once."""
    laid = plan(Study(n_resamples=200), model, folder / "set" / "items.jsonl")
    return laid, run(laid, model, folder / "finished")


def test_the_papers_study_of_28_layers_is_108_conditions_of_105_different_ones():
    paper = Study(protocols=("baseline", "cumulative", "all-layers", "windows")).conditions(28)
    assert len(paper) == 1 + 28 + 3 + 3 * 25 + 1 - 1
    what = [c.interventions for c in paper]
    cuts = {tuple((k.src, k.dst, k.relation, k.layers.layers(28)) for k in i) for i in what}
    assert len(cuts) == 105  # LV-K after 0 = in all layers; after 24 = its last window


def test_custom_conditions_may_be_values_and_are_read_when_the_study_is_made():
    written = tuple(to_json([EarlyExit(2), LV_K]))
    study = Study(custom=((EarlyExit(2), LV_K), written))
    assert study == Study(custom=(written, written)) and study.custom[0][1]["src"] == "video"
    assert study.conditions(4)[-1].interventions == (EarlyExit(2), LV_K)
    assert study == Study(custom=(("exit @ 2", "LV-K"), ("exit @ 2; LV-K",)))
    with pytest.raises(InterventionError, match=r"custom holds a list of interventions for each condition"):
        Study(custom=(LV_K,))
    with pytest.raises(InterventionError, match="7 is no intervention; give Knockout"):
        Study(custom=((7,),))
    with pytest.raises(InterventionError, match=r"EarlyExit has no field 'layr' \(nearest: 'layer'"):
        Study(custom=(({"kind": "early_exit", "layr": 2},),))
    with pytest.raises(InterventionError, match="an edit is a Python function, which no file can hold"):
        Study(custom=((Edit("z", 1, abs),),))


def test_cumulative_cuts_every_layer_after_the_ith():
    found = protocols.cumulative(LV_K, 6, step=2)
    assert [(c.layer, c.interventions[0].layers.layers(6)[0]) for c in found] == [(0, 0), (2, 2), (4, 4)]
    assert all(c.interventions[0].layers.layers(6)[-1] == 5 for c in found)


def test_windows_end_at_every_layer_counted_from_one():
    found = [(c.layer, c.interventions[0].layers) for c in protocols.windows(VT_K, 6, 4)]
    assert found == [(4, LayerRange(0, 4)), (5, LayerRange(1, 5)), (6, LayerRange(2, 6))]
    with pytest.raises(InterventionError, match="a window of 7 layers does not fit a model of 6"):
        protocols.windows(VT_K, 6, 7)


def test_the_random_control_cuts_as_many_edges(model, folder):
    item = read_items(folder / "set" / "items.jsonl")[0]
    layout = model.prepare(folder / "set" / item.video, item.question, item.options).layout
    whole = allowed(layout).sum()
    for cut, control in zip(protocols.everywhere([LV_K, VT_K]), protocols.random_control([LV_K, VT_K]), strict=True):
        masks = [allowed(layout, effects(c.interventions, 1).every_cut) for c in (cut, control)]
        assert masks[0].sum() == masks[1].sum() < whole
        assert not torch.equal(*masks) and bool(masks[1].diagonal().all())


def test_rows_equal_single_answers(finished, model, folder):
    laid, rows = finished
    inputs = {i.id: model.prepare(folder / "set" / i.video, i.question, i.options) for i in laid.items[:2]}
    for row, (item, condition, _) in list(zip(rows, laid.tasks, strict=True))[:40]:
        answer = model.answer(inputs[item.id], condition.interventions)
        assert row["chosen"] == answer.index
        assert row["prob"] == pytest.approx(answer.probs[item.answer], abs=1e-6)  # rows of a sweep round otherwise
        assert row["correct"] == (answer.index == item.answer) and row["condition"] == condition.label


def test_sharing_work_changes_no_bit_by_layers_and_only_rounding_by_positions(model, folder, tmp_path):
    study = Study.from_toml(folder / "study.toml")
    rows = {}
    for reuse in ("none", "layers", "layers+positions"):
        laid = plan(replace(study, reuse=reuse), model, folder / study.items, limit=2)
        rows[reuse] = run(laid, model, tmp_path / reuse)
    for one, other, swept in zip(*rows.values(), strict=True):
        assert one["prob"] == other["prob"] and one["margin"] == other["margin"] and one["chosen"] == other["chosen"]
        assert one["prob"] == pytest.approx(swept["prob"], abs=1e-6)  # float32 logits apart by some 1e-6
        assert one["chosen"] == swept["chosen"]
        assert one["key"] != other["key"] != swept["key"]


def test_writes_before_the_blocks_have_the_same_rows_whatever_is_shared(model, folder, tmp_path):
    """To the embeddings, which a sweep takes as it takes blocks, and to the tower, which it leaves to plain runs."""
    study = Study.from_toml(folder / "study.toml")
    d = model.cfg.vision.d_model
    save_file({"v": torch.randn(d, generator=torch.Generator().manual_seed(0)) * 9}, tmp_path / "v.safetensors")
    writes = [Ablate("embed", at="video[2]"), Ablate("resid_post", "2:", "video", "noise", seed=1)]
    saved = f"{tmp_path}/v.safetensors"
    writes += [Ablate("vision.resid_post", "1:", "steps[1]"), Steer("vision.out", at="video", vector=saved)]
    study = replace(study, protocols=("baseline",), custom=tuple((w,) for w in writes))
    rows = {}
    for reuse in ("none", "layers", "layers+positions"):
        laid = plan(replace(study, reuse=reuse), model, folder / study.items, limit=2)
        rows[reuse] = run(laid, model, tmp_path / reuse)
    for one, other, swept in zip(*rows.values(), strict=True):
        assert one["prob"] == other["prob"] and one["prob"] == pytest.approx(swept["prob"], abs=1e-6)
    by = {}
    for row in rows["none"]:
        by.setdefault(row["item"], []).append(row["prob"])
    assert all(len(set(probs)) == 1 + len(writes) for probs in by.values()), "nothing was done"


def test_what_is_asked_besides_moves_a_row_by_rounding_alone(model, folder, tmp_path):
    """Text rows of one video are computed together: 1e-6 is some ten roundings of a float32 logit."""
    study = Study.from_toml(folder / "study.toml")
    few = plan(replace(study, protocols=("baseline", "windows")), model, folder / study.items, limit=2)
    more = plan(study, model, folder / study.items, limit=3)
    apart = {r["key"]: r for r in run(few, model, tmp_path / "few")}
    whole = {r["key"]: r for r in run(more, model, tmp_path / "more")}
    assert apart.keys() < whole.keys()
    for key, row in apart.items():
        assert whole[key]["prob"] == pytest.approx(row["prob"], abs=1e-6) and whole[key]["chosen"] == row["chosen"]


def test_one_row_in_a_hundred_is_run_again_and_a_wrong_one_stops_the_study(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "AUDITED", 1)
    study = Study.from_toml(folder / "study.toml")
    laid = plan(study, model, folder / study.items, limit=2)
    audit = running.Audit()
    run(laid, model, tmp_path / "right", audit=audit)
    assert audit.n == len({t.key for _, _, t in laid.tasks}) and 0 < audit.largest < 1e-4
    exact = running.sweep
    monkeypatch.setattr(running, "sweep", lambda *a, **k: [[x + 0.01 * x.std() for x in row] for row in exact(*a, **k)])
    with pytest.raises(HookedVidError, match=r"logits of the sweep are off by .* from a plain run"):
        run(laid, model, tmp_path / "wrong")


def test_the_key_before_the_run_is_the_key_found_after(finished, folder):
    laid, rows = finished
    stored = Records(folder / "finished").read()
    assert set(stored) == {t.key for _, _, t in laid.tasks}
    assert [r["key"] for r in rows] == [t.key for _, _, t in laid.tasks]
    assert len(stored) < len(rows)  # conditions of two protocols that do the same are stored once


@pytest.mark.usefixtures("undrawn")
def test_a_killed_study_goes_on_where_it_was(folder, finished, capsys, monkeypatch):
    out = folder / "killed"
    command = ["study", str(folder / "study.toml"), "--out", str(out)]
    process = multiprocessing.get_context("fork").Process(target=main, args=(command,), daemon=True)
    process.start()
    for _ in range(2400):
        if (out / ROWS).exists() and (out / ROWS).stat().st_size > 20_000:
            break
        time.sleep(0.02)
    process.kill()
    process.join()
    with (out / ROWS).open("ab") as f:
        f.write(b'{"key": "torn')  # as if killed in the middle of a line
    kept = len(Records(out).read())
    laid, rows = finished
    assert 0 < kept < len({t.key for _, _, t in laid.tasks})
    monkeypatch.setenv("COLUMNS", "200")
    assert main(command) == 0
    fresh, found = map(int, re.search(r"(\d+) rows run, (\d+) found", capsys.readouterr().out).groups())
    assert fresh == len({t.key for _, _, t in laid.tasks}) - kept and fresh + found == len({r["key"] for r in rows})
    again = Records(out).read()
    assert {k: v["prob"] for k, v in again.items()} == {r["key"]: r["prob"] for r in rows}
    assert (out / "summary.csv").read_text() == _summary_text(folder, laid, rows)


def _summary_text(folder, laid, rows) -> str:
    found = summary.summarise(summary.Outcomes(laid.items, laid.conditions, rows), 200)
    summary.write_csv(found, folder / "expected.csv")
    return (folder / "expected.csv").read_text()


@pytest.mark.parametrize(
    "change",
    ["model", "video", "question", "sampler", "n_frames", "frame_order", "dtype", "scoring", "kernel", "condition"],
)
def test_nothing_is_reused_across_a_changed_setting(change, folder, model, tmp_path):
    study, net, annotations = Study(protocols=("baseline",)), model, folder / "set" / "items.jsonl"
    before = {t.key for _, _, t in plan(study, net, annotations).tasks}
    if change in ("video", "question"):
        shutil.copytree(folder / "set", tmp_path / "set")
        annotations = tmp_path / "set" / "items.jsonl"
        items = read_items(annotations)
        if change == "video":
            for path in {annotations.parent / i.video for i in items}:
                path.write_bytes(path.read_bytes() + b"\0")
        else:
            write_items([replace(i, question="what color is grass ?") for i in items], annotations)
    elif change in ("model", "dtype", "kernel"):
        net = HookedVideoLLM.from_pretrained(folder / "model", dtype="bfloat16" if change == "dtype" else None)
        if change == "model":
            net.blocks[0].attn.q.weight.data[0, 0] += 1e-3
        net.kernel = "eager" if change == "kernel" else "sdpa"
    elif change == "condition":
        study = Study(protocols=("all-layers",))
    else:
        new = {"sampler": "inner", "n_frames": 4, "frame_order": "shuffled", "scoring": "words"}[change]
        study = replace(study, **{change: new})
    after = {t.key for _, c, t in plan(study, net, annotations).tasks if change != "condition" or c.interventions}
    assert after and not before & after


def test_a_broken_clip_is_a_failed_row_and_the_rest_is_scored(model, folder, tmp_path):
    shutil.copytree(folder / "set", tmp_path / "set")
    annotations = tmp_path / "set" / "items.jsonl"
    items = read_items(annotations)
    broken = annotations.parent / items[0].video
    broken.write_bytes(broken.read_bytes()[:200])
    laid = plan(Study(protocols=("all-layers",)), model, annotations)
    rows = run(laid, model, tmp_path / "out")
    failed = [r for r in rows if r["status"] == "failed"]
    assert {r["item"] for r in failed} == {i.id for i in items if i.video == items[0].video}
    assert all(r["reason"] and r["correct"] is None for r in failed)
    base = summary.summarise(summary.Outcomes(items, laid.conditions, rows), 50)[0]
    assert (base.n, base.failed) == (6, 2)
    assert base.accuracy.value == np.mean(
        [r["correct"] for r in rows if r["condition"] == "baseline" and r["chosen"] is not None]
    )


def test_a_second_writer_is_refused(tmp_path):
    with (
        Records(tmp_path).writer(),
        pytest.raises(DataError, match="another run is writing"),
        Records(tmp_path).writer(),
    ):
        pass


def test_shuffled_frames_are_the_same_frames_in_another_order(folder):
    item = read_items(folder / "set" / "items.jsonl")[0]
    clip = read_clip(folder / "set" / item.video, 8)

    def shuffled(seed):
        return Shuffled(seed, item.video).change(clip.frames, None)

    mixed = shuffled(0)
    assert not np.array_equal(mixed, clip.frames)
    assert sorted(f.tobytes() for f in mixed) == sorted(f.tobytes() for f in clip.frames)
    assert np.array_equal(mixed, shuffled(0))  # one order a clip
    assert not np.array_equal(mixed, shuffled(1))


def test_scoring_by_words_and_by_generation(model, folder):
    item = read_items(folder / "set" / "items.jsonl")[0]
    inputs = Words().inputs(partial(model.prepare, folder / "set" / item.video), model, item)
    words = [model.to_single_token(o) for o in item.options]
    logits = model(inputs)[0, -1].detach()
    found = Words().outcome(model, item, logits, inputs)
    assert found.chosen == int(logits[words].argmax())
    assert found.prob == pytest.approx(float(logits.softmax(-1)[words[item.answer]]))
    others = [w for i, w in enumerate(words) if i != item.answer]
    assert found.margin == pytest.approx(float(logits[words[item.answer]] - logits[others].max()), abs=1e-6)
    spoken = Generate().generated(
        model, item, model.prepare(folder / "set" / item.video, item.question, item.options), ()
    )
    assert spoken.status in ("ok", "unparsed") and (spoken.status == "ok") == (spoken.chosen is not None)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("B", 1),
        ("B.", 1),
        (" (C) red", 2),
        ("D: it", 3),
        ("E", None),
        ("Because", None),
        ("red", None),
        ("", None),
        ("b", None),
    ],
)
def test_generated_text_is_parsed_or_unparsed_but_never_guessed(text, chosen):
    assert leading_letter(text, "wxyz") == chosen


def test_a_study_file_refuses_unknown_fields_and_names(tmp_path):
    (tmp_path / "s.toml").write_text('modle = "tiny"\nstep = "two"\n')
    with pytest.raises(ConfigError, match=r"no field 'modle' \(nearest: 'model'.*Study.step should be a int"):
        Study.from_toml(tmp_path / "s.toml")
    with pytest.raises(ConfigError, match="no knockout 'LVK'"):
        Study(knockouts=("LVK",))


def test_a_knockout_named_twice_is_run_once():
    twice = Study(knockouts=("LV-K", "VT-K", "LV-K"))
    assert twice.conditions(4) == Study(knockouts=("LV-K", "VT-K")).conditions(4)


def test_groups_keep_the_language_control_apart(finished):
    laid, rows = finished
    groups = summary.Outcomes(laid.items, laid.conditions, rows).groups()
    assert {"all", "video"} <= groups.keys()
    assert (groups["video"] == ~groups["language"]).all()


def test_laws_are_not_claimed_without_a_model_above_chance(finished):
    laid, rows = finished
    o = summary.Outcomes(laid.items, laid.conditions, rows)
    told = laws.findings(o, "all", 4, 200)
    assert [f.supported for f in told] == [False] and "8 questions, 4 videos; a finding needs 20" in told[0].sentence
    o.items = [replace(_item(i), video=f"{i}.mp4") for i in range(40)]
    o.values["accuracy"] = np.arange(len(o.conditions) * 40).reshape(-1, 40) % 4 == 0.0
    told = laws.findings(o, "all", 4, 200)
    assert [f.supported for f in told] == [False] and "not above chance" in told[0].sentence


def test_laws_find_what_was_put_in():
    """Made-up rows: LV-K hurts until layer 2 of 4 and in window 2–3 only; VT-K and VS-K cost nothing."""
    study = Study(width=2, protocols=("cumulative", "all-layers", "windows"))
    conditions = study.conditions(4)
    items = [replace(_item(i), video=f"{i // 2}.mp4") for i in range(120)]
    bad = {"LV-K after layer 0", "LV-K after layer 1", "LV-K all layers", "LV-K 2–3"}
    rows = [
        {"item": it.id, "condition": c.label, "status": "ok", "prob": 0.5, "margin": 0.0}
        | {"correct": i % 4 == 0 if c.label in bad else i % 10 > 0}
        for i, it in enumerate(items)
        for c in conditions
    ]
    stages, flow, windows = laws.findings(summary.Outcomes(items, conditions, rows), "all", 4, 500)
    assert stages.supported and "up to layer 2 of 4 [2, 2]" in stages.sentence
    assert flow.supported and flow.sentence.startswith("LV-K in every layer costs 65.0 points")
    assert (
        windows.supported
        and windows.sentence.startswith("LV-K 2–3 costs 65.0 points [")
        and ";" not in windows.sentence
    )


def _item(i: int):
    from hookedvid.data.item import Item

    return Item(id=str(i), video="x.mp4", question="q ?", options=("a", "b", "c", "d"), answer=0, family="static")


def test_plots_show_the_table(finished):
    laid, rows = finished
    found = summary.summarise(summary.Outcomes(laid.items, laid.conditions, rows), 100)
    one = [s for s in found if s.group == "all"]
    curve = plots.layer_curve(one, 4).axes[0].lines[0]
    assert list(curve.get_xdata()) == [0, 0.25, 0.5, 0.75, 1]
    after = [s.ratio.value for s in one if s.condition.protocol == "cumulative"]
    assert list(curve.get_ydata()) == [*after, 1.0]
    containers = plots.window_curves(one).axes[0].containers
    for c in containers:
        points = [s for s in one if s.condition.protocol == "windows" and s.condition.knockout == c.get_label()]
        assert list(c.lines[0].get_xdata()) == [s.condition.layer for s in points]
        assert list(c.lines[0].get_ydata()) == [s.accuracy.value for s in points]
    assert len(containers) == 3
    bars = [p.get_height() for p in plots.all_layers(one).axes[0].patches]
    assert bars == [one[0].accuracy.value, *(s.accuracy.value for s in one if s.condition.protocol == "all layers")]
    image = plots.window_heatmap(found, "LV-K").axes[0].images[0].get_array()
    groups = list(dict.fromkeys(s.group for s in found))
    expected = [
        [
            s.ratio.value
            for s in found
            if (s.group, s.condition.knockout, s.condition.protocol) == (g, "LV-K", "windows")
        ]
        for g in groups
    ]
    assert np.allclose(np.asarray(image), expected, equal_nan=True)


def test_the_command_writes_everything(folder, capsys, tmp_path):
    out = tmp_path / "out"
    assert (
        main(["study", str(folder / "study.toml"), "--out", str(out), "--limit", "6", "--protocol", "all-layers"]) == 0
    )
    printed = capsys.readouterr().out
    assert "LV-K all layers" in printed and "cumulative" not in printed
    table = pd.read_parquet(out / "rows.parquet")
    assert len(table) == 6 * 4 and json.loads(table["interventions"][1])[0]["src"] == "video"
    assert set(table["settings.dtype"]) == {"float32"}
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + 6 and "http" not in page.replace("http-equiv", "")
    assert (out / "all-layers.png").stat().st_size > 5000
    (out / "report.html").unlink()
    assert main(["plot", str(out)]) == 0
    again = capsys.readouterr().out
    assert again.split("video questions")[1] == printed.split("video questions")[1]
    assert (out / "report.html").read_text() == page
    assert frame(Records(out).read().values()).shape[0] == len(table)


@pytest.mark.usefixtures("undrawn")
def test_shards_come_to_the_same_table(folder, finished, capsys, tmp_path):
    out = tmp_path / "out"
    command = ["study", str(folder / "study.toml"), "--out", str(out), "--shard"]
    assert main([*command, "1/3"]) == 0
    assert "rows of other shards are missing" in capsys.readouterr().out
    assert main([*command, "0/3"]) == 0 and main([*command, "2/3"]) == 0
    assert "LV-K all layers" in capsys.readouterr().out
    assert sorted(p.name for p in out.glob("rows*.jsonl")) == [f"rows-{i}of3.jsonl" for i in range(3)]
    rows = Records(out).read()
    assert all(rows[r["key"]] | {k: r[k] for k in NAMES} == r for r in finished[1]) and len(rows) < len(finished[1])
    assert (out / "summary.csv").read_text() == _summary_text(folder, *finished)
    assert main([*command, "3/3"]) == 2
    assert "shard 3/3 does not exist" in capsys.readouterr().err


def test_ask_answers_under_a_knockout(folder, capsys):
    item = read_items(folder / "set" / "items.jsonl")[0]
    clip = str(folder / "set" / item.video)
    code = main(
        [
            "ask",
            clip,
            item.question,
            *item.options,
            "--model",
            str(folder / "model"),
            "--under",
            "LV-K @ 1:3",
            "--under",
            "exit @ 1; VT-K",
        ]
    )
    printed = capsys.readouterr().out
    assert code == 0 and "video[0]" in printed and "intact: " in printed and "LV-K 2–3: " in printed
    assert "exit after layer 1 + VT-K all layers: " in printed


def test_a_users_error_prints_one_line(capsys):
    assert main(["study", "--model", "no-such-model"]) == 2
    assert "no model 'no-such-model'" in capsys.readouterr().err
    assert main(["inspect", "nothing"]) == 2
