"""Protocols beyond the paper's: their conditions, what they say of made-up rows, and that few videos say nothing."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hookedvid.data.item import Item
from hookedvid.errors import ConfigError
from hookedvid.report import plots
from hookedvid.study.definition import Study
from hookedvid.study.protocols import Condition
from hookedvid.study.protocols import dose as doses
from hookedvid.study.protocols.registry import REGISTRY
from hookedvid.study.results import findings as laws
from hookedvid.study.results.charts import Curves, HeatMap
from hookedvid.study.results.evidence import Finding
from hookedvid.study.results.group import Group
from hookedvid.study.results.statistics import Resamples
from hookedvid.study.results.summary import Outcomes
from hookedvid.values.effects import effects
from hookedvid.values.interventions import LV_K, LayerRange

pytestmark = pytest.mark.shapes_unchecked

N, HEADS = 4, 3


def made_up(
    conditions: list[Condition],
    margin: Callable[[Condition, int], float],
    n_videos: int = 24,
    per_video: int = 1,
    right: Callable[[Condition, int], bool] | None = None,
    cost: Callable[[Condition], float] = lambda c: 1.0,
    left: Callable[[Condition, int], int | None] | None = None,
) -> Group:
    """Rows by condition and number of the video, right where the margin is above 0 unless told."""
    one = Item(id="0", video="0.mp4", question="?", options=("a", "b", "c", "d"), answer=0, family="f")
    items = [replace(one, id=f"{v}-{q}", video=f"{v}.mp4") for v in range(n_videos) for q in range(per_video)]
    rows = []
    for c in conditions:
        for item in items:
            v = int(item.video[:-4])
            row = {"condition": c.label, "item": item.id, "status": "ok", "prob": 0.5, "margin": margin(c, v)}
            row |= {"correct": right(c, v) if right else row["margin"] > 0, "decoder_share": cost(c)}
            row |= {"attention_share": cost(c)} | ({"left": [left(c, v)]} if left else {})
            rows.append(row)
    return Group(Outcomes(items, conditions, rows), "all", N, 300)


def told(group: Group) -> dict[str, Finding]:
    o = group.outcomes
    return {f.law: f for f in laws.findings(o, "all", N, group.n_resamples, keep=group.keep)}


@pytest.mark.parametrize("name", REGISTRY)
def test_it_runs_where_it_is_asked_for_under_labels_of_its_own(name):
    assert name not in {c.protocol for c in Study().conditions(N, HEADS)}
    everything = Study(protocols=("cumulative", "all-layers", "efficiency", *REGISTRY)).conditions(N, HEADS)
    assert len({c.label for c in everything}) == len(everything)
    alone = Study(protocols=(name,)).conditions(N, HEADS)
    assert {c.protocol for c in alone} == {"baseline", name}
    assert alone[1:] == [c for c in everything if c.protocol == name]


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize(("n_videos", "per_video"), [(1, 50), (9, 5), (19, 1)])
def test_few_videos_support_nothing_and_are_drawn_all_the_same(name, n_videos, per_video):
    group = made_up(
        Study(protocols=(name,)).conditions(N, HEADS), lambda c, v: 2.0 * (c.protocol == "baseline"), n_videos,
        per_video, cost=lambda c: 0.5, left=lambda c, v: 1,
    )  # fmt: skip
    (only,) = told(group).values()
    assert not only.supported and "a finding needs 20 questions, 10 videos" in only.sentence
    reading = REGISTRY[name].read(group)
    assert reading is not None and all(len(row) == len(reading.sheet.columns) for row in reading.sheet.rows)
    assert plots.chart(reading.chart, "model").axes


# ---- heads ---------------------------------------------------------------------------------------------------------


def test_every_head_of_every_layer_is_cut_alone():
    whole, *each = Study(protocols=("heads",)).conditions(N, HEADS)[1:]
    assert whole.interventions == (LV_K.at(LayerRange()),)
    found = [(c.layer, [cut.heads for cut in effects(c.interventions, N).cuts[(c.layer or 0) - 1]]) for c in each]
    assert found == [(i, [(h,)]) for i in range(1, N + 1) for h in range(HEADS)]
    assert all(len(effects(c.interventions, N).every_cut) == 1 for c in each)
    assert {c.layer for c in Study(protocols=("heads",), step=2).conditions(N, HEADS)} == {None, 1, 3}


def heads_group(n_videos: int = 24, per_video: int = 1) -> Group:
    """The cut costs 1 logit in layer 2's head 1, give or take, brings a little in layer 4's head 0, else nothing."""

    def margin(c: Condition, v: int) -> float:
        if c.label == "LV-K every head":
            return -1.0
        known = {"LV-K layer 2 head 1": 1.0 + 0.1 * (v % 3), "LV-K layer 4 head 0": 3.2}
        return known.get(c.label, 2.0 if c.protocol == "baseline" else 2.0 + 0.01 * (-1) ** v)

    return made_up(Study(protocols=("heads",)).conditions(N, HEADS), margin, n_videos, per_video)


def test_the_head_that_was_put_in_is_found():
    group = heads_group()
    found = told(group)["which heads matter"]
    assert found.supported
    assert found.sentence.startswith(
        "cut alone, 1 of 12 heads lower the margin: LV-K layer 2 head 1 0.90 logits [0.8"
    ), found.sentence
    assert "; 1 raise it; every head of every layer at once costs 3.00 logits [3.00, 3.00] (24 quest" in found.sentence
    reading = REGISTRY["heads"].read(group)
    assert isinstance(reading.chart, HeatMap) and reading.chart.values.shape == (N, HEADS)
    assert reading.chart.values[1, 1] == pytest.approx(-0.9) and reading.chart.values[3, 0] == pytest.approx(1.2)
    assert set(reading.chart.marked) == {(1, 1), (3, 0)}
    assert [row[0] for row in reading.sheet.rows[:2]] == ["LV-K every head", "LV-K layer 2 head 1"]
    figure = plots.chart(reading.chart, "model")
    assert "-0.90" in {t.get_text() for t in figure.axes[0].texts} and len(figure.axes[0].patches) == 2


def test_many_heads_need_more_videos():
    group = heads_group(10, 2)
    conditions = Study(protocols=("heads",)).conditions(28, 28)
    assert len(conditions) == 2 + 784
    (found,) = (
        REGISTRY["heads"]
        .read(replace(made_up(conditions, lambda c, v: 1.0, 12, 2), n_layers=28, n_resamples=20))
        .findings
    )
    assert found == ("which heads matter", False, "12 videos cannot tell one of 784 heads from chance; 15 could")
    assert 0.5 ** (15 - 1) * 784 < 0.05 <= 0.5 ** (14 - 1) * 784
    (found,) = REGISTRY["heads"].read(group).findings
    assert found.supported, "of 12, ten videos can"


# ---- dose ----------------------------------------------------------------------------------------------------------


def test_weights_are_laid_on_each_knockout():
    conditions = Study(protocols=("dose",), knockouts=("LV-K", "VT-K")).conditions(N)[1:]
    found = [(c.knockout, {cut.weight for cut in effects(c.interventions, N).every_cut}) for c in conditions]
    assert found == [(k, {w}) for k in ("LV-K", "VT-K") for w in doses.WEIGHTS]


def dose_group(curve: Callable[[float, int], float]) -> Group:
    conditions = Study(protocols=("dose",), knockouts=("LV-K",)).conditions(N)

    def margin(c: Condition, v: int) -> float:
        cuts = effects(c.interventions, N).every_cut
        return 2.0 - (curve(float(cuts[0].weight), v) if cuts else 0.0)

    return made_up(conditions, margin)


def test_a_graded_effect_and_where_half_of_it_is():
    group = dose_group(lambda w, v: (1 - w) * (1 + 0.2 * (v % 2)))
    found = told(group)["is the effect of LV-K graded"]
    assert found.supported
    assert "half of that is reached at weight 0.5 [0.5, 0.5]" in found.sentence
    assert "weight 0.5 costs between one and nine tenths of it" in found.sentence
    chart = REGISTRY["dose"].read(group).chart
    assert isinstance(chart, Curves) and list(chart.lines[0].xs) == [1.0, *doses.WEIGHTS]
    assert [y.value for y in chart.lines[0].ys] == pytest.approx([-1.1 * (1 - w) for w in (1.0, *doses.WEIGHTS)])


def test_a_switch_is_not_graded():
    found = told(dose_group(lambda w, v: float(w < 0.05)))["is the effect of LV-K graded"]
    assert not found.supported
    assert "no weight is shown to cost between one and nine tenths of it (24 questions, 24" in found.sentence


def test_a_curve_that_turns_back_is_not_monotone():
    found = told(dose_group(lambda w, v: {0.1: 1.0, 0.01: 0.3}.get(w, 1 - w)))["is the effect of LV-K graded"]
    assert not found.supported and "LV-K weight 0.01 costs less than the weight before" in found.sentence


def test_no_effect_has_no_half():
    found = told(dose_group(lambda w, v: 0.1 * (-1) ** v * (1 - w)))["is the effect of LV-K graded"]
    assert not found.supported and "which is not told from nothing" in found.sentence


def test_half_of_an_effect_by_hand():
    """Two videos: one loses all of 1 at weight 0.01, the other nothing before weight 0."""
    draws = np.array([[1, 1, 1, 1], *[[2, 0, 1, 1]] * 50, *[[0, 2, 1, 1]] * 50], dtype=float)
    costs = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    at = doses.half([1.0, 0.01, 0.0], costs, Resamples(np.array([0, 1]), draws))
    assert at.value == pytest.approx(0.01), "half of 2 is reached where the first has lost its all"
    # The first alone: halfway to 0.01 in logarithms. The second alone: below 0.01.
    assert (at.low, at.high) == (0.0, pytest.approx(0.1))


def test_heads_need_a_models_number_of_heads():
    with pytest.raises(ConfigError, match="heads are counted from a model"):
        Study(protocols=("heads",)).conditions(N)
