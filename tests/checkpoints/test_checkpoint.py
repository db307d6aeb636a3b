"""A model's folder: what is written comes back bit for bit, and a broken one says what is wrong with it."""

import copy
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hookedvid import HookedVideoLLM, VideoLLMConfig, small_config
from hookedvid.errors import ConfigError, ConversionError, HookedVidError
from hookedvid.families.registry import FAMILIES
from models import random_inputs, random_model

pytestmark = pytest.mark.shapes_unchecked


def made(family: str = "llava-onevision", dtype: torch.dtype = torch.float32, **decoder) -> HookedVideoLLM:
    """A small model, no weight at its initial value."""
    cfg = small_config(family)
    model = HookedVideoLLM.from_config(replace(cfg, decoder=replace(cfg.lm, **decoder)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.to(dtype)


def same_weights(a: HookedVideoLLM, b: HookedVideoLLM) -> bool:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return ours.keys() == theirs.keys() and all(
        ours[n].dtype == theirs[n].dtype and torch.equal(ours[n], theirs[n]) for n in ours
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """A saved model."""
    made().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", ["llava-onevision", "internvideo2.5"])
def test_weights_config_and_dtype_come_back_bitwise(tmp_path, family, dtype):
    model = made(family, dtype)
    model.save_pretrained(tmp_path)
    back = HookedVideoLLM.from_pretrained(str(tmp_path))
    assert back.cfg == model.cfg
    assert same_weights(back, model)
    assert not back.training


def test_a_model_of_several_dtypes_comes_back_as_it_was(tmp_path):
    model = made(dtype=torch.bfloat16)
    model.vision.float()
    model.ln_final.double()
    model.save_pretrained(tmp_path)
    back = HookedVideoLLM.from_pretrained(str(tmp_path))
    assert same_weights(back, model)
    assert {p.dtype for p in back.parameters()} == {torch.bfloat16, torch.float32, torch.float64}
    cast = HookedVideoLLM.from_pretrained(str(tmp_path), dtype="float32")
    assert {p.dtype for p in cast.parameters()} == {torch.float32}
    model.ln_final.bfloat16()
    inputs = random_inputs(model)
    with torch.no_grad():
        assert model(inputs).dtype == torch.bfloat16, "the tower's features are cast to what reads them"


@torch.no_grad()
@pytest.mark.parametrize("way", ["pickle", "copy", "torch.save"])
def test_models_and_caches_can_be_pickled_copied_and_saved_whole(way):
    model = random_model("llava-onevision", n_layers=1)
    inputs = random_inputs(model)
    _, cache = model.run_with_cache(inputs)
    ways = {"pickle": lambda x: pickle.loads(pickle.dumps(x)), "copy": copy.deepcopy, "torch.save": through_torch}
    again, held = ways[way]((model, cache))
    assert held.model is again and torch.equal(again(inputs), model(inputs))
    assert again.unembed.weight is not model.unembed.weight
    assert all(torch.equal(held[n], cache[n]) for n in cache)
    assert torch.equal(held.at("resid_post", 0, "video[1]"), cache.at("resid_post", 0, "video[1]"))
    hook = ("blocks.0.attn.hook_z", lambda z, hook: z * 2)
    edited = again.run_with_hooks(inputs, fwd_hooks=[hook])
    assert torch.equal(edited, model.run_with_hooks(inputs, fwd_hooks=[hook]))
    assert not torch.equal(edited, model(inputs)) and torch.equal(again(ways[way](inputs)), model(inputs))
    assert torch.equal(again(again.encoded(inputs)), again(model.encoded(inputs)))


def through_torch(x):
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_come_back_bitwise(tmp_path, family):
    model = made(family)
    model.save_pretrained(tmp_path)
    back = HookedVideoLLM.from_pretrained(str(tmp_path))
    assert model.cfg.vision is not None
    size = model.cfg.vision.image_size
    video = torch.zeros(4, size, size, 3, dtype=torch.uint8)
    inputs = back.prepare(video, "What moves?", ["a car", "a dog"], n_frames=4, folder_fps=1)
    with torch.no_grad():
        assert torch.equal(back(inputs), model(inputs))


def test_the_model_that_ships_loads_by_its_name():
    model = HookedVideoLLM.from_pretrained("tiny")
    assert model.tokenizer is not None and model.cfg.prompt == "tiny"
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("given", [torch.bfloat16, "bfloat16"])
def test_a_dtype_asked_for_is_given(folder, given):
    back = HookedVideoLLM.from_pretrained(str(folder), dtype=given)
    assert same_weights(back, made(dtype=torch.bfloat16))


def test_a_tied_head_is_stored_once_and_stays_tied(tmp_path):
    model = made(tied=True)
    model.save_pretrained(tmp_path)
    assert "unembed.weight" not in load_file(tmp_path / "model.safetensors")
    back = HookedVideoLLM.from_pretrained(str(tmp_path))
    assert back.unembed.weight is back.embed.weight and same_weights(back, model)


def test_a_bare_tower_and_a_bare_decoder_come_back(tmp_path):
    whole = small_config("longva")
    for name, parts in (("tower", {"vision": whole.vision}), ("text", {"decoder": whole.decoder})):
        model = HookedVideoLLM.from_config(VideoLLMConfig(family=name, **parts))
        model.save_pretrained(tmp_path / name)
        assert same_weights(HookedVideoLLM.from_pretrained(str(tmp_path / name)), model)


def test_the_tokenizer_comes_back(folder):
    text = "<|im_start|>user\nWas bewegt sich? 🎬<|im_end|>"
    tokenizer = HookedVideoLLM.from_pretrained(str(folder)).tokenizer
    assert tokenizer(text)["input_ids"] == made().tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == made().tokenizer.eos_token == "<|im_end|>"


def test_a_model_without_tokenizer_comes_back_without(tmp_path):
    HookedVideoLLM.from_config(small_config("longva", d_vocab=50)).save_pretrained(tmp_path)
    assert HookedVideoLLM.from_pretrained(str(tmp_path)).tokenizer is None


def test_saving_again_replaces_what_was_there(folder):
    other = made(family="longva")
    other.save_pretrained(folder)
    assert same_weights(HookedVideoLLM.from_pretrained(str(folder)), other)
    assert not list(folder.glob("*.part"))


def test_kernel_and_device_are_passed_on(folder):
    model = HookedVideoLLM.from_pretrained(str(folder), kernel="eager", device="cpu")
    assert model.kernel == "eager" and model.device.type == "cpu"


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_pickles(folder: Path) -> None:
    without_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")
    torch.save({}, folder / "optimizer.pt")


def cut_short(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def renamed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["embedding.weight"] = tensors.pop("embed.weight")
    save_file(tensors, folder / "model.safetensors")


def reshaped(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["embed.weight"] = tensors["embed.weight"][:-1]
    save_file(tensors, folder / "model.safetensors")


def garbled(folder: Path) -> None:
    (folder / "config.json").write_text("{family: ")


def with_a_strange_field(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["decoder"]["n_head"] = config["decoder"].pop("n_heads")
    (folder / "config.json").write_text(json.dumps(config))


BROKEN = [
    (without_config, ConversionError, ["has no config.json, so it is no checkpoint folder"]),
    (without_weights, ConversionError, ["holds no model.safetensors and no one set of shards"]),
    (with_pickles, ConversionError, ["pytorch_model.bin", "pickles are never loaded", "python -c"]),
    (cut_short, ConversionError, ["model.safetensors is truncated or damaged: it should have", "copy it again"]),
    (empty, ConversionError, ["model.safetensors is truncated or damaged"]),
    (renamed, ConversionError, ["does not fit its config: missing 'embed.weight'; left over 'embedding.weight'"]),
    (reshaped, ConversionError, ["does not fit its config: 'embed.weight' is [299, 64], not [300, 64]"]),
    (garbled, ConversionError, ["config.json is no JSON"]),
    (
        with_a_strange_field,
        ConfigError,
        ["decoder has no field 'n_head' (nearest: 'n_heads'", "lacks the field 'n_heads'"],
    ),
]


@pytest.mark.parametrize(("break_it", "error", "said"), BROKEN, ids=[b[0].__name__ for b in BROKEN])
def test_a_broken_folder_says_what_is_wrong(folder, break_it, error, said):
    break_it(folder)
    with pytest.raises(error) as e:
        HookedVideoLLM.from_pretrained(str(folder))
    assert all(s in str(e.value) for s in said), str(e.value)


@pytest.mark.parametrize("name", ["tyni", "", "no/such/folder"])
def test_unknown_names_are_refused_with_what_exists(name):
    with pytest.raises(ConversionError, match=rf"no model '{name}': .*'tiny'"):
        HookedVideoLLM.from_pretrained(name)


@pytest.mark.parametrize("dtype", ["bf16", "int64", "nn"])
def test_a_dtype_that_is_none_is_refused(folder, dtype):
    with pytest.raises(HookedVidError, match=f"dtype {dtype!r} is no floating-point type of torch; e.g. 'bfloat16'"):
        HookedVideoLLM.from_pretrained(str(folder), dtype=dtype)
