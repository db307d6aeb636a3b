"""Statistics against scipy, against closed forms and against slow loops."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from scipy import stats

from hookedvid.study import statistics as st

RNG = np.random.default_rng(0)


def test_resampling_draws_whole_videos():
    videos = ["a", "a", "b", "c", "c", "c"]
    weights = st.video_weights(videos, 500, seed=1)
    assert (weights[0] == 1).all()
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()  # as many videos as there are
    assert np.array_equal(weights, st.video_weights(videos, 500, seed=1))


def test_the_interval_of_a_mean_is_the_clustered_bootstrap():
    """One item a video: scipy's percentile bootstrap of the same statistic; both are Monte Carlo."""
    values = RNG.random(80)
    ours = st.mean(st.video_weights([str(i) for i in range(80)], 20000, seed=0), values)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile", rng=1).confidence_interval
    assert ours.value == pytest.approx(values.mean(), abs=1e-15)
    # Percentiles of 20,000 resamples wander by about 1 % of the interval's width of 0.13.
    assert ours.low == pytest.approx(theirs.low, abs=0.004) and ours.high == pytest.approx(theirs.high, abs=0.004)


def test_clusters_widen_the_interval():
    """Ten copies of each value add no information: the interval is that of the videos alone."""
    values = RNG.random(30)
    alone = st.mean(st.video_weights([str(i) for i in range(30)], 4000, seed=0), values)
    copies = st.mean(st.video_weights([str(i) for i in range(30) for _ in range(10)], 4000, seed=0), values.repeat(10))
    assert copies.low == pytest.approx(alone.low, abs=1e-12) and copies.high == pytest.approx(alone.high, abs=1e-12)


def test_missing_values_take_no_part():
    weights = st.video_weights(list("abcd"), 300, seed=0)
    some = st.resampled_mean(weights, np.array([1.0, np.nan, 0.0, np.nan]))
    assert some[0] == 0.5
    slow = [(w[0] / (w[0] + w[2])) if w[0] + w[2] else np.nan for w in weights]
    assert np.allclose(some, slow, equal_nan=True)


def test_ratios_are_paired():
    """A condition equal to the baseline has ratio 1 in every resample; chance correction subtracts first."""
    weights = st.video_weights([str(i) for i in range(40)], 500, seed=0)
    base = (RNG.random(40) < 0.7).astype(float)
    b = st.resampled_mean(weights, base)
    assert st.ratio(b, b) == (1.0, 1.0, 1.0)
    worse = st.resampled_mean(weights, base * (RNG.random(40) < 0.5))
    assert st.ratio(worse, b).value == pytest.approx(worse[0] / b[0])
    assert st.ratio(worse, b, floor=0.25).value == pytest.approx((worse[0] - 0.25) / (b[0] - 0.25))
    assert np.isnan(st.ratio(worse, np.full_like(b, 0.2), floor=0.25).value)


def exact_split(a: int, b: int) -> float:
    """Two-sided sign test by enumeration: all splits no likelier than this one."""
    n = a + b
    p = [float(stats.binom.pmf(k, n, 0.5)) for k in range(n + 1)]
    return min(1.0, sum(q for q in p if q <= p[a] * (1 + 1e-7)))


@given(hs.lists(hs.tuples(hs.booleans(), hs.booleans()), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_exact_sign_test_of_discordant_items(pairs):
    first, second = (np.array(x) for x in zip(*pairs, strict=True))
    found = st.mcnemar(first, second)
    a, b = int((first & ~second).sum()), int((~first & second).sum())
    assert (found.only_first, found.only_second) == (a, b)
    assert found.p == pytest.approx(exact_split(a, b), abs=1e-9)


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
