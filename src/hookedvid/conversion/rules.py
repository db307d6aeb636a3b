"""Tables between two sets of tensor names, read in both directions; leftovers are errors.

What a table's lines are is said in `lines`.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hookedvid.conversion.lines import Fused, Ignored, Line, Rule, Shapes
from hookedvid.errors import ConversionError


def match(theirs: Shapes, table: Sequence[Line], ours: Shapes, what: str, hint: str = "") -> dict[str, Line]:
    """The line that reads each of their tensors, from names and shapes alone.

    Args:
        theirs, ours: Every tensor there is on both sides, all of which must find its partner.

    Raises:
        ConversionError: Listing every tensor missing, left over or of the wrong shape; `what` names the source in it,
            and `hint` ends it.
    """
    lines: dict[str, Line] = {}
    filled: dict[str, Sequence[int]] = {}
    missing, wrong, expected = [], [], expanded(table, ours)
    for line in expected:
        if isinstance(line, Ignored):
            continue
        if line.theirs not in theirs:
            missing.append(line.theirs)
            continue
        lines[line.theirs] = line
        t = torch.empty(tuple(theirs[line.theirs]), device="meta")
        if problem := _misfit(t, line):
            wrong.append(f"{line.theirs!r} is {list(t.shape)}, {problem}")
            continue
        filled |= {name: part.shape for name, part in apply(line, t).items()}
    wrong += [
        f"{name!r} should be {list(ours[name])}, got {list(shape)}"
        for name, shape in filled.items()
        if name in ours and tuple(shape) != tuple(ours[name])
    ]
    ignored = [line for line in table if isinstance(line, Ignored)]
    left = []
    for name in theirs.keys() - lines.keys():
        line = next((i for i in ignored if re.fullmatch(i.theirs, name)), None)
        lines |= {name: line} if line else {}
        left += [] if line else [name]
    absent = [] if missing or wrong else sorted(ours.keys() - filled.keys())
    problems = [*(f"missing {n}" for n in grouped(missing)), *wrong]
    problems += [f"left over {n} {list(theirs[f])}{_like(f, missing)}" for n, f in grouped(left).items()]
    problems += [f"no tensor for our {n}" for n in grouped(absent)]
    if problems:
        raise ConversionError(f"the tensors of {what} do not fit its config: {'; '.join(problems)}{hint}")
    return lines


def stored(lines: Mapping[str, Line], aliases: Mapping[str, str]) -> dict[str, Line]:
    """The lines of the tensors that files hold, where some names are aliases of another's tensor.

    A tensor is read by its own line, or by its alias's where it has no place in ours itself: of a head and an embedding
    that are one, the file holds whichever it likes.

    Raises:
        ConversionError: For one tensor with two places.
    """
    lines = dict(lines)
    for alias, name in aliases.items():
        line = lines.pop(alias)
        if isinstance(lines[name], Ignored):
            lines[name] = line
        elif not isinstance(line, Ignored):
            raise ConversionError(
                f"the files hold {alias!r} and {name!r} as one tensor, which are two in this model; save the "
                "checkpoint with both"
            )
    return lines


def match_names(shapes: Shapes, wanted: Shapes, what: str) -> None:
    """Raise ConversionError unless both sides have the same names and shapes; `what` names where they are held."""
    problems = [f"missing {n}" for n in grouped(wanted.keys() - shapes.keys())]
    problems += [f"left over {n}" for n in grouped(shapes.keys() - wanted.keys())]
    problems += [
        f"{n} is {list(shapes[f])}, not {list(wanted[f])}"
        for n, f in grouped(n for n in wanted if n in shapes and tuple(shapes[n]) != tuple(wanted[n])).items()
    ]
    if problems:
        raise ConversionError(f"{what} does not fit its config: {'; '.join(problems)}")


def apply(line: Rule | Fused, tensor: Tensor) -> dict[str, Tensor]:
    """Our tensors of one of theirs."""
    if isinstance(line, Fused):
        return dict(zip(line.ours, _unfuse(tensor, line), strict=True))
    return {line.ours: tensor.squeeze(line.ones) if line.axes else tensor}


def undo(line: Rule | Fused, ours: Mapping[str, Tensor]) -> Tensor:
    """Their tensor from ours: `apply` read the other way."""
    if isinstance(line, Fused):
        return _fuse([ours[n] for n in line.ours], line)
    tensor = ours[line.ours]
    for axis in line.ones:
        tensor = tensor.unsqueeze(axis)
    return tensor


def names_of(line: Line) -> tuple[str, ...]:
    """Our names of a line, in the order of `apply`; none of an ignored one."""
    if isinstance(line, Ignored):
        return ()
    return line.ours if isinstance(line, Fused) else (line.ours,)


def to_ours(tensors: Mapping[str, Tensor], table: Sequence[Line], ours: Shapes, what: str) -> dict[str, Tensor]:
    """Our tensors from theirs; errors as `match`."""
    lines = match({k: v.shape for k, v in tensors.items()}, table, ours, what)
    out: dict[str, Tensor] = {}
    for name, line in lines.items():
        if not isinstance(line, Ignored):
            out |= apply(line, tensors[name])
    return out


def to_theirs(ours: Mapping[str, Tensor], table: Sequence[Line]) -> dict[str, Tensor]:
    """Their tensors from ours: the same table read the other way. Ignored ones do not come back."""
    lines = [x for x in expanded(table, {k: v.shape for k, v in ours.items()}) if not isinstance(x, Ignored)]
    if unused := ours.keys() - {n for line in lines for n in names_of(line)}:
        raise ConversionError(f"no line of the table exports {sorted(unused)}")
    return {line.theirs: undo(line, ours) for line in lines}


def grouped(names: Iterable[str]) -> dict[str, str]:
    """Names that differ in one layer's number as one text, `layers.{0..27}.norm`; each with its first name."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "#", name, count=1), []).append(name)
    texts = {}
    for pattern, group in groups.items():
        group.sort(key=_first_number)
        numbers = [_first_number(n) for n in group]
        if len(group) == 1:
            texts[repr(group[0])] = group[0]
            continue
        runs = numbers == list(range(numbers[0], numbers[-1] + 1))
        shown = f"{numbers[0]}..{numbers[-1]}" if runs else ",".join(map(str, numbers))
        texts[repr(pattern.replace("#", f"{{{shown}}}"))] = group[0]
    return dict(sorted(texts.items()))


def _first_number(name: str) -> int:
    match = re.search(r"\d+", name)
    return int(match[0]) if match else -1


def _like(name: str, missing: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, missing, n=1, cutoff=0.6)
    return f" (is it {close[0]!r}?)" if close else ""


def expanded(table: Sequence[Line], shapes: Shapes) -> list[Line]:
    """The lines with every `{i}` written out, for as many layers as our model has under that name."""
    lines: list[Line] = []
    for line in table:
        first = next(iter(names_of(line)), "")
        if "{i}" not in first:
            lines.append(line)
            continue
        head, tail = first.split("{i}")
        numbers = {n[len(head) : len(n) - len(tail)] for n in shapes if n.startswith(head) and n.endswith(tail)}
        lines += [_numbered(line, i) for i in sorted(int(n) for n in numbers if n.isdigit())]
    return lines


def _numbered(line: Line, i: int) -> Line:
    theirs = line.theirs.format(i=i)
    if isinstance(line, Rule):
        return replace(line, theirs=theirs, ours=line.ours.format(i=i))
    assert isinstance(line, Fused)
    return replace(line, theirs=theirs, ours=tuple(o.format(i=i) for o in line.ours))


def _misfit(t: Tensor, line: Rule | Fused) -> str:
    """Why a tensor cannot be cut or reshaped as its line says; empty if it can."""
    if isinstance(line, Fused):
        stretches = line.groups * sum(line.parts)
        return "" if t.ndim and len(t) % stretches == 0 else f"whose rows are no multiple of {stretches}"
    axes = line.axes.split()
    fits = len(axes) == t.ndim and all(n == 1 for n, axis in zip(t.shape, axes, strict=True) if axis == "1")
    return "" if fits or not axes else f"not [{', '.join(axes)}]"


def _unfuse(t: Tensor, line: Fused) -> list[Tensor]:
    unit = len(t) // (line.groups * sum(line.parts))
    stretches = t.unflatten(0, (line.groups, sum(line.parts), unit))
    return [p.flatten(0, 2).contiguous() for p in stretches.split(list(line.parts), dim=1)]


def _fuse(parts: list[Tensor], line: Fused) -> Tensor:
    split = [p.unflatten(0, (line.groups, n, -1)) for p, n in zip(parts, line.parts, strict=True)]
    return torch.cat(split, dim=1).flatten(0, 2)
