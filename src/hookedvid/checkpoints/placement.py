"""Models too large for one device, spread by accelerate over GPUs, the CPU's memory and the disk.

Only decoder blocks are spread. The rest (tower, projector, embedding, final norm, head) stays on one device, the
main one, since some of its parameters are read outside their module's own forward. A block given to another GPU
runs there; a block offloaded to the CPU or the disk is brought to the main device, whole, for as long as it runs.
The key-value cache of a layer stays where its block runs.

Tested on CPUs with blocks on the disk; no machine with several GPUs was there to test on.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NoReturn, cast

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import get_balanced_memory, get_max_memory
from safetensors import safe_open
from torch import nn

from hookedvid.checkpoints.fill import put
from hookedvid.conversion.shards import Shards
from hookedvid.errors import ConversionError, nearest
from hookedvid.nn.model import Model

Device = int | str
OFFLOADED = ("cpu", "disk")
AUTOMATIC = ("auto", "balanced", "sequential")
BLOCK = ["Block"]  # the class accelerate neither splits nor fills piece by piece


def place(
    model: nn.Module,
    shards: Shards,
    dtype: torch.dtype,
    device_map: str | Mapping[str, Any],
    max_memory: Mapping[Any, Any] | None,
) -> Any:
    """Fill an empty model from its files, each decoder block on a device of its own; returns the model.

    Weights offloaded to the disk are read from the model's own files whenever their block runs; nothing is
    written. Hooks, interventions, caches and generation work as on one device. Activations lie where their block
    ran: `run_with_cache(device=...)` gathers them. The model cannot be moved or cast afterwards.

    Args:
        model: A model whose parameters have shapes alone.
        shards: The converted folder's files.
        dtype: Of every weight, offloaded ones too.
        device_map: "auto" (or "balanced": all GPUs alike; "sequential": one after the other, full), or a device
            (0, "cuda:1", "cpu", "disk") for each of our modules, `blocks.3` or `blocks` for all blocks, "" for
            what is not named.
        max_memory: For the automatic maps, what each device may hold, as accelerate takes it:
            {0: "20GB", "cpu": "60GB"}; the rest goes to the disk.

    Raises:
        ConversionError: A map that splits what must stay together, misses a module or names none; too little
            memory on the main device.
    """
    model.to(dtype)  # shapes alone still: the dtype in which accelerate reads offloaded weights
    device_of: Any = places(model, dtype, device_map, max_memory)  # Any: accelerate's annotations are too narrow
    _fill(model, shards, dtype, device_of)
    on_disk: Any = {
        e.name: {
            "safetensors_file": str(shards.folder / file),
            "weight_name": e.name,
            "dtype": str(dtype).removeprefix("torch."),
        }
        for file, header in shards.headers.items()
        for e in header.entries
        if device_of.get(_unit(e.name)) == "disk"
    }
    dispatch_model(
        model,
        device_of,
        main_device=device_of["embed"],
        offload_index=on_disk or None,
        preload_module_classes=BLOCK,
        force_hooks=True,
    )
    # The model moves its own inputs; accelerate would move what else is given to a run, a caller's caches too.
    remove_hook_from_module(model)
    model._apply = partial(_stays, model)
    return model


def _unit(name: str) -> str:
    """What is placed as one: a decoder block (`blocks.3`), or another module at the model's root."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]


def _sizes(model: nn.Module, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each unit's weights; a tied head's count once."""
    sizes = {_unit(name): 0 for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, p in model.named_parameters():
        sizes[_unit(name)] += p.numel() * dtype.itemsize
    return sizes


def places(
    model: nn.Module, dtype: torch.dtype, device_map: str | Mapping[str, Any], max_memory: Mapping[Any, Any] | None
) -> dict[str, Device]:
    """The device of every unit."""
    if getattr(model, "blocks", None) is None:
        raise ConversionError("device_map spreads decoder blocks, and this model is a tower alone; give device=...")
    sizes = _sizes(model, dtype)
    if isinstance(device_map, Mapping):
        if max_memory is not None:
            raise ConversionError("max_memory is for device_map='auto'; a map of your own says where everything goes")
        return _told(sizes, device_map)
    if device_map not in AUTOMATIC:
        raise ConversionError(
            f"device_map {device_map!r} is neither one of {', '.join(AUTOMATIC)} nor a map of modules; for one device "
            "give device=..."
        )
    return _found(model, dtype, sizes, device_map, max_memory)


def _told(sizes: Mapping[str, int], device_map: Mapping[str, Any]) -> dict[str, Device]:
    """The map of a user, checked and written out."""
    used: set[str] = set()
    places: dict[str, Device] = {}
    problems = []
    for unit in sizes:
        named = next((k for k in (unit, unit.split(".")[0], "") if k in device_map), None)
        if named is None:
            problems.append(f"no device for {unit!r}")
            continue
        used.add(named)
        places[unit] = _device(device_map[named])
    known = [*sizes, "blocks", ""]
    unused = [str(k) for k in device_map if k not in used]
    problems += [f"{k!r} is no part that can be placed; {nearest(k, known)}" for k in unused if k not in known]
    rest = {d for unit, d in places.items() if not unit.startswith("blocks.")}
    if len(rest) > 1 or "disk" in rest:
        together = ", ".join(f"{u}: {d}" for u, d in places.items() if not u.startswith("blocks."))
        problems.append(f"all but the blocks must be on one device, and not on the disk: {together}")
    if problems:
        raise ConversionError(f"device_map cannot be followed: {'; '.join(problems)}")
    return places


def _device(name: Any) -> Device:
    """A device as accelerate writes it: a GPU's number, "cpu" or "disk"."""
    if name == "disk":
        return "disk"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as e:
        raise ConversionError(f"device_map names {name!r}, which is no device ({e})") from e
    if device.type == "cuda":
        return device.index or 0
    return device.type if device.index is None else str(device)


def _found(
    model: nn.Module, dtype: torch.dtype, sizes: Mapping[str, int], kind: str, max_memory: Mapping[Any, Any] | None
) -> dict[str, Device]:
    """What accelerate finds for the blocks, once the main device holds the rest."""
    budget = None if max_memory is None else dict(max_memory)
    try:
        limits: dict[Any, Any] = get_max_memory(budget)
    except ValueError as e:
        raise ConversionError(f"max_memory {max_memory!r} cannot be read: {e}") from e
    main = next((d for d, n in limits.items() if d not in OFFLOADED and n > 0), "cpu")
    rest = {unit: main for unit in sizes if not unit.startswith("blocks.")}
    needed = sum(sizes[unit] for unit in rest)
    memory: Any = dict(limits)
    if kind != "sequential":  # without limits of the user's, accelerate leaves some room for activations
        memory = get_balanced_memory(model, None if budget is None else memory, BLOCK, dtype)
    memory[main] = max(memory.get(main, 0) - needed, 0)
    blocks: Any = infer_auto_device_map(model.get_submodule("blocks"), memory, BLOCK, dtype, clean_result=False)
    guests = [sizes[f"blocks.{i}"] for i, d in blocks.items() if d != main and d in OFFLOADED]
    if limits.get(main, 0) < (needed := needed + max(guests, default=0)):
        raise ConversionError(
            f"{', '.join(rest)} and, while it runs, an offloaded block take {needed / 1e9:.2f} GB of the main device "
            f"{main!r}, which may hold {limits.get(main, 0) / 1e9:.2f} GB; give it more, or choose a smaller dtype"
        )
    return {**rest, **{f"blocks.{i}": d for i, d in blocks.items()}}


def _fill(model: nn.Module, shards: Shards, dtype: torch.dtype, places: Mapping[str, Device]) -> None:
    """Give every weight that is not on the disk its value, on its device."""
    wanted = {name for name, _ in model.named_parameters()}
    for file, header in shards.headers.items():
        for device in dict.fromkeys(places.values()):
            here = [e.name for e in header.entries if e.name in wanted and places[_unit(e.name)] == device]
            if device == "disk" or not here:
                continue
            with safe_open(shards.folder / file, framework="pt", device=device) as f:
                for name in here:
                    put(cast(Model, model), name, f.get_tensor(name).to(dtype))


def _stays(model: nn.Module, *_: Any, **__: Any) -> NoReturn:
    """In the place of what `to`, `cuda`, `half` … do to a module."""
    spread: Any = model.hf_device_map
    raise ConversionError(
        f"this model is spread over {', '.join(sorted(map(str, set(spread.values()))))}, so it cannot be "
        "moved or cast; load it again with another device, device_map or dtype"
    )
