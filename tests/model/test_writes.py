"""How interventions are applied, against a plain decoder: in forwards, batches, sweeps, sessions and generation."""

import warnings
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import plain_decoder as plain
from hookedvid import HookedVideoLLM
from hookedvid.errors import InputError, InterventionError
from hookedvid.nn.kv import KVCache
from hookedvid.sweep.run import sweep
from hookedvid.sweep.session import Session
from hookedvid.sweep.tree import shareable
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import LV_K, VS_K, VT_K, EarlyExit, Edit, Knockout, LayerRange, Patch, Replace
from hookedvid.values.layout import Segment, TokenLayout
from hookedvid.values.masks import NoEdgeWarning
from models import LAW, ROUNDING, UNLIKE, apart, random_model, rich_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]

N = 3
POINTS = "resid_pre q v rot_k z attn_out resid_mid mlp_out resid_post attn_scores pattern".split()


def doubled(x):
    return x * 2


def shifted(x):
    return x + 1


def rolled(x):
    return x.roll(1, -1)


def averaged(x):
    """Mixes the rows it is given."""
    return x.mean(-2, keepdim=True).expand_as(x) if x.ndim == 3 else x.flip(1)


@cache
def item(model, which: int) -> VideoInputs:
    """Two questions of unequal length on unequal videos; encoded, so that no run pays the tower."""
    x = rich_inputs(model, (4, 8)[which], seed=which, n_text=(8, 11)[which], markers_are_language=bool(which))
    return model.encoded(x)


@cache
def source(model, which: int):
    """Another video's run at the same question: its inputs, and the plain run's activations."""
    x = rich_inputs(model, (4, 8)[which], seed=7, n_text=(8, 11)[which], markers_are_language=bool(which))
    return x, plain.run(model, x.layout, plain.embedded(model, x))[1]


@cache
@torch.no_grad()
def cached(model, *which: int):
    """The model's own cache of these runs."""
    return model.run_with_cache(
        VideoInputs.stack([source(model, i)[0] for i in which]), names_filter=lambda n: n.startswith("blocks.")
    )[1]


PLACES = ["system", "video[1]", "patches", "question", "text", "last", "all", "generated", "video[0:2]+template"]
layers = st.builds(lambda start, n: LayerRange(start, min(N, start + n)), st.integers(0, N - 1), st.integers(1, N))
knockouts = st.one_of(
    st.builds(lambda k, r: k.at(r), st.sampled_from([LV_K, VT_K, VS_K]), layers),
    st.builds(
        Knockout, st.sampled_from(PLACES), st.sampled_from(PLACES), layers,
        st.sampled_from(["any", "other_frame", "same_frame"]), st.booleans(), st.just(""),
        st.sampled_from([None, None, 1, [0, 2], {0: 1, 1: [1, 2], 2: [0, 1]}, {i: i for i in range(N)}]),
        st.sampled_from([0, 0, 0.5, 1, 2.5]),
    ),
)  # fmt: skip
replacements = st.one_of(
    st.builds(
        Replace, st.sampled_from([*PLACES[:5], "all", "video[0:2]+template"]), st.sampled_from(PLACES), layers,
        st.sampled_from([None, 1, [0, 2], {i: i for i in range(N)}]), st.sampled_from(["any", "other_frame"]),
        st.sampled_from(["zero", "mean"]), keep_self=st.booleans(),
    ),
    st.builds(
        Replace, st.sampled_from(PLACES[:3]), st.just("text"), layers, by=st.just("resample"), source=st.just("source"),
    ),
)  # fmt: skip
edits = st.builds(
    Edit, st.sampled_from(POINTS), st.integers(0, N - 1), st.sampled_from([doubled, shifted, rolled, averaged]),
    st.sampled_from(PLACES),
)  # fmt: skip
patches = st.builds(Patch, st.sampled_from(POINTS[:-2]), st.integers(0, N - 1), st.sampled_from(PLACES[:-2]))
exits = st.builds(EarlyExit, st.integers(0, N), st.sampled_from(["video", "video[1]", "patches"]))
mixes = st.tuples(
    st.lists(st.one_of(knockouts, edits, patches, replacements), max_size=4), st.lists(exits, max_size=1)
).map(lambda m: (*m[0], *m[1]))


def lost(mix, inputs: VideoInputs) -> bool:
    """Whether something is to be written where an exit took the positions away."""
    place = plain.Place(inputs.layout)
    return any(
        isinstance(i, Edit | Patch)
        and plain.blocks(i, N)[-1] >= e.layer
        and set(place.of(e.drop)) & set(place.of(i.at))
        for e in mix
        if isinstance(e, EarlyExit)
        for i in mix
    )


@torch.no_grad()
@LAW
@given(st.sampled_from(UNLIKE), mixes)
def test_forwards_batches_sweeps_and_sessions_are_the_plain_decoders(family, mix):
    model = random_model(family)
    items = [item(model, i) for i in (0, 1)]
    others, acts = zip(*(source(model, i) for i in (0, 1)), strict=True)
    refused = any(lost(mix, x) for x in items)
    expected = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, (x, other, their) in enumerate(zip(items, others, acts, strict=True)):
            taken = {"source": cached(model, i)}
            if lost(mix, x):
                with pytest.raises(InterventionError, match="left the sequence by an early exit"):
                    model(x, interventions=mix, sources=taken)
                continue
            sources = {id("source"): (their, other.layout)}
            named = [i if not isinstance(i, Patch) else Patch(i.hook, i.layer, i.at, "source") for i in mix]
            want = plain.run(model, x.layout, plain.embedded(model, x), named, sources)[0][-1]
            expected.append(want)
            got = model(x, interventions=mix, sources=taken, logits_to_keep=1)[0, -1]
            assert apart(got, want) < ROUNDING
            if shareable(mix, x.layout, N):
                swept = sweep(model, [x], [mix, ()], sources=taken)[0][0]
                assert apart(swept, want) < ROUNDING
                assert apart(Session(model, x).logits(mix, taken), want) < ROUNDING
        if not refused:
            taken = {"source": cached(model, 0, 1)}
            both = model(VideoInputs.stack(items), interventions=mix, sources=taken, logits_to_keep=1)
            assert all(apart(got[-1], want) < ROUNDING for got, want in zip(both, expected, strict=True))


@torch.no_grad()
@LAW
@given(st.sampled_from(UNLIKE), mixes, st.booleans())
def test_generation_is_the_plain_decoders_with_and_without_a_cache(family, mix, batched):
    model = random_model(family)
    items = [item(model, i) for i in ((0, 1) if batched else (0,))]
    if any(lost(mix, x) for x in items):
        return
    mine, theirs = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [source(model, i) for i in range(len(items))]
        taken = {"source": cached(model, *range(len(items)))}
        for x, (other, acts) in zip(items, found, strict=True):
            named = {id("source"): (acts, other.layout)}
            theirs.append(plain.generated(model, x, mix, named, 3))
        for kept in (True, False):
            rows: list[torch.Tensor] = []
            with model.hooks([("ln_final.hook_normalized", lambda a, hook, to=rows: to.append(a[:, -1].clone()))]):
                ids = model.generate(
                    VideoInputs.stack(items), mix, sources=taken, max_new_tokens=3, stop_at_eos=False,
                    return_type="tokens", use_past_kv_cache=kept,
                )  # fmt: skip
            logits = model.unembed(model.ln_final.weight * torch.stack(rows, 1))
            mine.append(ids.tolist())
            assert all(apart(got, want[1]) < ROUNDING for got, want in zip(logits, theirs, strict=True))
    assert mine[0] == mine[1] == [ids for ids, _ in theirs]


# ---- single laws ------------------------------------------------------------------------------------------------


def edit(fn, at: str = "question", hook: str = "resid_post", layer: int = 1) -> Edit:
    return Edit(hook, layer, fn, at)


def last(model, x: VideoInputs, *given, **kwargs) -> torch.Tensor:
    return model(x, interventions=given, logits_to_keep=1, **kwargs)[:, -1]


@torch.no_grad()
def test_writes_on_one_point_are_applied_in_the_order_of_the_list():
    model = random_model("llava-onevision")
    x = item(model, 0)
    chosen = x.layout.mask("question")

    def by_hand(a, hook):
        a = a.clone()
        a[:, chosen] = a[:, chosen] * 2 + 1
        return a

    both = [edit(doubled), edit(shifted)]
    want = model.run_with_hooks(x, fwd_hooks=[("blocks.1.hook_resid_post", by_hand)])[:, -1]
    swept, session = sweep(model, [x], [both])[0][0], Session(model, x).logits(both)
    assert all(apart(got, want[0]) < ROUNDING for got in (last(model, x, *both)[0], swept, session))
    assert apart(last(model, x, *both[::-1]), want) > 1e-3


@torch.no_grad()
def test_a_patch_writes_over_those_before_it():
    model = random_model("llava-onevision")
    a, b = (model.run_with_cache(rich_inputs(model, seed=s), names_filter="resid_post")[1] for s in (5, 6))
    x, whole, one = rich_inputs(model), Patch("resid_post", 0, "video", a), Patch("resid_post", 0, "video[2]", b)
    rest = [Patch("resid_post", 0, f"video[{k}]", a) for k in (0, 1, 3)]
    newline = Patch("resid_post", 0, "newlines", a)
    assert torch.equal(last(model, x, whole, one), last(model, x, one, *rest, newline))
    assert torch.equal(last(model, x, one, whole), last(model, x, whole))


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_post", "vision.blocks.0.hook_resid_post"])
def test_hooks_put_before_others_keep_the_order_of_their_list(name):
    model, ran = random_model("llava-onevision"), []
    told = [(name, lambda a, hook, i=i: ran.append(i)) for i in range(3)]
    with torch.no_grad(), model.hooks(told[2:]), model.hooks(told[:2], prepend=True):
        model(rich_inputs(model))
    assert ran == [0, 1, 2]


@torch.no_grad()
@pytest.mark.parametrize("at", ["system", "question", "last", "steps[0]"])
@pytest.mark.parametrize("family", UNLIKE)
def test_a_batch_under_an_exit_is_written_to_as_its_items_are(family, at):
    model = random_model(family)
    items, given = [item(model, 0), item(model, 1)], [EarlyExit(1, "steps[1]"), edit(rolled, at)]
    both = last(model, VideoInputs.stack(items), *given)
    assert all(apart(got, last(model, x, *given)[0]) < ROUNDING for got, x in zip(both, items, strict=True))
    with pytest.raises(InterventionError, match="these positions left the sequence by an early exit before it"):
        last(model, VideoInputs.stack(items), EarlyExit(1), edit(rolled, "video"))


@torch.no_grad()
@pytest.mark.parametrize("family", UNLIKE)
def test_a_batchs_cache_is_read_item_by_item(family):
    model, exit = random_model(family), EarlyExit(1, "steps[1]")
    items, kept = [item(model, 0), item(model, 1)], {"names_filter": ["resid_post", "pattern"], "interventions": exit}
    _, cache = model.run_with_cache(VideoInputs.stack(items), **kept)
    for i, x in enumerate(items):
        _, alone = model.run_with_cache(x, **kept)
        for selector in ("system", "question", "steps[0]", "last"):
            for layer in range(N):
                assert (
                    apart(cache.at("resid_post", layer, selector, i), alone.at("resid_post", layer, selector))
                    < ROUNDING
                )
        assert torch.equal(alone.rows[2], (~x.layout.mask("steps[1]")).nonzero()[:, 0])
        patched = last(model, VideoInputs.stack(items), Patch("resid_post", 1, "question", cache))
        assert apart(patched[i], last(model, x, Patch("resid_post", 1, "question", alone))[0]) < ROUNDING
        with pytest.raises(InputError, match="an early exit dropped them"):
            cache.at("resid_post", 1, "steps[1]", i)
    with pytest.raises(InputError, match="this cache holds 2 items, each with its own layout"):
        cache.at("resid_post", 1, "question")


@torch.no_grad()
@pytest.mark.parametrize("hook", ["attn_scores", "pattern", "mask"])
def test_an_edit_of_a_map_sees_an_items_own_keys_in_a_batch(hook):
    model, seen = random_model("llava-video"), []

    def fn(a):
        seen.append(tuple(a.shape[2:]))
        return a.roll(1, -1) & a if a.dtype == torch.bool else a.masked_fill(torch.arange(a.shape[-1]) == 4, 0.0)

    items, given = [item(model, 0), item(model, 1)], [edit(fn, "question", hook)]
    both = last(model, VideoInputs.stack(items), *given)
    assert all(apart(got, last(model, x, *given)[0]) < ROUNDING for got, x in zip(both, items, strict=True))
    sizes = [(int(x.layout.mask("question").sum()), x.layout.n_tokens) for x in items]
    assert seen == [*sizes, *sizes]


# ---- key-value caches -------------------------------------------------------------------------------------------


def held(cache: KVCache) -> list:
    return [cache.n_tokens, cache.n_rope, *((x.k.shape, x.v.shape, x.pos.tolist()) for x in cache.layers)]


@torch.no_grad()
@pytest.mark.parametrize("first", [True, False])
def test_a_forward_that_fails_leaves_the_key_value_cache_as_it_was(first):
    model = random_model("llava-onevision")
    x, cache = item(model, 0), KVCache(N)
    if not first:
        model(x, kv_cache=cache, interventions=EarlyExit(1))
        x = x.extend(torch.tensor([[5]]))
    before = None if first else held(cache)

    def broken(a, hook):
        raise RuntimeError("mid-forward")

    with pytest.raises(InterventionError, match="reach beyond"):
        model(x, kv_cache=cache, interventions=LV_K.at(LayerRange(0, 9)))
    with pytest.raises(InterventionError, match="does not exist"):
        model(x, kv_cache=cache, interventions=edit(doubled, hook="resid_pst"))
    with pytest.raises(InputError, match="a loss needs every position's logits"):
        model(x, kv_cache=cache, interventions=EarlyExit(1), return_type="loss")
    for point in ("blocks.0.attn.hook_k", "blocks.1.attn.hook_z", "blocks.2.hook_resid_post"):
        with pytest.raises(RuntimeError, match="mid-forward"), model.hooks([(point, broken)]):
            model(x, kv_cache=cache, interventions=EarlyExit(1))
    assert cache.n_tokens == 0 and cache.layers[0].k is None if first else held(cache) == before
    got = model(x, kv_cache=cache, interventions=EarlyExit(1), logits_to_keep=1)
    assert apart(got, model(x, interventions=EarlyExit(1), logits_to_keep=1)) < ROUNDING


@torch.no_grad()
def test_a_step_that_a_key_value_cache_does_not_fit_is_refused():
    model = random_model("llava-onevision")
    x, cache = item(model, 0), KVCache(N)
    model(x, kv_cache=cache)
    with pytest.raises(InputError, match="nothing is new"):
        model(x, kv_cache=cache)
    with pytest.raises(InterventionError, match="give the exit from the first step on"):
        model(x.extend(torch.tensor([[5]])), kv_cache=cache, interventions=EarlyExit(1))
    begun = KVCache(N)
    model(model.inputs_from_tensors(x.tokens[:, :2]), kv_cache=begun)
    with pytest.raises(InputError, match="give the whole video with the first forward"):
        model(x, kv_cache=begun)


@torch.no_grad()
def test_a_steps_activations_are_found_by_their_positions():
    model = random_model("llava-video")
    x, cache = item(model, 0), KVCache(N)
    model(x, kv_cache=cache)
    grown = x.extend(torch.tensor([[5]]))
    _, step = model.run_with_cache(grown, kv_cache=cache, names_filter="resid_post")
    _, whole = model.run_with_cache(grown, names_filter="resid_post")
    assert apart(step.at("resid_post", 1, "generated"), whole.at("resid_post", 1, "generated")) < ROUNDING
    with pytest.raises(InputError, match="in a key-value cache already"):
        step.at("resid_post", 1, "video")


@torch.no_grad()
@pytest.mark.parametrize("n_ctx", [20, 56])
def test_dynamic_ntk_beyond_the_context_is_the_same_with_and_without_a_cache(n_ctx):
    whole = random_model("llava-onevision")
    lm = replace(whole.cfg.lm, n_ctx=n_ctx, rope=replace(whole.cfg.lm.rope, scaling="dynamic", factor=2.0))
    model = HookedVideoLLM.from_config(replace(whole.cfg, decoder=lm)).double()
    model.load_state_dict(whole.state_dict())
    x = rich_inputs(model, n_text=12)
    given = {"max_new_tokens": 8, "return_type": "tokens", "stop_at_eos": False}
    ids = model.generate(x, **given)
    assert x.layout.n_tokens < 56 < x.layout.n_tokens + 8, "the limit is crossed on the way"
    assert torch.equal(ids, model.generate(x, use_past_kv_cache=False, **given))
    cache, spoken = KVCache(N), x.extend(ids)
    rows = [model(x, kv_cache=cache)[:, -1:], *(model(x.extend(ids[:, :t]), kv_cache=cache) for t in range(1, 9))]
    assert apart(torch.cat(rows, 1), model(spoken)[:, -9:]) < ROUNDING
    if n_ctx == 20:
        longer = model.inputs_from_tensors(spoken.tokens, x.pixel_values[0])
        with pytest.raises(InputError, match="are turned by the angles of prompts"):
            model(model.inputs_from_tensors(torch.cat([longer.tokens, ids], 1), x.pixel_values[0]), kv_cache=cache)


# ---- generated tokens, sweeps -----------------------------------------------------------------------------------


@torch.no_grad()
def test_a_function_is_asked_the_same_with_and_without_a_cache():
    """The prompt's rows in one call, each generated token's alone with the keys up to its own."""
    model = random_model("llava-video")
    x, asked = item(model, 0), {True: [], False: []}
    n = x.layout.n_tokens
    for kept, shapes in asked.items():
        edits = [edit(lambda a, to=shapes: to.append(tuple(a.shape)) or a, "last", h) for h in ("z", "pattern")]
        model.generate(x, edits, max_new_tokens=3, use_past_kv_cache=kept, return_type="tokens", stop_at_eos=False)
    heads, wide = model.cfg.n_heads, model.cfg.lm.d_head
    rows = {k: [(1, 1, heads, wide)] * 3 for k in (True, False)}
    maps = [(1, heads, 1, n + t) for t in range(3)]
    assert sorted(asked[True]) == sorted([*rows[True], *maps])
    assert set(asked[False]) == set(asked[True])


@torch.no_grad()
def test_a_patch_takes_generated_tokens_from_a_source_that_holds_them():
    model = random_model("llava-video")
    x, other = item(model, 0), rich_inputs(model, seed=7, n_text=8)
    ids = torch.tensor([[5, 6, 7]])
    caches = [model.run_with_cache(o, names_filter="resid_post")[1] for o in (other, other.extend(ids))]
    spoken = x.extend(ids[:, :2])
    alone, whole = (
        model.run_with_cache(spoken, names_filter="resid_post", interventions=Patch("resid_post", 1, "last", c))[1]
        for c in caches
    )
    _, intact = model.run_with_cache(spoken, names_filter="resid_post")
    at_last = [c.at("resid_post", 1, "last") for c in (alone, whole, intact, *caches)]
    assert torch.equal(at_last[0][:, :1], at_last[3]) and apart(at_last[0][:, 1:], at_last[2][:, 1:]) < ROUNDING
    assert torch.equal(at_last[1], at_last[4][:, :3])
    with pytest.raises(InterventionError, match="4 positions here, 3 in the source"):
        last(model, x.extend(ids.repeat(1, 2)[:, :4]), Patch("resid_post", 1, "generated", caches[1]))
    with pytest.raises(InterventionError, match="2 positions here, 0 in the source"):
        last(model, spoken, Patch("resid_post", 1, "generated", caches[0]))


@torch.no_grad()
def test_interventions_from_an_iterator_hold_in_every_step():
    model = random_model("llava-video")
    x, given = item(model, 0), {"max_new_tokens": 4, "return_type": "tokens", "stop_at_eos": False}
    once = [LV_K, edit(doubled, "last")]
    assert torch.equal(model.generate(x, iter(once), **given), model.generate(x, once, **given))
    _, cache = model.run_with_cache(x, names_filter="resid_post", interventions=iter([EarlyExit(1)]))
    assert len(cache.rows[2]) < x.layout.n_tokens


@torch.no_grad()
def test_questions_whose_roles_differ_are_not_swept_together():
    model = random_model("internvideo2.5")
    x = rich_inputs(model, markers_are_language=False)
    spoken = rich_inputs(model, markers_are_language=True)
    plainly = model.inputs_from_tensors(x.tokens, x.pixel_values[0])
    for other in (spoken, replace(x, layouts=(TokenLayout.of(roles_moved(x)),))):
        with pytest.raises(InputError, match="other roles there"):
            sweep(model, [x, other], [[LV_K]])
    together = sweep(model, [x, plainly], [[LV_K]])  # other roles in the text are a question's own
    assert all(apart(row[0], last(model, i, LV_K)[0]) < ROUNDING for row, i in zip(together, (x, plainly), strict=True))


def roles_moved(x: VideoInputs) -> list[Segment]:
    return [replace(s, role="system", frame=None) if s.role == "marker" else s for s in x.layout.segments]


@torch.no_grad()
def test_a_knockout_that_cuts_nothing_is_told_in_forwards_sweeps_and_generation():
    model = random_model("llava-video")
    x, idle = item(model, 0), Knockout("video", "text", relation="same_frame")
    calls = [
        lambda: model(x, interventions=idle),
        lambda: sweep(model, [x], [[idle]]),
        lambda: Session(model, x).logits(idle),
        lambda: model.generate(x, idle, max_new_tokens=2, return_type="tokens"),
    ]
    for call in calls:
        with pytest.warns(NoEdgeWarning, match="video→text same frame all layers cuts nothing"):
            call()
    with pytest.raises(InterventionError, match="hold none of this model's 3 blocks"):
        sweep(model, [x], [[LV_K.at("3:")]])
    after = EarlyExit(N)
    assert torch.equal(sweep(model, [x], [[after]])[0][0], sweep(model, [x], [[]])[0][0])
