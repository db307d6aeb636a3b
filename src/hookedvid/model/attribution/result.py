"""What attribution gives: values of edges and nodes of one item, their tables, what a cut is estimated to lose."""

# pandas has no stubs of its own.
# pyright: reportMissingTypeStubs=false
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.values.columns import columns_of
from hookedvid.values.edge_sets import EdgeSets
from hookedvid.values.edges import Knockout
from hookedvid.values.effects import Cut, check_heads, effects
from hookedvid.values.interventions import Asked, as_interventions
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
        """What cutting edges is estimated to lose, in the layers and heads of knockouts that were asked about.

        Heads, layers and knockouts add up: to first order they do. What is named twice counts once.

        Args:
            interventions: Knockouts, with layers and heads; none loses nothing.

        Raises:
            InputError: For edges, or a layer, that were not asked about, for what only weakens edges, and for
                different sets that share edges.
        """
        asked = effects(as_interventions(interventions), self.n_layers)
        if asked.writes or asked.exits or asked.clips or asked.same_time or any(asked.swaps):
            raise InputError("only knockouts are estimated by edges; nodes are for writes")
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
            raise InputError(f"{cut.label}: layer {layer} (0-based) was not asked about; layers were {self.layers}")
        return self.layers.index(layer), columns[0]

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
