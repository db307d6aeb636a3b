"""Encoding a video once changes no bit of what is asked of it."""

import copy

import pytest
import torch

from hookedvid import LV_K, VT_K, HookedVideoLLM, LayerRange
from hookedvid.errors import HookError, InputError
from hookedvid.sweep.run import sweep
from hookedvid.values.inputs import VideoInputs
from models import random_inputs, random_model


@pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning")
@pytest.mark.parametrize("family", ["llava-onevision", "internvideo2.5"])
def test_forwards_on_encoded_inputs_are_bitwise_those_on_pixels_and_run_no_tower(family, monkeypatch):
    model = random_model(family, torch.float32)
    inputs, plain = random_inputs(model), random_model("text")
    kept = model.encoded(inputs)
    assert model.encoded(kept) is kept and plain.encoded(random_inputs(plain)).features == ()
    wanted = [model(inputs, interventions=c) for c in ((), LV_K, VT_K.at(LayerRange(0, 2)))]
    monkeypatch.setattr(model.vision, "forward", lambda *_: pytest.fail("the tower ran"))
    for c, logits in zip(((), LV_K, VT_K.at(LayerRange(0, 2))), wanted, strict=True):
        assert torch.equal(model(kept, interventions=c), logits)
    with pytest.raises(HookError, match="no video to encode"):
        model.run_with_hooks(kept, fwd_hooks=[("vision.hook_out", lambda x, hook: None)])


@torch.no_grad()
def test_features_are_taken_by_the_tower_and_weights_that_made_them_alone():
    model = random_model("llava-onevision", n_layers=1)
    inputs = random_inputs(model)
    kept = model.encoded(inputs)
    same = HookedVideoLLM.from_config(model.cfg, seed=5).double()
    same.load_state_dict(model.state_dict())
    assert torch.equal(same(kept), model(inputs)), "another load of the same weights"
    unlike = {
        "another model": HookedVideoLLM.from_config(model.cfg).double(),
        "another dtype": copy.deepcopy(model).float(),
        "its own weights, changed since": copy.deepcopy(model),
        "its own weights, one value changed since": copy.deepcopy(model),
        "another family": random_model("llava-video", n_layers=1),
    }
    unlike["its own weights, changed since"].projector.out.weight.mul_(1.5)
    one = unlike["its own weights, one value changed since"].vision.blocks[0].mlp.out.weight
    assert one.flatten()[1] != 0 and one.numel() > 32  # a value that no sample of few looks at
    one.view(-1)[1] *= 2
    for name, other in unlike.items():
        for run in (other, lambda x, other=other: sweep(other, [x], [()])):
            with pytest.raises(InputError, match="features that another tower, or other weights of this one, made"):
                run(kept)
                pytest.fail(name)
    other = unlike["another model"].encoded(inputs)
    with pytest.raises(InputError, match="features that unlike towers made"):
        VideoInputs.stack([kept, other])
    mixed = VideoInputs.stack([inputs, kept])
    with pytest.raises(InputError, match="another tower"):
        unlike["another model"].encoded(mixed)


@torch.no_grad()
@pytest.mark.parametrize("at", ["vision.blocks.0.hook_resid_post", "projector.hook_out"])
def test_hooks_on_a_tower_that_does_not_run_are_refused(at):
    model = random_model("llava-onevision", n_layers=1)
    inputs = random_inputs(model)
    kept = model.encoded(inputs)
    with model.hooks([(at, lambda a, hook: a * 0)]):
        for batch in (kept, VideoInputs.stack([kept, inputs])):
            with pytest.raises(HookError, match=f"{at}.* cannot act on inputs whose features are given"):
                model(batch)
    assert torch.equal(model(kept), model(inputs))


def test_a_batch_encodes_the_items_that_are_not_yet():
    model = random_model("llava-onevision", torch.float64)
    one, other, text = random_inputs(model), random_inputs(model, n_frames=3, seed=1), model.prepare(None, "hm ?")
    whole = model(VideoInputs.stack([one, text, other]))
    mixed = VideoInputs.stack([one, text, model.encoded(other)])
    assert len(mixed.to_encode) == 1
    assert torch.allclose(model(mixed), whole, rtol=0, atol=1e-10)  # frames of a batch share matrix products
    both = model.encoded(mixed)
    assert torch.equal(model(both), model(mixed)) and both.to_encode == ()
