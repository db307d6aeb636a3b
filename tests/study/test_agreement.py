"""Gradients against runs: the statistics, the protocol's rows against derivatives taken by hand, what it says."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from hookedvid import logit_diff
from hookedvid.data.item import Item, read_items
from hookedvid.data.shapes.clips import TASKS, make_dataset
from hookedvid.data.shapes.words import VOCABULARY, tokenizer
from hookedvid.errors import ConfigError
from hookedvid.families.registry import small_config
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.report import plots
from hookedvid.study.definition import Study, plan
from hookedvid.study.protocols import attribution
from hookedvid.study.protocols.registry import REGISTRY
from hookedvid.study.records import Records
from hookedvid.study.results.agreement import agreement, largest, spearman, spearman_of_rows
from hookedvid.study.results.group import Group
from hookedvid.study.results.statistics import Resamples
from hookedvid.study.results.summary import Outcomes, summarise, write_csv
from hookedvid.study.run.estimate import estimate
from hookedvid.study.run.manifest import Manifest
from hookedvid.study.run.tasks import run
from models import UNLIKE, perturb

pytestmark = pytest.mark.shapes_unchecked

# ---- statistics ------------------------------------------------------------------------------------------------------

FEW = st.lists(st.integers(-3, 3), min_size=2, max_size=12)


@given(st.data())
@settings(deadline=None, derandomize=True, max_examples=40)
def test_ranks_are_scipys_ties_as_well(data):
    x = np.array(data.draw(FEW), dtype=float)
    y = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=len(x), max_size=len(x))), dtype=float)
    if len({*x}) > 1 and len({*y}) > 1:
        assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    else:
        assert np.isnan(spearman(x, y))
    assert type(spearman(x, y)) is float
    rows = spearman_of_rows(np.stack([x, y, x]), np.stack([y, y, -x]))
    assert np.array_equal(rows, [spearman(x, y), spearman(y, y), spearman(x, -x)], equal_nan=True)


def resamples(n_items: int, per_video: int = 2) -> Resamples:
    return Resamples.of([f"{i // per_video:02}" for i in range(n_items)], 300, 0)


def effects(n_places: int = 20, n_items: int = 30) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n_places, 1)) ** 3 + 0.3 * rng.normal(size=(n_places, n_items))


def test_what_agrees_wholly_and_what_agrees_not_at_all():
    x, over = effects(), resamples(30)
    same, half, turned = (agreement(x, scale * x, over) for scale in (1.0, 0.5, -1.0))
    for a, sign in ((same, 1), (half, 1), (turned, -1)):
        assert a.ranks.value == pytest.approx(sign) and a.ranks_of_means.value == pytest.approx(sign)
        assert a.overlap.value == 1 and a.sign_errors.value == (sign < 0)
        assert (a.n_places, a.n_largest, a.n, a.n_videos) == (20, 2, 30, 15)
    assert [round(a.slope.value, 12) for a in (same, half, turned)] == [1, 2, -1]
    assert half.slope.low == half.slope.high == pytest.approx(2)
    saturated = agreement(x, np.tanh(3 * x), over)  # ranks stay, sizes do not
    assert saturated.ranks.value == pytest.approx(1) and saturated.slope.value != pytest.approx(1, abs=0.1)


def test_measures_by_hand_over_items_that_have_all_values():
    x = np.array([[3.0, -5.0, 1.0], [1.0, 0.5, 9.0], [0.1, 0.2, 9.0]])
    y = np.array([[2.0, 4.0, 1.0], [1.0, 1.0, 1.0], [0.0, 3.0, np.nan]])
    a = agreement(x, y, resamples(3, 1))
    assert a.n == a.n_videos == 2 and np.isnan(a.each[2])
    assert a.each[:2] == pytest.approx([1.0, spearmanr([-5, 0.5, 0.2], [4, 1, 3]).statistic])
    assert (a.overlap.value, a.sign_errors.value) == (1.0, 0.5), "of the one largest: found in both, -5 against 4"
    both = x[:, :2], y[:, :2]
    assert a.slope.value == pytest.approx((both[0] * both[1]).sum() / (both[1] ** 2).sum())
    assert a.ranks_of_means.value == spearman(both[0].mean(1), both[1].mean(1))
    assert list(largest(np.array([1.0, -2.0, 2.0]), 2)) == [1, 2]
    nothing = agreement(np.full((3, 2), np.nan), np.zeros((3, 2)), resamples(2))
    assert nothing.n == 0 and all(np.isnan(i.value) for i in (nothing.ranks, nothing.overlap, nothing.slope))


# ---- rows ------------------------------------------------------------------------------------------------------------

STUDY = Study(protocols=("attribution",), step=2)


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(attribution, "ESTIMATES", ((1, "slope"), (1, "cut"), (4, "slope")))
        yield


@pytest.fixture(scope="module")
def model() -> HookedVideoLLM:
    cfg = replace(small_config("longva", n_layers=2, d_vocab=len(VOCABULARY)), prompt="tiny")
    made = HookedVideoLLM.from_config(cfg, tokenizer=tokenizer())
    perturb(made)
    return made.double()


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("set"), seed=3, split="test", n_videos=2, questions_per_video=1)


@pytest.fixture(scope="module")
def ran(model, annotations, tmp_path_factory):
    laid, folder = plan(STUDY, model, annotations), tmp_path_factory.mktemp("runs")
    own = [t for t in laid.tasks if t[0] is laid.items[0]]  # the other is there to patch from
    laid = replace(laid, items=laid.items[:1], tasks=own)
    return laid, folder, run(laid, model, folder)


def test_one_step_is_the_derivative_by_a_weight_of_the_cut(ran, model, annotations):
    laid, _, rows = ran
    cuts = {c.label: c for c in laid.conditions}
    item = read_items(annotations)[0]
    inputs = model.prepare(annotations.parent / item.video, item.question, list(item.options))
    options = list(inputs.option_tokens[0])
    looked_at = 0
    for c in laid.conditions:
        if c.estimate is None or c.estimate.how != "slope" or "streams" in c.knockout:
            continue
        (row,) = (r for r in rows if r["condition"] == c.label and r["item"] == item.id)
        assert row["status"] == "ok" and len(row["estimates"]) == len(c.estimate.of) and row["margin"] is None
        for label, found in list(zip(c.estimate.of, row["estimates"], strict=True))[::3]:
            weight = torch.ones((), dtype=torch.float64, requires_grad=True)
            (cut,) = cuts[label].interventions
            logits = model(inputs, interventions=[replace(cut, weight=weight)], logits_to_keep=1)[0, -1, options]
            right = torch.arange(len(options)) == item.answer
            (wanted,) = torch.autograd.grad(logits[right].max() - logits[~right].max(), weight)
            assert found == pytest.approx(wanted.item(), abs=1e-9)
            looked_at += abs(found) > 1e-6
    assert looked_at > 8


def test_a_path_ends_where_all_that_is_asked_is_cut(ran, model, annotations):
    laid, _, rows = ran
    item = read_items(annotations)[0]
    by = {r["condition"]: r for r in rows if r["item"] == item.id}
    inputs = model.prepare(annotations.parent / item.video, item.question, list(item.options))
    margin = logit_diff(inputs, item.answer)
    cuts = {x.label: x.interventions for x in laid.conditions}
    for name in ("frames", "flows"):
        (c,) = (c for c in laid.conditions if c.label == f"{name} by a path of 4")
        found = model.attribute(inputs, margin, edges=list(c.interventions), path="weights", n_steps=4)
        with torch.no_grad():
            lost = by["baseline"]["margin"] - margin(model(inputs, interventions=list(c.interventions)))
        assert found.change == pytest.approx(lost.item(), abs=1e-9)
        one = model.attribute(inputs, margin, edges=list(c.interventions), softmax="cut")
        (other,) = (x for x in laid.conditions if x.label == f"{name} by cut")
        wanted = [one.estimate(cuts[x]) for x in other.estimate.of]
        assert by[other.label]["estimates"] == pytest.approx(wanted, abs=1e-9)
        assert by[c.label]["estimates"] == pytest.approx([found.estimate(cuts[x]) for x in c.estimate.of], abs=1e-9)


def test_a_patch_and_its_estimate_are_of_one_replacement(ran, model, annotations):
    """One run blends into the other at a place: its margin's slope at 0 is the estimate, its margin at 1 the row's."""
    laid, _, rows = ran
    item, other = read_items(annotations)
    own, theirs = (
        model.prepare(annotations.parent / i.video, item.question, list(item.options)) for i in (item, other)
    )
    margin, by = logit_diff(own, item.answer), {r["condition"]: r for r in rows if r["item"] == item.id}
    _, cache = model.run_with_cache(theirs)
    asked = {c.estimate.how: c for c in laid.conditions if c.estimate and "streams" in c.knockout}
    assert set(asked) == {"slope", "path"}
    said = {how: dict(zip(c.estimate.of, by[c.label]["estimates"], strict=True)) for how, c in asked.items()}
    for label, (patch,) in [(c.label, c.interventions) for c in laid.conditions if c.label in said["slope"]]:
        there, name = own.layout.positions(patch.at), f"blocks.{patch.layer}.hook_{patch.hook}"
        share = torch.zeros((), dtype=torch.float64, requires_grad=True)

        def blend(act, hook, share, there=there, to=cache[patch.hook, patch.layer]):
            return act.index_copy(1, there, torch.lerp(act[:, there], to[:, there], share))

        with model.hooks([(name, partial(blend, share=share))]):
            (slope,) = torch.autograd.grad(margin(model(own)), share)
        with model.hooks([(name, partial(blend, share=1.0))]), torch.no_grad():
            whole = margin(model(own))
        assert said["slope"][label] == pytest.approx(-slope.item(), abs=1e-9), label
        assert by[label]["margin"] == pytest.approx(whole.item(), abs=1e-9), label
    assert max(map(abs, said["slope"].values())) > 1e-3
    path = model.attribute(own, margin, nodes="resid_post", reference=theirs, path="clip", n_steps=4)
    lost = by["baseline"]["margin"] - margin(model(theirs)).item()
    shares = sum(said["path"][f"resid_post layer 1 at {at} from another video"] for at in ("video", "text"))
    assert shares == pytest.approx(lost, abs=path.gap + 1e-9), "video and text are the whole stream"


def test_exact_rows_are_those_of_other_protocols(ran, model, annotations):
    laid, _, _ = ran
    heads = plan(Study(protocols=("heads",), step=2), model, annotations)
    own = {t.key for _, c, t in laid.tasks if c.knockout == "heads" and c.estimate is None}
    assert own < {t.key for _, _, t in heads.tasks} and own
    assert len({t.key for _, _, t in laid.tasks}) == len(laid.tasks), "no estimate shares a row with a run"
    narrow = plan(replace(STUDY, step=1), model, annotations)
    keys = [{t.key for _, c, t in p.tasks if c.label == "layers and heads by slope"} for p in (laid, narrow)]
    assert not keys[0] & keys[1], "other cuts are other estimates"


def test_rows_are_kept_and_read_back(ran, model, annotations):
    laid, folder, rows = ran
    lines = Records.of(folder).folder
    before = {p: p.read_bytes() for p in lines.rglob("*") if p.is_file()}
    assert run(laid, model, folder) == rows, "read again, byte by byte"
    assert {p: p.read_bytes() for p in before} == before
    Manifest.of(laid, model.cfg.n_layers, "about").save(folder, ())
    stored = Manifest.load(folder)
    assert stored.conditions == laid.conditions and stored.rows(folder) == rows
    told = estimate(laid, model)
    assert told.n_rows == len(laid.tasks)
    bare = estimate(replace(laid, tasks=[t for t in laid.tasks if t[1].estimate is None]), model)
    decoder, encoded = told.forward.decoder, told.forward.tower + told.forward.projector
    step = 3 * told.forward.linear + 4.5 * told.forward.attention  # for three edge sets, and nodes: 1 + 1 and 5 + 5
    gradients = 3 * ((1 + 1 + 4) * step + decoder) + (1 + 5) * (step + decoder) + (1 + 2) * encoded
    assert [a.flops - b.flops for a, b in zip(told.works, bare.works, strict=True)] == pytest.approx([gradients] * 3)
    assert estimate(laid, model, folder).n_done == len(laid.tasks)


def test_an_item_without_a_margin_has_failed_estimates_alone(model, annotations, tmp_path):
    one, *rest = read_items(annotations)
    laid = plan(STUDY, model, annotations, items=[replace(one, answer=None), *rest])
    laid = replace(laid, tasks=[t for t in laid.tasks if t[0].id == one.id])
    rows = run(laid, model, tmp_path)
    failed = [r for r in rows if r["status"] == "failed"]
    assert {r["condition"] for r in failed} == {c.label for c in laid.conditions if c.estimate}
    assert all("no right option is known" in r["reason"] for r in failed)


@pytest.mark.parametrize("protocol", ["attribution", "cumulative", "heads"])
def test_what_cuts_the_first_knockout_needs_one(protocol):
    with pytest.raises(ConfigError, match=f"{protocol} cuts the first knockout"):
        Study(protocols=(protocol,), knockouts=()).conditions(N, HEADS, FRAMES)


def test_what_reads_texts_has_no_gradient():
    with pytest.raises(ConfigError, match="differentiates what is scored, and 'generate' reads a text; score by"):
        Study(protocols=("attribution",), scoring="generate")


def test_likelihood_is_differentiated_as_it_is_scored(model, annotations, tmp_path):
    path = annotations.parent / TASKS["captions"]
    study = Study(protocols=("attribution",), scoring="likelihood")
    laid = plan(study, model, path)
    few = {"baseline", "layers and heads by slope"}
    item = laid.items[0]
    laid = replace(laid, tasks=[t for t in laid.tasks if t[1].label in few and t[0] is item])
    base, row = run(laid, model, tmp_path / "rows")
    inputs = model.prepare(path.parent / item.video, item.question, answer=item.reference)
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    cut = next(c for c in laid.conditions if c.label == "LV-K layer 2 cut alone").interventions[0]
    n = inputs.layout.n_tokens - inputs.layout.n_prompt
    logits = model(inputs, interventions=[replace(cut, weight=weight)])[0, -n - 1 : -1, : model.cfg.n_tokens]
    score = logits.log_softmax(-1).gather(-1, inputs.tokens[0, -n:, None]).mean()
    assert score.item() == pytest.approx(np.mean(base["log_probs"]), abs=1e-9)
    (wanted,) = torch.autograd.grad(score, weight)
    assert row["estimates"][1] == pytest.approx(wanted.item(), abs=1e-9)


# ---- what it says ----------------------------------------------------------------------------------------------------

N, HEADS, FRAMES = 4, 3, 5
HEADS_BY = ((6, "early"), (3, "middle"), (3, "late"))  # of four layers the first two are a third
FLOWS_BY = ((8, "early"), (4, "middle"), (4, "late"))


def conditions():
    return Study(protocols=("attribution",)).conditions(N, HEADS, FRAMES)


def test_every_granularity_is_cut_and_asked_of_gradients():
    exact = [c for c in conditions()[1:] if c.estimate is None]
    kinds = {k: [c for c in exact if c.knockout == k] for k in dict.fromkeys(c.knockout for c in exact)}
    nodes = dict.fromkeys(attribution.NODES, 3 * N)
    edges = {"layers": N, "heads": N * HEADS, "frames": FRAMES, "flows": 4 * N}
    assert {k: len(v) for k, v in kinds.items()} == edges | nodes
    asked = [c for c in conditions() if c.estimate is not None]
    together = ("layers and heads", "frames", "flows", " and ".join(nodes))
    assert [(c.knockout, c.estimate.how) for c in asked] == [
        (k, how) for k in together for how in ("slope", "cut", "path") if (k, how) != (together[-1], "cut")
    ]
    few = Study(protocols=("attribution",), step=3).conditions(N, HEADS, FRAMES)
    assert {c.layer for c in few if c.knockout in nodes} == {1, 4}
    for c in asked:
        assert c.estimate.of == tuple(x.label for k in c.knockout.split(" and ") for x in kinds[k])


@pytest.mark.parametrize(
    ("frames", "together", "spans"),
    [(5, 1, 5), (16, 1, 8), (18, 1, 6), (8, 2, 4), (16, 4, 4), (6, 4, 2), (0, 1, 0)],
)
def test_stretches_are_whole_frames_and_no_more_than_eight(frames, together, spans):
    found = Study(protocols=("attribution",)).conditions(N, HEADS, frames, together)
    parts = [c.interventions[0].src for c in found if c.knockout == "frames" and c.estimate is None]
    ends = [tuple(map(int, src[6:-1].split(":"))) for src in parts]
    assert len(ends) == spans and all(a % together == 0 for a, _ in ends)
    assert [f for a, b in ends for f in range(a, b)] == list(range(frames))
    assert REGISTRY["attribution"].needs_logits


def test_frames_that_tokens_mix_are_cut_together():
    assert [small_config(name).frames_together for name in UNLIKE] == [1, 1, 4, 2]


def group(said, n_videos: int = 60) -> Group:
    """Each cut loses an amount of its own; `said` makes of it what gradients say, by steps."""
    one = Item(id="0", video="0.mp4", question="?", options=("a", "b", "c", "d"), answer=0, family="f")
    items = [replace(one, id=str(v), video=f"{v}.mp4") for v in range(n_videos)]
    everything, rng = conditions(), np.random.default_rng(0)
    lost = {c.label: rng.exponential(1.0) * (1 if rng.random() < 0.9 else -1) for c in everything[1:]}
    rows = []
    for i, item in enumerate(items):
        own = {label: x + 0.01 * rng.normal() for label, x in lost.items()}
        for c in everything:
            row = {"condition": c.label, "item": item.id, "status": "ok", "prob": 0.5, "correct": True}
            if c.estimate is None:
                row["margin"] = 5.0 - own.get(c.label, 0.0) * (c.protocol != "baseline")
            elif i == 0 and "heads" in c.knockout:
                row = {"condition": c.label, "item": item.id, "status": "failed", "reason": "no"}
            else:
                row["estimates"] = [said(own[label], c.estimate.how) for label in c.estimate.of]
            rows.append(row)
    return Group(Outcomes(items, everything, rows), "all", N, 100)


def test_what_ranks_as_runs_do_is_said_and_what_does_not():
    shown = group(lambda x, how: x / 2 if how == "path" else (x * 1e6) % 1.0)
    reading = REGISTRY["attribution"].read(shown)
    laws = {f.law: f for f in reading.findings}
    assert list(laws) == [f"gradients rank {k}" for k in ("layers", "heads", "frames", "flows", *attribution.NODES)]
    heads = laws["gradients rank heads"]
    assert heads.supported and "(59 questions, 59 videos)" in heads.sentence
    assert "by path they rank 12 heads with r = 1.00 [0." in heads.sentence
    assert "and runs lose 2.00 [2.00, 2.00] times what they say; path is better than slope by" in heads.sentence
    assert all(len(row) == len(reading.sheet.columns) for row in reading.sheet.rows)
    by = {"heads": HEADS_BY, "flows": FLOWS_BY, **dict.fromkeys(attribution.NODES, HEADS_BY)}
    heads, flows, *nodes = ([f"{n} {k}, {d}: r" for n, d in parts] for k, parts in by.items())
    told = {row[0]: row[2] for row in reading.sheet.rows if row[0].endswith(": r")}
    nodes = [line for k, some in zip(attribution.NODES, nodes, strict=True) for line in (f"12 {k}: r", *some)]
    assert [*told] == ["4 layers: r", "12 heads: r", *heads, "5 frames: r", "16 flows: r", *flows, *nodes]
    assert {line for line, by_cut in told.items() if not by_cut} == {*nodes}
    assert reading.sheet.columns == ("places", "slope", "cut", "path")
    assert [row[0] for row in reading.sheet.rows[6:10]] == [
        "  r of means", "  2 largest: found", "  wrong sign of these", "  lost / estimated",
    ]  # fmt: skip
    worse = REGISTRY["attribution"].read(group(lambda x, how: (x * 1e6) % 1.0)).findings
    assert not any(f.supported for f in worse)


def test_estimates_are_no_lines_of_tables_but_columns(tmp_path):
    shown = group(lambda x, how: x)
    o = shown.outcomes
    assert all(c.estimate is None for c in o.conditions) and set(o.estimates) == {"slope", "cut", "path"}
    lines = summarise(o, 20)
    assert len(lines) == 2 * len(o.conditions)
    one = next(s for s in lines if s.condition.label == "LV-K video[2:3] cut alone")
    assert one.means["estimate_path"].value == pytest.approx(5.0 - one.means["margin"].value)
    write_csv(lines, tmp_path / "summary.csv")
    head = (tmp_path / "summary.csv").read_text().splitlines()[0].split(",")
    assert {"estimate_slope", "estimate_cut_low", "estimate_path_high"} <= {*head}
    plain = Outcomes(o.items, [c for c in conditions() if c.protocol == "baseline"], [])
    assert not plain.estimates and "estimate_slope" not in summarise(plain, 20)[0].means


def test_a_panel_for_each_granularity_about_a_diagonal():
    chart = REGISTRY["attribution"].read(group(lambda x, how: x * len(how))).chart
    nodes = [f"12 {k}" for k in attribution.NODES]
    assert [p.name for p in chart.panels] == ["4 layers", "12 heads", "5 frames", "16 flows", *nodes]
    figure = plots.chart(chart, "a model, n = 24")
    drawn = [[line for line in axes.lines if line.get_marker() in "o^s"] for axes in figure.axes]
    n_drawn = [[len(line.get_xdata()) for line in panel] for panel in drawn]
    assert n_drawn == [*([n] * 3 for n in (4, 12, 5, 16)), *[[12, 0, 12]] * 3]
    assert len({panel[2].get_markeredgecolor() for panel in drawn}) == 1
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert (
        texts == ["by slope", "by cut", "by path"] and figure.axes[0].get_title() == "4 layers\nrank r 1.00, 1.00, 1.00"
    )
    assert attribution.RANKS == 0.7
