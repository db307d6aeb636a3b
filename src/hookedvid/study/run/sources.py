"""What a study's interventions take from elsewhere, made while it runs: caches of other runs, means of reference sets.

A reference set's numbers are computed once and stored beside the rows, under a key of all that they are made of.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from hookedvid.data.item import Item
from hookedvid.errors import InterventionError
from hookedvid.model.cache import VideoCache
from hookedvid.model.hook_points import hooks_of
from hookedvid.nn.model import Model
from hookedvid.study.definition import Plan
from hookedvid.study.protocols import Condition
from hookedvid.study.records import Folder, Records
from hookedvid.study.rows import Task, canonical, digest
from hookedvid.study.sources import names
from hookedvid.values.effects import effects
from hookedvid.values.hook_names import part_of
from hookedvid.values.inputs import VideoInputs

KEPT = 4  # runs of other items that are kept at a time
Asked = Callable[[Item], VideoInputs]  # an item's inputs, decoded and laid out as the study does


def store_in(folder: Folder) -> Path:
    """Where a study's reference sets are, beside its rows."""
    return Records.of(folder).folder / "sources"


class Need(NamedTuple):
    """A hook point that a condition reads of a source, at the positions of a selector."""

    hook: str
    at: str


class Given:
    """The `sources` of a condition's runs.

    Args:
        plan: The study.
        model: That runs it.
        store: Where reference sets are kept; None keeps them in memory alone.
    """

    def __init__(self, plan: Plan, model: Model, store: Path | None = None):
        self._plan, self._model, self._store = plan, model, store
        self._runs: dict[tuple[bytes, tuple[str, ...]], VideoCache] = {}
        self._sets: dict[str, dict[str, Tensor]] = {}

    def of(self, item: Item, condition: Condition, task: Task, asked: Asked) -> dict[str, Any] | None:
        """By name, for one item's run under a condition; None where it takes nothing.

        An estimate is given the inputs of other runs, not their caches: attribution asks for more than one run of them.

        Args:
            item: Of the study.
            condition: It is asked under.
            task: Of the two; its key was made of what the sources are.
            asked: Gives the inputs of other items.

        Raises:
            InterventionError: For what a source of this form does not give.
        """
        given: dict[str, Any] = {}
        for name in names(condition.interventions):
            source, needs = self._plan.sources[name], self._needs(name, condition)
            items = source.items(item, self._plan.pool)
            if condition.estimate is not None:
                given[name] = asked(items[0])
            elif source.reference:
                given[name] = self._set(name, task.settings["sources"][name], items, needs, asked)
            else:
                given[name] = self._run(items[0], needs, asked)
        return given or None

    def _needs(self, name: str, condition: Condition) -> list[Need]:
        reference = bool(self._plan.sources[name].reference)
        does = effects(condition.interventions, self._model.cfg.n_layers)
        found: list[Need] = []
        for w in (w for w in does.writes if w.source == name):
            if w.by == "vector" or reference != (w.by in ("mean", "noise")):
                what = "a vector" if w.by == "vector" else "moments" if w.by in ("mean", "noise") else "a run"
                raise InterventionError(f"{w.label} takes {what}, which the study's source {name!r} does not give")
            if reference and part_of(w.hook) in ("tower", "projector"):
                raise InterventionError(
                    f"{w.label}: a reference set is of positions of the sequence; name a later hook"
                )
            there = w if w.from_layer is None else replace(w, layer=w.from_layer)
            found += [Need(hook, w.at) for hook, _ in hooks_of(self._model, there)]
        for i in range(self._model.cfg.n_layers):
            for swap in (s for s in does.swaps_of(i) if s.source == name):
                if reference != (swap.by in ("mean", "noise")):
                    what = "moments" if swap.by in ("mean", "noise") else "a run"
                    raise InterventionError(
                        f"{swap.label} takes {what}, which the study's source {name!r} does not give"
                    )
                found.append(Need(f"blocks.{i}.attn.hook_v", swap.src))
        return list(dict.fromkeys(found))

    def _run(self, item: Item, needs: Sequence[Need], asked: Asked) -> VideoCache:
        hooks = tuple(dict.fromkeys(n.hook for n in needs))
        # Paired with items on one video, one question is asked of the part, and with the groups, of each.
        key = canonical([item.id, item.video, item.bound, item.folder_fps, item.subtitles, item.groups]), hooks
        if key not in self._runs:
            while len(self._runs) >= KEPT:
                del self._runs[next(iter(self._runs))]
            self._runs[key] = self._cache(asked(item), hooks)
        return self._runs[key]

    def _cache(self, inputs: VideoInputs, hooks: Iterable[str]) -> VideoCache:
        return self._model.run_with_cache(inputs, names_filter=list(hooks), return_type=None)[1]

    # ---- reference sets ------------------------------------------------------------------------------------

    def _set(
        self, name: str, content: str, items: Sequence[Item], needs: Sequence[Need], asked: Asked
    ) -> Mapping[str, Tensor]:
        if len({n.hook for n in needs}) < len(needs):
            raise InterventionError(
                f"source {name!r} is asked for moments of one hook point at several positions; give each a source"
            )
        fixed = {k: v for k, v in self._plan.settings.items() if k != "reuse"}
        key = digest(canonical([content, sorted(list(n) for n in needs), fixed]))
        if key not in self._sets:
            self._sets[key] = self._stored(key) or self._computed(key, items, needs, asked)
        return self._sets[key]

    def _stored(self, key: str) -> dict[str, Tensor] | None:
        path = None if self._store is None else self._store / f"{key}.safetensors"
        return load_file(path) if path is not None and path.exists() else None

    def _computed(self, key: str, items: Sequence[Item], needs: Sequence[Need], asked: Asked) -> dict[str, Tensor]:
        moments = {n: Moments() for n in needs}
        for item in items:
            cache = self._cache(asked(item), [n.hook for n in needs])
            for n in needs:
                block = int(n.hook.split(".")[1]) if n.hook.startswith("blocks.") else 0
                act, at = cache[n.hook][0], cache.row_of(block, cache.layout.positions(n.at))
                moments[n].add(act[at.to(act.device)])
        found = {n.hook: m.result() for n, m in moments.items()}
        if self._store is not None:
            self._store.mkdir(parents=True, exist_ok=True)
            part = self._store / f"{key}.{os.getpid()}.part"
            save_file(found, part)
            part.replace(self._store / f"{key}.safetensors")
        return found


class Moments:
    """Mean and standard deviation of each channel, in float64, over rows that come in parts."""

    def __init__(self) -> None:
        self.n = 0
        self.mean = self.square = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Count rows [row, …] in (Chan's parallel update)."""
        rows = rows.double().cpu()
        n, mean = len(rows), rows.mean(0)
        square, gap, total = (rows - mean).square().sum(0), mean - self.mean, self.n + n
        self.square = self.square + square + gap.square() * (self.n * n / total)
        self.mean, self.n = self.mean + gap * (n / total), total

    def result(self) -> Tensor:
        """[2, …]: the mean and the standard deviation of the rows."""
        return torch.stack([self.mean, (self.square / self.n).sqrt()])
