"""A video's tokens in the decoder's stream: through tower and projector once, however often it is asked about."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.errors import HookError, InputError
from hookedvid.nn.hooks import hooked
from hookedvid.nn.model import Model
from hookedvid.values.grid import Grid
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.tensors import ints

SAMPLE = 16  # values of each weight that are looked at in every call


def encode_video(model: Model, inputs: VideoInputs) -> Float[Tensor, "video_pos columns"]:
    """Video tokens of all items in order, newlines in place; frames of the batch go through the tower at once.

    The first d_model columns are the stream's, the next ones what is added after each block of DeepStack. Items whose
    features are given are not encoded again.

    Raises:
        InputError: Where another model made these.
        HookError: Where hooks are on the tower or projector that they skip.
    """
    if inputs.features:
        _check_given(model, inputs)
    with model.turn():
        new: Iterator[Tensor] = iter(())
        if videos := inputs.to_encode:
            dtype = model.vision.patch_embed.weight.dtype
            new = iter(_through_tower(model, [model.leaf(v.to(dtype)) for v in videos]))
    known = inputs.features or (None,) * inputs.batch_size
    features_of = [f for p, f in zip(inputs.pixel_values, known, strict=True) if p is not None]
    grids = [x.grid for x, p in zip(inputs.layouts, inputs.pixel_values, strict=True) if p is not None]
    return torch.cat([_kept(next(new), grid) if f is None else f for f, grid in zip(features_of, grids, strict=True)])


def _through_tower(model: Model, videos: list[Tensor]) -> list[Float[Tensor, "video_pos columns"]]:
    """Each video's cells in the order the decoder reads them."""
    tower, projector, sizes, levels = model.vision, model.projector, model.vision.sizes(videos), list[Tensor]()
    features = tower.patches(tower(videos, model.kernel, levels.append), sizes)
    dtype = projector.inp.weight.dtype
    made = [projector(features.to(dtype), sizes)]
    made += [merger(level.to(dtype), sizes) for merger, level in zip(projector.deepstack, levels, strict=True)]
    by_video = zip(*(projector.videos(tokens, sizes) for tokens in made), strict=True)
    return [torch.cat([projector.pack(part) for part in parts], -1) for parts in by_video]


def _kept(tokens: Float[Tensor, "cell columns"], grid: Grid | None) -> Float[Tensor, "video_pos columns"]:
    if grid is None or not grid.dropped:
        return tokens
    stays = torch.ones(len(tokens), dtype=torch.bool)
    stays[list(grid.dropped)] = False
    return tokens[stays.to(tokens.device)]


def _check_given(model: Model, inputs: VideoInputs) -> None:
    if inputs.encoder != encoder_of(model):
        raise InputError(
            "these inputs hold features that another tower, or other weights of this one, made: run the model on the "
            "inputs that prepare gave, or call its own encoded() on those"
        )
    if on := [f"{part}.{n}" for part in ("vision", "projector") for n in hooked(getattr(model, part))]:
        raise HookError(
            f"hooks on {on[:3]} cannot act on inputs whose features are given, since tower and projector do not run: "
            "take the inputs that prepare gave, or encode under the hooks and remove them"
        )


def encoder_of(model: Model) -> str:
    """A digest of what makes features: the configs of tower and projector, and every bit of their weights.

    The same for two loads of one checkpoint, on any device. The weights are read whole once, and again when one of
    them was written to or replaced.
    """
    weights = [p.detach() for part in (model.vision, model.projector) for p in part.parameters()]
    state = _state(weights)
    if model.encoder_read is None or model.encoder_read[0] != state:
        h = hashlib.sha256(repr((model.cfg.vision, model.cfg.projector, [w.dtype for w in weights])).encode())
        for w in weights:
            h.update(w.contiguous().view(torch.uint8).cpu().numpy().data)
        model.encoder_read = (state, h.hexdigest()[:16])
    return model.encoder_read[1]


def _state(weights: list[Tensor]) -> Any:
    """Other after any write to a weight that torch counts, and after most that it does not (those to `.data`)."""
    sample = torch.cat([w.flatten()[:: max(1, w.numel() // SAMPLE)] for w in weights]).double().cpu()
    counts = [(w.data_ptr(), -1 if w.is_inference() else w._version) for w in weights]
    return counts, sample.numpy().tobytes()


@torch.no_grad()
def encoded(model: Model, inputs: VideoInputs) -> VideoInputs:
    """The same inputs with their videos' features kept: forwards on them skip tower and projector, same bits.

    Hook points of the two do not fire there, so hooks on them are refused; features made under hooks keep what these
    did. Interventions that write to the two encode again. A video's features do not depend on the question. Only a
    model with the same tower and projector takes them.
    """
    if not inputs.to_encode:
        return inputs
    inputs = inputs.to(model.device)
    sizes = [n for n in ints(inputs.is_video.sum(1)) if n]
    items = iter(torch.split(encode_video(model, inputs), sizes))
    features = tuple(None if p is None else next(items) for p in inputs.pixel_values)
    return replace(inputs, features=features, encoder=encoder_of(model))
