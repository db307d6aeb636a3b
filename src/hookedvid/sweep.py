"""Many interventions on one video at a fraction of the forwards, exactly: what they share is computed once.

* By causality, rows of the video and of what stands before it never read the text after it. So this stream, its
  keys and values, and the vision tower serve every question and every intervention that touches text rows alone.
* Conditions that have done the same to the stream so far are on one path. The paths form a tree over the layers,
  walked depth first with the untouched path last: one residual stream a branching is alive, no cache is kept.
* Text rows of every question and condition ride on their path, against the path's shared keys and values.

What can be shared is read from the interventions, which are values; nothing is kept by hand.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.errors import InputError, InterventionError
from hookedvid.inputs import VideoInputs
from hookedvid.interventions import EarlyExit, Intervention, Knockout, LayerRange, Patch, RandomEdges
from hookedvid.layout import TokenLayout
from hookedvid.masks import active, allowed
from hookedvid.nn.attention import AttnContext
from hookedvid.nn.hooks import listening
from hookedvid.nn.kv import LayerKV
from hookedvid.nn.layers import rope_angles
from hookedvid.nn.structured import Structure, structure

Cuts = tuple[tuple[Knockout | RandomEdges, int], ...]  # knockouts, each with the question whose layout draws it
Cell = tuple[int, int]  # question, condition


def shareable(interventions: Sequence[Intervention]) -> bool:
    """Whether a sweep can place a condition: knockouts and exits it can, patches of activations it cannot."""
    return not any(isinstance(i, Patch) for i in interventions)


@dataclass(frozen=True)
class TextStep:
    """Text rows of one question in one layer: from which state above, under which cuts, for which cells."""

    parent: int
    question: int
    cuts: Cuts
    cells: tuple[Cell, ...]


@dataclass
class Node:
    """One evaluation of the stream in one layer (in the last, of its keys and values alone), and what rides on it."""

    layer: int
    cuts: Cuts
    texts: list[TextStep] = field(default_factory=list)
    children: list["Node"] = field(default_factory=list)


@dataclass(frozen=True)
class Counts:
    """What a sweep evaluates: stream blocks, last blocks' keys and values, text states, and text rows in all."""

    stream: int
    keys_values: int
    text_states: int
    text_rows: int


class Sweep:
    """Questions on one video, each under every condition.

    inputs: one item each, all with the same video behind the same tokens. conditions: interventions that are
    `shareable`. Raises InputError or InterventionError for what cannot be swept together.
    """

    def __init__(self, n_layers: int, inputs: Sequence[VideoInputs], conditions: Sequence[Sequence[Intervention]]):
        self.n_layers = n_layers
        self.layouts = [x.layout for x in inputs]
        self.conditions = [tuple(c) for c in conditions]
        for c in self.conditions:
            if not shareable(c):
                raise InterventionError("a sweep cannot share patches of activations; run such conditions alone")
        self.n_stream = stream_length(self.layouts[0])
        self._check_shared(inputs)
        self._active = [active([_as_knockout(i, self.layouts[0]) for i in c], n_layers) for c in self.conditions]
        self._effects: dict[tuple[Any, int, bool], bool] = {}
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

    def _grow(self, layer: int, states: Sequence[tuple[int, Sequence[Cell]]]) -> list[Node]:
        """The nodes of a layer below one path; the untouched one last."""
        groups: dict[Cuts, dict[tuple[int, Cuts], list[Cell]]] = {}
        last = layer == self.n_layers - 1  # where no row of the stream is read any more
        for i, (_, cells) in enumerate(states):
            for cell in cells:
                stream = () if last else self._cuts(cell, layer, text=False)
                text = self._cuts(cell, layer, text=True)
                groups.setdefault(stream, {}).setdefault((i, text), []).append(cell)
        nodes = []
        for stream, texts in sorted(groups.items(), key=lambda g: g[0] == ()):
            node = Node(layer, stream)
            node.texts = [TextStep(i, states[i][0], cuts, tuple(cells)) for (i, cuts), cells in texts.items()]
            if not last:
                node.children = self._grow(layer + 1, [(t.question, t.cells) for t in node.texts])
            nodes.append(node)
        return nodes

    def _cuts(self, cell: Cell, layer: int, text: bool) -> Cuts:
        """The knockouts of a layer that change stream rows, or text rows."""
        question, condition = cell
        found = []
        for k in self._active[condition][layer]:
            memo = (k, question, text)
            if memo not in self._effects:
                self._effects[memo] = self._touches(k, question, text)
            if self._effects[memo]:
                drawn = question if text or isinstance(k, RandomEdges) else 0
                found.append((k.at(LayerRange()), drawn))
        return tuple(found)

    def _touches(self, k: Knockout | RandomEdges, question: int, text: bool) -> bool:
        if isinstance(k, RandomEdges):
            return True
        layout = self.layouts[question]
        dst, src = layout.positions(k.dst), layout.positions(k.src)
        rows = dst[dst >= self.n_stream] if text else dst[dst < self.n_stream]
        return bool(len(rows) and len(src) and src[0] <= rows[-1])

    def nodes(self) -> Iterator[Node]:
        """Every node, as they are evaluated."""
        stack = list(reversed(self.tree))
        while stack:
            node = stack.pop()
            yield node
            stack += reversed(node.children)

    @property
    def counts(self) -> Counts:
        """What will be evaluated."""
        nodes = list(self.nodes())
        last = sum(n.layer == self.n_layers - 1 for n in nodes)
        texts = [t for n in nodes for t in n.texts]
        rows = [layout.n_tokens - self.n_stream for layout in self.layouts]
        return Counts(len(nodes) - last, last, len(texts), sum(rows[t.question] for t in texts))


def stream_length(layout: TokenLayout) -> int:
    """Positions up to the last of the video, which no text after it can change; 0 without a video."""
    return max((s.stop for s in layout.segments if s.role in ("video", "newline")), default=0)


def _as_knockout(i: Intervention, layout: TokenLayout) -> Knockout | RandomEdges:
    """An exit as what it takes from the rows that stay; those that leave are read by nobody, whatever they do.

    Where all of the video leaves, only text and markers stay behind it, and its own rows may go on as they were.
    """
    if isinstance(i, EarlyExit):
        if i.drop != "video":
            return i.as_knockout()
        stay = "text+markers" if "marker" in layout.roles else "text"
        return Knockout(i.drop, stay, LayerRange(i.layer))
    assert isinstance(i, Knockout | RandomEdges)
    return i


class _Shared(LayerKV):
    """A path's keys and values in front of a text state's own; only the columns some row may look at."""

    def __init__(self, stream: LayerKV, columns: Tensor | None, device: torch.device):
        super().__init__()
        assert stream.k is not None and stream.v is not None
        self.shared = [x if columns is None else x[:, columns.to(device)] for x in (stream.k, stream.v)]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The path's keys and values, then the text's own; each [1, key, kv_head, d_head]."""
        return torch.cat([self.shared[0], k], 1), torch.cat([self.shared[1], v], 1)


class _Run:
    """One walk over a sweep's tree; `logits` fills as paths end."""

    def __init__(
        self, model: Any, sweep: Sweep, inputs: Sequence[VideoInputs], progress: Callable[[int], object] | None
    ):
        self.model, self.sweep, self.progress = model, sweep, progress
        n, lm = sweep.n_stream, model.cfg.lm
        whole = model.embed_inputs(inputs[0])
        self.dtype, self.device = whole.dtype, whole.device
        lengths = [layout.n_tokens for layout in sweep.layouts]
        if lm.rope.scaling == "dynamic" and len({max(x, lm.n_ctx) for x in lengths}) > 1:
            raise InputError(f"{lengths} tokens turn keys by different angles beyond {lm.n_ctx}: sweep them alone")
        self.stream = whole[:, :n].clone()
        self.texts = [
            whole[:, n:] if q == 0 else model.embed(x.tokens[:, n:].to(self.device)) for q, x in enumerate(inputs)
        ]
        angles = [
            rope_angles(lm.rope, lm.d_head, lm.n_ctx, torch.arange(length)[None], (length,), self.dtype)
            for length in lengths
        ]
        self.stream_angles = tuple(x[:, :n].to(self.device) for x in angles[0])
        self.text_angles = [tuple(x[:, n:].to(self.device) for x in pair) for pair in angles]
        self._stream_masks: dict[Cuts, Tensor | Structure] = {}
        self._text_masks: dict[tuple[int, Cuts], tuple[Tensor, Tensor | None]] = {}
        self.logits: dict[Cell, Tensor] = {}

    def walk(self, nodes: Sequence[Node], stream: list[Tensor], texts: list[Tensor]) -> None:
        """Evaluate a layer's nodes; `stream` holds one tensor, given up for the last of them."""
        for node in nodes:
            resid = stream.pop() if node is nodes[-1] else stream[0]
            kv = LayerKV()
            below = [self._stream_step(node, resid, kv)]
            del resid
            rows = self._text_step(node, texts, kv)
            del kv
            if node.children:
                self.walk(node.children, below, rows)
            else:
                self._finish(node, rows)
            if self.progress is not None:
                self.progress(sum(len(t.cells) for t in node.texts) if not node.children else 0)

    def _stream_step(self, node: Node, resid: Tensor, kv: LayerKV) -> Tensor:
        """The stream after a block, whose keys and values stay in `kv`."""
        block, (cos, sin) = self.model.blocks[node.layer], self.stream_angles
        if not node.children:
            kv.append(*block.attn.keys_values(resid, block.ln1, AttnContext(cos, sin)))
            return resid
        mask = self._stream_mask(node.cuts)
        return block(resid, AttnContext(cos, sin, mask, mask is None, self.model.kernel), kv)

    def _stream_mask(self, cuts: Cuts) -> Tensor | Structure | None:
        if not cuts:
            return None
        if cuts not in self._stream_masks:
            rows, layout = torch.arange(self.sweep.n_stream), self.sweep.layouts[cuts[0][1]]
            knockouts = [k for k, _ in cuts]
            calls = structure(layout, knockouts, rows, rows)
            mask = allowed(layout, knockouts, rows, rows)[None, None] if calls is None else calls
            self._stream_masks[cuts] = mask.to(self.device)
        return self._stream_masks[cuts]

    def _text_step(self, node: Node, texts: Sequence[Tensor], kv: LayerKV) -> list[Tensor]:
        """Every text state after a block.

        One at a time: rows batched with others would round by what else is asked, and a study that goes on
        would not repeat its numbers.
        """
        block, out = self.model.blocks[node.layer], []
        shared: dict[tuple[int, Cuts], _Shared] = {}
        for t in node.texts:
            mask, columns = self._text_mask(t.question, t.cuts)
            if (t.question, t.cuts) not in shared:
                shared[t.question, t.cuts] = _Shared(kv, columns, self.device)
            cos, sin = self.text_angles[t.question]
            ctx = AttnContext(cos, sin, mask, False, self.model.kernel)
            out.append(block(texts[t.parent], ctx, shared[t.question, t.cuts]))
        return out

    def _text_mask(
        self, question: int, cuts: Cuts
    ) -> tuple[Bool[Tensor, "1 1 text key"], Int[Tensor, " column"] | None]:
        """What text rows may look at, and which columns of the stream that leaves (None: all)."""
        if (question, cuts) not in self._text_masks:
            layout, n = self.sweep.layouts[question], self.sweep.n_stream
            rows = torch.arange(n, layout.n_tokens)
            mask = allowed(layout, [k for k, _ in cuts], rows, torch.arange(layout.n_tokens))
            seen = mask[:, :n].any(0)
            columns = None if bool(seen.all()) else seen.nonzero().squeeze(-1)
            if columns is not None:
                mask = torch.cat([mask[:, columns], mask[:, n:]], 1)
            self._text_masks[question, cuts] = mask[None, None].to(self.device), columns
        return self._text_masks[question, cuts]

    def _finish(self, node: Node, rows: Sequence[Float[Tensor, "1 _ d_model"]]) -> None:
        for t, row in zip(node.texts, rows, strict=True):
            logits = self.model.unembed(self.model.ln_final(row[:, -1:]))[0, 0]
            for cell in t.cells:
                self.logits[cell] = logits


@torch.no_grad()
def sweep(
    model: Any,
    inputs: Sequence[VideoInputs],
    conditions: Sequence[Sequence[Intervention]],
    progress: Callable[[int], object] | None = None,
) -> list[list[Float[Tensor, " d_vocab"]]]:
    """Logits of the last position, for each question under each condition.

    Equal to `model(x, interventions=c)` up to rounding. inputs: questions on one video. progress: told how
    many cells are done.
    """
    hooked = [n for n, p in model.hook_dict.items() if listening(p)]
    if hooked:
        raise InputError(
            f"a sweep runs rows apart, so hooks would see parts of them: {hooked[:3]}; remove them, or run forwards"
        )
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise InputError("a sweep reads weights outside their block, so it needs one device: load without device_map")
    plan = Sweep(model.cfg.n_layers, inputs, conditions)
    run = _Run(model, plan, [x.to(model.device) for x in inputs], progress)
    stream = [run.stream]
    del run.stream
    run.walk(plan.tree, stream, run.texts)
    return [[run.logits[q, c] for c in range(len(plan.conditions))] for q in range(len(inputs))]
