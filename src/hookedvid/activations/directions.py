"""Directions in activations: differences of means, principal components; what `Steer` adds.

A direction has the shape of one row ([d_model], or [head, d_head] at `z`), in float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hookedvid.activations.store import Rows, check_rows
from hookedvid.errors import InputError


class Components(NamedTuple):
    """Principal components of rows.

    Attributes:
        directions: Of length 1, that of the largest variance first; their signs make the largest channel positive.
        variance: Along each, with n - 1; `share` of that of all channels together.
        mean: Of the rows.
    """

    directions: Float[Tensor, "component *channels"]
    variance: Float[Tensor, " component"]
    share: Float[Tensor, " component"]
    mean: Float[Tensor, "*channels"]


def difference_of_means(rows: Rows, of: Bool[Tensor, " n"] | Sequence[bool]) -> Float[Tensor, "*channels"]:
    """The mean of some rows minus the mean of the others: `Steer(hook, layer, at, vector=…)` takes it.

    Args:
        rows: Of one hook point.
        of: Which they are.

    Raises:
        InputError: Where there are none, or no others.
    """
    check_rows(rows)
    chosen = np.asarray(of.cpu() if isinstance(of, Tensor) else of)
    if chosen.shape != (len(rows),) or chosen.dtype != np.bool_:
        raise InputError(f"of is {chosen.dtype} {chosen.shape}; give True or False for each of {len(rows)} rows")
    if not chosen.any() or chosen.all():
        raise InputError(f"{chosen.sum()} of {len(rows)} rows are chosen: a difference needs some, and some others")
    values, mask = rows.values.double(), torch.from_numpy(chosen)
    return values[mask].mean(0) - values[~mask].mean(0)


def principal_components(rows: Rows, n: int = 1) -> Components:
    """The directions in which rows vary most. Their covariance is held, [channels, channels] in float64.

    Args:
        rows: Of one hook point.
        n: Of them.

    Raises:
        InputError: Where there are fewer.
    """
    check_rows(rows)
    flat = rows.values.double().flatten(1)
    if not 1 <= n <= min(len(flat) - 1, flat.shape[1]):
        raise InputError(f"{len(flat)} rows of {flat.shape[1]} numbers have no {n} components; give more rows")
    mean = flat.mean(0)
    covariance = (flat - mean).T @ (flat - mean) / (len(flat) - 1)
    values, vectors = torch.linalg.eigh(covariance)
    chosen = vectors.flip(1)[:, :n].T
    signs = chosen.gather(1, chosen.abs().argmax(1, keepdim=True)).sign()
    variance = values.flip(0)[:n].clamp(min=0)
    shape = rows.values.shape[1:]
    share = variance / covariance.trace().clamp(min=torch.finfo(torch.float64).tiny)
    return Components((chosen * signs).unflatten(1, shape), variance, share, mean.unflatten(0, shape))
