"""Many interventions on one video at a fraction of the forwards, exactly: what they share is computed once.

* Conditions that have done the same to the stream so far are on one path. The paths form a tree over the layers
  (`sharing`), walked depth first with the untouched path last: one residual stream a branching is alive, no cache
  is kept.
* Text rows of every question and condition ride on their path, against the path's shared keys and values: few
  behind the stream in its own call, many batched in calls of their own.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from hookedvid.errors import InputError
from hookedvid.model.counterfactual import several
from hookedvid.model.patching import ItemWrite, write_of
from hookedvid.model.replaced_values import Known, Place, Values, flows_at, values_of
from hookedvid.nn.attention import AttnContext
from hookedvid.nn.flows import Flow
from hookedvid.nn.head_groups import Calls, structures
from hookedvid.nn.hooks import hooked
from hookedvid.nn.kv import LayerKV
from hookedvid.nn.layers import rope_angles
from hookedvid.nn.model import Model
from hookedvid.nn.text_states import Joined, States, View
from hookedvid.sweep.tree import Cell, Changes, Node, Sweep, TextStep, shareable, stream_length
from hookedvid.values.clips import by_clip
from hookedvid.values.effects import Cut, Intervention, Swap, Write, by_heads, check_heads
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import as_interventions
from hookedvid.values.masks import as_m, mask_of, masks_of, same_type, visible
from hookedvid.values.progress import bar

__all__ = ["Rows", "Sweep", "shareable", "stream_length", "sweep"]

Sources = Mapping[str, Any] | None
_Cuts = tuple[tuple[Cut, int], ...]
Read = Callable[[int, Tensor], Any]
Hook = tuple[str, Callable[..., Tensor]]  # a hook point's name, and what acts there
# How many rows at a time, as a part of the stream's: more would show in the memory a sweep takes.
BESIDE, APART, IN_MLP = 1 / 16, 1 / 3, 1 / 4


def states_a_call(n_stream: int, n_text: int) -> tuple[int, int]:
    """Up to how many text states of `n_text` rows run behind the stream, and how many in a call of their own."""
    return max(1, int(n_stream * BESIDE) // n_text), max(1, int(n_stream * APART) // n_text)


def mlp_pieces(n_rows: int, n_stream: int) -> int:
    """In how many pieces, near the size `IN_MLP` says, an MLP takes `n_rows` rows."""
    return max(1, round(n_rows / (n_stream * IN_MLP)))


class Rows:
    """The rows of questions on one video, stream and text apart, and how a block computes either.

    The stream is [1, n_stream, d_model]. Text states are [1, state * n_text, d_model], one after the other: each as
    long as the longest question, shorter ones padded behind their end, where nothing of theirs looks. In calls of their
    own they are items of a batch.
    """

    def __init__(self, model: Model, plan: Sweep, inputs: Sequence[VideoInputs], sources: Sources = None):
        self.model, self.plan, self.inputs, self.sources = model, plan, inputs, sources
        check_heads((cut for c in plan.conditions for cut in c.every_cut), model.cfg.n_heads)
        n, lm = plan.n_stream, model.cfg.lm
        whole, deepstack = model.enter(inputs[0])
        self.dtype, self.device = whole.dtype, whole.device
        prompts = [layout.n_prompt for layout in plan.layouts]
        if lm.rope.scaling == "dynamic" and len({max(x, lm.n_ctx) for x in prompts}) > 1:
            raise InputError(f"{prompts} tokens turn keys by different angles beyond {lm.n_ctx}: sweep them alone")
        longest = max(layout.n_tokens for layout in plan.layouts)
        ids = max(plan.layouts, key=lambda layout: layout.n_tokens).position_ids[:, None]
        cos, sin = rope_angles(lm.rope, lm.d_head, lm.n_ctx, ids, (prompts[0],), self.dtype)
        self.n_text = longest - n
        self.beside, self.together = states_a_call(n, self.n_text)
        at = torch.cat([torch.arange(n), torch.arange(n, longest).repeat(self.beside)])
        self._angles = cos[:, at].to(self.device), sin[:, at].to(self.device)
        texts = [whole[:, n:] if q == 0 else model.embed(x.tokens[:, n:].to(self.device)) for q, x in enumerate(inputs)]
        self.texts = torch.cat([pad(t, (0, 0, 0, self.n_text - t.shape[1])) for t in texts], 1)
        self.stream = whole[:, :n].clone()
        self._deepstack = [d[:, :n].clone() for d in deepstack]
        self._forget()

    def _forget(self) -> None:
        self._stream_masks: dict[_Cuts, Tensor | Calls] = {}
        self._views: dict[tuple[int, _Cuts], _Seen] = {}
        self._writes: dict[tuple[Write, int], ItemWrite] = {}
        self._values: dict[tuple[Swap, int, int], Values] = {}
        self._edges: Known = {}
        self._indices: dict[tuple[int, ...], Tensor] = {}
        self._moved: list[tuple[Tensor, Tensor]] = []  # what views hold, here and on the device

    def under(self, plan: Sweep, sources: Sources) -> "Rows":
        """The same rows under another plan for the same questions; nothing is encoded again."""
        other = copy.copy(self)
        check_heads((cut for c in plan.conditions for cut in c.every_cut), self.model.cfg.n_heads)
        other.plan, other.sources = plan, sources
        other._forget()
        return other

    def step(self, node: Node, rows: Float[Tensor, "1 above d_model"]) -> Float[Tensor, "1 below d_model"]:
        """A node's stream and, behind it, its text states, from the rows of the node above."""
        n = self.plan.n_stream
        if len(node.texts) <= self.beside and not self._is_last(node.layer, node.changes):
            return self.stream_step(node.layer, node.changes, rows, None, node.texts)
        kv = LayerKV()
        stream = self.stream_step(node.layer, node.changes, rows, kv)
        below = pad(stream, (0, 0, 0, len(node.texts) * self.n_text))
        del stream
        self.text_step(node.layer, node.texts, rows[:, n:], kv, below[:, n:])
        return below

    # ---- the stream ----------------------------------------------------------------------------------------

    def stream_step(
        self, layer: int, changes: Changes, rows: Tensor, kv: LayerKV | None, beside: Sequence[TextStep] = ()
    ) -> Tensor:
        """The stream after a block and, behind it, some states, from rows that hold it and all states above.

        Its keys and values stay in `kv`, for states in other calls. The last block makes nothing else, unless a patch
        or an edit writes to the stream there.
        """
        n, block = self.plan.n_stream, self.model.blocks[layer]
        if kv is not None and self._is_last(layer, changes):
            kv.append(*block.attn.keys_values(rows[:, :n], block.ln1, self._context(0, n)))
            return rows[:, :n]
        mask = self._stream_mask(changes.cuts)
        # A state that sees all before it goes on from an intact stream as any row does.
        goes_on = not changes and bool(beside) and not beside[0].changes.swaps and self._view(beside[0]).whole
        apart = beside[goes_on:]
        allowed = Joined(self._states(layer, apart), n, n + goes_on * self.n_text, mask) if apart else mask
        if not beside:
            rows = rows[:, :n]
        elif [t.parent for t in beside] != list(range((rows.shape[1] - n) // self.n_text)):
            rows = torch.cat([rows[:, :n], self._above(beside, rows[:, n:]).flatten(0, 1)[None]], 1)
        hooks = [*self._hooks(0, changes), *self._text_hooks(beside, n)]
        ctx = self._context(0, n + len(beside) * self.n_text, allowed, causal=mask is None)
        ctx = ctx._replace(flows=self._flows(layer, changes, 0, torch.arange(n), torch.arange(n)))
        return self._through(layer, rows, ctx, kv, hooks, self._deepstack[layer:][:1])

    def _through(
        self, layer: int, rows: Tensor, ctx: AttnContext, kv: LayerKV | None, hooks: list[Hook],
        deepstack: Sequence[Tensor] = (),
    ) -> Tensor:  # fmt: skip
        """Rows after a block, in one item. Its MLP needs the most memory, and takes some at a time where no hook acts.

        The rows given are of one item, those of the stream first, or of an item a state. `deepstack` is what is added
        to the stream's after this block, if anything.
        """
        block = self.model.blocks[layer]
        with self.model.hooks(hooks):
            rows = block.after_attn(rows, ctx, kv).flatten(0, 1)[None]
            added = [torch.zeros_like(rows)] if layer < len(self._deepstack) else []
            for x, part in zip(added, deepstack, strict=False):
                x[:, : part.shape[1]] = part
            if hooks:
                return block.after_mlp(rows, *added)
        n = mlp_pieces(rows.shape[1], self.plan.n_stream)
        for some, *more in zip(*(x.tensor_split(n, dim=1) for x in (rows, *added)), strict=True):
            some[:] = block.after_mlp(some, *more)
        return rows

    def _is_last(self, layer: int, changes: Changes) -> bool:
        return layer == self.plan.n_layers - 1 and not changes.writes

    def _context(self, start: int, stop: int, allowed: Any = None, causal: bool = False) -> AttnContext:
        """For a call with these of the stream's rows and of states, one after the other, behind them."""
        cos, sin = (x[:, start:stop] for x in self._angles)
        return AttnContext(cos, sin, allowed, causal, self.model.kernel)

    def _stream_mask(self, cuts: _Cuts) -> Tensor | Calls | None:
        if not cuts:
            return None
        if cuts not in self._stream_masks:
            # Random edges are drawn in their question's layout; other cuts are the same to the stream in all.
            rows, layout = torch.arange(self.plan.n_stream), self.plan.layouts[max(q for _, q in cuts)]
            here, heads = [cut for cut, _ in cuts], range(self.model.cfg.n_heads)
            calls = structures(layout, here, heads, rows, rows)
            mask = masks_of(layout, here, heads, rows, rows)[None] if calls is None else calls
            self._stream_masks[cuts] = mask.to(self.device)
        return self._stream_masks[cuts]

    # ---- the text ------------------------------------------------------------------------------------------

    def text_step(
        self, layer: int, steps: Sequence[TextStep], texts: Tensor, kv: LayerKV, out: Tensor | None = None
    ) -> Tensor:
        """States after a block (in `out`, if given), their rows from `first_made` on, from all states above."""
        assert kv.k is not None and kv.v is not None
        keys_values, n, block = (kv.k, kv.v), self.plan.n_stream, self.model.blocks[layer]
        first = self.plan.first_made(layer, steps)
        if out is None:
            out = texts.new_empty(1, len(steps) * self.n_text, texts.shape[2])
        states = out.view(-1, self.n_text, out.shape[2])
        for i in range(0, len(steps), self.together):
            some, own = steps[i : i + self.together], LayerKV()
            above = self._above(some, texts)
            if first:
                own.append(*block.attn.keys_values(above[:, :first], block.ln1, self._context(n, n + first)))
            ctx = self._context(n + first, n + self.n_text, Joined(self._states(layer, some, first), held=keys_values))
            rows = self._through(layer, above[:, first:], ctx, own, self._text_hooks(some, 0))
            states[i : i + len(some), first:] = rows[0].unflatten(0, (len(some), -1))
        return out

    def _above(self, steps: Sequence[TextStep], texts: Tensor) -> Float[Tensor, "state text d_model"]:
        parents = self._index(tuple(t.parent for t in steps))
        return texts.reshape(-1, self.n_text, texts.shape[2]).index_select(0, parents)

    def logits(self, steps: Sequence[TextStep], texts: Tensor) -> Iterator[tuple[TextStep, Tensor]]:
        """From states after the last block, each one's logits [last, d_vocab] at its positions `last`."""
        for i, t in enumerate(steps):
            layout, first = self.plan.layouts[t.question], i * self.n_text - self.plan.n_stream
            rows = texts[:, first + layout.n_prompt - 1 : first + layout.n_tokens]
            yield t, self.model.unembed(self.model.ln_final(rows))[0]

    def _states(self, layer: int, steps: Sequence[TextStep], first: int = 0) -> States:
        """What rows of states from the `first` on see."""
        seen, serves = [self._view(t) for t in steps], self.model.cfg.n_heads // self.model.cfg.lm.n_kv_heads
        alike: dict[tuple[int, int, int], tuple[_Columns, list[int], list[int]]] = {}

        def look(state: int, columns: _Columns, kv_head: int = -1, place: int = 0) -> None:
            key = kv_head, id(columns.columns), id(columns.mask)
            _, states, places = alike.setdefault(key, (columns, [], []))
            states.append(state)
            places.append(place)

        for i, one in enumerate(seen):
            look(i, one.most)
        for i, one in enumerate(seen):
            for head, columns in one.others:
                look(i, columns, *divmod(head, serves))
        views: list[View] = []
        for (kv_head, *_), (columns, states, places) in alike.items():
            heads = None if kv_head < 0 else self._index(tuple(places))
            mask = None if columns.mask is None else columns.mask[first:]
            views.append(View(self._index(tuple(states)), columns.columns, mask, heads, kv_head))
        n_heads = max(len(one.own) for one in seen)
        own = torch.stack(same_type([one.own[:, first:].expand(n_heads, -1, -1) for one in seen]))
        flows = [flow for i, t in enumerate(steps) if t.changes.swaps for flow in self._text_flows(layer, t, i, first)]
        return States(tuple(views), own, self.model.kernel == "eager", tuple(flows))

    def _index(self, numbers: tuple[int, ...]) -> Int[Tensor, " number"]:
        if numbers not in self._indices:  # the same in most layers: moved to the device once
            self._indices[numbers] = torch.tensor(numbers, device=self.device)
        return self._indices[numbers]

    def _view(self, step: TextStep) -> "_Seen":
        cuts = step.changes.cuts
        if (step.question, cuts) not in self._views:
            layout, n = self.plan.layouts[step.question], self.plan.n_stream
            rows, keys = torch.arange(n, layout.n_tokens), torch.arange(layout.n_tokens)
            groups = by_heads([cut for cut, _ in cuts], range(self.model.cfg.n_heads))
            groups.sort(key=lambda group: -len(group[0]))
            masks = same_type([mask_of(layout, mine, rows, keys) for _, mine in groups])
            most, *seen = (self._columns(mask[:, :n]) for mask in masks)
            others = [(h, one) for (heads, _), one in zip(groups[1:], seen, strict=True) for h in heads]
            own = [self._padded(mask[:, n:]) for mask in masks]
            if all(torch.equal(one, own[0]) for one in own):
                own = own[:1]
            else:
                of_head = {h: one for (heads, _), one in zip(groups, own, strict=True) for h in heads}
                own = [of_head[h] for h in sorted(of_head)]
            whole = len(masks) == 1 and torch.equal(masks[0], torch.ones_like(masks[0]).tril(n))
            self._views[step.question, cuts] = _Seen(most, tuple(others), torch.stack(own).to(self.device), whole)
        return self._views[step.question, cuts]

    def _columns(self, mask: Tensor) -> "_Columns":
        """Which columns of the stream any row of a mask sees, and which row sees which of them."""
        seen = visible(mask).any(0)
        columns = None if bool(seen.all()) else seen.nonzero().squeeze(-1)
        mask = mask if columns is None else mask[:, columns]
        if mask.dtype != torch.bool:
            mask = mask.to(self.dtype)
        plain = mask.dtype == torch.bool
        none = bool(mask.all()) if plain else not bool(mask.any())
        # Equal views are one object: states that look alike then share a call.
        padded = None if none else pad(mask, (0, 0, 0, self.n_text - len(mask)), value=plain)
        return _Columns(self._once(columns), self._once(padded))

    def _padded(self, mask: Tensor) -> Tensor:
        """Who sees whom of a state's rows, those behind its end themselves alone."""
        own = torch.eye(self.n_text, dtype=torch.bool)
        own = own if mask.dtype == torch.bool else as_m(own, self.dtype)
        own[: len(mask), : len(mask)] = mask
        return own

    def _once(self, x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        for here, there in self._moved:  # compared here: a device would have to be waited for
            if here.dtype == x.dtype and torch.equal(here, x):
                return there
        self._moved.append((x, x.to(self.device)))
        return self._moved[-1][1]

    # ---- replaced values --------------------------------------------------------------------------------------

    def _text_flows(self, layer: int, step: TextStep, state: int, first: int) -> Sequence[Flow]:
        n, longest = self.plan.layouts[step.question].n_tokens, self.plan.n_stream + self.n_text
        keys = pad(torch.arange(n), (0, longest - n), value=-1)
        return self._flows(layer, step.changes, state, keys[self.plan.n_stream + first :], keys)

    def _flows(self, layer: int, changes: Changes, item: int, rows: Tensor, keys: Tensor) -> Sequence[Flow]:
        """The flows among rows and keys at these positions."""
        if not changes.swaps:
            return ()
        question = max(q for _, q in (*changes.cuts, *changes.swaps))  # random edges are of one alone
        cuts = tuple(cut for cut, _ in changes.cuts)
        place = Place(item, self.plan.layouts[question], rows, keys, cuts, (question, cuts, len(rows), len(keys)))

        values: list[Values] = []
        for swap, _ in changes.swaps:
            what = swap, layer, question
            if what not in self._values:
                self._values[what] = values_of(self.model, swap, layer, self.sources, self.inputs[question])
            values.append(self._values[what])
        return flows_at(place, [swap for swap, _ in changes.swaps], range(self.model.cfg.n_heads), values, self._edges)

    # ---- writes --------------------------------------------------------------------------------------------

    def _text_hooks(self, steps: Sequence[TextStep], first: int) -> list[Hook]:
        """Of states whose rows stand from row `first` on."""
        starts = range(first - self.plan.n_stream, sys.maxsize, self.n_text)
        return [hook for start, t in zip(starts, steps, strict=False) for hook in self._hooks(start, t.changes)]

    def _hooks(self, shift: int, changes: Changes) -> list[Hook]:
        """Forward hooks that write, where position p stands in row p + `shift`."""
        hooks: list[Hook] = []
        for one in changes.writes:
            if one not in self._writes:
                self._writes[one] = write_of(self.model, one[0], self.sources, self.inputs[one[1]])
            write = self._writes[one]
            name = "blocks.0.hook_resid_pre" if write.name == "hook_embed" else write.name  # the same rows, in a block
            hooks.append((name, _into(write, write.positions + shift)))
        return hooks


class _Columns(NamedTuple):
    """Columns of the stream that some heads of a state see (None: all), and as of a View which rows see which."""

    columns: Tensor | None
    mask: Tensor | None


class _Seen(NamedTuple):
    """What a state sees: of the stream most heads, and others by their numbers; of itself [#head text text].

    `whole` says whether that is all before each row.
    """

    most: _Columns
    others: tuple[tuple[int, _Columns], ...]
    own: Tensor
    whole: bool


def _into(write: ItemWrite, rows: Tensor) -> Callable[..., Tensor]:
    def hook(act: Tensor, hook: Any) -> Tensor:
        act = act.clone(memory_format=torch.contiguous_format)
        write.into(act.view(1, -1, *act.shape[2:]), rows)  # items one after the other
        return act

    return hook


class _Walk:
    """One walk over a sweep's tree; `readings` fills as paths end."""

    def __init__(self, rows: Rows, progress: Callable[[int], object], read: Read):
        self.rows, self.progress, self.read = rows, progress, read
        self.readings: dict[Cell, Any] = {}

    def down(self, nodes: Sequence[Node], above: list[Tensor]) -> None:
        """Evaluate a layer's nodes; `above` is the rows above them, given up for the last of them."""
        for node in nodes:
            below = [self.rows.step(node, above.pop() if node is nodes[-1] else above[0])]
            if node.children:
                self.down(node.children, below)
            else:
                for t, logits in self.rows.logits(node.texts, below.pop()[:, self.rows.plan.n_stream :]):
                    self.readings.update(dict.fromkeys(t.cells, self.read(t.question, logits)))
            self.progress(sum(len(t.cells) for t in node.texts) if not node.children else 0)


def _last(question: int, logits: Tensor) -> Tensor:
    return logits[-1]


@torch.no_grad()
def sweep(
    model: Model,
    inputs: Sequence[VideoInputs],
    conditions: Sequence[Intervention | Sequence[Intervention]],
    progress: Callable[[int], object] | None = None,
    sources: Sources = None,
    read: Read = _last,
) -> list[list[Any]]:
    """Logits [d_vocab] of the last position, for each question under each condition.

    Equal to `model(x, interventions=c, sources=sources)` up to rounding, which depends on what is asked together.
    Conditions that show one clip (`hookedvid.values.clips`) share its encoding, as those of the original do.

    Args:
        inputs: Questions on one video.
        progress: Told how many cells are done, in place of a bar from two seconds on.
        read: What to keep of a cell instead, from the question's index and the logits [last, d_vocab] of its positions
            `last`, several where inputs hold an answer.
    """
    if isinstance(inputs, VideoInputs) or not inputs:
        what = "one input alone" if inputs else "no inputs"
        raise InputError(f"{what} to sweep; give at least one question on a video, in a list")
    n_layers = model.cfg.n_layers
    plans: list[tuple[list[int], Sequence[VideoInputs], Sweep]] = []
    for clips, members in by_clip([as_interventions(c) for c in conditions], n_layers).items():
        seen = several(model, inputs, clips) if clips else inputs
        plans.append(([n for n, _ in members], seen, Sweep(n_layers, seen, [rest for _, rest in members])))
    found: list[list[Any]] = [[None] * len(conditions) for _ in inputs]
    own = bar(len(inputs) * len(conditions), "sweep", "cells") if progress is None else nullcontext(progress)
    with own as done:
        for numbers, seen, plan in plans:
            with model.turn(hooked=any(c.writes for c in plan.conditions)):
                check_sweepable(model)
                rows = Rows(model, plan, [x.to(model.device) for x in seen], sources)
                walk = _Walk(rows, done, read)
                top = [torch.cat([rows.stream, rows.texts], 1)]
                del rows.stream, rows.texts
                walk.down(plan.tree, top)
            for (question, place), value in walk.readings.items():
                found[question][numbers[place]] = value
            del rows, walk, top  # before the next clip's are made
    return found


def check_sweepable(model: Model) -> None:
    """Raise InputError for a model whose rows cannot be run apart: hooks on it, or several devices."""
    if on := hooked(cast(nn.Module, model)):
        raise InputError(
            f"a sweep runs rows apart, so hooks would see parts of them: {on[:3]}; give Edit values, which say "
            "what rows they write, or run forwards"
        )
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        raise InputError("a sweep reads weights outside their block, so it needs one device: load without device_map")
