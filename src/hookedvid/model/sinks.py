"""Which positions are sinks: those whose residual stream is far longer than the others'."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.nn.model import Model
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.selectors import SINKS
from hookedvid.values.serial import is_number

# Between the spread of ordinary tokens, some 2 times the median, and the outliers' 10 times (Vision Transformers Need
# Registers, arXiv 2309.16588) or 15 and more (one channel at 1000 times the median, Massive Activations, 2402.17762).
FACTOR = 5.0


@torch.no_grad()
def find_sinks(
    model: Model, inputs: VideoInputs, layer: int, factor: float = FACTOR, among: str = "video"
) -> VideoInputs:
    """The inputs of one item with a group `sinks`: positions whose stream stands out where it enters a block.

    A position is a sink if the Euclidean norm of its residual stream is more than `factor` times the median norm. They
    are found in the intact run of the prompt; that they draw attention is for `model.attention` to show.

    Args:
        model: The model.
        inputs: Of one item.
        layer: The block (0-based, negative from the end) that the stream enters; n_layers for what leaves the last.
        factor: How many times the median.
        among: A selector of the positions that are compared and that can be sinks.

    Raises:
        InputError: Where no position stands out so far, saying how far the first does.
    """
    if not is_number(factor) or not factor > 0:
        raise InputError(f"factor is {factor!r}; give how many times the median norm a sink has, above 0")
    at = inputs.layout.positions(among)
    norms = norms_of(model(inputs, stop_at_layer=layer)[0, at.to(model.device)])
    median = norms.median()
    found = at[norms > factor * median]
    if not len(found):
        raise InputError(
            f"no position of {among!r} is a sink where the stream enters block {layer}: the longest is "
            f"{norms.max() / median:.2f} times the median, factor is {factor:g}; try other layers, or a lower factor"
        )
    return inputs.with_group(SINKS, positions=found)


def norms_of(resid: Float[Tensor, "pos d_model"]) -> Float[Tensor, " pos"]:
    """The Euclidean norm of each position's stream, in float32 at least; on the CPU."""
    wide = resid.to(torch.promote_types(resid.dtype, torch.float32))
    return cast(Any, wide).norm(dim=-1).cpu()  # torch's annotations do not say what it returns
