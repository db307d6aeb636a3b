"""Many interventions on one video at a fraction of the forwards, exactly: what they share is computed once.

* Conditions that have done the same to the stream so far are on one path. The paths form a tree over the layers
  (`sharing`), walked depth first with the untouched path last: one residual stream a branching is alive, no cache
  is kept.
* Text rows of every question and condition ride on their path, batched, against the path's shared keys and values.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from hookedvid.errors import InputError
from hookedvid.inputs import VideoInputs
from hookedvid.interventions import Intervention
from hookedvid.masks import allowed
from hookedvid.nn.attention import AttnContext
from hookedvid.nn.hooks import listening
from hookedvid.nn.kv import LayerKV
from hookedvid.nn.layers import rope_angles
from hookedvid.nn.shared import SharedStream, View
from hookedvid.nn.structured import Structure, structure
from hookedvid.patching import Write, write_of
from hookedvid.sharing import Cell, Changes, Node, Placed, Sweep, TextStep, shareable, stream_length

__all__ = ["Rows", "Sweep", "shareable", "stream_length", "sweep"]

Sources = Mapping[str, Any] | None
Read = Callable[[int, Tensor], Tensor]


class Rows:
    """The rows of questions on one video, stream and text apart, and how a block computes either.

    The stream is [1, n_stream, d_model]. Text states are [state, n_text, d_model]: as long as the longest question,
    shorter ones padded behind their end, where nothing of theirs looks.
    """

    def __init__(self, model: Any, plan: Sweep, inputs: Sequence[VideoInputs], sources: Sources = None):
        self.model, self.plan, self.inputs, self.sources = model, plan, inputs, sources
        n, lm = plan.n_stream, model.cfg.lm
        whole = model.embed_inputs(inputs[0])
        self.dtype, self.device = whole.dtype, whole.device
        lengths = [layout.n_tokens for layout in plan.layouts]
        if lm.rope.scaling == "dynamic" and len({max(x, lm.n_ctx) for x in lengths}) > 1:
            raise InputError(f"{lengths} tokens turn keys by different angles beyond {lm.n_ctx}: sweep them alone")
        longest = max(lengths)
        cos, sin = rope_angles(lm.rope, lm.d_head, lm.n_ctx, torch.arange(longest)[None], (lengths[0],), self.dtype)
        self.angles = cos.to(self.device), sin.to(self.device)
        self.n_text = longest - n
        texts = [whole[:, n:] if q == 0 else model.embed(x.tokens[:, n:].to(self.device)) for q, x in enumerate(inputs)]
        self.texts = torch.cat([pad(t, (0, 0, 0, self.n_text - t.shape[1])) for t in texts])
        self.stream = whole[:, :n].clone()
        self._forget()

    def _forget(self) -> None:
        self._stream_masks: dict[Changes, Tensor | Structure] = {}
        self._views: dict[tuple[int, Changes], tuple[Tensor | None, Tensor | None, Tensor]] = {}
        self._writes: dict[tuple[Placed, int], Write] = {}

    def under(self, plan: Sweep, sources: Sources) -> "Rows":
        """The same rows under another plan for the same questions; nothing is encoded again."""
        other = copy.copy(self)
        other.plan, other.sources = plan, sources
        other._forget()
        return other

    # ---- the stream ----------------------------------------------------------------------------------------

    def stream_step(self, layer: int, changes: Changes, resid: Tensor, kv: LayerKV) -> Tensor:
        """The stream after a block, whose keys and values stay in `kv`; the last block makes only these."""
        n = self.plan.n_stream
        block = self.model.blocks[layer]
        cos, sin = (x[:, :n] for x in self.angles)
        placed = [(0, one) for one in changes if isinstance(one[0], Placed)]
        if layer == self.plan.n_layers - 1 and not placed:
            kv.append(*block.attn.keys_values(resid, block.ln1, AttnContext(cos, sin)))
            return resid
        mask = self._stream_mask(tuple(one for one in changes if not isinstance(one[0], Placed)))
        with self.model.hooks(self._hooks(placed, 0)):
            return block(resid, AttnContext(cos, sin, mask, mask is None, self.model.kernel), kv)

    def _stream_mask(self, cuts: Changes) -> Tensor | Structure | None:
        if not cuts:
            return None
        if cuts not in self._stream_masks:
            rows, layout = torch.arange(self.plan.n_stream), self.plan.layouts[cuts[0][1]]
            knockouts = [k for k, _ in cuts if not isinstance(k, Placed)]
            calls = structure(layout, knockouts, rows, rows)
            mask = allowed(layout, knockouts, rows, rows)[None, None] if calls is None else calls
            self._stream_masks[cuts] = mask.to(self.device)
        return self._stream_masks[cuts]

    # ---- the text ------------------------------------------------------------------------------------------

    def text_step(self, layer: int, steps: Sequence[TextStep], texts: Tensor, kv: LayerKV) -> Tensor:
        """Every state [state, n_text, d_model] after a block; at most about as many rows at once as the stream has."""
        block, n = self.model.blocks[layer], self.plan.n_stream
        cos, sin = (x[:, n:] for x in self.angles)
        together = max(1, n // self.n_text)
        out = []
        for some in (steps[i : i + together] for i in range(0, len(steps), together)):
            placed = [(i, one) for i, t in enumerate(some) for one in t.changes if isinstance(one[0], Placed)]
            ctx = AttnContext(cos, sin, self._shared(some, kv), False, self.model.kernel)
            with self.model.hooks(self._hooks(placed, n)):
                out.append(block(texts[[t.parent for t in some]], ctx))
        return torch.cat(out)

    def logits(self, question: int, text: Float[Tensor, "n_text d_model"]) -> Float[Tensor, "last d_vocab"]:
        """From a question's rows after the last block, the logits of its `last` positions."""
        layout, n = self.plan.layouts[question], self.plan.n_stream
        return self.model.unembed(self.model.ln_final(text[None, layout.n_prompt - 1 - n : layout.n_tokens - n]))[0]

    def _shared(self, steps: Sequence[TextStep], kv: LayerKV) -> SharedStream:
        alike: dict[tuple, list[int]] = {}
        for i, t in enumerate(steps):
            columns, may, _ = self._view(t)
            alike.setdefault((id(columns), id(may)), []).append(i)
        views = []
        for same in alike.values():
            columns, may, _ = self._view(steps[same[0]])
            views.append(View(torch.tensor(same, device=self.device), columns, may))
        own = torch.stack([self._view(t)[2] for t in steps])
        assert kv.k is not None and kv.v is not None
        return SharedStream(kv.k, kv.v, tuple(views), own, explicit=self.model.kernel == "eager")

    def _view(self, step: TextStep) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Which columns of the stream a state sees (None: all), which of its rows see which, and which each other."""
        cuts = tuple(one for one in step.changes if not isinstance(one[0], Placed))
        if (step.question, cuts) not in self._views:
            layout, n = self.plan.layouts[step.question], self.plan.n_stream
            rows = torch.arange(n, layout.n_tokens)
            mask = allowed(layout, [k for k, _ in cuts if not isinstance(k, Placed)], rows, torch.arange(len(rows) + n))
            own = torch.eye(self.n_text, dtype=torch.bool)
            own[: len(rows), : len(rows)] = mask[:, n:]
            seen = mask[:, :n].any(0)
            columns = None if bool(seen.all()) else seen.nonzero().squeeze(-1)
            may = mask[:, :n] if columns is None else mask[:, columns]
            may = None if bool(may.all()) else pad(may, (0, 0, 0, self.n_text - len(rows)), value=True)
            # Equal views are one object: states that look alike then share a call.
            columns, may = (self._once(x) for x in (columns, may))
            self._views[step.question, cuts] = columns, may, own.to(self.device)
        return self._views[step.question, cuts]

    def _once(self, x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        x = x.to(self.device)
        known = (y for view in self._views.values() for y in view[:2] if y is not None)
        return next((y for y in known if y.dtype == x.dtype and torch.equal(x, y)), x)

    # ---- patches and edits ---------------------------------------------------------------------------------

    def _hooks(self, placed: Sequence[tuple[int, tuple[Any, int]]], first: int) -> list[tuple[str, Callable]]:
        """Forward hooks that write changes into states' rows, the first of which holds position `first`."""
        hooks = []
        for state, (change, question) in placed:
            if (change, question) not in self._writes:
                self._writes[change, question] = write_of(
                    self.model, change.change, self.sources, self.inputs[question]
                )
            write = self._writes[change, question]
            hooks.append((write.name, _into(write, state, write.positions - first)))
        return hooks


def _into(write: Write, state: int, rows: Tensor) -> Callable:
    def hook(act: Tensor, hook: Any) -> Tensor:
        act = act.clone()
        write.into(act[state : state + 1], rows)
        return act

    return hook


class _Walk:
    """One walk over a sweep's tree; `found` fills with what is read as paths end."""

    def __init__(self, rows: Rows, progress: Callable[[int], object] | None, read: Read):
        self.rows, self.progress, self.read = rows, progress, read
        self.found: dict[Cell, Tensor] = {}

    def down(self, nodes: Sequence[Node], stream: list[Tensor], texts: list[Tensor]) -> None:
        """Evaluate a layer's nodes; `stream` and `texts` hold one tensor each, given up for the last of them."""
        for node in nodes:
            resid, above = (held.pop() if node is nodes[-1] else held[0] for held in (stream, texts))
            kv = LayerKV()
            below = [self.rows.stream_step(node.layer, node.changes, resid, kv)]
            del resid
            states = [self.rows.text_step(node.layer, node.texts, above, kv)]
            del kv, above
            if node.children:
                self.down(node.children, below, states)
            else:
                for t, text in zip(node.texts, states[0], strict=True):
                    self.found.update(dict.fromkeys(t.cells, self.read(t.question, self.rows.logits(t.question, text))))
            if self.progress is not None:
                self.progress(sum(len(t.cells) for t in node.texts) if not node.children else 0)


def _last(question: int, logits: Tensor) -> Tensor:
    return logits[-1]


@torch.no_grad()
def sweep(
    model: Any,
    inputs: Sequence[VideoInputs],
    conditions: Sequence[Sequence[Intervention]],
    progress: Callable[[int], object] | None = None,
    sources: Sources = None,
    read: Read = _last,
) -> list[list[Tensor]]:
    """Logits [d_vocab] of the last position, for each question under each condition.

    Equal to `model(x, interventions=c, sources=sources)` up to rounding, which depends on what is asked together.
    inputs: questions on one video. progress: told how many cells are done. read: what to keep of a cell instead, from
    the question's index and the logits [last, d_vocab] of its positions `last`, several where inputs hold an answer.
    """
    check_sweepable(model)
    plan = Sweep(model.cfg.n_layers, inputs, conditions)
    rows = Rows(model, plan, [x.to(model.device) for x in inputs], sources)
    walk = _Walk(rows, progress, read)
    stream, texts = [rows.stream], [rows.texts]
    del rows.stream, rows.texts
    walk.down(plan.tree, stream, texts)
    return [[walk.found[q, c] for c in range(len(plan.conditions))] for q in range(len(inputs))]


def check_sweepable(model: Any) -> None:
    """Raise InputError for a model whose rows cannot be run apart: hooks on it, or several devices."""
    hooked = [n for n, p in model.hook_dict.items() if listening(p)]
    if hooked:
        raise InputError(
            f"a sweep runs rows apart, so hooks would see parts of them: {hooked[:3]}; give Edit values, which say "
            "what rows they write, or run forwards"
        )
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise InputError("a sweep reads weights outside their block, so it needs one device: load without device_map")
