"""Writes to tower and projector: the rows that a position stands for, found apart by what moves what."""

from functools import cache

import pytest
import torch

from hookedvid import Ablate, Edit, Patch, Session, Steer, VideoInputs
from hookedvid.errors import InterventionError
from hookedvid.nn.kv import KVCache
from hookedvid.sweep.run import sweep
from hookedvid.sweep.tree import shareable
from hookedvid.values.effects import effects
from models import ROUNDING, apart, random_model, rich_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]

N = 3
# Pooled behind the MLP with newlines, before it under a cut class token, class tokens kept, class tokens that shift the
# patches, patches joined in pairs of frames with DeepStack, frames that keep their shape.
FAMILIES = ("llava-video", "llava-next-video", "video-llava", "llava-onevision-1.5", "qwen3-vl", "videollama3")
POINTS = ("vision.patch_embed", "vision.resid_pre", "vision.z", "vision.out", "projector.in", "projector.mlp_in", "projector.out")  # fmt: skip  # noqa: E501
LOGITS = {"logits_to_keep": 1}


def item(family: str, which: int = 0, seed: int = 0) -> VideoInputs:
    return rich_inputs(random_model(family), (4, 2)[which], seed=which + seed, n_text=(8, 11)[which])


def full(point: str, layer: int = 1) -> str:
    inside = {"vision.resid_pre": "hook_resid_pre", "vision.z": "attn.hook_z"}
    part, _, name = point.rpartition(".")
    return f"vision.blocks.{layer}.{inside[point]}" if point in inside else f"{part}.hook_{name}"


def value(kind, point: str, *rest):
    return kind(point, 1 if point in ("vision.resid_pre", "vision.z") else "0:", *rest)


def frames(x: VideoInputs) -> torch.Tensor:
    """The step of every position that is made from pixels, -1 elsewhere."""
    return torch.tensor([
        -1 if s.role not in ("video", "cls") else s.frame // s.frames for s in x.layout.segments for _ in range(len(s))
    ])  # fmt: skip


@cache
def moved(family: str, point: str, which: int) -> torch.Tensor:
    """Which rows of a hook point [row] move which positions [pos]: pushed one by one."""
    model, x = random_model(family), item(family, which)
    shapes = []

    def push(a, hook, row=None):
        shapes.append(a.shape[:2])
        a = a.clone().flatten(0, 1)
        if row is not None:
            a[row] += torch.randn(a[row].shape, generator=torch.Generator().manual_seed(1), dtype=a.dtype)
        return a.view(*shapes[-1], *a.shape[1:])

    def positions(row=None) -> torch.Tensor:
        with model.hooks([(full(point), lambda a, hook: push(a, hook, row))]):
            made = torch.zeros(x.layout.n_tokens, model.cfg.d_model, dtype=torch.float64)
            made[x.tokens[0] < 0] = model.encode_video(x)[:, : model.cfg.d_model]
        return made

    with torch.no_grad():
        whole = positions()
        return torch.stack([(positions(r) - whole).abs().sum(1) > 1e-9 for r in range(shapes[0].numel())])


def stands_for(family: str, point: str, which: int, at: str) -> torch.Tensor:
    """The rows that selected positions are made of, ascending; of the tower, as its last rows say."""
    model, x = random_model(family), item(family, which)
    vision, chosen, step = model.cfg.vision, x.layout.mask(at), frames(x)
    tower = point.startswith("vision.")
    by = moved(family, "vision.out" if tower else point, which)
    rows = by[:, chosen & (step >= 0)].any(1)
    per_step = len(rows) // len(x.layout.steps)
    if tower and vision.cls_token and not vision.cls_kept:
        for t in range(len(x.layout.steps)):
            rows[t * per_step] |= bool(chosen[step == t].all())
    if point == "vision.patch_embed" and vision.cls_token:
        rows = rows.view(-1, per_step)[:, 1:].flatten()
    return rows.nonzero()[:, 0]


def by_hand(point: str, rows: torch.Tensor, fn):
    def hook(act, hook):
        flat = act.flatten(0, 1).clone()
        flat[rows] = fn(flat[rows])
        return flat.view(act.shape)

    return [(full(point), hook)]


@torch.no_grad()
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_position_stands_for_the_rows_that_its_token_is_made_of(family, point):
    model, x = random_model(family), item(family)
    base = model(x, **LOGITS)
    for at in ("steps[1]", "video[0]+newlines" if "newline" in x.layout.roles else "video"):
        rows = stands_for(family, point, 0, at)
        hooks = by_hand(point, rows, lambda r: r * 0)
        want = model.run_with_hooks(x, fwd_hooks=hooks, **LOGITS)
        got = model(x, interventions=value(Ablate, point, at), **LOGITS)
        assert torch.equal(got, want) and not torch.equal(got, base)


KINDS = {
    "mean": lambda point, at, v: value(Ablate, point, at, "mean"),
    "noise of a set": lambda point, at, v: value(Ablate, point, at, "noise", "set", 1),
    "resample": lambda point, at, v: value(Ablate, point, at, "resample", "other"),
    "steer": lambda point, at, v: value(Steer, point, at, v, 2),
    "edit": lambda point, at, v: value(Edit, point, lambda r: r.flip(1), at),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("point", ["vision.resid_pre", "projector.out"])
def test_every_kind_writes_what_is_written_by_hand_alone_and_in_batches(kind, point):
    family, at = "llava-next-video", "video[1]+patches"
    model, items, others = random_model(family), [item(family, i) for i in (0, 1)], [item(family, i, 7) for i in (0, 1)]
    width = model.cfg.vision.d_model if point.startswith("vision") else model.cfg.d_model
    v = torch.randn(width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sets = {"set": {full(point): torch.stack([v, v * 0])}}
    made = KINDS[kind](point, at, v)
    wanted = []
    for i, (x, other) in enumerate(zip(items, others, strict=True)):
        _, theirs = model.run_with_cache(other, names_filter=full(point))
        rows = stands_for(family, point, i, at)
        there = theirs[full(point)].flatten(0, 1)[rows]
        fn = {
            "mean": lambda r: r.mean(0).expand_as(r), "noise of a set": lambda r: v.expand_as(r),
            "resample": lambda r, there=there: there, "steer": lambda r: r + 2 * v, "edit": lambda r: r.flip(0),
        }[kind]  # fmt: skip
        wanted.append(model.run_with_hooks(x, fwd_hooks=by_hand(point, rows, fn), **LOGITS))
        got = model(x, interventions=made, sources={**sets, "other": theirs}, **LOGITS)
        assert apart(got, wanted[-1]) < ROUNDING and apart(got, model(x, **LOGITS)) > 1e-9
    _, theirs = model.run_with_cache(VideoInputs.stack(others), names_filter=full(point))
    both = model(VideoInputs.stack(items), interventions=made, sources={**sets, "other": theirs}, **LOGITS)
    assert all(apart(g, w[0]) < ROUNDING for g, w in zip(both, wanted, strict=True))
    how = {"max_new_tokens": 3, "stop_at_eos": False, "return_type": "tokens", "sources": {**sets, "other": theirs}}
    ids = [model.generate(VideoInputs.stack(items), made, use_past_kv_cache=kept, **how) for kept in (True, False)]
    assert torch.equal(*ids)


@torch.no_grad()
def test_noise_in_the_tower_is_an_items_own():
    family, noise = "llava-onevision-1.5", Ablate("vision.resid_post", 0, "video", "noise", seed=3)
    model = random_model(family)
    items = [item(family, i) for i in (0, 1)]
    tall = model.inputs_from_tensors(
        torch.tensor([1, 2, -200, 5, 6]), torch.randn(2, 3, 56, 28), second_per_grid_ts=1.0
    )
    alone = [model(x, interventions=noise, **LOGITS)[0] for x in (*items, tall)]
    both = model(VideoInputs.stack([*items, tall]), interventions=noise, **LOGITS)  # frames of unequal sizes
    assert all(apart(g, w) < ROUNDING for g, w in zip(both, alone, strict=True))
    assert apart(alone[0], model(items[0], **LOGITS)[0]) > 1e-6


@torch.no_grad()
def test_merged_clips_are_written_whole():
    model, x = random_model("internvideo2.5"), item("internvideo2.5")
    inside, behind = Ablate("vision.resid_post", 0, "video[0:2]"), Ablate("projector.mlp_in", at="video[0:2]")
    with pytest.raises(
        InterventionError, match=r"merged wherever they are alike, so that no patch is one token's; select"
    ):
        model(x, interventions=inside)
    n = model.cfg.projector.merge.tokens_per_frame
    want = model.run_with_hooks(x, fwd_hooks=by_hand("projector.mlp_in", torch.arange(2 * n), lambda r: r * 0))
    assert torch.equal(model(x, interventions=behind), want)
    tower = [("vision.blocks.0.hook_resid_post", lambda a, hook: a * 0)]
    whole = model(x, interventions=Ablate("vision.resid_post", 0, "video[0:4]"))
    assert torch.equal(whole, model.run_with_hooks(x, fwd_hooks=tower))


@torch.no_grad()
def test_features_made_beforehand_are_made_again_under_writes_to_what_makes_them():
    family = "qwen3-vl"
    model, x = random_model(family), item(family)
    known, writes = (
        model.encoded(x),
        [Ablate("vision.resid_post", at="steps[1]"), Ablate("projector.deepstack.0.in", at="video")],
    )
    for write in writes:
        assert torch.equal(model(known, interventions=write), model(x, interventions=write))
        assert not torch.equal(model(known, interventions=write), model(x))
    assert (
        not effects([writes[0]], N).cuts[0] and effects(writes, N).encodes and not effects([Ablate("embed")], N).encodes
    )
    _, cache = model.run_with_cache(known, names_filter="vision.resid_post", interventions=writes[0])
    assert (cache["vision.blocks.0.hook_resid_post"][1] == 0).all()
    with pytest.raises(InterventionError, match=r"what makes the video's features, which are made once; run"):
        sweep(model, [x], [writes[0]])
    with pytest.raises(InterventionError, match="the video's features, which are made once; run this"):
        Session(model, known).logits(writes[0])
    assert not shareable([writes[0]], x.layout, N)
    with pytest.raises(InterventionError, match="it writes before block 0, and the run begins at block 1"):
        model(model.embed_inputs(x), start_at_layer=1, inputs=x, interventions=writes[0])


@torch.no_grad()
def test_what_stands_for_no_rows_is_refused_in_words():
    model, x = random_model("llava-video"), item("llava-video")
    refused = {
        "question": "question is text, which tower and projector have not read; select positions of the video",
        "all": "options, question, system, template is text",
        "newlines": "newlines stand for no rows of tower or projector; select 'patches'",
    }
    for at, said in refused.items():
        with pytest.raises(InterventionError, match=said):
            model(x, interventions=Ablate("vision.out", at=at))
    other = item("llava-video", 1, seed=7)
    _, theirs = model.run_with_cache(other, names_filter="vision.out")
    with pytest.raises(InterventionError, match=r"rows here, .* in the source; both must be equally many"):
        model(x, interventions=Patch("vision.out", at="video", source=theirs))
    with pytest.raises(InterventionError, match=r"and 'vision.out' holds .*; give as many"):
        model(x, interventions=Steer("vision.out", at="video", vector=torch.ones(3)))
    text = random_model("text")
    with pytest.raises(InterventionError, match=r"hook 'vision.out' does not exist: this model reads no video"):
        text(torch.tensor([[1, 2]]), interventions=Ablate("vision.out"))


@torch.no_grad()
def test_steps_of_a_generation_do_not_encode_again():
    model, x, ran = random_model("llava-next-video"), item("llava-next-video"), []
    write, kv = Edit("projector.out", None, lambda r: ran.append(1) or r * 2, "video"), KVCache(N)
    first = model(x, kv_cache=kv, interventions=write, **LOGITS)
    grown = x.extend(first[:, -1].argmax(-1, keepdim=True))
    step = model(grown, kv_cache=kv, interventions=write, **LOGITS)
    assert len(ran) == 1
    assert apart(step, model(grown, interventions=write, **LOGITS)) < ROUNDING
