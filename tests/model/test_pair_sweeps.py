"""TransformerLens's tools by position on pairs of videos, each against our own interventions by selector."""

import copy
import pickle
from functools import cache

import pytest
import torch
from pandas import DataFrame
from transformer_lens import patching
from transformer_lens.tools import analysis

from hookedvid import Edit, Patch, VideoInputs
from hookedvid.errors import InputError
from lens_model import STORED, inputs, model
from models import ROUNDING, UNLIKE, apart, random_model, rich_inputs

pytestmark = pytest.mark.shapes_unchecked

# Pairs (clean, corrupt) by their seeds, and the rows of them that are run: in another order, to show that rows are told
# apart by their ids.
PAIRS = ((1, 2), (3, 4))
ROWS = [1, 0]
# Of a cell's position, its selector: two ids, frames 0 and 1, a newline, two ids.
AT = {2: "video[0]", 3: "video[1]", 6: "last"}
# name of the sweep → (activation, what a cell names behind its layer)
SWEEPS = {
    "resid_pre": ("resid_pre", "pos"),
    "resid_mid": ("resid_mid", "pos"),
    "attn_out": ("attn_out", "pos"),
    "mlp_out": ("mlp_out", "pos"),
    "attn_head_out_by_pos": ("z", "pos head"),
    "attn_head_q_by_pos": ("q", "pos head"),
    "attn_head_k_by_pos": ("k", "pos head"),
    "attn_head_v_by_pos": ("v", "pos head"),
    "attn_head_out_all_pos": ("z", "head"),
    "attn_head_q_all_pos": ("q", "head"),
    "attn_head_k_all_pos": ("k", "head"),
    "attn_head_v_all_pos": ("v", "head"),
    "attn_head_pattern_all_pos": ("pattern", "head"),
    "attn_head_pattern_by_pos": ("pattern", "head pos"),
    "attn_head_pattern_dest_src_pos": ("pattern", "head pos src"),
}
STACKS = {
    "block_every": ("resid_pre", "attn_out", "mlp_out"),
    "attn_head_all_pos_every": tuple(f"attn_head_{x}_all_pos" for x in ("out", "q", "k", "v", "pattern")),
    "attn_head_by_pos_every": tuple(f"attn_head_{x}_by_pos" for x in ("out", "q", "k", "v", "pattern")),
}
# What is tried on pairs elsewhere: test_bind_pair.py.
ELSEWHERE = {
    "EdgeAttributionConfig", "FaithfulnessConfig", "LearnedSubspace", "SubspaceInterchange", "attribution_patch",
    "collect_activations", "faithfulness", "fit_das", "get_act_patch_direct_path",
    "get_act_patch_direct_path_all_sources", "intervened_logits",
}  # fmt: skip
HERE = {
    "JacobianLens", "attention_head_subspace_affinity", "direct_logit_attribution", "logit_lens", "logit_readout",
    "reinitialized", "run_with_intervention",
}  # fmt: skip
# What takes vectors, labels, positions or a name, and no model that could run a video.
WITHOUT_A_MODEL = {
    "JSpaceDecomposition", "Node", "NormMatchedPlacebo", "SparseProbeConvergenceError", "SubspaceBasis",
    "arbitrary_targets", "fit_sparse_probe", "get_sparse_decomposition", "mean_difference_basis", "neuron_basis",
    "orthonormal_subspace", "probe_basis", "projection_kernel", "random_basis", "random_init_bridge",
    "random_neuron_basis", "random_projection_kernel_moments", "solve_coordinate_patch", "sweep_sparse_probe",
}  # fmt: skip


def test_every_tool_is_tried_on_a_pair_or_runs_no_model():
    sweeps = {f"get_act_patch_{name}" for name in (*SWEEPS, *STACKS)} | {"generic_activation_patch"}
    there = {name for name in dir(patching) if name.startswith(("get_act_patch_", "generic_"))} | {*analysis.__all__}
    new = there - sweeps - ELSEWHERE - HERE - WITHOUT_A_MODEL
    assert not new, f"not tried on two videos, nor said in docs/coming-from.md whether they run: {sorted(new)}"


@cache
def asked(seed: int, n_heads: int = 2) -> VideoInputs:
    """One question about different videos; encoded, so that no run pays the tower."""
    m = model(n_heads, 1)
    return m.encoded(inputs(m, seed).with_tokens(inputs(m, 2).tokens))


@cache
def pair(n_heads: int = 2):
    return model(n_heads, 1).bind_pair(*([asked(s, n_heads) for s in side] for side in zip(*PAIRS, strict=True)))


def margins(logits: torch.Tensor) -> torch.Tensor:
    """One number an item."""
    return logits[:, -1, 7] - logits[:, -1, 9]


@cache
@torch.no_grad()
def clean_cache():
    return pair().run_with_cache(pair().clean[ROWS])[1]


@cache
@torch.no_grad()
def swept(name: str) -> patching.PatchingResult:
    sweep = getattr(patching, f"get_act_patch_{name}")
    return sweep(pair(), pair().corrupt[ROWS], clean_cache(), margins, reduce="none", baseline=True)


@cache
@torch.no_grad()
def held(seed: int, activation: str):
    """A clean video's run on its own, with what it held."""
    return model(2, 1).run_with_cache(asked(seed), names_filter=activation)[1]


@torch.no_grad()
def exchanged(name: str, layer: int, cell: tuple[int, ...], clean: int, corrupt: int) -> float:
    """The corrupt video's margin, run alone, with one cell of the clean one's activation: by a value of ours."""
    activation, axes = SWEEPS[name]
    index = dict(zip(axes.split(), cell, strict=True))
    at = AT[index["pos"]] if "pos" in index else "all"
    source = held(clean, activation)
    put = Patch(activation, layer, at, source)
    if "head" in index:
        own = (slice(None), index["head"], slice(None), index.get("src", slice(None)))
        where = own if activation == "pattern" else (slice(None), slice(None), index["head"])

        def exchange(rows: torch.Tensor) -> torch.Tensor:
            rows = rows.clone()
            rows[where] = source.at(activation, layer, at)[where]
            return rows

        put = Edit(activation, layer, exchange, at)
    return margins(model(2, 1)(asked(corrupt), interventions=[put])).item()


@pytest.mark.parametrize("name", SWEEPS)
def test_each_cell_of_a_sweep_is_our_own_exchange_of_that_cell(name):
    values = swept(name).values
    activation, axes = SWEEPS[name]
    sizes = {"pos": 7, "src": 7, "head": 1 if activation in "kv" else 2}
    assert values.shape == (2, *(sizes[axis] for axis in axes.split()), len(ROWS))
    generator = torch.Generator().manual_seed(len(name))
    for layer in (0, 1):
        for pos in AT:
            drawn = {axis: int(torch.randint(sizes[axis], (), generator=generator)) for axis in ("head", "src")}
            cell = tuple((drawn | {"pos": pos})[axis] for axis in axes.split())
            for i, row in enumerate(ROWS):
                assert abs(values[(layer, *cell, i)] - exchanged(name, layer, cell, *PAIRS[row])) <= STORED
    assert values[..., 0].unique().numel() > 1


@pytest.mark.parametrize("name", STACKS)
def test_stacked_sweeps_hold_the_single_ones(name):
    found = swept(name)
    for part, single in zip(found.values, STACKS[name], strict=True):
        alone = swept(single).values
        alone = alone.transpose(1, 2) if single == "attn_head_pattern_by_pos" else alone
        assert torch.equal(part[..., : alone.shape[-2], :], alone) and not part[..., alone.shape[-2] :, :].any()
    for i, row in enumerate(ROWS):
        assert abs(found.baseline[i] - margins(model(2, 1)(asked(PAIRS[row][1])))) <= STORED


@pytest.mark.parametrize("name", UNLIKE)
@torch.no_grad()
def test_a_patch_goes_from_video_to_video_in_every_family(name):
    m = random_model(name)
    clean, corrupt = (m.encoded(rich_inputs(m, seed=s)) for s in (1, 2))
    corrupt = corrupt.with_tokens(clean.tokens)
    both = m.bind_pair(clean, corrupt)
    _, source = both.run_with_cache(both.clean, names_filter="resid_pre")
    video = clean.layout.positions("video").tolist()
    cells = [(m.cfg.n_layers - 1, pos) for pos in (video[0], video[-1], clean.layout.n_tokens - 1)]
    found = patching.get_act_patch_resid_pre(
        both, both.corrupt, source, lambda logits: logits[0, -1, 0] - logits[0, -1, 1],
        index_axis_names=None, index_df=DataFrame(cells, columns=["layer", "pos"]),
    )  # fmt: skip
    for value, (layer, pos) in zip(found, cells, strict=True):

        def exchange(rows: torch.Tensor, pos: int = pos, layer: int = layer) -> torch.Tensor:
            return rows.index_copy(1, torch.tensor([pos]), source["resid_pre", layer][:, [pos]])

        logits = m(corrupt, interventions=[Edit("resid_pre", layer, exchange)])
        assert abs(value - (logits[0, -1, 0] - logits[0, -1, 1])) <= STORED
    assert found.unique().numel() == 3


@torch.no_grad()
def test_direct_logit_attribution_is_each_videos_own():
    for unit in ("component", "layer", "head"):
        found = analysis.direct_logit_attribution(pair(), pair().corrupt[ROWS], 7, 9, unit=unit).attribution
        for i, row in enumerate(ROWS):
            cut = asked(PAIRS[row][1])
            alone = analysis.direct_logit_attribution(model(2, 1), cut, 7, 9, unit=unit).attribution
            assert apart(found[:, i], alone[:, 0]) <= ROUNDING
            whole = alone[-1] if unit == "layer" else alone.sum(0)
            assert apart(whole, margins(model(2, 1)(cut))) <= ROUNDING


@torch.no_grad()
def test_lenses_read_the_video_that_a_row_names():
    found = analysis.logit_lens(pair(), pair().corrupt[ROWS], positions=None)
    for i, row in enumerate(ROWS):
        _, own = model(2, 1).run_with_cache(asked(PAIRS[row][1]), names_filter=["resid_pre", "resid_post"])
        streams = torch.stack([own["resid_pre", 0], own["resid_pre", 1], own["resid_post", 1]])[:, 0]
        wanted = model(2, 1).ln_final.plain(streams) @ model(2, 1).W_U
        assert apart(found.values[:, i], wanted) <= ROUNDING
        assert apart(analysis.logit_readout(pair(), streams).values, wanted) <= ROUNDING


@torch.no_grad()
def test_an_intervention_runs_on_the_video_that_a_row_names():
    at, point = torch.tensor([3, 3]), "blocks.0.hook_resid_post"

    def task(tokens):
        return pair()(tokens)[:, -1, [7, 9]]

    sources = analysis.collect_activations(pair(), point, pair().clean[ROWS], task, positions=at)
    found = analysis.run_with_intervention(
        pair(), point, lambda base, source: source, pair().corrupt[ROWS], sources, task, positions=at
    )
    for i, row in enumerate(ROWS):
        clean, corrupt = PAIRS[row]
        put = Patch("resid_post", 0, "video[1]", held(clean, "resid_post"))
        assert apart(found[i], model(2, 1)(asked(corrupt), interventions=[put])[0, -1, [7, 9]]) <= ROUNDING


def test_a_pair_is_copied_and_stored_with_its_model_and_shows_what_it_is():
    ids = pair().corrupt[ROWS]
    for again in (copy.copy(pair()), copy.deepcopy(pair()), pickle.loads(pickle.dumps(pair()))):
        assert torch.equal(again(ids), pair()(ids))
    assert repr(pair()) == "BoundPair: llava-onevision, tokens [2, 7]"


def test_what_wants_transformerlenss_own_model_says_so():
    lens = analysis.JacobianLens({0: torch.eye(32)}, n_prompts=1, d_model=32)
    with pytest.raises(TypeError, match="supports TransformerBridge only"):
        lens.readout(pair(), pair().clean[:1])
    with pytest.raises(ValueError, match="model must be a TransformerBridge exposing blocks_with"):
        analysis.attention_head_subspace_affinity(pair(), source_role="O", target_role="Q")
    with pytest.raises(ValueError, match="reinitialized cannot reset"):
        analysis.reinitialized(pair(), seed=0)
    with pytest.raises(InputError, match="without a video of this pair"):
        pair().run_with_cache(torch.tensor([[1, 2, 3]]))
