"""TransformerLens's tools that compare two prompts, on two videos, against the same computed by hand."""

from functools import cache

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformer_lens import patching
from transformer_lens.tools.analysis import (
    EdgeAttributionConfig,
    FaithfulnessConfig,
    LearnedSubspace,
    SubspaceInterchange,
    attribution_patch,
    collect_activations,
    faithfulness,
    fit_das,
    intervened_logits,
)

from hookedvid import VideoInputs, patch_sweep
from hookedvid.errors import InputError
from lens_model import STORED, inputs, metric, model
from models import ROUNDING, UNLIKE, apart, random_inputs, random_model, rich_inputs

pytestmark = pytest.mark.shapes_unchecked


@cache
def asked(m, seed: int) -> VideoInputs:
    """One question about different videos: the ids are the same, only pixels differ. Positions 2 to 4 are video."""
    return inputs(m, seed).with_tokens(inputs(m, 2).tokens)


@cache
def pair(m):
    return m.bind_pair(asked(m, 1), asked(m, 2))


@cache
def two_pairs(m):
    return m.bind_pair([asked(m, 1), asked(m, 3)], VideoInputs.stack([asked(m, 2), asked(m, 4)]))


@cache
@torch.no_grad()
def run(m, seed: int, names=None):
    return m.run_with_cache(asked(m, seed), names_filter=names)


@pytest.mark.usefixtures("shapes_checked")
@pytest.mark.parametrize("name", UNLIKE)
@torch.no_grad()
def test_ids_say_which_video_is_run(name):
    m = random_model(name)
    clean, corrupt = (rich_inputs(m, seed=1), rich_inputs(m, seed=2))
    corrupt = corrupt.with_tokens(clean.tokens)
    for sides in ((clean, corrupt), (m.encoded(clean), m.encoded(corrupt))):
        bound = m.bind_pair(*sides)
        assert torch.equal(bound(bound.clean), m(clean)) and torch.equal(bound(bound.corrupt), m(corrupt))
        assert not torch.equal(bound.clean, bound.corrupt) and bound.tokens is bound.corrupt
    other = clean.tokens.where(clean.tokens < 0, clean.tokens + 1)
    text = bound.corrupt.where(bound.corrupt < 0, bound.corrupt + 1)
    assert torch.equal(bound(text), m(corrupt.with_tokens(other)))
    assert m.to_str_tokens(bound.clean) == m.to_str_tokens(clean)


@torch.no_grad()
def test_rows_come_in_any_choice_and_order_also_of_unequal_lengths():
    m = random_model("qwen3-vl")
    sides = [[random_inputs(m, n_text=n, seed=s + n) for n in (8, 5)] for s in (0, 10)]
    bound = m.bind_pair(*sides)
    rows = torch.cat([bound.corrupt[[1, 0, 1]], bound.clean[[1]]])
    found = bound(rows)
    for row, one in zip(found, (sides[1][1], sides[1][0], sides[1][1], sides[0][1]), strict=True):
        assert apart(row[-one.tokens.shape[1] :], m(one)[0]) <= ROUNDING
    alone = bound(bound.clean[1:])  # as wide as its batch, so that positions are the same numbers
    assert alone.shape[1] == bound.clean.shape[1] and apart(alone[0, 3:], found[3, 3:]) <= ROUNDING


def gradient(m, name: str, at: tuple) -> torch.Tensor:
    """d metric / d activation in the corrupted run, by a zero added there instead of a backward hook."""
    zero: list[torch.Tensor] = []

    def add(act, hook):
        zero.append(torch.zeros_like(act, requires_grad=True))
        return act + zero[0]

    out = metric(m.run_with_hooks(asked(m, 2), fwd_hooks=[(name, add)]))
    return torch.autograd.grad(out, zero)[0][at]


def place(node) -> tuple:
    return (0, node.position) if node.head is None else (0, node.position, node.head)


def change(m, node, clean: int = 1, corrupt: int = 2) -> torch.Tensor:
    """Clean less corrupted of what a writer adds to the stream; of a head in z, where its hook is."""
    return run(m, clean)[1][node.hook_name][place(node)] - run(m, corrupt)[1][node.hook_name][place(node)]


@cache
def attributed(heads: tuple[int, int], granularity: str):
    bound = pair(model(*heads))
    return attribution_patch(bound, bound.clean, bound.corrupt, metric, EdgeAttributionConfig(granularity))


@pytest.mark.parametrize("heads", [(4, 2), (2, 2)])
def test_node_attributions_are_gradients_times_differences_of_the_two_videos(heads):
    m = model(*heads)
    scores = attributed(heads, "node").node_scores
    for node in list(scores)[:: 3 if heads == (4, 2) else 5]:
        wanted = (change(m, node) * gradient(m, node.hook_name, place(node))).sum().item()
        assert abs(wanted - scores[node]) <= STORED
    moved = {n.position for n, score in scores.items() if score}
    assert moved == {2, 3, 4, 5, 6}, "what stands before the video is the same in both"


def test_pairs_are_attributed_one_by_one_and_averaged():
    m = model()
    bound = two_pairs(m)
    both = attribution_patch(bound, bound.clean, bound.corrupt, metric).node_scores
    other = m.bind_pair(asked(m, 3), asked(m, 4))
    second = attribution_patch(other, other.clean, other.corrupt, metric).node_scores
    first = attributed((4, 2), "node").node_scores
    assert all(abs(both[n] - (first[n] + second[n]) / 2) <= STORED for n in both)


def test_edge_attributions_are_reader_gradients_times_writer_differences():
    m = model(2, 2)
    scores = attributed((2, 2), "edge").edge_scores
    edges = [e for e in scores if scores[e]]
    for writer, reader in edges[:: len(edges) // 12]:
        vector = change(m, writer)
        if writer.head is not None:
            vector = vector @ m.W_O[writer.layer, writer.head]
        wanted = (vector * gradient(m, reader.hook_name, place(reader))).sum().item()
        assert abs(wanted - scores[writer, reader]) <= STORED


def written(m, seed: int, writer) -> torch.Tensor:
    """What a head adds to the stream at its position."""
    return run(m, seed)[1][writer.hook_name][place(writer)] @ m.W_O[writer.layer, writer.head]


@torch.no_grad()
def exchanged(m, edge, new: torch.Tensor) -> float:
    """The clean run's metric where one reader finds `new` in place of what one writer added."""
    writer, reader = edge
    change = new - written(m, 1, writer)

    def edit(act, hook):
        act = act.clone()
        act[place(reader)] += change
        return act

    return metric(m.run_with_hooks(asked(m, 1), fwd_hooks=[(reader.hook_name, edit)])).item()


def test_a_circuit_without_one_edge_is_the_clean_run_with_that_edge_exchanged():
    m = model(2, 2)
    bound, edges = pair(m), list(attributed((2, 2), "edge").edge_scores)
    full, none = metric(run(m, 1)[0]).item(), metric(run(m, 2)[0]).item()
    one = next(e for e in edges if e[0].head is not None and e[0].position == 6 and e[1].kind == "q_input")
    kept = [e for e in edges if e != one]
    found = faithfulness(bound, bound.clean, bound.corrupt, metric, kept)
    assert abs(found.full_metric - full) <= STORED and abs(found.corrupt_metric - none) <= STORED

    wanted = exchanged(m, one, written(m, 2, one[0]))
    assert abs(found.recovered - (wanted - none) / (full - none)) <= STORED and wanted != full
    # The mean over other pairs' videos.
    bound = two_pairs(m)
    mean = faithfulness(
        bound, bound.clean[:1], bound.corrupt[:1], metric, kept, FaithfulnessConfig("mean"),
        mean_tokens=torch.cat([bound.clean[1:], bound.corrupt[1:]]),
    )  # fmt: skip
    wanted = exchanged(m, one, (written(m, 3, one[0]) + written(m, 4, one[0])) / 2)
    assert abs(mean.recovered - (wanted - none) / (full - none)) <= STORED


@torch.no_grad()
def test_patching_a_pair_is_our_sweep_by_frame():
    m = model()
    bound = pair(m)
    clean = bound.run_with_cache(bound.clean)[1]
    found = patching.get_act_patch_resid_pre(bound, bound.corrupt, clean, metric)
    source = run(m, 1, "resid_pre")[1]
    ours = patch_sweep(m, asked(m, 2), source, metric, hook="resid_pre", at=["video[0]", "video[1]", "last"])
    assert (found[:, [2, 3, 6]] - ours).abs().max() <= STORED and found.unique().numel() > 6
    heads = patching.get_act_patch_attn_head_out_all_pos(bound, bound.corrupt, clean, metric)
    one = patching.get_act_patch_attn_head_out_all_pos(m.bind(asked(m, 2)), asked(m, 2).tokens, clean, metric)
    assert torch.equal(heads, one)


@torch.no_grad()
def test_direct_paths_of_a_pair_are_those_of_its_two_runs():
    m = model(2, 2)
    bound = pair(m)
    both = [bound.run_with_cache(ids)[1] for ids in (bound.clean, bound.corrupt)]
    for part in ("q", "v"):
        found = patching.get_act_patch_direct_path_all_sources(
            bound, bound.corrupt, *both, metric, component=part, verbose=False
        )
        for head in range(2):
            delta = (both[0]["z", 0] - both[1]["z", 0])[:, :, head] @ m.W_O[0, head]

            def edit(act, hook, delta=delta):
                act = act.clone()
                act[:, :, 1] += delta
                return act

            by_hand = m.run_with_hooks(asked(m, 2), fwd_hooks=[(f"blocks.1.attn.hook_{part}_input", edit)])
            assert abs(found[0, head, 1, 1].item() - metric(by_hand).item()) <= STORED


POINT = "blocks.0.hook_resid_post"


def test_an_aligned_subspace_is_exchanged_between_two_videos():
    """DAS: the first epoch's loss, and the logits under what it learned, by hooks of our own."""
    m = model()
    bound, at = two_pairs(m), torch.tensor([3, 3])
    labels = torch.tensor([0, 1])

    def task(tokens):
        return bound(tokens)[:, -1, [7, 9]]

    given = dict(base_positions=at, source_positions=at, rank=2, epochs=3, batch_size=2, device="cpu")
    found = fit_das(bound, POINT, bound.corrupt, bound.clean, labels, task, **given)
    assert not any(p.requires_grad for p in m.parameters()) and all(p.grad is None for p in m.parameters())

    @torch.no_grad()
    def by_hand(basis):
        rows = []
        for clean, corrupt in ((1, 2), (3, 4)):
            source = run(m, clean)[1]["resid_post", 0][0, 3]

            def edit(act, hook, source=source):
                act = act.clone()
                act[0, 3] += (source - act[0, 3]) @ basis @ basis.T
                return act

            rows.append(m.run_with_hooks(asked(m, corrupt), fwd_hooks=[(POINT, edit)])[0, -1, [7, 9]])
        return torch.stack(rows)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = LearnedSubspace(32, 2).basis.detach().double()
    assert abs(found.losses[0] - cross_entropy(by_hand(start), labels).item()) <= STORED
    assert found.losses[2] < found.losses[0]
    sources = collect_activations(bound, POINT, bound.clean, task, positions=at)
    learned = intervened_logits(
        bound, POINT, SubspaceInterchange(found.basis), bound.corrupt, sources, task, positions=at
    )
    assert apart(learned, by_hand(found.basis.double())) <= ROUNDING


def test_tokens_that_name_no_video_or_several_are_refused():
    m = model()
    bound = two_pairs(m)
    mixed = bound.clean.clone()
    mixed[0, 3] = bound.corrupt[0, 3]
    for tokens, words in (
        (asked(m, 1).tokens, "do not say which video"),
        (None, "do not say which video"),
        (bound.clean[0], "do not say which video"),
        (bound.clean.clamp(min=0), "without a video of this pair"),
        (bound.clean - 10, "without a video of this pair"),
        (mixed, "names several videos"),
        (bound.clean.roll(1), "do not fit this input"),
        (bound.clean[:, 1:], "do not fit this input"),
    ):
        for call in (bound, bound.run_with_cache, lambda t: bound.run_with_hooks(t, fwd_hooks=[])):
            with pytest.raises(InputError, match=words):
                call(tokens)


def test_unlike_pairs_are_refused_in_words():
    m = random_model("qwen3-vl")
    one = rich_inputs(m)
    wide = m.inputs_from_tensors(one.tokens, one.pixel_values[0].transpose(2, 3))
    for corrupt, words in (
        (rich_inputs(m, n_frames=6), "the clean video has 4 frames, the corrupt one 6"),
        (wide, "cells, 0 of all dropped, a corrupt one"),
        (random_inputs(m, n_text=9), "the clean prompt has question at positions .*, the corrupt one question at"),
        (rich_inputs(m, n_text=12), "the clean prompt has question at positions"),
        (VideoInputs.stack([one, one]), "1 clean inputs and 2 corrupt ones"),
        (m.inputs_from_tensors(torch.tensor([1, 2, 3])), "an input without a video"),
        (["other.mp4"], "str is no input: give what model.prepare"),
        (None, "NoneType is no input: give what model.prepare"),
    ):
        with pytest.raises(InputError, match=words):
            m.bind_pair(one, corrupt)
    with pytest.raises(InputError, match="Tensor is no input"):
        m.bind(one.tokens)
    with pytest.raises(InputError, match="no inputs to stack"):
        m.bind_pair([], [])
