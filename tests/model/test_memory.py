"""A run nobody listens to builds no query x key tensor, however long the sequence."""

from dataclasses import replace

import pytest
import torch

from hookedvid.families.registry import small_config
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.nn.kv import KVCache
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import LV_K, VS_K, VT_K, EarlyExit
from memory_use import N, measure
from models import random_inputs

pytestmark = pytest.mark.shapes_unchecked

N_HEADS = 2


@pytest.fixture(scope="module")
def long_case() -> tuple[HookedVideoLLM, VideoInputs]:
    cfg = small_config("llava-video", n_layers=2)
    decoder = replace(cfg.decoder, d_model=16, n_heads=N_HEADS, n_kv_heads=1, d_mlp=16)
    model = HookedVideoLLM.from_config(replace(cfg, decoder=decoder, projector=replace(cfg.projector, d_out=16)))
    inputs = random_inputs(model, n_frames=8, n_text=N - 3 - 8 * cfg.tokens_per_frame)
    assert inputs.layout.n_tokens == N
    return model, inputs


def test_a_forward_nobody_listens_to_builds_nothing_of_query_times_key(long_case):
    model, inputs = long_case
    seen = measure(lambda: model(inputs, logits_to_keep=1))
    assert seen.numel <= 2 * N * 16, "nothing larger than the residual stream and its angles"
    quiet = [n for n in model.hook_dict if n.endswith(("resid_post", "hook_z", "hook_rot_k", "hook_scale"))]
    seen = measure(lambda: model.run_with_cache(inputs, names_filter=quiet, logits_to_keep=1))
    assert seen.n_square == 0, "listening beside the attention map keeps the kernel"
    seen = measure(lambda: model(inputs, interventions=EarlyExit(1), logits_to_keep=1))
    assert seen.n_square == 0, "an exit needs no mask"


def test_listening_on_a_pattern_builds_it_in_its_own_layer(long_case):
    model, inputs = long_case
    point = "blocks.1.attn.hook_pattern"
    seen = measure(lambda: model.run_with_cache(inputs, names_filter=point, logits_to_keep=1))
    assert seen.numel == N_HEADS * N * N
    both = measure(lambda: model.run_with_cache(inputs, names_filter="pattern", logits_to_keep=1))
    assert both.n_square == 2 * seen.n_square > 0


@pytest.mark.parametrize("knockout", [LV_K, VT_K, VS_K], ids=lambda k: k.name)
def test_a_knockout_builds_no_mask_of_all_pairs(long_case, knockout):
    model, inputs = long_case
    with torch.no_grad():
        seen = measure(lambda: model(inputs, interventions=knockout, logits_to_keep=1))
    assert seen.n_square == 0
    assert seen.numel < N * N / 8


def test_exit_and_window_build_no_mask_of_all_pairs_in_an_answer_or_a_text(long_case):
    model, inputs = long_case
    given = [EarlyExit(1), VT_K.at(0)]
    asked = replace(inputs, options=(("a", "b"),), option_tokens=((5, 6),))
    seen = measure(lambda: model.answer(asked, given))
    assert seen.n_square == 0 and seen.numel < N * N / 8
    seen = measure(lambda: model.generate(inputs, given, max_new_tokens=2, return_type="tokens", stop_at_eos=False))
    assert seen.n_square == 0 and seen.numel < N * N / 8


def test_a_step_of_generation_reads_what_is_cached_and_builds_one_row(long_case):
    model, inputs = long_case
    cache = KVCache(2)
    with torch.no_grad():
        model(inputs, kv_cache=cache, logits_to_keep=1)
    longer = inputs.extend(torch.tensor([[7]]))
    seen = measure(lambda: model(longer, interventions=LV_K, kv_cache=cache, logits_to_keep=1))
    # Keys of every token, in each of the two layers; ids and positions of every token.
    assert N < seen.numel <= 2 * N * 16
