"""LoRA adapters in peft's files, merged into a model's weights.

An adapter names the modules of the class it was trained on: the original packages', transformers' of any version,
or the decoder of either. The model's family states all of those names; no two layouts share one.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hookedvid.checkpoints.locate import repo_of
from hookedvid.conversion.lines import Fused, Ignored, Rule
from hookedvid.conversion.pickles import pickle_message
from hookedvid.conversion.rules import apply, expanded, grouped, names_of, undo
from hookedvid.conversion.shards import read_header
from hookedvid.errors import ConversionError
from hookedvid.families import alone
from hookedvid.families.registry import FAMILIES
from hookedvid.nn.model import Model
from hookedvid.nn.parts import parameter_shapes
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.files import read_regular

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MAX_CONFIG = 64 << 20  # bytes; peft's own have some 1,000
# LLaVA's trainer keeps the projector that was trained beside a LoRA in a file of its own.
BESIDE = "non_lora_trainables.safetensors"

READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "layers_to_transform"}
# Fields of peft's LoraConfig that tell how an adapter was trained, or what its tensors tell as well.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "layers_pattern", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_config", "megatron_core", "modules_to_save", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type",
}  # fmt: skip
# The other ways to begin training change the base weights, which the adapter then counts on.
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")

_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>(?:embedding_)?[AB])(?:\.(?!bias\b)\w+)??(?:\.weight)?")
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save\.\w+)\.")


class Change(NamedTuple):
    """A whole tensor (`value`) or the product of two low-rank ones for the weights a table's line names."""

    line: Rule | Fused
    value: Tensor
    down: Tensor | None = None
    scale: float = 1.0
    embedding: bool = False


@dataclass(frozen=True)
class Adapter:
    """An adapter's files, read and checked by themselves; names without peft's prefix.

    Attributes:
        pairs: The tensors `A` [rank, in] and `B` [out, rank] of a module (`embedding_A`, `embedding_B` of an
            embedding).
        whole: Tensors that replace a weight.
    """

    where: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, Mapping[str, Tensor]]
    whole: Mapping[str, Tensor]

    def rank(self, module: str) -> int:
        """The rank the config gives a module."""
        return _by_pattern(self.config.get("rank_pattern"), module, self.config["r"])

    def scale(self, module: str) -> float:
        """What B @ A is multiplied by: alpha / r, or alpha / sqrt(r) where rank-stabilised."""
        r, alpha = self.rank(module), _by_pattern(self.config.get("alpha_pattern"), module, self.config["lora_alpha"])
        return alpha / math.sqrt(r) if self.config.get("use_rslora") else alpha / r


def merge(model: Model, adapter: str | Path, folder: Path) -> None:
    """Merge a LoRA adapter into a model's weights, in place: W + alpha / r * B @ A.

    The product and the sum are taken in float32 (float64 for float64 weights) and rounded once to the weight's
    dtype, as peft's `merge_and_unload` does of an adapter it loaded in its default way.

    Args:
        model: A loaded HookedVideoLLM.
        adapter: A folder with adapter_config.json and adapter_model.safetensors, or a hub repository.
        folder: The converted folder the model was loaded from; its config tells which blocks were left out.

    Raises:
        ConversionError: The adapter is no plain LoRA, is damaged, or does not fit in any part. The model is then
            as it was.
    """
    changes = _plan(model, read(adapter), _whole_config(model, folder))
    with torch.no_grad():
        for change in changes:
            for name, value in _values(change, model):
                weight = model.get_parameter(name)
                weight.copy_(value if change.down is None else weight + value)


def read(adapter: str | Path) -> Adapter:
    """An adapter's files.

    Raises:
        ConversionError: Where they are missing, damaged or no plain LoRA's.
    """
    where = _folder(adapter)
    config = _read_config(where)
    tensors: dict[str, Tensor] = {}
    for file in (WEIGHTS, BESIDE):
        if (where / file).is_file():
            tensors |= _read_tensors(where / file)
    sides: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    strange: list[str] = []
    for name, tensor in tensors.items():
        match = _LORA.fullmatch(name)
        if match and match["side"] not in sides.setdefault(match["module"], {}):
            sides[match["module"]][match["side"]] = tensor
        elif match or "lora_" in name or _WRAPPED.sub(".", name) in whole:
            strange.append(name)
        else:
            whole[_WRAPPED.sub(".", name)] = tensor
    problems = [f"{n} is no part of a plain LoRA, or there twice" for n in grouped(strange)]
    broken = [m for m, pair in sides.items() if set(pair) not in ({"A", "B"}, {"embedding_A", "embedding_B"})]
    problems += [f"{n} has not both lora_A and lora_B" for n in grouped(broken)]
    problems += [f"{n} is not finite" for n in grouped(n for n, t in tensors.items() if not t.isfinite().all())]
    problems += _missing_layers(config, sides)
    if problems or not tensors:
        raise ConversionError(f"{where} is damaged or no plain LoRA: {'; '.join(problems) or 'it holds no tensors'}")
    return Adapter(where, config, sides, whole)


def _folder(adapter: str | Path) -> Path:
    where = Path(adapter)
    if not where.is_dir():
        if repo_of(str(adapter)) is None:
            raise ConversionError(f"no adapter {str(adapter)!r}: it is neither a folder nor a hub repository")
        from hookedvid.checkpoints.hub import fetch

        where = fetch(str(adapter))
    names = sorted(p.name for p in where.iterdir())
    if CONFIG not in names:
        raise ConversionError(
            f"{where} has no {CONFIG}, so it is no adapter in peft's format; it has {', '.join(names) or 'no files'}"
        )
    pickles = [Path(f).with_suffix(".bin").name for f in (WEIGHTS, BESIDE) if f not in names]
    if present := [n for n in pickles if n in names]:
        raise ConversionError(pickle_message(where, present))
    if WEIGHTS not in names:
        raise ConversionError(f"{where} has no {WEIGHTS}; it has {', '.join(names)}")
    return where


def _read_config(where: Path) -> dict[str, Any]:
    try:
        config = json.loads(read_regular(where / CONFIG, MAX_CONFIG, ConversionError))
        kind, start = config.get("peft_type"), config.get("init_lora_weights", True)
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, RecursionError) as e:
        raise ConversionError(f"{where / CONFIG} cannot be read: {e}; download it again") from e
    if kind != "LORA":
        raise ConversionError(f"{where} is an adapter of the type {kind!r}; only LORA can be merged here")
    problems = [f"{k} = {v!r}" for k, v in config.items() if v and k not in READ | HARMLESS | {"init_lora_weights"}]
    if start not in PLAIN_STARTS:
        problems.append(f"init_lora_weights = {start!r} (it changed the base weights; save it as a plain LoRA)")
    problems += [f"{k} = {config.get(k)!r}" for k in ("r", "lora_alpha") if not isinstance(config.get(k), int | float)]
    if problems:
        raise ConversionError(
            f"{where / CONFIG}: {', '.join(problems)} not supported. Merge it with peft (merge_and_unload), save that "
            "model and convert it"
        )
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    read_header(path)  # raises for a damaged file, saying how
    return {k.removeprefix("base_model.model."): t for k, t in load_file(path).items()}


def _missing_layers(config: Mapping[str, Any], pairs: Mapping[str, Any]) -> list[str]:
    listed = config.get("layers_to_transform")
    wanted = [] if listed is None else [listed] if isinstance(listed, int) else listed
    layers = {int(part) for module in pairs for part in module.split(".") if part.isdigit()}
    return [f"layers_to_transform lists layer {i}, of which it has no tensor" for i in wanted if i not in layers]


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """By peft's rule: the first pattern that matches the end of a module's name, from a dot on."""
    values = (v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", module))
    return next(values, default)


def _whole_config(model: Model, folder: Path) -> VideoLLMConfig:
    """The model's config with all blocks of its checkpoint, of which it may have loaded only the first."""
    path = Path(folder) / "config.json"
    if model.cfg.decoder is None or not path.is_file():
        return model.cfg
    n_layers = VideoLLMConfig.from_json(path.read_text(encoding="utf-8")).lm.n_layers
    return replace(model.cfg, decoder=replace(model.cfg.decoder, n_layers=n_layers))


def _plan(model: Model, adapter: Adapter, cfg: VideoLLMConfig) -> list[Change]:
    """Every change, whole tensors first; raises ConversionError listing all that does not fit."""
    lines, ignored = _lines(cfg)
    weights = dict(model.named_parameters(remove_duplicate=False))
    unknown: list[str] = []
    problems: list[str] = []
    changes: list[Change] = []
    taken: set[tuple[str, bool]] = set()
    for name in (*adapter.whole, *adapter.pairs):
        is_pair = name in adapter.pairs
        tensor_name = f"{name}.weight" if is_pair else name
        line = lines.get(tensor_name)
        if line is None:
            if not any(re.fullmatch(i.theirs, tensor_name) for i in ignored):
                unknown.append(name)
            continue
        ours = names_of(line)
        if ours[0] not in weights:  # in a block beyond `first_n_layers`
            continue
        if cfg.decoder is not None and cfg.decoder.tied and ours[0] in ("embed.weight", "unembed.weight"):
            problems.append(f"{name!r} would part the head from the embedding, which are one tensor in this model")
        elif (ours[0], is_pair) in taken:
            problems.append(f"{name!r} is there under another layout's name as well")
        taken.add((ours[0], is_pair))
        theirs = undo(line, {n: torch.empty_like(weights[n], device="meta") for n in ours})
        change, wrong = _change(adapter, name, line, list(theirs.shape))
        changes.append(change)
        problems += wrong
    problems += [f"no module {n}" for n in grouped(unknown)]
    if problems:
        known = [
            n.removesuffix(".weight") for n, x in lines.items() if names_of(x)[0].endswith("blocks.0.attn.q.weight")
        ]
        hint = f". Names it may have: {', '.join(map(repr, known))}, …" if unknown else ""
        raise ConversionError(f"{adapter.where} does not fit this model: {'; '.join(problems)}{hint}")
    return changes


def _change(adapter: Adapter, name: str, line: Rule | Fused, shape: list[int]) -> tuple[Change, list[str]]:
    """What a module's or a tensor's name stands for, and why it does not fit their weight's shape."""
    if name in adapter.whole:
        value = adapter.whole[name]
        wrong = [] if list(value.shape) == shape else [f"{name!r} is {list(value.shape)}, its weight {shape}"]
        return Change(line, value), wrong
    pair, rank = adapter.pairs[name], adapter.rank(name)
    embedding = "embedding_A" in pair
    down, up = (pair[f"embedding_{s}" if embedding else s] for s in "AB")
    if len(shape) != 2:
        return Change(line, up), [f"{name!r} has a weight {shape}; LoRA on other than matrices is not supported"]
    wanted = [[rank, shape[0]], [shape[1], rank]] if embedding else [[rank, shape[1]], [shape[0], rank]]
    a, b = sizes = [list(down.shape), list(up.shape)]
    wrong = f"{name!r} has A {a} and B {b}; its weight {shape} at rank {rank} takes {wanted[0]}, {wanted[1]}"
    return Change(line, up, down, adapter.scale(name), embedding), [] if sizes == wanted else [wrong]


def _values(change: Change, model: Model) -> Iterator[tuple[str, Tensor]]:
    """Our tensors of a change, in the precision it is computed in."""
    weight = model.get_parameter(names_of(change.line)[0])
    precise = torch.promote_types(weight.dtype, torch.float32)
    value = change.value.to(weight.device, precise)
    if change.down is not None:
        value = value @ change.down.to(weight.device, precise)
        # peft rounds what it adds to an embedding before it adds it; of other weights it rounds the sum alone.
        value = (value.T * change.scale).to(weight.dtype) if change.embedding else value * change.scale
    yield from apply(change.line, value).items()


def _lines(cfg: VideoLLMConfig) -> tuple[dict[str, Rule | Fused], list[Ignored]]:
    """The line of each tensor's name in any layout, and those of tensors that have no place in ours."""
    family = FAMILIES.get(cfg.family)
    table = alone.adapter(cfg) if family is None else family.adapter(cfg)
    lines = {x.theirs: x for x in expanded(table, parameter_shapes(cfg)) if not isinstance(x, Ignored)}
    return lines, [x for x in table if isinstance(x, Ignored)]
