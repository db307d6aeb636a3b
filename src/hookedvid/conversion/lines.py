"""The lines of a table between two sets of tensor names: what is called what, in both directions.

How a table is applied is said in `rules`. `{i}` in names stands for a layer's number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One tensor.

    Attributes:
        theirs: Its name there.
        ours: Its name here.
        axes: Of theirs, as `1 n d`, where some are of length one, `1`, and have no place in ours; empty if none is.
    """

    theirs: str
    ours: str
    axes: str = ""

    @property
    def ones(self) -> tuple[int, ...]:
        """Their axes that ours lacks, from the first."""
        return tuple(at for at, axis in enumerate(self.axes.split()) if axis == "1")


@dataclass(frozen=True)
class Fused:
    """One tensor of theirs holding several of ours along its first axis.

    The axis is cut into `groups` equal stretches, each a row of `parts` counts in units of `unit` rows;
    part k of every stretch, concatenated, is `ours[k]`. (InternLM2: a stretch is one key-value head with its
    queries; a plain [Q; K; V] is one stretch.)
    """

    theirs: str
    ours: tuple[str, ...]
    parts: tuple[int, ...]
    groups: int = 1


@dataclass(frozen=True)
class Ignored:
    """Tensors of theirs (a regular expression) that have no place in ours, and why."""

    theirs: str
    reason: str


Line = Rule | Fused | Ignored
Shapes = Mapping[str, Sequence[int]]
