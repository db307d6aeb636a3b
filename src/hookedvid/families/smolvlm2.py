"""SmolVLM2: a SigLIP tower, squares of patches joined by one Linear, a small Llama, and a clock before every frame."""

from collections.abc import Sequence
from dataclasses import replace

from hookedvid.conversion import hf_configs, tables
from hookedvid.conversion.hf_configs import HARMLESS, ConfigFields
from hookedvid.conversion.lines import Line, Rule, Shapes
from hookedvid.families.alone import decoder_table, prefix
from hookedvid.families.family import Family, Layout, Published, Source
from hookedvid.families.prompts import Template
from hookedvid.values.config import ProjectorConfig, RopeConfig, VideoLLMConfig
from hookedvid.values.parts import LLAMA, SMOLVLM_SIGLIP_512
from hookedvid.values.processor import Processor

# What the published configs keep of the training code, whose parts transformers' class does not have: harmless as long
# as those in OFF are off.
OFF = ("qk_layer_norms", "rope_interleaved", "use_resampler")
LEFT = ("is_llama_config", "neftune_noise_alpha", "perceiver_config", "pixel_shuffle_factor", "transformers.js_config")
TOWER_LEFT = ("max_image_size", "size", "use_base_siglip")

SLIPPED = 27  # patches of a side for which transformers up to 4.54 took one position for another

CONNECTOR = "connector.modality_projection.proj.weight"


def read(source: Source) -> VideoLLMConfig:
    """Our config of a SmolVLMConfig. Whether the head is tied is seen by the files, whatever it says."""
    config, ignore, family = source.config, source.ignore, source.family
    assert family is not None
    fields, text = ConfigFields(config), ConfigFields(config.text_config)
    fields.taken |= {"text_config", "vision_config"}
    for name in OFF:
        text.only(name, False)
    text.raise_problems()
    decoder = hf_configs.read_decoder(config.text_config, (*ignore, *OFF, *LEFT))
    decoder = replace(decoder, tied=decoder.tied or bool(config.tie_word_embeddings))
    tower = hf_configs.read_tower(config.vision_config, final_norm=True, ignore=(*ignore, *TOWER_LEFT))
    joined = fields("scale_factor")
    if tower.grid % joined:
        fields.problems.append(f"scale_factor = {joined} does not divide the {tower.grid} patches of a side")
    fields.close(HARMLESS | {"use_reentrant_checkpointing"}, ignore)
    if tower.grid == SLIPPED:
        source.notes.append(
            f"of {SLIPPED} x {SLIPPED} patches, those in row or column 10 have positions of their own, as "
            "transformers 5 has it; the code that this model was trained with gave them those of 9, by a slip"
        )
    return VideoLLMConfig(
        family=family.name,
        vision=tower,
        projector=ProjectorConfig(
            d_in=joined**2 * tower.d_model, d_out=decoder.d_model, shuffle=joined, linear=True
        ),
        decoder=decoder,
        prompt=family.prompt,
        placeholder_id=config.image_token_id,
        n_frames=family.n_frames,
        sampler=family.sampler,
    )  # fmt: skip


def table(cfg: VideoLLMConfig, names: Sequence[str]) -> list[Line]:
    """The names of a file and of a model in memory, which are the same."""
    assert cfg.vision
    return [
        *decoder_table(cfg, names, "model.text_model."),
        *tables.clip_like(cfg.vision, prefix(names, "embeddings.patch_embedding.weight", "model.vision_model.")),
        Rule(f"{prefix(names, CONNECTOR, 'model.')}{CONNECTOR}", "projector.inp.weight"),
    ]


def adapter(cfg: VideoLLMConfig) -> list[Line]:
    """The lines of every name that an adapter may have been trained under: of the whole model, or without its head."""
    assert cfg.vision
    lm, lines = replace(cfg.lm, tied=False), list[Line]()  # a tied head has its name, so that it can be refused
    for outer in ("model.", ""):
        lines += tables.llama(lm, f"{outer}text_model.")
        lines += tables.clip_like(cfg.vision, f"{outer}vision_model.")
        lines.append(Rule(f"{outer}{CONNECTOR}", "projector.inp.weight"))
    return lines


def looks(family: Family, shapes: Shapes) -> str | None:
    """See `Layout.looks`."""
    return "" if any(n.endswith(CONNECTOR) for n in shapes) else None


FAMILY = Family(
    name="smolvlm2",
    title="SmolVLM2",
    released="2025-02",
    tower=SMOLVLM_SIGLIP_512,
    tower_name="SigLIP B/16 or so400m",
    projector={"shuffle": 4, "linear": True},
    decoder=LLAMA,
    rope=RopeConfig(theta=1e5),
    prompt="smolvlm2",
    templates={
        # Texts of transformers' SmolVLMProcessor, in the chat template that it takes for videos.
        "smolvlm2": Template(
            before="<|im_start|>User: ",
            video_before="You are provided the following series of {spelled} frames from a {length} [H:MM:SS] video.\n",
            frame_before="\nFrame from {clock}:<fake_token_around_image><global-img>",
            frame_after="<fake_token_around_image>",
            video_after="\n\n",
            between="",
            after="<end_of_utterance>\nAssistant:",
            answer=" {answer}",
            stops=("<end_of_utterance>",),
        ),
    },
    layouts=(
        Layout(
            architecture="SmolVLMForConditionalGeneration", read=read, table=table, transformers=True, looks=looks
        ),
    ),
    adapter=adapter,
    parity="transformers",
    n_frames=64,
    sampler="smolvlm",
    # Frames are brought to the sampling's `video_size` first, as the authors do it. transformers takes the images' size
    # instead where a file states both (2048 of the published ones): override vision.first_size.
    processor=Processor(
        pixels="pixel_values", form="video", extras=("pixel_attention_mask",), inert=("do_image_splitting",)
    ),
    # Files hold float32. Scores are the model cards'.
    published={
        "smolvlm2-256m": Published(
            "HuggingFaceTB/SmolVLM2-256M-Video-Instruct", 64, "64 + text", 1.03, (33.7, 32.7, None)
        ),
        "smolvlm2-500m": Published(
            "HuggingFaceTB/SmolVLM2-500M-Video-Instruct", 64, "64 + text", 2.03, (42.2, 39.7, None)
        ),
        "smolvlm2-2.2b": Published("HuggingFaceTB/SmolVLM2-2.2B-Instruct", 64, "81 + text", 8.99, (52.1, 46.3, None)),
    },
    small={"vision.image_size": 128},
)  # fmt: skip
