"""InternVL's own package: how its configs read, what its tensors are called, its prompts."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from hookedvid.conversion import tables
from hookedvid.conversion.decoder_fields import read_decoder, rows_of
from hookedvid.conversion.fields import PRETRAINED, Fields
from hookedvid.conversion.lines import Line
from hookedvid.errors import ConversionError
from hookedvid.families.family import Source
from hookedvid.families.prompts import Template
from hookedvid.values.config import DecoderConfig, MergeConfig, ProjectorConfig, VideoLLMConfig, VisionConfig
from hookedvid.values.parts import INTERNVIT_300M
from hookedvid.values.serial import override

ARCHITECTURE = "InternVLChatModel"
INTERNVL_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
INTERNLM2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
# Exact strings of the package's conversation.py, under its names for them, one of which config.json holds.
TEMPLATES = {
    "internvl2_5": Template(
        before=f"<|im_start|>system\n{INTERNVL_SYSTEM}<|im_end|>\n<|im_start|>user\n",
        frame_before="Frame{n}: <img>",
        frame_after="</img>\n",
        between="",
        after="<|im_end|>\n<|im_start|>assistant\n",
        stops=("<|im_end|>",),
    ),
    # What the separator puts after <|im_end|> is the other difference to internvl2_5: nothing.
    "internlm2-chat": Template(
        before=f"<|im_start|>system\n{INTERNLM2_SYSTEM}<|im_end|><|im_start|>user\n",
        frame_before="Frame{n}: <img>",
        frame_after="</img>\n",
        between="",
        after="<|im_end|><|im_start|>assistant\n",
        stops=("<|im_end|>",),
    ),
}
# Classes of its decoders, what `read_decoder` calls them, and their embeddings.
DECODERS = {
    "InternLM2ForCausalLM": ("internlm2", "language_model.model.tok_embeddings.weight"),
    "Qwen2ForCausalLM": ("qwen2", "language_model.model.embed_tokens.weight"),
    "Qwen3ForCausalLM": ("qwen3", "language_model.model.embed_tokens.weight"),
}
# How experts and kernels ran in training.
TRAINING = set("debug ep_size micro_forward skip_checkpoint use_bfloat16 use_deepep use_fa3 use_flash_attn".split())
HARMLESS = (PRETRAINED | TRAINING) | set(
    "dynamic_image_size hidden_size max_dynamic_patch max_window_layers min_dynamic_patch pad2square sliding_window "
    "use_backbone_lora use_llm_lora use_thumbnail".split()
)
# What a tower of experts would have, which InternVL3's configs state besides `use_moe`, false.
EXPERTS = set(
    "capacity_factor eval_capacity_factor laux_allreduce moe_coeff_ratio moe_intermediate_size moe_output_scale "
    "noisy_gate_policy num_experts num_routed_experts num_shared_experts shared_expert_intermediate_size use_residual "
    "use_rts use_weighted_residual".split()
)
TOWER = (PRETRAINED | TRAINING | EXPERTS) | set("attention_dropout drop_path_rate dropout tie_word_embeddings".split())
# Prefixes of a tower, and of InternLM2 with its head's name: whole, without the model around it, its inner model.
TOWERS = ("vision_model.", "")
INTERNLM2 = (
    ("language_model.model.", "language_model.output.weight"),
    ("model.", "output.weight"),
    ("", "output.weight"),
)


def decoder_class(source: Source) -> str:
    """The class of the decoder that a config.json names; empty where it names none."""
    inner = source.config.get("llm_config")
    named = inner.get("architectures") if isinstance(inner, dict) else None
    return str(named[0]) if isinstance(named, list) and named else ""


def merges_tokens(source: Source) -> bool | None:
    """Whether the code that a config.json names merges tokens (HiCo); None where nothing tells.

    A config without code, as the original class saves it, tells by its decoder, and by tiles, which InternVL's models
    all have.
    """
    code = source.config.get("auto_map")
    if code:
        return "hico" in str(code).lower()
    if decoder_class(source) != "InternLM2ForCausalLM":
        return False
    return None if source.config.get("dynamic_image_size") else True


def read(source: Source, *, decoders: Collection[str], merge: bool = False) -> VideoLLMConfig:
    """Our config of an InternVLChatModel's config.json.

    Args:
        source: What is read. The vocabulary's rows are those of its tensors.
        decoders: The classes of decoders that the family has.
        merge: Whether its code merges tokens; frames per clip and tokens per clip are constants there, not fields.

    Raises:
        ConversionError: A field that is not supported, or that nothing here reads.
    """
    family, decoder_name = source.family, decoder_class(source)
    assert family is not None
    fields = Fields(source.config, "config.json")
    for name, value in (("select_layer", -1), ("ps_version", "v2"), ("downsample_ratio", 0.5)):
        fields.only(name, value)
    for name in ("image_fold", "system_message"):
        fields.only(name, None)
    llm = Fields(fields.need("llm_config") or {}, "config.json, llm_config")
    llm.only("architectures", *([name] for name in decoders))
    llm.only("bias", False)
    llm.only("moe_config", None)
    llm.raise_problems()
    kind, embedding = DECODERS.get(decoder_name, DECODERS["InternLM2ForCausalLM"])
    decoder = read_decoder(llm, rows_of(source.shapes, embedding), source.overrides, source.notes, kind=kind)
    decoder = replace(decoder, tied=decoder.tied or bool(fields("tie_word_embeddings", False)))
    llm.close(HARMLESS, source.ignore)
    vision = _tower(Fields(fields.need("vision_config") or {}, "config.json, vision_config"), source.ignore)
    fields.only("force_image_size", vision.image_size, None)
    prompt = None if fields("template") is None else str(fields("template"))
    if prompt is None:
        prompt = family.prompt
        source.notes.append("config.json names no template; internvl2_5, as InternVL2.5's configs do")
    fields.close(HARMLESS, source.ignore)
    cfg = VideoLLMConfig(
        family=family.name,
        vision=vision,
        projector=ProjectorConfig(
            d_in=4 * vision.d_model,
            d_out=decoder.d_model,
            shuffle=2,
            merge=MergeConfig(metric_heads=decoder.n_heads) if merge else None,
            input_norm=True,
        ),
        decoder=decoder,
        prompt=prompt,
        sampler=family.sampler,
    )
    return override(cfg, source.overrides, ConversionError)


def _tower(read: Fields, ignore: Collection[str]) -> VisionConfig:
    read.only("norm_type", "layer_norm", "rms_norm")
    read.only("num_channels", 3)
    read.only("use_moe", False)
    sizes = {
        ours: read.count(theirs)
        for ours, theirs in {
            "n_layers": "num_hidden_layers", "d_model": "hidden_size", "n_heads": "num_attention_heads",
            "d_mlp": "intermediate_size", "image_size": "image_size", "patch_size": "patch_size",
        }.items()
    }  # fmt: skip
    act, eps, bias = read.act("hidden_act", "gelu"), read.number("layer_norm_eps", 1e-6), bool(read("qkv_bias", True))
    norm, qk_norm = ("rms" if read("norm_type") == "rms_norm" else "layer"), bool(read("qk_normalization", False))
    read.close(TOWER, ignore)
    return replace(INTERNVIT_300M, **sizes, act=act, eps=eps, qkv_bias=bias, norm=norm, qk_norm=qk_norm)


def table(cfg: VideoLLMConfig, names: Sequence[str]) -> list[Line]:
    """The names of the original code, which are the same in every checkpoint."""
    assert cfg.vision
    decoder = tables.internlm2(cfg.lm)
    if not is_internlm2(cfg.lm):
        decoder = tables.llama(cfg.lm, "language_model.model.", "language_model.lm_head.weight")
    return [*decoder, *tables.internvit(cfg.vision), *tables.intern_projector()]


def is_internlm2(cfg: DecoderConfig) -> bool:
    """Whether a decoder of the package is InternLM2: the others have biases or norms of queries and keys."""
    return not (cfg.qkv_bias or cfg.qk_norm)


def adapter(cfg: VideoLLMConfig) -> list[Line]:
    """The lines of every name of the package that an adapter may have been trained under, but for Qwen's."""
    assert cfg.vision
    lm = replace(cfg.lm, tied=False)  # a tied head has its name, so that it can be refused
    decoders = INTERNLM2 if is_internlm2(lm) else ()
    return [
        *(line for model, head in decoders for line in tables.internlm2(lm, model, head)),
        *(line for tower in TOWERS for line in tables.internvit(cfg.vision, tower)),
        *tables.intern_projector(),
    ]
