"""Adaptive studies: what they ask and leave, decisions from rows alone, killed anywhere, what is told of them."""

import csv
import hashlib
import importlib.util
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hookedvid.cli.commands import main
from hookedvid.data.item import Item, read_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.errors import ConfigError, DataError
from hookedvid.model.attribution.metrics import logit_diff
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.report.adaptive import Told
from hookedvid.study.definition import Study, plan
from hookedvid.study.records import ROWS, Records, Shard
from hookedvid.study.results import sequential
from hookedvid.study.results.adaptive import Course, write_csv
from hookedvid.study.run import order
from hookedvid.study.run.cluster import engine as on_ray
from hookedvid.study.run.estimate import estimate
from hookedvid.study.run.execution import Execution
from hookedvid.study.run.manifest import Manifest
from hookedvid.study.run.order import ordered
from hookedvid.study.run.tasks import Answers, Audit, Timing, carry_out, run
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.values.interventions import LV_K, VT_K
from models import random_model

pytestmark = pytest.mark.shapes_unchecked

STUDY = Study(protocols=("all-layers", "windows"), width=1, adaptive=True, smallest_effect=0.2)
N_VIDEOS = 120
ONE = Item(id="0", video="0.mp4", question="?", options=("a", "b", "c", "d"), answer=0)
CRITICAL = ("LV-K all layers", "LV-K 2", "VT-K all layers")  # which lose 40 of 100 answers; the others change 1


@pytest.fixture(scope="module")
def model() -> HookedVideoLLM:
    return random_model("llava-onevision")


def items(n_videos: int = N_VIDEOS) -> list[Item]:
    """Two questions a video, and on some videos one that needs none."""
    made: list[Item] = []
    for v in range(n_videos):
        for q, family in enumerate(("count", "static", *(["language"] if v % 3 == 0 else []))):
            made.append(replace(ONE, id=f"{v}-{q}", video=f"{v}.mp4", family=family))
    return made


def laid_out(study: Study, model: HookedVideoLLM, tmp_path: Path, asked: list[Item] | None = None):
    return plan(study, model, tmp_path, items=asked or items())


def outcome(item: str, condition: str) -> Outcome:
    """What a made-up model answers: by chance, always the same."""
    chance = int(hashlib.sha256(f"{item} {condition}".encode()).hexdigest()[:8], 16) / 2**32
    lost = 0.4 if condition in CRITICAL else 0.0 if condition == "baseline" else 0.01
    right = chance >= lost
    return Outcome("ok", int(not right), right, 0.5, 1.0)


def answering(units):
    for unit in units:
        yield unit, Answers([outcome(t.item, t.condition) for t in unit.tasks], Audit(), Timing())


def course(laid, rows) -> Course:
    return Course(laid.study, laid.items, laid.conditions, laid.scoring).replay(rows)


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """An adaptive study that ran through, and its folder."""
    folder = tmp_path_factory.mktemp("adaptive")
    laid = laid_out(STUDY, model, folder)
    return laid, carry_out(laid, answering, folder / "out"), folder / "out"


def test_conditions_stop_once_they_are_settled_with_the_verdicts_of_the_truth(finished):
    laid, rows, _ = finished
    taken = course(laid, rows)
    assert {d.condition.label: d.verdict for d in taken.last} == {
        c.label: "critical" if c.label in CRITICAL else "not critical" for c in laid.conditions[1:]
    }
    asked = {c.label: {r["video"] for r in rows if r["condition"] == c.label} for c in laid.conditions}
    for d in taken.last:
        assert asked[d.condition.label] == set(taken.videos[: d.videos]) and d.last
        assert d.videos % STUDY.look_every == 0 and d.questions == 2 * d.videos
    assert asked["baseline"] == set.union(*list(asked.values())[1:])
    everything = 2 * N_VIDEOS * len(laid.conditions)
    assert len(rows) <= everything / 3


def test_what_no_verdict_needs_is_not_asked(finished, model, tmp_path):
    _, rows, _ = finished
    assert {r["family"] for r in rows} == {"count", "static"}
    hidden = [replace(i, answer=None) if i.video == "7.mp4" else i for i in items(20)]
    laid = laid_out(STUDY, model, tmp_path, hidden)
    assert {r["video"] for r in carry_out(laid, answering, tmp_path)} == {f"{v}.mp4" for v in range(20)} - {"7.mp4"}


def test_rows_are_those_of_the_full_study_and_both_go_on_from_each_other(finished, model, tmp_path):
    laid, rows, _ = finished
    full = laid_out(replace(STUDY, adaptive=False), model, laid.annotations)
    assert [t.key for *_, t in full.tasks] == [t.key for *_, t in laid.tasks]
    ran = []
    carry_out(laid, answering, tmp_path)
    everything = carry_out(full, answering, tmp_path, lambda row, new: ran.append(row["key"]) if new else None)
    known = {row["key"] for row in rows}
    assert not known & set(ran) and len(ran) == len({t.key for *_, t in full.tasks}) - len(known)
    again = []
    assert carry_out(laid, answering, tmp_path, lambda row, new: again.append(row) if new else None) == rows
    assert not again
    assert [r for r in everything if r["key"] in known and r["condition"] == "baseline"] == sorted(
        (r for r in rows if r["condition"] == "baseline"), key=lambda r: (int(r["video"][:-4]), r["item"])
    )


@pytest.mark.parametrize("part", [0.33, 0.98])
def test_killed_anywhere_it_goes_on_to_the_same_decisions(finished, tmp_path, part):
    laid, rows, out = finished
    data = (out / ROWS).read_bytes()
    (tmp_path / ROWS).write_bytes(data[: int(part * len(data))])  # in the middle of a line
    again = carry_out(laid, answering, tmp_path)
    assert [r["key"] for r in again] == [r["key"] for r in rows]
    assert course(laid, again).decisions == course(laid, rows).decisions


def test_the_order_of_videos_is_the_seeds_and_not_the_files(model, tmp_path):
    ways = [items(30), items(30)[::-1], items(20)]
    scoring, conditions = laid_out(STUDY, model, tmp_path, items(1)).scoring, STUDY.conditions(3)
    orders = [Course(STUDY, some, conditions, scoring).videos for some in ways]
    assert orders[0] == orders[1] and orders[2] == [v for v in orders[0] if v in orders[2]]
    other = Course(replace(STUDY, seed=1), ways[0], conditions, scoring)
    assert orders[0] != other.videos != [i.video for i in ways[0]]


def test_conditions_are_taken_some_at_a_time(finished, model, tmp_path):
    laid = laid_out(replace(STUDY, at_once=4), model, finished[0].annotations)
    rows = carry_out(laid, answering, tmp_path)
    assert len({(row["item"], row["condition"]) for row in rows}) == len(rows)  # each wave takes the baseline again
    taken, labels = course(laid, rows), [c.label for c in laid.conditions[1:]]
    waves = [labels[i : i + 4] for i in range(0, len(labels), 4)]
    looks = [{d.look for d in taken.decisions if d.condition.label in wave} for wave in waves]
    assert all(max(a) < min(b) for a, b in pairwise(looks)) and len(looks) == 3
    least, together = taken.least(), Course(STUDY, laid.items, laid.conditions, laid.scoring).least()
    assert all(d.videos >= least[d.verdict != "critical"] for d in taken.last)
    assert any(d.videos < together[d.verdict != "critical"] for d in taken.last), "few are left when the last are asked"
    assert {d.condition.label: d.verdict for d in taken.last} == {
        label: "critical" if label in CRITICAL else "not critical" for label in labels
    }


def test_a_decision_says_what_it_rests_on(finished):
    laid, rows, _ = finished
    taken = course(laid, rows)
    scores = {(r["item"], r["condition"]): float(r["correct"]) for r in rows}
    third, last = (next(d for d in way if d.condition.label == "LV-K 2" and d.look >= 3)
                   for way in (taken.decisions, taken.decisions[::-1]))  # fmt: skip
    for d in (third, last):
        costs = np.array([
            np.mean([scores[f"{v}-{q}", "baseline"] - scores[f"{v}-{q}", "LV-K 2"] for q in range(2)])
            for v in (video.removesuffix(".mp4") for video in taken.videos[: 5 * d.look])
        ])  # fmt: skip
        assert (d.videos, d.questions, d.last) == (len(costs), 2 * len(costs), d is last)
        seen = [e[4::5].max() for e in sequential.evidence(costs, 0.2, 1.0)]  # the most that any look saw
        assert np.log([d.e_critical, d.e_not_critical]) == pytest.approx(seen, abs=1e-12)
        assert d.needed_critical <= len(laid.conditions[1:]) / 0.025 == d.needed_not_critical
        assert d.cost.value == pytest.approx(costs.mean(), abs=1e-12)
    assert last.cost == sequential.interval(costs, 1.0) and np.isnan(third.cost.low)


def test_failed_rows_take_no_part_and_nothing_is_settled_without_any(model, tmp_path):
    laid = laid_out(STUDY, model, tmp_path, items(15))

    def some(units):
        for unit, answers in answering(units):
            broken = Outcome("failed", reason="gone", fault="video")
            done = [broken if t.condition == "LV-K 1" or t.video == "3.mp4" else o
                    for t, o in zip(unit.tasks, answers.outcomes, strict=True)]  # fmt: skip
            yield unit, answers._replace(outcomes=done)

    told = Told(laid, carry_out(laid, some, tmp_path))
    assert told.stopped.endswith("; 100% of what asking all would have taken")  # failed rows took runs as well
    last = {d.condition.label: d for d in told.last}
    assert last["LV-K 1"].videos == 0 and last["LV-K 1"].verdict == "open" and np.isnan(last["LV-K 1"].cost.value)
    assert last["VS-K 1"].videos == 14 and last["VS-K 1"].reason == "no videos left"


def test_what_an_adaptive_study_cannot_be_is_refused(finished, model, tmp_path):
    for wrong, words in (
        ({"protocols": ("efficiency",)}, "efficiency compares its conditions with each other"),
        ({"protocols": ("baseline", "tracing")}, "tracing compares .* or take .*heads, counterfactual$"),
        ({"scoring": "likelihood"}, "bets on scores that have ends, and those of 'likelihood' have none.* or score "),
        ({"smallest_effect": 0.0}, "smallest_effect is 0.0; give a cost above 0 and below 1$"),
        ({"smallest_effect": 1.0}, "smallest_effect is 1.0"),
        ({"look_every": 0}, "look_every is 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            replace(STUDY, **wrong)
    laid, rows, _ = finished
    with pytest.raises(ConfigError, match="cannot be run in shards; run it in one process, or leave adaptive away"):
        carry_out(laid, answering, tmp_path, shard=Shard(0, 2))
    with pytest.raises(ConfigError, match="cannot be run on a Ray cluster"):
        on_ray(laid, {}, Execution(ray="local"), Timing())
    with pytest.raises(ConfigError, match="has none besides the baseline"):
        carry_out(laid_out(replace(STUDY, protocols=("baseline",)), model, tmp_path), answering, tmp_path)
    with pytest.raises(DataError, match="no question has an answer to be scored by"):
        carry_out(laid_out(STUDY, model, tmp_path, [replace(i, answer=None) for i in items(2)]), answering, tmp_path)
    with pytest.raises(DataError, match="is missing; run the study again"):
        course(laid, rows[:-1])


def test_the_plan_says_what_it_takes_at_least_and_at_most(model, tmp_path):
    study = replace(STUDY, protocols=("all-layers",), knockouts=("LV-K",), scoring="words", reuse="none")
    laid = laid_out(study, model, tmp_path, items(60))
    said = str(estimate(laid, model)).splitlines()
    least = Course(study, laid.items, laid.conditions, laid.scoring).least()
    assert least == (10, 20)
    assert "120 questions on 60 videos: 240 rows, 0 of them done" in said[0]  # none that need no video
    least_said = "adaptive: of 60 videos a condition takes at least 10 to be critical and 20 to be not critical; "
    assert said[-2] == least_said + "40 to 238 forwards"  # a knockout's is a little less than an intact one
    rows = carry_out(laid, answering, tmp_path)
    assert all(d.videos >= least[d.verdict != "critical"] for d in course(laid, rows).last)
    rest = estimate(laid, model, tmp_path)
    assert rest.n_rows - rest.n_done == 240 - len(rows) and "critical; 0 to " in str(rest)
    few = str(estimate(laid_out(study, model, tmp_path, items(15)), model))
    assert (
        "of 15 videos a condition takes at least 10 to be critical and 20 (there are fewer) to be not critical; 40 to "
        in few
    )


def test_the_command_tells_verdicts_and_no_test_of_a_number_that_was_fixed_before(tmp_path, capsys):
    make_dataset(tmp_path / "set", seed=0, split="test", n_videos=12, questions_per_video=3)
    fields = 'items = "set/items.jsonl"\nprotocols = ["all-layers"]\nreuse = "layers"\nsmallest_effect = 0.5\n'
    fields += 'knockouts = ["LV-K", "VS-K"]\n'
    (tmp_path / "study.toml").write_text(fields + "adaptive = true\n")
    out = tmp_path / "out"
    assert main(["study", str(tmp_path / "study.toml"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "critical conditions: supported: LV-K all layers costs " in said
    assert "1 critical, 1 not critical; settled after 10 of 12 videos" in said
    lines = list(csv.DictReader((out / "summary.csv").read_text(encoding="utf-8").splitlines()))
    assert [line["verdict"] for line in lines] == ["critical", "not critical"]
    assert not {"mcnemar_p", "accuracy_low", "p_holm"} & set(lines[0]) and (out / "verdicts.png").exists()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "confidence sequences" in page and "bootstrap" not in page and "Holm" not in page
    again = Told(Manifest.load(out), Manifest.load(out).rows(Records(out)))  # as `plot` has it, from the rows alone
    asked = again.course.items  # without those that need no video
    assert f" of {3 * len(asked)} rows settled" in said and len(asked) < 36
    assert f"n = {again.last[0].questions} questions" in again.figure().get_suptitle()  # of 10 videos, as all are
    for name, decisions in (("decisions.csv", again.course.decisions), ("summary.csv", again.last)):
        write_csv(decisions, tmp_path / name)
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
    for verb in (["rescore", str(out), "--extractor", "leading-letter"], ["submission", str(out)]):
        assert main(verb) == 2
        assert "run it with adaptive = false first" in capsys.readouterr().err

    taken, tiny = (
        {row["key"]: row for row in Manifest.load(out).rows(Records(out))},
        HookedVideoLLM.from_pretrained("tiny"),
    )
    full, file = replace(Study.from_toml(tmp_path / "study.toml"), adaptive=False), tmp_path / "set" / "items.jsonl"
    some = [item for item in read_items(file) if item.video == again.course.videos[0]]
    rows = run(plan(full, tiny, file, items=some), tiny, tmp_path / "full")
    assert len(taken) < 12 * 3 * 3
    assert all(row == taken[row["key"]] for row in rows if row["family"] != "language")  # bit for bit


def test_what_attribution_says_costs_most_is_taken_first(tmp_path, monkeypatch):
    monkeypatch.setattr(order, "STEPS", 2)
    asked = make_dataset(tmp_path / "set", seed=0, split="test", n_videos=2, questions_per_video=2)
    kinds = {"LV-K": LV_K, "VT-K": VT_K}
    protocols = ("all-layers", "windows", "random-control")
    study = replace(STUDY, protocols=protocols, knockouts=tuple(kinds), look_every=1, at_once=2)
    model = HookedVideoLLM.from_pretrained("tiny")
    laid = plan(study, model, asked)
    found = ordered(laid, model, tmp_path)
    costs: dict[str, list[float]] = {}
    chosen = Course(study, laid.items, laid.conditions, laid.scoring)
    for video in chosen.videos[:1]:
        item = next(item for item in chosen.items if item.video == video)
        inputs = model.prepare(tmp_path / "set" / video, item.question, item.options)
        metric = logit_diff(inputs, item.answer)
        worth = {n: model.attribute(inputs, metric, edges=k, path="weights", n_steps=2) for n, k in kinds.items()}
        for c in laid.conditions[1:-2]:
            costs.setdefault(c.label, []).append(worth[c.knockout].estimate(c.interventions))
    first = [c.label for c in found.conditions[1:-2]]
    assert first == sorted(costs, key=lambda label: -sum(costs[label])) != list(costs)
    assert [c.label for c in found.conditions[-2:]] == [f"random like {k}" for k in kinds]
    assert found.conditions[0].label == "baseline" and sorted(t.key for *_, t in found.tasks) == sorted(
        t.key for *_, t in laid.tasks
    )
    assert [t[1].label for t in found.tasks[: len(first) + 3]] == [c.label for c in found.conditions]
    again = ordered(laid, model, tmp_path, decoders=lambda: pytest.fail("the order was kept"))
    assert again.conditions == found.conditions
    assert ordered(replace(laid, study=replace(study, at_once=0)), model, tmp_path).conditions == laid.conditions


@pytest.fixture(scope="module")
def tiny():
    """Recorded answers to 300 clips under the 36 conditions of the default study."""
    path = Path(__file__).parents[2] / "scripts" / "sequential_level.py"
    spec = importlib.util.spec_from_file_location("level", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tiny(Study(adaptive=True, n_resamples=200))


def test_the_tiny_model_has_the_full_studys_verdicts_at_a_third_of_its_forwards(tiny):
    assert tiny.asked <= 1 / 3
    both = [d for d in tiny.course.last if len(tiny.says(d.condition.label)) == 2]
    assert len(both) <= 3  # costs something, but little: either verdict is the full study's
    assert all(d.verdict in tiny.says(d.condition.label) for d in tiny.course.last)
