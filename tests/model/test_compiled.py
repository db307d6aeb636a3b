"""Compiled models keep no hook that comes after compilation: they run as they are written while anything listens."""

import copy
from collections.abc import Callable

import pytest
import torch

from hookedvid.values.interventions import Edit, Patch
from models import random_inputs, random_model

pytestmark = pytest.mark.shapes_unchecked


class Backend:
    """A compiler that only counts how often its graphs run."""

    runs = 0

    def __call__(self, graph: torch.fx.GraphModule, example: list) -> Callable:
        def run(*args):
            self.runs += 1
            return graph.forward(*args)

        return run


WAYS = ("torch.compile", "model.compile", "blocks replaced", "attn.compile")


def compiled(way: str, model, backend: Backend):
    if way == "torch.compile":
        return torch.compile(model, backend=backend)
    if way == "model.compile":
        model.compile(backend=backend)
    for i, block in enumerate(model.blocks):
        if way == "attn.compile":
            block.attn.compile(backend=backend)
        if way == "blocks replaced":
            model.blocks[i] = torch.compile(block, backend=backend)
    return model


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize("way", WAYS)
def test_hooks_edits_and_patches_act_in_compiled_models(way):
    plain = random_model("text", n_layers=1)
    inputs, other = random_inputs(plain), random_inputs(plain, seed=1)
    source = plain.run_with_cache(other, names_filter="resid_post")[1]
    model, backend = copy.deepcopy(plain), Backend()
    run = compiled(way, model, backend)
    torch._dynamo.reset()

    def double(a: torch.Tensor, hook=None) -> torch.Tensor:
        return a * 2

    hook = ("blocks.0.attn.hook_z", double)
    assert torch.equal(run(inputs), plain(inputs))
    assert bool(backend.runs) == (way != "torch.compile"), "blocks are compiled while nothing listens"
    before = backend.runs
    for change in (Edit("z", 0, double, "last"), Patch("resid_post", 0, "last", source)):
        assert torch.equal(run(inputs, interventions=change), plain(inputs, interventions=change))
    edited = plain.run_with_hooks(inputs, fwd_hooks=[hook])
    assert not torch.equal(edited, plain(inputs))
    with model.hooks([hook]):
        assert torch.equal(run(inputs), edited)
    assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=[hook]), edited)
    handle = model.blocks[0].attn.hook_z.register_forward_hook(lambda module, args, out: out * 2)
    assert torch.equal(run(inputs), edited), "plain torch's hooks too"
    handle.remove()
    found = model.attention(inputs, queries="last", layers=[0])[0]
    assert torch.equal(found, plain.attention(inputs, queries="last", layers=[0])[0])
    assert backend.runs == before
    assert torch.equal(run(inputs), plain(inputs)) and (backend.runs > before) == (way != "torch.compile")


@pytest.mark.parametrize("way", WAYS)
def test_compiled_models_are_saved_as_what_they_were(way, tmp_path):
    plain = random_model("text", n_layers=1)
    compiled(way, copy.deepcopy(plain), Backend()).save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path)
    inputs = random_inputs(plain)
    assert torch.equal(again(inputs), plain(inputs))
