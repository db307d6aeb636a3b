"""All frames x heads x layers by gradients: against a forward, patterns with gradients, and the exact map swept."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.measuring import cost, timed
from benchmarks.models import DEEP, LONG, TOY, Shape, as_transformers, build, questions
from benchmarks.printing import mib, over, spread, table
from benchmarks.reading import LARGE, TINY, make
from hookedvid import Attribution, Knockout
from hookedvid.sweep.run import sweep

TITLE = "Attribution of edges"
EVERY = 8  # of the exact map's frames one is swept: its cost is that of its conditions' text states


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section."""
    patterns, exact, long = (TOY, TOY, (TINY, 8)) if quick else (DEEP, LONG, (replace(LARGE, n_layers=1), 196))
    return [
        "The estimate of every frame's cut in every head of every layer (frames to text), by one forward and one way "
        "back, block by block; and the same by transformers, eager, with a graph of all blocks and gradients on the "
        "patterns. Peaks are bytes of live tensors beside the weights, in a call of its own.",
        "",
        *_against_patterns(patterns, rounds or 2),
        *_against_sweep(exact),
        *_long(*long),
    ]


def metric(logits: torch.Tensor) -> torch.Tensor:
    """A difference of two logits at the last position."""
    return logits[:, -1, 5] - logits[:, -1, 7]


def _against_patterns(shape: Shape, rounds: int) -> list[str]:
    model = build(shape)
    (x,) = questions(model, shape, 1)
    x = model.encoded(x)
    hf = as_transformers(model, "eager").requires_grad_(False)
    stream = model.embed_inputs(x)
    ways: dict[str, Callable[[], Any]] = {
        "our forward": lambda: model(x, logits_to_keep=1),
        "frames to text": lambda: model.attribute(x, metric),
        "frames to all, each kind": lambda: model.attribute(x, metric, readers=["video", "text"]),
        "transformers, eager, gradients on patterns": lambda: _patterns(hf, stream, x.layout),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    ways["our forward"]()
    found: dict[str, Any] = {}
    for _ in range(rounds):
        for way, call in ways.items():
            spent, found[way] = timed(call)
            seconds[way].append(spent)
            print(way, round(spent, 2), flush=True)
    base = seconds["our forward"]
    rows = [[way, spread(s), spread(over(s, base)), mib(cost(ways[way]).peak)] for way, s in seconds.items()]
    ours, theirs = found["frames to text"].edges, found["transformers, eager, gradients on patterns"]
    far = ((ours - theirs).abs().max() / ours.abs().max()).item()
    return [
        f"{shape}: {x.layout.n_tokens:,} tokens. n = {rounds} rounds; forwards: to the first. The two maps differ by "
        f"{far:.0e} of the largest value.",
        "",
        *table(["way", "CPU, s", "forwards", "peak, MiB"], rows),
    ]


@torch.enable_grad()
def _patterns(hf: Any, stream: torch.Tensor, layout: Any) -> torch.Tensor:
    """The derivatives [layer, head, frame] by log-weights, P (G - sum P G), of frames to text."""
    out = hf(inputs_embeds=stream.detach().requires_grad_(), use_cache=False, output_attentions=True)
    grads = torch.autograd.grad(metric(out.logits[:, -1:]).sum(), out.attentions)
    readers, frames = layout.positions("text"), [layout.positions(f) for f in layout.step_names]
    each: list[torch.Tensor] = []
    for p, g in zip(out.attentions, grads, strict=True):
        p, g = p.detach()[0][:, readers], g[0][:, readers]
        by_edge = p * (g - (p * g).sum(-1, keepdim=True))
        each.append(torch.stack([by_edge[..., f].sum((1, 2)) for f in frames], -1))
    return torch.stack(each)


def _against_sweep(shape: Shape) -> list[str]:
    model = build(shape)
    (x,) = questions(model, shape, 1)
    x = model.encoded(x)
    frames = x.layout.step_names[:: min(EVERY, len(x.layout.step_names))]
    places = [(i, h, f) for f in frames for i in range(model.cfg.n_layers) for h in range(model.cfg.n_heads)]
    cuts = [[], *([Knockout(f, "text", i, heads=h)] for i, h, f in places)]
    forward = timed(lambda: model(x, logits_to_keep=1))[0]
    spent, a = timed(lambda: model.attribute(x, metric))
    swept, (logits,) = timed(lambda: sweep(model, [x], cuts))
    values = [float(metric(one.view(1, 1, -1))[0]) for one in logits]
    exact = torch.tensor([values[0] - v for v in values[1:]])
    assert isinstance(a, Attribution)
    found = torch.tensor([a.estimate(c) for c in cuts[1:]])
    n = len(x.layout.step_names) * model.cfg.n_layers * model.cfg.n_heads
    every = swept * n / len(places)
    rows = [
        ["attribution", f"{n:,}", f"{spent:.2f}", f"{spent / forward:.2f}"],
        [f"exact sweep of {len(frames)} frames", f"{len(places):,}", f"{swept:.2f}", f"{swept / forward:.1f}"],
        ["exact sweep, scaled to all", f"{n:,}", f"{every:.0f}", f"{every / forward:.0f}"],
        ["a forward each", f"{n:,}", f"{forward * n:,.0f}", f"{n:,}"],
    ]  # fmt: skip
    r = torch.corrcoef(torch.stack([exact, found]))[0, 1].item()
    return [
        f"{shape}: {x.layout.n_tokens:,} tokens, one run each. On these random weights one step's estimates and the "
        f"exact effects have r = {r:.2f}.",
        "",
        *table(["way", "effects", "CPU, s", "forwards"], rows),
    ]


def _long(decoder: Any, per_frame: int) -> list[str]:
    model, x = make(decoder, per_frame)
    model.requires_grad_(False)
    ways = {
        "forward": partial(model, x, logits_to_keep=1),
        "frames to text": partial(model.attribute, x, metric),
    }
    rows: list[list[object]] = []
    base = 0.0
    for way, call in ways.items():
        spent, peak, _ = cost(call)
        base = base or spent
        rows.append([way, f"{spent:.1f}", f"{spent / base:.2f}", mib(peak)])
        print(way, rows[-1], flush=True)
    stream = x.layout.n_tokens * decoder.d_model * 4
    return [
        f"{decoder.n_layers} layer(s) of d_model {decoder.d_model}, d_mlp {decoder.d_mlp}, {decoder.n_heads} heads; "
        f"{x.layout.n_tokens:,} tokens, one run each. Of more layers each keeps one stream, {mib(stream)} MiB; the "
        "rest over a forward is the graph of one block.",
        "",
        *table(["way", "CPU, s", "forwards", "peak, MiB"], rows),
    ]
