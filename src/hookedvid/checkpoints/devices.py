"""Devices by name: which are there, and an error in words for those that are not."""

from typing import Any

import torch

from hookedvid.errors import ConfigError


def named_device(name: Any) -> torch.device:
    """The device of a name, or of None the CPU; another machine may have it.

    Raises:
        ConfigError: For no such kind.
    """
    try:
        device = torch.device("cpu" if name is None else name)
    except (RuntimeError, TypeError) as e:
        raise ConfigError(f"no device {name!r}; write cpu, cuda, cuda:1 or mps") from e
    if device.type == "meta":
        raise ConfigError(f"device {name!r} holds shapes without numbers, so nothing can run there; write cpu or cuda")
    return device


def usable_device(name: Any) -> torch.device:
    """The device of a name, or of None the CPU.

    Raises:
        ConfigError: For one that this machine does not have.
    """
    device = named_device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as e:  # torch has no error of its own for this
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        why = str(e).partition("\n")[0]
        raise ConfigError(f"device {str(device)!r} cannot be used ({why}); there are: {', '.join(there)}") from e
    return device
