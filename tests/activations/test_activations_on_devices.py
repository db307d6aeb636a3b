"""Lens, collected rows and features lie where they should: on the pretended device while a model runs, then here."""

import copy

import pytest
import torch

from hookedvid import VideoInputs, loss_recovered
from hookedvid.activations.rows import Taker
from hookedvid.activations.sae import SAE, Parts
from models import ROUNDING, random_model, rich_inputs
from pretend_device import bare, pretend_cuda

pytestmark = pytest.mark.shapes_unchecked


@pytest.fixture(autouse=True)
def device():
    with torch.no_grad(), pretend_cuda():
        yield


def there(model):
    away = copy.deepcopy(model)
    for name, p in list(away.named_parameters()):
        owner, _, last = name.rpartition(".")
        setattr(away.get_submodule(owner), last, torch.nn.Parameter(p.detach().to("cuda"), requires_grad=False))
    return away


def close(a, b) -> bool:
    return (bare(a) - b).abs().max() <= ROUNDING * b.abs().max()


@pytest.mark.parametrize("name", ["llava-onevision", "qwen3-vl"])
def test_they_are_alike_on_a_device(name):
    model = random_model(name, n_layers=2)
    away, x = there(model), rich_inputs(model)
    y, d = x.to(away.device), model.cfg.d_model
    assert y.tokens.device.type == away(y).device.type == "cuda"
    maps = {0: (torch.eye(d).double() * 2, torch.ones(d).double())}
    a, b = (m.lens(i, "video+last", of=[3], maps=maps) for m, i in ((away, y), (model, x)))
    assert torch.equal(a.tokens, b.tokens) and close(a.of_probs, b.of_probs) and a.probs.device.type == "cpu"
    names = ["hook_embed", "blocks.1.hook_resid_post", "vision.blocks.0.hook_resid_post"]
    for pool in (None, "mean", "frame", "last"):
        kept = []
        for m, i in ((away, y), (model, x)):
            batch = VideoInputs.stack([i, i])
            taker = Taker(m, batch.layouts, "video", pool, None)
            m.run_with_hooks(batch, fwd_hooks=[(n, taker) for n in names], record=taker.record, return_type=None)
            kept.append(taker.kept)
        for n in names:
            assert kept[0][n][1].values.device.type == "cpu" and close(kept[0][n][1].values, kept[1][n][1].values)
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((d, 9), (9,), (9, d), (d,))]
    sae = SAE(Parts(*numbers), "blocks.1.hook_resid_post")
    edit = sae.edit("resid_post", 1, 4, value=2, at="video")
    assert close(away(y, interventions=edit), model(x, interventions=edit))
    losses = loss_recovered(away, [y], sae, at="video"), loss_recovered(model, [x], sae, at="video")
    assert losses[0].recovered == pytest.approx(losses[1].recovered, rel=1e-9)
