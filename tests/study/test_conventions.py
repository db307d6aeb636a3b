"""Conventions: prompts byte for byte, what a study takes from one, what evaluators count, and the means of groups."""

import json
import re
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hookedvid.data.convention import guess
from hookedvid.data.item import Item
from hookedvid.data.registry import DATASETS
from hookedvid.errors import ConfigError, DataError, InputError
from hookedvid.families.prompts import QuestionForm, pieces
from hookedvid.families.registry import FAMILIES, small_config, template
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.study import conventions
from hookedvid.study.conventions import CONVENTIONS, convention
from hookedvid.study.definition import Study
from hookedvid.study.extractors import extractor
from hookedvid.study.protocols import BASELINE
from hookedvid.study.results import breakdown, submission
from hookedvid.study.results.summary import Outcomes, summarise
from hookedvid.study.scorings.choice import chance
from hookedvid.study.scorings.generate import Generate, read_text
from hookedvid.study.scorings.letters import Letters
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.video.samplers import SAMPLERS

QUESTION = "What {moves}?"
FOUR = ("Apples.", "B, of course", "42", "{letter}")
LINES = "\nA. Apples.\nB. B, of course\nC. 42\nD. {letter}"
SELECT = "Select the best answer to the following multiple-choice question based on the video"
ONLY = ". Respond with only the letter (A, B, C, or D) of the correct option.\n"
DIRECTLY = "Answer with the option's letter from the given choices directly."
CAREFULLY = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)
MVBENCH = "(A) Apples.\n(B) B, of course\n(C) 42\n(D) {letter}\n"
QWEN = template("qwen_1_5")
OTHER = "longva"

# What stands between the video and the assistant's header, by convention and family of models.
ASKED = [
    (
        "videomme/lmms-eval@2026-04",
        OTHER,
        f"{SELECT} and the subtitles{ONLY}{QUESTION}{LINES}\n\n{DIRECTLY}",  # with an empty line
    ),
    (
        "videomme/lmms-eval@2026-04",
        "llava-video",
        f"{SELECT} and the subtitles{ONLY}{QUESTION}{LINES}\nThe best answer is:",
    ),
    ("videomme/lmms-eval@2024-06", OTHER, f"{SELECT} and the subtitles{ONLY}{QUESTION}{LINES}\n\n{DIRECTLY}"),
    ("videomme/official", OTHER, f"{SELECT}{ONLY}{QUESTION}{LINES}\nThe best answer is:"),
    (
        "videomme/vlmevalkit",
        OTHER,
        f"\nThese are the frames of a video. {SELECT}{ONLY}Question: {QUESTION}{LINES}\nAnswer: ",
    ),
    ("mvbench/lmms-eval@2026-04", OTHER, f"Question:{QUESTION}\nOption:\n{MVBENCH}Only give the best option.\n"),
    ("egoschema/lmms-eval@2026-07", OTHER, f"{QUESTION}{LINES}\n{DIRECTLY}"),
]  # fmt: skip


def text_of(form: QuestionForm, options: tuple[str, ...] = FOUR) -> str:
    return "".join(p.text or "<video>" for p in pieces(QWEN, QUESTION, options, 8, form=form))


@pytest.mark.parametrize(("name", "family", "asked"), ASKED)
def test_prompts_are_those_of_the_evaluators(name, family, asked):
    form = CONVENTIONS[name].form_for(family)
    assert text_of(form) == f"{QWEN.before}<video>\n{asked}{QWEN.after}"
    if "{lettered}" in form.option:
        lettered = tuple(LINES[1:].split("\n"))
        assert text_of(form, lettered) == text_of(form), "options that come with their letters get no others"


@pytest.mark.parametrize("name", ["mvbench/official", "mvbench/vlmevalkit"])
def test_mvbench_of_its_authors_has_a_system_text_and_begins_the_answer(name):
    form = CONVENTIONS[name].form
    asked = f"Question: {QUESTION}\nOptions:\n{MVBENCH}Only give the best option."
    assert text_of(form) == f"{QWEN.before}{CAREFULLY}<video>\n{asked}{QWEN.after}Best option:("
    roles = [(p.role, p.index) for p in pieces(QWEN, QUESTION, FOUR[:2], 8, form=form)]
    assert roles == [
        *[("system", None), ("system", None), ("video", None), ("template", None), ("question", None)],
        *[("options", 0), ("options", 1), ("template", None), ("template", None), ("template", None)],
    ]


@pytest.mark.parametrize(("given", "said"), [("Hi\n{there}", "Hi\n{there}"), ("", "No subtitles available")])
def test_subtitles_stand_ahead_of_the_instruction(given, said):
    form = CONVENTIONS["videomme/lmms-eval@2026-04+subtitles"].form_for("llava-video")
    with pytest.raises(InputError, match="this form of prompt holds subtitles"):
        text_of(form)
    listed = f"This video's subtitles are listed below: \n{said}\n{SELECT} and the subtitles{ONLY}"
    asked = f"{listed}{QUESTION}{LINES}\nThe best answer is:"
    assert text_of(replace(form, subtitles=given)) == f"{QWEN.before}<video>\n{asked}{QWEN.after}"


def test_every_convention_names_what_exists():
    wrappers = {w.name for f in FAMILIES.values() for w in f.wrappers.values()}
    for c in CONVENTIONS.values():
        assert c.rule.name == c.extractor and c.forms.keys() <= wrappers
        assert {c.sampler_for(f) for f in FAMILIES} <= {None, *SAMPLERS}
        assert (c.rule.check is not None) == (c.unparsed == "check")


def item(i: int = 0, answer: int | None = 1, dataset: str = "", n: int = 4, **meta) -> Item:
    meta |= {"dataset": dataset} if dataset else {}
    return Item(
        id=f"q{i}", video=f"v{i // 2}.mp4", question="q ?", options=tuple("wxyzuv"[:n]), answer=answer, meta=meta,
        family=str(meta.pop("family", "")),
    )  # fmt: skip


def test_a_name_is_of_the_dataset_that_is_asked():
    items = [item(dataset="mvbench")]
    assert convention("official", items) is CONVENTIONS["mvbench/official"]
    assert convention("lmms-eval@2026-04", [item()], "egoschema").max_new_tokens == 1024
    assert convention("videomme/official", [item()]) is CONVENTIONS["videomme/official"]
    for name, given, said in (
        ("oficial", items, r"no convention 'oficial' \(nearest: 'official'"),
        ("official", [item()], "depends on the dataset, and the items are of no dataset that is told; write one of"),
        ("official", [item(dataset="egoschema")], r"not for egoschema; there are egoschema/lmms-eval@2026-07, "),
        ("videomme/official", items, r"not for mvbench; there are mvbench/lmms-eval"),
        ("videomme/official", [item(n=5)], r"letters 4 options, and 1 items have more \(q0\)"),
        ("official", [*items, item(1, dataset="videomme")], "of several datasets, mvbench, videomme"),
    ):
        with pytest.raises(ConfigError, match=said):
            convention(name, given)


def test_a_study_refuses_names_that_are_none_and_conventions_without_letters():
    with pytest.raises(ConfigError, match="no convention 'lmms-eval'"):
        Study(convention="lmms-eval")
    with pytest.raises(ConfigError, match='not "words"'):
        Study(convention="official", scoring="words")


@pytest.mark.parametrize(
    ("name", "text", "counted"),
    [
        ("videomme/lmms-eval@2026-04", "B", 1.0),
        ("videomme/lmms-eval@2026-04", "none", 0.0),
        ("videomme/official", "none", None),
        ("videomme/vlmevalkit", "", 0.0),
        ("mvbench/lmms-eval@2026-04", "", None),
        ("mvbench/lmms-eval@2026-04", "none", 0.0),
        ("mvbench/official", "", 1.0),
        ("mvbench/official", "B)\nbecause", 1.0),  # only the first line is looked at
        ("mvbench/vlmevalkit", "B)\nbecause", 0.0),
        ("mvbench/vlmevalkit", ")", 1.0),
        ("mvbench/official", "A", 0.0),
    ],
)
def test_what_evaluators_make_of_an_answer(name, text, counted):
    by = CONVENTIONS[name]
    found = read_text(item(), text, by)
    assert by.counted(item(), text, found.chosen) == counted
    assert found.text == text and (found.status == "ok") == (found.chosen is not None)
    assert found.correct is (None if found.chosen is None else found.chosen == 1)


def test_equal_options_are_equally_right_and_evaluators_take_the_first_or_the_last():
    """MVBench has such questions: the answer is a text there, which several options may be."""
    one = Item(id="q", video="v.mp4", question="q ?", options=("3", "2", "3"), answer=0)
    assert one.right == (0, 2) and chance(one) == 2 / 3 and item(answer=None).right == ()
    by = CONVENTIONS["mvbench/official"]
    for text, correct in (("A", True), ("C", True), ("B", False)):
        assert read_text(one, text, extractor("leading-letter@1")).correct is correct
    for name, counted in (("lmms-eval@2026-04", (1, 0, 0)), ("official", (0, 0, 1)), ("vlmevalkit", (0, 0, 1))):
        by = CONVENTIONS[f"mvbench/{name}"]
        given = [by.counted(one, text, i) for i, text in enumerate(("A)", "B)", "C)"))]
        assert given == list(counted) and by.gold_of(one) == counted.index(1)


def test_logits_of_equal_options_are_one_options():
    net = HookedVideoLLM.from_config(small_config("llava-onevision"))
    inputs = net.prepare(None, "q ?", ["3", "2", "3"])
    logits = torch.zeros(net.cfg.d_vocab)
    for best, correct in ((0, True), (1, False), (2, True)):
        logits[list(inputs.option_tokens[0])] = torch.tensor([1.0, 2.0, 3.0]).roll(best - 2)
        one = Item(id="q", video="v.mp4", question="q ?", options=("3", "2", "3"), answer=0)
        found = Letters().outcome(net, one, logits, inputs)
        (a, b, c), p = logits[list(inputs.option_tokens[0])].tolist(), logits.softmax(-1)[list(inputs.option_tokens[0])]
        assert (found.chosen, found.correct, found.margin) == (best, correct, max(a, c) - b)
        assert found.prob == pytest.approx(float(p[0] + p[2]))
    same = replace(one, options=("3", "3", "3"))
    assert Letters().outcome(net, same, logits, inputs).margin is None and chance(same) == 1.0


def test_egoschema_guesses_but_we_do_not():
    by = CONVENTIONS["egoschema/lmms-eval@2026-07"]
    items = [item(i, answer=i % 5, n=5) for i in range(2000)]
    assert read_text(items[0], "no idea", by) == Outcome("unparsed", text="no idea")
    guesses = np.array([guess(i) for i in items])
    assert [guess(i) for i in items] == guesses.tolist(), "the same guess every time"
    assert (np.bincount(guesses, minlength=5) > 320).all() and guesses.max() == 4  # 400 expected, ± 18
    right = np.mean([by.counted(i, "no idea", None) for i in items])
    assert abs(right - 0.2) < 0.04  # four standard errors
    assert by.counted(items[3], "D", 3) == 1.0 and by.printed(0.6543) == "0.654"


def test_lines_that_a_source_writes_otherwise_are_printed_as_it_writes_them():
    net = HookedVideoLLM.from_config(small_config("llava-onevision"))
    by = CONVENTIONS["egoschema/lmms-eval@2026-07"]
    odd = replace(item(n=2), meta={"options": "(A)  w\nB: x"})
    for one, lines in ((odd, "(A)  w\nB: x"), (item(n=2), "A. w\nB. x")):
        inputs = Generate(by).inputs(partial(net.prepare, None), net, one)
        assert net.tokenizer.decode(inputs.tokens[0]) == f"{QWEN.before}q ?\n{lines}\n{DIRECTLY}{QWEN.after}"


def rows(items, texts, by) -> list[dict]:
    found = zip(items, texts, strict=True)
    return [{"item": i.id, "condition": BASELINE.label, **asdict(read_text(i, t, by))} for i, t in found]


def test_one_table_says_both_numbers_and_the_evaluators():
    items = [item(i, answer=None if i == 7 else 1) for i in range(8)]
    texts = ["B", "A", "none", "", "!!!!!!!!", "AAAAAAAA", "B", "B"]
    for name, printed in (("videomme/official", 2 / 4), ("videomme/lmms-eval@2026-04", 2 / 7)):
        by = CONVENTIONS[name]
        s = summarise(Outcomes(items, [BASELINE], rows(items, texts, by), Generate(by)), 50)[0]
        assert (s.n, s.answered, s.failed, s.unparsed, s.empty, s.degenerate) == (7, 8, 0, 3, 1, 2)
        assert s.parsed == 5 / 8 and s.accuracy.value == 2 / 7 and s.of_parsed.value == 2 / 4
        assert s.as_printed.value == pytest.approx(printed, abs=1e-12)
    plain = summarise(Outcomes(items, [BASELINE], rows(items, texts, by)), 50)[0]
    assert np.isnan(plain.as_printed.value) and plain.accuracy.value == 2 / 7


def test_groups_have_their_own_chance_and_both_means():
    items = [item(i, family="abb"[i % 3], duration="short" if i < 4 else "long", n=2 + 2 * (i >= 4)) for i in range(6)]
    o = Outcomes(items, [BASELINE], rows(items, ["B", "B", "B", "none", "B", "A"], CONVENTIONS["videomme/official"]))
    parts = {(p.axis, p.value): p for p in breakdown.breakdown(o, 200)}
    assert [v for a, v in parts if a == "duration"] == ["short", "long", "micro", "macro"]
    by = {v: parts["duration", v] for v in ("short", "long", "micro", "macro")}
    assert [p.n for p in by.values()] == [4, 2, 6, 6]
    assert [p.chance for p in by.values()] == pytest.approx([1 / 2, 1 / 4, 5 / 12, 3 / 8])
    assert [p.accuracy.value for p in by.values()] == pytest.approx([3 / 4, 1 / 2, 4 / 6, 5 / 8])
    assert all(p.accuracy.low <= p.accuracy.value <= p.accuracy.high for p in by.values())
    assert [v for a, v in parts if a == "family"] == ["a", "b", "micro", "macro"]


def test_chance_is_that_of_the_questions_with_a_score():
    """Hidden answers and failures have no part in the score, nor in what guessing scores."""
    items = [item(i, family="aabbc"[i], n=(2, 6, 4, 6, 6)[i], answer=None if i == 1 else 1) for i in range(5)]
    asked = rows(items, ["B"] * 5, CONVENTIONS["videomme/official"])
    for failed in (3, 4):
        asked[failed] |= {"status": "failed", "chosen": None, "correct": None}
    o = Outcomes(items, [BASELINE], asked)
    all_, a, b, _ = summarise(o, 50)
    assert (all_.n, a.n, b.n) == (2, 1, 1)
    assert (all_.level, a.level, b.level) == (3 / 8, 1 / 2, 1 / 4)
    by = {p.value: p.chance for p in breakdown.breakdown(o, 50) if p.axis == "family"}
    assert by == {"a": 1 / 2, "b": 1 / 4, "c": 1 / 6, "micro": 3 / 8, "macro": 3 / 8}


def test_axes_that_part_nothing_or_nothing_new_are_left_out():
    items = [
        item(i, family="ab"[i % 2], task_type="xy"[i % 2], domain="one", sub_category="pqr"[i % 3]) for i in range(6)
    ]
    assert list(breakdown.axes(items)) == ["family", "sub_category"]
    assert not breakdown.axes([item(0, duration=1.5), item(1, duration=2.5)])


def test_a_submission_names_every_clip(tmp_path):
    items = [replace(item(i, answer=None, n=5), video=f"videos/uid-{i}.mp4") for i in range(4)]
    by = CONVENTIONS["egoschema/lmms-eval@2026-07"]
    read = rows(items, ["C", "E.", "no idea", "B"], by)
    read[3] |= {"status": "failed", "chosen": None}
    form = DATASETS["egoschema"].submission
    assert form
    assert submission.form_of(items, "egoschema") == form and submission.form_of(items, "mvbench") is None
    answers = submission.submission(form, items, read, "baseline", by)
    assert answers == {"uid-0": 2, "uid-1": 4, "uid-2": guess(items[2]), "uid-3": -1}
    assert submission.submission(form, items, read, "baseline")["uid-2"] == -1
    path = submission.write(form, answers, tmp_path, datetime(2026, 11, 2, 3, 4, 5))
    assert path == tmp_path / "submissions" / "inference_results_egoschema_MC_2026-11-02-03-04-05.json"
    assert path.read_text() == json.dumps(answers, indent=4) and path.read_text().startswith('{\n    "uid-0": 2,')
    assert submission.write(form, answers, tmp_path) == path and len(list(path.parent.iterdir())) == 1
    other = submission.write(form, answers | {"uid-0": 1}, tmp_path, datetime(2026, 11, 2, 3, 4, 5))
    assert other != path and json.loads(path.read_text()) == answers, "another condition's, of the same second"
    with pytest.raises(DataError, match=r"no condition 'base' was run \(nearest: 'baseline'"):
        submission.submission(form, items, read, "base")
    with pytest.raises(DataError, match="two questions are on 'uid-0'"):
        submission.submission(form, [items[0], replace(items[1], video=items[0].video)], read, "baseline")


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_states_itself(name, tmp_path):
    known = DATASETS[name]
    assert known.name == name and known.title.lower().replace("-", "") == name
    assert known.conventions and {c.dataset for c in known.conventions} == {name}
    assert len({c.name for c in known.conventions}) == len(known.conventions)
    with pytest.raises(DataError, match=f"{name} has no part 'nothing'"):
        known.read(tmp_path, ("nothing",))


def test_known_lists_every_name():
    for name in (*CONVENTIONS, "official", "vlmevalkit", "lmms-eval@2024-06", "lmms-eval@2026-04"):
        conventions.known(name)


def test_the_documentation_lists_every_convention():
    text = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text(encoding="utf-8")
    assert {n for n in re.findall(r"`(\w+/[\w@+-]+)`", text) if n.split("/")[0] in DATASETS} == CONVENTIONS.keys()
