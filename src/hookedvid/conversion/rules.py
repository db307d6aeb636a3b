"""Tables between two sets of tensor names, read in both directions; leftovers are errors.

A line is a `Rule` (one tensor, perhaps reshaped), a `Fused` (one of theirs is several of ours) or an
`Ignored` (theirs alone, with the reason). `{i}` in names stands for a layer's number.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor

from hookedvid.errors import ConversionError, nearest


@dataclass(frozen=True)
class Rule:
    """One tensor. `pattern` is the einops reshape from theirs to ours; its reverse must exist."""

    theirs: str
    ours: str
    pattern: str = ""


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


def to_ours(
    tensors: Mapping[str, Tensor], table: Sequence[Line], shapes: Mapping[str, torch.Size], what: str
) -> dict[str, Tensor]:
    """Our tensors from theirs.

    `shapes` are our names and shapes, all of which must be filled. Raises ConversionError listing every
    tensor missing, left over or of the wrong shape; `what` names the source in it.
    """
    ours: dict[str, Tensor] = {}
    left, missing, wrong = dict(tensors), [], []
    for line in _expand(table, shapes):
        if isinstance(line, Ignored):
            left = {k: v for k, v in left.items() if not re.fullmatch(line.theirs, k)}
        elif line.theirs not in tensors:
            missing.append(line.theirs)
        elif problem := _misfit(tensors[line.theirs], line):
            wrong.append(f"{line.theirs!r} is {list(left.pop(line.theirs).shape)}, {problem}")
        elif isinstance(line, Rule):
            t = left.pop(line.theirs)
            ours[line.ours] = rearrange(t, line.pattern) if line.pattern else t
        else:
            ours |= dict(zip(line.ours, _unfuse(left.pop(line.theirs), line), strict=True))
    problems = [f"missing {n!r}" for n in missing] + wrong
    problems += [
        f"left over {n!r} {list(t.shape)} ({nearest(n, missing)})" if missing else f"left over {n!r} {list(t.shape)}"
        for n, t in left.items()
    ]
    problems += [f"no tensor for our {n!r}" for n in shapes if n not in ours and not missing and not wrong]
    problems += [
        f"{n!r} should be {list(shapes[n])}, got {list(t.shape)}"
        for n, t in ours.items()
        if n in shapes and t.shape != shapes[n]
    ]
    if problems:
        shown = "; ".join(problems[:12]) + (f"; … {len(problems) - 12} more" if len(problems) > 12 else "")
        raise ConversionError(f"the tensors of {what} do not fit its config: {shown}")
    return ours


def to_theirs(ours: Mapping[str, Tensor], table: Sequence[Line]) -> dict[str, Tensor]:
    """Their tensors from ours: the same table read the other way. Ignored ones do not come back."""
    theirs: dict[str, Tensor] = {}
    used: set[str] = set()
    for line in _expand(table, {k: v.shape for k, v in ours.items()}):
        if isinstance(line, Rule):
            t = ours[line.ours]
            used.add(line.ours)
            theirs[line.theirs] = _reversed(t, line.pattern) if line.pattern else t
        elif isinstance(line, Fused):
            used.update(line.ours)
            theirs[line.theirs] = _fuse([ours[n] for n in line.ours], line)
    if unused := ours.keys() - used:
        raise ConversionError(f"no line of the table exports {sorted(unused)}")
    return theirs


def _expand(table: Sequence[Line], shapes: Mapping[str, torch.Size]) -> list[Line]:
    """The lines with every `{i}` written out, for as many layers as our model has under that name."""
    lines: list[Line] = []
    for line in table:
        first = () if isinstance(line, Ignored) else (line.ours if isinstance(line, Fused) else (line.ours,))
        if not first or "{i}" not in first[0]:
            lines.append(line)
            continue
        head, tail = first[0].split("{i}")
        numbers = [n[len(head) : len(n) - len(tail)] for n in shapes if n.startswith(head) and n.endswith(tail)]
        for i in sorted({int(n) for n in numbers if n.isdigit()}):
            if isinstance(line, Rule):
                lines.append(Rule(line.theirs.format(i=i), line.ours.format(i=i), line.pattern))
            elif isinstance(line, Fused):
                ours = tuple(o.format(i=i) for o in line.ours)
                lines.append(Fused(line.theirs.format(i=i), ours, line.parts, line.groups))
    return lines


def _misfit(t: Tensor, line: Rule | Fused) -> str:
    """Why a tensor cannot be cut or reshaped as its line says; empty if it can."""
    if isinstance(line, Fused):
        stretches = line.groups * sum(line.parts)
        return "" if t.ndim and len(t) % stretches == 0 else f"whose rows are no multiple of {stretches}"
    axes = line.pattern.split("->")[0].split()
    fits = len(axes) == t.ndim and all(n == 1 for n, axis in zip(t.shape, axes, strict=True) if axis == "1")
    return "" if fits or not line.pattern else f"not [{', '.join(axes)}]"


def _unfuse(t: Tensor, line: Fused) -> list[Tensor]:
    unit = len(t) // (line.groups * sum(line.parts))
    stretches = t.unflatten(0, (line.groups, sum(line.parts), unit))
    return [p.flatten(0, 2).contiguous() for p in stretches.split(list(line.parts), dim=1)]


def _fuse(parts: list[Tensor], line: Fused) -> Tensor:
    split = [p.unflatten(0, (line.groups, n, -1)) for p, n in zip(parts, line.parts, strict=True)]
    return torch.cat(split, dim=1).flatten(0, 2)


def _reversed(t: Tensor, pattern: str) -> Tensor:
    source, target = (side.strip() for side in pattern.split("->"))
    # Axes of length one exist on their side alone: `1 1 d -> d` comes back by repeating once.
    return repeat(t, f"{target} -> {source}") if "1" in source.split() else rearrange(t, f"{target} -> {source}")
