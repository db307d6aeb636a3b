"""Knockouts of some heads and by weights: the formula, the cut and the baseline at their ends, and every place's words.

That forwards, batches, sweeps, sessions and generation are the plain decoder's is in `test_writes`.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

import plain_decoder as plain
from hookedvid import Flops, Replace, edge_share
from hookedvid.errors import InterventionError
from hookedvid.model.flops import Costs, pair
from hookedvid.sweep.run import sweep
from hookedvid.sweep.session import Session
from hookedvid.sweep.tree import Sweep
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import LV_K, PATHWAYS, VS_K, VT_K, Knockout, RandomEdges
from models import UNLIKE, apart, random_model, rich_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]

N = 3
SOFT = [
    [replace(LV_K, heads=[0, 2])],
    [replace(LV_K, weight=0.25), replace(VT_K, weight=3, heads=1)],
    [replace(VS_K, weight=0.5, keep_self=False), replace(LV_K, heads={0: 1, 2: [0, 3]}, weight=1e-4)],
    [Knockout("all", "all", weight=0.5, heads=slice(0, 2)), Knockout("video", "last", heads=1)],
]


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", UNLIKE)
def test_heads_and_weights_are_those_of_the_explicit_softmax(family, kernel):
    m = random_model(family, kernel=kernel)
    plain.assert_met(m, m.encoded(rich_inputs(m)), SOFT)


@torch.no_grad()
@pytest.mark.parametrize("family", UNLIKE)
def test_at_its_ends_a_weight_is_the_cut_and_the_baseline_bit_for_bit(family):
    m = random_model(family)
    x = m.encoded(rich_inputs(m))
    both = VideoInputs.stack([x, m.encoded(rich_inputs(m, 8, seed=1, n_text=11))])
    for cut in (LV_K, VT_K):
        assert torch.equal(m(x, interventions=replace(cut, weight=0)), m(x, interventions=cut))
        assert torch.equal(m(x, interventions=replace(cut, weight=1.0)), m(x))
        assert torch.equal(m(both, interventions=replace(cut, weight=1)), m(both))
        each = [replace(cut, heads=h) for h in range(m.cfg.n_heads)]
        assert torch.equal(m(x, interventions=each), m(x, interventions=cut))
        assert torch.equal(sweep(m, [x], [each])[0][0], sweep(m, [x], [cut])[0][0])
    halves = [replace(LV_K, weight=0.5)] * 2
    assert apart(m(x, interventions=halves), m(x, interventions=replace(LV_K, weight=0.25))) <= 1e-12


def test_a_run_is_differentiable_in_a_weight():
    m = random_model("llava-video")
    x = m.encoded(rich_inputs(m))

    def logit(weight: torch.Tensor | float) -> torch.Tensor:
        return m(x, interventions=replace(LV_K.at(1), heads=[0, 1], weight=weight))[0, -1].logsumexp(0)

    for kernel in ("sdpa", "eager"):
        m.kernel = kernel
        for at in (0.0, 0.5, 1.0, 2.0):
            w = torch.tensor(at, dtype=torch.float64, requires_grad=True)
            value = logit(w)
            (slope,) = torch.autograd.grad(value, w)
            assert apart(value, logit(at)) <= 1e-12
            h = 1e-6
            with torch.no_grad():
                near = [float(logit(at + i * h)) for i in range(5)]
            wanted = (-25 * near[0] + 48 * near[1] - 36 * near[2] + 16 * near[3] - 3 * near[4]) / (12 * h)
            assert abs(float(slope) - wanted) <= 1e-5 * abs(wanted)
    m.kernel = "sdpa"
    assert torch.equal(sweep(m, [x], [replace(LV_K, weight=torch.tensor(0.5))])[0][0].isfinite(), torch.ones(300) > 0)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_hooks_are_shown_scores_of_which_the_pattern_is_the_softmax_and_a_mask_of_booleans(kernel):
    m = random_model("llava-video", kernel=kernel)
    x, last = m.encoded(rich_inputs(m)), slice(-1, None)
    given = [replace(VT_K, heads=[1, 2], weight=0.3), LV_K.at(1)]
    logits, cache = m.run_with_cache(x, interventions=given, names_filter=lambda name: "attn." in name)
    assert apart(logits, m(x, interventions=given)) <= 1e-12
    for i in range(N):
        mask, scores, pattern = (cache[name, i] for name in ("mask", "attn_scores", "pattern"))
        assert mask.dtype == torch.bool and torch.equal((scores > -torch.inf), mask.expand_as(scores))
        assert apart(scores.softmax(-1), pattern) <= 1e-12

    def closed(mask, hook):
        mask[..., last, :] = False
        mask[..., last, -1] = True
        return mask

    edited = m.run_with_hooks(x, interventions=given, fwd_hooks=[("blocks.0.attn.hook_mask", closed)])
    assert apart(edited, m(x, interventions=[*given, Knockout("all", "last", 0)])) <= 1e-12


@torch.no_grad()
@pytest.mark.parametrize("reduce", ["none", "segments", "frames"])
def test_readings_of_attention_see_heads_and_weights(reduce):
    m = random_model("llava-video")
    x = m.encoded(rich_inputs(m))
    for given in (*SOFT, [replace(RandomEdges(replace(LV_K, weight=0.5)), seed=2)]):
        _, cache = m.run_with_cache(x, interventions=given)
        for heads in (None, [3, 1]):
            read = m.attention(x, queries="text", reduce=reduce, interventions=given, heads=heads)
            for i in range(N):
                pattern = cache["pattern", i][0][list(read.heads)][:, read.queries]
                if reduce != "none":
                    columns = [x.layout.mask(c) for c in read.labels if c != "rest"]
                    columns += [~torch.stack(columns).any(0)] * ("rest" in read.labels)
                    pattern = torch.stack([pattern[..., c].sum(-1) for c in columns], -1)
                assert (read[i] - pattern).abs().max() <= 1e-12


def test_operations_leave_out_the_edges_of_cut_heads_and_count_weighted_ones():
    m = random_model("llava-video")
    cfg, layout = m.cfg, rich_inputs(m).layout
    whole, cut = (Flops.of(cfg, layout, c).attention for c in ((), [LV_K.at(1)]))
    one = Flops.of(cfg, layout, [replace(LV_K.at(1), heads=2)]).attention
    assert (whole - one) * cfg.n_heads == whole - cut > 0
    assert Flops.of(cfg, layout, [replace(LV_K, weight=0.5)]).attention == whole
    assert Flops.of(cfg, layout, [RandomEdges(replace(LV_K, weight=0.5))]).attention == whole
    assert whole % pair(cfg.lm) == 0
    shares = [edge_share(layout, [k], N, cfg.n_heads) for k in (LV_K, replace(LV_K, heads=2))]
    assert 1 - shares[0] == pytest.approx(cfg.n_heads * (1 - shares[1]))
    assert Costs(cfg, layout).shares([replace(LV_K, heads=2)]).attention == pytest.approx(shares[1])
    with pytest.raises(InterventionError, match="depends on how many heads there are; give n_heads"):
        edge_share(layout, [replace(LV_K, heads=2)], N)


@pytest.mark.parametrize("cut", [LV_K, PATHWAYS["video→last"]], ids=str)
def test_a_sweep_of_heads_and_layers_evaluates_each_layers_stream_once(cut):
    """Text states: in layer i, the intact one, those of i layers above, and one a head that is cut here."""
    m = random_model("llava-video")
    x, heads = rich_inputs(m), m.cfg.n_heads
    conditions = [[replace(cut.at(i), heads=h)] for i in range(N) for h in range(heads)]
    again = [[replace(cut.at(i), heads=[h], name="again")] for i in range(N) for h in range(heads)]
    for asked in (conditions, [*conditions, *again, [replace(cut, heads={1: 0})], [replace(cut.at(0), weight=1)]]):
        counts = Sweep(N, [x], asked).counts
        assert (counts.stream, counts.keys_values) == (N - 1, 1)
        baseline = len(asked) > len(conditions)
        states = [heads * i + heads + (i < N - 1 or baseline) for i in range(N)]
        assert counts.text_states == sum(states)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: replace(LV_K, heads=[]), r"heads are \[\]; give numbers from 0 up"),
        (lambda: replace(LV_K, heads=-1), "heads are -1; give numbers from 0 up"),
        (lambda: replace(LV_K, heads="all"), "'all' is not a head; give a whole number"),
        (lambda: replace(LV_K, heads=slice(4, None)), "counts from the last head, which a model knows; give both ends"),
        (lambda: replace(LV_K, heads={"4:": 1}), "heads of layers 4:: name each layer, or a range with its end"),
        (lambda: replace(LV_K, heads={}), "heads name no layer"),
        (lambda: replace(LV_K, heads=[[0, 1, 2]]), r"pairs \(layer, heads\), and \[0, 1, 2\] is none"),
        (lambda: replace(LV_K, heads=slice(0, 2.5)), "2.5 is not an end of heads"),
        (lambda: replace(LV_K, heads={7: 1}).at("0:4"), r"heads are told of layers \[7\], none in 0:4"),
        (lambda: replace(LV_K, weight=-0.5), "weight is -0.5; give a number from 0"),
        (lambda: replace(LV_K, weight=float("inf")), "weight is inf; give a number from 0"),
        (lambda: replace(LV_K, weight=True), "weight is True; give a number from 0"),
        (lambda: replace(LV_K, weight=torch.ones(2)), "or a floating tensor of one"),
        (
            lambda: replace(LV_K, heads={7: 1}).effect(5),
            r"heads are told of layer 7 \(0-based\)",
        ),
        (lambda: replace(LV_K, weight=torch.ones(())).to_json(), "Tensor has no JSON form"),
    ],
)
def test_heads_and_weights_that_mean_nothing_are_refused(make, said):
    with pytest.raises(Exception, match=said):
        make()


def test_values_from_before_have_the_json_form_they_had():
    assert LV_K.to_json().keys() == {"kind", "src", "dst", "layers", "relation", "keep_self", "name"}
    assert replace(LV_K, heads=slice(None), weight=0).to_json() == LV_K.to_json()
    assert replace(LV_K, heads=range(2)).to_json()["heads"] == [0, 1]
    for two in (np.arange(2), torch.arange(2), (h for h in (1, 0)), {0: torch.tensor(3)}):
        assert replace(LV_K, heads=two).to_json()["heads"] in ([0, 1], [[0, [3]]])


@pytest.mark.usefixtures("shapes_checked")
@torch.no_grad()
def test_shapes_are_those_stated():
    m = random_model("llava-video")
    x = m.encoded(rich_inputs(m))
    both = VideoInputs.stack([x, m.encoded(rich_inputs(m, 8, seed=1, n_text=11))])
    given = [replace(LV_K, heads=[0, 3], weight=0.5), VT_K.at(1), Replace("video", "text", heads=[1, 2, 5])]
    logits = m(x, interventions=given)[0, -1]
    assert apart(sweep(m, [x], [given, ()])[0][0], logits) <= 1e-12
    assert apart(Session(m, x).logits(given), logits) <= 1e-12
    assert apart(m(both, interventions=[*given, RandomEdges(LV_K)])[0, -1], logits) > 1e-6
    assert m.attention(x, interventions=given, reduce="segments").heads == tuple(range(m.cfg.n_heads))
    assert m.run_with_cache(x, interventions=given)[0].isfinite().all()
