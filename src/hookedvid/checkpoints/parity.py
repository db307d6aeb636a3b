"""Stage by stage against another implementation of the same model: recorded outputs, or a transformers model."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from hookedvid.checkpoints import layouts
from hookedvid.conversion.lines import Rule
from hookedvid.errors import ConversionError
from hookedvid.families.registry import processor
from hookedvid.nn.model import Model
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.inputs import VIDEO, VideoInputs
from hookedvid.video.processed import tensors

# Hook points that are stages, and those that stages are made of.
STAGES = re.compile(
    r"vision\.hook_(patch_embed|embed|out)|projector\.hook_(pre|mlp_in|out)|hook_embed"
    r"|(vision\.)?blocks\.\d+\.hook_resid_(pre|post)|blocks\.\d+\.hook_deepstack"
)


@dataclass(frozen=True)
class Stage:
    """How far one stage is off: the largest difference, as it is and relative to the largest value of theirs."""

    name: str
    absolute: float
    relative: float


def compare(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[Stage]:
    """The stages both sides have, in the order of ours.

    Raises:
        ConversionError: For one of another shape.
    """
    stages = []
    for name in (n for n in ours if n in theirs):
        a, b = ours[name].detach().double().cpu(), theirs[name].detach().double().cpu()
        if name == "logits":  # layouts differ in how many padding rows their vocabulary has
            rows = min(a.shape[-1], b.shape[-1])
            a, b = a[..., :rows], b[..., :rows]
        if a.numel() != b.numel() or a.shape[-1] != b.shape[-1]:
            raise ConversionError(f"stage {name!r}: ours is {list(a.shape)}, theirs {list(b.shape)}")
        off = (a.reshape(b.shape) - b).abs().max().item()
        stages.append(Stage(name, off, off / max(b.abs().max().item(), 1e-300)))
    return stages


def first_beyond(stages: Sequence[Stage], tolerance: float) -> Stage | None:
    """The first stage off by more than `tolerance`, relatively, or not a number at all."""
    return next((s for s in stages if not s.relative <= tolerance), None)


@torch.no_grad()
def our_stages(model: Model, inputs: VideoInputs, extension: Int[Tensor, "1 new"] | None = None) -> dict[str, Tensor]:
    """Every stage of a run of ours on one prompt, in the order they happen.

    `vision patches` are the features that the projector reads, `vision before its norm` the tower's last block's
    output. `blocks.k.mlp` is the stream before features of the tower are added (DeepStack), `blocks.k.deepstack` what
    is added at video positions.

    Args:
        extension: Ids that follow the prompt in a second run, whose logits at these are `logits.extended`.
    """
    if model.cfg.decoder is None:
        features, cache = model.run_with_cache(inputs.pixel_values[0], names_filter=lambda n: bool(STAGES.fullmatch(n)))
        return {**cache, "vision.hook_out": features}
    parts = {f"blocks.{k}.hook_{x}" for k in range(model.cfg.n_deepstack) for x in ("resid_mid", "mlp_out")}
    logits, cache = model.run_with_cache(inputs, names_filter=lambda n: n in parts or bool(STAGES.fullmatch(n)))
    stages: dict[str, Tensor] = {"position_ids": inputs.position_ids}
    for name, value in cache.items():
        block, _, point = name.rpartition(".")
        if name == "vision.hook_out":
            stages |= {name: value, "vision patches": model.vision.patches(value, model.vision.sizes(inputs.to_encode))}
        elif point == "hook_deepstack":
            stages[f"{block}.deepstack"] = value[inputs.is_video]
        elif name not in parts:
            stages[name] = value
        elif point == "hook_mlp_out":
            stages[f"{block}.mlp"] = cache[f"{block}.hook_resid_mid"] + value
    if model.cfg.vision is not None and inputs.to_encode:
        stages["vision before its norm"] = stages[f"vision.blocks.{model.cfg.vision.n_layers - 1}.hook_resid_post"]
    last = stages[f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"]
    stages |= {"ln_final": model.ln_final(last), "logits": logits}
    if extension is not None:
        stages["logits.extended"] = model(inputs.extend(extension))[:, -extension.shape[1] :]
    return stages


@torch.no_grad()
def transformers_stages(hf: Any, inputs: VideoInputs, video_token: int | None = None) -> dict[str, Tensor]:
    """The same stages of a transformers model's run on the same prompt, by our names.

    Args:
        video_token: The id its prompts hold at every video position; its config's own unless given.
    """
    stages: dict[str, Tensor] = {}
    reading = layouts.read_transformers(hf.config, type(hf).__name__, hf.state_dict())
    with _watching(hf, _ends(reading), stages):
        if inputs.tokens.shape[1] == 0:
            out = hf(inputs.pixel_values[0])
            return {**stages, "vision.hook_out": out.last_hidden_state}
        kwargs: dict[str, Any] = {"input_ids": inputs.tokens}
        if inputs.has_video:
            kwargs = _with_video(hf, reading.cfg, inputs, video_token)
        logits = hf(**kwargs).logits
    return {**stages, "logits": logits}


def _with_video(hf: Any, cfg: VideoLLMConfig, inputs: VideoInputs, video_token: int | None) -> dict[str, Any]:
    """What a class's forward takes for a prompt with a video: its processor's tensors, and positions on all axes."""
    marker = cfg.placeholder_id if video_token is None else video_token
    if marker is None:
        raise ConversionError(f"a {type(hf.config).__name__} names no video token; pass video_token")
    kwargs: dict[str, Any] = {"input_ids": inputs.tokens.masked_fill(inputs.is_video, marker)}
    pixels, official = inputs.pixel_values[0], processor(cfg.family)
    assert pixels is not None and cfg.vision is not None
    if official is None:
        return kwargs | {"pixel_values_videos": pixels[None].to(hf.dtype)}
    made = tensors(pixels, cfg.vision, official)
    made[official.pixels] = made[official.pixels].to(hf.dtype)
    kwargs |= {name: x.to(inputs.tokens.device) for name, x in made.items()}
    if cfg.lm.rope.n_axes > 1:  # whose own rule may be another; without a mask it reads them as packed sequences
        kwargs["position_ids"] = inputs.position_ids[:, None].to(inputs.tokens.device)
        kwargs["attention_mask"] = torch.ones_like(inputs.tokens)
    return kwargs


@contextmanager
def _watching(hf: nn.Module, stages: Mapping[str, str], acts: dict[str, Tensor]) -> Iterator[None]:
    """Record blocks, the projector's first layer and the merged embeddings while the body runs."""
    handles = []

    def after(name: str):
        def keep(_module: nn.Module, _args: tuple, out: Any) -> None:
            acts[name] = out[0] if isinstance(out, tuple) else out

        return keep

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        acts["hook_embed"] = args[0] if args else kwargs["hidden_states"]

    for name, module in hf.named_modules():
        parent, _, last = name.rpartition(".")
        ours = stages.get(name) or stages.get(f"{parent}.{{i}}" if last.isdigit() else name)
        if ours is None:
            continue
        handles.append(module.register_forward_hook(after(ours.format(i=last))))
        if ours.startswith("blocks.") and last == "0":
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
    try:
        yield
    finally:
        for h in handles:
            h.remove()


def _ends(reading: layouts.Reading) -> dict[str, str]:
    """Our stages by the modules of theirs that end them, as the table of tensors names those; `{i}` counts blocks.

    Towers whose frames keep their shape have rows in another order, so that of these the decoder alone is watched.
    """
    cfg, theirs = reading.cfg, {line.ours: line.theirs for line in reading.table if isinstance(line, Rule)}
    alike = cfg.vision is None or cfg.vision.resize != "fit"
    ends = {
        theirs[norm].partition("{i}")[0] + "{i}": f"{part}blocks.{{i}}.hook_resid_post"
        for part in (("vision.", "") if alike else ("",))
        if (norm := f"{part}blocks.{{i}}.ln1.weight") in theirs
    }
    for k in range(cfg.n_deepstack):  # a block of theirs ends before the tower's features are added
        ends[theirs["blocks.{i}.ln1.weight"].partition("{i}")[0] + str(k)] = f"blocks.{k}.mlp"
    if alike and (first := "projector.inp.weight") in theirs:
        linear = cfg.projector is not None and cfg.projector.linear
        ends[theirs[first].removesuffix(".weight")] = "projector.hook_out" if linear else "projector.hook_pre"
    return ends


def random_inputs(model: Model, n_frames: int, seed: int = 0) -> VideoInputs:
    """A video of noise between random text ids, at the model's own sizes; for a bare tower its pixels alone."""
    cfg, g = model.cfg, torch.Generator().manual_seed(seed)
    pixels, processed = None, {}
    if cfg.vision is not None:
        sides = (cfg.vision.image_size,) * 2
        if cfg.vision.resize == "fit":
            sides = (2 * cfg.vision.multiple, 3 * cfg.vision.multiple)
        pixels = torch.randn(n_frames, 3, *sides, generator=g)
    if cfg.decoder is None:
        return model.inputs_of(pixels)
    text = torch.randint(0, min(cfg.n_tokens or cfg.d_vocab, cfg.d_vocab), (24,), generator=g)
    text[text == cfg.placeholder_id] = 0
    marker = [torch.tensor([VIDEO])] if pixels is not None else []
    if cfg.lm.rope.per_second is not None:
        processed = {"second_per_grid_ts": [1.0]}
    return model.inputs_from_tensors(torch.cat([text[:14], *marker, text[14:]]), pixels, **processed)
