"""A model whose blocks are on the disk computes what the same model in memory does, bit for bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hookedvid import EarlyExit, HookedVideoLLM, Knockout, LayerRange, Patch
from hookedvid.checkpoints.load import load
from hookedvid.checkpoints.placement import places
from hookedvid.errors import ConversionError, InputError
from hookedvid.sweep.run import sweep
from models import VIDEO_MODELS, random_model, rich_inputs

pytestmark = pytest.mark.shapes_unchecked

MAP = {"": "cpu", "blocks.0": "disk", "blocks.2": "disk"}
CUT = Knockout("video", "question", LayerRange(1, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved model with newlines, a tower and three blocks."""
    where = tmp_path_factory.mktemp("model")
    random_model("llava-video", torch.float32).save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def whole() -> HookedVideoLLM:
    return random_model("llava-video", torch.float32)


@pytest.fixture
def spread(folder) -> HookedVideoLLM:
    """The saved model with two of its three blocks on the disk."""
    return HookedVideoLLM.from_pretrained(str(folder), device_map=MAP)


def on_meta(model: HookedVideoLLM) -> set[str]:
    return {".".join(n.split(".")[:2]) for n, p in model.named_parameters() if p.is_meta}


@pytest.mark.parametrize("name", [*VIDEO_MODELS, "text"])
def test_every_familys_logits_are_those_of_the_whole_model(tmp_path, name):
    whole = random_model(name, torch.float32)
    whole.save_pretrained(tmp_path)
    spread = HookedVideoLLM.from_pretrained(str(tmp_path), device_map=MAP)
    inputs = rich_inputs(whole)
    assert on_meta(spread) == {"blocks.0", "blocks.2"} and spread.device == torch.device("cpu")
    with torch.no_grad():
        assert torch.equal(spread(inputs), whole(inputs))
    assert on_meta(spread) == {"blocks.0", "blocks.2"}


def test_every_activation_is_the_same(whole, spread):
    inputs = rich_inputs(whole)
    ours, cache = whole.run_with_cache(inputs, names_filter=lambda name: True)
    theirs, other = spread.run_with_cache(inputs, names_filter=lambda name: True)
    assert torch.equal(ours, theirs) and cache.cache_dict.keys() == other.cache_dict.keys()
    assert any("hook_result" in n for n in cache.cache_dict) and any("hook_q_input" in n for n in cache.cache_dict)
    assert all(torch.equal(cache[n], other[n]) for n in cache.cache_dict)


def test_hooks_and_partial_runs_are_the_same(whole, spread):
    inputs = rich_inputs(whole)

    def halve(tensor, hook):
        return tensor / 2

    for given in ({}, {"stop_at_layer": 2}):
        outs = [m.run_with_hooks(inputs, fwd_hooks=[("blocks.0.attn.hook_z", halve)], **given) for m in (whole, spread)]
        assert torch.equal(*outs)
    mids = [m(m(inputs, stop_at_layer=2), start_at_layer=2, inputs=inputs) for m in (whole, spread)]
    assert torch.equal(*mids) and torch.equal(mids[0], whole(inputs))


@pytest.mark.parametrize("cut", [CUT, EarlyExit(layer=2, drop="video"), [CUT, EarlyExit(layer=1, drop="video")]])
def test_interventions_and_generation_are_the_same(whole, spread, cut):
    inputs = rich_inputs(whole)
    with torch.no_grad():
        outs = [m(inputs, interventions=cut) for m in (whole, spread)]
    assert torch.equal(*outs)
    for kept in (True, False):
        said = [
            m.generate(inputs, cut, max_new_tokens=4, return_type="tokens", use_past_kv_cache=kept, stop_at_eos=False)
            for m in (whole, spread)
        ]
        assert torch.equal(*said)


def test_a_patchs_source_stays_where_its_owner_has_it(whole, spread):
    inputs, other = rich_inputs(whole), rich_inputs(whole, seed=5)
    _, cache = whole.run_with_cache(other, names_filter="blocks.1.hook_resid_post")
    patch = Patch("resid_post", 1, "video", "other")
    outs = [m(inputs, interventions=patch, sources={"other": cache}) for m in (whole, spread)]
    assert torch.equal(*outs) and not torch.equal(outs[0], whole(inputs))


def test_gradients_with_respect_to_activations_are_the_same(whole, spread):
    inputs = rich_inputs(whole)
    grads = []
    for m in (whole, spread):
        _, cache = m.run_with_cache(inputs, names_filter="resid_pre", incl_bwd=True, return_type="loss")
        grads.append([cache[f"blocks.{i}.hook_resid_pre_grad"] for i in range(3)])
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*grads, strict=True))


def test_an_error_within_an_offloaded_block_changes_no_later_run(whole, spread):
    inputs = rich_inputs(whole)

    def fail(tensor, hook):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        spread.run_with_hooks(inputs, fwd_hooks=[("blocks.0.attn.hook_z", fail)])
    with torch.no_grad():
        assert torch.equal(spread(inputs), whole(inputs))
    assert on_meta(spread) == {"blocks.0", "blocks.2"}


def test_a_sweep_which_reads_weights_outside_their_block_is_refused(whole, spread):
    with pytest.raises(InputError, match="needs one device: load without device_map"):
        sweep(spread, [rich_inputs(whole)], [()])


def test_weights_come_in_the_dtype_asked_for(folder):
    inputs = rich_inputs(random_model("llava-video", torch.float32))
    spread = HookedVideoLLM.from_pretrained(str(folder), device_map=MAP, dtype="bfloat16")
    assert {p.dtype for p in spread.parameters()} == {torch.bfloat16}
    plain = HookedVideoLLM.from_pretrained(str(folder), dtype="bfloat16")
    with torch.no_grad():
        logits = spread(inputs)
        assert logits.dtype == torch.bfloat16 and torch.equal(logits, plain(inputs))


def test_auto_leaves_to_the_disk_what_memory_does_not_hold(folder, whole):
    sizes = {n: sum(p.nbytes for p in m.parameters()) for n, m in whole.named_children()}
    block = sizes["blocks"] // 3
    rest = sum(sizes.values()) - sizes["blocks"]
    inputs = rich_inputs(whole)
    for room, n_on_disk in ((rest + 4 * block, 0), (rest + 2 * block + 8, 2), (rest + block, 3)):
        for kind in ("auto", "sequential"):
            spread = HookedVideoLLM.from_pretrained(str(folder), device_map=kind, max_memory={"cpu": room})
            assert len(on_meta(spread)) == n_on_disk, (room, kind)
            with torch.no_grad():
                assert torch.equal(spread(inputs), whole(inputs))
    with pytest.raises(ConversionError, match="an offloaded block take"):
        HookedVideoLLM.from_pretrained(str(folder), device_map="auto", max_memory={"cpu": rest})


@pytest.mark.parametrize("kind", ["auto", "balanced", "sequential"])
def test_automatic_maps_fill_gpus_before_memory_before_the_disk(kind):
    model = random_model("llava-video", torch.float32, n_layers=8)
    block = sum(p.nbytes for p in model.blocks[0].parameters())
    rest = sum(p.nbytes for p in model.parameters()) - 8 * block
    limits = {0: rest + 3 * block, 1: 2 * block, "cpu": 2 * block}
    found = places(model, torch.float32, kind, limits)
    blocks = [found.pop(f"blocks.{i}") for i in range(8)]
    assert set(found.values()) == {0} and {"embed", "vision", "projector", "ln_final", "unembed"} == set(found)
    # One block's room is kept on GPU 0 and in the CPU's memory for those that come as guests.
    assert blocks == [0, 0, 1, 1, "cpu", "disk", "disk", "disk"]
    roomy = places(model, torch.float32, kind, {0: rest + 9 * block, 1: rest + 9 * block})
    assert set(roomy.values()) == ({0} if kind == "sequential" else {0, 1})


def test_several_files_and_a_block_left_out(tmp_path, folder, whole):
    held = {k: p.detach() for k, p in whole.named_parameters()}
    halves = [{k: held[k].clone() for i, k in enumerate(held) if i % 2 == part} for part in (0, 1)]
    for i, half in enumerate(halves, 1):
        save_file(half, tmp_path / f"model-0000{i}-of-00002.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    short = load(HookedVideoLLM, tmp_path, device_map={"": "cpu", "blocks": "disk"}, first_n_layers=2)
    inputs = rich_inputs(whole)
    assert on_meta(short) == {"blocks.0", "blocks.1"}
    with torch.no_grad():
        assert torch.equal(short(inputs, stop_at_layer=2), whole(inputs, stop_at_layer=2))


def test_a_spread_model_does_not_move(spread):
    for move in (lambda: spread.to("cpu"), lambda: spread.to(torch.float64), spread.half, spread.cpu):
        with pytest.raises(ConversionError, match="spread over cpu, disk"):
            move()


@pytest.mark.parametrize(
    ("device_map", "said"),
    [
        ({"embed": "cpu", "blocks": "disk"}, "no device for 'vision'"),
        ({"": "cpu", "blocks.7": "disk"}, "'blocks.7' is no part that can be placed"),
        ({"": "cpu", "blocks.0.attn": "disk"}, "'blocks.0.attn' is no part"),
        ({"": "cpu", "projector": "disk"}, "all but the blocks must be on one device"),
        ({"": "disk"}, "and not on the disk"),
        ({"": "cpu", "blocks.1": "the moon"}, "'the moon', which is no device"),
        ("everywhere", "neither one of auto, balanced, sequential"),
    ],
)
def test_maps_that_cannot_be_followed_are_refused(folder, device_map, said):
    with pytest.raises(ConversionError, match=said):
        HookedVideoLLM.from_pretrained(str(folder), device_map=device_map)


def test_limits_that_cannot_be_read_are_refused(folder):
    for limits in ({"cpu": "much"}, {"moon": "1GB"}):
        with pytest.raises(ConversionError, match="max_memory"):
            HookedVideoLLM.from_pretrained(str(folder), device_map="auto", max_memory=limits)
    with pytest.raises(ConversionError, match="a map of your own"):
        HookedVideoLLM.from_pretrained(str(folder), device_map={"": "cpu"}, max_memory={"cpu": "1GB"})
