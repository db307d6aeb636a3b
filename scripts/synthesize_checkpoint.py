"""Write a random checkpoint with the true names, shapes, dtypes, shard sizes and config of a published one.

    python scripts/synthesize_checkpoint.py llava-onevision-7b weights/synthetic-onevision-7b

For trying conversion, memory and speed at full size without the weights. Values are N(0, 0.02), norms near 1; a
stand-in tokenizer (bytes, and the special tokens under their true ids) makes prompts work. `--sparse` writes headers
over holes, so that even the 32B takes no disk: its weights read as zeros, all but one of the head's.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hookedvid.checkpoints import layouts
from hookedvid.conversion import tables
from hookedvid.conversion.provenance import index_of
from hookedvid.conversion.rules import to_theirs
from hookedvid.conversion.shards import INDEX, Entry, Header, as_bytes, encoded, layout, writing
from hookedvid.errors import HookedVidError, nearest
from hookedvid.families import llava
from hookedvid.families.registry import FAMILIES
from hookedvid.nn.parts import parameter_shapes
from hookedvid.values.config import DecoderConfig, ProjectorConfig, VideoLLMConfig, VisionConfig

SHARD = 5_000_000_000  # bytes; transformers' limit when these were saved
STRETCH = 1 << 24  # values drawn at a time

QWEN = {"vocab_size": 152064, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768}
QWEN_7B = {**QWEN, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
           "num_attention_heads": 28, "num_key_value_heads": 4}  # fmt: skip
QWEN_05B = {**QWEN, "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
QWEN_32B = {**QWEN, "hidden_size": 5120, "intermediate_size": 27392, "num_hidden_layers": 64,
            "num_attention_heads": 40, "num_key_value_heads": 8}  # fmt: skip
LONG_7B = {**QWEN_7B, "rope_theta": 1e9, "max_position_embeddings": 224000}
INTERNLM = {"vocab_size": 92553, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768,
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "rope_scaling": {"type": "dynamic", "factor": 2.0}}  # fmt: skip
VICUNA = {"vocab_size": 32000, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 4096,
          "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
          "num_key_value_heads": 32}  # fmt: skip

SIGLIP = {"mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_hidden_size": 1152}
CLIP = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_hidden_size": 1024}
UNPAD = {"mm_patch_merge_type": "spatial_unpad"}


@dataclass(frozen=True)
class Recipe:
    """A checkpoint's family and its config.json, as far as it says something about the model.

    vision: another tower than the family's; its blocks as they run.
    """

    family: str
    decoder: dict[str, Any]
    multimodal: dict[str, Any]
    vision: VisionConfig | None = None

    @property
    def tower(self) -> VisionConfig:
        """The tower this checkpoint has."""
        return self.vision or FAMILIES[self.family].tower


RECIPES = {
    "longva-7b": Recipe("longva", LONG_7B, {**CLIP, "mm_patch_merge_type": "unires", "mm_spatial_pool_mode": "average",
                                            "mm_spatial_pool_stride": 2, "tokenizer_model_max_length": 224000}),
    "internvideo2.5-8b": Recipe("internvideo2.5", INTERNLM, {}),
    "llava-video-7b": Recipe("llava-video", QWEN_7B, {**SIGLIP, **UNPAD, "mm_newline_position": "grid",
                                                      "mm_spatial_pool_mode": "bilinear"}),
    "llava-onevision-7b": Recipe("llava-onevision", QWEN_7B, {**SIGLIP, **UNPAD, "mm_newline_position": "one_token",
                                                              "mm_spatial_pool_mode": "bilinear"}),
    "llava-onevision-0.5b": Recipe("llava-onevision", QWEN_05B, {**SIGLIP, **UNPAD, "mm_newline_position": "one_token",
                                                                 "mm_spatial_pool_mode": "bilinear"}),
    "llava-next-video-32b": Recipe("llava-next-video-qwen", QWEN_32B, {**SIGLIP, **UNPAD, "mm_newline_position": "grid",
                                                                       "mm_spatial_pool_mode": "average",
                                                                       "mm_pooling_position": "after"}),
    "llava-next-video-7b": Recipe("llava-next-video", VICUNA, {**CLIP, **UNPAD, "tokenizer_model_max_length": 4096}),
}  # fmt: skip
RECIPES["longva-7b-dpo"] = RECIPES["longva-7b"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", help=", ".join(RECIPES))
    parser.add_argument("folder", type=Path, help="where to; must not exist")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparse", action="store_true", help="headers over holes: no weights, no disk")
    args = parser.parse_args(argv)
    try:
        synthesize(args.name, args.folder, seed=args.seed, sparse=args.sparse)
    except HookedVidError as e:
        print(f"synthesize_checkpoint: {e}", file=sys.stderr)
        return 2
    return 0


def synthesize(
    name: str, folder: Path, *, seed: int = 0, sparse: bool = False, recipe: Recipe | None = None, shard: int = SHARD
) -> None:
    """Write the checkpoint `name` into a new folder, in files of at most `shard` bytes."""
    if recipe is None and name not in RECIPES:
        raise HookedVidError(f"no recipe for {name!r} ({nearest(name, RECIPES)})")
    if folder.exists():
        raise HookedVidError(f"{folder} exists already; choose another")
    folder.mkdir(parents=True)
    recipe = recipe or RECIPES[name]
    (folder / "config.json").write_text(json.dumps(config_json(recipe), indent=2) + "\n")
    shards = split(tensors(recipe), shard)
    files = {}
    for i, entries in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        files[file] = layout([(e.name, e.dtype, e.shape) for e in entries], {"format": "pt"})
    if len(shards) > 1:
        (folder / INDEX).write_text(index_of(files))
    tokenizer(recipe).save_pretrained(folder)
    generator = torch.Generator().manual_seed(seed)
    total = sum(e.size for h in files.values() for e in h.entries)
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"{name}: random weights", disable=None) as bar:
        for file, header in files.items():
            write_holes(folder / file, header) if sparse else write_random(folder / file, header, generator, bar)


def config_json(recipe: Recipe) -> dict[str, Any]:
    """config.json in the form the original package wrote."""
    common = {"hidden_act": "silu", "torch_dtype": "bfloat16", "use_cache": True, "transformers_version": "4.40.0"}
    if recipe.family == "internvideo2.5":
        v = recipe.tower
        tower = {"hidden_size": v.d_model, "intermediate_size": v.d_mlp, "num_hidden_layers": v.n_layers,
                 "num_attention_heads": v.n_heads, "image_size": v.image_size, "patch_size": v.patch_size,
                 "hidden_act": "gelu", "layer_norm_eps": 1e-6, "norm_type": "layer_norm", "qkv_bias": True,
                 "qk_normalization": False, "num_channels": 3, "model_type": "intern_vit_6b"}  # fmt: skip
        llm = {**recipe.decoder, **common, "architectures": ["InternLM2ForCausalLM"], "bias": False,
               "model_type": "internlm2", "tie_word_embeddings": False}  # fmt: skip
        return {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "llm_config": llm,
                "vision_config": tower, "select_layer": -1, "ps_version": "v2", "downsample_ratio": 0.5,
                "force_image_size": v.image_size, "template": "internvl2_5", "torch_dtype": "bfloat16"}  # fmt: skip
    qwen = recipe.family != "llava-next-video"
    return {
        "architectures": ["LlavaQwenForCausalLM" if qwen else "LlavaLlamaForCausalLM"], "model_type": "llava",
        "tie_word_embeddings": False, **recipe.decoder, **common, "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False, "mm_resampler_type": None, "use_mm_proj": True,
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model", "image_aspect_ratio": "anyres_max_9",
        "tokenizer_model_max_length": 32768, **recipe.multimodal,
    }  # fmt: skip


def tensors(recipe: Recipe) -> list[Entry]:
    """Every tensor in the order of the original state dict, its place still open."""
    c, family = recipe.decoder, FAMILIES[recipe.family]
    heads = c["num_attention_heads"]
    decoder = DecoderConfig(
        n_layers=c["num_hidden_layers"], d_model=c["hidden_size"], n_heads=heads, d_mlp=c["intermediate_size"],
        n_kv_heads=c["num_key_value_heads"], d_head=c["hidden_size"] // heads, d_vocab=c["vocab_size"],
        tied=c.get("tie_word_embeddings", False), **family.decoder,
    )  # fmt: skip
    vision = recipe.tower
    if recipe.family == "internvideo2.5":
        table = [*tables.internlm2(decoder), *tables.internvit(vision), *tables.intern_projector()]
        projector = dict(family.projector)
    else:
        # The files carry what no video passes: CLIP's last block, the norm after it, every newline there is.
        vision = replace(vision, n_layers=vision.n_layers + vision.cls_token, final_norm=True)
        newline = recipe.family != "longva"
        projector = {**family.projector, "newline": "once" if newline else "none"}
        table = [
            *tables.llama(decoder),
            *tables.clip_like(vision, llava.TOWER),
            *tables.mlp2x("model.mm_projector.0", "model.mm_projector.2", "model.image_newline", newline),
        ]
    cfg = VideoLLMConfig(
        family=recipe.family, vision=vision, decoder=decoder,
        projector=ProjectorConfig(
            d_in=vision.d_model * projector.get("shuffle", 1) ** 2, d_out=decoder.d_model, **projector
        ),
    )  # fmt: skip
    ours = {k: torch.empty(s, device="meta") for k, s in parameter_shapes(cfg).items()}
    # InternVideo2.5's size on the hub tells that its tower and projector are stored in float32.
    wide = ("vision_model.", "mlp1.") if recipe.family == "internvideo2.5" else ("-",)
    theirs = to_theirs(ours, table)
    return [
        Entry(name, torch.float32 if name.startswith(wide) else torch.bfloat16, tuple(theirs[name].shape), 0)
        for name in sorted(theirs, key=place)
    ]


PARTS = (
    "model.image_newline", "vision_model.", "model.embed_tokens", "language_model.model.tok", "model.layers.",
    "language_model.model.layers.", "model.norm", "language_model.model.norm", "language_model.output",
    "model.vision_tower.", "mlp1.", "model.mm_projector", "lm_head",
)  # fmt: skip


def place(name: str) -> tuple[int, int]:
    """Where a tensor stands in the original state dict: its part, and within it its layer."""
    number = re.search(r"layers\.(\d+)\.", name)
    return next(i for i, p in enumerate(PARTS) if name.startswith(p)), int(number[1]) if number else -1


def split(entries: Sequence[Entry], shard: int) -> list[list[Entry]]:
    """Shards of at most so many bytes; within one, wide dtypes come first and then names in order."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for e in entries:
        if size and size + e.size > shard:
            shards.append([])
            size = 0
        shards[-1].append(e)
        size += e.size
    return [sorted(s, key=lambda e: (-e.dtype.itemsize, e.name)) for s in shards]


def write_random(path: Path, header: Header, generator: torch.Generator, bar: Any) -> None:
    with writing(path, header) as writer:
        for e in header.entries:
            for values in drawn(e, generator):
                writer.write(as_bytes(values))
                bar.update(values.numel() * values.element_size())


def drawn(e: Entry, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """A tensor's values in stretches; vectors named as norms and scales lie around 1."""
    left = e.size // e.dtype.itemsize
    around = 1.0 if len(e.shape) == 1 and e.name.endswith(("weight", "ls1", "ls2")) else 0.0
    while left:
        n = min(left, STRETCH)
        yield (torch.randn(n, generator=generator) * 0.02 + around).to(e.dtype)
        left -= n


def write_holes(path: Path, header: Header) -> None:
    start = encoded(header.entries, header.metadata)
    with path.open("wb") as f:
        f.write(start)
        f.truncate(len(start) + sum(e.size for e in header.entries))
        for e in header.entries:
            if layouts.HEAD.fullmatch(e.name):  # all zeros would be the embedding's bits, to which a head is tied
                f.seek(len(start) + e.start)
                f.write(b"\1")


def tokenizer(recipe: Recipe) -> Any:
    """Bytes under ids 0 to 255, the family's special tokens under their own, or after the bytes if those do not fit."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    if recipe.family == "llava-next-video":
        special = {"<s>": 31998, "</s>": 31999}
    elif recipe.family == "internvideo2.5":
        special = {"<s>": 92541, "<|im_end|>": 92542, "<|im_start|>": 92543, "<img>": 92544, "</img>": 92545,
                   "<IMG_CONTEXT>": 92546}  # fmt: skip
    if max(special.values()) >= recipe.decoder["vocab_size"]:
        special = {token: 256 + i for i, token in enumerate(special)}
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab={**letters, **special}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True) for t in special])
    if "<s>" in special:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", special["<s>"])])
    end = next(t for t in ("<|im_end|>", "</s>") if t in special)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, clean_up_tokenization_spaces=False)


if __name__ == "__main__":
    sys.exit(main())
