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
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from checkpoint_recipes import RECIPES, Recipe
from hookedvid.checkpoints import layouts
from hookedvid.conversion.provenance import index_of
from hookedvid.conversion.rules import to_theirs
from hookedvid.conversion.shards import INDEX, Entry, Header, as_bytes, encoded, layout, writing
from hookedvid.errors import HookedVidError, nearest
from hookedvid.nn.parts import parameter_shapes

STRETCH = 1 << 24  # values drawn at a time


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
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    sparse: bool = False,
    recipe: Recipe | None = None,
    shard: int | None = None,
) -> None:
    """Write the checkpoint `name` into a new folder, in files of at most `shard` bytes (default: as published)."""
    if recipe is None and name not in RECIPES:
        raise HookedVidError(f"no recipe for {name!r} ({nearest(name, RECIPES)})")
    if folder.exists():
        raise HookedVidError(f"{folder} exists already; choose another")
    folder.mkdir(parents=True)
    recipe = recipe or RECIPES[name]
    (folder / "config.json").write_text(json.dumps(recipe.config_json, indent=2) + "\n")
    shards = split(tensors(recipe), shard or recipe.shard)
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


def tensors(recipe: Recipe) -> list[Entry]:
    """Every tensor in the order of the original state dict, its place still open."""
    reading = recipe.reading
    ours = {k: torch.empty(s, device="meta") for k, s in parameter_shapes(reading.cfg).items()}
    theirs = to_theirs(ours, reading.table)
    for one, other in recipe.twice.items():
        theirs |= {other + n.removeprefix(one): t for n, t in theirs.items() if n.startswith(one)}
    return [
        Entry(name, torch.float32 if name.startswith(recipe.float32) else recipe.dtype, tuple(theirs[name].shape), 0)
        for name in sorted(theirs, key=place)
    ]


# Parts of a model in the order of its state dict, by the beginnings of their names.
PARTS = (
    r"model\.image_newline",
    r"(model\.)?(visual|vision_\w+|video_tower|image_tower)\.(?!vision_tower\.)",
    r"multi_modal_projector\.",
    r"(\w+\.){1,2}(embed_tokens|tok_embeddings)\.",
    r"(\w+\.){1,2}layers\.",
    r"(\w+\.){1,2}norm\.",
    r"language_model\.(output|lm_head)\.",
    r"model\.vision_tower\.vision_tower\.",
    r"mlp1\.|model\.(mm_projector|projector|connector)\.",
    r"lm_head\.",
)


def place(name: str) -> tuple[int, int]:
    """Where a tensor stands in the original state dict: its part, and within it its layer."""
    number = re.search(r"layers\.(\d+)\.", name)
    return next(i for i, p in enumerate(PARTS) if re.match(p, name)), int(number[1]) if number else -1


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
    """Bytes under the first free ids, special tokens under their own, or after the bytes where those do not fit."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special, n_ids = recipe.special, recipe.reading.cfg.lm.d_vocab
    if max(special.values()) >= n_ids:
        special = {token: 256 + i for i, token in enumerate(special)}
    first = 1 + max((i for i in special.values() if i < 256), default=-1)
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), first)}
    core = Tokenizer(models.BPE(vocab={**letters, **special}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True) for t in special])
    if "<s>" in special:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", special["<s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=recipe.end, clean_up_tokenization_spaces=False)


if __name__ == "__main__":
    sys.exit(main())
