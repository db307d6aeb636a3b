"""Evidence that may be looked at at any time: an oracle, fair odds, ends of intervals, and how often verdicts err."""

import importlib.util
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hookedvid.study.results import sequential, statistics
from hookedvid.study.results.sequential import FRACTIONS, PRIOR, SIDE, Verdicts

pytestmark = pytest.mark.shapes_unchecked

N_STUDIES = 400  # of which 5 % may err; scripts/sequential_level.py with 1,000 makes the table of docs/adaptive.md


@pytest.fixture
def costs() -> np.ndarray:
    g = np.random.default_rng(0)
    values = np.round(g.uniform(-2, 2, (3, 40)), 1)  # of a score from 0 to 2
    values[g.random(values.shape) < 0.1] = np.nan
    return values


def wealth(costs, mean: float, span: float) -> float:
    """By hand: what the gambler has who began with 1."""
    total = 0.0
    for f, begun in zip(FRACTIONS, PRIOR, strict=True):
        for d in costs:
            begun *= 1.0 if math.isnan(d) else 1 - f + f * (d + span) / (mean + span)
        total += begun
    return total


@pytest.mark.usefixtures("shapes_checked")
def test_evidence_is_what_a_gambler_has(costs):
    for mean in (-1.0, 0.0, 0.3):
        logs = sequential.log_wealth(costs, mean, 2.0)
        for n in (1, 7, 40):
            by_hand = [wealth(line[:n], mean, 2.0) for line in costs]
            assert logs[:, n - 1] == pytest.approx(np.log(by_hand), abs=1e-12)
    above, below = sequential.evidence(costs, 0.3, 2.0)
    assert above == pytest.approx(sequential.log_wealth(costs, 0.0, 2.0), abs=1e-12)
    assert below[:, -1] == pytest.approx(np.log([wealth(-line, -0.3, 2.0) for line in costs]), abs=1e-12)


def test_the_order_of_videos_does_not_matter(costs):
    turned = costs[:, np.random.default_rng(1).permutation(costs.shape[1])]
    first, second = (sequential.log_wealth(x, 0.1, 2.0)[:, -1] for x in (costs, turned))
    assert first == pytest.approx(second, abs=1e-10)


@pytest.mark.parametrize(("odds", "mean"), [((0.3, 0.4, 0.3), 0.0), ((0.1, 0.1, 0.8), -0.7), ((0.55, 0.05, 0.4), 0.15)])
def test_the_odds_are_fair_and_a_lower_mean_is_a_loss(odds, mean):
    """All outcomes of five videos: evidence against the true mean has a mean of 1 whatever the distribution is."""
    outcomes = np.array(list(itertools.product((1.0, 0.0, -1.0), repeat=5)))
    chance = np.array([math.prod(p) for p in itertools.product(odds, repeat=5)])
    for n in range(5):
        assert chance @ np.exp(sequential.log_wealth(outcomes, mean, 1.0)[:, n]) == pytest.approx(1.0, abs=1e-12)
        assert chance @ np.exp(sequential.log_wealth(outcomes, mean + 0.05, 1.0)[:, n]) < 1.0


def test_intervals_end_where_evidence_against_them_suffices(costs):
    for line in costs:
        found = sequential.interval(line, 2.0)
        assert found.value == pytest.approx(np.nanmean(line), abs=1e-12) and found.low < found.value < found.high
        assert wealth(line, found.low, 2.0) == pytest.approx(1 / SIDE, rel=1e-6)
        assert wealth(-line, -found.high, 2.0) == pytest.approx(1 / SIDE, rel=1e-6)
    assert math.isnan(sequential.interval(np.full(4, np.nan), 1.0).value)
    same = sequential.interval(np.zeros(1), 1.0)
    assert same.value == 0.0 and same.high == -same.low > 0.98  # one video tells little


def test_intervals_hold_the_truth_at_every_number_of_videos():
    g, mean = np.random.default_rng(0), 0.2
    draws = g.choice([1.0, 0.0, -1.0], p=[0.3, 0.6, 0.1], size=(N_STUDIES, 150))
    against = sequential.log_wealth(draws, mean, 1.0), sequential.log_wealth(-draws, -mean, 1.0)
    missed = np.any([(x >= -math.log(SIDE)).any(1) for x in against], axis=0)
    assert missed.mean() <= 0.05


def test_rejections_are_holms():
    g = np.random.default_rng(3)
    for m in (1, 2, 9):
        logs = g.uniform(0, 10, (20, m))
        slow = np.array([statistics.holm(np.exp(-line)) <= SIDE for line in logs])
        assert (sequential.rejected(logs) == slow).all()
    assert sequential.rejected(np.array([-math.log(SIDE / 3), 0.0, 0.0])).tolist() == [True, False, False]


def test_what_is_settled_stays_and_waits_for_enough():
    found, much, none = Verdicts(2), np.array([20.0, 0.0]), np.zeros(2)
    found.look(much, none, np.array([False, True]))
    assert found.open.all()
    found.look(none, none)  # the most that was seen counts
    assert found.verdict.tolist() == [1, 0]
    found.look(none, np.array([30.0, 30.0]))
    assert found.verdict.tolist() == [1, 2] and found.negligible.tolist() == [0.0, 30.0]
    both = Verdicts(1)
    both.look(np.array([9.0]), np.array([9.0]))
    assert both.verdict.tolist() == [1]  # a cost above 0 and below the smallest of interest is a cost


def test_the_least_number_of_videos_is_the_first_that_can_settle():
    for m, smallest in ((1, 0.5), (35, 0.1)):
        critical, not_critical = sequential.least_videos(m, smallest, 1.0)
        needed = math.log(m / SIDE)
        for n, line, kind in ((critical, 1.0, 0), (not_critical, 0.0, 1)):
            logs = sequential.evidence(np.full((1, n), line), smallest, 1.0)[kind][0]
            assert logs[-1] >= needed > logs[-2]
    for smallest in (1e-9, 1e-300):  # as good as never: counted no further than studies go
        assert sequential.least_videos(4, smallest, 1.0) == (9, sequential.MOST + 2)


@pytest.fixture(scope="module")
def simulation():
    path = Path(__file__).parents[2] / "scripts" / "sequential_level.py"
    spec = importlib.util.spec_from_file_location("level", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_wrong_verdicts_are_rare_and_right_ones_early(simulation):
    """400 studies of two conditions, of which one costs 30 points and one nothing, answers changing both ways."""
    g = np.random.default_rng(0)
    lost = g.choice([1.0, 0.0, -1.0], p=[0.35, 0.6, 0.05], size=(N_STUDIES, 1, 300))
    same = g.choice([1.0, 0.0, -1.0], p=[0.02, 0.96, 0.02], size=(N_STUDIES, 1, 300))
    costs = np.concatenate([lost, same], axis=1)
    verdict, videos = simulation.settle(costs, sequential.evidence(costs, 0.1, 1.0))
    wrong = (verdict[:, 0] == 2) | (verdict[:, 1] == 1)
    assert wrong.mean() <= 0.05
    assert (verdict[:, 0] == 1).mean() >= 0.99 and (verdict[:, 1] == 2).mean() >= 0.95
    assert videos.mean() <= 100  # of 300


@pytest.mark.parametrize("odds", [(0.1, 0.8, 0.1), (0.45, 0.1, 0.45), (1 / 11, 0, 10 / 11)])
def test_costs_of_nothing_on_average_are_seldom_called_critical(simulation, odds):
    """Also where many videos lose a little and few win much, or the other way round."""
    g = np.random.default_rng(1)
    sizes = (1.0, 0.0, -0.1) if odds[1] == 0 else (1.0, 0.0, -1.0)
    draws = g.choice(sizes, p=odds, size=(N_STUDIES, 3, 120))
    for costs in (draws, -draws) if odds[1] == 0 else (draws,):
        verdict, _ = simulation.settle(costs, sequential.evidence(costs, 0.1, 1.0))
        assert (verdict == 1).any(1).mean() <= 0.05


def test_costs_at_the_smallest_of_interest_are_seldom_called_not_critical(simulation):
    draws = np.random.default_rng(2).choice([1.0, 0.0], p=[0.1, 0.9], size=(N_STUDIES, 3, 150))
    verdict, _ = simulation.settle(draws, sequential.evidence(draws, 0.1, 1.0))
    # Ville's bound of 2.5 % is nearly met here: of 400 studies that err in 2.5 %, more than 20 do once in a thousand.
    assert (verdict == 2).any(1).sum() <= stats.binom.ppf(0.999, N_STUDIES, SIDE)


def test_a_made_up_study_says_what_the_full_one_says(simulation):
    rates = simulation.simulate("a quarter cost 30 points, the others nothing", 8, n_conditions=8)
    assert rates.false_critical + rates.false_not <= 0.05
    assert rates.critical == rates.not_critical == rates.full == rates.alike == 1.0 and rates.left_open == 0.0
    assert rates.at_best < rates.asked <= 1 / 3
