"""The cheapest condition that keeps the accuracy, such as an exit: chosen on half of the videos, judged on the others.

The best of many conditions looks better on the items it was chosen on than it is; what it keeps is read on videos
that had no part in the choice.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from hookedvid.study.protocols import EFFICIENCY, Condition
from hookedvid.study.results import statistics
from hookedvid.study.results.evidence import Finding, enough
from hookedvid.study.results.statistics import Interval, Resamples
from hookedvid.study.results.summary import Outcomes

CHEAPEST = "cheapest inference"


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


def searched(c: Condition) -> bool:
    """Whether a condition is one of efficiency's exits and windows."""
    return c.protocol == EFFICIENCY


def search(
    o: Outcomes,
    group: str,
    keep: float,
    n_resamples: int = 2000,
    seed: int = 0,
    among: Callable[[Condition], bool] = searched,
) -> Search:
    """The condition of the fewest decoder operations that keeps `keep` of the intact accuracy on one half of a group.

    Halves are of whole videos, drawn by `seed`, the first the larger; costs are means over the group. Of conditions
    that cost the same, the one that keeps most.

    Args:
        among: Which conditions are tried.
    """
    columns = o.groups()[group]
    first, second = halves([i.video if inside else "" for i, inside in zip(o.items, columns, strict=True)], seed)
    tried = [i for i, c in enumerate(o.conditions) if among(c)]
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


def cheapest(found: Search, keep: float, law: str = CHEAPEST, what: str = "exits and windows") -> Finding:
    """What was found, in a sentence; supported where the interval on the other videos lies above `keep`.

    Args:
        found: The search.
        keep: What it asked to be kept.
        law: The finding's name.
        what: Was tried.
    """
    choice = found.choice
    if choice is None:
        tried = f"none of {found.n_tried} {what} keeps {keep:.0%} of the accuracy"
        return Finding(law, False, f"{tried} on {found.n_chosen_on} videos")
    text = (
        f"{choice.condition.label} takes {choice.decoder_share:.1%} of the decoder's operations "
        f"({choice.attention_share:.1%} of attention) and keeps {percents(choice.held_out)} of the accuracy on "
        f"{found.n_held_out} other videos ({choice.accuracy.value:.1%} there; {choice.chosen_on.value:.1%} kept on "
        f"the {found.n_chosen_on} it was chosen on, to keep {keep:.0%})"
    )
    proven = enough(choice.n_held_out, found.n_held_out) and choice.held_out.low >= keep
    return Finding(law, proven, text)


def percents(i: Interval) -> str:
    """`61.2% [55.0%, 67.1%]`, in sentences."""
    return f"{i.value:.1%} [{i.low:.1%}, {i.high:.1%}]"


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
