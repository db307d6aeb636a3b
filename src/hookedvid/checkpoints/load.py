"""A converted model's folder (config.json, safetensors, the tokenizer's files): found, read, written."""

import hashlib
import importlib.resources
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hookedvid.checkpoints.conversion_folder import fingerprint
from hookedvid.checkpoints.convert import as_dtype, convert, read_config
from hookedvid.checkpoints.devices import usable_device
from hookedvid.checkpoints.fill import empty_model, install
from hookedvid.checkpoints.locate import home, repo_of, source_of
from hookedvid.checkpoints.processor_files import warn
from hookedvid.checkpoints.tokenizer_files import load_tokenizer
from hookedvid.conversion.provenance import UNUSED
from hookedvid.conversion.rules import match_names
from hookedvid.conversion.shards import Shards, open_shards
from hookedvid.errors import ConfigError, ConversionError
from hookedvid.families.registry import SHIPPED
from hookedvid.nn.attention import Kernel
from hookedvid.nn.model import Model
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.files import locked, write_text, written
from hookedvid.values.serial import override

DTYPES = "hookedvid.dtypes"  # what a file of `save` says of its tensors' dtypes, in its metadata
TOWER = "vision."  # overrides of the tower say what its tensors mean, so they are the conversion's
# Raised whenever the same files convert to other weights or another config: copies made before are not used again.
CONVERSION = 3


def find(name: str, revision: str | None = None, overrides: Mapping[str, Any] | None = None) -> Path:
    """The converted folder of a name, made now if it is not there yet.

    A shipped or published name, a hub repository, or a folder in the original layout, transformers' or ours. What was
    converted before is used without asking the hub.

    Args:
        overrides: Of the config; of these a conversion takes those of the tower and the family.

    Raises:
        ConversionError: Saying what exists.
    """
    overrides = overrides or {}
    tower = {k: v for k, v in overrides.items() if k.startswith(TOWER)}
    choices = tower | {k: v for k, v in overrides.items() if k == "family"}
    if name in SHIPPED:
        if tower:
            raise ConversionError(f"{name} is converted already, so {sorted(tower)} cannot be overridden")
        inside = Path(str(importlib.resources.files("hookedvid"))) / "weights" / name
        beside = Path(__file__).resolve().parents[3] / "weights" / name
        return inside if (inside / "config.json").exists() else beside
    repo = repo_of(name)
    if repo is None:
        folder = source_of(name, revision).folder
        if "architectures" not in read_config(folder):
            if tower:
                raise ConversionError(f"{name} is converted already; give {sorted(tower)} to its conversion instead")
            return folder
        label = f"{folder.resolve().name}-{fingerprint(folder)}"
    else:
        label = repo.replace("/", "--") + (f"@{revision}" if revision else "")
    if choices:
        label += "-" + hashlib.sha256(repr(sorted(choices.items())).encode()).hexdigest()[:8]
    converted = home() / re.sub(r"[^\w.@-]", "_", f"{label}.{CONVERSION}")
    if not converted.exists():
        converted.parent.mkdir(parents=True, exist_ok=True)
        with locked(home() / f".{converted.name}.waiting", math.inf):  # others wait, then find it there
            if not converted.exists():
                convert(name, converted, overrides=choices, revision=revision)
    return converted


def load(
    cls: type,
    name_or_path: str | Path,
    *,
    device: Any = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    first_n_layers: int | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[Any, Any] | None = None,
    adapter: str | Path | None = None,
    tokenizer: Any = None,
    kernel: Kernel = "sdpa",
) -> Any:
    """See `HookedVideoLLM.from_pretrained`."""
    target, target_device = as_dtype(dtype), usable_device(device)
    ours = dict(overrides or {})
    folder = find(str(name_or_path), revision, ours)
    cfg = VideoLLMConfig.from_json((folder / "config.json").read_text(encoding="utf-8"))
    cfg = override(cfg, {k: v for k, v in ours.items() if not k.startswith(TOWER)}, ConfigError)
    warn(folder, cfg, ours, str(name_or_path))
    cfg = _named(_cut(cfg, first_n_layers), str(name_or_path))
    model = empty_model(cls, cfg, tokenizer or load_tokenizer(folder), kernel=kernel)
    shards = open_shards(folder)
    _check(model, shards, folder, first_n_layers)
    if target is None and not (_keeps_dtypes(shards) and device_map is None):
        target = _main_dtype(shards)
    if device_map is not None:
        from hookedvid.checkpoints.placement import place

        if device is not None or adapter is not None:
            raise ConversionError(
                "device_map places the weights: leave out device; to merge an adapter, load with adapter=…, "
                "save_pretrained, and load that folder with device_map"
            )
        assert target is not None
        return place(model, shards, target, device_map, max_memory)
    install(model, shards, target, target_device)
    if adapter is not None:
        from hookedvid.checkpoints.lora import merge

        merge(model, adapter, folder)
    return model


def _cut(cfg: VideoLLMConfig, n: int | None) -> VideoLLMConfig:
    if n is None:
        return cfg
    if not 0 < n <= cfg.n_layers:
        raise ConfigError(f"first_n_layers is {n}; this decoder has {cfg.n_layers} blocks")
    return replace(cfg, decoder=replace(cfg.lm, n_layers=n))


def _named(cfg: VideoLLMConfig, name: str) -> VideoLLMConfig:
    known = cfg.model_name or repo_of(name) is None
    return cfg if known else replace(cfg, model_name=name)


def _keeps_dtypes(shards: Shards) -> bool:
    """Whether a model of several dtypes was saved; what others publish in several runs in one."""
    return all(h.metadata.get(DTYPES) == "kept" for h in shards.headers.values())


def _main_dtype(shards: Shards) -> torch.dtype:
    """The floating-point dtype most of the bytes are stored in."""
    sizes: dict[torch.dtype, int] = {}
    for header in shards.headers.values():
        for e in header.entries:
            if e.dtype.is_floating_point:
                sizes[e.dtype] = sizes.get(e.dtype, 0) + e.size
    return max(sizes, key=lambda d: sizes[d])


def _check(model: Model, shards: Shards, folder: Path, first_n_layers: int | None) -> None:
    """Raise ConversionError unless the files hold just this model's tensors."""
    shapes = {k: v for k, v in shards.shapes.items() if not k.startswith(UNUSED)}
    if first_n_layers is not None:
        shapes = {k: v for k, v in shapes.items() if not _is_beyond(k, first_n_layers)}
    wanted = {k: tuple(p.shape) for k, p in model.named_parameters()}
    match_names(shapes, wanted, str(folder))


def _is_beyond(name: str, n_layers: int) -> bool:
    return name.startswith("blocks.") and int(name.split(".")[1]) >= n_layers


def save(model: Model, folder: str | Path) -> None:
    """See `HookedVideoLLM.save_pretrained`. The weights are written whole before the name appears."""
    from safetensors.torch import save_file

    if any(p.is_meta for p in model.parameters()):
        raise ConversionError(
            "this model's weights are offloaded, so there is no whole to save; the folder it was loaded from has them"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # torch.compile(block) in a block's place holds the block as `_orig_mod`.
    named = {k.replace("._orig_mod.", "."): p for k, p in model.named_parameters()}
    tensors = {k: p.detach().cpu().contiguous() for k, p in named.items()}
    with written(folder / "model.safetensors") as part:
        mode = part.stat().st_mode
        save_file(tensors, part, {DTYPES: "kept"})
        part.chmod(mode)  # safetensors writes for the owner's eyes alone
    write_text(folder / "config.json", model.cfg.file_text)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
