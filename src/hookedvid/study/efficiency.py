"""The cheapest exit and window that keep the accuracy: chosen on half of the videos, judged on the others.

The best of many conditions looks better on the items it was chosen on than it is; what it keeps is read on videos
that had no part in the choice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from hookedvid.study import statistics
from hookedvid.study.protocols import Condition
from hookedvid.study.statistics import Interval
from hookedvid.study.summary import Outcomes

PROTOCOL = "efficiency"


class Choice(NamedTuple):
    """The condition chosen, and what it costs and keeps.

    decoder_share, attention_share: of the intact model's operations. chosen_on, held_out: share of the intact accuracy
    on the videos it was chosen on, and on the others; accuracy: on the others.
    """

    condition: Condition
    decoder_share: float
    attention_share: float
    chosen_on: Interval
    held_out: Interval
    accuracy: Interval


class Search(NamedTuple):
    """What was searched, in how many videos, and what was found; None where nothing keeps enough."""

    n_tried: int
    n_chosen_on: int
    n_held_out: int
    choice: Choice | None


def search(o: Outcomes, group: str, keep: float, n_resamples: int = 2000, seed: int = 0) -> Search:
    """The condition of the fewest decoder operations that keeps `keep` of the intact accuracy on one half of a group.

    Halves are of whole videos, drawn by `seed`, the first the larger; costs are means over the group. Of conditions
    that cost the same, the one that keeps most.
    """
    columns = o.groups()[group]
    first, second = halves([i.video if inside else "" for i, inside in zip(o.items, columns, strict=True)], seed)
    tried = [i for i, c in enumerate(o.conditions) if c.protocol == PROTOCOL]
    seen = _Half(o, first, n_resamples, seed)
    kept = {i: seen.kept(i) for i in tried}
    cost = {i: statistics.known_mean(o.decoder_share[i, columns]) for i in tried}
    enough = [i for i in tried if kept[i].value >= keep and not np.isnan(cost[i])]
    n_first, n_second = (len({i.video for i, b in zip(o.items, half, strict=True) if b}) for half in (first, second))
    if not enough or not second.any():
        return Search(len(tried), n_first, n_second, None)
    best = min(enough, key=lambda i: (cost[i], -kept[i].value))
    others = _Half(o, second, n_resamples, seed)
    attention = statistics.known_mean(o.attention_share[best, columns])
    accuracy = statistics.mean(others.weights, o.correct[best, second])
    choice = Choice(o.conditions[best], cost[best], attention, kept[best], others.kept(best), accuracy)
    return Search(len(tried), n_first, n_second, choice)


def halves(videos: Sequence[str], seed: int) -> tuple[Bool[np.ndarray, " item"], Bool[np.ndarray, " item"]]:
    """Items of one half of the videos and of the other; those whose video is empty are in neither."""
    given = np.asarray(videos, dtype=str)
    names = np.unique(given[given != ""])
    drawn = np.random.default_rng(seed).permutation(len(names))
    first = np.isin(given, names[drawn[: -(-len(names) // 2)]])
    return first, ~first & (given != "")


def front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Indices of what nothing beats: no other costs as little or less and is worth more. Cheapest first."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -values[i]))
    found: list[int] = []
    for i in order:
        if not (np.isnan(costs[i]) or np.isnan(values[i])) and (not found or values[i] > values[found[-1]]):
            found.append(i)
    return found


class _Half:
    """Some items, and the resamples of their videos."""

    def __init__(self, o: Outcomes, inside: Bool[np.ndarray, " item"], n_resamples: int, seed: int):
        videos = [i.video for i, b in zip(o.items, inside, strict=True) if b]
        self.correct, self.weights = o.correct[:, inside], statistics.video_weights(videos, n_resamples, seed)

    def kept(self, condition: int) -> Interval:
        """Accuracy over the intact one, on the items that both answered.

        Where no right answer is lost, resamples lose none either, however few there are; the exact bound of a share
        of which n in n were seen, 0.025 ** (1 / n), then is the lower end.
        """
        mine, base = self.correct[condition], self.correct[0]
        both = ~np.isnan(mine) & ~np.isnan(base)
        above, below = (statistics.resampled_mean(self.weights, np.where(both, x, np.nan)) for x in (mine, base))
        found = statistics.ratio(above, below)
        right = both & (base == 1)
        if not right.any() or not (mine[right] == 1).all():
            return found
        return found._replace(low=min(found.low, 0.025 ** (1 / int(right.sum()))))
