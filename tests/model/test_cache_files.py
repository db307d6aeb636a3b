"""A cache is the same from its file, and pickled: of batches of unequal items, with groups, behind exits."""

import pickle

import pytest
import torch

from hookedvid import VideoCache, VideoInputs
from hookedvid.errors import InputError
from models import UNLIKE, random_inputs, random_model


@pytest.mark.parametrize("name", UNLIKE)
def test_a_cache_is_the_same_from_its_file(name, tmp_path):
    model = random_model(name)
    inputs = [random_inputs(model).with_group("two", positions=[1, 4]), random_inputs(model, n_text=5, seed=2)]
    how = {"names_filter": ["resid_post", "pattern", "vision.resid_post"], "interventions": "exit @ 2"}
    _, cache = model.run_with_cache(VideoInputs.stack(inputs), **how)
    cache.save(tmp_path / "run.safetensors")
    for found in (VideoCache.load(tmp_path / "run.safetensors", model), pickle.loads(pickle.dumps(cache))):
        assert found.layouts == cache.layouts and found.cache_dict.keys() == cache.cache_dict.keys()
        assert all(torch.equal(x, found.cache_dict[n]) for n, x in cache.cache_dict.items())
        assert all(torch.equal(a, b) for a, b in zip(found.held, cache.held, strict=True))
        assert torch.equal(found.at("resid_post", -1, "last", item=1), cache.at("resid_post", -1, "last", item=1))
        assert torch.equal(found.at("resid_post", 0, "two", item=0), cache.at("resid_post", 0, "two", item=0))
        with pytest.raises(InputError, match="an early exit dropped them"):
            found.at("resid_post", 2, "video", item=1)


def test_a_cut_cache_says_so_from_its_file(tmp_path):
    model = random_model("llava-onevision")
    how = {"names_filter": "z", "pos_slice": -1, "remove_batch_dim": True}
    model.run_with_cache(random_inputs(model), **how)[1].save(tmp_path / "a.safetensors")
    found = VideoCache.load(tmp_path / "a.safetensors", model)
    assert not found.has_batch_dim and found["z", 0].shape == (model.cfg.n_heads, model.cfg.lm.d_head)
    with pytest.raises(InputError, match="was cut by pos_slice"):
        found.at("z", 0, "last")


def test_a_cache_of_everything_is_the_same_from_its_file(tmp_path):
    model = random_model("qwen3-vl")
    _, cache = model.run_with_cache(random_inputs(model))
    cache.save(tmp_path / "all.safetensors")
    found = VideoCache.load(tmp_path / "all.safetensors", model)
    assert all(torch.equal(x, found.cache_dict[n]) for n, x in cache.cache_dict.items())


def test_other_files_and_other_models_are_refused(tmp_path):
    model = random_model("llava-onevision")
    model.run_with_cache(random_inputs(model), names_filter="z")[1].save(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="of a model of another config"):
        VideoCache.load(tmp_path / "a.safetensors", random_model("llava-video"))
    (tmp_path / "b.safetensors").write_bytes(b"what")
    for path in ("b.safetensors", "none.safetensors"):
        with pytest.raises(InputError, match=r"is no file that VideoCache\.save wrote"):
            VideoCache.load(tmp_path / path, model)
