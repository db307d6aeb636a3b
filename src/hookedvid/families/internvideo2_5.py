"""InternVideo2.5: InternViT, an InternLM2 decoder, and tokens of four frames merged; a text before every frame."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from hookedvid.conversion import tables
from hookedvid.conversion.decoder_fields import read_decoder, rows_of
from hookedvid.conversion.fields import PRETRAINED, Fields
from hookedvid.conversion.lines import Line, Shapes
from hookedvid.errors import ConversionError
from hookedvid.families.family import Family, Layout, Published, Source
from hookedvid.families.prompts import Template, TimeInstruction
from hookedvid.values.config import MergeConfig, ProjectorConfig, RopeConfig, VideoLLMConfig, VisionConfig
from hookedvid.values.parts import INTERNLM2, INTERNVIT_300M
from hookedvid.values.serial import override

INTERNVL_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
INTERNLM2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
INTERN = set(
    "dynamic_image_size hidden_size max_dynamic_patch min_dynamic_patch pad2square use_backbone_lora use_llm_lora "
    "use_thumbnail".split()
)
INTERN_TOWER = set("attention_dropout drop_path_rate dropout use_flash_attn tie_word_embeddings".split())

# Prefixes of the decoder, with its head's name: whole, without the model around it, its inner model; of the tower.
DECODERS = (
    ("language_model.model.", "language_model.output.weight"),
    ("model.", "output.weight"),
    ("", "output.weight"),
)
TOWERS = ("vision_model.", "")


def read(source: Source) -> VideoLLMConfig:
    """Our config of an InternVLChatModel's config.json with an InternLM2 decoder.

    Frames per clip and tokens per clip are constants of the original code, not fields.
    """
    family = source.family
    assert family is not None
    fields = Fields(source.config, "config.json")
    for name, value in (("select_layer", -1), ("ps_version", "v2"), ("downsample_ratio", 0.5)):
        fields.only(name, value)
    llm = Fields(fields.need("llm_config") or {}, "config.json, llm_config")
    llm.only("architectures", ["InternLM2ForCausalLM"])
    llm.only("bias", False)
    rows = rows_of(source.shapes, "language_model.model.tok_embeddings.weight")
    decoder = read_decoder(llm, rows, source.overrides, source.notes, kind="internlm2")
    decoder = replace(decoder, tied=decoder.tied or bool(fields("tie_word_embeddings", False)))
    llm.close(PRETRAINED, source.ignore)
    vision = _tower(Fields(fields.need("vision_config") or {}, "config.json, vision_config"), source.ignore)
    fields.only("force_image_size", vision.image_size, None)
    prompt = None if fields("template") is None else str(fields("template"))
    if prompt is None:
        prompt = family.prompt
        source.notes.append("config.json names no template; internvl2_5, as InternVL2.5's configs do")
    fields.close(PRETRAINED | INTERN, source.ignore)
    cfg = VideoLLMConfig(
        family=family.name,
        vision=vision,
        projector=ProjectorConfig(
            d_in=4 * vision.d_model,
            d_out=decoder.d_model,
            shuffle=2,
            merge=MergeConfig(metric_heads=decoder.n_heads),
            input_norm=True,
        ),
        decoder=decoder,
        prompt=prompt,
        sampler=family.sampler,
    )
    return override(cfg, source.overrides, ConversionError)


def _tower(read: Fields, ignore: Collection[str]) -> VisionConfig:
    read.only("norm_type", "layer_norm")
    read.only("qk_normalization", False)
    read.only("num_channels", 3)
    sizes = {
        ours: read.count(theirs)
        for ours, theirs in {
            "n_layers": "num_hidden_layers", "d_model": "hidden_size", "n_heads": "num_attention_heads",
            "d_mlp": "intermediate_size", "image_size": "image_size", "patch_size": "patch_size",
        }.items()
    }  # fmt: skip
    act, eps, bias = read.act("hidden_act"), read.number("layer_norm_eps", 1e-6), bool(read("qkv_bias", True))
    read.close(PRETRAINED | INTERN_TOWER, ignore)
    return replace(INTERNVIT_300M, **sizes, act=act, eps=eps, qkv_bias=bias)


def table(cfg: VideoLLMConfig, names: Sequence[str]) -> list[Line]:
    """The names of the original code, which are the same in every checkpoint."""
    assert cfg.vision
    return [*tables.internlm2(cfg.lm), *tables.internvit(cfg.vision), *tables.intern_projector()]


def adapter(cfg: VideoLLMConfig) -> list[Line]:
    """The lines of every name that an adapter may have been trained under."""
    assert cfg.vision
    lm = replace(cfg.lm, tied=False)  # a tied head has its name, so that it can be refused
    return [
        *(line for model, head in DECODERS for line in tables.internlm2(lm, model, head)),
        *(line for tower in TOWERS for line in tables.internvit(cfg.vision, tower)),
        *tables.intern_projector(),
    ]


def looks(family: Family, shapes: Shapes) -> str | None:
    """See `Layout.looks`."""
    return "" if any(n.split(".")[-2:-1] == ["tok_embeddings"] for n in shapes) else None


FAMILY = Family(
    name="internvideo2.5",
    title="InternVideo2.5",
    released="2025-01",
    tower=INTERNVIT_300M,
    tower_name="InternViT-300M-448",
    projector={"shuffle": 2, "merge": MergeConfig(), "input_norm": True},
    decoder=INTERNLM2,
    rope=RopeConfig(theta=1e6, scaling="dynamic", factor=2.0),
    prompt="internvl2_5",
    sampler="mid_segment",
    placeholder="<IMG_CONTEXT>",
    # Exact strings of internvl's conversation.py, under its names for them, one of which config.json holds.
    templates={
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
    },
    time_instructions={
        # VideoChat-Flash's xtuner-train_internvideo2_5/unify_internvl2_train_r16.py; the model card's demo has none.
        "internvideo2_5": TimeInstruction(
            "The video lasts for {duration:.2f} seconds, and {n} frames are uniformly sampled from it.\n",
            before_video=True,
        ),
    },
    layouts=(Layout(architecture="InternVLChatModel", read=read, table=table, looks=looks),),
    adapter=adapter,
    parity="original",
    published={
        "internvideo2.5-8b": Published("OpenGVLab/InternVideo2_5_Chat_8B", 32, "16 + text", 16.8, (65.1, 75.7, None)),
    },
    small={
        "vision.image_size": 112,
        "projector.merge": MergeConfig(frames_per_clip=4, tokens_per_clip=16, metric_heads=8),
    },
)
