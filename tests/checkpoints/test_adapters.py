"""LoRA adapters: merged here and merged by peft give the same weights, bit for bit; what does not fit is refused."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import lazy_loader
import pytest
import torch
from safetensors.torch import load_file, save_file

import hf_models
from hookedvid import HookedVideoLLM, small_config
from hookedvid.checkpoints.lora import BESIDE, CONFIG, WEIGHTS, merge
from hookedvid.conversion.rules import to_ours, to_theirs
from hookedvid.conversion.tables import internlm2
from hookedvid.errors import ConversionError
from hookedvid.families import llava

pytestmark = pytest.mark.shapes_unchecked
peft: Any = lazy_loader.load("peft")  # imports for seconds; only the process that runs these tests waits

ATTN = ["q_proj", "k_proj", "v_proj", "o_proj"]
QWEN_VL = ["qkv", "attn.proj", "linear_fc1", "linear_fc2", "mlp.0", "mlp.2"]
EVERYWHERE = [
    *ATTN, *QWEN_VL, "out_proj", "gate_proj", "up_proj", "down_proj", "fc1", "fc2", "linear_1", "linear_2", "lm_head",
]  # fmt: skip


def trained(base: Any, folder: Path, **given: Any) -> Path:
    """An adapter of peft's, no tensor of it at its initial value."""
    model: Any = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **given}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * (0.3 if "lora_" in name else 0.1))
    model.create_or_update_model_card = lambda *_: None  # which nobody reads
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers`")  # what it does for a head, too
        model.save_pretrained(folder)
    return folder


def merged_by_peft(base: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Our tensors of what peft makes of a base model and an adapter's folder."""
    model: Any = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).merge_and_unload()
    return tensors(HookedVideoLLM.from_transformers(model.to(base.dtype)))


def merged_here(base: Any, folder: Path) -> dict[str, torch.Tensor]:
    model = HookedVideoLLM.from_transformers(base)
    merge(model, folder, folder)
    return tensors(model)


def tensors(model: HookedVideoLLM) -> dict[str, torch.Tensor]:
    return {k: p.detach().clone() for k, p in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def rewritten(folder: Path, to: Path, rename: Any = None, **config: Any) -> Path:
    """A copy of an adapter with other names or config fields; a name that becomes None is left out."""
    held = load_file(folder / WEIGHTS)
    to.mkdir()
    named = {(rename(k) if rename else k): t for k, t in held.items()}
    save_file({k: t for k, t in named.items() if k is not None}, to / WEIGHTS)
    fields = json.loads((folder / CONFIG).read_text())
    (to / CONFIG).write_text(json.dumps({**fields, **config}))
    return to


BASES = {
    "onevision": hf_models.onevision,
    "next_video": hf_models.next_video,
    "Qwen2_5_VL": lambda **given: hf_models.qwen_vl("Qwen2_5_VL", **given),
    "Qwen3VL": lambda **given: hf_models.qwen_vl("Qwen3VL", **given),
    "qwen2": lambda **given: hf_models.decoder("qwen2", **given),
    "llama": lambda **given: hf_models.decoder("llama", **given),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "everywhere": {"target_modules": EVERYWHERE},
    "rslora": {"target_modules": ATTN, "use_rslora": True},
    "patterns": {
        "target_modules": ATTN,
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 3},
        "alpha_pattern": {r"layers.\d.self_attn.k_proj": 11},
    },
    "layers": {"target_modules": ["down_proj"], "layers_to_transform": [0, 2]},
    "head": {"target_modules": ATTN, "modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}


# How a rank scales, and which layers have one, is asked of no name of a model's.
NAMELESS = ("rslora", "layers")


@pytest.mark.parametrize(
    ("kind", "setting"), [(k, s) for k in BASES for s in SETTINGS if s not in NAMELESS or k in ("onevision", "qwen2")]
)
def test_merged_here_is_merged_by_peft(tmp_path, kind, setting):
    check_against_peft(BASES[kind](), tmp_path, setting)


# In bfloat16 peft keeps the adapter in float32 and rounds once, or twice in an embedding; so do we.
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("setting", ["everywhere", "embedding"])
def test_other_dtypes_merge_as_in_peft(tmp_path, setting, dtype):
    check_against_peft(hf_models.onevision(dtype=dtype), tmp_path, setting)


def check_against_peft(base: Any, tmp_path: Path, setting: str) -> None:
    folder = trained(base, tmp_path / "adapter", **SETTINGS[setting])
    ours = merged_here(base, folder)
    assert not same(ours, tensors(HookedVideoLLM.from_transformers(base)))
    assert same(ours, merged_by_peft(base, folder))


@pytest.mark.parametrize(
    "given", [{"modules_to_save": ["multi_modal_projector"]}, {"bias": "lora_only"}, {"bias": "all"}]
)
@pytest.mark.parametrize("kind", ["onevision", "next_video"])
def test_tensors_trained_whole_replace_ours(tmp_path, kind, given):
    base = BASES[kind]()
    folder = trained(base, tmp_path / "adapter", target_modules=ATTN, **given)
    assert same(merged_here(base, folder), merged_by_peft(base, folder))


LAYOUTS = {
    "original": {
        "model.language_model.": "model.",
        "model.vision_tower.": llava.TOWER,
        "model.multi_modal_projector.linear_1": "model.mm_projector.0",
        "model.multi_modal_projector.linear_2": "model.mm_projector.2",
    },
    "transformers 4": {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "lm_head": "language_model.lm_head",
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["onevision", "next_video"])
def test_every_layouts_names_mean_the_same(tmp_path, kind, layout):
    base = BASES[kind]()
    folder = trained(base, tmp_path / "adapter", target_modules=EVERYWHERE)

    def rename(name: str) -> str:
        inner = name.removeprefix("base_model.model.")
        start = next((k for k in LAYOUTS[layout] if inner.startswith(k)), "")
        inner = LAYOUTS[layout].get(start, "") + inner.removeprefix(start)
        return f"base_model.model.{inner}".replace(".lora_A.weight", ".lora_A.default.weight")

    other = rewritten(folder, tmp_path / "other", rename)
    assert load_file(other / WEIGHTS).keys() != load_file(folder / WEIGHTS).keys()
    assert same(merged_here(base, other), merged_here(base, folder))


def test_an_adapter_of_the_inner_decoder_alone_fits_the_whole_model(tmp_path):
    base = hf_models.onevision()
    inner = trained(base.model.language_model, tmp_path / "inner", target_modules=ATTN)
    names = load_file(inner / WEIGHTS)
    assert all(n.startswith("base_model.model.layers.") for n in names)
    ours = merged_here(base, inner)
    base.model.language_model = peft.PeftModel.from_pretrained(base.model.language_model, str(inner)).merge_and_unload()
    assert same(ours, tensors(HookedVideoLLM.from_transformers(base)))


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.", ""])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_internlm2s_fused_weights_take_a_fused_delta(tmp_path, prefix, dtype):
    cfg = small_config("internvideo2.5")
    model = HookedVideoLLM.from_config(cfg).to(dtype)
    generator = torch.Generator().manual_seed(0)
    lm, table = cfg.lm, internlm2(cfg.lm)
    before = {k: v for k, v in tensors(model).items() if not k.startswith(("vision", "projector"))}
    theirs = to_theirs(before, table)
    held = {}
    for i in range(lm.n_layers):
        for name in ("attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"):
            weight = theirs[f"language_model.model.layers.{i}.{name}.weight"]
            b = torch.randn(len(weight), 4, generator=generator)
            a = torch.randn(4, weight.shape[1], generator=generator)
            held[f"base_model.model.{prefix}layers.{i}.{name}.lora_A.weight"] = a
            held[f"base_model.model.{prefix}layers.{i}.{name}.lora_B.weight"] = b
            theirs[f"language_model.model.layers.{i}.{name}.weight"] = (weight + b @ a * 2.0).to(dtype)
    save_file(held, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    merge(model, tmp_path, tmp_path)
    wanted = to_ours(theirs, table, {k: v.shape for k, v in before.items()}, "test")
    after = tensors(model)
    assert same({k: after[k] for k in wanted}, wanted)
    assert not torch.equal(after["blocks.0.attn.k.weight"], before["blocks.0.attn.k.weight"])


def test_from_pretrained_merges_and_knows_of_blocks_it_leaves_out(tmp_path):
    base = hf_models.next_video()
    folder = trained(base, tmp_path / "adapter", target_modules=EVERYWHERE)
    plain = HookedVideoLLM.from_transformers(base)
    plain.save_pretrained(tmp_path / "ours")
    on_disk = (tmp_path / "ours" / "model.safetensors").read_bytes()
    whole = HookedVideoLLM.from_pretrained(str(tmp_path / "ours"), adapter=folder)
    assert same(tensors(whole), merged_by_peft(base, folder))
    short = HookedVideoLLM.from_pretrained(str(tmp_path / "ours"), adapter=folder, first_n_layers=2)
    kept = tensors(short)
    assert same(kept, {k: v for k, v in tensors(whole).items() if k in kept})
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == on_disk


def test_llavas_projector_beside_a_lora_is_taken_too(tmp_path):
    base = hf_models.onevision()
    folder = trained(base, tmp_path / "adapter", target_modules=ATTN)
    weight = torch.randn(32, 32)
    save_file({"base_model.model.model.mm_projector.0.weight": weight}, folder / BESIDE)
    assert torch.equal(merged_here(base, folder)["projector.inp.weight"], weight)
    (folder / BESIDE).rename((folder / BESIDE).with_suffix(".bin"))
    with pytest.raises(ConversionError, match="pickles are never loaded"):
        merged_here(base, folder)


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base() -> Any:
    return hf_models.decoder()


@pytest.fixture(scope="module")
def good(base, tmp_path_factory) -> Path:
    return trained(base, tmp_path_factory.mktemp("lora"), target_modules=ATTN)


def refusal(base: Any, folder: Path) -> str:
    """The message of a refused merge, which has left the model as it was."""
    model = HookedVideoLLM.from_transformers(base)
    before = tensors(model)
    with pytest.raises(ConversionError) as caught:
        merge(model, folder, folder)
    assert same(tensors(model), before)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True), ("peft_type", "LOHA"), ("fan_in_fan_out", True), ("init_lora_weights", "pissa_niter_4"),
        ("trainable_token_indices", [3]), ("lora_bias", True), ("layer_replication", [[0, 2], [1, 3]]), ("r", None),
        ("a_field_of_a_later_peft", {"beta": 1}),
    ],
)  # fmt: skip
def test_what_is_no_plain_lora_is_refused_by_name(tmp_path, base, good, field, value):
    message = refusal(base, rewritten(good, tmp_path / "bad", **{field: value}))
    assert repr(value) in message and (field in message or field == "peft_type")


def test_unknown_fields_at_rest_are_none_of_our_business(tmp_path, base, good):
    quiet = rewritten(good, tmp_path / "quiet", later_peft=None, other_later_peft={}, lora_dropout=0.3)
    assert same(merged_here(base, quiet), merged_here(base, good))


def test_modules_that_exist_nowhere_are_listed_in_groups(tmp_path, base, good):
    message = refusal(base, rewritten(good, tmp_path / "bad", lambda n: n.replace("self_attn.q_proj", "attention.wq")))
    assert "no module 'model.layers.{0..2}.attention.wq'" in message and "'model.layers.0.self_attn.q_proj'" in message


def test_a_decoder_takes_no_projectors_adapter(tmp_path, base):
    video = trained(hf_models.onevision(), tmp_path / "video", target_modules=EVERYWHERE)
    message = refusal(base, video)
    assert "multi_modal_projector.linear_{1..2}" in message and "vision_tower.encoder.layers.{0..2}.mlp.fc1" in message
    assert "language_model" not in message.split("Names it may have")[0].replace(str(tmp_path), "")


def test_shapes_that_do_not_fit_are_told_with_both_shapes(tmp_path, good):
    wide = hf_models.decoder(hidden_size=64)
    message = refusal(wide, good)
    assert "A [4, 32] and B [32, 4]" in message and "[4, 64], [64, 4]" in message


def test_a_rank_other_than_the_configs_is_refused(tmp_path, base, good):
    assert "at rank 8" in refusal(base, rewritten(good, tmp_path / "bad", r=8))


def test_half_a_pair_is_refused(tmp_path, base, good):
    lost = "layers.1.self_attn.q_proj.lora_B.weight"
    message = refusal(base, rewritten(good, tmp_path / "bad", lambda n: None if n.endswith(lost) else n))
    assert "'model.layers.1.self_attn.q_proj' has not both" in message


def test_tensors_of_another_kind_are_refused(tmp_path, base, good):
    kind = "lora_magnitude_vector"
    message = refusal(base, rewritten(good, tmp_path / "bad", lambda n: n.replace("lora_A.weight", kind)))
    assert kind in message


def test_layers_said_to_be_there_must_be(tmp_path, base, good):
    def gone(name: str) -> str | None:
        return None if ".layers.1." in name else name

    bad = rewritten(good, tmp_path / "bad", gone, layers_to_transform=[0, 1, 2])
    assert "layers_to_transform lists layer 1" in refusal(base, bad)


def test_nan_is_refused(tmp_path, base, good):
    bad = rewritten(good, tmp_path / "bad")
    held = load_file(bad / WEIGHTS)
    held["base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight"][0, 0] = float("nan")
    save_file(held, bad / WEIGHTS)
    assert "layers.2.self_attn.v_proj.lora_B.weight' is not finite" in refusal(base, bad)


def test_a_weight_named_twice_is_refused(tmp_path, base, good):
    bad = rewritten(good, tmp_path / "bad")
    held = load_file(bad / WEIGHTS)
    twice = {
        k.replace("model.model.", "model.", 1): v.clone() for k, v in held.items() if "layers.0.self_attn.q_proj" in k
    }
    save_file({**held, **twice}, bad / WEIGHTS)
    assert "another layout's name" in refusal(base, bad)


@pytest.mark.parametrize("given", [{"target_modules": ["embed_tokens"]}, {"target_modules": ["lm_head"]}])
def test_a_tied_head_is_not_parted_from_its_embedding(tmp_path, given):
    untied = trained(hf_models.decoder(), tmp_path / "adapter", **given)
    assert "part the head from the embedding" in refusal(hf_models.decoder(tie_word_embeddings=True), untied)


def test_a_convolutions_lora_is_refused(tmp_path):
    model = hf_models.onevision()
    folder = trained(model, tmp_path / "adapter", target_modules=["patch_embedding"])
    assert "patch_embedding' has a weight [32, 3, 14, 14]" in refusal(model, folder)


def test_pickles_and_folders_that_are_no_adapters_are_refused(tmp_path, base, good):
    bad = rewritten(good, tmp_path / "bad")
    (bad / WEIGHTS).rename(bad / "adapter_model.bin")
    assert "pickles are never loaded" in refusal(base, bad)
    (bad / "adapter_model.bin").unlink()
    assert f"no {WEIGHTS}" in refusal(base, bad)
    (bad / CONFIG).write_text("{")
    (bad / WEIGHTS).write_bytes(b"1234567890")
    assert "cannot be read" in refusal(base, bad)
    (bad / CONFIG).unlink()
    assert f"no {CONFIG}" in refusal(base, bad)
    assert "neither a folder nor a hub repository" in refusal(base, tmp_path / "nowhere")
    cut = rewritten(good, tmp_path / "cut")
    (cut / WEIGHTS).write_bytes((good / WEIGHTS).read_bytes()[:-8])
    assert "truncated or damaged" in refusal(base, cut)
