"""The hook points that a write's name means in a model."""

from collections.abc import Sequence

from hookedvid.errors import InterventionError, nearest
from hookedvid.nn.model import Model
from hookedvid.values.effects import Write
from hookedvid.values.hook_names import in_blocks, part_of


def hooks_of(model: Model, write: Write) -> list[tuple[str, int | None]]:
    """The full names of the hook points that are written, each with its block, None outside of blocks.

    Raises:
        InterventionError: With the nearest ones.
    """
    part = part_of(write.hook)
    if part in ("tower", "projector") and model.cfg.projector is None:
        raise InterventionError(f"{write.label}: hook {write.hook!r} does not exist: this model reads no video")
    root = {"blocks": "", "embed": "", "tower": "vision.", "projector": "projector."}[part]
    short = write.hook.removeprefix(root)
    if not in_blocks(write.hook):
        there = [n for n in model.hook_dict if n.startswith(root) and "blocks." not in n]
        return [(_point(write, root, short, there), None)]
    n = model.cfg.n_layers if part == "blocks" or model.cfg.vision is None else model.cfg.vision.n_layers
    if write.layer is not None and not 0 <= write.layer < n:
        raise InterventionError(f"{write.label}: this model's blocks are numbered 0 to {n - 1}")
    names: list[tuple[str, int | None]] = []
    for i in write.tower.layers(n) if write.layer is None else (write.layer,):
        prefix = f"{root}blocks.{i}."
        there = [x for x in model.hook_dict if x.startswith(prefix)]
        names.append((_point(write, prefix, short, there, in_block=True), i))
    return names


def _point(write: Write, prefix: str, short: str, there: Sequence[str], in_block: bool = False) -> str:
    """The one of some hook points that a name means; in a block its last part is enough."""
    inner, dot, last = short.rpartition(".")
    points = [n for n in there if n in (f"{prefix}{short}", f"{prefix}{inner}{dot}hook_{last}")]
    points = points or [n for n in there if in_block and n.endswith(f".hook_{short}")]
    if len(points) != 1:
        shorts = sorted({n.split(".hook_")[-1] for n in there})
        what = f"is several: {points}" if points else f"does not exist ({nearest(short, shorts)})"
        raise InterventionError(f"{write.label}: hook {write.hook!r} {what}")
    return points[0]
