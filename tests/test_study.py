"""Protocols as the paper defines them, and a study whose broken items fail without harm."""

import csv
import shutil

import pytest
import torch

from hookedvid import plots
from hookedvid.cli import main
from hookedvid.data.item import read_items, write_items
from hookedvid.data.shapes import make_dataset
from hookedvid.data.shapes_words import VOCABULARY, tokenizer
from hookedvid.errors import DataError, InterventionError
from hookedvid.families import small_config
from hookedvid.interventions import LV_K, VT_K, LayerRange
from hookedvid.model import HookedVideoLLM
from hookedvid.study.protocols import BASELINE, cumulative, everywhere, paper, windows
from hookedvid.study.study import run, summarise


@pytest.fixture(scope="module")
def model() -> HookedVideoLLM:
    from dataclasses import replace

    cfg = replace(small_config("longva", n_layers=4, d_vocab=len(VOCABULARY)), prompt="tiny")
    model = HookedVideoLLM.from_config(cfg, tokenizer=tokenizer())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    return model


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("clips"), seed=3, split="test", n_videos=3, questions_per_video=2)


def test_the_full_study_of_28_layers_is_108_conditions():
    conditions = paper(28)
    assert len(conditions) == 1 + 28 + 3 + 3 * 25
    assert len({c.label for c in conditions}) == len(conditions)


def test_cumulative_cuts_every_layer_after_the_ith():
    assert [c.interventions[0].layers.layers(6) for c in cumulative(LV_K, 6, step=2)] == [
        (0, 1, 2, 3, 4, 5),
        (2, 3, 4, 5),
        (4, 5),
    ]
    assert [c.layer for c in cumulative(LV_K, 6, step=2)] == [0, 2, 4]


def test_windows_end_at_every_layer_counted_from_one():
    found = windows(VT_K, 6, 4)
    assert [(c.layer, c.interventions[0].layers) for c in found] == [
        (4, LayerRange(0, 4)),
        (5, LayerRange(1, 5)),
        (6, LayerRange(2, 6)),
    ]
    with pytest.raises(InterventionError, match="a window of 7 layers does not fit a model of 6"):
        windows(VT_K, 6, 7)


def test_conditions_from_the_shared_stream_equal_full_runs(model, annotations):
    items = read_items(annotations)[:2]
    conditions = [BASELINE, *everywhere([LV_K, VT_K])]
    rows = list(run(model, items, annotations, conditions))
    assert [r.condition for r in rows] == [c.label for c in conditions] * 2
    for row, (item, c) in zip(rows, [(i, c) for i in items for c in conditions], strict=True):
        inputs = model.prepare(annotations.parent / item.video, item.question, item.options)
        answer = model.answer(inputs, c.interventions)
        assert (row.chosen, row.prob) == (answer.index, answer.probs[item.answer])


def test_a_broken_clip_is_a_failed_row_and_the_rest_is_scored(model, annotations, tmp_path):
    items = read_items(annotations)
    shutil.copytree(annotations.parent, tmp_path / "set")
    broken = tmp_path / "set" / items[0].video
    broken.write_bytes(broken.read_bytes()[:200])
    rows = list(run(model, items, tmp_path / "set" / "items.jsonl", [BASELINE]))
    failed = [r for r in rows if r.status == "failed"]
    assert {r.item for r in failed} == {i.id for i in items if i.video == items[0].video}
    assert all(r.reason and r.correct is None and r.prob is None for r in failed)
    (summary,) = summarise(rows, [BASELINE])
    assert (summary.n, summary.failed) == (len(items) - len(failed), len(failed))
    assert summary.accuracy == sum(bool(r.correct) for r in rows) / summary.n


def test_items_without_an_answer_are_refused_before_running(model, annotations, tmp_path):
    from dataclasses import replace

    items = [replace(i, answer=None) for i in read_items(annotations)]
    with pytest.raises(DataError, match="6 items have no options or no answer to score against"):
        next(run(model, items, annotations, [BASELINE]))


def test_the_command_writes_table_and_plots(model, annotations, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    code = main(
        ["study", "--model", str(tmp_path / "model"), "--items", str(annotations), "--out", str(out), "--limit", "2"]
    )
    assert code == 0
    printed = capsys.readouterr().out
    assert "LV-K after layer 3" in printed and "VS-K 3–4" in printed
    with (out / "summary.csv").open() as f:
        summary = list(csv.DictReader(f))
    assert [s["condition"] for s in summary] == [c.label for c in paper(4)]
    assert all(s["n"] == "2" for s in summary)
    for name in ("cumulative", "windows", "all-layers"):
        assert (out / f"{name}.png").stat().st_size > 5000


def test_plots_show_the_table(model, annotations):
    items = read_items(annotations)[:3]
    conditions = paper(4)
    summaries = summarise(list(run(model, items, annotations, conditions)), conditions)
    curve = plots.layer_curve(summaries).axes[0].lines[0]
    assert list(curve.get_xdata()) == [0, 1, 2, 3, 4]
    after = [s.accuracy for s in summaries if s.condition.protocol == "cumulative"]
    assert list(curve.get_ydata()) == [*after, summaries[0].accuracy]
    for line in plots.window_curves(summaries).axes[0].lines[1:]:
        points = [
            s for s in summaries if s.condition.protocol == "windows" and s.condition.knockout == line.get_label()
        ]
        assert list(line.get_xdata()) == [s.condition.layer for s in points]
        assert list(line.get_ydata()) == [s.accuracy for s in points]
    bars = [p.get_height() for p in plots.all_layers(summaries).axes[0].patches]
    assert bars == [summaries[0].accuracy, *(s.accuracy for s in summaries if s.condition.protocol == "all layers")]


def test_a_users_error_prints_one_line(capsys, tmp_path):
    assert main(["study", "--model", "no-such-model"]) == 2
    assert "no model 'no-such-model'" in capsys.readouterr().err


def test_items_round_trip(annotations, tmp_path):
    items = read_items(annotations)
    write_items(items, tmp_path / "copy.jsonl")
    assert read_items(tmp_path / "copy.jsonl") == items
