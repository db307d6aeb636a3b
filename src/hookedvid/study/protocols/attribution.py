"""`attribution`: what gradients say that cuts and patches cost, beside what they cost. Can estimates stand for runs?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float

from hookedvid.errors import ConfigError
from hookedvid.study.protocols import Condition, Estimate
from hookedvid.study.protocols.protocol import Protocol, Reading, Setting, Sheet
from hookedvid.study.results.agreement import Agreement, agreement
from hookedvid.study.results.cells import number
from hookedvid.study.results.charts import Panel, Points, Scatters
from hookedvid.study.results.evidence import Finding, enough, on
from hookedvid.study.results.group import Group
from hookedvid.study.results.statistics import LEVEL, Interval, holm, paired_p
from hookedvid.values.interventions import PATHWAYS, Intervention, Knockout, LayerRange, Patch, label

# The derivative of the intact run, the same with the softmax cut, a path: steps, and the softmax of one.
ESTIMATES: tuple[tuple[int, Literal["slope", "cut"]], ...] = ((1, "slope"), (1, "cut"), (16, "slope"))
STRETCHES = 8  # of frames at most, so that no more than so many runs are needed
FLOWS = ("cross-frame", "video→question", "video→last", "question→last")
# What positions hold in a layer, by the name of its kind: the stream after it, and what its two halves add to that.
# `z` is no kind of its own: attn_out is linear in it, so that its heads together have the same effects and estimates.
NODES = {"streams": "resid_post", "attn outputs": "attn_out", "MLP outputs": "mlp_out"}
AT = ("video", "text", "last")
OTHER = "another video"  # the source's name
DEPTHS = ("early", "middle", "late")  # thirds of the layers
RANKS = 0.7  # a rank correlation of that or more is agreement: about half of the ranks' variance


@dataclass(frozen=True)
class Kind:
    """Cuts, or patches, of one granularity.

    Attributes:
        asked: What an attribution asks together. Of edges, in every layer: the path leads to the run without them all.
            Of nodes, at all positions: the path leads to the run on the other video.
        single: Each alone.
    """

    name: str
    asked: tuple[Intervention, ...]
    single: tuple[Condition, ...]


class Attribution(Protocol):
    """Exact effects of edges and of nodes, one place at a time, and what gradients say of them.

    Edges are cut: single layers, heads and stretches of frames of the first knockout, and by layer the flows between
    kinds of positions (Map the Flow's). Nodes are patched: what video, text or last position hold in a layer (its
    stream, what attention or MLP add to it) becomes what they hold when the same question is asked of another video.
    The other run's activation is what gradients are taken times the difference to as well: attribution patching
    against activation patching (Syed et al., arXiv 2310.10348; Kramár et al., arXiv 2403.00745).

    The effect is what the right answer's margin loses where there is one, or the score. Estimates are taken in one
    step, by the softmax's slope and of edges by its cut too, and along a path of 16: of edges' weights, or of nodes
    from the other video's embeddings to the item's own (`HookedVideoLLM.attribute`).
    """

    name: ClassVar[str] = "attribution"
    needs_logits: ClassVar[bool] = True
    sources: ClassVar[Mapping[str, Any]] = {OTHER: {"paired": "video"}}

    def conditions(self, s: Setting) -> list[Condition]:
        """Each place alone, then what is asked of gradients.

        Raises:
            ConfigError: Where nobody says how many heads there are.
        """
        if not s.n_heads:
            raise ConfigError("heads are counted from a model: conditions(n_layers, n_heads) needs both")
        kinds = [k for k in (_layers(s), _heads(s), _frames(s), _flows(s), *_nodes(s)) if k.single]
        together: dict[tuple[Intervention, ...], list[Kind]] = {}
        for kind in kinds:
            together.setdefault(kind.asked, []).append(kind)
        estimates: list[Condition] = []
        for asked, some in together.items():
            name, of = " and ".join(k.name for k in some), tuple(c.label for k in some for c in k.single)
            ways = [Estimate(of, *how) for how in ESTIMATES]
            estimates += [
                Condition(f"{name} by {_told(e)}", asked, self.name, name, estimate=e)
                for e in ways
                if e.how in _ways(some[0].name)
            ]
        return [*(c for kind in kinds for c in kind.single), *estimates]

    def read(self, group: Group) -> Reading:
        """How well estimates rank places, find the largest, size them and tell their signs; by depth as well."""
        lines = [line for part in _parts(group) for line in _compared(group, *part)]
        return Reading(_sheet(group, lines), _findings(group, lines), _chart(group, lines))


# ---- conditions ------------------------------------------------------------------------------------------------------


def _told(e: Estimate) -> str:
    return e.how if e.n_steps == 1 else f"a path of {e.n_steps}"


def _ways(kind: str) -> list[str]:
    """In which a kind is estimated: nodes are behind no softmax that could be cut."""
    each = dict.fromkeys(Estimate((), *how).how for how in ESTIMATES)
    return [how for how in each if how != "cut" or kind not in NODES]


def _whole(s: Setting) -> tuple[str, Knockout]:
    whole = s.first(Attribution.name).at(LayerRange())
    return whole.name or label((whole,)), whole


def _cut(kind: str, what: str, cut: Knockout, layer: int | None = None) -> Condition:
    return Condition(f"{what} cut alone", (cut,), Attribution.name, kind, layer)


def _layers(s: Setting) -> Kind:
    name, whole = _whole(s)
    cuts = [_cut("layers", f"{name} layer {i + 1}", whole.at(i), i + 1) for i in range(s.n_layers)]
    return Kind("layers", (whole,), tuple(cuts))


def _heads(s: Setting) -> Kind:
    """Of every `step`-th layer."""
    name, whole = _whole(s)
    cuts = [
        _cut("heads", f"{name} layer {i + 1} head {head}", replace(whole.at(i), heads=(head,)), i + 1)
        for i in range(0, s.n_layers, s.step)
        for head in range(s.n_heads)
    ]
    return Kind("heads", (whole,), tuple(cuts))


def _frames(s: Setting) -> Kind:
    """Of a knockout of the whole video; a stretch holds whole frames, as many as tokens mix or a multiple."""
    name, whole = _whole(s)
    each = -(-s.n_frames // (s.frames_together * STRETCHES)) * s.frames_together
    starts = range(0, s.n_frames, each or 1) if whole.src == "video" else ()
    spans = [(a, min(a + each, s.n_frames)) for a in starts]
    edges = [replace(whole, src=f"video[{a}:{b}]", name=f"{name} video[{a}:{b}]") for a, b in spans]
    return Kind("frames", tuple(edges), tuple(_cut("frames", e.name, e) for e in edges))


def _flows(s: Setting) -> Kind:
    edges = [PATHWAYS[name].at(LayerRange()) for name in FLOWS]
    cuts = [_cut("flows", f"{e.name} layer {i + 1}", e.at(i), i + 1) for e in edges for i in range(s.n_layers)]
    return Kind("flows", tuple(edges), tuple(cuts))


def _nodes(s: Setting) -> list[Kind]:
    """Of every `step`-th layer; one attribution answers for all."""
    layers = range(0, s.n_layers, s.step)
    asked = tuple(Patch(hook, i, "all", OTHER) for i in layers for hook in NODES.values())

    def patched(name: str, hook: str, i: int, at: str) -> Condition:
        what = f"{hook} layer {i + 1} at {at} from {OTHER}"
        return Condition(what, (Patch(hook, i, at, OTHER),), Attribution.name, name, i + 1)

    return [
        Kind(name, asked, tuple(patched(name, hook, i, at) for i in layers for at in AT))
        for name, hook in NODES.items()
    ]


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """Estimates of some places, found in one way, against what these cost.

    Attributes:
        depth: A third of the layers, or empty for all.
        exact, estimate: What is lost [place], means over the items.
    """

    kind: str
    depth: str
    how: str
    agreement: Agreement
    exact: Float[np.ndarray, " place"]
    estimate: Float[np.ndarray, " place"]


def _parts(group: Group) -> list[tuple[str, str, list[Condition]]]:
    """Conditions by kind, and by depth where places have layers."""
    conditions = group.conditions(Attribution.name)
    parts: list[tuple[str, str, list[Condition]]] = []
    for kind in dict.fromkeys(c.knockout for c in conditions):
        own = [c for c in conditions if c.knockout == kind]
        parts.append((kind, "", own))
        for i, depth in enumerate(DEPTHS if kind in ("heads", "flows", *NODES) else ()):
            third = [c for c in own if ((c.layer or 1) - 1) * len(DEPTHS) // group.n_layers == i]
            parts += [(kind, depth, third)] * (len(third) > 1)
    return parts


def _compared(group: Group, kind: str, depth: str, conditions: Sequence[Condition]) -> list[Line]:
    o = group.outcomes
    rows = [o.conditions.index(c) for c in conditions]
    values = o.values[group.finest][:, group.columns]
    exact = values[0] - values[rows]
    lines: list[Line] = []
    for how in _ways(kind):
        estimate = o.estimates[how][rows][:, group.columns]
        known = np.isfinite(exact + estimate).all(0)
        means = [x[:, known].mean(1) if known.any() else np.full(len(rows), np.nan) for x in (exact, estimate)]
        lines.append(Line(kind, depth, how, agreement(exact, estimate, group.resamples), means[0], means[1]))
    return lines


def _sheet(group: Group, lines: Sequence[Line]) -> Sheet:
    parts = list(dict.fromkeys((line.kind, line.depth) for line in lines))
    hows = list(dict.fromkeys(line.how for line in lines))
    rows: list[list[str]] = []
    for kind, depth in parts:
        own = {line.how: line.agreement for line in lines if (line.kind, line.depth) == (kind, depth)}
        first = next(iter(own.values()))
        told = _measures(first, f"{first.n_places} {kind}{f', {depth}' if depth else ''}")
        for field, what in told[: 1 if depth else None]:
            rows.append([what, *(_two(getattr(own[how], field)) if how in own else "" for how in hows)])
    n, n_videos = max(((x.agreement.n, x.agreement.n_videos) for x in lines), default=(0, 0))
    title = (
        f"{group.finest} lost by cuts and patches, gradients against runs; {on(n, n_videos)} ({group.name})\n"
        "r: rank correlation of a question's places, and of the places' means"
    )
    return Sheet(title, ("places", *hows), rows)


def _measures(a: Agreement, places: str) -> list[tuple[str, str]]:
    """What is told of all places of a kind, by its field; of a part the first. Short, for tables of 92 columns."""
    return [
        ("ranks", f"{places}: r"),
        ("ranks_of_means", "  r of means"),
        ("overlap", f"  {a.n_largest} largest: found"),
        ("sign_errors", "  wrong sign of these"),
        ("slope", "  lost / estimated"),
    ]


def _two(i: Interval) -> str:
    return f"{number(i.value, 2)} [{number(i.low, 2)}, {number(i.high, 2)}]" if np.isfinite(i.value) else "–"


def _findings(group: Group, lines: Sequence[Line]) -> list[Finding]:
    """One for each kind: supported where the better estimate is shown to rank places as runs do."""
    whole = [line for line in lines if not line.depth]
    above = [paired_p(line.agreement.each - RANKS, group.resamples.video) for line in whole]
    ps = dict(zip([(line.kind, line.how) for line in whole], holm(above).tolist(), strict=True))
    findings: list[Finding] = []
    for kind in dict.fromkeys(line.kind for line in whole):
        own = [line for line in whole if line.kind == kind]
        shown = [x for x in own if x.agreement.ranks.low > RANKS and ps[kind, x.how] < LEVEL]
        of = own[0].agreement
        text = "; ".join(
            f"by {x.how} they rank {a.n_places} {kind} with r = {_two(a.ranks)}, find {_two(a.overlap)} of "
            f"the {a.n_largest} largest, and runs lose {_two(a.slope)} times what they say"
            for x in own
            for a in [x.agreement]
        )
        for x in own[1:]:
            gain = group.resamples.mean(x.agreement.each - own[0].agreement.each, (-2.0, 2.0))
            if gain.low > 0 or gain.high < 0:
                more = f"better than {own[0].how} by {_two(gain)}" if gain.low > 0 else f"worse by {_two(-gain)}"
                text += f"; {x.how} is {more}"
        holds = bool(shown) and enough(of.n, of.n_videos)
        findings.append(Finding(f"gradients rank {kind}", holds, f"{text} ({on(of.n, of.n_videos)})"))
    return findings


def _chart(group: Group, lines: Sequence[Line]) -> Scatters:
    whole = [line for line in lines if not line.depth]
    hows = dict.fromkeys(line.how for line in whole)
    panels: list[Panel] = []
    for kind in dict.fromkeys(line.kind for line in whole):
        own = {line.how: line for line in whole if line.kind == kind}
        drawn = {how: (x.estimate.tolist(), x.exact.tolist()) for how, x in own.items()}
        points = [Points(f"by {how}", *drawn.get(how, ([], []))) for how in hows]  # each way in a colour of its own
        r = [number(own[how].agreement.ranks.value, 2) if how in own else "–" for how in hows]
        panels.append(Panel(f"{len(points[0].xs)} {kind}", points, f"rank r {', '.join(r)}"))
    unit = "logits" if group.finest == "margin" else group.scoring.unit
    return Scatters(
        f"{group.finest} lost by cuts and patches, means over {group.name} questions", f"by gradients, {unit}",
        f"by runs, {unit}", panels,
    )  # fmt: skip
