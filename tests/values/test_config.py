"""A config that no model could have is refused by itself, before a module is built."""

import json
import time
from dataclasses import replace

import pytest

from hookedvid import HookedVideoLLM, VideoLLMConfig, small_config
from hookedvid.errors import ConfigError
from hookedvid.values import config
from hookedvid.values.config import LIMITS

NAN, INF = float("nan"), float("inf")
REFUSED = [
    ("decoder", "n_heads", 0, "n_heads = 0 must be at least 1"),
    ("decoder", "n_kv_heads", 0, "n_kv_heads = 0 must be at least 1"),
    ("decoder", "n_layers", 0, "n_layers = 0 must be at least 1"),
    ("decoder", "n_layers", 10**5, r"n_layers = 100000 is above the bound of 1,000; if it is meant, raise "),
    ("decoder", "n_layers", 10**30, "above the bound of 1,000"),
    ("decoder", "d_mlp", 10**12, "d_mlp = 1000000000000 is above the bound of 524,288"),
    ("decoder", "d_model", -64, "d_model = -64 must be at least 1"),
    ("decoder", "d_vocab", 10**10, "d_vocab = 10000000000 is above the bound"),
    ("decoder", "n_ctx", -1, "n_ctx = -1 must be at least 1"),
    ("decoder", "eps", NAN, "eps = nan must be a finite number above 0"),
    ("decoder", "eps", 0.0, "eps = 0.0 must be a finite number above 0"),
    ("decoder", "rope.theta", 0.0, "theta = 0.0 must be a finite number above 0"),
    ("decoder", "rope.theta", -1e4, "theta = -10000.0"),
    ("decoder", "rope.theta", INF, "theta = inf"),
    ("decoder", "rope.factor", NAN, "factor = nan"),
    ("vision", "n_layers", 10**9, "n_layers = 1000000000 is above the bound"),
    ("vision", "n_heads", 0, "n_heads = 0"),
    ("vision", "eps", INF, "eps = inf"),
    ("vision", "image_size", 10**7, "image_size = 10000000 is above the bound"),
    ("vision", "patch_size", 0, "patch_size = 0 must be at least 1"),
    ("vision", "std", [0.5, 0.5, 0.0], "std above 0"),
    ("vision", "std", [0.5, 0.5, float("inf")], "std above 0"),
    ("vision", "mean", [0.5, NAN, 0.5], "must be three numbers each"),
    ("projector", "pool_stride", 0, "pool_stride = 0 must be at least 1"),
    ("projector", "d_in", 10**9, "d_in = 1000000000 is above the bound"),
    ("", "n_frames", 10**9, "n_frames = 1000000000 is above the bound of 131,072"),
    ("", "max_length", 0, "max_length = 0 must be at least 1"),
]


@pytest.mark.parametrize(("part", "field", "value", "said"), REFUSED, ids=[f"{r[0]}.{r[1]}={r[2]}" for r in REFUSED])
def test_a_config_refuses_what_no_model_has_before_anything_is_built(part, field, value, said):
    data = json.loads(small_config("llava-onevision").to_json())
    *parents, name = [p for p in (part, *field.split(".")) if p]
    inside = data
    for parent in parents:
        inside = inside[parent]
    assert name in inside
    inside[name] = value
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=said):
        VideoLLMConfig.from_json(json.dumps(data))
    assert time.monotonic() - begun < 1  # 100,000 blocks took 45 s


def test_every_wrong_number_of_a_part_is_named_at_once():
    with pytest.raises(ConfigError, match=r"DecoderConfig: n_heads = 0.*; d_mlp = -96.*; eps = nan"):
        replace(small_config("longva").lm, n_heads=0, d_mlp=-96, eps=NAN)


def test_a_bound_can_be_raised(monkeypatch):
    deep = replace(small_config("longva").lm, n_layers=LIMITS["n_layers"])
    with pytest.raises(ConfigError, match=r"hookedvid.values.config.LIMITS\['n_layers'\]"):
        replace(deep, n_layers=LIMITS["n_layers"] + 1)
    monkeypatch.setitem(config.LIMITS, "n_layers", 2_000)
    assert replace(deep, n_layers=1_001).n_layers == 1_001


def test_a_number_too_large_for_a_float_is_named():
    data = json.loads(small_config("longva").to_json())
    data["decoder"]["rope"]["theta"] = 10**400
    with pytest.raises(ConfigError, match=r"rope\.theta should be a number"):
        VideoLLMConfig.from_json(json.dumps(data))


def test_json_nested_without_end_is_no_config():
    with pytest.raises(ConfigError, match="not JSON"):
        VideoLLMConfig.from_json("[" * 100_000)


def test_a_saved_model_with_a_hostile_config_is_refused_at_once(tmp_path):
    HookedVideoLLM.from_config(small_config("longva")).save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    data["decoder"]["n_layers"] = 10**30
    (tmp_path / "config.json").write_text(json.dumps(data))
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="above the bound"):
        HookedVideoLLM.from_pretrained(tmp_path)
    assert time.monotonic() - begun < 2


def test_a_file_says_its_format_and_another_one_is_refused_in_words():
    cfg = small_config("longva")
    said = json.loads(cfg.file_text)
    assert said.pop("format") == 1 and said == json.loads(cfg.to_json()), "0.2 wrote the same without a number"
    assert VideoLLMConfig.from_json(cfg.file_text) == VideoLLMConfig.from_json(cfg.to_json()) == cfg
    for number in (0, 2, "1", True, None):
        with pytest.raises(ConfigError, match=f"is of format {number!r}, and this version of hookedvid reads format 1"):
            VideoLLMConfig.from_json(json.dumps(said | {"format": number}))
