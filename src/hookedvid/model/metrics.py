"""Metrics of logits that effects are measured by: one number an item, differentiable."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.model.answers import check_option_tokens, real_tokens
from hookedvid.values.inputs import VideoInputs

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
    if not all(others):
        raise InputError("an item has one option alone, and no other to compare with: use log_prob")

    def metric(logits: Float[Tensor, "batch kept d_vocab"]) -> Float[Tensor, " batch"]:
        last = _last(logits)
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
        return real_tokens(_last(logits), n_tokens).log_softmax(-1).gather(-1, at)[:, 0]

    return metric


def _last(logits: Tensor) -> Float[Tensor, "batch d_vocab"]:
    return logits[:, -1].to(torch.promote_types(logits.dtype, torch.float32))


def _tokens(inputs: VideoInputs, option: int | Sequence[int]) -> list[int]:
    """The token of each item's option."""
    which = [option] * inputs.batch_size if isinstance(option, int) else list(option)
    if not inputs.option_tokens or not all(inputs.option_tokens):
        raise InputError("these inputs have no options to compare: give prepare(..., options=[...])")
    if len(which) != inputs.batch_size:
        raise InputError(f"{len(which)} options are named for {inputs.batch_size} item(s); name one an item")
    for tokens, i in zip(inputs.option_tokens, which, strict=True):
        check_option_tokens(tokens)
        if not 0 <= i < len(tokens):
            raise InputError(f"no option {i}: there are {len(tokens)}, numbered from 0")
    return [tokens[i] for tokens, i in zip(inputs.option_tokens, which, strict=True)]
