"""TransformerLens's decompositions, lenses and attributions on our caches, at video positions as at text."""

from functools import cache

import pytest
import torch
from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch, logit_lens
from transformer_lens.tools.analysis.attribution_patching import Node, faithfulness

from hookedvid.errors import InputError
from lens_model import STORED, caches, inputs, metric, model

pytestmark = pytest.mark.shapes_unchecked

# float64: sums of some dozen terms of size 1 in another order.
SUM = 1e-12


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@cache
def run():
    """(logits, cache) of the clean input; positions 2 to 4 are video."""
    m = model()
    with torch.no_grad():
        return m.run_with_cache(inputs(m, 1))


def test_video_positions_are_among_those_compared():
    layout = run()[1].layout
    assert layout.mask("video").tolist() == [False, False, True, True, True, False, False]


@pytest.mark.parametrize(("layer", "mlp_input"), [(0, False), (0, True), (1, False), (1, True), (2, False)])
def test_decompose_resid_sums_to_the_stream(layer, mlp_input):
    cache = run()[1]
    stack, labels = cache.decompose_resid(layer, mlp_input=mlp_input, return_labels=True)
    whole = cache["resid_post", -1] if layer == 2 else cache["resid_mid" if mlp_input else "resid_pre", layer]
    assert apart(stack.sum(0), whole) <= SUM
    assert labels[0] == "embed" and len(labels) == 1 + 2 * layer + mlp_input


@torch.no_grad()
def test_accumulated_resid_is_each_stream_and_its_final_norm():
    logits, cache = run()
    stack, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
    streams = [cache[name, layer] for layer in (0, 1) for name in ("resid_pre", "resid_mid")] + [cache["resid_post", 1]]
    normed = cache.accumulated_resid(incl_mid=True, apply_ln=True)
    for i, stream in enumerate(streams):
        assert torch.equal(stack[i], stream)
        assert apart(normed[i], model().ln_final.plain(stream)) <= SUM
    assert apart(normed[-1] @ model().W_U, logits) <= SUM * logits.abs().max()


@torch.no_grad()
def test_a_decomposition_at_an_inner_layer_is_divided_by_its_scale():
    cache, block = run()[1], model().blocks[1]
    stack = cache.decompose_resid(1, apply_ln=True)
    assert apart(stack.sum(0) * block.ln1.weight, block.ln1.plain(cache["resid_pre", 1])) <= SUM


@pytest.mark.parametrize("remainder", [False, True])
def test_head_results_sum_to_the_stream(remainder):
    cache = run()[1]
    stack, labels = cache.stack_head_results(incl_remainder=remainder, return_labels=True)
    assert labels == [*model().all_head_labels(), *(["remainder"] if remainder else [])]
    if remainder:
        whole = cache["resid_post", -1]
    else:
        whole = sum(cache["attn_out", i] for i in (0, 1)) - model().accumulated_bias(2)
    assert apart(stack.sum(0), whole) <= SUM


@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("layer", "mlp_input"), [(1, False), (1, True), (2, False)])
def test_the_full_decomposition_sums_to_the_stream(layer, mlp_input, bias, expand):
    m = model(bias=bias)
    with torch.no_grad():
        _, cache = m.run_with_cache(inputs(m, 1))
    stack, labels = cache.get_full_resid_decomposition(layer, mlp_input, expand_neurons=expand, return_labels=True)
    whole = cache["resid_mid", 1] if mlp_input else cache["resid_post", layer - 1]
    assert len(labels) == len(stack) == 4 * (layer + mlp_input) + layer * (12 if expand else 1) + 2
    assert apart(stack.sum(0), whole) <= SUM
    assert (stack[labels.index("bias")].abs().max() > 0) == bias


@pytest.mark.parametrize("parts", ["decompose_resid", "get_full_resid_decomposition"])
def test_logit_attributions_sum_to_the_logits(parts):
    logits, cache = run()
    stack = getattr(cache, parts)()
    for token, other in ((7, None), (7, 9)):
        wanted = logits[..., token] - (0 if other is None else logits[..., other])
        found = cache.logit_attrs(stack, token, other)
        assert apart(found.sum(0), wanted) <= SUM * logits.abs().max()
    per_position = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    wanted = logits.gather(-1, per_position[..., None])[..., 0]
    assert apart(cache.logit_attrs(stack, per_position).sum(0), wanted) <= SUM * logits.abs().max()


def test_the_logit_lens_ends_in_the_models_own_logits():
    logits, cache = run()
    found = cache.logit_lens(positions=None)
    assert found.labels == ["0_pre", "1_pre", "final_post"]
    assert apart(found.values[-1], logits) <= SUM * logits.abs().max()
    early = model().ln_final.plain(cache["resid_pre", 1]) @ model().W_U
    assert apart(found.values[1], early.detach()) <= SUM * logits.abs().max()
    target = logit_lens(model(), inputs(model(), 1), targets=[7], positions=None)
    assert apart(target.values, found.values[..., [7]]) <= SUM * logits.abs().max()


def gradient(m, name: str, at: tuple) -> torch.Tensor:
    """d metric / d activation in the corrupted run, by a zero added there instead of a backward hook."""
    zero: list[torch.Tensor] = []

    def add(act, hook):
        zero.append(torch.zeros_like(act, requires_grad=True))
        return act + zero[0]

    out = metric(m.run_with_hooks(inputs(m, 2), fwd_hooks=[(name, add)]))
    return torch.autograd.grad(out, zero)[0][at]


@cache
def attributed(heads: tuple[int, int], granularity: str):
    m = model(*heads)
    return attribution_patch(
        m.bind(inputs(m, 2)), clean_tokens(m), inputs(m, 2).tokens, metric, EdgeAttributionConfig(granularity)
    )


def clean_tokens(m):
    return inputs(m, 1).tokens


@cache
def clean_text(m):
    """Activations of the clean text with the corrupted input's video: what a bound model runs on other tokens."""
    with torch.no_grad():
        return m.run_with_cache(inputs(m, 2).with_tokens(clean_tokens(m)))[1]


NODES = [
    Node("embed", 1),
    Node("embed", 5),
    Node("attn_head_out", 6, layer=0, head=1),
    Node("attn_head_out", 3, layer=0, head=0),
    Node("mlp_out", 6, layer=0),
    Node("mlp_out", 4, layer=0),
    Node("mlp_out", 6, layer=1),
    Node("attn_head_out", 6, layer=1, head=0),
]


@pytest.mark.parametrize("heads", [(4, 2), (2, 2)])
def test_node_attributions_are_gradients_times_differences(heads):
    m = model(*heads)
    scores = attributed(heads, "node").node_scores
    assert len(scores) == 7 * (1 + 2 * (heads[0] + 1))
    for node in NODES:
        at = (0, node.position) if node.head is None else (0, node.position, node.head)
        change = clean_text(m)[node.hook_name][at] - caches(m)[1][node.hook_name][at]
        assert abs((change * gradient(m, node.hook_name, at)).sum().item() - scores[node]) <= STORED
    assert all(scores[n] for n in NODES)


def test_edge_attributions_are_reader_gradients_times_writer_differences():
    m = model(2, 2)
    scores = attributed((2, 2), "edge").edge_scores
    edges = [
        (Node("embed", 5), Node("q_input", 5, 0, 1)),
        (Node("embed", 5), Node("k_input", 5, 1, 0)),
        (Node("attn_head_out", 3, 0, 1), Node("v_input", 3, 1, 1)),
        (Node("attn_head_out", 4, 0, 0), Node("mlp_in", 4, 0)),
        (Node("mlp_out", 6, 0), Node("mlp_in", 6, 1)),
        (Node("mlp_out", 6, 1), Node("logits", 6, 1)),
    ]
    for writer, reader in edges:
        name = writer.hook_name.replace("hook_z", "hook_result")
        put = (0, writer.position) if writer.head is None else (0, writer.position, writer.head)
        got = (0, reader.position) if reader.head is None else (0, reader.position, reader.head)
        with torch.no_grad():
            before = m.run_with_cache(inputs(m, 2), names_filter=name)[1][name][put]
            after = m.run_with_cache(inputs(m, 2).with_tokens(clean_tokens(m)), names_filter=name)[1][name][put]
        wanted = ((after - before) * gradient(m, reader.hook_name, got)).sum().item()
        assert abs(scores[writer, reader] - wanted) <= STORED and wanted != 0


def test_a_writers_edges_sum_to_its_node_score():
    nodes, edges = attributed((2, 2), "node").node_scores, attributed((2, 2), "edge").node_scores
    assert all(abs(nodes[n] - edges[n]) <= STORED for n in nodes)


def test_all_edges_recover_the_clean_metric_and_none_the_corrupted_one():
    m = model(2, 2)
    bound, edges = m.bind(inputs(m, 2)), list(attributed((2, 2), "edge").edge_scores)
    for circuit, recovered in ((edges, 1.0), ([], 0.0)):
        found = faithfulness(bound, clean_tokens(m), inputs(m, 2).tokens, metric, circuit)
        assert abs(found.recovered - recovered) <= STORED


def test_grouped_keys_are_refused_by_edge_attribution_as_by_transformer_lens():
    with pytest.raises(ValueError, match="GQA/MQA"):
        attributed((4, 2), "edge")


def test_bound_models_refuse_tokens_that_do_not_fit():
    m = model()
    bound = m.bind(inputs(m, 1))
    shorter, moved = bound.tokens[:, :-1], bound.tokens.roll(1)
    for tokens in (shorter, moved):
        for call in (bound, bound.run_with_cache, lambda t: bound.run_with_hooks(t, fwd_hooks=[])):
            with pytest.raises(InputError, match=r"do not fit this input .*start from its own .tokens"):
                call(tokens)
