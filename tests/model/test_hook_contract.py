"""What every hook point promises: to fire once, with its stated shape, and to change only what is edited there."""

import inspect
import math
import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from hookedvid.errors import HookError
from hookedvid.model.flops import patch_grid
from hookedvid.values.inputs import VideoInputs
from models import MODELS, ROUNDING, UNLIKE, apart, random_inputs, random_model

pytestmark = pytest.mark.shapes_unchecked

# Listening here takes another kernel in its layer: the explicit one, or one that is given a mask.
SWITCHING = ("hook_attn_scores", "hook_pattern", "hook_mask")


source_of = cache(inspect.getsource)  # it parses the whole file


def short(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def case(name: str) -> tuple:
    model = random_model(name, n_layers=2)
    return model, random_inputs(model, n_frames=4)


@pytest.fixture(autouse=True, scope="module")
def no_hook_stays_behind():
    yield
    for name in MODELS:
        model = random_model(name, n_layers=2)
        assert not model.list_hooks() and not [m for m in model.modules() if m._forward_hooks or m._backward_hooks]


def advertised(model, name: str, inputs: VideoInputs) -> tuple[int, ...]:
    """The shape that the comment beside a hook point states, its words replaced by this model's sizes."""
    parent, _, hook = name.rpartition(".")
    source = source_of(type(model.mod_dict[parent] if parent else model))
    stated = re.search(rf"\b{hook}(?: = HookPoint\(\)|: HookPoint)  # \[([^]]+)\]", source)
    assert stated, f"{name} states no shape"
    cfg = model.cfg
    if name.startswith(("vision.", "projector.")):
        p, v, units = cfg.projector, cfg.vision, len(inputs.layout.steps)
        grid = patch_grid(cfg, inputs.layout)
        n_patches = math.prod(grid)
    if name.startswith("vision."):
        n = n_patches + v.cls_token
        sizes = {"unit": units, "batch": units, "pos": n, "query": n, "key": n, "patch": n_patches}
        sizes |= {"head": v.n_heads, "kv_head": v.n_heads, "d_head": v.d_head, "d_mlp": v.d_mlp, "d_model": v.d_model}
    elif name.startswith("projector."):
        n_patches += v.cls_kept
        out = p.merge.tokens_per_frame if p.merge else math.prod(p.cells(*grid)) + v.cls_kept
        pooled_late = p.pool != "none" and not p.pool_before and hook != "hook_out"
        token = n_patches if pooled_late else out
        pos, d_model = (n_patches, v.d_model) if ".ln_patch." in name else (token, p.d_in)
        sizes = {"unit": units, "batch": units, "patch": n_patches, "token": token, "pos": pos, "d_model": d_model}
        sizes |= {"d_vision": v.d_model, "d_in": p.d_in, "d_out": p.d_out, "d_hidden": p.d_hidden or p.d_out}
    else:
        n = inputs.layout.n_tokens
        sizes = {"batch": 1, "pos": n, "query": n, "key": n, "head": cfg.n_heads, "kv_head": cfg.n_key_value_heads}
        sizes |= {"d_model": cfg.d_model, "d_head": cfg.d_head, "d_mlp": cfg.d_mlp}
    sizes |= {"1": 1, "head or 1": 1}
    shape = tuple(sizes[word] for word in stated[1].split(", "))
    if (which := re.search(r"\.([qk])_norm\.", name)) is None:
        return shape
    attn = model.mod_dict[parent.rpartition(".")[0]]
    n_heads = attn.n_heads if which[1] == "q" else attn.n_kv_heads
    width = 1 if hook == "hook_scale" else attn.d_head
    if attn.qk_norm == "head":
        return (*shape[:2], n_heads, width)
    return (*shape[:2], width if hook == "hook_scale" else n_heads * width)


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_every_point_fires_once_with_its_stated_shape(name):
    model, inputs = case(name)
    seen: dict[str, list[tuple]] = {n: [] for n in model.hook_dict}
    model.run_with_hooks(inputs, fwd_hooks=[(n, lambda a, hook: seen[hook.name].append(tuple(a.shape))) for n in seen])
    assert seen == {n: [advertised(model, n, inputs)] for n in seen}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_listening_moves_no_logit(name):
    model, inputs = case(name)
    logits = model(inputs)
    for answer in (None, "itself"):
        points = [n for n in model.hook_dict if short(n) not in SWITCHING]
        listen = [(n, lambda a, hook, answer=answer: a if answer else None) for n in points]
        assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=listen), logits)
    for point in [n for n in model.hook_dict if short(n) in SWITCHING]:
        heard = model.run_with_hooks(inputs, fwd_hooks=[(point, lambda a, hook: None)])
        # Another order of the same sums.
        assert apart(heard, logits) < ROUNDING, point


def begun(model, inputs: VideoInputs) -> Callable[[str], VideoInputs]:
    """What a run begins with that is edited at a point: with the tower, where the point is no later."""
    encoded = model.encoded(inputs)
    return lambda point: inputs if point.startswith(("vision.", "projector.")) else encoded


def noisy(a: Tensor, hook, in_place: bool = False) -> Tensor | None:
    generator = torch.Generator().manual_seed(0)
    if a.dtype == torch.bool:
        edited = a & (torch.rand(a.shape, generator=generator) < 0.5)
    else:
        size = 0.3 * a[a.isfinite()].abs().mean()  # scores are -inf where cut, and stay so
        edited = a + size * torch.randn(a.shape, generator=generator, dtype=a.dtype)
    if not in_place:
        return edited
    a.copy_(edited)
    return None


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_an_edit_at_any_point_reaches_the_last_logits_alone_and_in_place_alike(name):
    model, inputs = case(name)
    intact, start = model(inputs), begun(model, inputs)
    # Of families that have the kind of sequence of another, the first blocks and the last.
    for point in [p for p in model.hook_dict if name in UNLIKE or ".1." not in p]:
        logits = model.run_with_hooks(start(point), fwd_hooks=[(point, noisy)])
        assert apart(logits[:, -1], intact[:, -1]) > 1e-4, point
        # Between them these have every module there is; a second block is like the first.
        if name in ("longva", "internvideo2.5") and "blocks.1." not in point:
            again = model.run_with_hooks(
                start(point), fwd_hooks=[(point, lambda a, hook: noisy(a, hook, in_place=True))]
            )
            assert apart(again, logits) < ROUNDING, f"{point}: edited in place"
    assert torch.equal(model(inputs), intact)


def other_dtype(a: Tensor, hook) -> Tensor:
    return a.int() if a.dtype == torch.bool else a.float()


NOT_AS_GIVEN = {
    "one of a batch's": lambda a, hook: a[:1],
    "one axis less": lambda a, hook: a[0],
    "one position's": lambda a, hook: a[:, :1],
    "a number": lambda a, hook: a.new_zeros(()),
    "another dtype": other_dtype,
    "a tuple": lambda a, hook: (a,),
    "plain Python": lambda a, hook: False,
}


@torch.no_grad()
@pytest.mark.parametrize("way", NOT_AS_GIVEN)
def test_what_a_hook_returns_is_as_what_it_was_given_or_refused(way):
    model = random_model("llava-video", n_layers=1)
    inputs = random_inputs(model, n_frames=2)
    batch = VideoInputs.stack([inputs, inputs])
    for point in [n for n in model.hook_dict if ".1." not in n]:
        if way == "one position's" and point.endswith("hook_mask"):  # which all heads share in one already
            continue
        with pytest.raises(HookError, match=f"a hook on '{re.escape(point)}' returned "):
            model.run_with_hooks(batch, fwd_hooks=[(point, NOT_AS_GIVEN[way])])
    heads = model.cfg.n_heads
    own = model.run_with_hooks(batch, fwd_hooks=[("blocks.0.attn.hook_mask", lambda a, hook: a.repeat(1, heads, 1, 1))])
    assert apart(own, model(batch)) < ROUNDING, "a mask of each head's own"


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-video", "internvideo2.5"])
def test_an_edit_anywhere_is_the_same_whatever_else_is_listened_to(name):
    model = random_model(name, n_layers=1)
    inputs = random_inputs(model, n_frames=4)
    start = begun(model, inputs)
    quiet = [n for n in model.hook_dict if short(n) not in SWITCHING]
    watched = [n for n in model.hook_dict if n not in quiet and ".1." not in n]  # a second block is like the first
    for i, at in enumerate([n for n in model.hook_dict if ".1." not in n]):
        edit = (at, noisy)
        alone = model.run_with_hooks(start(at), fwd_hooks=[edit])
        listen = [(n, lambda a, hook, k=k: a if k % 2 else None) for k, n in enumerate(quiet) if n != at]
        assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=[edit, *listen]), alone), at
        beside = [n for n in watched if n != at and n.startswith("vision.") == at.startswith("vision.")]
        for point in beside[i % 2 :: 2]:  # each beside every other place
            heard = model.run_with_hooks(start(at), fwd_hooks=[edit, (point, lambda a, hook: None)])
            assert apart(heard, alone) < ROUNDING, (at, point)  # another order of the same sums


@torch.no_grad()
@pytest.mark.parametrize("norm", ["hook_scale", "hook_normalized"])
@pytest.mark.parametrize("tower", ["", "vision."])
def test_a_fork_and_its_norm_can_be_edited_at_unlike_positions_alone(norm, tower):
    model, inputs = case("internvideo2.5" if tower else "llava-video")
    block = f"{tower}blocks.0."

    def edit(*positions: int) -> Callable:
        def double(a: Tensor, hook) -> Tensor:
            a = a.clone()
            a[:, list(positions)] *= 2
            return a

        return double

    fork, norm = block + "attn.hook_k_input", block + "ln1." + norm
    keys = block + "attn.hook_k"

    def cached(*hooks: tuple) -> Tensor:
        with model.hooks(hooks):
            return model.run_with_cache(inputs, names_filter=keys)[1][keys]

    one, other = cached((fork, edit(1, 2))), cached((norm, edit(3)))
    both = cached((fork, edit(1, 2)), (norm, edit(3)))
    assert torch.equal(both[:, 1:3], one[:, 1:3]) and torch.equal(both[:, 3], other[:, 3])
    with pytest.raises(HookError, match=f"{fork}' and '{block}ln1.hook_normalized' .* the same positions"):
        cached((fork, edit(1, 2)), (norm, edit(2, 3)))


def test_listening_on_forks_and_results_moves_no_gradient():
    model, inputs = case("llava-video")
    points = [n for n in model.hook_dict if n.startswith("blocks.") and short(n) not in SWITCHING]
    shared = [n for n in points if short(n) not in ("hook_q_input", "hook_k_input", "hook_v_input", "hook_result")]
    found = []
    for names in (shared, points):
        _, cache = model.run_with_cache(inputs, names_filter=names, return_type="loss", incl_bwd=True)
        found.append(cache)
    for name in shared:
        assert apart(found[1][f"{name}_grad"], found[0][f"{name}_grad"]) < 1e-9, name
    read = found[1]["blocks.0.attn.hook_q_input_grad"]
    assert read.abs().amax((0, 1, 3)).min() > 0, "each head's own part of the stream has a gradient"


@torch.no_grad()
@pytest.mark.parametrize("fork", ["hook_q_input", "hook_k_input", "hook_v_input"])
def test_a_head_can_be_given_an_input_of_its_own(fork):
    model, inputs = case("llava-video")

    def edit(a, hook):
        a[:, :, 1] = 0

    _, intact = model.run_with_cache(inputs)
    with model.hooks([(f"blocks.0.attn.{fork}", edit)]):
        _, cache = model.run_with_cache(inputs)
    for hook in ("q", "k", "v"):
        moved = (cache[hook, 0] - intact[hook, 0]).abs().amax((0, 1, 3)) > 1e-6
        assert moved.nonzero().flatten().tolist() == ([1] if hook == fork[5] else []), hook
    assert torch.equal(cache["resid_pre", 0], intact["resid_pre", 0]), "an edit in place must not leave the fork"
