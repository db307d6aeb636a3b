"""A video's tokens in the decoder's stream: through tower and projector once, however often it is asked about."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.inputs import VideoInputs


def encode_video(model: Any, inputs: VideoInputs) -> Float[Tensor, "video_pos d_model"]:
    """Video tokens of all items in order, newlines in place; frames of the batch go through the tower at once.

    Items whose features are given are not encoded again.
    """
    made: Iterator[Tensor] = iter(())
    if videos := inputs.to_encode:
        pixels = torch.cat(videos).to(model.vision.pos_embed.dtype)
        tokens = model.projector(model.vision.patches(model.vision(pixels, model.kernel)))
        made = iter([model.projector.pack(t) for t in tokens.split([len(v) for v in videos])])
    given = inputs.features or (None,) * inputs.batch_size
    held = [f for p, f in zip(inputs.pixel_values, given, strict=True) if p is not None]
    return torch.cat([next(made) if f is None else f for f in held])


@torch.no_grad()
def encoded(model: Any, inputs: VideoInputs) -> VideoInputs:
    """The same inputs with their videos' features kept: forwards on them skip tower and projector, same bits.

    Hook points of the two do not fire there. A video's features do not depend on the question.
    """
    if not inputs.to_encode:
        return inputs
    inputs = inputs.to(model.device)
    sizes = [n for n in inputs.is_video.sum(1).tolist() if n]
    made = iter(encode_video(model, inputs).split(sizes))
    return replace(inputs, features=tuple(None if p is None else next(made) for p in inputs.pixel_values))
