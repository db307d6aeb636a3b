"""Studies that keep texts: what rows say of their convention, reading them once more, hidden answers, broken models."""

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import pandas as pd
import pytest
import torch

from hookedvid.cli.commands import main
from hookedvid.data.item import read_items, write_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.data.shapes.words import VOCABULARY, tokenizer
from hookedvid.errors import DataError
from hookedvid.families.registry import small_config
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.study.conventions import CONVENTIONS
from hookedvid.study.extractors import extractor
from hookedvid.study.records import ROWS
from hookedvid.study.results import rescoring
from hookedvid.study.scorings.generate import Generate
from hookedvid.study.scorings.letters import Letters

pytestmark = pytest.mark.shapes_unchecked

TEXTS = ("Answer: D", "B", "", "!!!!!!!!", "none of them")


@pytest.fixture(scope="module")
def net():
    cfg = replace(small_config("llava-video", n_layers=2, d_vocab=len(VOCABULARY)), prompt="tiny")
    return HookedVideoLLM.from_config(cfg, tokenizer=tokenizer())


@pytest.fixture(scope="module")
def folder(net, tmp_path_factory):
    """A saved model, and 2 clips with 5 questions each."""
    at = tmp_path_factory.mktemp("rescore")
    net.save_pretrained(at / "model")
    make_dataset(at / "set", seed=3, split="test", n_videos=2, questions_per_video=5)
    return at


@pytest.fixture
def study(folder, monkeypatch, tmp_path, undrawn):
    """Runs a study that generates TEXTS in turn; gives its folder."""

    def made(dataset: str, convention: str, hidden: bool = False, **fields: object):
        said = iter(TEXTS * 1000)
        monkeypatch.setattr(HookedVideoLLM, "generate", lambda *args, **kwargs: next(said))
        items = [replace(i, meta={"dataset": dataset}) for i in read_items(folder / "set" / "items.jsonl")]
        if hidden:  # one question a clip
            items = [replace(i, answer=None) for i in {i.video: i for i in items}.values()]
        write_items(items, folder / "set" / f"{dataset}.jsonl")
        lines = {"model": str(folder / "model"), "items": f"set/{dataset}.jsonl", "scoring": "generate"}
        lines |= {"convention": convention, "n_resamples": 100, "protocols": ["all-layers"]} | fields
        (folder / "study.toml").write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in lines.items()))
        assert main(["study", str(folder / "study.toml"), "--out", str(tmp_path / "out")]) == 0
        return tmp_path / "out"

    return made


def stored(out) -> list[dict]:
    return [json.loads(line) for line in (out / ROWS).read_text().splitlines()]


def test_rows_say_all_of_their_convention_and_keep_every_text(study, capsys):
    out = study("videomme", "lmms-eval@2024-06")
    rows = stored(out)
    assert Counter(r["text"] for r in rows) == dict.fromkeys(TEXTS, 8) and len(rows) == 10 * 4
    wanted = {"convention": "videomme/lmms-eval@2024-06", "extractor": "videomme/lmms-eval@2024-06"}
    wanted |= {"sampler": "one_fps", "scoring": "generate", "max_new_tokens": 16}  # llava_vid's sampler
    assert (
        all(r["settings"].items() >= wanted.items() for r in rows) and len({r["settings"]["form"] for r in rows}) == 1
    )
    found = {r["text"]: (r["status"], r["chosen"], r["flag"]) for r in rows}
    assert found == {
        "Answer: D": ("ok", 0, ""),  # this rule's own error
        "B": ("ok", 1, ""),
        "": ("unparsed", None, "empty"),
        "!!!!!!!!": ("unparsed", None, "degenerate"),
        "none of them": ("unparsed", None, ""),
    }
    printed = " ".join(capsys.readouterr().out.split())
    assert "as printed: the way of videomme/lmms-eval@2024-06" in printed and "garbled" in printed
    summary = pd.read_csv(out / "summary.csv").query("group == 'all' and condition == 'baseline'").iloc[0]
    assert (summary.n, summary.unparsed, summary["empty"], summary.degenerate, summary.parsed) == (10, 6, 2, 2, 0.4)
    assert summary.accuracy == summary.as_printed and summary.accuracy == pytest.approx(summary.of_parsed * 0.4)
    assert "of parsed" in (out / "report.html").read_text()


def test_rescoring_changes_what_is_read_and_nothing_that_is_stored(study, capsys):
    out = study("videomme", "lmms-eval@2024-06")
    before = (out / ROWS).read_bytes(), (out / "rows.parquet").read_bytes(), (out / "study.json").read_bytes()
    capsys.readouterr()
    assert main(["rescore", str(out), "--extractor", "lmms-eval@2026-04"]) == 0
    printed = capsys.readouterr().out
    assert (
        "8 of 40 answers read otherwise" in printed and "as printed: the way of videomme/lmms-eval@2026-04" in printed
    )
    assert before == ((out / ROWS).read_bytes(), (out / "rows.parquet").read_bytes(), (out / "study.json").read_bytes())
    table = pd.read_parquet(out / "rescored" / "videomme-lmms-eval@2026-04.parquet")
    assert main(["submission", str(out)]) == 2
    assert "is no study of EgoSchema but of videomme" in capsys.readouterr().err
    assert (table.chosen != table.stored_chosen)[table.text == "Answer: D"].all()
    assert set(table.chosen[table.text == "Answer: D"]) == {3} and set(table.stored_chosen.dropna()) == {0, 1}
    csv = pd.read_csv(out / "rescored" / "videomme-lmms-eval@2026-04.csv")
    right = table.query("condition == 'baseline'").correct.eq(True).mean()
    assert csv.query("group == 'all' and condition == 'baseline'").accuracy.iloc[0] == pytest.approx(right)
    assert main(["rescore", str(out), "--extractor", "leading-letter@1"]) == 0
    assert "8 of 40 answers read otherwise" in capsys.readouterr().out  # "Answer: D" names none
    assert main(["rescore", str(out), "--extractor", "mvbench/official"]) == 2
    assert "is not for videomme" in capsys.readouterr().err
    assert main(["rescore", str(out), "--extractor", "nonsense"]) == 2
    assert "no extractor 'nonsense'" in capsys.readouterr().err


def test_what_nobody_said_is_right_only_in_the_number_that_is_printed(study):
    out = study("mvbench", "official")
    assert {r["settings"]["n_frames"] for r in stored(out)} == {16}
    summary = pd.read_csv(out / "summary.csv").query("group == 'all' and condition == 'baseline'").iloc[0]
    # Two of ten texts are empty, and two are "B".
    assert summary.as_printed == pytest.approx(summary.accuracy + 0.2) and summary.parsed == pytest.approx(0.2)


def test_hidden_answers_are_asked_and_submitted(study, capsys):
    out = study("egoschema", "lmms-eval@2026-07", hidden=True)
    printed = capsys.readouterr().out
    assert "nothing to score" in printed and "answers for the evaluation server" in printed
    assert all(r["correct"] is None and r["status"] in ("ok", "unparsed") for r in stored(out))
    (path,) = (out / "submissions").iterdir()
    answers = json.loads(path.read_text())
    assert answers.keys() == {"test-3-00000", "test-3-00001"} and set(answers.values()) <= {0, 1, 2, 3}
    assert main(["submission", str(out)]) == 0
    assert f"{path}: 2 clips, 0 without an answer" in capsys.readouterr().out.replace("\n", "")
    assert main(["submission", str(out), "--condition", "LV-K all layers"]) == 0
    assert main(["submission", str(out), "--condition", "LV-K"]) == 2
    assert "no condition 'LV-K' was run" in capsys.readouterr().err


def test_letters_take_a_conventions_prompt_and_leave_no_text_to_read(study, capsys):
    out = study("mvbench", "official", scoring="letters")
    settings = stored(out)[0]["settings"]
    assert settings["convention"] == "mvbench/official" and "extractor" not in settings
    assert pd.read_csv(out / "summary.csv").as_printed.isna().all()
    assert main(["rescore", str(out), "--extractor", "official"]) == 2
    assert "this study kept no texts" in capsys.readouterr().err


def test_failed_rows_stay_failed(folder):
    item = read_items(folder / "set" / "items.jsonl")[0]
    row = {"item": item.id, "status": "failed", "chosen": None, "correct": None, "text": "", "flag": ""}
    row |= {"settings": {"scoring": "generate"}}
    found = rescoring.rescore([item], [row], CONVENTIONS["mvbench/official"])
    assert (found.n, found.changed, found.rows[0]["status"]) == (0, 0, "failed")
    with pytest.raises(DataError, match="kept no texts"):
        rescoring.rescore([item], [row | {"settings": {"scoring": "words"}}], extractor("leading-letter@1"))


def test_numbers_that_are_none_fail_and_are_counted_as_garbled(net, folder):
    item = read_items(folder / "set" / "items.jsonl")[0]
    inputs = Letters().inputs(partial(net.prepare, folder / "set" / item.video), net, item)
    with torch.no_grad():
        intact = net.ln_final.weight.clone()
        net.ln_final.weight.fill_(torch.nan)
        try:
            logits = net(inputs, logits_to_keep=1)[0, -1]
            found = Letters().outcome(net, item, logits, inputs), Generate().generated(net, item, inputs, ())
        finally:
            net.ln_final.weight.copy_(intact)
    for outcome in found:
        assert outcome.status == "failed" and outcome.flag == "non-finite"
        assert "the logits are not finite" in outcome.reason and outcome.chosen is None
    hidden = Letters().outcome(net, replace(item, answer=None), net(inputs, logits_to_keep=1)[0, -1], inputs)
    assert hidden.chosen is not None and hidden.correct is None and hidden.prob is None
