"""Whose looks a page shows, and of whom each head apart: as many as its budget holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hookedvid.errors import InputError
from hookedvid.values.layout import Segment, TokenLayout
from hookedvid.values.selectors import ROLES_OF
from hookedvid.values.tensors import ints


@dataclass(frozen=True)
class Query:
    """Positions whose rows of the pattern are averaged.

    Attributes:
        name: A selector, or `@` and the number of a single position.
        positions: In the layout.
        apart: Whether each head has its own map, beside their mean.
        numbers: Whether it is no query, but numbers that were given of each video token.
    """

    name: str
    positions: tuple[int, ...]
    apart: bool = False
    numbers: bool = False


def queries_of(layout: TokenLayout, asked: Sequence[str]) -> tuple[list[Query], list[Query]]:
    """The last position, selectors that were asked for and segments of text behind the video; and single tokens.

    What stands before the video sees none of it, and is left out.

    Raises:
        InputError: Without a video, and for a selector that is there already.
        SelectorError: For one that selects nothing.
    """
    if not layout.n_frames:
        raise InputError("a view shows a video, and these inputs have none: prepare(video, …)")
    first = next(s.stop for s in layout.segments if s.role in ROLES_OF["video"])
    text = [s for s in layout.segments if s.role in ROLES_OF["text"] and s.start >= first]
    names = ["last", *asked, *dict.fromkeys(n for s in text for n in _names(s, layout))]
    if twice := sorted({n for n in asked if names.count(n) > 1}):
        raise InputError(f"queries {', '.join(map(repr, twice))} are in a view already; leave them out")
    whole = [Query(name, tuple(ints(layout.positions(name)))) for name in names]
    return whole, [Query(f"@{p}", (p,)) for s in text for p in range(s.start, s.stop)]


def _names(s: Segment, layout: TokenLayout) -> tuple[str, ...]:
    """The selectors that a segment belongs to: options are shown together and one by one."""
    return ("options", f"option[{s.index}]") if s.role == "options" and layout.n_options > 1 else (s.role,)


def within(
    budget: float | int, whole: Sequence[Query], tokens: Sequence[Query], price: Callable[[Query, bool], float | int]
) -> list[Query]:
    """The queries that a budget holds, and whose heads are apart.

    First each head of the last position, then means of heads for the others, segments before tokens; then their heads.

    Args:
        budget: Bytes.
        whole: As `queries_of` gives them, `last` first.
        tokens: Likewise.
        price: Bytes of a query's maps, with its heads apart or only their mean.

    Raises:
        InputError: Where not even the mean of the last position fits.
    """
    least = price(whole[0], False)
    if least > budget:
        raise InputError(
            f"the maps of one query take {least / 1e6:.2g} MB, and this page has {max(budget, 0) / 1e6:.2g} MB for "
            "them: give a larger budget, or fewer frames"
        )
    kept: dict[str, Query] = {whole[0].name: replace(whole[0], apart=False)}
    left = budget - least
    for some, apart in ((whole[:1], True), (whole[1:], False), (tokens, False), (whole[1:], True), (tokens, True)):
        for q in some:
            if apart != (q.name in kept):
                continue
            more = price(q, apart) - (price(q, False) if apart else 0)
            if more <= left:
                kept[q.name] = replace(q, apart=apart)
                left -= more
    return [kept[q.name] for q in (*whole, *tokens) if q.name in kept]
