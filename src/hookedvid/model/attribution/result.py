"""What attribution gives: values of edges and nodes of one item, their tables, what a cut is estimated to lose."""

# pandas has no stubs of its own.
# pyright: reportMissingTypeStubs=false
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.values.columns import columns_of
from hookedvid.values.edge_sets import EdgeSets
from hookedvid.values.edges import Knockout
from hookedvid.values.effects import Cut, Effects, Write, check_heads, effects
from hookedvid.values.interventions import Ablate, Asked, as_interventions
from hookedvid.values.layer_range import EVERYWHERE
from hookedvid.values.layout import TokenLayout
from hookedvid.values.markup import Markup, shown, table
from hookedvid.values.tensors import floats

if TYPE_CHECKING:
    from pandas import DataFrame

Path = Literal["weights", "clip"]
Softmax = Literal["slope", "cut"]
COLUMNS = 40  # shown at most


@dataclass(frozen=True, eq=False)
class Attribution:
    """What `HookedVideoLLM.attribute` found of one item. Every value estimates what of the metric is lost.

    Attributes:
        value: The metric of the run.
        edges: [layer, head, edge], None where none were asked for: an estimate of metric(run) - metric(the edges of
            that layer and head cut).
        knockouts: One an edge column: which edges it sums, without layers and heads.
        nodes: By hook point, [layer, pos] or [layer, head, pos] by layout position: an estimate of metric(run) -
            metric(the activation there as in the reference). 0 where a position had left.
        reference: Of nodes, `zero`, `mean` or the key of a source; None where `attribute` was given the other run
            itself, which is not kept.
        other: The layout of that run. A node was held against the one at the same place in it.
        layout: Of the sequence.
        layers: Blocks that were asked about, 0-based.
        n_layers: How many the model has.
        softmax: How edges' own softmax counts in one step, as `attribute` was asked.
        path: What was integrated along; None for one step.
        n_steps: Of the path; 1 for one step.
        change: Of a path, metric(run) - metric(its start).
        gap: Of a path, the largest difference between that change and the sum of values that makes it up.
    """

    value: float
    layout: TokenLayout
    layers: tuple[int, ...]
    n_layers: int
    edges: Float[Tensor, "layer head edge"] | None = None
    knockouts: tuple[Knockout, ...] = ()
    nodes: Mapping[str, Float[Tensor, "layer *head pos"]] = field(default_factory=dict[str, Tensor])
    reference: str | None = None
    other: TokenLayout | None = None
    path: Path | None = None
    softmax: Softmax = "slope"
    n_steps: int = 1
    change: float | None = None
    gap: float | None = None

    @property
    def heads(self) -> tuple[int, ...]:
        """Heads of a block, 0-based."""
        return () if self.edges is None else tuple(range(self.edges.shape[1]))

    def __repr__(self) -> str:
        what = [f"{len(self.knockouts)} sets of edges, {len(self.heads)} heads"] if self.knockouts else []
        what += [f"nodes {', '.join(self.nodes)}"] if self.nodes else []
        of_softmax = " with the softmax cut" if self.softmax == "cut" else ""
        how = f"one step{of_softmax}" if self.path is None else f"path of {self.path}, {self.n_steps} steps"
        if self.change is not None and self.gap is not None:
            how += f", change {self.change:.4g}, gap {self.gap:.2g}"
        return f"Attribution: {'; '.join(what)}; {len(self.layers)} layers; metric {self.value:.4g}; {how}"

    def _repr_html_(self) -> Markup:
        """Edges by layer (0-based), heads summed."""
        if self.edges is None:
            return shown(repr(self))
        names = [k.label().removesuffix(" all layers") for k in self.knockouts]
        rows = [
            (f"layer {layer}", *(f"{x:.3g}" for x in floats(row[:COLUMNS])))
            for layer, row in zip(self.layers, self.sum_heads(), strict=True)
        ]
        more = [f"… and {len(names) - COLUMNS} more columns"] * (len(names) > COLUMNS)
        return shown(repr(self), "sum over heads", table(("", *names[:COLUMNS]), rows), *more)

    def estimate(self, interventions: Asked) -> float:
        """What cutting edges, or replacing what a hook point holds, is estimated to lose.

        Heads, layers and knockouts add up: to first order they do. So do positions of one hook point in one layer.
        What is named twice counts once.

        Args:
            interventions: Knockouts, with layers and heads, of edges that were asked about; none loses nothing. Or
                writes to a node, by a Patch or an Ablate, of what it was held against: both by the same key of a
                source, or both zero, or both the mean of one kind of segment.

        Raises:
            InputError: For edges, nodes, or a layer, that were not asked about, for what only weakens edges, for
                different sets that share edges, and for writes of something else than the reference.
        """
        asked = effects(as_interventions(interventions), self.n_layers)
        cuts = any(asked.cuts)
        if asked.exits or asked.clips or asked.same_time or any(asked.swaps) or (cuts and asked.writes):
            raise InputError("only knockouts are estimated, by edges, or else writes, by nodes")
        return self._of_writes(asked.writes) if asked.writes else self._of_cuts(asked)

    def _of_cuts(self, asked: Effects) -> float:
        check_heads(asked.every_cut, len(self.heads))
        sets: dict[tuple[int, int], set[int]] = {}  # of a layer's head, each once
        for layer, cuts in enumerate(asked.cuts):
            for cut in cuts:
                row, column = self._place(cut, layer)
                for head in cut.heads or self.heads:
                    sets.setdefault((row, head), set()).add(column)
        for several in {tuple(sorted(x)) for x in sets.values() if len(x) > 1}:
            EdgeSets.of(self.layout, [self.knockouts[i] for i in several]).check_apart()
        total = 0.0
        for (row, head), columns in sets.items():
            assert self.edges is not None  # or there was no place
            total += float(self.edges[row, head, list(columns)].sum())
        return total

    def _of_writes(self, writes: Sequence[Write]) -> float:
        """What is replaced in one layer is lost to those after, whose own gradients do not know it."""
        (hook, layer), *others = dict.fromkeys((w.hook, w.layer) for w in writes)
        if others:
            raise InputError("nodes of several layers or hook points do not add up; estimate each alone")
        if hook not in self.nodes:
            raise InputError(f"{writes[0].label}: no such node was asked about; nodes were {[*self.nodes]}")
        if layer is None or layer not in self.layers:
            raise InputError(f"{writes[0].label}: {self._unasked(layer)}")
        there = torch.zeros(self.layout.n_tokens, dtype=torch.bool)
        for w in writes:
            if not self._is_reference(w):
                has = f"is {self.reference!r}" if self.reference else "has no name: give it by its key in sources"
                raise InputError(f"{w.label}: what it puts in is not the reference, which {has}")
            at = self.layout.positions(w.at)
            if self.other is not None and not torch.equal(at, self.other.positions(w.at)[: len(at)]):
                raise InputError(
                    f"{w.label}: in the reference {w.at!r} stands at other positions, and nodes were held against the "
                    "same ones; give a reference with as many tokens of every kind"
                )
            there[at] = True
        return float(self.nodes[hook][self.layers.index(layer)][..., there].sum())

    def _is_reference(self, w: Write) -> bool:
        """Whether a write puts in what nodes were held against."""
        if self.reference is None:
            return False
        if self.reference == "zero":
            return w in Ablate(w.hook, EVERYWHERE, w.at).effect(self.n_layers).writes
        if self.reference != "mean":
            return w.by in ("rows", "mean") and w == Write(w.hook, w.layer, w.at, "", by=w.by, source=self.reference)
        kinds, at = columns_of(self.layout, "segments")[1], self.layout.positions(w.at)
        whole = len(at) > 0 and torch.equal(at, (kinds == kinds[at[0]]).nonzero()[:, 0])
        return whole and w == Write(w.hook, w.layer, w.at, "", by="mean")

    def _place(self, cut: Cut, layer: int) -> tuple[int, int]:
        """Where the values of a cut's edges are: of layers, of edges."""
        columns = [i for i, k in enumerate(self.knockouts) if _edges(k.cut) == _edges(cut)]
        if self.edges is None or not columns or not cut.removes or cut.drawn:
            known = ", ".join(k.label() for k in self.knockouts[:8]) or "none"
            raise InputError(
                f"{cut.label}: these edges were not asked about, cut; edges were {known}; "
                "attribute(…, edges=…) takes others"
            )
        if layer not in self.layers:
            raise InputError(f"{cut.label}: {self._unasked(layer)}")
        return self.layers.index(layer), columns[0]

    def _unasked(self, layer: int | None) -> str:
        return f"layer {layer} (0-based) was not asked about; layers were {self.layers}"

    def to_frame(self, sum_heads: bool = False) -> "DataFrame":
        """Edges in long form: layer, head, query (the readers), column (the sources, or a knockout's name), value.

        Args:
            sum_heads: Whether a layer's heads are one, and head is no column.

        Raises:
            InputError: Where no edges were asked for.
        """
        import pandas as pd

        if self.edges is None:
            raise InputError('no edges were asked for; attribute(…, edges="frames"), or read node_frame()')
        values = self.sum_heads()[:, None] if sum_heads else self.edges
        rows = [
            (layer, *([] if sum_heads else [head]), k.dst, k.name or k.src, x)
            for layer, of_layer in zip(self.layers, values, strict=True)
            for head, of_head in enumerate(of_layer)
            for k, x in zip(self.knockouts, floats(of_head), strict=True)
        ]
        head = [] if sum_heads else ["head"]
        return pd.DataFrame(rows, columns=["layer", *head, "query", "column", "value"])

    def node_frame(self, by: Literal["frames", "segments"] = "frames") -> "DataFrame":
        """Nodes in long form, summed over the positions of each frame or kind of segment.

        Columns: node, layer, head (-1 where the node has none), column, value.

        Raises:
            InputError: Where no nodes were asked for.
        """
        import pandas as pd

        if not self.nodes:
            raise InputError('no nodes were asked for; attribute(…, nodes=["resid_post", "z"])')
        labels, column = columns_of(self.layout, by)
        rows: list[tuple[str, int, int, str, float]] = []
        for name, values in self.nodes.items():
            each = values if values.ndim == 3 else values[:, None]
            sums = each.new_zeros(*each.shape[:2], len(labels)).index_add_(2, column, each)
            for layer, of_layer in zip(self.layers, sums, strict=True):
                for head, of_head in enumerate(of_layer):
                    place = name, layer, head if values.ndim == 3 else -1
                    rows += [(*place, c, x) for c, x in zip(labels, floats(of_head), strict=True)]
        return pd.DataFrame(rows, columns=["node", "layer", "head", "column", "value"])

    def sum_heads(self) -> Float[Tensor, "layer edge"]:
        """All heads of a layer together.

        Raises:
            InputError: Where no edges were asked for.
        """
        if self.edges is None:
            raise InputError('no edges were asked for; attribute(…, edges="frames")')
        return self.edges.sum(1)


def _edges(cut: Cut) -> tuple[str, str, str, bool]:
    """Which edges a cut is about."""
    return cut.src, cut.dst, cut.relation, cut.keep_self
