"""Values replaced along edges: by hand, by their own, step by step; who reads them and who does not; what is refused.

Random mixes with other interventions, in batches and generation, are in `test_writes`.
"""

from dataclasses import replace

import pytest
import torch

import plain_decoder as plain
from hookedvid import LV_K, EarlyExit, Knockout, LayerRange, RandomEdges, Replace, Session
from hookedvid.errors import InterventionError
from hookedvid.sweep.run import sweep
from hookedvid.sweep.tree import Sweep, shareable
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import from_json, to_json
from models import UNLIKE, apart, random_model, rich_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]

N = 3
VIDEO = Replace("video", "text")


def other(m, seed: int = 5):
    """Another video's inputs at the same question, and the cache of its values."""
    x = m.encoded(rich_inputs(m, seed=seed))
    return x, m.run_with_cache(x, names_filter="v")[1]


def reference(m, spread: float = 1.0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shape = 2, m.cfg.lm.n_kv_heads, m.cfg.lm.d_head
    made = {f"blocks.{i}.attn.hook_v": torch.randn(shape, generator=g, dtype=torch.float64) for i in range(N)}
    return {name: torch.stack([mean, spread * std.abs()]) for name, (mean, std) in made.items()}


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", UNLIKE)
def test_replaced_values_are_those_put_in_by_hand(family, kernel):
    m = random_model(family, kernel=kernel)
    x = m.encoded(rich_inputs(m))
    _, theirs = other(m)
    named = {id("clip"): (plain.run(m, x.layout, plain.embedded(m, rich_inputs(m, seed=5)))[1], x.layout)}
    cases = [
        [replace(VIDEO, by="zero")],
        [replace(VIDEO, heads={0: [0, 3], 2: 1}, by="mean"), replace(LV_K, heads=1, weight=0.5)],
        [replace(VIDEO, by="resample", source="clip"), Replace("video[0]", "last", 1, by="zero")],
        [Replace("video", "video", relation="other_frame", by="mean"), Replace("text", "last", heads=2, by="zero")],
        # In one block the second is alone, in the next one it is not.
        [Replace("question", "text", LayerRange(1, 3), by="zero"), Replace("video", "text", LayerRange(0, 2))],
    ]
    plain.assert_met(m, x, cases, {"clip": theirs}, named)


@torch.no_grad()
@pytest.mark.parametrize("family", UNLIKE)
def test_their_own_values_are_the_baseline(family):
    m = random_model(family)
    x, mine = other(m)
    for given in (VIDEO, Replace("all", "all", heads=[0, 2], keep_self=False), Replace("question", "last", 1)):
        given = replace(given, by="resample", source=mine)
        assert apart(m(x, interventions=given), m(x)) <= 1e-12
        if shareable([given], x.layout, N):
            assert apart(sweep(m, [x], [given])[0][0], m(x)[0, -1]) <= 1e-12


@torch.no_grad()
def test_noise_is_the_same_everywhere_and_has_the_moments_it_says():
    m = random_model("llava-video")
    x, _ = other(m)
    given, said = replace(VIDEO, by="noise", seed=3), reference(m)
    for one in (given, replace(given, source="set"), Replace("text", "last", by="noise")):
        wanted, sources = m(x, interventions=one, sources={"set": said})[0, -1], {"set": said}
        assert apart(sweep(m, [x], [one], sources=sources)[0][0], wanted) <= 1e-12
        assert apart(Session(m, x).logits(one, sources), wanted) <= 1e-12
        tokens = [
            m.generate(
                x, one, sources=sources, max_new_tokens=4, stop_at_eos=False, use_past_kv_cache=kept,
                return_type="tokens",
            )
            for kept in (True, False)
        ]  # fmt: skip
        assert torch.equal(*tokens)
        assert apart(m(x, interventions=replace(one, seed=4), sources=sources)[0, -1], wanted) > 1e-3
    flat = {name: torch.stack([mean, torch.zeros_like(std)]) for name, (mean, std) in said.items()}
    by = [m(x, interventions=replace(VIDEO, by=by, source=flat)) for by in ("noise", "mean")]
    assert apart(*by) <= 1e-12


@torch.no_grad()
def test_a_noisy_value_is_drawn_about_the_sources_mean():
    """All weight on one edge: what is read there is the drawn value itself."""
    m = random_model("llava-video")
    x, mine = other(m)
    read = []

    def on_first(pattern, hook):
        pattern[:] = 0.0
        pattern[..., x.layout.positions("video")[0]] = 1.0
        return pattern

    hooks = [("blocks.1.attn.hook_pattern", on_first), ("blocks.1.attn.hook_z", lambda z, hook: read.append(z[0, -1]))]
    for seed in range(100):
        m.run_with_hooks(x, interventions=replace(VIDEO.at(1), by="noise", seed=seed), fwd_hooks=hooks, stop_at_layer=2)
    values = mine["v", 1][0, x.layout.positions("video")].repeat_interleave(m.cfg.n_heads // m.cfg.lm.n_kv_heads, 1)
    drawn = torch.stack(read)
    assert ((drawn.mean(0) - values.mean(0)).abs() <= 5 * values.std(0) / 10).all()
    assert ((drawn.std(0) / values.std(0, correction=0) - 1).abs() < 0.5).all()


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_other_readers_and_heads_get_what_they_got(kernel):
    m = random_model("llava-video", kernel=kernel)
    x, _ = other(m)
    text, given = x.layout.mask("text"), replace(VIDEO.at(1), by="zero", heads=[1, 2])
    _, before = m.run_with_cache(x, names_filter=["z", "resid_post"])
    _, after = m.run_with_cache(x, names_filter=["z", "resid_post"], interventions=given)
    moved = (before["z", 1] != after["z", 1]).any(-1)[0]
    assert moved[text][:, [1, 2]].all() and moved.sum() == 2 * text.sum()
    assert torch.equal(before["resid_post", 0], after["resid_post", 0])
    assert apart(m.attention(x, 1, interventions=given)[1], m.attention(x, 1)[1]) == 0


@torch.no_grad()
def test_beside_random_edges_each_question_of_a_sweep_has_its_own():
    m = random_model("llava-onevision")
    x, n = rich_inputs(m), 49 - 9  # two questions, unlike in length, behind one video
    longer = rich_inputs(m, n_text=12)
    longer = longer.with_tokens(torch.cat([x.tokens[:, :n], longer.tokens[:, n:]], 1))
    given = [Replace("video[1]", "video", 1, by="mean"), RandomEdges(LV_K.at(1))]
    for swept, one in zip(sweep(m, [x, longer], [given, ()]), (x, longer), strict=True):
        assert apart(swept[0], m(one, interventions=given)[0, -1]) <= 1e-12 < apart(*swept)


@torch.no_grad()
def test_edits_of_the_pattern_act_on_what_is_replaced():
    m = random_model("llava-video")
    x, _ = other(m)

    def blind(pattern, hook):
        pattern[:, :, :, x.layout.mask("video")] = 0.0
        return pattern

    hooks = [(f"blocks.{i}.attn.hook_pattern", blind) for i in range(N)]
    edited = [m.run_with_hooks(x, interventions=given, fwd_hooks=hooks) for given in (VIDEO, ())]
    assert apart(*edited) <= 1e-12 < apart(edited[0], m(x, interventions=VIDEO))


@torch.no_grad()
def test_a_batch_is_its_items_and_an_exit_takes_what_is_read_with_it():
    m = random_model("llava-video")
    items = [rich_inputs(m, (4, 8)[i], seed=i, n_text=(8, 11)[i]) for i in (0, 1)]
    for given in ([VIDEO], [VIDEO, EarlyExit(1)], [replace(VIDEO, by="noise"), EarlyExit(2, "video[0]")]):
        both = m(VideoInputs.stack(items), interventions=given, logits_to_keep=1)[:, -1]
        for got, x in zip(both, items, strict=True):
            assert apart(got, m(x, interventions=given, logits_to_keep=1)[0, -1]) <= 1e-12
    exit = [replace(VIDEO, by="zero"), EarlyExit(1)]
    assert apart(sweep(m, [items[0]], [exit])[0][0], m(items[0], interventions=exit)[0, -1]) <= 1e-12


def test_a_run_is_differentiable_through_replaced_values():
    m = random_model("llava-video")
    x, _ = other(m)
    mean = reference(m)
    at = mean["blocks.1.attn.hook_v"].requires_grad_()
    (slope,) = torch.autograd.grad(m(x, interventions=replace(VIDEO, source=mean))[0, -1].logsumexp(0), at)
    assert slope[0].abs().max() > 0 and not slope[1].any()


def test_equal_values_ride_together_and_are_counted():
    m = random_model("llava-video")
    x, cache = other(m)
    each = [replace(VIDEO.at(i), heads=h) for i in range(N) for h in range(m.cfg.n_heads)]
    again = [replace(VIDEO.at(i), heads=[h], name="again") for i in range(N) for h in range(m.cfg.n_heads)]
    shared = [replace(VIDEO, by="resample", source=cache), replace(VIDEO, by="resample", source=cache, name="same")]
    counts = [Sweep(N, [x], conditions).counts for conditions in (each, [*each, *again])]
    assert counts[0] == counts[1] and (counts[0].stream, counts[0].keys_values) == (N - 1, 1)
    assert Sweep(N, [x], shared).counts == Sweep(N, [x], shared[:1]).counts


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m, x: replace(VIDEO, by="median"), "by is 'median'; it can be zero, mean, resample, noise"),
        (lambda m, x: replace(VIDEO, by="resample"), "takes values of another run, and its source is None"),
        (lambda m, x: replace(VIDEO, by="zero", source="it"), "by zero takes nothing from a source"),
        (lambda m, x: replace(VIDEO, heads=8).effect(N), None),
        (lambda m, x: m(x, interventions=replace(VIDEO, heads=8)), "no head 8; this model's are numbered 0 to 7"),
        (lambda m, x: m(x, interventions=replace(VIDEO, source="set")), "takes its moments from 'set'; pass sources="),
        (
            lambda m, x: m(x, interventions=replace(VIDEO, source={})),
            "its reference set has nothing of 'blocks.0.attn.hook_v'",
        ),
        (
            lambda m, x: m(x, interventions=replace(VIDEO, by="resample", source="clip")),
            "takes its activation from 'clip'",
        ),
        (
            lambda m, x: sweep(m, [x], [Replace("all", "all")]),
            "a sweep cannot share replace all→all .* rows of the video would read a mean of the text after it",
        ),
        (
            lambda m, x: sweep(m, [x], [[VIDEO, EarlyExit(1, "video[0]")]]),
            "it is by a mean of positions that left by an early exit",
        ),
    ],
)
def test_what_cannot_be_replaced_is_refused_in_words(make, said):
    m = random_model("llava-video")
    x, _ = other(m)
    if said is None:
        make(m, x)
        return
    with pytest.raises(InterventionError, match=said):
        make(m, x)


def test_a_reader_that_cannot_look_there_is_told_of():
    m = random_model("llava-video")
    x, _ = other(m)
    with pytest.warns(UserWarning, match="replace text→video all layers by mean cuts nothing"):
        assert torch.equal(m(x, interventions=Replace("text", "video")), m(x))


def test_json_forms_and_labels():
    noisy = replace(VIDEO, by="noise", seed=2, heads={1: 3}, source="set", name="mine")
    assert from_json(to_json([noisy, VIDEO])) == (noisy, VIDEO)
    assert noisy.label() == "replace mine layer 2 head 3 by noise 2 of 'set'"
    assert VIDEO.at("1:3").label() == "replace video→text 2–3 by mean"
    assert Knockout("video", "text").cut != VIDEO.cut
