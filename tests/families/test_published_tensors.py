"""Published sizes: tensors of transformers' classes, made without memory from configs as the hub has them, are read."""

from typing import Any

import pytest
import torch
import transformers

from hookedvid.checkpoints import layouts
from hookedvid.conversion.rules import match
from hookedvid.errors import ConversionError
from hookedvid.families.registry import PUBLISHED
from hookedvid.nn.parts import parameter_shapes
from hookedvid.values.config import VideoLLMConfig
from originals import script

pytestmark = pytest.mark.shapes_unchecked

CONFIGS: dict[str, dict[str, Any]] = {name: r.config for name, r in script.RECIPES.items() if hasattr(r, "config")}
# As the hub has it, but for theta and ids; its tower and its squares of patches are others.
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27}
TEXT_2B = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_hidden_layers": 24}
SMOL = CONFIGS["smolvlm2-256m"]
LARGEST = {
    "smolvlm2-2.2b": SMOL | {
        "scale_factor": 3,
        "text_config": SMOL["text_config"] | TEXT_2B | {"num_key_value_heads": 32},
        "vision_config": SMOL["vision_config"] | SO400M | {"image_size": 384, "patch_size": 14},
    }
}  # fmt: skip
READ = LARGEST | {name: config for name, config in CONFIGS.items() if hasattr(transformers, config["architectures"][0])}


def upstream(config: dict[str, Any]) -> dict[str, torch.Size]:
    """The tensors of the class that a config names, one of a name where two are tied."""
    cls = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        model = cls(transformers.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)))
    tied = model.all_tied_weights_keys if model.config.tie_word_embeddings else {}
    return {name: x.shape for name, x in model.state_dict().items() if name not in tied}


def read(config: dict[str, Any], shapes: dict[str, torch.Size]) -> VideoLLMConfig:
    reading = layouts.read(config, shapes)
    match(shapes, reading.table, parameter_shapes(reading.cfg), "the checkpoint")
    return reading.cfg


@pytest.mark.parametrize("name", READ)
def test_every_tensor_of_its_class_has_its_place(name):
    cfg = read(READ[name], upstream(READ[name]))
    if name == "smolvlm2-2.2b":
        n = sum(shape.numel() for shape in map(torch.Size, parameter_shapes(cfg).values()))
        assert n == 2_246_784_880 and abs(PUBLISHED[name].size - 4 * n / 1e9) < 0.01
        assert cfg.tokens_per_frame == int(PUBLISHED[name].tokens.split()[0]) == 81


def test_videollama3_reads_what_training_left_in_the_authors_config():
    names = {"model.language_model": "model", "model.vision_model": "model.vision_encoder"}
    names |= {"model.projector": "model.mm_projector"}
    shapes = {}
    for name, shape in upstream(CONFIGS["videollama3-2b-image"]).items():
        start = next((s for s in names if name.startswith(f"{s}.")), "")
        shapes[names.get(start, "") + name.removeprefix(start)] = shape
    config = CONFIGS["videollama3-2b"] | {
        "image_aspect_ratio": "square", "image_size": -1, "image_token_length": 1, "is_alignment": False,
        "llm_lr": 1e-5, "max_frames": 180, "max_window_layers": 28, "mm_hidden_size": 1152, "mm_projector_lr": 1e-5,
        "rope_scaling": None, "sliding_window": None, "tokenizer_model_max_length": 16384,
        "tokenizer_padding_side": "right", "use_mm_proj": True, "vision_encoder_lr": 2e-6,
    }  # fmt: skip
    cfg = read(config, shapes)
    assert cfg.vision.drop_below == 0.1 and cfg.placeholder_id == 151665 and cfg.lm.tied
    assert read({**config, "use_token_compression": False}, shapes).vision.drop_below is None
    with pytest.raises(ConversionError, match=r"rope_scaling = .* is not supported \(only None\)"):
        read({**config, "rope_scaling": {"type": "yarn"}}, shapes)
