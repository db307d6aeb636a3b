"""Mixtures of experts told by their config, class or name: refused as what they are."""

import re
from collections.abc import Mapping
from typing import Any

from hookedvid.errors import ConversionError

# Fields that count experts, in the configs of Qwen, GPT-OSS and DeepSeek.
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
# Sizes in all and in use, as Qwen3-VL-30B-A3B and InternVL3_5-20B-A4B have them in their names.
SIZES = re.compile(r"\d+b-a\d+(\.\d+)?b(?![a-z0-9])", re.I)
WAY_OUT = (
    "each token takes other weights there, which no module here computes. Take a dense size of the family "
    "(`hookedvid models` lists them)"
)


def refuse_experts(config: Mapping[str, Any], architecture: str) -> None:
    """Raise ConversionError where a config, or the class that it is of, is a mixture of experts."""
    levels = (config, config.get("text_config"), config.get("llm_config"))
    counted = [f"{f} = {x[f]}" for x in levels if isinstance(x, Mapping) for f in COUNTS if x.get(f)]
    if counted or "Moe" in architecture:
        raise ConversionError(
            f"the checkpoint is a mixture of experts ({', '.join(counted[:1]) or architecture}): {WAY_OUT}"
        )


def refuse_named(name: str) -> None:
    """Raise ConversionError where a checkpoint's name says so."""
    if found := SIZES.search(name):
        raise ConversionError(f"{name!r} is a mixture of experts, as {found[0]!r} says: {WAY_OUT}")
