"""Where queries look: rows of the attention pattern, and their sums by segment, frame or patch.

Attention mass of a query on a set S of keys is Σ_{j∈S} exp(s_j - L), with s = qK^T/√d_head + M and L its log-sum-exp.
Where the layer's own kernel call tells L, and one set holds most keys, the mass on the other keys takes only their
scores, and that set has what is left of 1. Else: the mass is what attention gives when V is the indicator of S, so one
more attention call on the layer's own q, k and M, with one indicator a column of V, gives the mass on d_head sets.
No query x key tensor is built. Runs are read, never changed; editing is `run_with_hooks`, and whole patterns are
`run_with_cache`.
"""

# pandas has no stubs of its own.
# pyright: reportMissingTypeStubs=false
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.errors import HookError, InputError, InterventionError, nearest
from hookedvid.model.attention_table import html, told
from hookedvid.model.counterfactual import shown
from hookedvid.model.leaving import RunRecord
from hookedvid.model.run_plan import RunPlan
from hookedvid.nn.attention import Attended, Attention, Kernel, attend
from hookedvid.nn.head_groups import structures
from hookedvid.nn.hooks import HookPoint, listening
from hookedvid.nn.model import Model
from hookedvid.values.columns import columns_of
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.effects import Cut, effects
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import Asked
from hookedvid.values.layout import FrameBlendWarning, TokenLayout
from hookedvid.values.masks import masked, masks_of, visible
from hookedvid.values.serial import as_whole
from hookedvid.values.tensors import ints

if TYPE_CHECKING:
    from pandas import DataFrame

Reduce = Literal["none", "segments", "frames", "patches"]
See = Callable[[int, Int[Tensor, " query"], Float[Tensor, "head query pos"]], object]
_DRAWN = 'read with reduce="frames", or with "none" and draw it by model.places(inputs).on_frame'

# Rows of one call with a dense mask: at 6,387 keys 6 MiB as booleans, 25 as the floats CPU kernels make of them.
N_ROWS = 1024
# Of a call that makes its rows explicitly, and drops them: 28 heads and 6,387 keys are 87 MiB.
N_EXPLICIT = 128
# Scores made at once beside a known log-sum-exp: 16 MiB in float32.
N_SCORES = 1 << 22


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """What `HookedVideoLLM.attention` read of one item.

    Attributes:
        maps: By layer (0-based) [head, query, key], [head, query, column] or [head, frame, height, width], on the
            model's device unless told otherwise, in float32 (float64 of a float64 model). Of averaged queries [head,
            row, column].
        labels: The columns' names; for segments and frames each but `rest` is a selector of its positions.
        queries: Layout positions of the queries.
        heads: Which heads, in the order of the maps.
        rows: Of averaged queries, the names of the rows, which are among the labels; else empty.
        logits: Of the last position; bitwise those of the same run unread.
    """

    maps: dict[int, Tensor]
    reduce: Reduce
    layout: TokenLayout
    labels: tuple[str, ...]
    queries: Int[Tensor, " query"]
    heads: tuple[int, ...]
    rows: tuple[str, ...]
    logits: Float[Tensor, " d_vocab"]

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers read, 0-based."""
        return tuple(self.maps)

    def __repr__(self) -> str:
        return told(self)

    def _repr_html_(self) -> str:
        """Its mass by layer, the mean over heads and queries."""
        return html(self)

    def __getitem__(self, layer: int) -> Tensor:
        if layer not in self.maps:
            raise InputError(f"layer {layer} was not read; there are {', '.join(map(str, self.maps))}")
        return self.maps[layer]

    def mean_heads(self) -> Float[Tensor, "layer query *column"]:
        """All layers, heads averaged: [layer, query, column], [layer, frame, height, width] of patches."""
        return torch.stack([m.mean(0) for m in self.maps.values()])

    def between_frames(self) -> Float[Tensor, "layer head frame frame"]:
        """Mass from each frame to each, the mean over the queries of a frame; rows sum to 1 less what goes elsewhere.

        Raises:
            InputError: Unless read by frames, with averaged queries of every frame.
        """
        n = len(self.layout.steps)
        if self.reduce != "frames" or self.rows[:n] != self.labels[:n]:
            how = 'queries="video", reduce="frames", mean_queries=True'
            raise InputError(f"frame by frame needs the averaged queries of every frame: read with {how}")
        return torch.stack([m[:, :n, :n] for m in self.maps.values()])

    def to_frame(self) -> "DataFrame":
        """Long form: layer, head, query (a layout position, or a row's name), column, mass.

        Raises:
            InputError: Unless read by segments or frames.
        """
        import pandas as pd

        if self.reduce not in ("segments", "frames"):
            raise InputError(f'{self.reduce!r} has no columns of names; read with reduce="segments" or "frames"')
        axes = [self.layers, self.heads, self.rows or ints(self.queries), self.labels]
        index = pd.MultiIndex.from_product(axes, names=["layer", "head", "query", "column"])
        mass = torch.stack(list(self.maps.values())).flatten().cpu().numpy()
        return pd.DataFrame({"mass": mass}, index=index).reset_index()


@torch.no_grad()
def read_attention(
    model: Model,
    inputs: VideoInputs | Tensor,
    layers: int | Iterable[int] | None = None,
    queries: str = "last",
    reduce: Reduce = "none",
    heads: Sequence[int] | None = None,
    interventions: Asked = None,
    sources: Any = None,
    device: torch.device | str | None = None,
    mean_queries: bool = False,
    see: See | None = None,
) -> AttentionMap:
    """Where one item's queries look, in a run whose logits it leaves alone.

    layers, heads: 0-based, layers from the end when negative; all by default. queries: a selector of the layout.
    reduce: what is kept of each query's row of the pattern, knockouts and edits of `hook_mask` included.
        none: the row itself, one column a layout position.
        segments: mass on each kind of segment present: system, patches, newlines, markers, question, every option,
            template, generated. They tile the sequence, so a row sums to 1.
        frames: mass on each frame, the newlines inside it included, then on all the rest (the newline that ends a
            video and the markers between frames too); a row sums to 1.
        patches: mass on each patch, summed over the queries, on the projector's grid.
    interventions, sources: as in `forward`. What an early exit dropped gets mass 0.
    device: where each layer's map is put as soon as it is read; by default where the logits are.
    mean_queries: of segments and frames, keep the mean over the queries of each, one row a segment or frame that has
        any, in the order of the columns: what a map holds then does not grow with the sequence.
    see: with `none`, is shown each layer's rows, some queries at a time, as they are read; none is held.

    A query with no key left looks nowhere: its row is 0. Masses carry an absolute error, of the model's type (in
    float32 some 1e-6), so the smallest are known only as small.
    Raises InputError on a batch, InterventionError for queries an early exit dropped, and HookError where
    something listens on scores or pattern of a layer read: its edits would not be seen here.
    """
    if reduce not in get_args(Reduce):
        raise InputError(f"no reduction {reduce!r} ({nearest(str(reduce), get_args(Reduce))})")
    if model.cfg.decoder is None:
        raise InputError("this model is a vision tower alone; it has no decoder to read")
    batch, interventions = shown(model, model.inputs_of(inputs), interventions)
    if batch.batch_size != 1:
        raise InputError(f"attention is read of one item at a time, and this batch holds {batch.batch_size}")
    layout = batch.layout
    request = _Request.of(model, layout, queries, reduce, heads, mean_queries)._replace(see=see)
    if see is not None and reduce != "none":
        raise InputError(f'see is shown rows, which reduce="none" reads, not {reduce!r}; leave one out')
    numbers = as_blocks(layers, model.cfg.n_layers)
    joint = effects(interventions, model.cfg.n_layers)
    known = RunPlan(model.cfg.lm, batch, joint, None).rows
    for i in numbers:
        _check_there(request.queries, known[i][0], i)
    record = RunRecord()
    readers = {i: _Reader(model.blocks[i].attn, i, request, record, joint.cuts[i], device) for i in numbers}
    logits = model(batch, interventions=interventions, sources=sources, logits_to_keep=1, probes=readers, record=record)
    device = logits.device if device is None else device
    maps = {i: r.result.to(device) for i, r in readers.items() if r.result is not None}
    rows = () if request.rows is None else tuple(request.labels[i] for i in request.rows)
    return AttentionMap(maps, reduce, layout, request.labels, request.queries, request.heads, rows, logits[0, -1])


class _Request(NamedTuple):
    """A reading's arguments, checked against a model and a layout; positions are the layout's."""

    layout: TokenLayout
    queries: Int[Tensor, " query"]
    heads: tuple[int, ...]
    reduce: Reduce
    labels: tuple[str, ...]
    column: Int[Tensor, " pos"]  # which column a position counts in
    rows: list[int] | None  # of which columns the queries are averaged, if they are
    grid: tuple[int, int, int]  # frames, height, width
    kernel: Kernel
    see: See | None = None

    @classmethod
    def of(
        cls, model: Model, layout: TokenLayout, queries: str, reduce: Reduce, heads: Sequence[int] | None, mean: bool
    ) -> "_Request":
        chosen_queries = layout.positions(queries)
        if not len(chosen_queries):
            raise InputError(f"queries {queries!r} select nothing: this sequence has {', '.join(layout.roles)}")
        n_heads = model.cfg.n_heads
        chosen = tuple(range(n_heads) if heads is None else heads)
        if not chosen or any(not 0 <= h < n_heads for h in chosen):
            raise InputError(f"heads {list(chosen)} are not all there: this model's are numbered 0 to {n_heads - 1}")
        grid = (0, 0, 0)
        if reduce in ("frames", "patches"):
            if not layout.n_frames:
                raise InputError(f'reduce={reduce!r} needs a video; this sequence has none: use "segments"')
            if layout.merged:
                text = f"each video token mixes {layout.blend} frames: mass on a frame is mass on its neighbours too"
                warnings.warn(text, FrameBlendWarning, stacklevel=4)
        if reduce == "patches":
            grid = _grid(model.cfg, layout)
        labels, column = _columns(layout, reduce)
        if mean and reduce not in ("segments", "frames"):
            raise InputError(
                f'mean_queries averages what reduce="segments" or "frames" gives, not {reduce!r}: choose one'
            )
        rows = sorted(set(ints(column[chosen_queries]))) if mean else None
        return cls(layout, chosen_queries, chosen, reduce, labels, column, rows, grid, model.kernel)

    def mean(self, mass: Float[Tensor, "head query column"]) -> Float[Tensor, "head row column"]:
        """Over the queries of each row, where they are averaged."""
        if self.rows is None:
            return mass
        mine = self.column[self.queries] == torch.tensor(self.rows)[:, None]
        return (mine.to(mass) / mine.sum(-1, keepdim=True).to(mass)) @ mass


class _Reader:
    """One layer's probe: its attention shows it rotated q and k and the mask; the map is left in `result`.

    Args:
        record: Of the run, says the layout positions of the layer's last columns; columns before them are padding.
        cut: What is knocked out.
        device: Where the map goes (None: it stays).
    """

    def __init__(
        self,
        attn: Attention,
        layer: int,
        request: _Request,
        record: RunRecord,
        cut: Sequence[Cut],
        device: torch.device | str | None,
    ):
        self.attn, self.layer, self.request, self.cut, self.device = attn, layer, request, cut, device
        self.record = record
        self.result: Tensor | None = None

    def __call__(self, seen: Attended) -> None:
        check_unedited(self.attn, self.layer)
        q, k, lse = seen.q, seen.k, seen.lse
        request, positions = self.request, self.record.rows[self.layer][0]
        _check_there(request.queries, positions, self.layer)
        n_pad = k.shape[1] - len(positions)
        dense = seen.allowed if isinstance(seen.allowed, Tensor) else None
        if len(request.heads) < q.shape[2] or request.heads != tuple(range(q.shape[2])):
            index = torch.tensor(request.heads, device=q.device)
            k = k[:, :, index // (q.shape[2] // k.shape[2])]
            q = q[:, :, index]
            dense = dense[:, index] if dense is not None and dense.shape[1] > 1 else dense
            lse = None if lse is None else lse[:, index]
        rows = torch.searchsorted(positions, request.queries) + n_pad
        layer = _Layer(q, k, rows, dense, request.layout, positions, self.cut, request.heads)
        precise = torch.promote_types(q.dtype, torch.float32)
        if request.reduce in ("segments", "frames"):
            sets = F.one_hot(request.column[positions], len(request.labels)).to(q.device, precise)
            mass = request.mean(layer.mass(F.pad(sets, (0, 0, n_pad, 0)), lse, request.kernel))
        elif request.see is not None:
            for some, at in zip(*(torch.split(x, N_EXPLICIT) for x in (rows, request.queries)), strict=True):
                request.see(self.layer, at, self._by_position(layer.pattern(some)[..., n_pad:].to(precise), positions))
            return
        elif request.reduce == "none":
            mass = self._by_position(layer.pattern(rows)[..., n_pad:].to(precise), positions)
        else:
            total = sum(layer.pattern(r).to(precise).sum(1) for r in torch.split(rows, N_EXPLICIT))
            assert isinstance(total, Tensor)
            on_patches = self._by_position(total[..., n_pad:], positions)[:, (request.column == 0).to(q.device)]
            mass = cast(Tensor, on_patches.unflatten(-1, request.grid))
        self.result = mass if self.device is None else mass.to(self.device)

    def _by_position(
        self, mass: Float[Tensor, "*rows column"], positions: Int[Tensor, " column"]
    ) -> Float[Tensor, "*rows pos"]:
        n = len(self.request.column)
        if len(positions) == n:
            return mass
        return mass.new_zeros(*mass.shape[:-1], n).index_copy_(-1, positions.to(mass.device), mass)


def check_unedited(attn: Attention, layer: int) -> None:
    """Raise HookError where hooks may make another pattern of a layer than the softmax of its scores."""
    if listening(attn.hook_attn_scores, attn.hook_pattern):
        raise HookError(
            f"something listens on the scores or the pattern of layer {layer} (0-based), and a reading does "
            'not see its edits; take it off, or use run_with_cache(names_filter="pattern")'
        )


def _check_there(queries: Int[Tensor, " query"], positions: Int[Tensor, " column"], layer: int) -> None:
    if not bool(torch.isin(queries, positions).all()):
        raise InterventionError(
            f"these queries are not all in the sequence at layer {layer} (0-based): an early exit dropped some; read "
            "earlier layers, or queries that stay"
        )


class _Layer(NamedTuple):
    """What a layer attends with, and the rows (ascending columns of q, on the CPU) that are read.

    Without a `dense` mask, whose columns may be padding, it is that of the columns' `positions` under `cut`.
    """

    q: Float[Tensor, "1 query head d_head"]
    k: Float[Tensor, "1 key kv_head d_head"]
    rows: Int[Tensor, " row"]
    dense: Bool[Tensor, "1 #head query key"] | Float[Tensor, "1 #head query key"] | None
    layout: TokenLayout
    positions: Int[Tensor, " column"]
    cut: Sequence[Cut]
    heads: Sequence[int]

    def mask(
        self, rows: Tensor, keys: Tensor | slice = slice(None)
    ) -> Bool[Tensor, "#head row key"] | Float[Tensor, "#head row key"]:
        if self.dense is not None:
            return self.dense[0, :, rows.to(self.q.device)][..., keys]
        of_heads = masks_of(self.layout, self.cut, self.heads, self.positions[rows], self.positions[keys])
        return of_heads.to(self.q.device)

    def pattern(self, rows: Tensor) -> Float[Tensor, "head row key"]:
        """The softmax of some rows, by the explicit path."""
        seen: list[Tensor] = []
        point = HookPoint()
        point.add_hook(lambda tensor, hook: seen.append(tensor[0]))
        _attend(self.q[:, rows.to(self.q.device)], self.k, self.k, self.mask(rows), "eager", point)
        return seen[0]

    def mass(
        self, sets: Float[Tensor, "key column"], lse: Float[Tensor, "1 head query"] | None, kernel: Kernel
    ) -> Float[Tensor, "head row column"]:
        """Mass of each row on each set of keys."""
        if lse is not None and 2 * int(sets.sum(0).max()) > len(sets):
            return self._shares(sets, lse[0])
        parts: list[Tensor] = []
        for some in torch.split(sets.to(self.k), self.k.shape[-1], dim=1):  # kernels want V as wide as K
            values = F.pad(some, (0, self.k.shape[-1] - some.shape[1]))
            z = self._outputs(values[None, :, None].expand(1, -1, self.k.shape[2], -1), kernel)
            parts.append(z[..., : some.shape[1]])
        return torch.cat(parts, -1).transpose(0, 1).to(sets.dtype, memory_format=torch.contiguous_format)

    def _shares(self, sets: Tensor, lse: Float[Tensor, "head query"]) -> Float[Tensor, "head row column"]:
        """By exp(score - log-sum-exp) of all keys but those of the largest set, which has the rest of 1."""
        largest = int(sets.sum(0).argmax())
        within = (sets[:, largest] > 0).cpu()
        others, most = (~within).nonzero()[:, 0], within.nonzero()[:, 0]
        most = most if self.dense is not None else most[:1]  # under causality alone, who sees any sees the first
        parts: list[Tensor] = []
        n_rows = max(1, min(N_ROWS, N_SCORES // max(1, len(lse) * len(others))))
        for rows in torch.split(self.rows, n_rows):
            few = others if self.dense is not None else others[others <= rows[-1]]
            at, to = rows.to(sets.device), few.to(sets.device)
            q, k = self.q[0, at].to(sets.dtype).transpose(0, 1), self.k[0, to].to(sets.dtype).permute(1, 2, 0)
            # Heads of one kv_head beside each other in one row axis, over which its keys need no copies.
            by_kv_head = cast(Tensor, q.unflatten(0, (len(k), -1)))
            scores = by_kv_head.flatten(1, 2) @ k * q.shape[-1] ** -0.5
            scores = masked(scores.view(len(lse), len(rows), len(few)), self.mask(rows, few))
            mass = scores.sub_(lse[:, at, None]).exp_() @ sets[to]
            rest = (1 - mass.sum(-1)).clamp(min=0.0)
            mass[..., largest] = rest.masked_fill(~visible(self.mask(rows, most)).any(-1), 0.0)
            parts.append(mass)
        return torch.cat(parts, 1)

    def _outputs(self, v: Tensor, kernel: Kernel) -> Float[Tensor, "row head d_head"]:
        if self.dense is None and kernel == "sdpa":
            # Of most rows, all: those that begin where keys do need no masks.
            rows = self.rows if 2 * len(self.rows) < self.q.shape[1] else torch.arange(self.q.shape[1])
            calls = structures(self.layout, self.cut, self.heads, self.positions[rows], self.positions)
            assert calls is not None
            q = self.q if len(rows) == self.q.shape[1] else self.q[:, rows.to(v.device)]
            z = calls.to(v.device).attend(q, self.k, v)[0]
            return z if len(rows) == len(self.rows) else z[self.rows.to(v.device)]
        parts = torch.split(self.rows, N_ROWS)
        return torch.cat([_attend(self.q[:, r.to(v.device)], self.k, v, self.mask(r), kernel)[0] for r in parts])


def _attend(
    q: Tensor, k: Tensor, v: Tensor, may: Tensor, kernel: Kernel, seen: HookPoint | None = None
) -> Float[Tensor, "1 query head d_head"]:
    on_pattern = seen or HookPoint()
    return attend(q, k, v, may[None], causal=False, kernel=kernel, on_scores=HookPoint(), on_pattern=on_pattern)


def _columns(layout: TokenLayout, reduce: Reduce) -> tuple[tuple[str, ...], Int[Tensor, " pos"]]:
    """Names of the columns, and the column of every position."""
    if reduce == "none":
        return tuple(map(str, range(layout.n_tokens))), torch.arange(layout.n_tokens)
    if reduce == "patches":
        return (), (~layout.mask("patches")).long()
    return columns_of(layout, reduce)


def _grid(cfg: VideoLLMConfig, layout: TokenLayout) -> tuple[int, int, int]:
    assert cfg.projector is not None and cfg.vision is not None
    if cfg.projector.merge is not None:
        raise InputError(f"this model merges tokens, so its patches keep no grid; {_DRAWN}")
    if layout.grid is None or layout.grid.dropped:
        raise InputError(f"tokens of this video are dropped, so its frames have no whole grid; {_DRAWN}")
    return len(layout.steps), layout.grid.rows, layout.grid.columns


def as_blocks(layers: int | Iterable[int] | None, n_layers: int) -> tuple[int, ...]:
    """Numbers of blocks, 0-based, from the end where negative; all by default.

    Raises:
        InputError: For one that is not there, and for none.
    """
    given = range(n_layers) if layers is None else list(layers) if isinstance(layers, Iterable) else [layers]
    numbers = [i for i in map(as_whole, given) if i is not None and -n_layers <= i < n_layers]
    if not numbers or len(numbers) < len(given):
        raise InputError(f"layers {list(given)} are not all there: this model's are numbered 0 to {n_layers - 1}")
    return tuple(dict.fromkeys(i % n_layers for i in numbers))
