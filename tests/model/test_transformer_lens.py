"""Each of TransformerLens's activation patching sweeps on a bound model equals the patch made by hand."""

from functools import cache

import pytest
import torch
from transformer_lens import patching
from transformer_lens.utilities import get_act_name

from hookedvid import HookedVideoLLM, VideoInputs
from lens_model import STORED, caches, inputs, metric, model

pytestmark = pytest.mark.shapes_unchecked


def by_hand(m: HookedVideoLLM, name: str, where: tuple) -> float:
    """The metric with the clean activation written into the corrupted run at one index."""
    clean = caches(m)[0]

    def edit(act, hook):
        act = act.clone()
        act[where] = clean[hook.name][where]
        return act

    with torch.no_grad():
        return metric(m.run_with_hooks(inputs(m, 2), fwd_hooks=[(name, edit)])).item()


ALL = slice(None)
POS = lambda pos: (ALL, pos)  # noqa: E731
POS_HEAD = lambda pos, head: (ALL, pos, head)  # noqa: E731
HEAD = lambda head: (ALL, ALL, head)  # noqa: E731
MAP = lambda *at: (ALL, *at)  # noqa: E731
# name of the sweep → (activation, shape after the layer's axis, index of a cell in the activation)
SWEEPS = {
    "resid_pre": ("resid_pre", (7,), POS),
    "resid_mid": ("resid_mid", (7,), POS),
    "attn_out": ("attn_out", (7,), POS),
    "mlp_out": ("mlp_out", (7,), POS),
    "attn_head_out_by_pos": ("z", (7, 4), POS_HEAD),
    "attn_head_q_by_pos": ("q", (7, 4), POS_HEAD),
    "attn_head_k_by_pos": ("k", (7, 2), POS_HEAD),
    "attn_head_v_by_pos": ("v", (7, 2), POS_HEAD),
    "attn_head_out_all_pos": ("z", (4,), HEAD),
    "attn_head_q_all_pos": ("q", (4,), HEAD),
    "attn_head_k_all_pos": ("k", (2,), HEAD),
    "attn_head_v_all_pos": ("v", (2,), HEAD),
    "attn_head_pattern_all_pos": ("pattern", (4,), MAP),
    "attn_head_pattern_by_pos": ("pattern", (4, 7), MAP),
    "attn_head_pattern_dest_src_pos": ("pattern", (4, 7, 7), MAP),
}


@cache
@torch.no_grad()
def swept(name: str) -> torch.Tensor:
    m = model()
    clean, _, bound = caches(m)
    return getattr(patching, f"get_act_patch_{name}")(bound, bound.tokens, clean, metric)


def test_every_sweep_is_covered():
    sweeps = {n.removeprefix("get_act_patch_") for n in dir(patching) if n.startswith("get_act_patch_")}
    every = {"block_every", "attn_head_all_pos_every", "attn_head_by_pos_every"}
    assert sweeps == {*SWEEPS, *every, "direct_path", "direct_path_all_sources"}


@pytest.mark.parametrize("name", SWEEPS)
def test_each_cell_of_a_sweep_is_the_run_patched_by_hand(name):
    activation, shape, index = SWEEPS[name]
    found = swept(name)
    assert found.shape == (2, *shape)
    generator = torch.Generator().manual_seed(0)
    for layer in (0, 1):
        # Positions 3 (video) and 6 (last), in both layers and in a random head.
        for pos in (3, 6):
            at = tuple(pos if n == 7 else int(torch.randint(n, (), generator=generator)) for n in shape)
            assert abs(by_hand(model(), get_act_name(activation, layer), index(*at)) - found[layer][at]) <= STORED
    assert found.flatten().unique().numel() > 2


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("block_every", ("resid_pre", "attn_out", "mlp_out")),
        ("attn_head_all_pos_every", tuple(f"attn_head_{x}_all_pos" for x in ("out", "q", "k", "v", "pattern"))),
        ("attn_head_by_pos_every", tuple(f"attn_head_{x}_by_pos" for x in ("out", "q", "k", "v", "pattern"))),
    ],
)
def test_stacked_sweeps_hold_the_single_ones(name, of):
    found = swept(name)
    shape = {"block_every": (3, 2, 7), "attn_head_all_pos_every": (5, 2, 4), "attn_head_by_pos_every": (5, 2, 7, 4)}
    assert found.shape == shape[name]
    for row, single in zip(found, of, strict=True):
        alone = swept(single)
        alone = alone.transpose(1, 2) if single == "attn_head_pattern_by_pos" else alone
        assert torch.equal(row[..., : alone.shape[-1]], alone)
        assert row[..., alone.shape[-1] :].eq(0).all()  # key-value heads that grouped attention does not have


@torch.no_grad()
def through_one_head(m: HookedVideoLLM, src: tuple[int, int], dst: tuple[int, int], part: str) -> float:
    """The metric when one head's q, k or v alone reads the stream with another head's write exchanged."""
    clean, corrupted, _ = caches(m)
    block = m.blocks[dst[0]]
    write = m.W_O[src]
    change = (clean["z", src[0]][:, :, src[1]] - corrupted["z", src[0]][:, :, src[1]]) @ write
    read = block.ln1.plain(corrupted["resid_pre", dst[0]] + change)
    weight, bias = getattr(block.attn, f"W_{part.upper()}"), getattr(block.attn, f"b_{part.upper()}")
    vector = read @ weight[dst[1]] + bias[dst[1]]

    def edit(act, hook):
        act = act.clone()
        act[:, :, dst[1]] = vector
        return act

    return metric(m.run_with_hooks(inputs(m, 2), fwd_hooks=[(f"blocks.{dst[0]}.attn.hook_{part}", edit)])).item()


@pytest.mark.parametrize(("heads", "part"), [((4, 2), "q"), ((2, 2), "q"), ((2, 2), "k"), ((2, 2), "v")])
@torch.no_grad()
def test_direct_paths_reach_one_head_alone(heads, part):
    m = model(*heads)
    clean, corrupted, bound = caches(m)
    for head in range(heads[0]):
        found = patching.get_act_patch_direct_path(
            bound, bound.tokens, clean, corrupted, metric, 0, head, component=part, verbose=False
        )
        assert found.shape == (2, heads[0]) and found[0].eq(0).all()
        wanted = [through_one_head(m, (0, head), (1, h), part) for h in range(heads[0])]
        assert (found[1] - torch.tensor(wanted)).abs().max() <= STORED
        assert len(set(wanted)) == heads[0]


@torch.no_grad()
def test_direct_paths_from_all_sources():
    m = model(2, 2)
    clean, corrupted, bound = caches(m)
    found = patching.get_act_patch_direct_path_all_sources(bound, bound.tokens, clean, corrupted, metric, verbose=False)
    assert found.shape == (2, 2, 2, 2)
    for head in range(2):
        one = patching.get_act_patch_direct_path(bound, bound.tokens, clean, corrupted, metric, 0, head, verbose=False)
        assert torch.equal(found[0, head], one)
    assert found[1].eq(0).all()


@torch.no_grad()
def test_a_batch_is_patched_item_by_item():
    m = model()
    both = [VideoInputs.stack([inputs(m, s), inputs(m, s + 5)]) for s in (1, 2)]
    clean = m.run_with_cache(both[0])[1]
    bound = m.bind(both[1])
    result = patching.get_act_patch_resid_pre(
        bound, bound.tokens, clean, lambda x: x[:, -1, 7] - x[:, -1, 9], reduce="none", baseline=True
    )
    assert (result.values[..., 0] - swept("resid_pre")).abs().max() <= STORED
    assert abs(result.baseline[0] - metric(m(inputs(m, 2)))) <= STORED
