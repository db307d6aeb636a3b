"""Our tower against transformers' CLIP, SigLIP and InternViT on the same weights, bitwise in float32."""

import pytest
import torch

from hf_models import SIX_BILLION, random_pixels, tower
from hookedvid import HookedVideoLLM

pytestmark = pytest.mark.shapes_unchecked

INTERNVL = [{"attention_bias": bias, "use_mean_pooling": mean} for bias in (False, True) for mean in (False, True)]
INTERNVL.append(SIX_BILLION)
CASES = [("clip", {}), ("siglip", {}), ("siglip", {"vision_use_head": False}), *(("internvl", g) for g in INTERNVL)]
# Pixels beyond the last whole patch are read by nobody: 75 = 5 * 14 + 5, 83 = 5 * 14 + 13.
SIZES = [70, 75, 83]


@torch.no_grad()
def both(hf, size: int = 70, frames: int = 3, **kwargs):
    """Features of transformers and of ours, loaded from it."""
    pixels = random_pixels(frames, 3, size, size)
    theirs = hf(pixel_values=pixels).last_hidden_state
    return theirs, HookedVideoLLM.from_transformers(hf, **kwargs)(pixels)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "given"), CASES)
def test_features_are_bitwise_those_of_transformers(kind, given, size):
    theirs, ours = both(tower(kind, size, **given), size)
    assert ours.shape == (3, 25 + (kind != "siglip"), 32)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["clip", "siglip", "internvl"])
def test_either_kernel_is_bitwise_that_of_transformers(kind, kernel):
    theirs, ours = both(tower(kind, kernel=kernel), kernel=kernel)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("kind", "given"), CASES)
def test_every_block_output_is_bitwise_that_of_transformers(kind, given):
    hf = tower(kind, **given)
    pixels = random_pixels(2, 3, 70, 70)
    with torch.no_grad():
        hidden = hf(pixel_values=pixels, output_hidden_states=True).hidden_states
        names = ["vision.hook_embed", "vision.resid_pre", "vision.resid_post"]
        _, cache = HookedVideoLLM.from_transformers(hf).run_with_cache(pixels, names_filter=names)
    assert len(hidden) == 4
    assert torch.equal(cache["vision.hook_embed"], hidden[0])
    for i in range(3):
        assert torch.equal(cache[f"vision.blocks.{i}.hook_resid_pre"], hidden[i])
        assert torch.equal(cache[f"vision.blocks.{i}.hook_resid_post"], hidden[i + 1])


def test_only_siglip_and_internvit_without_mean_pooling_end_in_a_norm():
    normed = {
        (kind, *given.items()): HookedVideoLLM.from_transformers(tower(kind, **given)).cfg.vision.final_norm
        for kind, given in CASES
    }
    for (kind, *given), norm in normed.items():
        assert norm == (kind == "siglip" or ("use_mean_pooling", False) in given)


def test_each_frame_is_encoded_alone():
    model = HookedVideoLLM.from_transformers(tower("clip"))
    pixels = random_pixels(3, 3, 70, 70)
    other = torch.cat([pixels[:2], random_pixels(1, 3, 70, 70, seed=9)])
    with torch.no_grad():
        features, changed = model(pixels), model(other)
    assert torch.equal(features[:2], changed[:2])
    assert not torch.equal(features[2], changed[2])


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu", "gelu_pytorch_tanh"])
def test_the_activation_comes_from_the_config(activation):
    theirs, ours = both(tower("clip", hidden_act=activation))
    assert torch.equal(ours, theirs)


def test_a_tower_in_bfloat16_keeps_its_dtype_and_parity():
    hf = tower("siglip").to(torch.bfloat16)
    pixels = random_pixels(2, 3, 70, 70)
    with torch.no_grad():
        ours = HookedVideoLLM.from_transformers(hf)(pixels)
        theirs = hf(pixel_values=pixels.bfloat16()).last_hidden_state
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)
