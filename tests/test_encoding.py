"""Encoding a video once changes no bit of what is asked of it."""

import pytest
import torch

from hookedvid import LV_K, VT_K, LayerRange
from hookedvid.errors import HookError
from hookedvid.inputs import VideoInputs
from models import random_inputs, random_model


@pytest.mark.filterwarnings("ignore::hookedvid.layout.FrameBlendWarning")
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


def test_a_batch_encodes_the_items_that_are_not_yet():
    model = random_model("llava-onevision", torch.float64)
    one, other, text = random_inputs(model), random_inputs(model, n_frames=3, seed=1), model.prepare(None, "hm ?")
    whole = model(VideoInputs.stack([one, text, other]))
    mixed = VideoInputs.stack([one, text, model.encoded(other)])
    assert len(mixed.to_encode) == 1
    assert torch.allclose(model(mixed), whole, rtol=0, atol=1e-10)  # frames of a batch share matrix products
    both = model.encoded(mixed)
    assert torch.equal(model(both), model(mixed)) and both.to_encode == ()
