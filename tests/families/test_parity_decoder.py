"""Our decoder against transformers' Qwen2, Qwen3 and Llama on the same weights: the same bits, not nearly the same."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_models import D_VOCAB, DECODERS, decoder, decoder_config, random_ids
from hookedvid import HookedVideoLLM
from hookedvid.checkpoints.fill import fill
from hookedvid.conversion import tables
from hookedvid.values.config import DecoderConfig, RopeConfig, VideoLLMConfig

pytestmark = pytest.mark.shapes_unchecked

IDS = random_ids(2, 37)


@torch.no_grad()
def both(hf, ids=IDS, **kwargs):
    """Logits of transformers and of ours, loaded from it."""
    return hf(ids).logits, HookedVideoLLM.from_transformers(hf, **kwargs)(ids)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", DECODERS)
def test_logits_are_bitwise_those_of_transformers(kind, kv_heads, dtype, kernel):
    theirs, ours = both(decoder(kind, num_key_value_heads=kv_heads, dtype=dtype, kernel=kernel), kernel=kernel)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", DECODERS)
def test_every_block_output_is_bitwise_that_of_transformers(kind):
    hf = decoder(kind)
    with torch.no_grad():
        hidden = hf(IDS, output_hidden_states=True).hidden_states
        _, cache = HookedVideoLLM.from_transformers(hf).run_with_cache(IDS, names_filter=["embed", "resid_post"])
    assert torch.equal(cache["embed"], hidden[0])
    # The last of transformers' hidden states is normalised, so the last block's output is not among them.
    for i in range(hf.config.num_hidden_layers - 1):
        assert torch.equal(cache["resid_post", i], hidden[i + 1])


def test_kernels_differ_so_that_parity_can_fail():
    hf = decoder(dtype=torch.bfloat16)
    theirs, ours = both(hf, kernel="eager")
    assert not torch.equal(ours, theirs)


def test_a_tied_head_is_the_embedding():
    hf = decoder(tie_word_embeddings=True)
    model = HookedVideoLLM.from_transformers(hf)
    assert model.unembed.weight is model.embed.weight
    assert torch.equal(*both(hf))


@pytest.mark.parametrize("given", [{"head_dim": 16}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e9}}])
def test_head_width_and_theta_come_from_the_config(given):
    theirs, ours = both(decoder("llama", **given))
    assert torch.equal(ours, theirs)
    assert ours.shape == (2, 37, D_VOCAB)


@pytest.mark.parametrize("tied", [False, True])
def test_llama_with_attention_bias(tied):
    hf = decoder("llama", attention_bias=True, tie_word_embeddings=tied)
    model = HookedVideoLLM.from_transformers(hf)
    assert model.cfg.lm.qkv_bias and model.cfg.lm.o_bias
    assert model.b_O.abs().min() > 0
    assert torch.equal(*both(hf))


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh"])
def test_other_activations(activation):
    assert torch.equal(*both(decoder("llama", hidden_act=activation)))


def rope(kind: str, **given):
    return {"rope_type": kind, "factor": 2.0, "rope_theta": 1e6, **given}


def test_linear_rope():
    hf, plain = decoder("llama", rope_parameters=rope("linear")), decoder("llama", rope_parameters=rope("default"))
    assert torch.equal(*both(hf))
    assert not torch.equal(both(hf)[1], both(plain)[1])


@pytest.mark.parametrize("n", [31, 32, 33, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dynamic_ntk_rope_on_both_sides_of_the_context_length(n, dtype):
    """Bitwise while the growth of theta, 2n / 32 - 1, is a float32."""
    hf = decoder("llama", rope_parameters=rope("dynamic"), max_position_embeddings=32, dtype=dtype)
    theirs, ours = both(hf, random_ids(1, n))
    assert torch.equal(ours, theirs)
    plain = decoder("llama", rope_parameters=rope("default"), max_position_embeddings=32, dtype=dtype)
    changed = not torch.equal(both(plain, random_ids(1, n))[1], ours)
    assert changed == (n > 32)


# transformers grows theta in float32 (its sequence length is a tensor); we do it in Python floats, as InternLM2's
# own code does. Where the growth is no float32, the frequencies differ in their last bit.
GROWTH_IN_FLOAT32 = 1e-6


@pytest.mark.parametrize("n", [41, 60, 77, 100])
def test_dynamic_ntk_rope_of_any_growth(n):
    hf = decoder("llama", rope_parameters=rope("dynamic", factor=1.7), max_position_embeddings=40)
    theirs, ours = both(hf, random_ids(1, n))
    assert (ours - theirs).abs().max() <= GROWTH_IN_FLOAT32 * theirs.abs().max()


@pytest.mark.parametrize("kind", DECODERS)
def test_a_checkpoint_loaded_with_dtype_keeps_parity(kind, tmp_path):
    decoder(kind).save_pretrained(tmp_path)
    hf = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    theirs, ours = both(hf)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)


def internlm2_weights(cfg: DecoderConfig) -> dict[str, torch.Tensor]:
    """Random tensors in InternLM2's names and shapes."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.1

    d, rows = cfg.d_model, (cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.d_head
    weights = {"model.tok_embeddings.weight": random(cfg.d_vocab, d), "model.norm.weight": 1 + random(d)}
    for i in range(cfg.n_layers):
        layer = f"model.layers.{i}"
        weights |= {
            f"{layer}.attention.wqkv.weight": random(rows, d),
            f"{layer}.attention.wo.weight": random(d, cfg.n_heads * cfg.d_head),
            f"{layer}.feed_forward.w1.weight": random(cfg.d_mlp, d),
            f"{layer}.feed_forward.w3.weight": random(cfg.d_mlp, d),
            f"{layer}.feed_forward.w2.weight": random(d, cfg.d_mlp),
            f"{layer}.attention_norm.weight": 1 + random(d),
            f"{layer}.ffn_norm.weight": 1 + random(d),
        }
    return {**weights, "output.weight": random(cfg.d_vocab, d)}


def as_llama(weights: dict[str, torch.Tensor], cfg: DecoderConfig) -> dict[str, torch.Tensor]:
    """The same in Llama's names, split by a plain loop over key-value heads, as the remote code's view reads."""
    names = {
        "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj",
        "feed_forward.w2": "mlp.down_proj", "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm", "model.tok_embeddings": "model.embed_tokens", "output.": "lm_head.",
    }  # fmt: skip
    out: dict[str, torch.Tensor] = {}
    groups, h = cfg.n_heads // cfg.n_kv_heads, cfg.d_head
    for name, t in weights.items():
        if "wqkv" in name:
            layer = name.split(".attention")[0]
            heads = [t[i * h : (i + 1) * h] for i in range(len(t) // h)]
            per_kv = [heads[i : i + groups + 2] for i in range(0, len(heads), groups + 2)]
            out[f"{layer}.self_attn.q_proj.weight"] = torch.cat([x for g in per_kv for x in g[:groups]])
            out[f"{layer}.self_attn.k_proj.weight"] = torch.cat([g[groups] for g in per_kv])
            out[f"{layer}.self_attn.v_proj.weight"] = torch.cat([g[groups + 1] for g in per_kv])
            continue
        for theirs, llamas in names.items():
            name = name.replace(theirs, llamas)
        out[name] = t
    return out


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("n", [20, 60])
def test_internlm2_tensors_give_the_logits_of_the_same_llama(heads, kv_heads, n):
    cfg = DecoderConfig(
        n_layers=2, d_model=32, n_heads=heads, n_kv_heads=kv_heads, d_head=8, d_mlp=48, d_vocab=D_VOCAB, n_ctx=40,
        eps=1e-5, rope=RopeConfig(theta=1e6, scaling="dynamic", factor=2.0),
    )  # fmt: skip
    weights = internlm2_weights(cfg)
    ours = fill(
        HookedVideoLLM(VideoLLMConfig(family="internlm2", decoder=cfg)),
        weights,
        tables.internlm2(cfg, "model.", "output.weight"),
        "random InternLM2 tensors",
    )
    config = decoder_config(
        "llama", num_hidden_layers=2, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=8,
        rope_parameters=rope("dynamic"), max_position_embeddings=40, rms_norm_eps=1e-5,
    )  # fmt: skip
    hf = DECODERS["llama"][0](config).eval()
    hf.load_state_dict(as_llama(weights, cfg))
    ids = random_ids(1, n)
    with torch.no_grad():
        logits, theirs = ours(ids), hf(ids).logits
    if n <= cfg.n_ctx:
        assert torch.equal(logits, theirs)
    assert (logits - theirs).abs().max() <= GROWTH_IN_FLOAT32 * theirs.abs().max()
