"""A model's folder: config.json, model.safetensors and the tokenizer's files. Never a pickle."""

import importlib.resources
from pathlib import Path
from typing import Any

import torch

from hookedvid.config import VideoLLMConfig
from hookedvid.errors import ConversionError, nearest

SHIPPED = ("tiny",)


def find(name_or_path: str | Path) -> Path:
    """The folder of a shipped model's name, or of a path. Raises ConversionError saying what exists."""
    name_or_path = str(name_or_path)
    if name_or_path in SHIPPED:
        inside = Path(str(importlib.resources.files("hookedvid"))) / "weights" / name_or_path
        beside = Path(__file__).resolve().parents[2] / "weights" / name_or_path
        return inside if (inside / "config.json").exists() else beside
    folder = Path(name_or_path)
    if not (folder / "config.json").is_file():
        raise ConversionError(
            f"no model {name_or_path!r}: it is neither a folder with a config.json nor a shipped model "
            f"({nearest(name_or_path, SHIPPED)})"
        )
    return folder


def load(
    cls: type, name_or_path: str | Path, *, device: Any = None, dtype: torch.dtype | str | None = None, **kwargs: Any
) -> Any:
    """See `HookedVideoLLM.from_pretrained`. dtype: as stored unless given."""
    folder = find(name_or_path)
    cfg = VideoLLMConfig.from_json((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    if not weights.is_file():
        pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt*"))
        found = f" (it has {', '.join(pickles)}, and pickles are never loaded)" if pickles else ""
        raise ConversionError(f"{folder} has no model.safetensors{found}; write one with save_pretrained")
    target = _dtype(dtype)
    model = cls(cfg, _tokenizer(folder), **kwargs)
    tensors = _read(weights)
    expected = dict(model.named_parameters())
    if tensors.keys() != expected.keys():
        raise ConversionError(
            f"{weights} does not fit its config: missing {sorted(expected.keys() - tensors.keys())[:5]}, "
            f"left over {sorted(tensors.keys() - expected.keys())[:5]}"
        )
    wrong = [k for k, t in tensors.items() if t.shape != expected[k].shape]
    if wrong:
        raise ConversionError(f"{weights} does not fit its config: other shapes for {wrong[:5]}")
    stored = {t.dtype for t in tensors.values()}
    model.to(target or (stored.pop() if len(stored) == 1 else torch.float32))
    with torch.no_grad():
        for k, p in expected.items():
            p.copy_(tensors[k])
    return model.to(device) if device is not None else model


def _read(weights: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(weights)
    except SafetensorError as e:
        raise ConversionError(f"{weights} cannot be read ({e}); copy or write it again") from e


def _dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if given is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ConversionError(f"dtype {given!r} is no floating-point type of torch; e.g. 'bfloat16'")
    return found


def save(model: Any, folder: str | Path) -> None:
    """See `HookedVideoLLM.save_pretrained`. The weights are written whole before the name appears."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: p.detach().cpu().contiguous() for k, p in model.named_parameters()}
    part = folder / "model.safetensors.part"
    save_file(tensors, part)
    part.chmod(0o644)  # safetensors writes for the owner's eyes alone
    part.rename(folder / "model.safetensors")
    (folder / "config.json").write_text(model.cfg.to_json() + "\n")
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def _tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
