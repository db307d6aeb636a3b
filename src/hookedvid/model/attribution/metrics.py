"""Metrics of logits that effects are measured by: one number an item, differentiable."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.model.answers import check_option_tokens, real_tokens
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.serial import as_whole

Numbers = Callable[[Float[Tensor, "batch kept d_vocab"]], Float[Tensor, " batch"]]


def logit_diff(inputs: VideoInputs, right: int | Sequence[int], wrong: int | Sequence[int] | None = None) -> Numbers:
    """The logit of an option's letter at the last position, minus another's.

    Args:
        inputs: With options.
        right: The option's index, 0-based; of a batch one an item.
        wrong: The other's; the best of the others by default, as a study's margin has it.

    Raises:
        InputError: For inputs without options, and for an option that is not there.
    """
    of_right = _tokens(inputs, right)
    others = [[t for t in tokens if t != r] for tokens, r in zip(inputs.option_tokens, of_right, strict=True)]
    if wrong is not None:
        others = [[t] for t in _tokens(inputs, wrong)]
        if any(r in rest for r, rest in zip(of_right, others, strict=True)):
            raise InputError("right and wrong are one option, whose logit differs from itself by nothing")
    if not all(others):
        raise InputError("an item has one option alone, and no other to compare with: use log_prob")

    def metric(logits: Float[Tensor, "batch kept d_vocab"]) -> Float[Tensor, " batch"]:
        last = _last(logits, len(of_right))
        each = [x[r] - x[rest].max() for x, r, rest in zip(last, of_right, others, strict=True)]
        return torch.stack(each)

    return metric


def log_prob(inputs: VideoInputs, right: int | Sequence[int], n_tokens: int | None = None) -> Numbers:
    """The log-probability (natural) of an option's letter at the last position.

    Args:
        inputs: With options.
        right: The option's index, 0-based; of a batch one an item.
        n_tokens: The config's, for a model whose vocabulary has rows without a token; None: all rows are tokens.

    Raises:
        InputError: For inputs without options, and for an option that is not there.
    """
    of_right = _tokens(inputs, right)

    def metric(logits: Float[Tensor, "batch kept d_vocab"]) -> Float[Tensor, " batch"]:
        at = torch.tensor(of_right, device=logits.device)[:, None]
        return real_tokens(_last(logits, len(of_right)), n_tokens).log_softmax(-1).gather(-1, at)[:, 0]

    return metric


def _last(logits: Tensor, n_items: int) -> Float[Tensor, "batch d_vocab"]:
    if len(logits) != n_items:
        raise InputError(f"the metric is of {n_items} item(s), and these are logits of {len(logits)}")
    return logits[:, -1].to(torch.promote_types(logits.dtype, torch.float32))


def _tokens(inputs: VideoInputs, option: int | Sequence[int]) -> list[int]:
    """The token of each item's option."""
    one = as_whole(option)
    which: list[Any] = [option] * inputs.batch_size
    if one is None and isinstance(option, Iterable) and not isinstance(option, str):
        which = list(option)
    if not inputs.option_tokens or not all(inputs.option_tokens):
        raise InputError("these inputs have no options to compare: give prepare(..., options=[...])")
    if len(which) != inputs.batch_size:
        raise InputError(f"{len(which)} options are named for {inputs.batch_size} item(s); name one an item")
    found: list[int] = []
    for tokens, i in zip(inputs.option_tokens, map(as_whole, which), strict=True):
        check_option_tokens(tokens)
        if i is None or not 0 <= i < len(tokens):
            raise InputError(f"no option {option!r}: there are {len(tokens)}, numbered from 0")
        found.append(tokens[i])
    return found
