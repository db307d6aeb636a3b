"""Every format gives the features its own code would, by formulas written here; an edit changes one feature alone."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hookedvid import SAE, Session, load_sae, loss_recovered
from hookedvid.activations import sae as saes
from hookedvid.activations.sae import Parts
from hookedvid.errors import DataError, InputError
from hookedvid.sweep.run import sweep
from models import ROUNDING, UNLIKE, random_inputs, random_model

pytestmark = pytest.mark.shapes_unchecked
D, F = 12, 20
G = torch.Generator().manual_seed(0)


def n(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


W_ENC, B_ENC, W_DEC, B_DEC, X = n(D, F), n(F), n(F, D), n(D), n(3, 5, D)
THRESHOLD, R_MAG, B_GATE, B_MAG, SKIP = n(F).abs(), n(F) * 0.3, n(F), n(F), n(D, D)


def relu(pre: torch.Tensor) -> torch.Tensor:
    return torch.maximum(pre, torch.zeros(()))


def jump(pre: torch.Tensor, threshold: torch.Tensor = THRESHOLD) -> torch.Tensor:
    return torch.where(pre > threshold, relu(pre), 0.0)


def top(pre: torch.Tensor, k: int = 4) -> torch.Tensor:
    cut = pre.sort(-1, descending=True).values[..., k - 1 : k]
    return torch.where(pre >= cut, relu(pre), 0.0)


def gated(x: torch.Tensor) -> torch.Tensor:
    return (x @ W_ENC + B_GATE > 0) * relu(x @ (W_ENC * R_MAG.exp()) + B_MAG)


LENS = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
LINEAR = {"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "decoder.weight": W_DEC.T}
PLAIN, CENTRED = X @ W_ENC + B_ENC, (X - B_DEC) @ W_ENC + B_ENC
NORMS = W_DEC.norm(dim=1)


def written(path):
    """A file without tensors."""
    path.write_bytes(b"none")
    return path


def saelens(folder, cfg, tensors):
    folder.mkdir()
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


def learned(folder, trainer, tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    torch.save(tensors, folder / "ae.pt")
    return folder


def pt(path, tensors):
    torch.save(tensors, path.with_suffix(".sae.pt"))
    return path.with_suffix(".sae.pt")


def npz(path, tensors):
    np.savez(path.with_suffix(".npz"), **{k: v.numpy() for k, v in tensors.items()})
    return path.with_suffix(".npz")


def st(path, tensors):
    save_file({k: v.contiguous() for k, v in tensors.items()}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


TOPK = {"k": torch.tensor(4), "threshold": torch.tensor(0.5)}
OLD = {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}, "hook_name": "h"}
GATES = {"r_mag": R_MAG, "b_mag": B_MAG, "b_gate": B_GATE}
SCOPE = {k.lower(): v for k, v in LENS.items()}
FORMATS = {
    "saelens standard": (lambda p: saelens(p, {"architecture": "standard"}, LENS), {}, relu(CENTRED)),
    "saelens jumprelu": (
        lambda p: saelens(
            p, {"architecture": "jumprelu", "apply_b_dec_to_input": False, "normalize_activations": "none"},
            LENS | {"threshold": THRESHOLD},
        ), {}, jump(PLAIN),
    ),
    "saelens old topk": (lambda p: saelens(p, OLD, LENS | {"scaling_factor": torch.ones(F)}), {}, top(CENTRED)),
    "saelens gated": (
        lambda p: saelens(p, {"architecture": "gated"}, {k: v for k, v in LENS.items() if k != "b_enc"} | GATES), {},
        gated(X - B_DEC),
    ),
    "dictionary_learning": (
        lambda p: learned(p, {"dict_class": "AutoEncoder"}, LINEAR | {"bias": B_DEC}), {}, relu(CENTRED)
    ),
    "dictionary_learning topk": (
        lambda p: learned(p, {"dict_class": "AutoEncoderTopK", "k": 4}, LINEAR | {"b_dec": B_DEC} | TOPK), {},
        top(CENTRED),
    ),
    "dictionary_learning batchtopk": (
        lambda p: pt(p, LINEAR | {"b_dec": B_DEC} | TOPK), {"activation": "jumprelu"},
        jump(CENTRED, torch.tensor(0.5)),
    ),
    "dictionary_learning gated": (
        lambda p: learned(
            p, {"dict_class": "GatedAutoEncoder"},
            {
                "encoder.weight": W_ENC.T, "decoder.weight": W_DEC.T, "decoder_bias": B_DEC, "r_mag": R_MAG,
                "gate_bias": B_GATE, "mag_bias": B_MAG,
            },
        ), {}, gated(X - B_DEC),
    ),
    "linear layers": (lambda p: pt(p, LINEAR | {"decoder.bias": B_DEC}), {}, relu(PLAIN)),
    "gemma scope": (lambda p: npz(p, LENS | {"threshold": THRESHOLD}), {}, jump(PLAIN)),
    "qwen scope": (
        lambda p: pt(p, {"W_enc": W_ENC.T, "W_dec": W_DEC.T, "b_enc": B_ENC, "b_dec": B_DEC}), {"k": 4}, top(PLAIN)
    ),
}  # fmt: skip


@pytest.mark.usefixtures("shapes_checked")
@pytest.mark.parametrize("kind", FORMATS)
def test_features_are_those_of_the_format(kind, tmp_path, monkeypatch):
    write, how, wanted = FORMATS[kind]
    sae = load_sae(write(tmp_path / "sae"), **how)
    found = sae.encode(X)
    assert (found - wanted).abs().max() < 1e-12 and 0 < (wanted > 0).double().mean() < 0.8
    assert (sae(X) - (wanted @ W_DEC + B_DEC)).abs().max() < 1e-11
    monkeypatch.setattr(saes, "FEATURES", 2 * F)  # two rows at a time
    assert (sae.encode(X, [3, 0]) - wanted[..., [3, 0]]).abs().max() < 1e-12
    assert (sae(X) - (wanted @ W_DEC + B_DEC)).abs().max() < 1e-11
    assert (sae.d_in, sae.n_features) == (D, F) and f"{F} features of {D} numbers" in repr(sae)
    assert not list(sae.parameters())


def test_transcoders(tmp_path):
    cfg = {"architecture": "jumprelu_skip_transcoder", "metadata": {"hook_name": "a", "hook_name_out": "b"}}
    for path, how in (
        (saelens(tmp_path / "s", cfg, LENS | {"threshold": THRESHOLD, "W_skip": SKIP.T}), {}),
        (st(tmp_path / "g", SCOPE | {"threshold": THRESHOLD, "affine_skip_connection": SKIP}), {}),
        (
            st(
                tmp_path / "c",
                {"W_enc": W_ENC.T, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC, "W_skip": SKIP.T,
                 "activation_function.threshold": THRESHOLD},
            ),
            {"hook": "a", "hook_out": "b"},
        ),
    ):  # fmt: skip
        sae = load_sae(path, **how)
        assert (sae(X) - (jump(PLAIN) @ W_DEC + B_DEC + X @ SKIP)).abs().max() < 1e-11
        with pytest.raises(InputError, match="add its decoder's row there"):
            sae.edit("mlp_out", 0, 3, value=1)
        with pytest.raises(InputError, match="give decode the rows that it read"):
            sae.decode(sae.encode(X))
        assert sae.writes_elsewhere


def test_decoder_norms_choose_the_largest(tmp_path):
    cfg = {"architecture": "topk", "k": 4, "rescale_acts_by_decoder_norm": True}
    sae = load_sae(saelens(tmp_path / "s", cfg, LENS))
    wanted = top(CENTRED * NORMS)
    assert (sae.encode(X) - wanted).abs().max() < 1e-12
    assert (sae(X) - (wanted / NORMS @ W_DEC + B_DEC)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("write", "how", "says"),
    [
        (
            lambda p: pt(p, {k: v.T if v.ndim == 2 else v for k, v in LENS.items()}),
            {},
            "give k=… .TopK., or activation",
        ),
        (lambda p: pt(p, LINEAR | {"b_dec": B_DEC} | TOPK), {}, "cut by one of them"),
        (lambda p: pt(p, LINEAR | {"b_dec": B_DEC} | TOPK), {"k": 5}, "says 4"),
        (lambda p: pt(p, LENS), {"activation": "jumprelu"}, "holds no threshold"),
        (lambda p: pt(p, {**LENS, "W_dec.3": B_DEC}), {"k": 2}, "holds W_dec.3"),
        (lambda p: pt(p, {"W_enc": W_ENC}), {"k": 2}, "no encoder and decoder"),
        (lambda p: pt(p, {**LENS, "W_enc": n(F, F), "W_dec": n(F, F)}), {"k": 2}, "as many features as numbers"),
        (lambda p: pt(p, {**LENS, "W_enc": n(D, 7)}), {"k": 2}, "no layer of its own"),
        (lambda p: saelens(p, {"architecture": "temporal"}, LENS), {}, "'temporal'"),
        (lambda p: saelens(p, {"normalize_activations": "layer_norm"}, LENS), {}, "fold that into its weights"),
        (lambda p: saelens(p, {}, LENS | {"scaling_factor": n(F)}), {}, "scaling_factor other than 1"),
        (lambda p: learned(p, {"dict_class": "MatryoshkaBatchTopKSAE"}, LENS), {}, "is a MatryoshkaBatchTopKSAE"),
        (lambda p: saelens(p, {"metadata": [1]}, LENS), {}, "metadata is .1., which is no object"),
        (lambda p: saelens(p, {}, LENS), {"k": 3}, "keeps all; leave k out"),
        (lambda p: saelens(p, {"architecture": "gated"}, LENS | {"r_mag": n(1), "b_gate": n(F)}), {}, "r_mag .1,."),
        (lambda p: pt(p, LINEAR | {"b_dec": B_DEC, "k": torch.tensor(3.7)}), {}, "is no whole number"),
        (lambda p: learned(p, None, LENS), {}, "of no class"),
        (lambda p: pt(p, {"a": print}), {}, "holds more than tensors"),
        (lambda p: written(p.with_suffix(".txt")), {}, "is no .safetensors, .npz or .pt file"),
        (lambda p: written(p.with_suffix(".safetensors")), {}, "cannot read tensors"),
        (lambda p: p, {}, "there is no .*sae"),
        (lambda p: p.parent, {}, "holds no SAE that is known here"),
    ],
)
def test_what_is_not_known_is_refused_in_words(write, how, says, tmp_path):
    with pytest.raises(DataError, match=says):
        load_sae(write(tmp_path / "sae"), **how)


def sae_of(d: int, **more) -> SAE:
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((d, 9), (9,), (9, d), (d,))]
    return SAE(Parts(*parts, **more), "blocks.1.hook_resid_post")


@pytest.mark.parametrize("name", UNLIKE)
def test_an_edit_changes_a_feature_and_keeps_what_is_not_reconstructed(name):
    model = random_model(name)
    inputs, sae = random_inputs(model), sae_of(model.cfg.d_model)
    run = {"names_filter": "resid_post", "return_type": None}
    before = model.run_with_cache(inputs, **run)[1].at("resid_post", 1, "video").detach()
    f = sae.encode(before)
    feature = int((f > 0).double().mean((0, 1)).argmax())
    for how, new in (({"value": 3}, torch.full_like(f[..., feature], 3)), ({"scale": -2}, -2 * f[..., feature])):
        edit = sae.edit("resid_post", 1, feature, at="video", **how)
        after = model.run_with_cache(inputs, interventions=edit, **run)[1].at("resid_post", 1, "video").detach()
        wanted = before + (new - f[..., feature])[..., None] * sae.W_dec[feature]
        assert (after - wanted).abs().max() <= ROUNDING * wanted.abs().max()
        changed = f.clone()
        changed[..., feature] = new
        assert ((after - sae.decode(changed)) - (before - sae.decode(f))).abs().max() < 1e-10
    batch = model.inputs_of(type(inputs).stack([inputs, random_inputs(model, n_text=5, seed=4)]))
    alone = model(inputs, interventions=edit)[0, -1]
    assert (model(batch, interventions=edit)[0, -1] - alone).abs().max() <= ROUNDING * alone.abs().max()
    assert "feature" in edit.label() and "x -2" in edit.label()


def test_a_gradient_goes_through_what_an_edit_reads():
    model = random_model("llava-onevision")
    inputs, edit = random_inputs(model), sae_of(model.cfg.d_model).edit("resid_post", 1, 2, scale=3)
    stream = model.run_with_cache(inputs, names_filter=("resid_pre", 1))[1]["resid_pre", 1].detach()
    way, h = torch.randn(stream.shape, generator=torch.Generator().manual_seed(2), dtype=stream.dtype), 1e-6

    def told(resid):
        return model(resid, start_at_layer=1, inputs=inputs, interventions=edit)[0, -1, 5]

    leaf = stream.clone().requires_grad_()
    slope = float((torch.autograd.grad(told(leaf), leaf)[0] * way).sum())
    assert float(told(stream + h * way) - told(stream - h * way)) / (2 * h) == pytest.approx(slope, rel=1e-6)
    one = sae_of(12)
    assert one(n(12)).shape == (12,) and one(n(0, 12)).shape == (0, 12) and not one(n(12)).requires_grad


def test_edits_by_feature_in_generation_sweeps_and_sessions():
    model = random_model("llava-onevision")
    inputs = random_inputs(model)
    edit = sae_of(model.cfg.d_model).edit("resid_post", 1, 2, value=40, at="last")
    how = {"interventions": edit, "max_new_tokens": 4, "return_type": "tokens"}
    cached, whole = (model.generate(inputs, use_past_kv_cache=c, **how) for c in (True, False))
    assert torch.equal(cached, whole)
    edits = [(sae_of(64).edit("z", 1, i, scale=3, at=at),) for i in (0, 4) for at in ("question", "video[1]")]
    whole = [model(inputs, interventions=e)[0, -1] for e in edits]  # heads are read one behind the other
    swept = sweep(model, [inputs], edits)[0]
    session = Session(model, inputs)
    for i, wanted in enumerate(whole):
        for found in (swept[i], session.logits(edits[i])):
            assert (found - wanted).abs().max() <= ROUNDING * wanted.abs().max()


def test_loss_recovered_is_what_three_runs_say():
    model = random_model("llava-onevision")
    several = [random_inputs(model), random_inputs(model, n_text=5, seed=3)]
    sae = sae_of(model.cfg.d_model)
    found = loss_recovered(model, several, sae)
    total, count = torch.zeros(3, dtype=torch.float64), 0
    for inputs in several:
        for i, fn in enumerate((None, sae, torch.zeros_like)):
            hooks = [] if fn is None else [("blocks.1.hook_resid_post", lambda act, hook, fn=fn: fn(act))]
            logits = model.run_with_hooks(inputs, fwd_hooks=hooks)[0, :, : model.cfg.n_tokens].log_softmax(-1)
            tokens = inputs.tokens[0]
            said = [p for p in range(1, len(tokens)) if tokens[p] >= 0]
            total[i] -= sum(logits[p - 1, tokens[p]].item() for p in said)
        count += len(said)
    assert found.n_tokens == count and abs(found.intact - total[0] / count) < 1e-10
    assert abs(found.reconstructed - total[1] / count) < 1e-10 and abs(found.zeros - total[2] / count) < 1e-10
    assert abs(found.recovered - (total[2] - total[1]) / (total[2] - total[0])) < 1e-10
    one, far = torch.eye(model.cfg.d_model).double(), torch.full((model.cfg.d_model,), 1e6).double()
    perfect = SAE(Parts(one, far, one, -far))
    assert loss_recovered(model, several, perfect, 1, hook="resid_post").recovered == pytest.approx(1, abs=1e-6)
    batch = type(several[0]).stack(several)
    assert loss_recovered(model, batch, sae, at="video").n_tokens == count
    with pytest.raises(InputError, match="no position of 'generated'"):
        loss_recovered(model, several, sae, at="generated")
    with pytest.raises(InputError, match="say which it reads"):
        loss_recovered(model, several, perfect)
    with pytest.raises(InputError, match="say which layer"):
        loss_recovered(model, several, perfect, hook="resid_post")


def test_what_does_not_fit_is_refused():
    sae = sae_of(12)
    for call, says in (
        (lambda: sae.encode(n(2, 11)), "rows hold 11 numbers, and this SAE reads 12"),
        (lambda: sae.encode(n(2, 12), [9]), "are not all among 9"),
        (lambda: sae.edit("z", 0, 9, value=0), "feature 9 is none of 9"),
        (lambda: sae.edit("z", 0, True, value=0), "feature True is none of 9"),
        (lambda: sae.edit("z", 0, 0), "say what becomes"),
        (lambda: sae.edit("z", 0, 0, scale=float("nan")), "not nan"),
        (lambda: sae_of(12, k=2.0), "k is 2.0"),
        (lambda: sae_of(12, b_in=torch.ones(12, dtype=torch.int32)), "b_in, torch.int32, is not of finite"),
        (lambda: sae_of(12, b_in=torch.full((12,), float("inf"))), "is not of finite"),
        (lambda: load_sae("any.npz", activation="gelu"), "no activation 'gelu'"),
        (lambda: sae_of(12, k=10), "k is 10"),
        (lambda: SAE(Parts(W_ENC, B_DEC, W_DEC, B_DEC)), "b_enc .12,."),
    ):
        with pytest.raises(InputError, match=says):
            call()
