"""What many runs on one video share, read from their interventions: a tree of the work that differs.

By causality, rows of the video and of what stands before it, the stream, never read the text after it. So the stream
serves every question, and every condition that has done the same to it so far. Nothing runs here: `sweep` walks the
tree, `session` goes down one path of it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hookedvid.errors import InputError, InterventionError
from hookedvid.values.effects import Cut, Effects, Intervention, Swap, Write, effects
from hookedvid.values.hook_names import is_map, part_of
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import as_interventions
from hookedvid.values.layout import Segment, TokenLayout, stream_length
from hookedvid.values.masks import kept_positions, warn_of_idle


@dataclass(frozen=True)
class Changes:
    """What is done to some rows of a layer, each with the question whose layout places it. True if there is any."""

    cuts: tuple[tuple[Cut, int], ...] = ()
    writes: tuple[tuple[Write, int], ...] = ()
    swaps: tuple[tuple[Swap, int], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.cuts or self.writes or self.swaps)


NOTHING = Changes()
Cell = tuple[int, int]  # question, condition


def shareable(interventions: Sequence[Intervention], layout: TokenLayout, n_layers: int) -> bool:
    """Whether a sweep can place a condition.

    It cannot where a write is to attention maps, which the sweep makes in parts, to the tower or the projector, whose
    features all conditions share, or to positions of the stream and of the text at once, which it computes apart,
    nor where the run decides who leaves the sequence, or all frames are at one time, since a sweep turns keys once. Nor
    where the stream's rows read a mean that is of text as well, or any row a mean of positions of which some left.

    Raises:
        InterventionError: For exits that no run can have.
    """
    joint = effects(as_interventions(interventions), n_layers)
    kept_positions(layout, joint.exits)
    alone = joint.same_time or any(e.decided_late for e in joint.exits)
    return not alone and not any(_refusal(w, layout) for w in joint.writes) and not _unplaced(joint, layout)


def _refusal(write: Write, layout: TokenLayout) -> str:
    if part_of(write.hook) in ("tower", "projector"):
        return "it writes to what makes the video's features, which are made once"
    if is_map(write.hook):
        return "it writes to an attention map, which is computed in parts"
    at, n = layout.positions(write.at), stream_length(layout)
    return "it writes to the video and to the text after it" if bool((at < n).any() and (at >= n).any()) else ""


def _unplaced(condition: Effects, layout: TokenLayout) -> str:
    """What a sweep cannot replace, and why; empty if it can place all."""
    n = stream_length(layout)
    for layer, swaps in enumerate(condition.swaps):
        for swap in (s for s in swaps if s.of_its_own):
            src = layout.positions(swap.src)
            if bool((layout.positions(swap.dst) < n).any()) and bool((src >= n).any()):
                return f"{swap.label}: rows of the video would read a mean of the text after it"
            if not torch.isin(src, kept_positions(layout, [e for e in condition.exits if e.layer <= layer])).all():
                return f"{swap.label}: it is by a mean of positions that left by an early exit before it"
    return ""


@dataclass(frozen=True)
class TextStep:
    """Text rows of one question in one layer: from which state above, under which changes, for which cells."""

    parent: int
    question: int
    changes: Changes
    cells: tuple[Cell, ...]


@dataclass
class Node:
    """One evaluation of the stream in one layer (in the last, of its keys and values alone), and what rides on it."""

    layer: int
    changes: Changes
    texts: list[TextStep] = field(default_factory=list[TextStep])
    children: "list[Node]" = field(default_factory=lambda: list[Node]())


@dataclass(frozen=True)
class Counts:
    """What a sweep evaluates: stream blocks, last blocks' keys and values, text states, and their rows in all."""

    stream: int
    keys_values: int
    text_states: int
    text_rows: int


class Sweep:
    """Questions on one video, each under every condition.

    Args:
        inputs: One item each, all with the same video behind the same tokens of the same roles.
        conditions: Interventions that are `shareable`.

    Raises:
        InputError: For what cannot be swept together.
        InterventionError: For what cannot be swept together.
    """

    def __init__(
        self,
        n_layers: int,
        inputs: Sequence[VideoInputs],
        conditions: Sequence[Intervention | Sequence[Intervention]],
    ):
        self.n_layers = n_layers
        self.layouts = [x.layout for x in inputs]
        self.conditions = [effects(as_interventions(c), n_layers) for c in conditions]
        self.n_stream = stream_length(self.layouts[0])
        self._check_shared(inputs)
        for layout in self.layouts:
            for c in self.conditions:
                _check_condition(c, layout)
        warn_of_idle([cut for c in self.conditions for cut in c.every_cut], self.layouts)
        self._cuts = [_with_exits(c, self.layouts[0]) for c in self.conditions]
        self._touched: dict[tuple[Cut | Write, int, bool], bool] = {}
        states = [(q, tuple((q, c) for c in range(len(self.conditions)))) for q in range(len(inputs))]
        self.tree = self._grow(0, states)

    def _check_shared(self, inputs: Sequence[VideoInputs]) -> None:
        first, n = inputs[0], self.n_stream
        if not 0 < n < first.layout.n_tokens:
            raise InputError("a sweep needs a video with a question after it")
        for x in inputs[1:]:
            same = stream_length(x.layout) == n and torch.equal(x.tokens[:, :n], first.tokens[:, :n])
            mine, theirs = x.pixel_values[0], first.pixel_values[0]
            if not (same and mine is not None and theirs is not None and torch.equal(mine, theirs)):
                raise InputError("questions of one sweep must share their video and everything before it")
            if _roles(x.layout, n) != _roles(first.layout, n):
                raise InputError(
                    "questions of one sweep have the same tokens up to the end of their video, but other roles there "
                    "(markers_are_language, or inputs made another way), so a selector means other positions in each: "
                    "sweep them alone"
                )
            if x.layout.grid != first.layout.grid:
                raise InputError(
                    "questions of one sweep have the same frames at other times or of another size, so that positions "
                    "and selectors of seconds are others in each: sweep them alone"
                )
            if groups_before(x.layout, n) != groups_before(first.layout, n):
                raise InputError(
                    "questions of one sweep name other groups of positions up to the end of their video, so a selector "
                    "means other positions in each: give all the same groups there, or sweep them alone"
                )

    def _grow(self, layer: int, states: Sequence[tuple[int, Sequence[Cell]]]) -> list[Node]:
        """The nodes of a layer below one path; the untouched one last."""
        groups: dict[Changes, dict[tuple[int, Changes], list[Cell]]] = {}
        for i, (_, cells) in enumerate(states):
            for cell in cells:
                stream, text = (self.changes(cell, layer, text=t) for t in (False, True))
                groups.setdefault(stream, {}).setdefault((i, text), []).append(cell)
        nodes: list[Node] = []
        for stream, texts in sorted(groups.items(), key=lambda g: not g[0]):
            node = Node(layer, stream)
            node.texts = [TextStep(i, states[i][0], text, tuple(cells)) for (i, text), cells in texts.items()]
            if layer < self.n_layers - 1:
                node.children = self._grow(layer + 1, [(t.question, t.cells) for t in node.texts])
            nodes.append(node)
        return nodes

    def changes(self, cell: Cell, layer: int, text: bool) -> Changes:
        """What a cell's condition does to text rows of a layer, or to stream rows."""
        question, condition = cell
        place = question if text else 0
        cuts: list[tuple[Cut, int]] = []
        swaps: list[tuple[Swap, int]] = []
        if text or layer < self.n_layers - 1:  # in the last layer no row of the stream is read, only keys and values
            for cut in self._cuts[condition][layer]:
                if cut.drawn:
                    cuts.append((cut, question))
                elif self._once(self._cuts_rows, cut, question, text):
                    cuts.append((cut, place))
            for swap in self.conditions[condition].swaps_of(layer):
                if self._once(self._cuts_rows, swap, question, text):
                    swaps.append((swap, place))
        here = [w for w in self.conditions[condition].writes if w.block == layer]
        here.sort(key=lambda w: w.layer is not None)  # what enters the block is written before it
        writes = [(w, place) for w in here if self._once(self._writes_rows, w, question, text)]
        return Changes(tuple(cuts), tuple(writes), tuple(swaps)) if cuts or writes or swaps else NOTHING

    def _once(self, touches: Callable[[Any, int, bool], bool], change: Cut | Write, question: int, text: bool) -> bool:
        memo = (change, question, text)
        if memo not in self._touched:
            self._touched[memo] = touches(*memo)
        return self._touched[memo]

    def _cuts_rows(self, cut: Cut, question: int, text: bool) -> bool:
        rows, src = self._rows(cut.dst, question, text), self.layouts[question].positions(cut.src)
        return bool(len(rows) and len(src) and src[0] <= rows[-1])

    def _writes_rows(self, write: Write, question: int, text: bool) -> bool:
        return len(self._rows(write.at, question, text)) > 0

    def _rows(self, selector: str, question: int, text: bool) -> Int[Tensor, " row"]:
        """Positions of a selector among text rows, or among the stream's."""
        at = self.layouts[question].positions(selector)
        return at[at >= self.n_stream] if text else at[at < self.n_stream]

    def nodes(self) -> Iterator[Node]:
        """Every node, as they are evaluated."""
        stack = list(reversed(self.tree))
        while stack:
            node = stack.pop()
            yield node
            stack += reversed(node.children)

    def first_made(self, layer: int, steps: Sequence[TextStep]) -> int:
        """The first text row of states that a layer makes; of those before it keys and values alone are read.

        Above 0 in the last layer, where the end of each prompt is read, unless something writes to a state there.
        """
        if layer < self.n_layers - 1 or any(t.changes.writes for t in steps):
            return 0
        return min(layout.n_prompt for layout in self.layouts) - 1 - self.n_stream

    @property
    def counts(self) -> Counts:
        """What will be evaluated."""
        nodes = list(self.nodes())
        last = sum(n.layer == self.n_layers - 1 for n in nodes)
        texts = [t for n in nodes for t in n.texts]
        rows = [layout.n_tokens - self.n_stream for layout in self.layouts]
        return Counts(len(nodes) - last, last, len(texts), sum(rows[t.question] for t in texts))


def groups_before(layout: TokenLayout, n: int) -> frozenset[tuple[str, tuple[int, ...]]]:
    """The named groups of a layout, as far as they are among its first `n` positions."""
    before = ((name, tuple(p for p in positions if p < n)) for name, positions in layout.groups)
    return frozenset(group for group in before if group[1])


def _roles(layout: TokenLayout, n: int) -> tuple[list[Segment], bool]:
    """What the first `n` positions are, and whether markers among them are language."""
    before = [s for s in layout.segments if s.start < n]
    return before, layout.markers_are_language and any(s.role == "marker" for s in before)


def _check_condition(condition: Effects, layout: TokenLayout) -> None:
    kept_positions(layout, condition.exits)  # raises where a run with it does
    for exit in condition.exits:
        if exit.decided_late:
            raise InterventionError(
                f"a sweep cannot share {exit.label}: the run decides who leaves; run this condition alone"
            )
    if why := _unplaced(condition, layout):
        raise InterventionError(f"a sweep cannot share {why}; run this condition alone")
    assert not condition.clips, "a sweep is of one clip, which its inputs show"
    if condition.same_time:
        raise InterventionError(
            "a sweep cannot share all frames at one time: it turns the keys of the video once; run this condition alone"
        )
    for w in condition.writes:
        if why := _refusal(w, layout):
            raise InterventionError(f"a sweep cannot share {w.label}: {why}; run this condition alone")
        late = [e for e in condition.exits if w.layer is not None and w.layer >= e.layer]
        if any(bool((layout.mask(e.drop) & layout.mask(w.at)).any()) for e in late):
            raise InterventionError(f"{w.label}: these positions left the sequence by an early exit before it")


def _with_exits(condition: Effects, layout: TokenLayout) -> list[tuple[Cut, ...]]:
    """A condition's cuts of each block, exits among them as what they take from the rows that stay.

    Those that leave are read by nobody, whatever they do. Where all of the video leaves, only text and markers stay
    behind it, and its own rows may go on as they were.
    """
    gone: list[tuple[int, Cut]] = []
    for exit in condition.exits:
        stay = "all" if exit.drop != "video" else "text+markers" if "marker" in layout.roles else "text"
        gone.append((exit.layer, Cut(exit.drop, stay)))
    return [(*(cut for layer, cut in gone if layer <= i), *cuts) for i, cuts in enumerate(condition.cuts)]
