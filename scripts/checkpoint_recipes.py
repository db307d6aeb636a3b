"""What published checkpoints' files are made from: their config.json, names, types and sizes of files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from hookedvid.checkpoints import layouts
from hookedvid.conversion import tables
from hookedvid.conversion.lines import Line
from hookedvid.families import llava
from hookedvid.families.registry import FAMILIES
from hookedvid.values.config import DecoderConfig, ProjectorConfig, VideoLLMConfig, VisionConfig
from published_configs import CONFIGS, INTERNLM, LONG_7B, QWEN_05B, QWEN_7B, QWEN_32B, VICUNA

COMMON = {"hidden_act": "silu", "torch_dtype": "bfloat16", "use_cache": True, "transformers_version": "4.40.0"}
SIGLIP = {"mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_hidden_size": 1152}
CLIP = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_hidden_size": 1024}
UNPAD = {"mm_patch_merge_type": "spatial_unpad"}


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """What a checkpoint's files are made from.

    Attributes:
        special: Tokens of the prompts, with their ids.
        end: The one that ends an answer.
        dtype: Of the weights.
        float32: Beginnings of the names that are stored as float32 all the same.
        shard: Bytes of one file at most, where nothing else is asked for.
        twice: Beginnings of names whose tensors the files hold under another beginning as well, and that one.
    """

    special: Mapping[str, int]
    end: str = "<|im_end|>"
    dtype: torch.dtype = torch.bfloat16
    float32: tuple[str, ...] = ()
    shard: int = 5_000_000_000  # transformers' limit when these were saved
    twice: Mapping[str, str] = field(default_factory=dict)

    @property
    @abstractmethod
    def config_json(self) -> dict[str, Any]:
        """config.json, as far as it says something about the model."""

    @property
    @abstractmethod
    def reading(self) -> layouts.Reading:
        """Our config of all that the files hold, and their names for it."""


@dataclass(frozen=True, kw_only=True)
class Hub(Recipe):
    """A checkpoint of which all follows from its config.json and one name of each of its parts.

    Attributes:
        config: Its config.json.
        names: One of every prefix it has; a head's is there if and only if the files hold one.
        beside: Fields of our config that make it hold what no video passes.
    """

    config: dict[str, Any]
    names: tuple[str, ...]
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config_json(self) -> dict[str, Any]:
        """See `Recipe`."""
        return self.config

    @property
    def reading(self) -> layouts.Reading:
        """See `Recipe`."""
        levels = [self.config.get(key, {}) for key in ("text_config", "llm_config")]
        rows = next(level["vocab_size"] for level in (self.config, *levels) if "vocab_size" in level)
        return layouts.read(self.config, dict.fromkeys(self.names, (rows,)), self.beside)


@dataclass(frozen=True, kw_only=True)
class Original(Recipe):
    """A checkpoint of a package of the authors' own, by its decoder's config; its tower's blocks as they run.

    Attributes:
        vision: Another tower than the family's.
    """

    family: str
    decoder: dict[str, Any]
    vision: VisionConfig | None = None

    @property
    def tower(self) -> VisionConfig:
        """The tower this checkpoint has."""
        return self.vision or FAMILIES[self.family].tower

    def _reading(
        self,
        vision: VisionConfig,
        projector: dict[str, Any],
        rest: Sequence[Line],
        decoder_names: Callable[[DecoderConfig], list[Line]],
    ) -> layouts.Reading:
        c = self.decoder
        heads = c["num_attention_heads"]
        decoder = DecoderConfig(
            n_layers=c["num_hidden_layers"], d_model=c["hidden_size"], n_heads=heads, d_mlp=c["intermediate_size"],
            n_kv_heads=c["num_key_value_heads"], d_head=c["hidden_size"] // heads, d_vocab=c["vocab_size"],
            tied=c.get("tie_word_embeddings", False), **FAMILIES[self.family].decoder,
        )  # fmt: skip
        d_in = vision.d_model * projector.get("shuffle", 1) ** 2
        own = ProjectorConfig(d_in=d_in, d_out=decoder.d_model, **projector)
        cfg = VideoLLMConfig(family=self.family, vision=vision, decoder=decoder, projector=own)
        return layouts.Reading(cfg, [*decoder_names(decoder), *rest])


@dataclass(frozen=True, kw_only=True)
class Llava(Original):
    """One of LLaVA's package.

    Attributes:
        multimodal: Fields of its config beside the decoder's.
        newline: Whether the files hold one.
    """

    multimodal: dict[str, Any]
    architecture: str = "LlavaQwenForCausalLM"
    newline: bool = True

    @property
    def config_json(self) -> dict[str, Any]:
        """See `Recipe`."""
        return {
            "architectures": [self.architecture], "model_type": "llava",
            "tie_word_embeddings": False, **self.decoder, **COMMON, "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False, "mm_resampler_type": None, "use_mm_proj": True,
            "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
            "image_aspect_ratio": "anyres_max_9", "tokenizer_model_max_length": 32768, **self.multimodal,
        }  # fmt: skip

    @property
    def reading(self) -> layouts.Reading:
        """See `Recipe`."""
        # The files carry what no video passes: CLIP's last block, the norm after it, every newline there is.
        v = self.tower
        vision = replace(v, n_layers=v.n_layers + v.cls_token, final_norm=True)
        projector = {**FAMILIES[self.family].projector, "newline": "once" if self.newline else "none"}
        ends = tables.mlp2x("model.mm_projector.0", "model.mm_projector.2", "model.image_newline", self.newline)
        return self._reading(vision, projector, [*tables.clip_like(vision, llava.TOWER), *ends], tables.llama)


@dataclass(frozen=True, kw_only=True)
class Intern(Original):
    """One of InternVL's package with InternLM2."""

    @property
    def config_json(self) -> dict[str, Any]:
        """See `Recipe`."""
        v = self.tower
        tower = {"hidden_size": v.d_model, "intermediate_size": v.d_mlp, "num_hidden_layers": v.n_layers,
                 "num_attention_heads": v.n_heads, "image_size": v.image_size, "patch_size": v.patch_size,
                 "hidden_act": "gelu", "layer_norm_eps": 1e-6, "norm_type": "layer_norm", "qkv_bias": True,
                 "qk_normalization": False, "num_channels": 3, "model_type": "intern_vit_6b"}  # fmt: skip
        llm = {**self.decoder, **COMMON, "architectures": ["InternLM2ForCausalLM"], "bias": False,
               "model_type": "internlm2", "tie_word_embeddings": False}  # fmt: skip
        return {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "llm_config": llm,
                "vision_config": tower, "select_layer": -1, "ps_version": "v2", "downsample_ratio": 0.5,
                "force_image_size": v.image_size, "template": "internvl2_5", "torch_dtype": "bfloat16"}  # fmt: skip

    @property
    def reading(self) -> layouts.Reading:
        """See `Recipe`."""
        rest = [*tables.internvit(self.tower), *tables.intern_projector()]
        return self._reading(self.tower, dict(FAMILIES[self.family].projector), rest, tables.internlm2)


CHATML = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
QWEN_VL = {**CHATML, "<|vision_start|>": 151652, "<|vision_end|>": 151653, "<|vision_pad|>": 151654,
           "<|image_pad|>": 151655, "<|video_pad|>": 151656}  # fmt: skip
SMOL = {"<|im_start|>": 1, "<global-img>": 49152, "<fake_token_around_image>": 49189, "<image>": 49190,
        "<end_of_utterance>": 49279}  # fmt: skip
LLAMA_VIDEO = {"<s>": 1, "</s>": 2, "<image>": 32000, "<video>": 32001, "<pad>": 32002}
INTERNVL_2_5 = CHATML | {"<img>": 151665, "</img>": 151666, "<IMG_CONTEXT>": 151667}
INTERNVL_3_5 = CHATML | {"<img>": 151669, "</img>": 151670, "<IMG_CONTEXT>": 151671}
OLD = ("visual.patch_embed.proj.weight", "model.embed_tokens.weight")
NEW = ("model.visual.patch_embed.proj.weight", "model.language_model.embed_tokens.weight")
HEAD = ("lm_head.weight",)
INTERNVL = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
SMOLVLM = ("model.vision_model.embeddings.patch_embedding.weight", "model.text_model.embed_tokens.weight", *HEAD)
VIDEOLLAMA3 = ("model.vision_encoder.embeddings.patch_embedding.weight", "model.embed_tokens.weight",
               "model.mm_projector.readout.0.weight")  # fmt: skip
VIDEOLLAMA3_HF = ("model.vision_model.embeddings.patch_embedding.weight", "model.language_model.embed_tokens.weight",
                  "model.projector.readout.0.weight")  # fmt: skip
VIDEO_LLAVA = ("video_tower.vision_model.embeddings.patch_embedding.weight", "multi_modal_projector.linear_1.weight",
               "language_model.model.embed_tokens.weight", "language_model.lm_head.weight")  # fmt: skip
LLAMA_2 = {"<s>": 31998, "</s>": 31999}
INTERNLM_2 = {"<s>": 92541, "<|im_end|>": 92542, "<|im_start|>": 92543, "<img>": 92544, "</img>": 92545,
              "<IMG_CONTEXT>": 92546}  # fmt: skip
POOLED = {**SIGLIP, **UNPAD, "mm_spatial_pool_mode": "bilinear"}


def hub(name: str, names: tuple[str, ...], special: Mapping[str, int] = QWEN_VL, **given: Any) -> Hub:
    """The recipe of a published config of transformers' layout."""
    return Hub(config=CONFIGS[name], names=names, special=special, **given)


RECIPES: dict[str, Recipe] = {
    "longva-7b": Llava(
        family="longva", decoder=LONG_7B, special=CHATML, newline=False,
        multimodal={**CLIP, "mm_patch_merge_type": "unires", "mm_spatial_pool_mode": "average",
                    "mm_spatial_pool_stride": 2, "tokenizer_model_max_length": 224000},
    ),
    # Its size on the hub tells that its tower and projector are stored in float32.
    "internvideo2.5-8b": Intern(
        family="internvideo2.5", decoder=INTERNLM, special=INTERNLM_2, float32=("vision_model.", "mlp1."),
    ),
    "llava-video-7b": Llava(
        family="llava-video", decoder=QWEN_7B, special=CHATML, multimodal={**POOLED, "mm_newline_position": "grid"},
    ),
    "llava-onevision-7b": Llava(
        family="llava-onevision", decoder=QWEN_7B, special=CHATML,
        multimodal={**POOLED, "mm_newline_position": "one_token"},
    ),
    "llava-onevision-0.5b": Llava(
        family="llava-onevision", decoder=QWEN_05B, special=CHATML,
        multimodal={**POOLED, "mm_newline_position": "one_token"},
    ),
    "llava-next-video-32b": Llava(
        family="llava-next-video-qwen", decoder=QWEN_32B, special=CHATML,
        multimodal={**SIGLIP, **UNPAD, "mm_newline_position": "grid", "mm_spatial_pool_mode": "average",
                    "mm_pooling_position": "after"},
    ),
    "llava-next-video-7b": Llava(
        family="llava-next-video", decoder=VICUNA, special=LLAMA_2, end="</s>", architecture="LlavaLlamaForCausalLM",
        multimodal={**CLIP, **UNPAD, "tokenizer_model_max_length": 4096},
    ),
    **{name: hub(name, OLD, shard=4_000_000_000) for name in ("qwen2-vl-2b", "qwen2.5-vl-3b")},
    **{name: hub(name, OLD + HEAD, shard=4_000_000_000) for name in ("qwen2-vl-7b", "qwen2.5-vl-7b")},
    **{name: hub(name, NEW) for name in ("qwen3-vl-2b", "qwen3-vl-4b")},
    "qwen3-vl-8b": hub("qwen3-vl-8b", NEW + HEAD),
    "internvl3-1b": hub("internvl3-1b", INTERNVL, INTERNVL_2_5),
    "internvl3.5-1b": hub("internvl3.5-1b", INTERNVL, INTERNVL_3_5),
    "llava-onevision-1.5-4b": hub("llava-onevision-1.5-4b", OLD + HEAD),
    **{
        name: hub(name, SMOLVLM, SMOL, end="<end_of_utterance>", dtype=torch.float32)
        for name in ("smolvlm2-256m", "smolvlm2-500m")
    },
    "videollama3-2b": hub("videollama3-2b", VIDEOLLAMA3, CHATML | {"<image>": 151665}),
    "videollama3-2b-image": hub("videollama3-2b-image", VIDEOLLAMA3_HF, QWEN_VL),
    # Only the video tower is read, up to the features that are selected; the files hold all of both.
    "video-llava-7b": hub(
        "video-llava-7b", VIDEO_LLAVA, LLAMA_VIDEO, end="</s>", dtype=torch.float16,
        beside={"vision.n_layers": 24, "vision.final_norm": True}, twice={"video_tower.": "image_tower."},
    ),
}  # fmt: skip
RECIPES["longva-7b-dpo"] = RECIPES["longva-7b"]
