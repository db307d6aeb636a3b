"""Attribution of edges and nodes: autograd through an explicit softmax, finite differences, completeness, costs."""

from dataclasses import replace
from inspect import signature

import numpy as np
import pandas as pd
import pytest
import torch

import memory_use
import plain_decoder as plain
from hookedvid import Ablate, EarlyExit, Patch, Replace, Steer, log_prob, logit_diff
from hookedvid.errors import HookError, InputError, InterventionError, NonFiniteError, SelectorError
from hookedvid.families.registry import FAMILIES
from hookedvid.model.attribution.along_weights import Point, refined
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.nn import edge_sums
from hookedvid.report import plots
from hookedvid.sweep.run import sweep
from hookedvid.values.columns import columns_of
from hookedvid.values.config import DecoderConfig, VideoLLMConfig
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import LV_K, PATHWAYS, VS_K, VT_K, Drop, Edit, Knockout
from hookedvid.values.masks import NoEdgeWarning
from models import UNLIKE, apart, random_inputs, random_model, rich_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]

EDGES = (LV_K, VT_K, VS_K, Knockout("all", "all"), Knockout("all", "last", keep_self=False), PATHWAYS["cross-frame"])
UNDER = [
    [replace(VT_K, heads=[1, 2], weight=0.3), replace(LV_K, weight=0.5, heads=0).at(1)],
    [VS_K, Ablate("z", "0:2", at="video[1]"), Steer("resid_post", 0, "text", vector=torch.ones(64))],
    [EarlyExit(2)],
]


def metric(logits):
    """Not linear in the logits."""
    return logits[:, -1, 5] - logits[:, -1, 7] + logits[:, -1, 9].tanh()


def by_autograd(m, x, given=()):
    """[layer, head, query, key]: the metric's derivative by the log-weight of every edge."""
    n = x.layout.n_tokens
    log_weights = torch.zeros(m.cfg.n_layers, m.cfg.n_heads, n, n, dtype=torch.float64, requires_grad=True)
    embeds = plain.embedded(m, x) if x.has_video else m.embed_inputs(x)[0]
    logits = plain.run(m, x.layout, embeds, given, log_weights=log_weights)[0]
    (found,) = torch.autograd.grad(metric(logits[None])[0], log_weights)
    return found


def assert_sums(a, place, each):
    wanted = torch.stack([(each * place.pairs(k)).sum((2, 3)) for k in a.knockouts], -1)
    assert (a.edges - wanted).abs().max() <= 1e-10 * each.abs().max()


@pytest.mark.parametrize("family", [*FAMILIES, "text"])
def test_edges_are_autograds_through_an_explicit_softmax(family):
    m = random_model(family)
    x = m.encoded(rich_inputs(m)) if family != "text" else random_inputs(m)
    edges = EDGES if family != "text" else [Knockout("all", "last"), Knockout("question", "question")]
    each = by_autograd(m, x)
    for kernel in ("sdpa", "eager") if family in UNLIKE else ("sdpa",):
        m.kernel = kernel
        assert_sums(m.attribute(x, metric, edges=edges), plain.Place(x.layout), each)
        if family != "text":
            assert_sums(m.attribute(x, metric, readers=["text", "last", "video"]), plain.Place(x.layout), each)
    m.kernel = "sdpa"


@pytest.mark.parametrize("family", ["llava-video", "qwen3-vl"])
def test_a_softmax_cut_is_the_gradient_times_what_a_knockout_makes_of_z(family):
    m = random_model(family)
    x = m.encoded(rich_inputs(m))
    a, z, grads = m.attribute(x, metric, edges=EDGES, softmax="cut"), {}, {}
    points = [f"blocks.{i}.attn.hook_z" for i in range(3)]
    fwd = [(n, lambda act, hook: z.update({hook.layer(): act.detach()[0]})) for n in points]
    bwd = [(n, lambda grad, hook: grads.update({hook.layer(): grad[0]})) for n in points]
    with m.hooks(fwd, bwd):
        metric(m(x)).sum().backward()
    embeds = plain.embedded(m, x)
    for i, k in enumerate(a.knockouts):
        for layer in range(3):
            lost = z[layer] - plain.run(m, x.layout, embeds, [k.at(layer)])[1]["z", layer]
            wanted = (grads[layer] * lost).sum((0, 2))
            # A token left with itself alone may have a ten-billionth of its row.
            assert (a.edges[layer, :, i] - wanted).abs().max() <= 1e-5 * (wanted.abs().max() + 1e-6)
    frames = m.attribute(x, metric, softmax="cut")
    assert apart(frames.edges, m.attribute(x, metric, edges=frames.knockouts, softmax="cut").edges) <= 1e-12
    gone = m.attribute(x, metric, edges=Knockout("all", "last", keep_self=False), softmax="cut", layers=2)
    assert apart(gone.edges[0, :, 0], (grads[2] * z[2])[x.layout.positions("last")].sum((0, 2))) <= 1e-10
    assert "one step with the softmax cut" in repr(gone)


@pytest.mark.parametrize("given", UNDER, ids=["weights", "writes", "exit"])
def test_edges_under_interventions_are_those_of_their_run(given, monkeypatch):
    monkeypatch.setattr(edge_sums, "SCORES", 1 << 10)  # a few rows at a time
    m = random_model("llava-video")
    x = m.encoded(rich_inputs(m))
    a = m.attribute(x, metric, edges=EDGES, interventions=given)
    assert_sums(a, plain.Place(x.layout), by_autograd(m, x, given))
    assert a.value == pytest.approx(float(metric(m(x, interventions=given))[0]), rel=1e-12)


def test_items_of_a_batch_are_attributed_as_alone():
    m = random_model("llava-video")
    items = [m.encoded(rich_inputs(m)), m.encoded(rich_inputs(m, 2, seed=1, n_text=12))]
    both = VideoInputs.stack(items)
    drop = Drop(1, keep=0.5, rank="uniform")
    for softmax, given in (("slope", ()), ("cut", [replace(LV_K, weight=0.5), VT_K.at(0)]), ("cut", drop)):
        how = {"nodes": ["z", "resid_post"], "edges": "segments", "interventions": given, "softmax": softmax}
        for a, x in zip(m.attributions(both, metric, **how), items, strict=True):
            alone = m.attribute(x, metric, **how)
            assert apart(a.edges, alone.edges) <= 1e-10 and a.knockouts == alone.knockouts
            assert all(apart(a.nodes[n], alone.nodes[n]) <= 1e-10 for n in alone.nodes)
    path = {"path": "weights", "n_steps": 2, "edges": "segments"}
    for a, x in zip(m.attributions(both, metric, **path), items, strict=True):
        assert apart(a.edges, m.attribute(x, metric, **path).edges) <= 1e-10
    assert signature(m.attribute).parameters == signature(m.attributions).parameters
    with pytest.raises(InputError, match="this batch holds 2: use attributions"):
        m.attribute(both, metric)
    with pytest.raises(InputError, match=r"gave \(\) for 2 item"):
        m.attributions(both, lambda logits: logits.sum())


def test_words_and_knockouts_name_the_same_sets_and_a_cut_is_estimated_by_their_sum():
    m = random_model("llava-video")
    x = m.encoded(rich_inputs(m))
    frames = m.attribute(x, metric)
    assert [k.src for k in frames.knockouts] == list(x.layout.step_names)
    assert torch.equal(m.attribute(x, metric, edges=frames.knockouts).edges, frames.edges)
    patches = m.attribute(x, metric, edges=[Knockout(f"patches[{i}]", "text") for i in range(4)])
    cells = m.attribute(x, metric, edges="cells").to_frame()
    of_frame = cells.assign(column=cells["column"].str.extract(r"(video\[\d+\])")[0])
    summed = of_frame.groupby(["layer", "head", "column"], sort=False)["value"].sum()
    assert apart(torch.tensor(summed.to_numpy()).view_as(patches.edges), patches.edges) <= 1e-10
    segments = m.attribute(x, metric, edges="segments")
    whole = m.attribute(x, metric, edges=[Knockout("all", "all")])
    own = m.attribute(x, metric, edges=Knockout("template", "template"))
    assert apart(segments.edges.sum(-1, keepdim=True), whole.edges) <= 1e-10
    assert segments.estimate(Knockout("template", "template", 1, heads=2)) == pytest.approx(float(own.edges[1, 2, 0]))
    some = frames.edges[1:, [0, 3], 2].sum()
    assert frames.estimate(Knockout("video[2]", "text", "1:", heads=[0, 3])) == pytest.approx(float(some), rel=1e-12)
    both = [Knockout("video[0]", "text", 0), "video[1]->text @ 0"]
    assert frames.estimate(both) == pytest.approx(float(frames.edges[0, :, :2].sum()), rel=1e-12)
    assert frames.estimate(()) == 0.0
    assert frames.estimate([both[0], both[0]]) == frames.estimate(both[0])  # cut twice is cut once
    last_frame = [LV_K, Knockout("video[0]", "text")]
    shared = m.attribute(x, metric, edges=last_frame)
    with pytest.raises(InputError, match="share edges"):
        shared.estimate(last_frame)
    apart_by_head = [replace(k, heads=h) for h, k in enumerate(last_frame)]
    found = sum(shared.edges[:, h, h].sum() for h in (0, 1))
    assert shared.estimate(apart_by_head) == pytest.approx(float(found), rel=1e-12)
    with pytest.raises(InputError, match="were not asked about"):
        m.attribute(x, metric, nodes="z").estimate(LV_K)
    last = m.attribute(x, metric, layers=-1)
    assert last.layers == (2,) and apart(last.edges, frames.edges[2:]) <= 1e-12
    for wrong in (LV_K, Knockout("video[0]", "text", weight=0.5), Ablate("z", at="text"), Replace("video[0]", "text")):
        with pytest.raises(InputError):
            frames.estimate(wrong)
    with pytest.raises(InputError, match=r"layer 0 .* was not asked about"):
        last.estimate(Knockout("video[0]", "text", 0))


def test_a_value_is_what_a_little_less_weight_loses():
    m = random_model("qwen3-vl")
    x = m.encoded(rich_inputs(m))
    a, h = m.attribute(x, metric, edges=[LV_K, VT_K]), 1e-4
    for k in (replace(LV_K.at(1), heads=3), VT_K.at(0)):
        less, more = (float(metric(m(x, interventions=replace(k, weight=1 + s * h)))[0]) for s in (-1, 1))
        # A central difference is off by h² times the third derivative: 1e-8 of something like one, here 2e-9.
        assert a.estimate(k) == pytest.approx((more - less) / (2 * h), rel=1e-7)


@pytest.mark.parametrize("family", ["llava-video", "qwen3-vl"])
def test_nodes_are_gradient_times_the_difference_to_a_reference(family):
    m = random_model(family)
    x, other = m.encoded(rich_inputs(m)), m.encoded(replace(rich_inputs(m, seed=2), tokens=rich_inputs(m).tokens))
    names = ("resid_pre", "z", "mlp_out", "resid_post")
    acts, grads = {}, {}

    def points(name):
        return name.startswith("blocks.") and name.split("hook_")[-1] in names

    fwd = (points, lambda act, hook: acts.update({hook.name: act.detach()}))
    bwd = (points, lambda grad, hook: grads.update({hook.name: grad.detach()}))
    with m.hooks([fwd], [bwd]):
        metric(m(x)).sum().backward()
    _, theirs = m.run_with_cache(other, names_filter=points)
    kinds = columns_of(x.layout, "segments")[1]
    means = {n: torch.stack([a[0, kinds == k].mean(0) for k in kinds]) for n, a in acts.items()}
    moments = {n: torch.stack([a[0].mean(0), a[0].std(0)]) for n, a in theirs.items()}
    references = {
        "zero": ("zero", {n: torch.zeros_like(a) for n, a in acts.items()}),
        "mean": ("mean", means),
        "cache": (theirs, dict(theirs.items())),
        "inputs": (other, dict(theirs.items())),
        "moments": (moments, {n: s[0] for n, s in moments.items()}),
    }
    for reference, instead in references.values():
        a = m.attribute(x, metric, nodes=names, reference=reference)
        assert a.edges is None
        for name in names:
            full = [f"blocks.{i}." + ("attn." if name == "z" else "") + f"hook_{name}" for i in range(3)]
            wanted = torch.stack([(grads[n] * (acts[n] - instead[n]))[0].sum(-1).movedim(0, -1) for n in full])
            assert apart(a.nodes[name], wanted) <= 1e-10
    given = [Replace("video", "text"), Edit("pattern", 1, lambda p: p * 0.5, at="text")]  # refused of edges
    changed = m.attribute(x, metric, nodes="resid_post", interventions=given)
    assert changed.value == pytest.approx(float(metric(m(x, interventions=given))[0]), rel=1e-9)
    table = a.node_frame()
    assert set(table["column"]) == {*x.layout.step_names, "rest"} and set(table["node"]) == set(names)
    of_z = table[table["node"] == "z"].groupby("layer")["value"].sum()
    assert torch.tensor(of_z.to_numpy()).allclose(a.nodes["z"].sum((1, 2)))


def test_a_path_of_weights_sums_to_what_cutting_all_of_it_loses():
    m = random_model("qwen3-vl")
    x = m.encoded(rich_inputs(m))
    for edges, under in (("frames", LV_K), ([VT_K, VS_K], [VT_K, VS_K])):
        a = m.attribute(x, metric, edges=edges, path="weights", n_steps=16)
        lost = float(metric(m(x))[0] - metric(m(x, interventions=under))[0])
        assert a.change == pytest.approx(lost, rel=1e-9) and a.n_steps == 16
        # The rule's error, no rounding: of a change of 0.2 it leaves 3e-3 in 8 steps, 5e-4 in 16, 2e-5 in 32.
        assert a.gap <= 5e-3 * abs(lost) and float(a.edges.sum()) == pytest.approx(lost, abs=a.gap + 1e-12)
        assert "path of weights, 16 steps, change" in repr(a) and "gap" in repr(a)
    some = m.attribute(x, metric, path="weights", layers=[0, 2], interventions=VT_K.at(1), n_steps=4)
    under = [VT_K.at(1), *(LV_K.at(i) for i in (0, 2))]
    lost = float(metric(m(x, interventions=VT_K.at(1)))[0] - metric(m(x, interventions=under))[0])
    # Shares up to 0.11 of either sign, of which 0.005 is left: what four steps miss goes by their size.
    assert some.change == pytest.approx(lost, rel=1e-9) and some.gap <= 1e-4


def test_a_path_goes_where_a_peaked_softmax_changes():
    """All at once, at a ten-millionth of the weight: as saturated attention does."""

    def point(t):
        w = t**8
        return Point([w / (w + 1e-7)], [torch.tensor([8 / t * 1e-7 * w / (w + 1e-7) ** 2])])

    points = {0.0: Point([0.0], [torch.zeros(1)]), 1.0: point(1.0)}
    parts = refined(points, point, 24)
    found = sum(part * points[t].slopes[0] for t, part in parts.items())
    # Of a change of 1 in seven powers of ten of the weight: 24 points miss 0.005 of it, 48 miss 0.0008.
    assert len(points) == 25 and abs(float(found) - points[1.0].values[0]) <= 6e-3


@pytest.mark.parametrize("family", ["internvideo2.5", "qwen3-vl"])
def test_a_path_from_a_clip_sums_to_the_change_in_every_whole_stream(family):
    m = random_model(family)
    x, other = rich_inputs(m), rich_inputs(m, seed=2)
    a = m.attribute(x, metric, nodes=["resid_pre", "resid_post", "z"], path="clip", reference=other, n_steps=32)
    lost = float(metric(m(x))[0] - metric(m(other))[0])
    assert a.change == pytest.approx(lost, rel=1e-9)
    whole = a.nodes["resid_post"][m.cfg.n_deepstack :].sum(-1)
    assert (whole - lost).abs().max() <= a.gap + 1e-12
    # The trapezoid's error, a fourth with twice the steps: 0.43, 0.11, 0.03 of the change in 16, 32, 64 where a tower
    # merges tokens, which is the worse of these two.
    assert a.gap < 0.15 * abs(lost)


def test_metrics_are_the_answers_margin_and_log_probability():
    m = random_model("llava-video")
    x = m.encoded(m.prepare(torch.zeros(4, 32, 32, 3, dtype=torch.uint8).numpy(), "what ?", ["a", "b", "c"]))
    answer, logits = m.answer(x), m(x, logits_to_keep=1)
    right = answer.index
    assert float(logit_diff(x, right)(logits)[0]) == pytest.approx(answer.margin)
    wrong = (right + 1) % 3
    gap = answer.logits[right] - answer.logits[wrong]
    assert float(logit_diff(x, right, wrong)(logits)[0]) == pytest.approx(gap)
    assert float(log_prob(x, right, m.cfg.n_tokens)(logits)[0].exp()) == pytest.approx(answer.prob)
    assert m.attribute(x, logit_diff(x, right)).value == pytest.approx(answer.margin)
    assert float(logit_diff(x, torch.tensor(right), np.int64(wrong))(logits)[0]) == pytest.approx(gap)
    for bad in (3, True, "a", "red", 1.0):
        with pytest.raises(InputError, match=f"no option {bad!r}"):
            logit_diff(x, bad)
    with pytest.raises(InputError, match="the metric is 'logit_diff'; give a function"):
        m.attribute(x, "logit_diff")
    with pytest.raises(InputError, match="the reference is of nodes, and edges have none"):
        m.attribute(x, logit_diff(x, 0), reference="mean")
    with pytest.raises(InputError, match="are one option"):
        logit_diff(x, 1, 1)
    with pytest.raises(InputError, match=r"of 1 item\(s\), and these are logits of 2"):
        log_prob(x, 1)(logits.repeat(2, 1, 1))
    with pytest.raises(InputError, match="options"):
        log_prob(random_inputs(m), 0)


@pytest.mark.usefixtures("shapes_checked")
def test_figures_draw_what_was_attributed():
    m = random_model("llava-video")
    a = m.attribute(m.encoded(rich_inputs(m)), metric)
    for figure, shape in ((plots.frames_by_layers(a, "lost"), (3, 4)), (plots.heads_by_layers(a, "lost"), (3, 8))):
        (image,) = figure.axes[0].images
        assert image.get_array().shape == shape
    drawn = plots.frames_by_layers(a, "lost").axes[0].images[0].get_array()
    assert torch.tensor(drawn.data).allclose(a.sum_heads())
    assert isinstance(a.to_frame(), pd.DataFrame) and "3 layers" in repr(a)


def test_a_run_holds_nothing_of_query_times_key_and_leaves_nothing_behind(monkeypatch):
    n = 1200
    monkeypatch.setattr(memory_use, "N", n)
    monkeypatch.setattr(edge_sums, "SCORES", n * n // 8)
    small = DecoderConfig(n_layers=3, d_model=16, n_heads=2, n_kv_heads=1, d_head=8, d_mlp=16, d_vocab=300)
    m = HookedVideoLLM.from_config(VideoLLMConfig(family="text", decoder=small))
    x = m.inputs_from_tensors(torch.randint(0, 300, (n,), generator=torch.Generator().manual_seed(0)))
    with memory_use.Largest() as seen, torch.inference_mode(), torch.no_grad():
        a = m.attribute(x, metric, edges=[Knockout("all", "all")], nodes="z", layers=2)
    assert seen.n_square == 0 and bool(a.edges.any())
    assert not a.edges.requires_grad and m(x, logits_to_keep=1).grad_fn is None and not m.listened()
    assert all(p.grad is None and not p.requires_grad for p in m.parameters())


def test_what_cannot_be_attributed_is_refused_in_words():
    m = random_model("llava-video")
    x, text = m.encoded(rich_inputs(m)), random_inputs(random_model("text"))
    refused = {
        "no edges 'frame'": (InputError, {"edges": "frame"}),
        "says more than which edges": (InterventionError, {"edges": [LV_K.at(0)]}),
        "readers go with": (InputError, {"edges": LV_K, "readers": "last"}),
        "no edges are asked": (InputError, {"edges": []}),
        "other values flow": (InterventionError, {"interventions": Replace("video", "text")}),
        "something listens": (HookError, {"interventions": Edit("pattern", 1, lambda p: p, at="text")}),
        "does not exist": (InterventionError, {"nodes": "resid_pots"}),
        "nodes are what positions hold": (InputError, {"nodes": "pattern"}),
        "no reference 'zeros'": (InputError, {"nodes": "z", "reference": "zeros"}),
        "no path 'weight'": (InputError, {"path": "weight"}),
        "no softmax 'cuts'": (InputError, {"softmax": "cuts"}),
        "leave softmax out": (InputError, {"softmax": "cut", "path": "weights"}),
        "layers \\[1.5\\] are not all": (InputError, {"layers": [1.5]}),
        "no readers are asked": (InputError, {"readers": []}),
        "no reference None": (InputError, {"nodes": "z", "reference": None}),
        "n_steps is 0": (InputError, {"path": "weights", "n_steps": 0}),
        "n_steps are of a path": (InputError, {"n_steps": 32}),
        "no reference 'other'": (InputError, {"nodes": "z", "reference": "other", "sources": [1]}),
        "one of edges alone": (InputError, {"nodes": "z", "path": "weights"}),
        "one of nodes alone": (InputError, {"nodes": "z", "path": "clip"}),
        "laid out otherwise": (InputError, {"nodes": "z", "path": "clip", "reference": rich_inputs(m, 2)}),
        "share edges": (InputError, {"path": "weights", "edges": [LV_K, Knockout("video[0]", "last")]}),
        "layers .* are not all there": (InputError, {"layers": 3}),
        "readers and softmax are of edges": (InputError, {"nodes": "z", "softmax": "cut"}),
        "is no hook point; name nodes": (InputError, {"nodes": [("z", 1)]}),
    }
    for words, (error, how) in refused.items():
        with pytest.raises(error, match=words):
            m.attribute(x, metric, **how)
    for wrong in (lambda logits: logits.detach()[:, -1, 0], lambda _: torch.ones(1, requires_grad=True) * 2):
        with pytest.raises(InputError, match="has no gradient"):
            m.attribute(x, wrong)
    for wrong in (lambda logits: metric(logits) / 0, lambda logits: (logits[:, -1, 0] * 0).abs().sqrt()):
        with pytest.raises(NonFiniteError, match="is not finite"):
            m.attribute(x, wrong)
    with pytest.raises(InputError, match="no columns by 'cells'"):
        m.attribute(x, metric, nodes="z").node_frame(by="cells")
    timed, frames = random_model("qwen2.5-vl"), torch.zeros(4, 56, 56, 3).byte().numpy()
    clips = [timed.prepare(frames, "?", folder_fps=f, sampler="linspace") for f in (2, 0.5)]
    with pytest.raises(InputError, match="tokens are numbered otherwise"):  # its run is not where the path begins
        timed.attribute(clips[0], metric, nodes="z", path="clip", reference=clips[1])
    with pytest.raises(InputError, match="needs a video"):
        random_model("text").attribute(text, metric)
    merged = random_model("internvideo2.5")
    with pytest.raises(SelectorError, match="have no cells"):
        merged.attribute(rich_inputs(merged), metric, edges="cells")
    assert not m.listened()


def test_what_names_no_edge_is_warned_of_by_its_own_name_once():
    m = random_model("llava-video")
    x = m.encoded(rich_inputs(m))
    path = {"path": "weights", "n_steps": 2}
    for how in (
        {"edges": Knockout("video", "generated")},
        {"readers": "generated"},
        {"edges": "video->generated", **path},
    ):
        with pytest.warns(NoEdgeWarning, match="^(video|all)→generated all layers cuts nothing") as seen:
            assert not m.attribute(x, metric, **how).edges.any()
        assert len(seen) == 1


def test_where_a_users_hook_puts_all_in_nothing_before_has_a_part():
    m = random_model("llava-video")
    x = m.encoded(rich_inputs(m))
    with m.hooks([("blocks.1.hook_resid_post", lambda act, hook: torch.ones_like(act))]):
        a = m.attribute(x, metric, edges=LV_K, nodes=["z", "resid_pre"])
        assert not a.edges[:2].any() and not a.nodes["z"][:2].any() and a.nodes["resid_pre"][2].any()
        with pytest.raises(HookError, match="of which no gradient is told"):
            m.attribute(x, metric, nodes="resid_post")


def test_a_cut_of_a_saturated_row_or_of_all_of_one_is_as_by_hand():
    """Softmax over what is left, by itself; a row with nothing left gives zero."""
    generator = torch.Generator().manual_seed(0)
    for n, scale in ((24, 15.0), (400, 4.0)):
        q, k, v, g = (torch.randn(n, h, 8, generator=generator, dtype=torch.float64) for h in (6, 2, 2, 6))
        sets = [torch.arange(n), torch.arange(n // 2), torch.arange(n // 2, n)]
        keep, rows = torch.tensor([False, False, True]), torch.arange(n - 12, n)
        edge = torch.arange(3).repeat_interleave(torch.tensor([n, n // 2, n // 2]))
        sources = edge_sums.Sources(edge, torch.cat(sets), keep)
        of = edge_sums.Gradients(q * scale, k, v, g, [rows], lambda some, m: (torch.arange(m) <= some[:, None])[None])
        found = edge_sums.edge_cuts(of, [sources], 3)
        wanted = torch.zeros(6, 3, dtype=torch.float64)
        scores = torch.einsum("qhd,khd->hqk", q * scale, k.repeat_interleave(3, 1)) / 8**0.5
        for row in range(n - 12, n):
            for i, own in enumerate(sets):
                left = [j for j in range(row + 1) if j not in set(own.tolist()) or (keep[i] and j == row)]
                for h in range(6):
                    z, after = (scores[h, row, s].softmax(-1) @ v[s, h // 3] for s in (list(range(row + 1)), left))
                    wanted[h, i] += g[row, h] @ (z - after)
        assert apart(found, wanted) <= 1e-12


def test_the_estimate_of_a_sweep_is_close_where_nothing_is_saturated():
    m = random_model("qwen3-vl")
    x = m.encoded(rich_inputs(m))
    weak = [replace(k, weight=0.999) for k in (Knockout(f, "text", i) for f in x.layout.step_names for i in range(3))]
    intact, *cut = sweep(m, [x], [[], *([k] for k in weak)], read=lambda _, logits: float(metric(logits[None])[0]))[0]
    a = m.attribute(x, metric)
    found = torch.tensor([a.estimate(replace(k, weight=0.0)) for k in weak], dtype=torch.float64) * 1e-3
    # What is left is the second order of a step of 1e-3: as much of the largest effect, times half a curvature.
    assert apart(found, intact - torch.tensor(cut, dtype=torch.float64)) <= 1e-3


def test_a_source_is_patched_and_taken_by_the_same_positions():
    """The gradient times the difference is the first term of a patch's effect."""
    m = random_model("qwen3-vl")
    x = m.encoded(rich_inputs(m))
    _, own = m.run_with_cache(x, names_filter=("resid_post", 1))
    near = {"blocks.1.hook_resid_post": own["resid_post", 1] * (1 - 1e-5)}
    lost = float(metric(m(x))[0] - metric(m(x, interventions=Patch("resid_post", 1, "text", source=near)))[0])
    a = m.attribute(x, metric, nodes="resid_post", layers=1)
    # The second term is 0.5 times the step; rounding (1e-16 of a metric of 1) is as much of a loss of 1e-5 as 1e-11.
    assert float(a.nodes["resid_post"][0, x.layout.positions("text")].sum()) * 1e-5 == pytest.approx(lost, rel=1e-5)


@pytest.mark.parametrize("family", UNLIKE)
def test_an_estimate_of_a_patch_is_the_slope_of_the_blend_that_ends_with_it(family):
    """So estimate and exact effect are of one replacement."""
    m = random_model(family)
    x, other = m.encoded(rich_inputs(m)), rich_inputs(m, seed=2)
    _, theirs = m.run_with_cache(other)
    named = {"other": other}
    found = m.attribute(x, metric, nodes=["resid_post", "attn_out", "mlp_out", "z"], reference="other", sources=named)
    by_cache = m.attribute(x, metric, nodes="resid_post", reference="other", sources={"other": theirs})
    for hook, layer, at in (
        ("resid_post", 1, "video"),
        ("attn_out", 0, "question"),
        ("mlp_out", 2, "last"),
        ("z", 1, "text"),
    ):
        there = x.layout.positions(at)

        def blend(act, share, to=theirs[hook, layer][:, there], there=there):
            return act.index_copy(1, there, torch.lerp(act[:, there], to, share))

        share = torch.zeros((), dtype=torch.float64, requires_grad=True)
        name = f"blocks.{layer}." + ("attn." if hook == "z" else "") + f"hook_{hook}"
        with m.hooks([(name, lambda act, hook, share=share, blend=blend: blend(act, share))]):
            (slope,) = torch.autograd.grad(metric(m(x))[0], share)
        patch = Patch(hook, layer, at, source="other")
        assert found.estimate(patch) == pytest.approx(-slope.item(), rel=1e-9, abs=1e-12)
        assert found.estimate([patch, patch]) == found.estimate(patch)
        with m.hooks([(name, lambda act, hook, blend=blend: blend(act, 1.0))]):
            whole = metric(m(x))[0]
        assert metric(m(x, interventions=patch, sources={"other": theirs}))[0] == pytest.approx(whole.item(), rel=1e-12)
    at = [Patch("resid_post", 1, p, source="other") for p in ("question", "last")]
    assert by_cache.estimate(at) == pytest.approx(sum(map(by_cache.estimate, at)), rel=1e-12)


def test_nodes_are_held_against_another_run_where_positions_stand_in_both():
    m = random_model("llava-video")
    x, other, late = m.encoded(rich_inputs(m)), rich_inputs(m, seed=2), EarlyExit(2)
    asked = {"nodes": ["resid_post", "resid_post"], "interventions": late}
    found = m.attribute(x, metric, **asked, reference="other", sources={"other": other})
    _, theirs = m.run_with_cache(other, interventions=late)  # the video has left both before the last block
    patch, h = Patch("resid_post", 2, "last", source=theirs), 1e-5
    step = [Steer("resid_post", 2, "last", scale=s * h, vector=_gap(m, x, late, patch)) for s in (-1, 1)]
    less, more = (float(metric(m(x, interventions=[late, by]))[0]) for by in step)
    assert found.estimate(replace(patch, source="other")) == pytest.approx((less - more) / (2 * h), rel=1e-7)
    # As many tokens, the video two earlier.
    moved = random_inputs(m, n_prefix=1, n_text=11)
    shifted = m.attribute(x, metric, nodes="resid_post", reference="moved", sources={"moved": moved})
    shifted.estimate(Patch("resid_post", 1, "last", source="moved"))
    with pytest.raises(InputError, match="'video' stands at other positions"):
        shifted.estimate(Patch("resid_post", 1, "video", source="moved"))
    with pytest.raises(InputError, match="the reference has no generated tokens"):
        m.attribute(x.extend(torch.tensor([[5]])), metric, nodes="z", reference=other)


def _gap(m, x, given, patch):
    """What a patch at one position puts in, less what was there."""
    acts = [m.run_with_cache(x, names_filter=patch.hook, interventions=g)[1] for g in ([given], [given, patch])]
    before, after = (act[patch.hook, patch.layer][0, -1] for act in acts)
    return after - before


def test_an_estimate_is_of_what_nodes_were_held_against():
    m = random_model("llava-video")
    x = m.encoded(rich_inputs(m))
    zero, mean = (m.attribute(x, metric, nodes=["mlp_out", "resid_post"], reference=r) for r in ("zero", "mean"))
    cells, out = x.layout.positions("patches"), {"zero": zero.nodes["mlp_out"], "mean": mean.nodes["mlp_out"]}
    assert zero.estimate(Ablate("mlp_out", 1, "patches")) == float(out["zero"][1, cells].sum())
    assert mean.estimate(Ablate("mlp_out", 1, "patches", by="mean")) == float(out["mean"][1, cells].sum())
    refused = {
        "is not the reference, which is 'zero'": (zero, Ablate("mlp_out", 1, "patches", by="mean")),
        # Of several kinds of segment: another mean.
        "is not the reference, which is 'mean'": (mean, Ablate("mlp_out", 1, "text", by="mean")),
        "it puts in is not": (zero, Patch("mlp_out", 1, "text", source="zero")),
        "which has no name": (m.attribute(x, metric, nodes="mlp_out", reference=x), Patch("mlp_out", 1, "text")),
        "several layers or hook points": (zero, Ablate("mlp_out", "0:2", "text")),
        "no such node": (zero, Ablate("z", 1, "text")),
        "by edges, or else writes": (zero, [Ablate("mlp_out", 1, "text"), LV_K]),
        r"layer 1 \(0-based\) was not asked": (m.attribute(x, metric, nodes="z", layers=0), Ablate("z", 1, "text")),
    }
    for words, (found, asked) in refused.items():
        with pytest.raises(InputError, match=words):
            found.estimate(asked)
