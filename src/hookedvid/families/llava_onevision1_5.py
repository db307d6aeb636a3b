"""LLaVA-OneVision-1.5: the RICE tower, whose class tokens its published code takes out at the wrong places; Qwen3."""

from dataclasses import replace

from hookedvid.conversion.decoder_fields import read_decoder, rows_of
from hookedvid.conversion.fields import PRETRAINED, Fields
from hookedvid.errors import ConversionError
from hookedvid.families import qwen_vl
from hookedvid.families.alone import prefix
from hookedvid.families.family import Family, Layout, Published, Source
from hookedvid.families.qwen2_vl import QWEN2_VL
from hookedvid.values.config import ProjectorConfig, RopeConfig, VideoLLMConfig, VisionConfig
from hookedvid.values.parts import QWEN3, RICE
from hookedvid.values.processor import Processor
from hookedvid.values.serial import override

HARMLESS = PRETRAINED | {"max_window_layers", "sliding_window", "vocab_size"}
EMBEDDING = "embed_tokens.weight"


def read(source: Source) -> VideoLLMConfig:
    """Our config of a config.json of the authors' code.

    From the second frame on that code takes rows one further on for each frame before, class tokens among them. The
    override `vision.cls_cut="each_frame"` takes each frame's own instead.
    """
    fields = Fields(source.config, "config.json")
    text = Fields(fields.need("text_config") or {}, "config.json, text_config")
    rows = rows_of(source.shapes, prefix(list(source.shapes), EMBEDDING, "model.language_model.") + EMBEDDING)
    decoder = read_decoder(text, rows, source.overrides, source.notes, kind="qwen3")
    decoder = replace(decoder, tied=decoder.tied or bool(fields("tie_word_embeddings", False)))
    text.close(HARMLESS, source.ignore)
    vision = _tower(Fields(fields.need("vision_config") or {}, "config.json, vision_config"), decoder.d_model, source)
    placeholder = fields("video_token_id", VIDEO_PAD)
    fields.close(HARMLESS, source.ignore)
    d_joined = 4 * vision.d_model
    own = {**FAMILY.projector, "d_hidden": d_joined, "norm_eps": vision.eps}
    cfg = VideoLLMConfig(
        family=FAMILY.name,
        vision=vision,
        projector=ProjectorConfig(d_in=d_joined, d_out=decoder.d_model, **own),
        decoder=decoder,
        prompt=FAMILY.prompt,
        placeholder_id=placeholder,
        n_frames=FAMILY.n_frames,
        sampler=FAMILY.sampler,
    )
    return override(cfg, source.overrides, ConversionError)


def _tower(read: Fields, d_text: int, source: Source) -> VisionConfig:
    sizes = {"n_layers": "depth", "d_model": "embed_dim", "n_heads": "num_heads", "d_mlp": "intermediate_size"}
    found = {ours: read.count(theirs) for ours, theirs in sizes.items()}
    patch = read.count("patch_size")
    for name, value in (("in_channels", 3), ("spatial_merge_size", 2), ("temporal_patch_size", 1)):
        read.only(name, value)
    read.only("hidden_size", found["d_model"])
    read.only("text_hidden_size", d_text)
    act, eps = read.act("hidden_act", "gelu"), read.number("layer_norm_eps", RICE.eps)
    read.close(HARMLESS | {"tie_word_embeddings"}, source.ignore)
    return replace(RICE, **found, patch_size=patch, multiple=2 * patch, act=act, eps=eps)


VIDEO_PAD = 151656  # the class's default

FAMILY = Family(
    name="llava-onevision-1.5",
    title="LLaVA-OneVision-1.5",
    released="2025-09",
    tower=RICE,
    tower_name="RICE ViT-L",
    projector={"shuffle": 2, "patch_norm": "layer", "norm_eps": 1e-5, "d_hidden": 4096},
    decoder=QWEN3,
    rope=RopeConfig(theta=1e6),  # the 8B's; 5e6 in the 4B
    prompt="qwen2_vl",
    templates={"qwen2_vl": QWEN2_VL},
    n_frames=32,
    sampler="qwen",
    placeholder="<|video_pad|>",
    layouts=(
        Layout(
            architecture="LLaVAOneVision1_5_ForConditionalGeneration",
            read=read,
            table=qwen_vl.table,
            looks=qwen_vl.looks,
        ),
    ),
    adapter=qwen_vl.adapter,
    parity="original",
    processor=Processor(extras=("video_grid_thw", "second_per_grid_ts")),
    published={
        f"llava-onevision-1.5-{size}": Published(
            f"lmms-lab/LLaVA-OneVision-1.5-{size.upper()}-Instruct", 32, "510", gigabytes
        )
        for size, gigabytes in (("4b", 9.5), ("8b", 17.1))
    },
)
