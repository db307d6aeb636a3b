"""The families there are, by name, and what they state: their checkpoints, prompts and time instructions.

A module of this package with a `FAMILY` is a family's file; nothing else has to name it. Reading them loads no torch.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import hookedvid.families
from hookedvid.errors import ConfigError, InputError, nearest
from hookedvid.families import prompts
from hookedvid.families.alone import ALONE
from hookedvid.families.family import Family, Layout, Published, Wrapper
from hookedvid.families.prompts import NO_INSTRUCTION, Template, TimeInstruction
from hookedvid.values.config import DecoderConfig, ProjectorConfig, VideoLLMConfig
from hookedvid.values.processor import NAMES, Processor
from hookedvid.values.serial import override

T = TypeVar("T")


def _found() -> dict[str, Family]:
    """The families of this package's files, newest first."""
    names = (m.name for m in pkgutil.iter_modules(hookedvid.families.__path__, "hookedvid.families."))
    stated = (getattr(importlib.import_module(name), "FAMILY", None) for name in names)
    families = sorted((f for f in stated if isinstance(f, Family)), key=lambda f: f.name)
    return {f.name: f for f in sorted(families, key=lambda f: f.released, reverse=True)}


def _stated(what: str) -> dict[str, Any]:
    return {name: value for f in FAMILIES.values() for name, value in getattr(f, what).items()}


FAMILIES: dict[str, Family] = _found()
SHIPPED = ("tiny",)  # comes with the package
PUBLISHED: dict[str, Published] = _stated("published")
TEMPLATES: dict[str, Template] = prompts.TEMPLATES | _stated("templates")
TIME_INSTRUCTIONS: dict[str, TimeInstruction] = {"none": NO_INSTRUCTION} | _stated("time_instructions")
ARCHITECTURES: dict[str, Layout] = {x.architecture: x for f in FAMILIES.values() for x in f.layouts}
ARCHITECTURES |= {x.architecture: x for x in ALONE}


def family(name: str) -> Family:
    """The family of a name.

    Raises:
        ConfigError: Listing those that exist.
    """
    return _named(name, FAMILIES, "family", ConfigError)


def template(name: str) -> Template:
    """The prompt template of a name.

    Raises:
        InputError: Listing those that exist.
    """
    return _named(name, TEMPLATES, "prompt template", InputError)


def named_instruction(name: str) -> TimeInstruction:
    """The time instruction of a name.

    Raises:
        InputError: Listing those that exist.
    """
    return _named(name, TIME_INSTRUCTIONS, "time instruction", InputError)


def _named(name: str, known: Mapping[str, T], what: str, error: type[Exception]) -> T:
    if name not in known:
        raise error(f"no {what} {name!r} ({nearest(name, known)})")
    return known[name]


def wrapper(name: str, evaluator: str) -> Wrapper:
    """What an evaluator does otherwise for a family; nothing where the name is no family's."""
    known = FAMILIES.get(name)
    return known.wrappers.get(evaluator, Wrapper()) if known else Wrapper()


def processor(name: str) -> Processor | None:
    """What a family's official processor gives; None where it states none, or the name is no family's."""
    known = FAMILIES.get(name)
    return None if known is None else known.processor


def extras(cfg: VideoLLMConfig) -> tuple[str, ...]:
    """What a model's official processor gives besides pixels, or its positions are counted by.

    All that any gives for a model of no family that is known.
    """
    if cfg.family not in FAMILIES:
        return NAMES
    made = processor(cfg.family)
    counted = ("second_per_grid_ts",) if cfg.decoder is not None and cfg.decoder.rope.per_second is not None else ()
    return tuple(dict.fromkeys((*(made.extras if made else ()), *counted)))


def of_repo(repo: str) -> tuple[Family, Published] | None:
    """The family and the published checkpoint of a hub repository, letter case aside."""
    return next(
        ((f, p) for f in FAMILIES.values() for p in f.published.values() if p.repo.lower() == repo.lower()), None
    )


def named_in(name: str) -> str | None:
    """The family that a checkpoint's name states: the longest family name in the last part of a path or repository."""
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()
    return max((f for f in FAMILIES if f in last), key=len, default=None)


def small_config(name: str, *, n_layers: int = 3, d_vocab: int = 300) -> VideoLLMConfig:
    """A model of a family's exact structure at toy size (about 0.1 M parameters), for trials and tests."""
    f = family(name)
    # 5 patches a side: odd, so that pooling's flooring and ceiling differ.
    tower = replace(
        f.tower, n_layers=2, d_model=32, n_heads=4, d_mlp=48,
        image_size=f.small.get("vision.image_size", 5 * f.tower.patch_size),
        window=min(f.tower.window, 4), full_blocks=f.tower.full_blocks and (1,),
        deepstack=tuple(range(min(2, n_layers - 1, len(f.tower.deepstack)))),
    )  # fmt: skip
    d_in = 32 * f.projector.get("shuffle", 1) ** 2
    projector = {**f.projector, "n_deepstack": len(tower.deepstack)}
    projector |= {"d_hidden": d_in} if "d_hidden" in projector else {}
    cfg = VideoLLMConfig(
        family=name,
        vision=tower,
        projector=ProjectorConfig(d_in=d_in, d_out=64, **projector),
        decoder=DecoderConfig(
            n_layers=n_layers, d_model=64, n_heads=8, n_kv_heads=2, d_head=8, d_mlp=96, d_vocab=d_vocab,
            rope=replace(f.rope, sections=f.rope.sections and (2, 1, 1)), **f.decoder,
        ),
        prompt=f.prompt,
        n_frames=8,
        sampler=f.sampler,
    )  # fmt: skip
    return override(cfg, f.small, ConfigError)
