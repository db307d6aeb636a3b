"""What positions hold, replaced in every way: against a plain decoder, in forwards, batches, sweeps, generation."""

from dataclasses import replace
from functools import cache

import pytest
import torch

import plain_decoder as plain
from hookedvid import Ablate, EarlyExit, Edit, Patch, Session, Steer, VideoInputs
from hookedvid.errors import InterventionError
from hookedvid.nn.kv import KVCache
from hookedvid.sweep.run import sweep
from hookedvid.sweep.tree import Sweep, shareable
from hookedvid.values.interventions import LV_K
from models import ROUNDING, UNLIKE, apart, random_model, rich_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]

N = 3
FULL = {"resid_post": "blocks.1.hook_resid_post", "z": "blocks.1.attn.hook_z", "embed": "hook_embed"}


def item(model, which: int, seed: int = 0) -> VideoInputs:
    """Two questions of unequal length on unequal videos."""
    return rich_inputs(model, (4, 8)[which], seed=which + seed, n_text=(8, 11)[which], markers_are_language=bool(which))


def vector(model, hook: str) -> torch.Tensor:
    shape = (model.cfg.n_heads, model.cfg.lm.d_head) if hook == "z" else (model.cfg.d_model,)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def moments(model, hook: str) -> torch.Tensor:
    return torch.stack([vector(model, hook), vector(model, hook).abs() + 1])


KINDS = {
    "zero": lambda hook, layer, at, model: Ablate(hook, layer, at),
    "mean": lambda hook, layer, at, model: Ablate(hook, layer, at, "mean"),
    "mean of a set": lambda hook, layer, at, model: Ablate(hook, layer, at, "mean", "set"),
    "noise": lambda hook, layer, at, model: Ablate(hook, layer, at, "noise", seed=2),
    "noise of a set": lambda hook, layer, at, model: Ablate(hook, layer, at, "noise", "set", 2),
    "resample": lambda hook, layer, at, model: Ablate(hook, layer, at, "resample", "other"),
    "back": lambda hook, layer, at, model: Patch(hook, layer, at, "other", None if layer is None else 2),
    "steer": lambda hook, layer, at, model: Steer(hook, layer, at, vector(model, hook), -1.5),
    "steer by name": lambda hook, layer, at, model: Steer(hook, layer, at, "named", 2),
    "edit": lambda hook, layer, at, model: Edit(hook, layer, lambda a: a * 2 - a.mean(-2, keepdim=True), at),
}


def given(kind: str, hook: str, at: str, model):
    layer = None if hook == "embed" and kind in ("back", "edit") else "0:" if hook == "embed" else 1
    return KINDS[kind](hook, layer, at, model)


@cache
def sources(family: str, hook: str, which: int, n_generated: int = 0) -> tuple[dict, dict]:
    """Of the run, and of the plain one: another video's run, a reference set, a vector, and normal numbers."""
    model = random_model(family)
    x, other = item(model, which), item(model, which, seed=7)
    x = x.extend(torch.full((1, n_generated), 5)) if n_generated else x
    point = (hook, None if hook == "embed" else 1)
    unit = torch.stack([torch.zeros_like(vector(model, hook)), torch.ones_like(vector(model, hook))])
    with torch.no_grad():
        _, theirs = model.run_with_cache(other, names_filter=lambda n: n.endswith(f"hook_{hook}"))
        drawn = Ablate(hook, "0:" if hook == "embed" else 1, "all", "noise", "unit", 2)
        unit_set = {"unit": {FULL[hook]: unit}}
        _, cached = model.run_with_cache(x, names_filter=FULL[hook], interventions=drawn, sources=unit_set)
        acts = plain.run(model, other.layout, plain.embedded(model, other))[1]
    normal = cached[FULL[hook]][0]
    named = vector(model, hook).flip(-1)
    run = {"other": theirs, "set": {FULL[hook]: moments(model, hook)}, "named": named}
    by_hand = {
        id("other"): (acts, other.layout), ("set", point): moments(model, hook), ("normal", point, 2): normal,
        "named": named,
    }  # fmt: skip
    return run, by_hand


PLACES = ("video[1:3]", "question", "patches", "options+template")


@torch.no_grad()
# Each with two kinds of sequence, each of these with half of them.
@pytest.mark.parametrize(("family", "kind"), [(f, k) for n, k in enumerate(KINDS) for f in UNLIKE[n % 2 :: 2]])
def test_forwards_batches_sweeps_and_sessions_are_the_plain_decoders(family, kind):
    model, which = random_model(family), list(KINDS).index(kind) + UNLIKE.index(family)
    hook, at = list(FULL)[which % 3], PLACES[which % 4]
    items, mix = [item(model, i) for i in (0, 1)], [given(kind, hook, at, model), LV_K.at("2:")]
    expected = []
    for which, x in enumerate(items):
        run, by_hand = sources(family, hook, which)
        want = plain.run(model, x.layout, plain.embedded(model, x), mix, by_hand)[0][-1]
        got = model(x, interventions=mix, sources=run, logits_to_keep=1)[0, -1]
        swept = sweep(model, [x], [mix, ()], sources=run)[0]
        session = Session(model, x).logits(mix, run)
        assert shareable(mix, x.layout, N)
        assert all(apart(one, want) < ROUNDING for one in (got, swept[0], session))
        assert apart(swept[1], want) > 1e-6, "nothing was done"
        expected.append(want)
    _, both = model.run_with_cache(VideoInputs.stack([item(model, i, seed=7) for i in (0, 1)]))
    run = {**run, "other": both}
    batch = model(VideoInputs.stack(items), interventions=mix, sources=run, logits_to_keep=1)
    assert all(apart(got[-1], want) < ROUNDING for got, want in zip(batch, expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("at", ["last", "question+generated", "all"])
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("resample", "back")])
def test_generated_positions_are_written_with_and_without_a_cache(kind, at):
    model, hook = random_model("llava-video"), ("resid_post", "z", "embed")[len(kind) % 3]
    mix, items = [given(kind, hook, at, model)], [item(model, i) for i in (0, 1)]
    how = {"max_new_tokens": 3, "stop_at_eos": False, "return_type": "tokens"}
    if at == "last" and kind in ("mean", "noise"):
        with pytest.raises(InterventionError, match="1 positions of the prompt are selected, and one alone is its own"):
            model.generate(items[0], mix, **how)
        return
    run, by_hand = zip(*(sources("llava-video", hook, i, 3) for i in (0, 1)), strict=True)
    theirs = [plain.generated(model, x, mix, s, 3) for x, s in zip(items, by_hand, strict=True)]
    if at == "question+generated" and kind != "edit":
        prompt_alone = plain.generated(model, items[0], [replace(mix[0], at="question")], by_hand[0], 3)
        assert apart(theirs[0][1][1:], prompt_alone[1][1:]) > 1e-6, "generated tokens are left as they are"
    for kept in (True, False):
        rows: list[torch.Tensor] = []
        with model.hooks([("ln_final.hook_normalized", lambda a, hook, to=rows: to.append(a[:, -1].clone()))]):
            ids = model.generate(VideoInputs.stack(items), mix, sources=run[0], use_past_kv_cache=kept, **how)
        logits = model.unembed(model.ln_final.weight * torch.stack(rows, 1))
        assert ids.tolist() == [chosen for chosen, _ in theirs]
        assert all(apart(got, want) < ROUNDING for got, (_, want) in zip(logits, theirs, strict=True))


# ---- laws --------------------------------------------------------------------------------------------------------


def last(model, x: VideoInputs, *given, **kwargs) -> torch.Tensor:
    return model(x, interventions=given, logits_to_keep=1, **kwargs)[:, -1]


@torch.no_grad()
def test_what_changes_nothing_is_the_baseline():
    model = random_model("llava-onevision")
    x = item(model, 0)
    base, v = last(model, x), vector(model, "resid_post")
    _, own = model.run_with_cache(x, names_filter=["resid_post", "hook_embed"])
    constant = Edit("resid_post", 1, lambda a: a[:, :1].expand_as(a), "video")
    exact = [
        [Patch("resid_post", 1, "all", own)],
        [Patch("embed", source=own)],
        [Ablate("resid_post", 1, "video", "resample", own)],
        [Patch("resid_post", 1, "all", own, from_layer=1)],
        [Steer("resid_post", at="text", vector=v, scale=0)],
        [Steer("embed", at="video", vector=v, scale=0)],
    ]
    assert all(torch.equal(last(model, x, *mix), base) for mix in exact)
    back_and_forth = [Steer("resid_post", 1, "all", v, s) for s in (3, -3)]
    assert apart(last(model, x, *back_and_forth), base) < 1e-12
    set_ = {"set": {FULL["resid_post"]: torch.stack([v, v * 0])}}
    mean, noise = (Ablate("resid_post", 1, "video", by, "set") for by in ("mean", "noise"))
    assert torch.equal(last(model, x, mean, sources=set_), last(model, x, noise, sources=set_)), "no spread, no noise"
    assert apart(last(model, x, constant, Ablate("resid_post", 1, "video", "mean")), last(model, x, constant)) < 1e-12
    assert torch.equal(last(model, x, Ablate("z", 1, "video")), last(model, x, Edit("z", 1, torch.zeros_like, "video")))


@torch.no_grad()
def test_back_patching_is_a_patch_by_what_another_block_gave():
    model = random_model("llava-video")
    x = item(model, 0)
    _, own = model.run_with_cache(x, names_filter="resid_post")
    back = last(model, x, Patch("resid_post", 0, "video", own, from_layer=2))
    moved = {"blocks.0.hook_resid_post": own["resid_post", 2]}
    assert torch.equal(back, last(model, x, Patch("resid_post", 0, "video", moved)))
    assert apart(back, last(model, x)) > 1e-6
    with pytest.raises(InterventionError, match="this model's blocks are numbered 0 to 2"):
        last(model, x, Patch("resid_post", 0, "video", own, from_layer=3))


@torch.no_grad()
def test_noise_depends_on_its_place_and_on_the_seed_alone():
    model = random_model("llava-video")
    x, longer = item(model, 0), item(model, 1)
    normal = torch.tensor([[0.0], [1.0]]).expand(2, model.cfg.d_model)
    unit = {"unit": {f"blocks.{i}.hook_resid_post": normal for i in (0, 1)}}

    def drawn(inputs, layer=1, at="all", seed=0):
        noise = Ablate("resid_post", layer, at, "noise", "unit", seed)
        _, held = model.run_with_cache(inputs, names_filter="resid_post", interventions=noise, sources=unit)
        return held["resid_post", layer]

    whole = drawn(x)[0]
    chosen = x.layout.mask("video[1]+last")
    assert torch.equal(drawn(x, at="video[1]+last")[0, chosen], whole[chosen])
    assert torch.equal(drawn(VideoInputs.stack([longer, x]))[1, -len(whole) :], whole)
    spoken = x.extend(torch.tensor([[3, 4]]))
    assert torch.equal(drawn(spoken)[0, : len(whole)], whole)
    for other in (drawn(x, seed=1)[0], drawn(x, layer=0)[0], drawn(item(model, 0, seed=5))[0]):
        assert (other - whole).abs().max() > 0.1
    assert abs(whole.mean()) < 0.05 and abs(whole.std() - 1) < 0.05
    question = model.inputs_from_tensors(torch.cat([x.tokens, x.tokens[:, -2:]], 1), x.pixel_values[0])
    video = x.layout.mask("video")
    assert torch.equal(drawn(question)[0, : len(video)][video], whole[video]), "another question on the video"


@torch.no_grad()
def test_a_function_is_told_where_it_writes():
    model, seen = random_model("llava-video"), []
    items = [item(model, 0), item(model, 1)]
    edit = Edit("z", "1:3", lambda act, at: seen.append(at) or act, "last")
    batch = VideoInputs.stack(items).extend(torch.tensor([[3], [4]]))
    last(model, batch, edit)
    told = [(at.layer, at.item, at.positions.tolist()) for at in seen]
    ends = [x.layout.n_tokens for x in items]
    assert told == [(layer, i, [p]) for layer in (1, 2) for i, n in enumerate(ends) for p in (n - 1, n)]
    assert [at.layout for at in seen[:4]] == [batch.layouts[0]] * 2 + [batch.layouts[1]] * 2


@torch.no_grad()
def test_equal_writes_are_evaluated_once_in_a_sweep():
    model = random_model("llava-onevision")
    x, v = item(model, 0), vector(model, "resid_post")
    makers = [
        lambda: Ablate("resid_post", 1, "video"),
        lambda: Steer("resid_post", 1, "video", v.clone()),
        lambda: Edit("resid_post", 1, torch.abs, "video"),
        lambda: Patch("embed", at="video", source="other"),
        lambda: Ablate("resid_post", 1, "question", "noise"),
    ]
    for make in makers:
        once, twice = (Sweep(N, [x], [(make(),) for _ in range(n)] + [()]).counts for n in (1, 3))
        assert once == twice
        assert once != Sweep(N, [x], [()]).counts


@torch.no_grad()
def test_an_embedding_is_written_where_its_positions_are_and_before_all_else():
    model = random_model("llava-video")
    x, v = item(model, 0), vector(model, "embed")
    same = [Steer("embed", at="video", vector=v), Steer("resid_pre", 0, "video", v)]
    got = [last(model, x, s) for s in same]
    assert torch.equal(*got) and apart(got[0], last(model, x)) > 1e-6
    mix = [Edit("resid_pre", 0, torch.abs, "video"), same[0], EarlyExit(2)]
    assert apart(sweep(model, [x], [mix, ()])[0][0], last(model, x, *mix)[0]) < ROUNDING
    with pytest.raises(InterventionError, match="it writes before block 0, and the run begins at block 0; run the inp"):
        model(model.embed_inputs(x), start_at_layer=0, inputs=x, interventions=same[0])


@torch.no_grad()
def test_means_over_positions_that_a_key_value_cache_holds_are_refused():
    model, mean = random_model("llava-video"), Ablate("z", 1, "text", "mean")
    x, kv = item(model, 0), KVCache(N)
    model(x, kv_cache=kv)
    with pytest.raises(InterventionError, match="holds some of these positions, whose moments nobody took"):
        model(x.extend(torch.tensor([[5]])), kv_cache=kv, interventions=mean)


REFUSED = [
    (Ablate("z", 1, "text", "mean", "set"), {"set": {}}, "its reference set has nothing of 'blocks.1.attn.hook_z'"),
    (Ablate("z", 1, "text", "mean", "set"), {"set": {FULL["z"]: torch.ones(2, 3)}}, "holds moments of .3,., and 'z'"),
    (Ablate("z", 1, "text", "noise", "set"), {"set": {FULL["z"]: torch.ones(3)}}, "its reference set gave .3,.; give"),
    (Ablate("z", 1, "text", "mean", "set"), None, r"takes its moments from 'set'; pass sources=\{'set': moments\}"),
    (
        Steer("resid_post", 1, "text", torch.ones(3)),
        None,
        r"its vector is \(3,\), and 'resid_post' holds \(64,\)",
    ),
    (Steer("resid_post", 1, "text", "v"), {"v": torch.ones(64, dtype=torch.long)}, "its vector is torch.int64"),
    (Steer("resid_post", 1, "text", "v"), None, r"takes its vector from 'v'; pass sources=\{'v': vector\}"),
    (Patch("z", 1, "text", "it"), {"it": {}}, "patch z layer 2 at text: its source holds no 'blocks.1.attn.hook_z'"),
    (
        Patch("z", 1, "text", "it"),
        {"it": {FULL["z"]: torch.ones(1, 99, 8, 4)}},
        r"its source holds \(8, 4\) numbers for a position, and there are \(8, 8\) here",
    ),
    (Ablate("resid_pst", 1), None, r"hook 'resid_pst' does not exist \(nearest: 'resid_post'"),
    (Ablate("vision.resid_pst", 1), None, "hook 'vision.resid_pst' does not exist"),
    (Ablate("vision.resid_post", 99, "video"), None, "layers 99:100 reach beyond this model's"),
    (Ablate("projector.deepstack.0.in", at="video"), None, "hook 'projector.deepstack.0.in' does not exist"),
]


@pytest.mark.parametrize(("value", "sources", "said"), REFUSED)
def test_what_does_not_fit_is_refused_in_words(value, sources, said):
    model = random_model("llava-onevision")
    with pytest.raises(InterventionError, match=said):
        model(item(model, 0), interventions=value, sources=sources)
