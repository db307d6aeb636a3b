"""Numbers and intervals as tables show them."""

import math

from hookedvid.study.results.statistics import LEVEL, Interval


def number(x: float, digits: int = 1) -> str:
    """`61.2`, or a dash where there is none."""
    return "–" if math.isnan(x) else f"{x:.{digits}f}"


def percent(i: Interval) -> str:
    """`61.2 % [55.0, 67.1]`."""
    if math.isnan(i.value):
        return "–"
    low, high = (number(100 * x) for x in (i.low, i.high))
    return f"{number(100 * i.value)} % [{low}, {high}]"


def short(i: Interval, times: int = 100) -> str:
    """`61.2 [55, 67]` in per cent, or `-0.123 [-0.20, -0.05]` times 1."""
    if math.isnan(i.value):
        return "–"
    digits = 3 if times == 1 else 1
    low, high = (number(times * x, digits - 1) for x in (i.low, i.high))
    return f"{number(times * i.value, digits)} [{low}, {high}]"


def star(p_holm: float) -> str:
    """The mark of a condition whose test against the baseline holds after correction."""
    return "*" if p_holm < LEVEL else " "
