"""Sets of attention's edges in one sequence, by knockouts, and sums over them without a query x key matrix.

What is summed is told by class of readers and key: readers that are in the same destinations, and where sets are told
by frame in the same frame, are one class.
"""

# What users give is looked at, whatever its type says.
# pyright: reportUnnecessaryIsInstance=false
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.errors import InputError, nearest
from hookedvid.values.columns import kind_of
from hookedvid.values.edges import Knockout, as_edges
from hookedvid.values.effects import Relation
from hookedvid.values.interventions import as_interventions
from hookedvid.values.layout import TokenLayout
from hookedvid.values.tensors import ints

WORDS = ("frames", "segments", "cells")
_Positions = Int[Tensor, " position"]


class _Group(NamedTuple):
    """Sets that differ in their sources alone.

    Attributes:
        dst: The readers' selector.
        classes: The classes of readers among these.
        edge, key: Pairs of a set's number and a position among its sources.
    """

    dst: str
    relation: Relation
    keep_self: bool
    classes: Int[Tensor, " class"]
    edge: Int[Tensor, " pair"]
    key: Int[Tensor, " pair"]


@dataclass(frozen=True, eq=False)
class EdgeSets:
    """Which edges are summed.

    Attributes:
        knockouts: One a set: what would cut its edges, in any layer and head.
        class_of: The class that a position reads in; -1 for what reads along no edge.
        n_classes: How many there are.
    """

    knockouts: tuple[Knockout, ...]
    class_of: Int[Tensor, " pos"]
    n_classes: int
    layout: TokenLayout
    groups: tuple[_Group, ...]

    @classmethod
    def of(cls, layout: TokenLayout, edges: Any, readers: str | Sequence[str] | None = None) -> "EdgeSets":
        """The sets that are asked for.

        Args:
            layout: Of the sequence.
            edges: `frames` (each step of the video), `segments` (each kind of segment), `cells` (each cell of each
                step) as sources; or knockouts, for their edges alone.
            readers: Selectors of the readers of such sources; each is set against all of them. `text` by default, for
                segments each kind.

        Raises:
            InputError: For anything else, and where there are no such sources.
            SelectorError: Where cells are asked for of tokens that are in none.
        """
        sets = _asked(layout, edges, readers)
        alike: dict[tuple[str, Relation, bool], list[int]] = {}
        for i, (k, _) in enumerate(sets):
            alike.setdefault((k.dst, k.relation, k.keep_self), []).append(i)
        masks = torch.stack([layout.mask(dst) for dst, _, _ in alike])
        framed = torch.tensor([relation != "any" for _, relation, _ in alike])
        number = torch.where(masks[framed].any(0), layout.frames, -1)
        unique = cast(Any, torch).unique  # its annotations do not say what it returns
        told: tuple[Tensor, Tensor] = unique(torch.cat([masks.long(), number[None]]), dim=1, return_inverse=True)
        kinds, of = told
        read = kinds[:-1].any(0)
        class_of = torch.where(read, read.cumsum(0) - 1, -1)[of]
        groups: list[_Group] = []
        for i, (key, numbers) in enumerate(alike.items()):
            sources = [sets[n][1] for n in numbers]
            edge = torch.cat([torch.full_like(s, n) for s, n in zip(sources, numbers, strict=True)])
            groups.append(_Group(*key, kinds[i, read].nonzero()[:, 0], edge, torch.cat(sources)))
        return cls(tuple(k for k, _ in sets), class_of, int(read.sum()), layout, tuple(groups))

    def sums(
        self, per_key: Float[Tensor, "head class pos"], own: Float[Tensor, "head pos"]
    ) -> Float[Tensor, "head edge"]:
        """The sum over each set.

        Args:
            per_key: Sums over the readers of a class, of each key.
            own: What is summed at each reader's edge to itself.
        """
        device = per_key.device
        total = per_key.new_zeros(len(per_key), len(self.knockouts))
        frames = self.layout.frames.to(device)
        for g in self.groups:
            of_key = self._of_key(g, per_key, frames)
            if g.keep_self and g.relation != "other_frame":
                here = self.layout.mask(g.dst).to(device)
                here &= (frames >= 0) | (g.relation == "any")
                of_key = of_key - own.masked_fill(~here, 0.0)
            total.index_add_(1, g.edge.to(device), of_key[:, g.key.to(device)])
        return total

    def sources(self, of_class: int) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"], Bool[Tensor, " edge"]]:
        """The sets that a class reads along.

        Returns:
            Pairs of a set's number and a position among its sources; of each set, whether a reader's edge to itself is
            left out.
        """
        frames = self.layout.frames
        frame = int(frames[self.class_of == of_class][0])
        keep = torch.tensor([k.keep_self for k in self.knockouts])
        found = [torch.zeros(2, 0, dtype=torch.long)]
        for g in self.groups:
            theirs = frames[g.key]
            of = {"any": torch.ones_like(theirs, dtype=torch.bool), "same_frame": theirs == frame}
            of["other_frame"] = theirs != frame
            there = of[g.relation] & ((theirs >= 0) & (frame >= 0) | (g.relation == "any"))
            if of_class in ints(g.classes):
                found.append(torch.stack([g.edge, g.key])[:, there])
        edge, key = torch.cat(found, 1)
        return edge, key, keep

    def _of_key(self, g: _Group, per_key: Tensor, frames: Tensor) -> Float[Tensor, "head pos"]:
        """Of each key, the sum over its readers in a group."""
        per_key = per_key[:, g.classes.to(per_key.device)]
        if g.relation == "any":
            return per_key.sum(1)
        read, of_class = self.class_of >= 0, torch.zeros(self.n_classes, dtype=torch.long)
        of_class[self.class_of[read]] = self.layout.frames[read]
        of_class = of_class[g.classes].to(frames.device)
        by_frame = per_key.new_zeros(len(per_key), int(self.layout.frames.max()) + 1, per_key.shape[-1])
        by_frame.index_add_(1, of_class[of_class >= 0], per_key[:, of_class >= 0])
        same = by_frame.gather(1, frames.clamp(min=0).expand(len(per_key), 1, -1))[:, 0]
        found = same if g.relation == "same_frame" else by_frame.sum(1) - same
        return found.masked_fill(frames < 0, 0.0)

    def check_apart(self) -> None:
        """Raise InputError where two sets share an edge."""
        for i, g in enumerate(self.groups):
            clash = len(set(ints(g.key))) < len(g.key)
            for h in self.groups[:i]:
                of_frames = {g.relation, h.relation} == {"same_frame", "other_frame"}
                readers = bool((self.layout.mask(g.dst) & self.layout.mask(h.dst)).any())
                clash |= not of_frames and readers and bool(torch.isin(g.key, h.key).any())
            if clash:
                raise InputError(
                    "some of these sets share edges, which would count twice; ask for sets that are apart, or for each "
                    "in a call of its own"
                )


def together(sets: Sequence[EdgeSets]) -> tuple[tuple[TokenLayout, ...], tuple[Knockout, ...]]:
    """All edges of all items as few knockouts, and layouts that have the groups which these name.

    Raises:
        InputError: Where two sets of an item share an edge.
    """
    every = list(dict.fromkeys(g[:3] for of_item in sets for g in of_item.groups))
    layouts: list[TokenLayout] = []
    for of_item in sets:
        of_item.check_apart()
        layout, mine = of_item.layout, {g[:3]: g for g in of_item.groups}
        for i, key in enumerate(every):
            src, dst = (ints(mine[key].key), ints(layout.positions(key[0]))) if key in mine else ([], [])
            layout = layout.with_group(f"attributed_{i}", src).with_group(f"attributed_to_{i}", dst)
        layouts.append(layout)
    cuts = [
        Knockout(f"attributed_{i}", f"attributed_to_{i}", relation=relation, keep_self=keep_self)
        for i, (_, relation, keep_self) in enumerate(every)
    ]
    return tuple(layouts), tuple(cuts)


def _asked(layout: TokenLayout, edges: Any, readers: str | Sequence[str] | None) -> list[tuple[Knockout, _Positions]]:
    if isinstance(edges, str) and edges in WORDS:
        return _words(layout, edges, readers)
    if isinstance(edges, str) and "->" not in edges and edges.isidentifier():
        raise InputError(f"no edges {edges!r} ({nearest(edges, WORDS)}; or knockouts)")
    if readers is not None:
        raise InputError("readers go with edges by frames, segments or cells; a knockout says its own, as dst")
    found = [as_edges(k) for k in as_interventions(edges)]
    if not found:
        raise InputError('no edges are asked for; give "frames", "segments", "cells" or knockouts')
    return [(k, layout.positions(k.src)) for k in found]


def _words(layout: TokenLayout, edges: str, readers: str | Sequence[str] | None) -> list[tuple[Knockout, _Positions]]:
    kinds = tuple(dict.fromkeys(kind_of(s) for s in layout.segments))
    if edges == "segments":
        sources = {name: layout.positions(name) for name in kinds}
    elif not layout.n_frames:
        raise InputError(f'edges={edges!r} needs a video; this sequence has none: use "segments"')
    elif edges == "frames":
        sources = {name: layout.positions(name) for name in layout.step_names}
    else:
        sources = dict(_cells(layout))
    asked = (kinds if edges == "segments" else ("text",)) if readers is None else readers
    several = (asked,) if isinstance(asked, str) else tuple(asked)
    if not several:
        raise InputError("no readers are asked for; leave readers out for all of them")
    return [(Knockout(src, dst), at) for dst in several for src, at in sources.items()]


def _cells(layout: TokenLayout) -> list[tuple[str, _Positions]]:
    """Each cell of each step, by its selector."""
    found: list[tuple[str, _Positions]] = []
    for step, name in enumerate(layout.step_names):
        positions, cells = layout.cells_of(step)
        assert layout.grid is not None
        n = layout.grid.columns
        found += [
            (f"{name}[{cell // n}, {cell % n}]", at[None]) for at, cell in zip(positions, ints(cells), strict=True)
        ]
    return found
