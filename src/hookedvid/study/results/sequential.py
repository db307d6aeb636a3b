"""Evidence that may be looked at as often as one likes: is a condition critical, decided while videos come in.

A video's cost d is what a condition takes off the baseline's score, mean over the video's questions; it lies between
-span and span. Videos are independent draws. Evidence that the mean cost is above m is what a gambler has who starts
with 1 and on every video puts a share f of it on d, at fair odds for a mean of m (Waudby-Smith and Ramdas 2024):

    wealth(m) = sum over f of prior(f) prod over videos of (1 - f + f y),   y = (d + span) / (m + span) >= 0

Where the mean is m or less, y has a mean of 1 or less, so wealth has no upward drift, and it comes to 1 / a with
probability a at most, however often it is looked at (Ville). Several shares f are held at once, since which is best
depends on effects that nobody knows; what the mixture loses to the best of them is its prior's logarithm at most. The
order of the videos does not change it.

Of each condition two things are bet on: that its mean cost is above 0 (critical), that it is below the smallest that
is of interest (not critical). Each is a family of as many hypotheses as conditions, corrected by Holm's method at half
of `LEVEL`, so that the chance of any wrong verdict of either kind in a study is `LEVEL` at most.
docs/adaptive.md has the simulated rates.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Int

from hookedvid.study.results import statistics
from hookedvid.study.results.statistics import LEVEL, UNKNOWN, Interval

SIDE = LEVEL / 2  # of each of the two families, and of each end of an interval
# Shares of the wealth that are bet, and how much is begun with on each. The whole of it is best where no video speaks
# against; the least for means a tenth as large as the spread.
FRACTIONS = np.array([1.0, 0.9, 0.7, 0.45, 0.25, 0.12])
PRIOR = np.array([0.3, 0.15, 0.15, 0.15, 0.15, 0.1])
MOST = 100_000  # videos that are counted; a study has fewer
HALVINGS = 40  # of the scale, in search of an interval's ends

OPEN, CRITICAL, NOT_CRITICAL = VERDICTS = ("open", "critical", "not critical")


def log_wealth(
    costs: Float[np.ndarray, "*some video"], mean: float | Float[np.ndarray, "*some"], span: float
) -> Float[np.ndarray, "*some video"]:
    """Logarithm of the evidence that the mean cost is above `mean`, after each video; NaN takes no part."""
    ratio = (costs + span) / (np.asarray(mean)[..., None] + span)
    bets = np.where(np.isnan(ratio), 1.0, ratio)[..., None] * FRACTIONS + (1 - FRACTIONS)
    with np.errstate(divide="ignore"):
        each = np.log(bets).cumsum(-2) + np.log(PRIOR)  # -inf where all of a share was lost; never of all shares
    most = each.max(-1, keepdims=True)
    return np.log(np.exp(each - most).sum(-1)) + most[..., 0]


def evidence(
    costs: Float[np.ndarray, "*some video"], smallest: float, span: float
) -> tuple[Float[np.ndarray, "*some video"], Float[np.ndarray, "*some video"]]:
    """Logarithms of the evidence after each video that the mean cost is above 0, and that it is below `smallest`."""
    return log_wealth(costs, 0.0, span), log_wealth(-costs, -smallest, span)


def interval(costs: Float[np.ndarray, " video"], span: float) -> Interval:
    """The mean cost with the ends of its 95 % confidence sequence, which holds at every number of videos at once.

    An end is where the evidence against it comes to 1 / `SIDE`; it is not corrected for the number of conditions.
    """
    value = statistics.known_mean(costs)
    if math.isnan(value):
        return UNKNOWN
    return Interval(value, min(value, _end(costs, span)), max(value, -_end(-costs, span)))


def least_videos(n_conditions: int, smallest: float, span: float) -> tuple[int, int]:
    """Videos without which no verdict can be: critical, where every video loses all; not critical, if none changes."""
    needed = math.log(n_conditions / SIDE)
    most = (needed - math.log(PRIOR[0])) / -math.log1p(-smallest / span)  # what the first share needs alone
    most = math.ceil(min(most, MOST))
    worst, same = evidence(np.array([[span], [0.0]]).repeat(most + 1, axis=1), smallest, span)
    critical, negligible = (1 + int((x < needed).sum()) for x in (worst[0], same[1]))  # both only rise
    return critical, negligible


def _end(costs: Float[np.ndarray, " video"], span: float) -> float:
    """The largest mean that evidence of 1 / `SIDE` speaks against: evidence falls as the mean it is against rises."""
    low, high = -span, span
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if log_wealth(costs, middle, span)[-1] >= -math.log(SIDE):
            low = middle
        else:
            high = middle
    return low


def rejected(log_e: Float[np.ndarray, "*some condition"]) -> Bool[np.ndarray, "*some condition"]:
    """Which hypotheses evidence of these logarithms rejects at `SIDE`, corrected for all of them (Holm)."""
    m: int = log_e.shape[-1]
    order: Int[np.ndarray, "*some condition"] = np.argsort(-log_e, axis=-1, kind="stable")
    needed = np.array([math.log(left / SIDE) for left in range(m, 0, -1)])
    passed = np.logical_and.accumulate(np.take_along_axis(log_e, order, -1) >= needed, axis=-1)
    result = np.zeros(log_e.shape, dtype=bool)
    np.put_along_axis(result, order, passed, -1)
    return result


class Verdicts:
    """What is settled of several conditions, look by look; what is settled stays so.

    Evidence counts by the most that any look saw of it, while its condition was open.

    Args:
        shape: Of the verdicts; the last axis is the conditions of one study, others are studies that are simulated.

    Attributes:
        verdict: 0-based places in `VERDICTS`.
        critical, negligible: Logarithms of the most evidence seen of either kind.
    """

    def __init__(self, *shape: int):
        self.verdict: Int[np.ndarray, "*some condition"] = np.zeros(shape, dtype=int)
        self.critical: Float[np.ndarray, "*some condition"] = np.full(shape, -np.inf)
        self.negligible: Float[np.ndarray, "*some condition"] = np.full(shape, -np.inf)

    @property
    def evidence(self) -> tuple[Float[np.ndarray, "*some condition"], Float[np.ndarray, "*some condition"]]:
        """Both kinds."""
        return self.critical, self.negligible

    @property
    def open(self) -> Bool[np.ndarray, "*some condition"]:
        """Which conditions have no verdict yet."""
        return self.verdict == 0

    def look(
        self,
        critical: Float[np.ndarray, "*some condition"],
        negligible: Float[np.ndarray, "*some condition"],
        enough: Bool[np.ndarray, "*some condition"] | bool = True,
    ) -> None:
        """Settle what can be, from logarithms of the evidence as it is now.

        Args:
            enough: Which conditions have videos and questions enough for any verdict.
        """
        asked = self.open
        self.critical = np.where(asked, np.maximum(self.critical, critical), self.critical)
        self.negligible = np.where(asked, np.maximum(self.negligible, negligible), self.negligible)
        for verdict, log_e in ((NOT_CRITICAL, self.negligible), (CRITICAL, self.critical)):  # what is both is critical
            self.verdict = np.where(rejected(log_e) & enough & asked, VERDICTS.index(verdict), self.verdict)
