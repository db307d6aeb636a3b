"""On a device that is not the CPU: no operation mixes the two. Checked on tensors that know their device alone."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hookedvid import LV_K, VS_K, VT_K, HookedVideoLLM, LayerRange, small_config
from hookedvid.families import FAMILIES
from hookedvid.loading import put
from hookedvid.plan import RunPlan

RUNS = {
    "intact": (),
    "knockouts": (LV_K, VT_K.at(LayerRange(1, 2)), VS_K.at(LayerRange(0, 1))),
}


@pytest.mark.filterwarnings("ignore::hookedvid.layout.FrameBlendWarning")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("run", RUNS)
def test_blocks_run_on_their_own_device(family, run):
    """Positions and masks are made on the CPU; what the blocks are given is where the stream is."""
    model = HookedVideoLLM.from_config(small_config(family))
    assert model.cfg.vision is not None and model.cfg.decoder is not None
    size = model.cfg.vision.image_size
    inputs = model.inputs_from_tensors(torch.tensor([1, 2, -200, 3, 4]), torch.randn(4, 3, size, size))
    plan = RunPlan(model.cfg.decoder, inputs, RUNS[run], None)
    masks = [plan.mask(i, plan.pos, plan.pos) for i in range(model.cfg.n_layers)]  # their values are needed: made first
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        for name, p in list(model.named_parameters()):
            put(model, name, mode.from_tensor(p.detach()).to("cuda"))
        on_gpu = [(m if m is None else m.to(torch.device("cuda")), causal) for m, causal in masks]
        plan.mask = lambda layer, *_: on_gpu[layer]
        stream = torch.empty(*inputs.tokens.shape, model.cfg.d_model, device="cuda")
        out = model.unembed(model.ln_final(model._run_blocks(stream, plan, None, 0, model.cfg.n_layers, None)))
        assert out.device.type == "cuda" and out.shape[-1] == model.cfg.d_vocab
