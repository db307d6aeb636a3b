"""VideoLLaMA3: frames of any shape, tokens dropped where a frame repeats the last one, times before frames."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from hookedvid.conversion import decoder_fields, hf_configs, tables
from hookedvid.conversion.fields import PRETRAINED, Fields
from hookedvid.conversion.hf_configs import HARMLESS, ConfigFields
from hookedvid.conversion.lines import Line, Shapes
from hookedvid.errors import ConversionError
from hookedvid.families.alone import decoder_lines, decoder_table, prefix
from hookedvid.families.family import Family, Layout, Published, Source
from hookedvid.families.prompts import QuestionForm, Template
from hookedvid.values.config import DecoderConfig, ProjectorConfig, RopeConfig, VideoLLMConfig, VisionConfig
from hookedvid.values.parts import QWEN2, VIDEOLLAMA3_VIT
from hookedvid.values.processor import Processor
from hookedvid.values.serial import override

# What a published config leaves to the class of the original tower.
TOWER = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip
# What the authors' training leaves in a config.json.
TRAINING = set(
    "image_aspect_ratio image_size image_token_length is_alignment llm_lr loss_reduction_scope max_frames "
    "max_window_layers mm_attn_implementation mm_hidden_size mm_projector_lr mm_vision_encoder "
    "mm_vision_select_feature mm_vision_select_layer sliding_window tokenizer_model_max_length tokenizer_padding_side "
    "use_flash_loss use_mm_proj vision_encoder vision_encoder_lr".split()
)
# Prefixes of tower and projector: original; transformers; the files that it saved; without the model around them.
TOWERS = ("model.vision_encoder.", "model.vision_model.", "vision_encoder.", "vision_model.", "")
PROJECTORS = ("model.mm_projector.", "model.projector.", "mm_projector.", "projector.")


def read_original(source: Source) -> VideoLLMConfig:
    """Our config of the authors' config.json: the decoder's fields, and those of the tower inside."""
    fields = Fields(source.config, "config.json")
    fields.only("mm_projector_type", "mlp2x_gelu")
    fields.only("rope_scaling", None)  # which the authors' Qwen2 would heed
    fields.only("use_sliding_window", False)
    placeholder, drops = fields.need("image_token_index"), bool(fields("use_token_compression", True))
    inner = Fields(fields.need("vision_encoder_config") or {}, "config.json, vision_encoder_config")
    inner = Fields({**TOWER, **inner.values}, inner.what)
    rows = decoder_fields.rows_of(source.shapes, "model.embed_tokens.weight")
    decoder = decoder_fields.read_decoder(fields, rows, source.overrides, source.notes, kind="qwen2")
    tower = _tower(inner, PRETRAINED | {"tie_word_embeddings"}, source.ignore)
    fields.close(PRETRAINED | TRAINING, source.ignore)
    return override(_whole(source, tower, drops, decoder, placeholder), source.overrides, ConversionError)


def read(source: Source) -> VideoLLMConfig:
    """Our config of a VideoLlama3Config.

    Which tokens are dropped is mostly its processor's choice: what the authors' code drops, unless this says none.
    Frames are resized by torch's filter instead of Pillow's.
    """
    config = source.config
    fields = ConfigFields(config)
    fields.taken |= {"text_config", "vision_config"}
    decoder = hf_configs.read_decoder(config.text_config, source.ignore)
    decoder = replace(decoder, tied=decoder.tied or bool(config.tie_word_embeddings))
    tower = replace(_tower(ConfigFields(config.vision_config), HARMLESS, source.ignore), resample="bicubic")
    drops = bool(fields("use_token_compression", True))
    fields.close(HARMLESS, source.ignore)
    return _whole(source, tower, drops, decoder, config.video_token_id)


def _tower(read: Fields, harmless: Collection[str], ignore: Collection[str]) -> VisionConfig:
    read.only("num_channels", 3)
    rope = dict(read("rope_parameters") or {})
    theta = rope.pop("rope_theta", VIDEOLLAMA3_VIT.rope_theta)
    if rope.pop("rope_type", "axial") != "axial" or rope:
        read.problems.append(f"rope_parameters = {read('rope_parameters')!r} is not supported (only axial)")
    patch = read.count("patch_size")
    cfg = replace(
        VIDEOLLAMA3_VIT,
        n_layers=read.count("num_hidden_layers"),
        d_model=read.count("hidden_size"),
        n_heads=read.count("num_attention_heads"),
        d_mlp=read.count("intermediate_size"),
        patch_size=patch,
        multiple=2 * patch,
        act=read.act("hidden_act"),
        eps=read.number("layer_norm_eps", 1e-6),
        rope_theta=theta,
    )
    read.close(harmless, ignore)
    return cfg


def _whole(
    source: Source, tower: VisionConfig, drops: bool, decoder: DecoderConfig, placeholder: int
) -> VideoLLMConfig:
    family = source.family
    assert family is not None
    return VideoLLMConfig(
        family=family.name,
        vision=tower if drops else replace(tower, drop_below=None),
        projector=ProjectorConfig(d_in=tower.d_model, d_out=decoder.d_model, pool="bilinear", pool_before=True),
        decoder=decoder,
        prompt=family.prompt,
        placeholder_id=placeholder,
        n_frames=family.n_frames,
        sampler=family.sampler,
    )


def table(cfg: VideoLLMConfig, names: Sequence[str], decoder: str, tower: str, projector: str) -> list[Line]:
    """The names of the original code, or of a model of transformers' in memory and in files.

    Args:
        cfg: Ours.
        names: Theirs.
        decoder: The decoder's prefix where the names tell none, as are `tower` and `projector`.
        tower: The tower's.
        projector: The projector's.
    """
    assert cfg.vision
    readout = prefix(names, "readout.0.weight", projector) + "readout"
    return [
        *decoder_table(cfg, names, decoder),
        *tables.clip_like(cfg.vision, prefix(names, "embeddings.patch_embedding.weight", tower)),
        *tables.mlp2x(f"{readout}.0", f"{readout}.2"),
    ]


def adapter(cfg: VideoLLMConfig) -> list[Line]:
    """The lines of every name that an adapter may have been trained under."""
    assert cfg.vision
    return [
        *decoder_lines(cfg.lm),
        *(line for tower in TOWERS for line in tables.clip_like(cfg.vision, tower)),
        *(line for p in PROJECTORS for line in tables.mlp2x(f"{p}readout.0", f"{p}readout.2")),
    ]


def _looks(family: Family, shapes: Shapes, tower: str) -> str | None:
    return "" if any(n.endswith("readout.0.weight") for n in shapes) and any(tower in n for n in shapes) else None


ORIGINAL = ("model.", "model.vision_encoder.", "model.mm_projector.")
TRANSFORMERS = ("model.language_model.", "model.vision_model.", "model.projector.")


def _layout(architecture: str, read: Callable[[Source], VideoLLMConfig], names: tuple[str, str, str]) -> Layout:
    decoder, tower, projector = names
    return Layout(
        architecture=architecture,
        read=read,
        table=partial(table, decoder=decoder, tower=tower, projector=projector),
        transformers=names == TRANSFORMERS,
        looks=partial(_looks, tower=tower.removeprefix("model.")),
    )


# Texts of the chat template in the authors' package (videollama3/model/processor.py), and of their evaluation.
ASKED = Template(
    before="<|im_start|>user\n",
    frame_before="Time {time:.1f}s:",
    frame_join=",",
    video_after="\n",
    between="",
    form=QuestionForm(
        instruction="\nAnswer with the option's letter from the given choices directly and only give the best option. "
        "The best answer is:",
    ),
    after="<|im_end|>\n<|im_start|>assistant\n",
    stops=("<|im_end|>",),
)
SYSTEM = (
    "You are VideoLLaMA3 created by Alibaba DAMO Academy, a helpful assistant to help people understand images and "
    "videos."
)

FAMILY = Family(
    name="videollama3",
    title="VideoLLaMA3",
    released="2025-01",
    tower=VIDEOLLAMA3_VIT,
    tower_name="SigLIP-NaViT so400m",
    projector={"pool": "bilinear", "pool_before": True},
    decoder=QWEN2,
    rope=RopeConfig(theta=1e6),
    prompt="videollama3",
    templates={
        # The system text stands in what the model's card shows, and not where the authors evaluate.
        "videollama3": replace(ASKED, before=f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{ASKED.before}"),
        "videollama3_eval": ASKED,
    },
    layouts=(
        _layout("Videollama3Qwen2ForCausalLM", read_original, ORIGINAL),
        _layout("VideoLlama3ForConditionalGeneration", read, TRANSFORMERS),
    ),
    adapter=adapter,
    parity="original, transformers",
    n_frames=180,
    sampler="videollama3",
    processor=Processor(extras=("video_grid_thw", "video_merge_sizes", "video_compression_mask")),
    published={
        "videollama3-7b": Published("DAMO-NLP-SG/VideoLLaMA3-7B", 180, "91 + text", 16.1),
        "videollama3-2b": Published("DAMO-NLP-SG/VideoLLaMA3-2B", 180, "91 + text", 3.9),
        "videollama3-2b-image": Published("lkhl/VideoLLaMA3-2B-Image-HF", 180, "91 + text", 3.9),
    },
)
