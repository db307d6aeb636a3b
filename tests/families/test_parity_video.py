"""LLaVA-OneVision and LLaVA-NeXT-Video end to end against transformers: pixels and ids in, logits and text out."""

import pytest
import torch

from hf_models import VIDEO_ID, next_video, onevision, random_ids, random_pixels
from hookedvid import HookedVideoLLM

pytestmark = pytest.mark.shapes_unchecked

MODELS = {"onevision": onevision, "next_video": next_video}


def n_video(kind: str, frames: int) -> int:
    """Video tokens: a 5 x 5 grid, pooled to 3 x 3 and ended by one newline, or to 2 x 2."""
    return frames * 9 + 1 if kind == "onevision" else frames * 4


def prompt(count: int, before: int = 5, after: int = 10, marker: int = VIDEO_ID) -> torch.Tensor:
    text = random_ids(before + after)
    return torch.cat([text[:before], torch.full((count,), marker), text[before:]])


@torch.no_grad()
def both(hf, ids: torch.Tensor, pixels: torch.Tensor):
    """Logits of transformers and of ours, loaded from it."""
    theirs = hf(input_ids=ids[None], pixel_values_videos=pixels[None]).logits
    model = HookedVideoLLM.from_transformers(hf)
    return theirs, model(model.inputs_from_tensors(ids, pixels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_bitwise_those_of_transformers(kind, frames, dtype):
    ids = prompt(n_video(kind, frames))
    theirs, ours = both(MODELS[kind](dtype=dtype), ids, random_pixels(frames, 3, 70, 70).to(dtype))
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("before", "after"), [(0, 4), (7, 1), (3, 0)])
@pytest.mark.parametrize("kind", MODELS)
def test_text_may_stand_before_after_or_on_both_sides(kind, before, after):
    ids = prompt(n_video(kind, 2), before, after)
    theirs, ours = both(MODELS[kind](), ids, random_pixels(2, 3, 70, 70))
    assert ours.shape[1] == before + n_video(kind, 2) + after
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", MODELS)
def test_every_spelling_of_the_placeholder_gives_the_same_inputs(kind):
    model = HookedVideoLLM.from_transformers(MODELS[kind]())
    pixels, count = random_pixels(3, 3, 70, 70), n_video(kind, 3)
    forms = [
        model.inputs_from_tensors(prompt(n, marker=marker), pixels) for n in (1, count) for marker in (-200, VIDEO_ID)
    ]
    with torch.no_grad():
        logits = [model(f) for f in forms]
    for form, found in zip(forms[1:], logits[1:], strict=True):
        assert form.layout == forms[0].layout
        assert torch.equal(form.tokens, forms[0].tokens)
        assert torch.equal(found, logits[0])


@pytest.mark.parametrize(
    "given", [{"spatial_pool_mode": "max"}, {"spatial_pool_stride": 1}, {"spatial_pool_stride": 3}]
)
def test_next_video_pools_as_its_config_says(given):
    side = 5 // given.get("spatial_pool_stride", 2)
    theirs, ours = both(next_video(**given), prompt(2 * side * side), random_pixels(2, 3, 70, 70))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("layer", [-1, -3, 1, 2])
@pytest.mark.parametrize("kind", MODELS)
def test_features_of_any_layer(kind, layer):
    hf = MODELS[kind](vision_feature_layer=layer)
    theirs, ours = both(hf, prompt(n_video(kind, 2)), random_pixels(2, 3, 70, 70))
    assert torch.equal(ours, theirs)
    model = HookedVideoLLM.from_transformers(hf)
    assert model.cfg.vision.n_layers == (layer if layer > 0 else 4 + layer)


@pytest.mark.parametrize("level", ["text", "top"])
def test_a_tied_head_is_tied_wherever_the_config_says_so(level):
    given = {"text": {"tie_word_embeddings": True}} if level == "text" else {"tie_word_embeddings": True}
    hf = onevision(**given)
    assert hf.lm_head.weight is hf.model.language_model.embed_tokens.weight
    theirs, ours = both(hf, prompt(n_video("onevision", 2)), random_pixels(2, 3, 70, 70))
    assert torch.equal(ours, theirs)


def test_the_newline_reaches_the_logits():
    hf = onevision()
    ids, pixels = prompt(n_video("onevision", 2)), random_pixels(2, 3, 70, 70)
    _, before = both(hf, ids, pixels)
    with torch.no_grad():
        hf.model.image_newline.add_(1.0)
    theirs, after = both(hf, ids, pixels)
    assert torch.equal(after, theirs)
    assert not torch.equal(after[0, -1], before[0, -1])


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_greedy_tokens_are_those_of_transformers(kind, cached):
    hf = MODELS[kind]()
    hf.generation_config.eos_token_id = None
    ids, pixels = prompt(n_video(kind, 3)), random_pixels(3, 3, 70, 70)
    theirs = hf.generate(
        input_ids=ids[None], pixel_values_videos=pixels[None], attention_mask=torch.ones_like(ids[None]),
        max_new_tokens=12, do_sample=False,
    )  # fmt: skip
    model = HookedVideoLLM.from_transformers(hf)
    inputs = model.inputs_from_tensors(ids, pixels)
    ours = model.generate(inputs, max_new_tokens=12, stop_at_eos=False, use_past_kv_cache=cached)
    assert theirs.shape[1] == len(ids) + 12
    assert ours.tolist() == theirs[:, len(ids) :].tolist()


def test_generation_stops_where_transformers_does():
    hf = onevision()
    ids, pixels = prompt(n_video("onevision", 3)), random_pixels(3, 3, 70, 70)
    model = HookedVideoLLM.from_transformers(hf)
    inputs = model.inputs_from_tensors(ids, pixels)
    free = model.generate(inputs, max_new_tokens=12, stop_at_eos=False)[0].tolist()
    stop = free[4]
    theirs = hf.generate(
        input_ids=ids[None], pixel_values_videos=pixels[None], attention_mask=torch.ones_like(ids[None]),
        max_new_tokens=12, do_sample=False, eos_token_id=stop, pad_token_id=0,
    )  # fmt: skip
    ours = model.generate(inputs, max_new_tokens=12, eos_token_id=stop)
    assert ours[0].tolist() == theirs[0, len(ids) :].tolist() == free[: free.index(stop) + 1]
