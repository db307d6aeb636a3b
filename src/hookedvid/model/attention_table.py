"""An attention map as a terminal and a notebook show it: what was read, and its mass by layer."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.values.markup import Markup, shaded, shown, table
from hookedvid.values.tensors import floats

if TYPE_CHECKING:
    from hookedvid.model.attention_maps import AttentionMap

COLUMNS = 40  # shown at most


def told(read: "AttentionMap") -> str:
    """What was read, in a line."""
    layers = ", ".join(map(str, read.layers))
    if read.layers == tuple(range(len(read.layers))) and len(read.layers) > 2:
        layers = f"0 to {len(read.layers) - 1}"
    layout, n_steps = read.layout, len(read.layout.steps)
    in_steps = f" in {_several(n_steps, 'step')}" * (n_steps < layout.n_frames)
    what = {
        "none": "every position",
        "patches": "every patch",
        "frames": f"{_several(layout.n_frames, 'frame')}{in_steps} and the rest",
        "segments": _several(len(read.labels), "segment"),
    }[read.reduce]
    queries = f"the means of {len(read.rows)} kinds of queries" if read.rows else _several(len(read.queries), "query")
    return f"AttentionMap: {queries} on {what}, {_several(len(read.heads), 'head')}, layers {layers}"


def html(read: "AttentionMap") -> Markup:
    """The mass of each layer (0-based), the mean over heads and queries; on frames or roles where columns are many."""
    names, mass = _columns(read)
    rows = [
        (f"layer {layer}", *(shaded(f"{x:.3f}", x) for x in floats(row[:COLUMNS])))
        for layer, row in zip(read.layers, mass, strict=True)
    ]
    more = [f"… and {len(names) - COLUMNS} more columns"] * (len(names) > COLUMNS)
    return shown(told(read), "mean over heads and queries", table(("", *names[:COLUMNS]), rows), *more)


def _columns(read: "AttentionMap") -> tuple[list[str], Float[Tensor, "layer column"]]:
    mass = torch.stack([m.detach().double().cpu().mean(0) for m in read.maps.values()])
    if read.reduce == "patches":  # summed over the queries, by step
        return list(read.layout.step_names), mass.flatten(2).sum(-1) / len(read.queries)
    mass = mass.mean(1)
    if read.reduce != "none":
        return list(read.labels), mass
    roles = read.layout.roles
    of = torch.zeros(mass.shape[1], len(roles), dtype=mass.dtype)
    for s in read.layout.segments:
        of[s.start : s.stop, roles.index(s.role)] = 1
    return list(roles), mass @ of


def _several(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what.removesuffix('y')}ies" if what.endswith("y") else f"{n} {what}s"
