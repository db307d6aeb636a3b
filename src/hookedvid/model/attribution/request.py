"""What an attribution is asked, checked: which run, which metric of it, what is to be told."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from hookedvid.model.attribution.backward import Metric, numbers
from hookedvid.model.attribution.node_values import REFERENCES
from hookedvid.model.attribution.result import Attribution, Softmax
from hookedvid.model.run import Sources
from hookedvid.nn.model import Model
from hookedvid.values.edge_sets import WORDS, EdgeSets
from hookedvid.values.edges import Knockout
from hookedvid.values.effects import Intervention
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.masks import warn_of_idle
from hookedvid.values.tensors import floats


class Request(NamedTuple):
    """An attribution's arguments.

    Attributes:
        batch: Of the clips that are shown.
        edges, readers: As `EdgeSets.of` takes them; no edges: None.
        reference: As it was given: what nodes are held against, or its key among the sources.
    """

    model: Model
    batch: VideoInputs
    metric: Metric
    layers: tuple[int, ...]
    edges: Any
    readers: str | Sequence[str] | None
    nodes: tuple[str, ...]
    reference: Any
    interventions: tuple[Intervention, ...]
    sources: Sources
    logits_to_keep: int | None
    softmax: Softmax

    @property
    def sets(self) -> list[EdgeSets]:
        """The sets of edges of each item."""
        layouts, edges, readers = self.batch.layouts, self.edges, self.readers
        found = [EdgeSets.of(x, edges, readers) for x in layouts]
        asked: Sequence[Knockout] = found[0].knockouts
        if isinstance(edges, str) and edges in WORDS:  # which have empty sets of their own: what comes later
            asked = [Knockout("all", r) for r in ((readers,) if isinstance(readers, str) else readers or ())]
        warn_of_idle([k.cut for k in asked], layouts, grows=False)
        return found

    @property
    def other(self) -> Any:
        """What nodes are held against."""
        if self.name in (None, *REFERENCES) or not isinstance(self.sources, Mapping):
            return self.reference
        return self.sources.get(self.reference, self.reference)

    @property
    def name(self) -> str | None:
        """The word or key of what nodes are held against."""
        return self.reference if isinstance(self.reference, str) else None

    @torch.no_grad()
    def value(self, input: Any, more: Sequence[Intervention] = (), **start: Any) -> list[float]:
        """The metric of each item of a run, under more interventions."""
        how = {"interventions": (*self.interventions, *more), "sources": self.sources, **start}
        logits = self.model(input, logits_to_keep=self.logits_to_keep, **how)
        return floats(numbers(self.metric(logits), self.batch.batch_size))

    def result(self, item: int, value: float, **found: Any) -> Attribution:
        """What was found of an item."""
        return Attribution(value, self.batch.layouts[item], self.layers, self.model.cfg.n_layers, **found)
