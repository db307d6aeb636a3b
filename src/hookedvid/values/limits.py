"""How large the sizes of a config may be, and the errors for those that are not."""

import sys
from typing import Any

from hookedvid.errors import ConfigError

# The largest sizes a config may state. A model is laid out module by module before its weights are read, so a number
# without a bound takes the machine: 100,000 blocks took 45 s. Each bound is about eight times the largest public
# model's. Who means more raises it: `hookedvid.values.config.LIMITS["n_layers"] = 2_000`.
LIMITS: dict[str, int] = {
    "n_layers": 1_000,
    "d_model": 1 << 17, "d_in": 1 << 17, "d_out": 1 << 17, "d_mlp": 1 << 19, "d_head": 1 << 12,
    "n_heads": 1 << 11, "n_kv_heads": 1 << 11, "metric_heads": 1 << 11,
    "d_vocab": 1 << 22, "n_tokens": 1 << 22,
    "n_ctx": 1 << 27, "max_length": 1 << 27, "n_frames": 1 << 17,
    "image_size": 1 << 13, "patch_size": 1 << 13, "multiple": 1 << 13, "first_size": 1 << 13,
    "patch_frames": 1 << 6, "window": 1 << 10, "d_hidden": 1 << 19, "n_deepstack": 1 << 6,
    "pool_stride": 1 << 10, "shuffle": 1 << 10, "frames_per_clip": 1 << 10, "tokens_per_clip": 1 << 16,
}  # fmt: skip


def misfit(value: Any, kind: str) -> str:
    """Why a value is no size of its kind (a name of `LIMITS`); empty if it is one."""
    if not isinstance(value, int) or isinstance(value, bool):
        return "is no whole number"
    if value < 1:
        return "must be at least 1"
    over = f"is above the bound of {LIMITS[kind]:,}; if it is meant, raise hookedvid.values.config.LIMITS[{kind!r}]"
    return over if value > LIMITS[kind] else ""


def check(config: Any, counts: tuple[str, ...] = (), positive: tuple[str, ...] = ()) -> None:
    """Raise ConfigError naming every count outside 1 to its limit and every number that is not above 0."""
    values = {name: getattr(config, name) for name in (*counts, *positive)}
    problems = [f"{name} = {values[name]!r} {why}" for name in counts if (why := misfit(values[name], name))]
    for name in positive:
        value = values[name]
        if not (isinstance(value, int | float) and 0 < value <= sys.float_info.max):  # NaN fails this as well
            problems.append(f"{name} = {value!r} must be a finite number above 0")
    if problems:
        raise ConfigError(f"{type(config).__name__}: {'; '.join(problems)}")


def divides(config: Any, total: str, parts: str) -> None:
    """Raise ConfigError unless one field of a config is a multiple of another."""
    if getattr(config, total) % getattr(config, parts):
        raise ConfigError(f"{total} {getattr(config, total)} is not a multiple of {parts} {getattr(config, parts)}")
