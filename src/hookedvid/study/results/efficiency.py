"""The cheapest exit and window that keep the accuracy: chosen on half of the videos, judged on the others.

The best of many conditions looks better on the items it was chosen on than it is; what it keeps is read on videos
that had no part in the choice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from hookedvid.study.protocols import EFFICIENCY, Condition
from hookedvid.study.results import statistics
from hookedvid.study.results.statistics import Interval, Resamples
from hookedvid.study.results.summary import Outcomes


class Choice(NamedTuple):
    """The condition chosen, and what it costs and keeps.

    Attributes:
        decoder_share, attention_share: Of the intact model's operations.
        chosen_on, held_out: Share of the intact accuracy on the videos it was chosen on, and on the others, where
            n_held_out items had both answers.
        accuracy: On them.
    """

    condition: Condition
    decoder_share: float
    attention_share: float
    chosen_on: Interval
    held_out: Interval
    n_held_out: int
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
    tried = [i for i, c in enumerate(o.conditions) if c.protocol == EFFICIENCY]
    ratios = dict(zip(tried, _ratios(o, first, tried, n_resamples, seed), strict=True))
    cost = {i: statistics.known_mean(o.decoder_share[i, columns]) for i in tried}
    enough = [i for i in tried if ratios[i].value >= keep and not np.isnan(cost[i])]
    n_first, n_second = (len({i.video for i, b in zip(o.items, half, strict=True) if b}) for half in (first, second))
    if not enough or not second.any():
        return Search(len(tried), n_first, n_second, None)
    best = min(enough, key=lambda i: (cost[i], -ratios[i].value))
    (held_out,) = _ratios(o, second, [best], n_resamples, seed)
    both = second & ~np.isnan(o.score[[0, best]]).any(0)
    accuracy = _resamples(o, both, n_resamples, seed).mean(o.score[best, both], (0.0, 1.0))
    attention = statistics.known_mean(o.attention_share[best, columns])
    choice = Choice(o.conditions[best], cost[best], attention, ratios[best], held_out, int(both.sum()), accuracy)
    return Search(len(tried), n_first, n_second, choice)


def _ratios(
    o: Outcomes, inside: Bool[np.ndarray, " item"], conditions: Sequence[int], n_resamples: int, seed: int
) -> list[Interval]:
    """Accuracy of each condition over the intact one, on some items, of those that both answered."""
    resamples = _resamples(o, inside, n_resamples, seed)
    return resamples.ratios(o.score[conditions][:, inside], o.score[0, inside])


def _resamples(o: Outcomes, inside: Bool[np.ndarray, " item"], n_resamples: int, seed: int) -> Resamples:
    return Resamples.of([i.video for i, b in zip(o.items, inside, strict=True) if b], n_resamples, seed)


def halves(videos: Sequence[str], seed: int) -> tuple[Bool[np.ndarray, " item"], Bool[np.ndarray, " item"]]:
    """Items of one half of the videos and of the other; those whose video is empty are in neither."""
    names = np.asarray(videos, dtype=str)
    different = np.unique(names[names != ""])
    drawn = np.random.default_rng(seed).permutation(len(different))
    first = np.isin(names, different[drawn[: -(-len(different) // 2)]])
    return first, ~first & (names != "")


def front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Indices of what nothing beats: no other costs as little or less and is worth more. Cheapest first."""
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -values[i]))
    best: list[int] = []
    for i in order:
        if not (np.isnan(costs[i]) or np.isnan(values[i])) and (not best or values[i] > values[best[-1]]):
            best.append(i)
    return best
