"""Which layout a checkpoint is in, and of which family it is: so its config reads and its tensors are called."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hookedvid.conversion.experts import refuse_experts
from hookedvid.conversion.fields import check_sizes
from hookedvid.conversion.lines import Line, Shapes
from hookedvid.conversion.packed import refuse_packed
from hookedvid.errors import ConfigError, ConversionError, nearest
from hookedvid.families.family import Family, Layout, Source
from hookedvid.families.registry import ARCHITECTURES, FAMILIES, family
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.serial import override

# A decoder's head and embedding, in the names of every layout.
HEAD = re.compile(r"(.*\.)?lm_head\.weight|language_model\.output\.weight")
EMBEDDING = re.compile(r"(.*\.)?(embed_tokens|tok_embeddings)\.weight")
# The classes that `read_transformers` takes a model of.
TRANSFORMERS = [name for name, layout in ARCHITECTURES.items() if layout.transformers]


@dataclass(frozen=True)
class Reading:
    """What was read: our config, the names of their tensors, and notes on what their config left open."""

    cfg: VideoLLMConfig
    table: Sequence[Line]
    notes: Sequence[str] = ()


def read(
    config: Mapping[str, Any],
    shapes: Shapes,
    overrides: Mapping[str, Any] | None = None,
    ignore: Collection[str] = (),
    *,
    same_head: bool = False,
    stated: str | None = None,
) -> Reading:
    """A checkpoint by its config.json and its tensors' shapes.

    Args:
        config: Its config.json.
        shapes: Its tensors.
        overrides: Fields of our config by dotted path, taken over what the checkpoint says.
        ignore: Fields of its config.json that change nothing.
        same_head: Whether its head has the very bits of its embedding.
        stated: The family that its name states.

    Raises:
        ConversionError: Whatever does not fit.
    """
    name, ours = architecture(config), overrides or {}
    refuse_experts(config, name)
    if name not in ARCHITECTURES:
        raise ConversionError(
            f"config.json names the architecture {name!r} ({nearest(name, ARCHITECTURES)}). Supported: "
            f"{', '.join(ARCHITECTURES)}"
        )
    refuse_packed(shapes)
    source = Source(config, shapes, ours, ignore)
    try:
        if ARCHITECTURES[name].transformers:
            source = replace(source, config=_transformers_config(config))
        layout, source = _chosen(name, source, stated)
        cfg = override(layout.read(source), ours, ConversionError)
        cfg = _headed(cfg, shapes, same_head, ours)
        return Reading(cfg, layout.table(cfg, list(shapes)), source.notes)
    except (ConversionError, ConfigError) as e:
        raise ConversionError(f"{e}{hint(name, shapes)}") from e


def read_transformers(
    config: Any,
    name: str,
    tensors: Mapping[str, Tensor],
    ignore: Collection[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Reading:
    """A transformers model by its config object, its class's name and its tensors; the other arguments as `read`."""
    pair = head_and_embedding(tensors)
    same = pair is not None and _same_bits(tensors[pair[0]], tensors[pair[1]])
    shapes, changes = {k: t.shape for k, t in tensors.items()}, overrides or {}
    layout, source = _chosen(name, Source(config, shapes, changes, ignore), None)
    cfg = _headed(override(layout.read(source), changes, ConversionError), tensors, same, changes)
    return Reading(cfg, layout.table(cfg, list(tensors)))


def architecture(config: Mapping[str, Any]) -> str:
    """The first architecture that a config.json names."""
    named = config.get("architectures")
    return str(named[0] if isinstance(named, list) and named else None)


def fitting(name: str, source: Source) -> list[str]:
    """The families that a config of an architecture fits, newest first."""
    return [f.name for f, layout in having(name) if layout.fits(source)]


def having(name: str) -> list[tuple[Family, Layout]]:
    """The families whose checkpoints name an architecture, newest first, with their layout of it."""
    return [(f, layout) for f in FAMILIES.values() for layout in f.layouts if layout.architecture == name]


def _chosen(name: str, source: Source, stated: str | None) -> tuple[Layout, Source]:
    """The layout of an architecture as the checkpoint's family has it, and the source with that family.

    The family is the one that is overridden, or stated by the checkpoint's name, or the only one that fits. It decides
    over prompt, frames and evaluators' conventions, none of which config.json holds. So it is never guessed among
    several.
    """
    sharing = having(name)
    if not sharing:
        return ARCHITECTURES[name], source
    chosen = source.overrides.get("family") or _only(sharing, source, fitting(name, source), stated)
    own = next((layout for f, layout in sharing if f.name == chosen), sharing[0][1])
    return own, replace(source, family=family(chosen))


def _only(sharing: Sequence[tuple[Family, Layout]], source: Source, fits: list[str], stated: str | None) -> str:
    if len(fits) == 1:
        return fits[0]
    names = " as well as ".join(fits) or "no family here"
    if stated is not None and (stated in fits or not fits):
        source.notes.append(f"config.json fits {names}; {stated}, as its name states")
        return stated
    example = (fits or [f.name for f, _ in sharing])[0]
    raise ConversionError(
        f"config.json ({sharing[0][1].parts(source)}) fits {names}, and families differ in prompts and evaluators' "
        f'conventions. Say which it is: overrides={{"family": "{example}"}} (--override family={example}); it may be '
        f"one of {', '.join(fits or FAMILIES)}"
    )


def head_and_embedding(names: Iterable[str]) -> tuple[str, str] | None:
    """The names of a decoder's head and of its embedding; None unless there is one of each."""
    names = list(names)
    heads, embeddings = ([n for n in names if p.fullmatch(n)] for p in (HEAD, EMBEDDING))
    return (heads[0], embeddings[0]) if len(heads) == len(embeddings) == 1 else None


def _headed(cfg: VideoLLMConfig, names: Iterable[str], same_head: bool, overrides: Mapping[str, Any]) -> VideoLLMConfig:
    """The config with its head tied if and only if the files hold none, or the embedding's very bits.

    An absent head is tied where any level of their config says so; else it will be missed by its name.
    """
    if cfg.decoder is None or not any(HEAD.fullmatch(n) for n in names):
        return cfg
    tied = bool(overrides.get("decoder.tied", same_head))
    if tied and not same_head:
        raise ConversionError(
            "decoder.tied is overridden as true, but the checkpoint holds a head that is not its embedding; leave the "
            "override out"
        )
    return replace(cfg, decoder=replace(cfg.decoder, tied=tied))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(a.view(torch.uint8), b.to(a.device).view(torch.uint8))


def _transformers_config(config: Mapping[str, Any]) -> Any:
    """The config object of transformers. Raises ConversionError for what its class refuses."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise ConversionError(f"config.json: transformers knows no model_type {kind!r}")
    check_sizes(config, "config.json")
    try:
        return CONFIG_MAPPING[kind].from_dict(dict(config))
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as e:
        raise ConversionError(f"config.json: transformers cannot read it as {kind!r}: {e}") from e


def hint(named: str | None, shapes: Shapes, of: str | None = None) -> str:
    """What a checkpoint looks like by its tensors, as the end of an error message; empty if it is what it says.

    Args:
        named: The architecture that it says.
        shapes: Its tensors.
        of: The family it was read as, which is named first.
    """
    looks = [(f, x, reason) for f in FAMILIES.values() for x in f.layouts if (reason := x.looks(f, shapes)) is not None]
    if not looks or named in {x.architecture for _, x, _ in looks}:
        return ""
    _, layout, reason = looks[0]
    alike = sorted((f for f, x, _ in looks if x.architecture == layout.architecture), key=lambda f: f.name != of)
    *others, last = (f.title for f in alike)
    what = f"{', '.join(others)} or {last}" if others else last
    if layout.transformers:
        what = f"a transformers {layout.architecture.removesuffix('ForConditionalGeneration')}"
    return f". The tensors look like {what}{reason} ({layout.architecture})"
