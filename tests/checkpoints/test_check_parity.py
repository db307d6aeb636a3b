"""scripts/check_parity.py: transformers models from disk under every name their files have had, and what it reports."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from golden_cases import CASES, original
from hf_models import SIX_BILLION, decoder, internvl, next_video, onevision, smolvlm, tower, video_llava, videollama3
from hookedvid import HookedVideoLLM
from hookedvid.checkpoints.parity import compare, first_beyond, our_stages, random_inputs, transformers_stages
from hookedvid.errors import ConversionError

pytestmark = pytest.mark.shapes_unchecked

spec = importlib.util.spec_from_file_location("check_parity", Path(__file__).parents[2] / "scripts" / "check_parity.py")
assert spec and spec.loader
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

MODELS: dict[str, Callable[[], Any]] = {
    "onevision": onevision,
    "onevision-tied": lambda: onevision(text={"tie_word_embeddings": True}),
    "next_video": next_video,
    "qwen2": lambda: decoder("qwen2"),
    "qwen2-tied": lambda: decoder("qwen2", tie_word_embeddings=True),
    "qwen3": lambda: decoder("qwen3"),
    "llama": lambda: decoder("llama", attention_bias=True),
    "clip": lambda: tower("clip"),
    "siglip": lambda: tower("siglip"),
    "internvit": lambda: tower("internvl"),
    "internvl": internvl,
    "internvl-tied": lambda: internvl(tie_word_embeddings=True),
    "internvl-6b": lambda: internvl("qwen2", vision=SIX_BILLION),
    "smolvlm": smolvlm,
    "videollama3": videollama3,
    "video_llava": video_llava,
}
# Rows of patches are in raster order here, in squares there.
OTHER_ORDER = {"videollama3": 3e-6}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOOKEDVID_HOME", str(tmp_path / "home"))


def saved(folder: Path, hf: Any, rename: Callable[[str], str] = str) -> Path:
    """A transformers model saved as it saves itself, its tensors then renamed."""
    hf.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({rename(k): v for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


def as_published(name: str) -> str:
    """The names of the files on the hub, of 2024: a `vision_model` level under the tower."""
    return re.sub(r"^vision_tower\.", "vision_tower.vision_model.", name)


def as_in_memory(name: str) -> str:
    """The names of transformers 5 in memory: everything but the head under `model`."""
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    name = re.sub(r"^language_model\.model\.", "language_model.", name)
    return f"model.{name}"


def ours_and_theirs(folder: Path, hf: Any) -> list:
    model = HookedVideoLLM.from_pretrained(folder)
    inputs = random_inputs(model, 3)
    return compare(our_stages(model, inputs), transformers_stages(hf.eval(), inputs))


@pytest.mark.parametrize("kind", MODELS)
def test_what_transformers_saves_loads_and_agrees_bitwise(kind, tmp_path):
    hf = MODELS[kind]()
    stages = ours_and_theirs(saved(tmp_path / "hf", hf), hf)
    assert len(stages) >= 4
    assert first_beyond(stages, OTHER_ORDER.get(kind, 0.0)) is None, stages


@pytest.mark.parametrize("rename", [as_published, as_in_memory])
@pytest.mark.parametrize("kind", ["onevision", "onevision-tied", "next_video"])
def test_names_of_the_hub_and_of_memory_load_too(kind, rename, tmp_path):
    hf = MODELS[kind]()
    before = set(load_file(saved(tmp_path / "plain", hf) / "model.safetensors"))
    folder = saved(tmp_path / "hf", hf, rename)
    assert set(load_file(folder / "model.safetensors")) != before
    assert all(s.absolute == 0 for s in ours_and_theirs(folder, hf))


def test_shards_with_an_index(tmp_path):
    hf = onevision()
    hf.save_pretrained(tmp_path / "hf", max_shard_size="50KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    assert all(s.absolute == 0 for s in ours_and_theirs(tmp_path / "hf", hf))


def test_the_fields_published_configs_have(tmp_path):
    """config.json of the -hf repositories names defaults, and fields that only images use."""
    hf = onevision()
    folder = saved(tmp_path / "hf", hf, as_published)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "ignore_index": -100,
        "vision_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": [[384, 384]],
        "use_image_newline_parameter": True,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert all(s.absolute == 0 for s in ours_and_theirs(folder, hf))
    config["video_compression"] = "strong"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match="video_compression = 'strong' is set and nothing here reads it"):
        HookedVideoLLM.from_pretrained(folder)


# ---- the script --------------------------------------------------------------------------------------------


def test_agreement_exits_with_zero_and_prints_every_stage(tmp_path, capsys):
    folder = saved(tmp_path / "hf", onevision())
    assert script.main([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert all(
        n in printed for n in ("vision.blocks.0.hook_resid_post", "projector.hook_pre", "hook_embed", "blocks.2")
    )
    assert "9 stages agree within 1e-05 (largest relative difference 0.0e+00)" in printed


@pytest.mark.parametrize(
    ("tensor", "stage"),
    [
        ("vision_tower.encoder.layers.1.mlp.fc1.weight", "vision.blocks.1.hook_resid_post"),
        ("multi_modal_projector.linear_1.bias", "projector.hook_pre"),
        ("multi_modal_projector.linear_2.weight", "hook_embed"),
        ("image_newline", "hook_embed"),
        ("language_model.model.layers.2.self_attn.k_proj.weight", "blocks.2.hook_resid_post"),
        ("language_model.lm_head.weight", "logits"),
    ],
)
def test_the_first_stage_that_differs_is_named(tmp_path, capsys, tensor, stage):
    hf = onevision()
    right, wrong = saved(tmp_path / "right", hf), saved(tmp_path / "wrong", hf)
    tensors = load_file(wrong / "model.safetensors")
    tensors[tensor] = tensors[tensor] * 1.01 + 0.01
    save_file(tensors, wrong / "model.safetensors", {"format": "pt"})
    assert script.main([str(wrong), "--against", str(right), "--quiet"]) == 1
    assert f"first stage beyond 1e-05: {stage} " in capsys.readouterr().out


def test_nothing_to_compare_with_is_an_error(tmp_path, capsys):
    assert script.main([str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err


def test_a_difference_that_is_no_number_is_beyond_any_tolerance():
    stages = compare({"logits": torch.tensor([[float("nan"), 1.0]])}, {"logits": torch.ones(1, 2)})
    assert first_beyond(stages, 1e9) is stages[0]


def test_stages_of_other_shapes_are_refused():
    with pytest.raises(ConversionError, match=r"stage 'hook_embed': ours is \[2, 3\], theirs \[2, 4\]"):
        compare({"hook_embed": torch.zeros(2, 3)}, {"hook_embed": torch.zeros(2, 4)})


@pytest.mark.parametrize("given", [[], ["--round-trip"], ["--dtype", "float64"]])
def test_recorded_outputs(given, capsys):
    assert script.main([str(original(CASES[0])), *given]) == 0
    assert "stages agree within" in capsys.readouterr().out
