"""InternVL against transformers' class on tiny random weights away from init: logits, tokens, prompts."""

import json
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig
from transformers.models.internvl.configuration_internvl import InternVLConfig
from transformers.models.internvl.modeling_internvl import InternVLForConditionalGeneration
from transformers.models.internvl.processing_internvl import InternVLProcessor

from golden_cases import original
from hf_models import SIX_BILLION, VIDEO_ID, internvl, random_ids, random_pixels
from hookedvid import HookedVideoLLM, small_config
from hookedvid.checkpoints import layouts
from hookedvid.checkpoints.byte_tokenizer import byte_tokenizer
from hookedvid.conversion.rules import match
from hookedvid.conversion.shards import open_shards
from hookedvid.errors import ConversionError
from hookedvid.families.family import Source
from hookedvid.families.prompts import special_strings
from hookedvid.families.registry import template
from hookedvid.nn.parts import parameter_shapes
from versions import processors_of_today

pytestmark = pytest.mark.shapes_unchecked

PER_FRAME = 4
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}}
# Decoder and fields of its config, fields of the tower's.
MODELS = {
    "3": ("qwen2", DYNAMIC, {"attention_bias": True}),
    "3.5": ("qwen3", {}, {"attention_bias": True}),
    "3.5-38b": ("qwen3", {}, SIX_BILLION),
}


def prompt(n_frames: int) -> torch.Tensor:
    """Two ids before every frame, one behind it, and ten at the end."""
    text = random_ids(3 * n_frames + 10)
    frames = [
        torch.cat([own[:2], torch.full((PER_FRAME,), VIDEO_ID), own[2:]]) for own in text[: 3 * n_frames].split(3)
    ]
    return torch.cat([*frames, text[3 * n_frames :]])


@torch.no_grad()
def both(n_frames: int = 3, name: str = "3.5", dtype: torch.dtype = torch.float32, kernel: str = "sdpa", **text):
    """Logits of transformers and of ours, loaded from it."""
    kind, own, vision = MODELS[name]
    hf = internvl(kind, dtype=dtype, kernel=kernel, text={**own, **text}, vision=vision)
    ids, pixels = prompt(n_frames), random_pixels(n_frames, 3, 56, 56).to(dtype)
    model = HookedVideoLLM.from_transformers(hf, kernel=kernel)
    return hf(input_ids=ids[None], pixel_values=pixels).logits, model(model.inputs_from_tensors(ids, pixels))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_frames", [1, 2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_bitwise_those_of_transformers(name, n_frames, dtype, kernel):
    theirs, ours = both(n_frames, name, dtype, kernel)
    assert ours.dtype == dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("n_ctx", [17, 30])
def test_dynamic_rope_beyond_the_length(n_ctx):
    """transformers grows theta in float32, we in Python floats: the last bit of frequencies may differ."""
    theirs, ours = both(name="3", max_position_embeddings=n_ctx)
    within = both(name="3")[1]
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max() < (ours - within).abs().max()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_transformers(name, cached):
    kind, own, vision = MODELS[name]
    hf = internvl(kind, text=own, vision=vision)
    ids, pixels = prompt(3), random_pixels(3, 3, 56, 56)
    how = GenerationConfig(max_new_tokens=12, do_sample=False)
    theirs = hf.generate(
        input_ids=ids[None], pixel_values=pixels, attention_mask=torch.ones_like(ids[None]), generation_config=how
    )
    model = HookedVideoLLM.from_transformers(hf)
    inputs = model.inputs_from_tensors(ids, pixels)
    ours = model.generate(inputs, max_new_tokens=12, stop_at_eos=False, use_past_kv_cache=cached)
    assert ours.tolist() == theirs[:, len(ids) :].tolist()


@torch.no_grad()
def test_videos_of_unlike_lengths_in_a_batch_are_those_alone():
    model = HookedVideoLLM.from_transformers(internvl())
    videos = [random_pixels(n, 3, 56, 56, seed=n) for n in (1, 4)]
    alone = [model(model.inputs_from_tensors(prompt(len(v)), v)) for v in videos]
    inputs = model.inputs_from_tensors([prompt(len(v)).tolist() for v in videos], videos)
    for logits, single, pad in zip(model(inputs), alone, inputs.pads, strict=True):
        assert (logits[pad:] - single[0]).abs().max() <= 1e-6 * single.abs().max()


@processors_of_today
def test_the_prompt_without_a_system_text_is_that_of_transformers_processor():
    """Whose chat template for the -hf repositories puts <video> and a line feed before the question."""
    tokenizer = byte_tokenizer(320)
    tokenizer.add_tokens(list(special_strings(template("internvl_hf"))), special_tokens=True)
    cfg = replace(small_config("internvl", d_vocab=320), prompt="internvl_hf")
    model = HookedVideoLLM.from_config(cfg, tokenizer=tokenizer)
    inputs = model.prepare(np.zeros((3, 56, 56, 3), np.uint8), "What moves?", n_frames=3)
    parts = list[str]()
    for video, run in groupby(inputs.tokens[0].tolist(), key=lambda i: i < 0):
        chunk = list(run)
        parts += ["<IMG_CONTEXT>"] * len(chunk) if video else [tokenizer.decode(chunk)]
    tokens = SimpleNamespace(
        start_image_token="<img>", end_image_token="</img>", image_token="<IMG_CONTEXT>", image_seq_length=PER_FRAME
    )
    frames = InternVLProcessor.replace_video_token(tokens, {"pixel_values_videos": [torch.zeros(3, 1)]}, 0)
    chat = f"<|im_start|>user\n{frames}\nWhat moves?<|im_end|>\n<|im_start|>assistant\n"
    assert "".join(parts) == chat


def test_a_published_size_with_the_large_tower_is_read_in_transformers_layout():
    """InternVL3.5-38B."""
    text = {
        "model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 40960, "rope_theta": 1e6, "rope_scaling": None, "debug": False, "ep_size": 1,
    }  # fmt: skip
    tower = {
        "hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 45, "num_attention_heads": 25,
        "attention_bias": False, **SIX_BILLION,
    }  # fmt: skip
    config = {
        "architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl", "text_config": text,
        "vision_config": tower, "tie_word_embeddings": False,
    }  # fmt: skip
    with torch.device("meta"):
        hf = InternVLForConditionalGeneration(InternVLConfig.from_dict(dict(config)))
    shapes = {name: x.shape for name, x in hf.state_dict().items()}
    reading = layouts.read(config, shapes)
    match(shapes, reading.table, parameter_shapes(reading.cfg), "the checkpoint")
    assert sum(shape.numel() for shape in shapes.values()) == 38_390_405_504
    assert reading.cfg.tokens_per_frame == 256


# ---- the original package, which InternVideo2.5 has too -----------------------------------------------------------

PLAIN, HICO = ({"AutoModel": f"modeling_internvl_chat{of}.InternVLChatModel"} for of in ("", "_hico2"))


@pytest.mark.parametrize(
    ("decoder", "more", "families"),
    [
        ("Qwen2ForCausalLM", {}, ["internvl"]),
        ("Qwen3ForCausalLM", {"dynamic_image_size": False}, ["internvl"]),
        ("InternLM2ForCausalLM", {"auto_map": PLAIN}, ["internvl"]),
        ("InternLM2ForCausalLM", {"auto_map": HICO, "dynamic_image_size": True}, ["internvideo2.5"]),
        ("InternLM2ForCausalLM", {"dynamic_image_size": False}, ["internvideo2.5"]),
        ("InternLM2ForCausalLM", {"dynamic_image_size": True}, ["internvl", "internvideo2.5"]),
    ],
)
def test_a_config_tells_whether_tokens_are_merged_or_both_families_fit(decoder, more, families):
    config = {"llm_config": {"architectures": [decoder]}, **more}
    assert layouts.fitting("InternVLChatModel", Source(config, {})) == families


@pytest.mark.parametrize("decoder", ["Qwen3MoeForCausalLM", "GptOssForCausalLM", "InternLM3ForCausalLM"])
def test_decoders_that_are_not_covered_are_refused_with_those_that_are(decoder):
    config = {"architectures": ["InternVLChatModel"], "llm_config": {"architectures": [decoder]}, "vision_config": {}}
    said = rf"architectures = \['{decoder}'\] is not supported \(only .*InternLM2.*Qwen2.*Qwen3ForCausalLM"
    with pytest.raises(ConversionError, match=said):
        layouts.read(config, {})


def test_what_published_configs_state_besides_is_read():
    """Fields of InternVL3-1B's config.json and of InternVL3.5's that the recorded ones lack."""
    case = original("internvl-chat-2")
    config = json.loads((case / "config.json").read_text())
    config |= {"image_fold": None, "system_message": None, "auto_map": PLAIN}
    config["llm_config"] |= {
        "moe_config": None, "debug": False, "ep_size": 1, "micro_forward": False, "skip_checkpoint": False,
        "use_deepep": False,
    }  # fmt: skip
    config["vision_config"] |= {
        "capacity_factor": 1.2, "eval_capacity_factor": 1.4, "laux_allreduce": "all_nodes", "moe_coeff_ratio": 0.5,
        "moe_intermediate_size": 768, "moe_output_scale": 4.0, "noisy_gate_policy": "RSample_before", "num_experts": 8,
        "num_routed_experts": 4, "num_shared_experts": 4, "shared_expert_intermediate_size": 3072, "use_moe": False,
        "use_residual": True, "use_rts": False, "use_weighted_residual": False, "use_fa3": False,
    }  # fmt: skip
    shapes = open_shards(case).shapes
    assert layouts.read(config, shapes).cfg.family == "internvl"
    config["system_message"], config["vision_config"]["use_moe"] = "You answer.", True
    with pytest.raises(ConversionError, match="use_moe = True"):
        layouts.read(config, shapes)
    config["vision_config"]["use_moe"] = False
    with pytest.raises(ConversionError, match="system_message = 'You answer"):
        layouts.read(config, shapes)
