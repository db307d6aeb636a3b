"""Statistics against scipy, against closed forms, against enumeration and against slow loops."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from scipy import stats

from hookedvid.study.results import statistics as st
from hookedvid.study.results.statistics import Resamples

RNG = np.random.default_rng(0)
SHARE = (0.0, 1.0)


def one_each(n: int, n_resamples: int = 500) -> Resamples:
    """Resamples of n items on as many videos."""
    return Resamples.of([f"{i:04}" for i in range(n)], n_resamples, seed=0)


def test_resampling_draws_whole_videos():
    drawn = Resamples.of(["a", "a", "b", "c", "c", "c"], 500, seed=1)
    assert drawn.video.tolist() == [0, 0, 1, 2, 2, 2] and (drawn.draws[0] == 1).all()
    assert drawn.draws.shape == (501, 3 + 2) and (drawn.draws.sum(1) == 5).all()  # two videos more than were seen
    assert np.array_equal(drawn.draws, Resamples.of(["a", "a", "b", "c", "c", "c"], 500, seed=1).draws)


def test_the_interval_of_many_videos_is_the_clustered_bootstrap():
    """One item a video: scipy's percentile bootstrap of the same statistic; both are Monte Carlo."""
    values = RNG.random(400)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=1).confidence_interval
    for bounds in (None, SHARE):
        ours = one_each(400, 9999).mean(values, bounds)
        assert ours.value == pytest.approx(values.mean(), abs=1e-15)
        # Percentiles of 10,000 resamples wander by about 1 % of the interval's width of 0.06; two videos in 402 at the
        # ends of the scale move it by as much.
        assert tuple(ours[1:]) == pytest.approx((theirs.low, theirs.high), abs=0.003)


@pytest.mark.parametrize("bounds", [None, SHARE])
def test_clusters_widen_the_interval(bounds):
    """Ten copies of each value add no information: the interval is that of the videos alone."""
    values = RNG.random(30)
    alone = one_each(30).mean(values, bounds)
    copies = Resamples.of([f"{i:04}" for i in range(30) for _ in range(10)], 500, seed=0)
    assert copies.mean(values.repeat(10), bounds) == pytest.approx(alone, abs=1e-12)


def test_means_are_the_slow_loop_and_missing_values_take_no_part():
    drawn = Resamples.of(list("aabcd"), 300, seed=0)
    values = np.array([[1.0, 0.5, np.nan, 0.0, np.nan], [0.0, 1.0, 1.0, 0.0, 1.0], [np.nan] * 5])
    low, high = {}, {}
    for line, x in enumerate(values[:2]):
        known = [i for i in range(5) if not np.isnan(x[i])]
        size = len(known) / len({"aabcd"[i] for i in known})
        found = [
            (sum(w["abcd".index("aabcd"[i])] * x[i] for i in known) + w[5] * size)
            / (sum(w["abcd".index("aabcd"[i])] for i in known) + (w[4] + w[5]) * size)
            for w in drawn.draws
        ]
        n = len({"aabcd"[i] for i in known})
        wider = stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975) * (n / (n - 1)) ** 0.5
        ends = found[0] + wider * (np.percentile(found[1:], [2.5, 97.5]) - found[0])
        low[line], high[line] = np.clip(ends, 0, 1)
    some, all_of_them, none = drawn.means(values, SHARE)
    assert some == pytest.approx((0.5, low[0], high[0])) and all_of_them == pytest.approx((0.6, low[1], high[1]))
    assert np.isnan(none).all()


def test_weights_weigh_items():
    drawn, values = Resamples.of(list("aabb"), 300, seed=0), np.array([[1.0, 0.0, 1.0, 1.0]])
    twice = Resamples.of(list("aaabb"), 300, seed=0).means(np.array([[1.0, 1.0, 0.0, 1.0, 1.0]]), SHARE)[0]
    assert drawn.means(values, SHARE, np.array([[2.0, 1.0, 1.0, 1.0]]))[0] == pytest.approx(twice)


@pytest.mark.parametrize("n", [2, 5, 10, 30, 100, 300])
def test_where_all_videos_agree_the_interval_is_as_wide_as_the_exact_one(n):
    """Of n videos in n, the exact bound of a share at 95 % is 0.05 ** (1 / n); copies of a question add nothing."""
    drawn = Resamples.of([f"{i // 4:04}" for i in range(4 * n)], 2000, seed=0)
    right = drawn.mean(np.ones(4 * n), SHARE)
    assert (right.value, right.high) == (1.0, 1.0) and right.low < 0.05 ** (1 / n) + 0.005  # percentiles are steps
    assert drawn.mean(np.zeros(4 * n), (-1.0, 1.0)).low < 0.05 ** (1 / n) - 0.995
    kept = drawn.ratios(np.ones((1, 4 * n)), np.ones(4 * n))[0]
    assert not kept.low >= 0.05 ** (1 / n) + 0.005


def test_one_video_says_nothing_of_others():
    drawn = Resamples.of(["a"] * 6, 200, seed=0)
    assert drawn.mean(np.ones(6), SHARE) == (1.0, 0.0, 1.0)
    assert drawn.mean(-np.ones(6), (-1.0, 1.0)) == (-1.0, -1.0, 1.0)
    value, *ends = drawn.mean(np.full(6, -2.5))
    assert value == -2.5 and np.isnan(ends).all()
    assert np.isnan(drawn.ratios(np.zeros((1, 6)), np.ones(6))[0][1:]).all()


def test_ratios_are_paired():
    """Resamples of both are the same; chance correction subtracts first; items that one lacks count for neither."""
    drawn = one_each(40)
    base = (RNG.random(40) < 0.7).astype(float)
    worse = base * (RNG.random(40) < 0.5)
    same, half, part = drawn.ratios(np.stack([base, worse, np.where(np.arange(40) < 20, worse, np.nan)]), base)
    assert same.value == 1 and same.low < 1 < same.high
    apart = drawn.ratios(RNG.permutation(base)[None], base)[0]
    assert same.high - same.low < apart.high - apart.low, "paired answers vary together"
    assert half.value == pytest.approx(worse.mean() / base.mean())
    assert part.value == pytest.approx(worse[:20].mean() / base[:20].mean())
    (above,) = drawn.ratios(worse[None], base, floor=0.25)
    assert above.value == pytest.approx((worse.mean() - 0.25) / (base.mean() - 0.25))
    assert np.isnan(drawn.ratios(worse[None], base * 0, floor=0.25)[0]).all()


def enumerated(changes: np.ndarray) -> float:
    signs = np.array(list(itertools.product((1, -1), repeat=len(changes))))
    return float((np.abs(signs @ changes) >= abs(changes.sum()) - 1e-9).mean())


@given(hs.lists(hs.integers(-5, 5), min_size=1, max_size=10))
@settings(max_examples=100, deadline=None)
def test_sign_flips_are_all_ways_to_exchange_two_conditions_on_whole_videos(changes):
    found = np.array(changes, dtype=float)
    assert st.sign_flips(found) == pytest.approx(enumerated(found), abs=1e-12)


def test_sign_flips_of_scores_that_are_no_counts_are_enumerated_up_to_rounding():
    g = np.random.default_rng(0)
    for n in range(1, 12):
        changes = g.normal(0.5, 1, n)
        # Rounding turns round sums that lie within 1e-4 of the one seen.
        assert st.sign_flips(changes) == pytest.approx(enumerated(changes), abs=0.01)
    assert st.sign_flips(np.zeros(5)) == 1.0
    assert st.sign_flips(np.array([1e-9, 2e-9, 3e-9, 5e-9, 1e-9, 7e-9])) == 0.5**5


@given(hs.lists(hs.tuples(hs.booleans(), hs.booleans()), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_with_one_question_a_video_the_test_is_exact_mcnemar(pairs):
    first, second = (np.array(x, dtype=float) for x in zip(*pairs, strict=True))
    found = st.mcnemar(first, second, np.arange(len(pairs)))
    a, b = int((first > second).sum()), int((first < second).sum())
    assert (found.only_first, found.only_second) == (a, b)
    assert found.p == pytest.approx(stats.binomtest(a, a + b).pvalue if a + b else 1.0, abs=1e-12)


def test_questions_that_share_a_video_are_no_more_than_one_where_they_agree():
    g = np.random.default_rng(0)
    first, second = (g.random((2, 40)) < 0.6).astype(float)
    alone = st.mcnemar(first, second, np.arange(40)).p
    assert st.mcnemar(first.repeat(5), second.repeat(5), np.arange(40).repeat(5)).p == pytest.approx(alone, abs=1e-12)
    unanswered = np.where(np.arange(40) < 8, np.nan, second)
    left = st.mcnemar(first, unanswered, np.arange(40))
    assert left == st.mcnemar(first[8:], second[8:], np.arange(32)), "items of one condition alone take no part"


@given(hs.lists(hs.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_holm_is_the_closed_test_of_bonferroni(ps):
    """The adjusted p of a hypothesis is the largest Bonferroni p over all subsets that contain it."""
    slow = [
        max(
            min(1.0, len(s) * min(ps[i] for i in s))
            for r in range(1, len(ps) + 1)
            for s in itertools.combinations(range(len(ps)), r)
            if j in s
        )
        for j in range(len(ps))
    ]
    assert st.holm(ps) == pytest.approx(slow, abs=1e-12)


# ---- how often all that errs ---------------------------------------------------------------------------------------

N_STUDIES = 25  # a cell; scripts/simulate_findings.py with more makes the table of docs/statistics.md


@pytest.fixture(scope="module")
def simulation():
    spec = importlib.util.spec_from_file_location(
        "simulation", Path(__file__).parents[2] / "scripts" / "simulate_findings.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.N_RESAMPLES = 200
    return module


@pytest.mark.parametrize(
    ("n_videos", "correlation", "large"), [(1, 0.9, True), (3, 0.3, False), (10, 0.9, False), (30, 0.9, True)]
)
def test_intervals_hold_the_truth_and_findings_are_seldom_false(simulation, n_videos, correlation, large):
    found = np.array([simulation.simulate(n_videos, correlation, large, seed)[:6] for seed in range(N_STUDIES)])
    # 25 studies of 36 conditions, drawn apart: coverages of 95 % are seen below 93 % once in two hundred.
    assert (found[:, :4].mean(0) >= 0.93).all()
    # Of 25 studies that err in 5 %, more than 5 do once in a thousand.
    assert (found[:, 4:].sum(0) <= stats.binom.ppf(0.999, N_STUDIES, 0.05)).all()
