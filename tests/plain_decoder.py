"""A decoder in plain sums with dense masks, one sequence at a time: what a run under interventions must give.

Written apart from the package's masks, plans and hooks: of it only the weights, the layout's segments and the values'
fields are read (`assert_met` apart, which compares). Writes are applied in the order of the list; an exit deletes
rows; generation runs all of the sequence again for each token.
"""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from hookedvid.sweep.run import sweep
from hookedvid.sweep.session import Session
from hookedvid.values.interventions import (
    Ablate,
    EarlyExit,
    Edit,
    Intervention,
    Knockout,
    Patch,
    Replace,
    SameTime,
    Steer,
)
from hookedvid.values.layout import TokenLayout
from models import apart

NAMES = {
    "video": ("video", "newline", "cls"),
    "patches": ("video",),
    "newlines": ("newline",),
    "markers": ("marker",),
    "text": ("question", "options", "template", "generated"),
}
SECONDS = 1.25  # from step to step, in the inputs of `models.random_inputs`
Taken = dict[tuple[str, int | None], Tensor]
Writing = Ablate | Edit | Patch | Steer


class Place:
    """Role and frame of every position."""

    def __init__(self, layout: TokenLayout):
        self.roles = [s.role for s in layout.segments for _ in range(s.start, s.stop)]
        self.frames = [s.frame for s in layout.segments for _ in range(s.start, s.stop)]
        self.shared = [s.frames for s in layout.segments for _ in range(s.start, s.stop)]  # frames from that one on
        self.n, self.prompt = len(self.roles), sum(r != "generated" for r in self.roles)
        whole = zip(self.roles, self.frames, self.shared, strict=True)
        self.n_frames = max((f + n for r, f, n in whole if r == "video" and f is not None), default=0)
        self.columns = layout.grid.columns if layout.grid else 1
        self.spoken = layout.markers_are_language
        self.known: dict[tuple, Tensor] = {}

    def of(self, selector: str) -> list[int]:
        found: set[int] = set()
        for term in selector.split("+"):
            name, index = re.fullmatch(r"(\w+)(?:\[(.+)\])?", term).groups()
            if name == "last":
                found |= set(range(self.prompt - 1, self.n))
                continue
            roles = {*NAMES.get(name, (name,)), *(("marker",) if name == "text" and self.spoken else ())}
            frames = None if index is None else eval(f"list(range({self.n_frames}))[{index}]")
            frames = [frames] if isinstance(frames, int) else frames
            found |= {
                i
                for i in range(self.n)
                if (name == "all" or self.roles[i] in roles) and (frames is None or self.in_any(i, frames))
            }
        return sorted(found)

    def in_any(self, i: int, frames: list[int]) -> bool:
        return self.frames[i] is not None and any(self.frames[i] + n in frames for n in range(self.shared[i]))

    def numbers(self, rate: float) -> list[tuple[int, int, int]]:
        """Time, row and column of every position; a step of a run of video moves on by `rate`."""
        found, at, steps, cell = [], 0, [], 0
        for i in range(self.n):
            if self.roles[i] != "video":
                at, steps = (max(max(x) for x in found) + 1 if steps else at), []
                found.append((at,) * 3)
                at += 1
                continue
            if self.frames[i] not in steps:
                steps.append(self.frames[i])
                cell = 0
            time = at + int((len(steps) - 1) * rate)
            found.append((time, at + cell // self.columns, at + cell % self.columns))
            cell += 1
        return found

    def frame(self, i: int) -> int | None:
        """The newline that ends a whole video is a frame of its own."""
        return self.n_frames if self.roles[i] == "newline" and self.frames[i] is None else self.frames[i]

    def weights(self, knockouts: Sequence[Knockout], layer: int, n_heads: int) -> Tensor:
        """[head, query, key]: what exp(score) is multiplied by."""
        w = torch.ones(n_heads, self.n, self.n, dtype=torch.float64).tril()
        for k in knockouts:
            heads = heads_of(k, layer, n_heads)
            w[heads] = torch.where(self.pairs(k), w[heads] * float(k.weight), w[heads])
        return w

    def pairs(self, k: Knockout) -> Tensor:
        """[query, key]: whether a knockout is about it, which of its heads aside."""
        what = k.src, k.dst, k.relation, k.keep_self
        if what not in self.known:
            found = self.known[what] = torch.zeros(self.n, self.n, dtype=torch.bool)
            for q in self.of(k.dst):
                for key in self.of(k.src):
                    frames = self.frame(q), self.frame(key)
                    framed = None not in frames
                    fits = {"any": True, "same_frame": framed and frames[0] == frames[1]}
                    fits["other_frame"] = framed and frames[0] != frames[1]
                    found[q, key] = fits[k.relation] and not (k.keep_self and q == key)
        return self.known[what]


def run(
    model,
    layout: TokenLayout,
    embeds: Tensor,
    given: Sequence[Intervention] = (),
    sources: dict | None = None,
    log_weights: Tensor | None = None,
) -> tuple[Tensor, Taken]:
    """Logits [held, vocab] of the positions that reach the end, and every point's activation.

    log_weights: [layer, head, query, key], added to the scores.

    sources: by the id of a value's source, (activations, layout) of its own plain run. A reference set, and the normal
    numbers that noise is made of, stand there by (hook, layer) alone.
    """
    lm, w, place = model.cfg.lm, dict(model.named_parameters()), Place(layout)
    held, x, points = list(range(place.n)), embeds[:, : lm.d_model], {}
    added = embeds[:, lm.d_model :].split(lm.d_model, -1) if embeds.shape[1] > lm.d_model else ()
    cos, sin = angles(lm, place, any(isinstance(g, SameTime) for g in given))

    def at(hook: str, layer: int, act: Tensor) -> Tensor:
        """Rows of positions first (maps: heads second)."""
        for change in given:
            if isinstance(change, Writing) and change.hook == hook and layer in blocks(change, lm.n_layers):
                act = written(change, act, held, place, (hook, layer), sources)
        points[hook, layer] = act
        return act

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + lm.eps).rsqrt() * w[name]

    def linear(x: Tensor, name: str) -> Tensor:
        bias = w.get(f"{name}.bias")
        return x @ w[f"{name}.weight"].T + (0 if bias is None else bias)

    x = at("embed", None, x)
    for i in range(lm.n_layers):
        for e in given:
            if isinstance(e, EarlyExit) and e.layer == i:
                stay = [r for r, p in enumerate(held) if p not in place.of(e.drop)]
                held, x, added = [held[r] for r in stay], x[stay], [d[stay] for d in added]
        cuts = [k for k in given if isinstance(k, Knockout) and i in k.layers.layers(lm.n_layers)]
        weights = place.weights(cuts, i, lm.n_heads)[:, held][:, :, held].transpose(0, 1)
        x = at("resid_pre", i, x)
        h, b = norm(x, f"blocks.{i}.ln1.weight"), f"blocks.{i}.attn"
        q = at("q", i, linear(h, f"{b}.q").unflatten(-1, (lm.n_heads, lm.d_head)))
        k = linear(h, f"{b}.k").unflatten(-1, (lm.n_kv_heads, lm.d_head))
        v = at("v", i, linear(h, f"{b}.v").unflatten(-1, (lm.n_kv_heads, lm.d_head)))
        if lm.qk_norm:
            q, k = norm(q, f"{b}.q_norm.weight"), norm(k, f"{b}.k_norm.weight")
        q, k = turned(q, cos[held], sin[held]), at("rot_k", i, turned(k, cos[held], sin[held]))
        groups = lm.n_heads // lm.n_kv_heads
        k, v = (a.repeat_interleave(groups, 1) for a in (k, v))
        scores = torch.einsum("qhd,khd->qhk", q, k) / math.sqrt(lm.d_head)
        scores = scores + weights.log()
        if log_weights is not None:
            scores = scores + log_weights[i][:, held][:, :, held].transpose(0, 1)
        scores = at("attn_scores", i, scores)
        exps = (scores - scores.amax(-1, keepdim=True)).exp()
        pattern = at("pattern", i, (exps / exps.sum(-1, keepdim=True)).nan_to_num(0.0))
        z = torch.einsum("qhk,khd->qhd", pattern, v)
        for heads, edges, new in along_edges(given, i, v, held, place, sources, lm):
            along = torch.where(edges[held][:, held][:, None], pattern[:, heads], 0.0)
            z[:, heads] += torch.einsum("qhk,khd->qhd", along, (new - v)[:, heads])
        z = at("z", i, z)
        x = at("resid_mid", i, x + at("attn_out", i, linear(z.flatten(1), f"{b}.o")))
        h, m = norm(x, f"blocks.{i}.ln2.weight"), f"blocks.{i}.mlp"
        gate = linear(h, f"{m}.gate")
        x = x + at("mlp_out", i, linear(gate * gate.sigmoid() * linear(h, f"{m}.up"), f"{m}.down"))
        x = at("resid_post", i, x + at("deepstack", i, added[i]) if i < len(added) else x)
    return norm(x, "ln_final.weight") @ model.unembed.weight.T, points


def blocks(change: Intervention, n_layers: int) -> list[int | None]:
    if change.hook == "embed":
        return [None]
    return [change.layer] if isinstance(change, Patch) else list(change.layers.layers(n_layers))


def heads_of(k: Knockout | Replace, layer: int, n_heads: int) -> list[int]:
    heads = list(range(n_heads)) if k.heads is None else list(k.heads)
    return list(dict(heads).get(layer, ())) if isinstance(heads[0], tuple) else heads


def along_edges(given: Sequence[Intervention], layer: int, v: Tensor, held: list[int], place: Place, sources, lm):
    """(head, its edges [query, key], values [key, head, d_head] along them); the last that names an edge has it."""
    mine = [r for r in given if isinstance(r, Replace) and layer in r.layers.layers(lm.n_layers)]
    for i, r in enumerate(mine):
        src, new = place.of(r.src), torch.zeros_like(v)
        if r.by == "mean":
            own = [held.index(p) for p in src if p < place.prompt and p in held]
            new[:] = v[own].mean(0) if own else 0.0
        edges = {h: place.pairs(r).clone() for h in heads_of(r, layer, v.shape[1])}
        if r.by == "resample":
            theirs, layout = sources[id(r.source)]
            there = [p for p in Place(layout).of(r.src) if p < Place(layout).prompt]
            new = v.clone()
            for p, t in zip([p for p in src if p < place.prompt], there, strict=True):
                if p in held:
                    new[held.index(p)] = theirs["v", layer][t].repeat_interleave(v.shape[1] // lm.n_kv_heads, 0)
            for some in edges.values():
                some[:, place.prompt :] = False
        for later in mine[i + 1 :]:
            for h in set(edges) & set(heads_of(later, layer, v.shape[1])):
                edges[h] &= ~place.pairs(later)
        yield from (([h], some, new) for h, some in edges.items())


def written(
    change: Intervention,
    act: Tensor,
    held: list[int],
    place: Place,
    point: tuple[str, int | None],
    sources: dict | None,
) -> Tensor:
    """The prompt's rows in one call, a generated token's alone; of maps, keys up to the last of them."""
    act, chosen, is_map = act.clone(), place.of(change.at), point[0] in ("pattern", "attn_scores")
    prompt = [p for p in chosen if p < place.prompt]
    if isinstance(change, Patch) or (isinstance(change, Ablate) and change.by == "resample"):
        theirs, layout = sources[id(change.source)]
        back = point if getattr(change, "from_layer", None) is None else (point[0], change.from_layer)
        there = [p for p in Place(layout).of(change.at) if p < Place(layout).prompt]
        act[[held.index(p) for p in prompt]] = theirs[back][there]
        return act
    first = act[[held.index(p) for p in prompt]]
    for call in [prompt, *([p] for p in chosen if p >= place.prompt)]:
        if call:
            rows = torch.tensor([held.index(p) for p in call])
            keys = [r for r, p in enumerate(held) if p <= max(place.prompt - 1, call[-1])] if is_map else None
            some = act[rows] if keys is None else act[rows][..., keys]
            out = replaced(change, some, call, first, point, sources)
            if keys is None:
                act[rows] = out
            else:
                act[rows[:, None], :, torch.tensor(keys)] = out.transpose(1, 2)
    return act


def replaced(change, rows: Tensor, positions: list[int], prompt: Tensor, point: tuple, sources: dict | None) -> Tensor:
    """What rows [chosen, …] become; `prompt` is what the selected rows of the prompt are."""
    if isinstance(change, Edit):
        is_map = point[0] in ("pattern", "attn_scores")
        out = change.fn(rows.transpose(0, 1)[None] if is_map else rows[None])[0]
        return out.transpose(0, 1) if is_map else out
    if isinstance(change, Steer):
        return rows + change.scale * (sources[change.vector] if isinstance(change.vector, str) else change.vector)
    if change.by == "zero":
        return rows * 0
    mean, spread = prompt.mean(0), (prompt - prompt.mean(0)).square().mean(0).sqrt()
    if change.source is not None:
        mean, spread = sources[change.source, point]
    if change.by == "mean":
        return mean.expand_as(rows)
    return mean + spread * sources["normal", point, change.seed][positions]


def angles(lm, place: Place, same_time: bool = False) -> tuple[Tensor, Tensor]:
    """In float32, as transformers has them; dynamic NTK reacts to the length of the prompt."""
    theta = lm.rope.theta
    if lm.rope.scaling == "dynamic" and place.prompt > lm.n_ctx:
        theta *= (lm.rope.factor * place.prompt / lm.n_ctx - (lm.rope.factor - 1)) ** (lm.d_head / (lm.d_head - 2))
    inverse = 1.0 / theta ** (torch.arange(0, lm.d_head, 2, dtype=torch.float32) / lm.d_head)
    turns = torch.arange(place.n, dtype=torch.float32)[:, None] * inverse
    if lm.rope.scaling == "linear":
        turns = turns / lm.rope.factor
    if lm.rope.sections:
        axes = [axis for axis, n in enumerate(lm.rope.sections) for _ in range(n)]
        if lm.rope.interleaved:  # t h w t h w …, time where the others' are used up
            axes = [i % 3 if i < 3 * lm.rope.sections[i % 3] else 0 for i in range(lm.d_head // 2)]
        numbers = place.numbers(SECONDS * lm.rope.per_second if lm.rope.per_second else 1.0)
        if same_time:
            start = numbers[place.roles.index("video")][0]
            numbers = [(start if r == "video" else t, y, x) for r, (t, y, x) in zip(place.roles, numbers, strict=True)]
        turns = torch.tensor(numbers, dtype=torch.float32)[:, axes] * inverse
    turns = torch.cat([turns, turns], -1)[:, None]
    return turns.cos().double(), turns.sin().double()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat([-two, one], -1) * sin


def embedded(model, inputs) -> Tensor:
    """The merged stream of a single item's prompt: features of the tower, rows of the table.

    Behind its columns those of what DeepStack adds, zero at text.
    """
    ids, features = inputs.tokens[0], model.encode_video(inputs)
    rows = model.embed.weight.new_zeros(len(ids), features.shape[1])
    rows[:, : model.cfg.d_model] = model.embed.weight[ids.clamp(min=0)]
    rows[ids < 0] = features.to(rows)
    return rows


def generated(model, inputs, given: Sequence[Intervention], sources: dict | None, n: int) -> tuple[list[int], Tensor]:
    """Greedy ids and the logits [n, vocab] that they were chosen from."""
    embeds, layout, ids, rows = embedded(model, inputs), inputs.layout, [], []
    for _ in range(n):
        rows.append(run(model, layout, embeds, given, sources)[0][-1])
        ids.append(int(rows[-1][: model.cfg.n_tokens].argmax()))
        new = torch.nn.functional.pad(model.embed.weight[ids[-1:]], (0, embeds.shape[1] - model.cfg.d_model))
        embeds, layout = torch.cat([embeds, new]), layout.extend(1)
    return ids, torch.stack(rows)


def assert_met(model, x, conditions, sources: dict | None = None, by_hand: dict | None = None) -> None:
    """A forward, a sweep and a session under each condition give what this decoder gives, to 1e-12."""
    swept = sweep(model, [x], conditions, sources=sources)[0]
    for given, logits in zip(conditions, swept, strict=True):
        wanted = run(model, x.layout, embedded(model, x), given, by_hand)[0]
        assert apart(model(x, interventions=given, sources=sources)[0], wanted) <= 1e-12
        assert apart(logits, wanted[-1]) <= 1e-12
        assert apart(Session(model, x).logits(given, sources), wanted[-1]) <= 1e-12
