"""Vectors that are added to activations: given as tensors, or read from safetensors files. No pickle is ever loaded."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.errors import InterventionError, nearest

_FILE = re.compile(r"(?P<path>.+\.safetensors)(:(?P<key>.+))?")
_PICKLED = (".pt", ".pth", ".bin", ".pkl", ".ckpt", ".npy", ".npz")


@dataclass(frozen=True)
class Vector:
    """Numbers that are equal where their digests are."""

    numbers: Float[Tensor, "*channels"] = field(compare=False)
    digest: str


def as_vector(given: Any, what: str) -> Vector | str:
    """A vector from a tensor or from a file; or the key, not yet looked up, of one in a run's `sources`.

    Args:
        given: One of the three.
        what: Whose vector, for messages.

    Raises:
        InterventionError: For what is none of them, and for what the file does not hold.
    """
    if isinstance(given, Tensor):
        return checked(given, what)
    if not isinstance(given, str) or not given:
        raise InterventionError(f"{what}: its vector is {given!r}; give a tensor, a safetensors file, or a key")
    if match := _FILE.fullmatch(given):
        return checked(_read(Path(match["path"]).expanduser(), match["key"], what), what)
    if given.endswith(_PICKLED):
        raise InterventionError(f"{what}: {given!r} is no safetensors file, and no other is read: save it as one")
    return given


def checked(numbers: Tensor, what: str) -> Vector:
    """A tensor as a vector, on the CPU.

    Raises:
        InterventionError: For what is not made of finite real numbers.
    """
    if not numbers.is_floating_point() or numbers.ndim == 0 or numbers.numel() == 0:
        raise InterventionError(f"{what}: its vector is {numbers.dtype} {tuple(numbers.shape)}; give real numbers [d]")
    if numbers.requires_grad:
        raise InterventionError(f"{what}: its vector asks for a gradient, which a value keeps not; give it detached")
    numbers = numbers.cpu().contiguous().clone()  # whoever gave it may go on to change it
    if not bool(torch.isfinite(numbers).all()):
        raise InterventionError(f"{what}: its vector holds numbers that are not finite")
    told = hashlib.sha256(f"{numbers.dtype} {tuple(numbers.shape)}".encode())
    told.update(numbers.view(torch.uint8).numpy().data)
    return Vector(numbers, told.hexdigest()[:16])


def _read(path: Path, key: str | None, what: str) -> Tensor:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InterventionError(f"{what}: there is no file {str(path)!r}")
    try:
        with cast(Any, safe_open)(path, framework="pt") as file:
            keys: list[str] = list(file.keys())
            if key is None and len(keys) == 1:
                key = keys[0]
            if key not in keys:
                asked = "holds several tensors" if key is None else f"holds no {key!r} ({nearest(key, keys)})"
                raise InterventionError(f"{what}: {path.name!r} {asked}; write {path.name}:name, of {sorted(keys)[:8]}")
            return file.get_tensor(key)
    except SafetensorError as e:
        raise InterventionError(f"{what}: {str(path)!r} is no safetensors file ({e})") from e
