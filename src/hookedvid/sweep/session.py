"""One video asked under one condition after another, the next chosen after looking: the intact run is kept.

The intact stream's keys and values serve every condition that changes text rows alone; its residuals let the others
start at the first block they change. What a stated memory does not hold lies in the CPU's, or is computed again.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.model.answers import Answer, score_options
from hookedvid.model.counterfactual import counterfactual
from hookedvid.nn.kv import LayerKV
from hookedvid.nn.model import Model
from hookedvid.sweep.run import Rows, check_sweepable
from hookedvid.sweep.tree import NOTHING, Node, Sweep
from hookedvid.values.clips import parted
from hookedvid.values.effects import Intervention
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import as_interventions


@dataclass(frozen=True)
class Kept:
    """Where what a session keeps lies: blocks (0-based) whose keys and values, and whose entering residual, are held.

    Block 0's residual is always on the device, within no budget: all else is computed from it.
    """

    keys_values: dict[int, str]  # block -> "device" or "cpu"
    residuals: dict[int, str]
    device_bytes: int
    cpu_bytes: int

    def __str__(self) -> str:
        parts: list[str] = []
        for what, places in (("keys and values", self.keys_values), ("residuals", self.residuals)):
            on = [sum(p == place for p in places.values()) for place in ("device", "cpu")]
            parts.append(f"{what} of {on[0]} blocks on the device, of {on[1]} on the CPU")
        return f"{'; '.join(parts)}; {self.device_bytes / 2**20:.0f} + {self.cpu_bytes / 2**20:.0f} MiB"


class Session:
    """Last-position logits of one item under any conditions, each from the first block that it changes.

    The numbers do not depend on it, bit for bit. Conditions that a sweep cannot place
    (`hookedvid.sweep.tree.shareable`) raise. Of a counterfactual clip (`hookedvid.values.clips`), the last one that was
    asked for, block 0's stream alone is kept.

    Args:
        device_memory, cpu_memory: Bytes the session may keep beside the model and block 0's stream (None: as much as it
            takes). Keys and values go first, then residuals, every k-th with the smallest k that fits; what fits
            nowhere is computed again when asked for.

    Raises:
        InputError: Where a sweep does.
    """

    def __init__(self, model: Model, inputs: VideoInputs, device_memory: int | None = None, cpu_memory: int | None = 0):
        self.model, self.inputs = model, inputs.to(model.device)
        if inputs.batch_size != 1:
            raise InputError(f"a session is about one item, and this batch holds {inputs.batch_size}")
        self._plan = Sweep(model.cfg.n_layers, [self.inputs], [()])
        self._other: tuple[tuple[Intervention, ...], Session] | None = None
        self._resid: dict[int, Tensor] = {}
        self._kv: dict[int, LayerKV] = {}
        with model.turn(), torch.no_grad():
            check_sweepable(model)
            self._rows = Rows(model, self._plan, [self.inputs])
            self.kept = self._budget(device_memory, cpu_memory)
            self._texts, resid = [self._rows.texts], self._rows.stream
            self._resid[0] = resid
            for node in _path(self._plan):
                if place := self.kept.residuals.get(node.layer):
                    self._resid[node.layer] = resid.to(self._place(place))
                kv = LayerKV()
                resid = self._rows.stream_step(node.layer, NOTHING, resid, kv)
                if place := self.kept.keys_values.get(node.layer):
                    self._kv[node.layer] = _moved(kv, self._place(place))
                self._texts.append(self._rows.text_step(node.layer, node.texts, self._texts[-1], kv))

    def logits(self, interventions: Any = None, sources: Mapping[str, Any] | None = None) -> Float[Tensor, " d_vocab"]:
        """Of the last position, as `model(inputs, interventions=…, sources=…)` gives them up to rounding."""
        return self._run(interventions, sources)[-1]

    @torch.no_grad()
    def _run(self, interventions: Any, sources: Mapping[str, Any] | None) -> Float[Tensor, "last d_vocab"]:
        """At the end of the prompt, and at every token of an answer that the inputs hold."""
        clips, rest = parted(as_interventions(interventions), self.model.cfg.n_layers)
        if clips:
            return self._showing(clips)._run(rest, sources)
        plan = Sweep(self.model.cfg.n_layers, [self.inputs], [rest])
        with self.model.turn(hooked=bool(plan.conditions[0].writes)):
            check_sweepable(self.model)
            return self._follow(plan, sources)

    def _showing(self, clips: tuple[Intervention, ...]) -> "Session":
        """A session on a counterfactual clip, kept until another clip is asked for."""
        if self._other is None or self._other[0] != clips:
            self._other = None
            inputs = counterfactual(self.model, self.inputs, clips)
            self._other = (clips, Session(self.model, inputs, device_memory=0, cpu_memory=0))
        return self._other[1]

    def _follow(self, plan: Sweep, sources: Mapping[str, Any] | None) -> Float[Tensor, "last d_vocab"]:
        path = list(_path(plan))
        first = min((n.layer for n in path if n.changes or n.texts[0].changes), default=len(path))
        parted = min((n.layer for n in path if n.changes), default=len(path))
        rows, text, resid = self._rows.under(plan, sources), self._texts[first], None
        for node in path[first:]:
            if node.layer < parted and node.layer in self._kv:
                kv, resid = _moved(self._kv[node.layer], rows.device), None
            else:
                kv = LayerKV()
                resid = rows.stream_step(
                    node.layer, node.changes, self._residual(node.layer) if resid is None else resid, kv
                )
            text = rows.text_step(node.layer, node.texts, text, kv)
        ((_, logits),) = rows.logits(path[-1].texts, text)
        return logits

    def answer(self, interventions: Any = None, sources: Mapping[str, Any] | None = None) -> Answer:
        """As `model.answer`."""
        return score_options(self._run(interventions, sources)[0], self.inputs, n_tokens=self.model.cfg.n_tokens)

    def _residual(self, layer: int) -> Float[Tensor, "1 stream d_model"]:
        """The intact stream entering a block, from the nearest one kept."""
        start = max(i for i in self._resid if i <= layer)
        resid = self._resid[start].to(self._rows.device)
        for i in range(start, layer):
            resid = self._rows.stream_step(i, NOTHING, resid, LayerKV())
        return resid

    def _budget(self, device_memory: int | None, cpu_memory: int | None) -> Kept:
        n, lm, stream = self._plan.n_layers, self.model.cfg.lm, self._rows.stream
        of_resid = stream.numel() * stream.element_size()
        of_kv = 2 * stream.shape[1] * lm.n_kv_heads * lm.d_head * stream.element_size()
        free = {p: sys.maxsize if m is None else m for p, m in (("device", device_memory), ("cpu", cpu_memory))}
        used = dict.fromkeys(free, 0)

        def hold(layers: Iterable[int], size: int) -> dict[int, str]:
            places: dict[int, str] = {}
            for layer in layers:
                if place := next((p for p in free if used[p] + size <= free[p]), None):
                    places[layer] = place
                    used[place] += size
            return places

        keys_values = hold(range(n), of_kv)
        room = sum((free[p] - used[p]) // of_resid for p in free)
        step = math.ceil((n - 1) / room) if room else n
        return Kept(keys_values, hold(range(step, n, step), of_resid), used["device"], used["cpu"])

    def _place(self, name: str) -> torch.device:
        return torch.device("cpu") if name == "cpu" else self._rows.device


def _path(plan: Sweep) -> Iterator[Node]:
    """The nodes of a plan of one condition, block by block."""
    nodes = plan.tree
    while nodes:
        (node,) = nodes
        yield node
        nodes = node.children


def _moved(kv: LayerKV, device: torch.device) -> LayerKV:
    moved = LayerKV()
    assert kv.k is not None and kv.v is not None
    moved.append(kv.k.to(device), kv.v.to(device))
    return moved
