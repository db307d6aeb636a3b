"""Checkpoints of Qwen's Video-LLMs by every spelling that files have; and those that are refused in words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hf_models
from golden_cases import converted, original, spelled_as_on_the_hub
from hookedvid import HookedVideoLLM
from hookedvid.checkpoints.convert import convert
from hookedvid.errors import ConversionError

pytestmark = pytest.mark.shapes_unchecked

CASES = ("qwen2-vl-1", "qwen2.5-vl-1", "qwen3-vl-1")
SPELLINGS = {"nested": original, "on the hub": spelled_as_on_the_hub}
OLD, NEW = ("visual.", "model."), ("model.visual.", "model.language_model.")
Tensors = dict[str, torch.Tensor]


def renamed(names: tuple[str, str]) -> Callable[[Tensors], Tensors]:
    def rename(tensors: Tensors) -> Tensors:
        out = {}
        for name, x in tensors.items():
            known = [(ours, p) for theirs in (NEW, OLD) for ours, p in zip(names, theirs, strict=True)]
            prefix = next(((ours, p) for ours, p in known if name.startswith(p)), ("", ""))
            out[prefix[0] + name.removeprefix(prefix[1])] = x
        return out

    return rename


def changed(folder: Path, to: Path, change: Callable[[Tensors], Tensors] = dict, **fields) -> Path:
    """A checkpoint folder with other tensors, and fields of config.json."""
    shutil.copytree(folder, to)
    tensors = change(load_file(to / "model.safetensors"))
    (to / "model.safetensors").unlink()
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    config = json.loads((to / "config.json").read_text()) | fields
    (to / "config.json").unlink()
    (to / "config.json").write_text(json.dumps(config))
    return to


def same(a: HookedVideoLLM, b: HookedVideoLLM) -> bool:
    x, y = dict(a.named_parameters()), dict(b.named_parameters())
    return x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("names", [OLD, NEW], ids=["old names", "new names"])
@pytest.mark.parametrize("case", CASES)
def test_names_and_configs_of_any_version_are_one_model(case, names, spelling, tmp_path):
    folder = changed(SPELLINGS[spelling](case), tmp_path / "theirs", renamed(names))
    ours = convert(folder, tmp_path / "ours", progress=False)
    assert (ours / "config.json").read_bytes() == (converted(case) / "config.json").read_bytes()
    assert same(HookedVideoLLM.from_pretrained(ours), HookedVideoLLM.from_pretrained(converted(case)))


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_the_file_decides_whether_the_head_is_tied(case, said, tmp_path):
    def headed(equal: bool) -> Callable[[Tensors], Tensors]:
        def change(tensors: Tensors) -> Tensors:
            embedding = next(x for n, x in tensors.items() if n.endswith("embed_tokens.weight"))
            return tensors | {"lm_head.weight": embedding.clone() if equal else embedding * 2}

        return change

    for equal in (True, False):
        config = json.loads((spelled_as_on_the_hub(case) / "config.json").read_text())
        fields = {"tie_word_embeddings": said}
        if "text_config" in config:
            fields["text_config"] = config["text_config"] | {"tie_word_embeddings": said}
        folder = changed(spelled_as_on_the_hub(case), tmp_path / f"theirs-{equal}", headed(equal), **fields)
        model = HookedVideoLLM.from_pretrained(convert(folder, tmp_path / f"ours-{equal}", progress=False))
        assert model.cfg.lm.tied == equal
        assert torch.equal(model.unembed.weight, model.embed.weight * (1 if equal else 2))


def test_fields_that_a_user_vouches_for_are_ignored_in_memory():
    hf = hf_models.qwen_vl("Qwen2_5_VL")
    plain = HookedVideoLLM.from_transformers(hf)
    hf.config.vision_config.of_my_training = 3
    with pytest.raises(ConversionError, match="of_my_training"):
        HookedVideoLLM.from_transformers(hf)
    assert same(HookedVideoLLM.from_transformers(hf, ignore=["of_my_training"]), plain)


def test_packed_weights_are_named_and_refused(tmp_path):
    """As the AWQ repositories have them: the tower in 16 bits, the decoder's Linears packed."""

    def packed(tensors: Tensors) -> Tensors:
        out = {n: x for n, x in tensors.items() if not n.endswith("mlp.up_proj.weight")}
        for name in tensors.keys() - out.keys():
            for leaf in ("qweight", "qzeros", "scales"):
                out[name.replace("weight", leaf)] = torch.zeros(4, 4, dtype=torch.int32)
        return out

    awq = {"quantization_config": {"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["visual"]}}
    folder = changed(spelled_as_on_the_hub(CASES[1]), tmp_path / "theirs", packed, **awq)
    with pytest.raises(ConversionError, match=r"4-bit weights \(GPTQ or AWQ\).*Convert the checkpoint in 16 bits"):
        HookedVideoLLM.from_pretrained(folder)


EXPERTS = r"mixture of experts.*no module here computes\. Take a dense size"


@pytest.mark.parametrize(
    "fields", [{"architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe"},
               {"num_experts": 128}, {"text_config": {"num_local_experts": 32}}]
)  # fmt: skip
def test_mixtures_of_experts_are_refused_in_words(fields, tmp_path):
    folder = changed(spelled_as_on_the_hub(CASES[2]), tmp_path / "theirs", **fields)
    with pytest.raises(ConversionError, match=EXPERTS):
        HookedVideoLLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "name", ["qwen3-vl-30b-a3b", "Qwen/Qwen3-VL-30B-A3B-Instruct", "OpenGVLab/InternVL3_5-20B-A4B-GPT-OSS-Preview"]
)
def test_they_are_refused_by_name_before_anything_is_downloaded(name):
    with pytest.raises(ConversionError, match=EXPERTS):
        HookedVideoLLM.from_pretrained(name)


def test_and_in_memory():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_experts=2, num_experts_per_tok=1, vocab_size=50,
    )  # fmt: skip
    with pytest.raises(ConversionError, match=EXPERTS):
        HookedVideoLLM.from_transformers(Qwen3MoeForCausalLM(config))
