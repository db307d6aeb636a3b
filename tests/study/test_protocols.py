"""Protocols beyond the paper's: their conditions, what they say of made-up rows, and that few videos say nothing."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hookedvid.data.item import Item, read_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.data.shapes.words import VOCABULARY, tokenizer
from hookedvid.errors import ConfigError
from hookedvid.families.registry import small_config
from hookedvid.model.flops import Costs
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.model.leaving import RunRecord
from hookedvid.report import plots
from hookedvid.study.definition import Study, plan
from hookedvid.study.protocols import Condition, adaptive_exit, pruning, tracing
from hookedvid.study.protocols import dose as doses
from hookedvid.study.protocols.registry import REGISTRY
from hookedvid.study.results import efficiency
from hookedvid.study.results import findings as laws
from hookedvid.study.results.charts import Curves, HeatMap
from hookedvid.study.results.evidence import Finding
from hookedvid.study.results.group import Group
from hookedvid.study.results.statistics import Resamples
from hookedvid.study.results.summary import Outcomes, summarise
from hookedvid.study.run.estimate import estimate
from hookedvid.study.run.tasks import run
from hookedvid.study.scorings.likelihood import Likelihood
from hookedvid.values.clips import Black, Blurred, Frozen, Reversed, Shuffled
from hookedvid.values.effects import effects
from hookedvid.values.interventions import LV_K, AdaptiveExit, EarlyExit, LayerRange, to_json

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
    everything = Study(protocols=("cumulative", "all-layers", "efficiency", *REGISTRY)).conditions(N, HEADS, 5)
    assert len({c.label for c in everything}) == len(everything)
    alone = Study(protocols=(name,)).conditions(N, HEADS, 5)
    assert {c.protocol for c in alone} == {"baseline", name}
    assert alone[1:] == [c for c in everything if c.protocol == name]


@pytest.mark.parametrize("name", REGISTRY)
@pytest.mark.parametrize(("n_videos", "per_video"), [(1, 50), (9, 5), (19, 1)])
def test_few_videos_support_nothing_and_are_drawn_all_the_same(name, n_videos, per_video):
    group = made_up(
        Study(protocols=(name,)).conditions(N, HEADS, 5), lambda c, v: 2.0 * (c.protocol == "baseline"), n_videos,
        per_video, cost=lambda c: 0.5, left=lambda c, v: 1,
    )  # fmt: skip
    (only,) = told(group).values()
    assert not only.supported and "a finding needs 20 questions, 10 videos" in only.sentence
    reading = REGISTRY[name].read(group)
    assert reading is not None and all(len(row) == len(reading.sheet.columns) for row in reading.sheet.rows)
    assert plots.chart(reading.chart, "model").axes


def test_what_two_protocols_ask_under_one_label_counts_for_both():
    """The first window is also the efficiency search's, on the 28 layers of the paper's models by default."""
    conditions = Study(protocols=("windows", "efficiency")).conditions(28)
    asked = [c.protocol for c in conditions if c.label == "VT-K 1–4"]
    assert asked == ["windows", "efficiency"]
    lost = ("VT-K 1–4", "LV-K 2–5")
    group = made_up(conditions, lambda c, v: 1.0 - 2 * (c.label in lost and v > 1), 12, cost=lambda c: 0.5)
    summaries = summarise(group.outcomes, 50)
    assert {(s.n, s.decoder_share) for s in summaries} == {(12, 0.5)}
    found = [(s.score.value, s.p_holm) for s in summaries if s.group == "all" and s.condition.label in lost]
    p = 2 / 2**10 * (len({c.label for c in conditions}) - 1)  # each label is one test
    assert found == [pytest.approx((1 / 6, p))] * 3


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


def test_a_margin_below_zero_at_the_end_is_no_turn():
    """The cut makes answers wrong, by 3 logits: the curve still falls all the way."""
    group = dose_group(lambda w, v: 5 * (1 - w) + 0.2 * (v % 2))
    found = told(group)["is the effect of LV-K graded"]
    assert found.supported and "less than the weight before" not in found.sentence, found.sentence
    back = told(dose_group(lambda w, v: 5 * (1 - w) if w else 3.0))["is the effect of LV-K graded"]
    assert not back.supported and "LV-K weight 0 costs less than the weight before" in back.sentence, back.sentence


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


# ---- pruning -------------------------------------------------------------------------------------------------------


def test_every_rule_and_random_draws_at_every_share():
    conditions = Study(protocols=("pruning",)).conditions(8)[1:]
    exits = [effects(c.interventions, 8).exits for c in conditions]
    found = [(e.layer, e.keep, e.rank, e.seed) for (e,) in exits]
    rules = [*((rank, 0) for rank in pruning.RULES), *(("random", seed) for seed in range(3))]
    assert found == [(2, keep, rank, seed) for keep in (0.5, 0.25, 0.1) for rank, seed in rules]
    assert {c.layer for c in Study(protocols=("pruning",), drop_at=5).conditions(8)} == {None, 5}


def pruning_group(n_videos: int = 40) -> Group:
    """At a quarter, attention keeps everything, norm loses all; random keeps every other video, in draws of its own."""
    conditions = Study(protocols=("pruning",)).conditions(N)

    def right(c: Condition, v: int) -> bool:
        if "keep 0.25 " not in c.label:
            return True
        if c.knockout == "random":
            return (v + int(c.label[-1])) % 2 == 0
        return {"attention": True, "norm": False}.get(c.knockout, v % 2 == 0)

    def cost(c: Condition) -> float:
        return 1.0 if c.protocol == "baseline" else effects(c.interventions, N).exits[0].keep

    return made_up(conditions, lambda c, v: 1.0, n_videos, 2, right, cost)


def test_rules_are_held_against_the_mean_of_random_draws():
    found = told(pruning_group())
    assert list(found) == [f"a rule beats random at keep {k:g}" for k in (0.5, 0.25, 0.1)] + [
        "cheapest pruning after layer 1"
    ]
    # Of three draws, videos are right in 2 or in 1: attention has 1/3 or 2/3 more on half of them each.
    at = found["a rule beats random at keep 0.25"]
    assert at.supported and at.sentence.startswith("attention by 50.0 points [")
    assert "; worse than random: norm by 50.0 points [" in at.sentence
    same = found["a rule beats random at keep 0.5"]
    assert not same.supported and same.sentence.startswith("no rule beats random; most has attention, 0.0 points [")
    cheapest = found["cheapest pruning after layer 1"].sentence
    assert cheapest.startswith("keep 0.1 by attention takes 10.0% of the decoder's")
    chart = REGISTRY["pruning"].read(pruning_group()).chart
    lines = {line.name: line for line in chart.lines}
    assert lines["random"].xs == [50.0, 25.0, 10.0] and lines["random"].ys[1].value == pytest.approx(0.5)


# ---- adaptive exits ------------------------------------------------------------------------------------------------


def test_rules_by_thresholds_and_fixed_exits():
    conditions = Study(protocols=("adaptive-exit",), grid=2).conditions(8)[1:]
    rules = [e for c in conditions for e in effects(c.interventions, 8).exits if e.rule]
    assert [(e.rule, e.threshold) for e in rules] == [(r, t) for r, ts in adaptive_exit.THRESHOLDS.items() for t in ts]
    assert [c.layer for c in conditions if c.layer is not None] == [2, 4, 6]


def adaptive_group(early: int, n_videos: int = 100) -> Group:
    """Half of the videos need layer 3; entropy at 0.5 lets the others go after `early`, and all else is wrong there."""
    conditions = Study(protocols=("adaptive-exit",)).conditions(N)

    def left(c: Condition, v: int) -> int | None:
        if c.label == "entropy 0.5":
            return 3 if v % 2 else early
        return None if c.knockout == "answer" else 1

    def seen(c: Condition, v: int) -> int:
        return c.layer or (N if left(c, v) is None else left(c, v) or 0)

    def right(c: Condition, v: int) -> bool:
        return c.protocol == "baseline" or seen(c, v) >= (3 if v % 2 else 1)

    conditions_by = {c.label: c for c in conditions}
    group = made_up(conditions, lambda c, v: 1.0, n_videos, 3, right, left=left)
    for i, c in enumerate(group.outcomes.conditions):  # each item's operations are its own
        group.outcomes.decoder_share[i] = [
            1.0 if c.protocol == "baseline" else seen(conditions_by[c.label], int(item.video[:-4])) / N
            for item in group.outcomes.items
        ]
    return group


def test_a_rule_that_lets_each_item_go_in_time_beats_the_fixed_exit():
    group = replace(adaptive_group(1), keep=0.9)
    found = told(group)
    assert found["leaving by a rule"].supported
    assert found["leaving by a rule"].sentence.startswith("entropy 0.5 takes 50.0% of the decoder's operations (")
    assert found["adaptive beats fixed"].supported
    text = found["adaptive beats fixed"].sentence
    assert text.startswith("entropy 0.5 takes ") and "than fixed exit after layer 3" in text
    saved = float(text.split("takes ")[1].split("%")[0])
    _, second = efficiency.halves([i.video for i in group.items], 0)
    odd = np.mean([int(i.video[:-4]) % 2 for i, b in zip(group.items, second, strict=True) if b])
    assert saved == pytest.approx(100 * (1 - odd) * 2 / N, abs=0.06), "two layers of four, on even videos"
    rows = {row[0]: row for row in REGISTRY["adaptive-exit"].read(group).sheet.rows}
    assert rows["entropy 0.5"][1:3] == ["2.0", "1–3"] and rows["answer 2"][1:3] == ["4.0", "4–4"]


def test_a_rule_that_lets_all_go_at_one_block_beats_nothing():
    found = told(replace(adaptive_group(3), keep=0.9))["adaptive beats fixed"]
    assert not found.supported and "takes 0.0% [" in found.sentence


def test_a_scoring_without_right_and_wrong_has_no_such_search():
    group = adaptive_group(1)
    group.outcomes.scoring = Likelihood()
    assert REGISTRY["adaptive-exit"].read(group) is None


# ---- counterfactual clips ------------------------------------------------------------------------------------------


def test_each_clip_change_is_a_condition_without_anything_inside():
    conditions = Study(protocols=("counterfactual",), seed=3).conditions(N)[1:]
    changes = [effects(c.interventions, N).clips for c in conditions]
    assert changes == [(Reversed(),), (Shuffled(3),), (Frozen(0),), (Blurred(),), (Black(),)]


def test_what_breaks_one_family_is_said_of_that_family():
    conditions = Study(protocols=("counterfactual",)).conditions(N)
    one = made_up(conditions, lambda c, v: 1.0).outcomes.items
    items = [replace(i, id=f"{f}-{i.id}", family=f) for f in ("temporal", "static") for i in one]

    def right(c: Condition, i: Item) -> bool:
        lost = {"reversed": i.family == "temporal", "black": True}.get(c.knockout, False)
        return not lost or int(i.video[:-4]) % 4 == 0

    rows = [
        {"condition": c.label, "item": i.id, "status": "ok", "correct": right(c, i), "prob": 0.5, "margin": 0.0}
        for c in conditions
        for i in items
    ]
    group = Group(Outcomes(items, conditions, rows), "all", N, 300)
    found = told(group)
    at = found["what a clip reversed breaks"]
    assert at.supported and at.sentence.startswith("temporal loses 75.0 points [")
    assert "(24 questions, 24 videos); not shown to lose: static 0.0 points [" in at.sentence
    assert "temporal loses" in found["what a clip black breaks"].sentence
    assert "static loses" in found["what a clip black breaks"].sentence
    assert not found["what a clip frozen breaks"].supported
    chart = REGISTRY["counterfactual"].read(group).chart
    assert chart.rows == ["black", "blurred", "frozen", "shuffled", "reversed"]
    assert chart.values[4].tolist() == [-0.75, 0.0] and set(chart.marked) == {(0, 0), (0, 1), (4, 0)}
    (alone,) = (f for f in laws.findings(group.outcomes, "temporal", N, 300) if "reversed" in f.law)
    assert alone.supported and "not shown" not in alone.sentence


# ---- tracing -------------------------------------------------------------------------------------------------------


def test_every_role_and_step_is_put_back_after_every_layer():
    study = Study(protocols=("tracing",))
    noise, *places = study.conditions(N, HEADS, 2)[1:]
    (corrupt,) = effects(noise.interventions, N).writes
    found = []
    for c in places:
        first, back = effects(c.interventions, N).writes
        assert first == corrupt
        found.append((back.layer, back.at))
    assert found == [(i, at) for i in range(N) for at in ("video[0]", "video[1]", *tracing.ROLES)]
    assert study.named_sources[tracing.INTACT].paired == "itself"
    assert not Study().named_sources


def test_frames_that_share_their_tokens_are_put_back_once():
    noise, *places = Study(protocols=("tracing",), grid=N).conditions(N, HEADS, 5, frames_together=2)[1:]
    named = [effects(c.interventions, N).writes[1].at for c in places]
    assert named == [c.knockout for c in places] == ["video[0:2]", "video[2:4]", "video[4]", *tracing.ROLES]
    assert noise.label == "noise" and places[0].label == "video[0:2] after layer 4"


def test_places_that_bring_back_half_are_found():
    """The video brings all back after layers 1 and 2, `last` three quarters after layer 4, nothing else anything."""

    def margin(c: Condition, v: int) -> float:
        share = {"baseline": 1.0, "video after layer 1": 1.0, "video after layer 2": 1.0, "last after layer 4": 0.75}
        return -1.0 + (3.0 + 0.1 * (v % 3)) * share.get(c.label, 0.0)

    group = made_up(Study(protocols=("tracing",)).conditions(N, HEADS), margin)
    found = told(group)["where the answer is held"]
    assert found.supported
    assert "bring back half of it or more: video after layer 1, 2; last after layer 4 (24 que" in found.sentence
    chart = REGISTRY["tracing"].read(group).chart
    assert chart.values[3].tolist() == pytest.approx([0, 0, 0, 0.75]) and chart.columns == list(tracing.ROLES)
    assert set(chart.marked) == {(0, 0), (1, 0), (3, 3)}


def test_what_is_put_back_is_the_items_own_run(model, annotations, tmp_path):
    study = Study(protocols=("tracing",), grid=4)
    laid = plan(study, model, annotations)
    by_item = {(row["item"], row["condition"]): row for row in run(laid, model, tmp_path)}
    for item in read_items(annotations):
        intact, corrupt, whole = (
            by_item[item.id, c]["margin"] for c in ("baseline", "noise", "last after layer 4")
        )  # fmt: skip
        # float64: the same sums from the pixels and from the block that is changed first, in another order.
        assert whole == pytest.approx(intact, abs=1e-12) and corrupt != pytest.approx(intact, abs=1e-6)


def test_conditions_that_show_other_clips_are_distinct(model, annotations):
    told = estimate(plan(Study(protocols=("counterfactual",)), model, annotations), model)
    assert told.n_distinct == told.n_conditions == 6


# ---- rows ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> HookedVideoLLM:
    cfg = replace(small_config("longva", n_layers=4, d_vocab=len(VOCABULARY)), prompt="tiny")
    return HookedVideoLLM.from_config(cfg, tokenizer=tokenizer()).double()


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("set"), seed=3, split="test", n_videos=2, questions_per_video=2)


@pytest.mark.parametrize("changed", [{}, {"reuse": "none"}, {"scoring": "generate"}])
def test_a_row_says_when_its_video_left_and_costs_what_that_leaves(changed, model, annotations, tmp_path):
    rule = AdaptiveExit("mass", 0.85)  # some items leave, at blocks of their own
    study = Study(protocols=("baseline",), custom=((EarlyExit(2),), (rule,)), **changed)
    laid = plan(study, model, annotations)
    told = estimate(laid, model)
    assert told.n_rows == 12 and told.works
    rows = run(laid, model, tmp_path)
    assert run(laid, model, tmp_path) == rows, "read again, byte by byte"
    left = set()
    for item, (intact, early, adaptive) in zip(
        read_items(annotations), zip(*[iter(rows)] * 3, strict=True), strict=True
    ):
        assert "left" not in intact and "left" not in early
        inputs, record = model.prepare(annotations.parent / item.video, item.question, list(item.options)), RunRecord()
        logits = model(inputs, interventions=[rule], record=record)
        assert adaptive["left"] == [of[0] for of in record.left]
        (at,) = adaptive["left"]
        left.add(at)
        costs = Costs(model.cfg, inputs.layout)
        shares = costs.shares([EarlyExit(at)] if at is not None else [])
        assert (adaptive["attention_share"], adaptive["decoder_share"]) == (shares.attention, shares.decoder)
        if not changed.get("scoring"):
            alone = model(inputs, interventions=[EarlyExit(at)] if at is not None else [])
            assert (logits[0, -1] - alone[0, -1]).abs().max() < 1e-12  # rows leave at other times, sums are others
    assert left - {None}, "no item left"
    assert rows[0]["settings"] and to_json([rule])[0] == rows[2]["interventions"][0]
