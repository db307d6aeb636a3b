"""The way back through attention under knockouts, by finite differences; no graph where none is asked for."""

from dataclasses import replace

import pytest
import torch

from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.nn.attention import attend
from hookedvid.nn.head_groups import structures
from hookedvid.nn.hooks import HookPoint
from hookedvid.sweep.run import sweep
from hookedvid.sweep.session import Session
from hookedvid.values.interventions import LV_K, VS_K, VT_K, Ablate, EarlyExit, Knockout, Replace
from hookedvid.values.masks import masks_of
from models import laid_out, random_model, rich_inputs

pytestmark = pytest.mark.shapes_unchecked

HEADS = range(4)
CUT = {
    "causal": (),
    "text from video": (LV_K,),
    "between frames": (VT_K,),
    "inside frames": (replace(VS_K, keep_self=False),),
    "weights": (replace(VT_K, weight=0.3), replace(LV_K, weight=2.0, heads=[1, 2])),
    "empty rows": (Knockout("all", "video", keep_self=False),),
}


@pytest.mark.usefixtures("shapes_checked")
@pytest.mark.parametrize("what", CUT)
def test_kernels_go_back_as_finite_differences_do(what):
    layout = laid_out(3, 2, "frame", 2, 4)
    cuts, generator = tuple(k.cut for k in CUT[what]), torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, layout.n_tokens, n, 3, dtype=torch.float64, generator=generator).requires_grad_()
        for n in (4, 2, 2)
    )
    calls, mask = structures(layout, cuts, HEADS), masks_of(layout, cuts, HEADS)[None]
    assert calls is not None

    def dense(kernel):
        points = {"on_scores": HookPoint(), "on_pattern": HookPoint()}
        return lambda *qkv: attend(*qkv, mask, causal=False, kernel=kernel, **points)

    for run in (calls.attend, dense("sdpa"), dense("eager")):
        assert torch.autograd.gradcheck(run, (q, k, v), fast_mode=True)


RUNS = {
    "cuts": [VT_K, LV_K.at(1)],
    "values": [Replace("video", "text")],
    "writes": [Ablate("z", 0, at="video")],
    "exit": [EarlyExit(1)],
}


@pytest.mark.parametrize("what", RUNS)
def test_a_whole_run_goes_back_as_finite_differences_do(what):
    m = random_model("llava-video", n_layers=2)
    x = m.encoded(rich_inputs(m, 2))
    stream = m.embed_inputs(x)
    along = torch.randn(stream.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def run(t):
        return m(stream + t * along, start_at_layer=0, inputs=x, interventions=RUNS[what])[0, -1, :20]

    assert torch.autograd.gradcheck(run, torch.zeros((), dtype=torch.float64, requires_grad=True))


def test_no_verb_makes_a_graph_unless_one_is_asked_for():
    m = random_model("llava-video")
    x = rich_inputs(m)
    assert not any(p.requires_grad for p in HookedVideoLLM(m.cfg).parameters()) and torch.is_grad_enabled()
    held: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        found = [
            m(x), m(x, interventions=[VT_K, Replace("video", "text")]), m(x, stop_at_layer=2),
            m.run_with_hooks(x, fwd_hooks=[("blocks.0.hook_resid_pre", lambda act, hook: act * 2)]),
            *m.run_with_cache(x)[1].values(), m.encode_video(x), *sweep(m, [x], [[LV_K], [VT_K]])[0],
            Session(m, x).logits([LV_K]), m.attention(x)[0],
        ]  # fmt: skip
    assert not held and not any(t.requires_grad or t.grad_fn for t in found)
    m.requires_grad_()
    assert m(x).grad_fn is not None and not m.attribute(x, lambda logits: logits[:, -1, 0]).edges.requires_grad
    m.requires_grad_(False)
    assert all(p.grad is None for p in m.parameters())


def test_backward_hooks_get_gradients_of_stream_and_tower_without_weights():
    m = random_model("llava-video")
    x, seen = rich_inputs(m), {}
    points = [
        "vision.blocks.0.hook_resid_post",
        "projector.hook_out",
        "blocks.0.hook_resid_mid",
        "blocks.1.attn.hook_z",
    ]
    with m.hooks(bwd_hooks=[(n, lambda grad, hook: seen.update({hook.name: grad})) for n in points]):
        m.run_with_hooks(x, fwd_hooks=[("hook_embed", lambda act, hook: act.mul_(2))])[0, -1, 0].backward()
    assert set(seen) == set(points) and all(g.any() for g in seen.values())
    assert m(x).grad_fn is None and not m.listened()
