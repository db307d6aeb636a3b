"""Findings of made-up answers: what they claim, on which items, and never from nothing."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from hookedvid.data.item import Item
from hookedvid.report import page as report
from hookedvid.report import plots, presenter
from hookedvid.study.definition import Study
from hookedvid.study.protocols import Condition
from hookedvid.study.results import breakdown
from hookedvid.study.results import findings as laws
from hookedvid.study.results.summary import Outcomes, Summary, summarise
from hookedvid.study.scorings.likelihood import Likelihood

pytestmark = pytest.mark.shapes_unchecked

N = 8
CONDITIONS = Study().conditions(N)
Right = Callable[[Condition, int], bool]


def items_of(n_videos: int, per_video: int = 1, family: str = "x") -> list[Item]:
    one = Item(id="0", video="0.mp4", question="q", options=("a", "b", "c", "d"), answer=0, family=family)
    return [replace(one, id=f"{family}-{v}-{q}", video=f"{v}.mp4") for v in range(n_videos) for q in range(per_video)]


def made_up(items: Sequence[Item], right: Right, failed: Right = lambda c, v: False) -> Outcomes:
    """Rows by condition and number of the video."""
    rows = []
    for c in CONDITIONS:
        for i in items:
            lost = failed(c, int(i.video[:-4]))
            row = {"condition": c.label, "item": i.id, "status": "failed" if lost else "ok", "text": "", "chosen": 0}
            row |= {"correct": None if lost else right(c, int(i.video[:-4])), "prob": None, "margin": None}
            rows.append(row | {"reason": "memory" if lost else ""})
    return Outcomes(items, CONDITIONS, rows)


def told(o: Outcomes, group: str = "all") -> dict[str, laws.Finding]:
    return {f.law: f for f in laws.findings(o, group, N, 500)}


def cut_by_lvk(c: Condition) -> bool:
    return c.knockout == "LV-K" and c.protocol != "random control"


def test_a_real_effect_is_found_and_every_sentence_has_number_interval_and_videos():
    """LV-K costs everything up to layer 4 and in windows that hold layer 4; the rest costs nothing."""

    def right(c, v):
        hit = {"cumulative": (c.layer or 0) < 4, "all layers": True, "windows": c.layer in (4, 5)}
        return not (c.knockout == "LV-K" and hit.get(c.protocol, False)) or v % 4 == 0

    found = told(made_up(items_of(60, 2), right))
    stages, flow, windows, edges = found.values()
    assert [f.supported for f in found.values()] == [True, True, True, False]
    assert stages.sentence.startswith("LV-K in every layer costs 75.0 points [")
    assert (
        "; text needs the video up to layer 4 of 8 [4, 4], 50% of the depth; a cut after layer 4 costs 0"
        in stages.sentence
    )
    assert (
        flow.sentence.startswith("LV-K in every layer costs 75.0 points [")
        and "points [" in flow.sentence.split(", ", 2)[2]
    )
    assert windows.sentence.count(";") == 1 and "LV-K 3–4 costs 75.0 points [" in windows.sentence
    assert "VT-K costs 0.0 points [" in edges.sentence and edges.sentence.count("not told apart") == 2
    assert all(f.sentence.endswith("(120 questions, 60 videos)") for f in found.values())
    assert stages.verdict == f"supported: {stages.sentence}" and edges.verdict == f"not supported: {edges.sentence}"


@pytest.mark.parametrize(("n_videos", "per_video"), [(1, 1), (1, 3), (1, 50), (3, 10), (5, 5), (9, 5), (19, 1)])
def test_few_videos_or_questions_support_nothing(n_videos, per_video):
    found = told(made_up(items_of(n_videos, per_video), lambda c, v: not cut_by_lvk(c)))
    assert not any(f.supported for f in found.values())
    assert found["any law"].sentence.endswith("a finding needs 20 questions, 10 videos")


def test_a_flow_that_costs_nothing_dominates_nothing_where_others_improve():
    o = made_up(items_of(50), lambda c, v: v < (30 if c.protocol == "baseline" or cut_by_lvk(c) else 45))
    found = told(o)
    assert not any(f.supported for f in found.values())
    assert "LV-K in every layer costs 0.0 points [" in found["which flow dominates"].sentence


def test_four_one_way_flips_of_150_support_nothing():
    """Their exact p is 0.125."""
    flips = ("LV-K after layer 0", "LV-K all layers")
    o = made_up(items_of(150), lambda c, v: v < 105 and not (c.label in flips and v < 4))
    assert not any(f.supported for f in told(o).values())
    cut = next(s for s in summarise(o, 100) if s.condition.label == "LV-K all layers")
    assert cut.mcnemar == (4, 0, pytest.approx(0.125)) and cut.p_holm == 1


def test_two_stages_need_bounds_inside_the_model():
    """A curve that rises in even steps to the last layer has no second stage, nor one whose last cuts stay unsure."""
    steady = made_up(items_of(80), lambda c, v: not cut_by_lvk(c) or v < 10 * (c.layer or 0))
    assert "8], 100% of the depth; no later cut is shown to cost less" in told(steady)["two stages"].sentence
    assert not told(steady)["two stages"].supported
    # After layer 4 a cut costs 1 of 16 that LV-K costs: less than a tenth, but 16 videos do not show it.
    unsure = made_up(items_of(20), lambda c, v: not cut_by_lvk(c) or v >= (1 if (c.layer or 0) >= 4 else 16))
    assert "up to layer 4 of 8 [" in told(unsure)["two stages"].sentence and not told(unsure)["two stages"].supported


def test_no_law_is_supported_that_no_star_of_the_table_supports():
    g = np.random.default_rng(0)
    n_supported = 0
    for _ in range(20):
        o = Outcomes(items_of(24, 2), CONDITIONS, [])
        right = np.full(len(CONDITIONS), 0.9)
        right[g.random(len(right)) < 0.3] = g.choice([0.4, 0.6, 0.8])
        o.score[:] = (g.random((len(right), 48)) < right[:, None]).astype(float)
        stars = {s.condition.label for s in summarise(o, 100) if s.group == "all" and s.p_holm < 0.05}
        found = {law: f for law, f in told(o).items() if f.supported}
        n_supported += len(found)
        if law := found.get("which flow dominates"):
            assert f"{law.sentence.split(' in every layer')[0]} all layers" in stars
        if law := found.get("critical windows"):
            assert {part.split(" costs ")[0] for part in law.sentence.split("; ")} <= stars
        assert "two stages" not in found or "LV-K after layer 0" in stars
    assert n_supported > 3


def test_rows_that_failed_under_one_condition_only_move_no_finding():
    """Nothing has an effect; of LV-K's rows those of the easier half failed."""
    o = made_up(
        items_of(60),
        lambda c, v: v % 2 == 0 or v % 3 == 0,
        failed=lambda c, v: c.label == "LV-K all layers" and v % 2 == 0,
    )
    found = told(o)
    assert not any(f.supported for f in found.values())
    assert found["which flow dominates"].sentence.startswith("LV-K in every layer costs 0.0 points [")
    assert found["which flow dominates"].sentence.endswith("(30 questions, 30 videos)")
    assert found["two stages"].sentence.endswith("(60 questions, 60 videos)")


def test_a_finding_rests_on_the_items_that_all_its_conditions_have():
    def right(c, v):
        return not (cut_by_lvk(c) and v % 3) or v == 0

    lost = {"VT-K all layers": 3, "LV-K after layer 5": 7}
    gaps = made_up(items_of(90), right, failed=lambda c, v: v < lost.get(c.label, 0) * 5)
    for law, first in (("which flow dominates", 15), ("two stages", 35)):
        left = items_of(90)[first:]
        whole = told(made_up(left, right))[law].sentence
        # Bounds are read from other resamples; values and layers are the same.
        values = re.findall(r"costs ([\d.]+) |, ([\d.]+) points|layer (\d)|\((\d+ .*?)\)", whole)
        assert len(values) >= 3
        assert (
            re.findall(r"costs ([\d.]+) |, ([\d.]+) points|layer (\d)|\((\d+ .*?)\)", told(gaps)[law].sentence)
            == values
        )


def test_measures_compare_paired_items_too():
    """References of videos 0 to 19 are likelier by 3 nats; of LV-K's rows just those failed, and LV-K does nothing."""
    conditions = Study(protocols=("all-layers",)).conditions(N)
    items = [Item(id=str(v), video=f"{v}.mp4", question="q", reference="a") for v in range(60)]
    rows = []
    for c in conditions:
        for v, i in enumerate(items):
            status = "failed" if c.label == "LV-K all layers" and v < 20 else "ok"
            each = [-1.0 - 3 * (v >= 20) + 0.01 * (v % 7)]
            row = {"condition": c.label, "item": i.id, "status": status, "log_probs": each}
            rows.append(row | {"correct": None, "prob": None, "margin": None})
    values = Outcomes(items, conditions, rows, Likelihood())
    (flow,) = laws.findings(values, "all", N, 200)
    assert not flow.supported and "costs 0.000 nats" in flow.sentence and "40 videos" in flow.sentence
    lines = {m.condition.label: m for m in summarise(values, 200)}
    assert lines["LV-K all layers"].change.value == 0 and lines["LV-K all layers"].mcnemar.p == 1


# ---- groups ----------------------------------------------------------------------------------------------------


def test_names_of_users_and_groups_of_ours_never_meet():
    families = ("all", "video", "name “all”", "language", "micro", "macro", "plain")
    items = [i for k, f in enumerate(families) for i in items_of(2 + k, 1, f)]
    o = made_up(items, lambda c, v: True)
    sizes = {s.group: s.n for s in summarise(o, 50) if s.condition.protocol == "baseline"}
    shown = ("name “all”", "name “video”", "name “name “all””", "language", "micro", "macro", "plain")
    assert sizes == {"all": 35, "video": 30} | {name: 2 + k for k, name in enumerate(shown)}
    parts = {p.value: p.n for p in breakdown.breakdown(o, 50) if p.condition.protocol == "baseline"}
    shown = ("all", "video", "name “name “all””", "language", "name “micro”", "name “macro”", "plain")
    assert list(parts) == [*shown, "micro", "macro"]
    assert (parts["name “micro”"], parts["micro"], parts["all"]) == (6, 35, 2)


def test_a_family_whose_rows_all_failed_is_dashes_everywhere():
    items = [*items_of(12, 2, "fine"), *items_of(3, 1, "gone")]
    o = made_up(items, lambda c, v: True)
    lost = np.array([i.family == "gone" for i in items])
    o.score[:, lost], o.status[:, lost] = np.nan, "failed"
    tables: dict[str, list[Summary]] = {}
    for s in summarise(o, 50):
        tables.setdefault(s.group, []).append(s)
    console = Console(file=io.StringIO(), width=200)
    for table in (presenter.group_table(tables), presenter.condition_table(tables["gone"])):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    families = [*tables["fine"], *tables["gone"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = [plots.layer_curve(families, N), plots.all_layers(families), plots.window_heatmap(families, "LV-K")]
        drawn = {str(i): plots.contents(f) for i, f in enumerate(figures)}
        page = report.render("t", "", {g: list(told(o, g).values()) for g in tables}, drawn, tables, [], [])
    assert "–" in printed and "nan" not in printed
    assert "nan" not in re.sub(r'src="[^"]*"', "", page)


def test_every_group_is_drawn_however_many_there_are(tmp_path):
    items = [item for k in range(20) for item in items_of(2, family=f"family {k}")]
    families = [s for s in summarise(made_up(items, lambda c, v: True), 50) if s.group.startswith("family")]
    figure = plots.layer_curve(families, N)
    lines = [x for x in figure.axes[0].lines if str(x.get_label()).startswith("family")]
    assert len({x.get_label() for x in lines}) == 20
    assert len({(x.get_color(), x.get_linestyle()) for x in lines}) == 20
    assert len(figure.axes[0].get_legend().get_texts()) == 20
    figure.savefig(tmp_path / "curve.png")
