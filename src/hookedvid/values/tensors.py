"""The numbers of a tensor as Python's own, typed: torch's annotations do not say what `tolist` lists."""

from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor


def ints(x: Int[Tensor, " n"]) -> list[int]:
    """The numbers of a tensor of whole numbers with one axis."""
    return cast(Any, x).tolist()


def floats(x: Float[Tensor, " n"]) -> list[float]:
    """The numbers of a tensor of floating-point numbers with one axis."""
    return cast(Any, x).tolist()
