"""What activations of a run are worth to a metric: gradient x what would change, filled on the way back."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.errors import InputError, nearest
from hookedvid.model.attribution.backward import check_computed
from hookedvid.model.cache import VideoCache
from hookedvid.model.hook_points import hooks_of
from hookedvid.model.patching import write_of
from hookedvid.model.run import Run
from hookedvid.nn.model import Model
from hookedvid.values.columns import columns_of
from hookedvid.values.effects import Write
from hookedvid.values.hook_names import is_map, part_of
from hookedvid.values.inputs import PAD, VideoInputs

REFERENCES = ("zero", "mean")


class NodeValues:
    """Gradient x (activation - reference) at hook points of blocks, by layout position.

    Args:
        model: The model.
        names: Of hook points, short as in caches.
        layers: Blocks, 0-based.
        reference: `zero`; `mean`, over the positions of a kind of segment; the cache of another run, whose positions
            are paired as a Patch pairs them; or a reference set as of an Ablate.

    Raises:
        InputError: For a name that is no activation of positions, and for another reference.
        InterventionError: For a name that does not exist.
    """

    def __init__(self, model: Model, names: Sequence[str], layers: Sequence[int], reference: Any):
        self.model, self.layers = model, layers
        self.reference: Any = reference
        self.names = tuple(names)
        for name in self.names:
            if is_map(name) or part_of(name) != "blocks":
                raise InputError(f"nodes are what positions hold in the decoder's blocks, such as 'z', not {name!r}")
        if reference is None or (isinstance(reference, str) and reference not in REFERENCES):
            raise InputError(
                f"no reference {reference!r} ({nearest(str(reference), REFERENCES)}, a cache, moments of a set, or the "
                "key of one in sources)"
            )
        self._found: dict[tuple[int, str, int], Tensor] = {}

    def hooks(self, run: Run) -> list[tuple[str, Callable[..., None]]]:
        """What is to be put on the hook points of a run."""
        points = [(hooks_of(self.model, self._write(n, i))[0][0], n, i) for n in self.names for i in self.layers]
        return [(full, partial(self._look, run, name, layer)) for full, name, layer in points]

    def of(self, item: int) -> dict[str, Float[Tensor, "layer *head pos"]]:
        """Those of an item; 0 where no gradient came."""
        found: dict[str, Tensor] = {}
        for name in self.names:
            found[name] = torch.stack([self._found[item, name, i] for i in self.layers])
        return found

    def _look(self, run: Run, name: str, layer: int, act: Tensor, hook: Any) -> None:
        check_computed(act, hook.name)
        for item, layout in enumerate(run.batch.layouts):
            shape, dtype = (*act.shape[2:-1], layout.n_tokens), torch.promote_types(act.dtype, torch.float32)
            self._found.setdefault((item, name, layer), torch.zeros(shape, dtype=dtype))
        cast(Any, act).register_hook(partial(self._add, run, name, layer, act.detach()))

    @torch.no_grad()
    def _add(self, run: Run, name: str, layer: int, act: Tensor, grad: Tensor) -> None:
        for item, layout in enumerate(run.batch.layouts):
            pos = run.plan.rows[layer][item]
            there = (pos != PAD).to(act.device)
            value = self.value(run, (name, layer, item), act[item, there], grad[item, there], pos[pos != PAD])
            whole = value.new_zeros(*value.shape[1:], layout.n_tokens).index_copy_(
                -1, pos[pos != PAD].to(value.device), value.movedim(0, -1)
            )
            self._found[item, name, layer] += whole.cpu()

    def value(
        self, run: Run, place: tuple[str, int, int], act: Tensor, grad: Tensor, pos: Int[Tensor, " row"]
    ) -> Float[Tensor, "row *head"]:
        """Of some rows, in float32 at least."""
        act, grad = wide(act), wide(grad)
        return (grad * (act - self._instead(run.batch, place, act, pos))).sum(-1)

    def _instead(
        self, batch: VideoInputs, place: tuple[str, int, int], act: Float[Tensor, "row *d"], pos: Int[Tensor, " row"]
    ) -> Float[Tensor, "#row *d"]:
        """What the reference has in place of rows."""
        name, layer, item = place
        if isinstance(self.reference, str) and self.reference == "zero":
            return torch.zeros_like(act[:1])
        if isinstance(self.reference, str):
            kind = columns_of(batch.layouts[item], "segments")[1][pos].to(act.device)
            sums = act.new_zeros(int(kind.max()) + 1, *act.shape[1:]).index_add_(0, kind, act)
            n = torch.bincount(kind).clamp(min=1).view(-1, *[1] * (act.ndim - 1))
            return (sums / n)[kind]
        write = write_of(self.model, self._write(name, layer), None, batch, item, among=pos)
        if len(write.positions) < len(pos):
            raise InputError(
                f"the reference has no generated tokens for those of the run, of which node {name!r} is asked; give "
                "both as many, or both the prompt alone"
            )
        return write.value(act[None], torch.searchsorted(write.positions, pos))[0].to(act)

    def _write(self, name: str, layer: int) -> Write:
        by: Literal["mean", "rows"] = "rows" if isinstance(self.reference, VideoCache) else "mean"
        return Write(name, layer, "all", f"node {name!r}", by=by, source=self.reference)


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
