"""What one run of the prompt shows, read layer by layer: attention of chosen queries, sinks, words of a logit lens.

A layer's rows are summed up as they come, so that no pattern of all queries is ever there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from hookedvid.model.attention_maps import read_attention
from hookedvid.model.lens import likeliest
from hookedvid.model.sinks import FACTOR, norms_of
from hookedvid.nn.model import Model
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.layout import TokenLayout
from hookedvid.values.selectors import ROLES_OF
from hookedvid.viewer.queries import Query

ASKED = "_asked"  # a group of these inputs


@dataclass(frozen=True, eq=False)
class QueryMaps:
    """Where one query looks. Row h of a layer is head h where they are apart; the last row is their mean.

    Attributes:
        video: Mass on each video position in 256 steps: scale x (step / 255)², sinks left out of the scale.
        scale: Largest mass on a video position that is no sink, of each map.
        sinks: Mass on the sinks of each layer, layers after each other.
        text: Mass on each other position: (step / 255)².
        columns: Mass on each step of the video, and on each kind of text.
    """

    video: UInt8[np.ndarray, "layer row video_pos"]
    scale: Float[np.ndarray, "layer row"]
    sinks: tuple[Float[np.ndarray, "row _sink"], ...]
    text: UInt8[np.ndarray, "layer row text_pos"]
    columns: Float[np.ndarray, "layer row column"]

    @property
    def mean(self) -> "QueryMaps":
        """The mean of the heads alone."""
        last = np.s_[:, -1:]
        sinks = tuple(s[-1:] for s in self.sinks)
        return QueryMaps(self.video[last], self.scale[last], sinks, self.text[last], self.columns[last])

    def arrays(self) -> dict[str, np.ndarray]:
        """What a page keeps, by name; floats in float32."""
        exact = {"scale": self.scale, "sinks": np.concatenate([s.flatten() for s in self.sinks])}
        exact["columns"] = self.columns
        return {"video": self.video, "text": self.text, **{n: a.astype(np.float32) for n, a in exact.items()}}


@dataclass(frozen=True, eq=False)
class Maps:
    """What `read_maps` read.

    Attributes:
        queries: By name.
        labels: Of the columns.
        sinks: Of each layer, which of the video's positions are sinks where the stream enters it.
        words: The lens's tokens of each layer's output, the likeliest first; `probs` in 256 steps: (step / 255)².
        logits: Of the last position.
    """

    queries: dict[str, QueryMaps]
    labels: tuple[str, ...]
    sinks: tuple[Int[np.ndarray, " _sink"], ...]
    words: Int[np.ndarray, "layer pos word"]
    probs: UInt8[np.ndarray, "layer pos word"]
    logits: Float[Tensor, " d_vocab"]


def columns_of(layout: TokenLayout) -> tuple[tuple[str, ...], Int[Tensor, " pos"]]:
    """Names of the steps of the video and of the kinds of text, and which of them each position counts to."""
    steps = {step.start: name for step, name in zip(layout.steps, layout.step_names, strict=True)}
    names = [steps[s.frame] if s.frame is not None and s.role in ROLES_OF["video"] else s.role for s in layout.segments]
    labels = tuple(dict.fromkeys([*layout.step_names, *names]))
    numbers = [torch.full((len(s),), labels.index(n)) for s, n in zip(layout.segments, names, strict=True)]
    return labels, torch.cat(numbers)


def number_maps(
    values: Float[Tensor, "layer video_pos"], layout: TokenLayout, sinks: Sequence[Int[np.ndarray, " _sink"]]
) -> QueryMaps:
    """Numbers of each video position in each layer as a query's maps; text has none, a step the sum of its own."""
    values, is_video = values.double(), layout.mask("video")
    labels, column = columns_of(layout)
    ordinary = torch.ones(values.shape, dtype=torch.bool)
    for of_layer, found in zip(ordinary, sinks, strict=True):
        of_layer[torch.from_numpy(found)] = False
    scale = values.masked_fill(~ordinary, 0.0).amax(-1)
    columns = values @ torch.nn.functional.one_hot(column, len(labels))[is_video].double()
    return QueryMaps(
        coded(values, scale)[:, None],
        scale[:, None].numpy(),
        tuple(of_layer[torch.from_numpy(found)][None].numpy() for of_layer, found in zip(values, sinks, strict=True)),
        np.zeros((len(values), 1, int((~is_video).sum())), dtype=np.uint8),
        columns[:, None].numpy(),
    )


@torch.no_grad()
def read_maps(model: Model, inputs: VideoInputs, queries: Sequence[Query], n_words: int) -> Maps:
    """Attention of the queries, sinks, and so many words of the logit lens at every position, of one run."""
    reader = _Reader(model, inputs.layout, queries, n_words)
    hooks: list[Any] = []
    for i in range(model.cfg.n_layers):
        hooks.append((f"blocks.{i}.hook_resid_pre", reader.enters))
        hooks.append((f"blocks.{i}.hook_resid_post", reader.leaves))
    named = inputs.with_group(ASKED, positions=sorted({p for q in queries for p in q.positions}))
    with model.hooks(fwd_hooks=hooks):
        read = read_attention(model, named, queries=ASKED, see=reader.see)
    return reader.maps(read.logits)


class _Reader:
    """Takes what a run shows, block after block: stream that enters, rows of the pattern, stream that leaves."""

    def __init__(self, model: Model, layout: TokenLayout, queries: Sequence[Query], n_words: int):
        self.model, self.queries, self.n_words = model, queries, n_words
        is_video = layout.mask("video")
        self.video, self.text = is_video.nonzero()[:, 0], (~is_video).nonzero()[:, 0]
        self.labels, column = columns_of(layout)
        self.column = torch.nn.functional.one_hot(column, len(self.labels))
        self.n_rows = len({p for q in queries for p in q.positions})
        self.weights = torch.zeros(len(queries), layout.n_tokens, dtype=torch.float64)
        for weight, q in zip(self.weights, queries, strict=True):
            weight[list(q.positions)] = 1 / len(q.positions)
        self.apart = torch.tensor([q.apart for q in queries])
        self.seen, self.sums = 0, list[Tensor]()
        self.found: list[list[tuple[Any, ...]]] = [[] for _ in queries]
        self.sinks: list[Tensor] = []
        self.lens: list[tuple[Tensor, Tensor]] = []

    def enters(self, resid: Tensor, hook: Any) -> None:
        norms = norms_of(resid[0, self.video.to(resid.device)])
        self.sinks.append((norms > FACTOR * norms.median()).nonzero()[:, 0])

    def see(self, layer: int, rows: Int[Tensor, " query"], pattern: Float[Tensor, "head query pos"]) -> None:
        """Add rows of a layer to what their queries have; after its last rows, keep the layer's maps."""
        pattern = pattern.to(torch.promote_types(pattern.dtype, torch.float32))  # means of them are not rounded again
        weights = self.weights[:, rows].to(pattern)
        parts = [weights[self.apart.to(weights.device)] @ pattern, weights @ pattern.mean(0)]
        self.sums = parts if not self.seen else [a + b for a, b in zip(self.sums, parts, strict=True)]
        self.seen += len(rows)
        if self.seen == self.n_rows:
            heads, mean = (x.cpu() for x in self.sums)
            order = iter(heads.unbind(1))
            for found, q, of_mean in zip(self.found, self.queries, mean, strict=True):
                rows_of = torch.cat([next(order), of_mean[None]]) if q.apart else of_mean[None]
                found.append(self._coded(rows_of, self.sinks[layer]))
            self.seen, self.sums = 0, []

    def _coded(self, mass: Float[Tensor, "row pos"], sinks: Int[Tensor, " sink"]) -> tuple[Any, ...]:
        video, text = mass[:, self.video], mass[:, self.text]
        ordinary: Bool[Tensor, " video_pos"] = torch.ones(len(self.video), dtype=torch.bool)
        ordinary[sinks] = False
        scale = video[:, ordinary].amax(-1)
        columns = mass.double() @ self.column.double()
        exact = [x.double().numpy() for x in (scale, video[:, sinks], columns)]
        return coded(video, scale), exact[0], exact[1], coded(text), exact[2]

    def leaves(self, resid: Tensor, hook: Any) -> None:
        """The likeliest tokens if the stream were the last block's."""
        if not self.n_words:
            return
        tokens, probs, _ = likeliest(self.model, resid[0], self.n_words)
        self.lens.append((tokens, probs))

    def maps(self, logits: Float[Tensor, " d_vocab"]) -> Maps:
        queries: dict[str, QueryMaps] = {}
        for q, layers in zip(self.queries, self.found, strict=True):
            video, scale, sinks, text, columns = zip(*layers, strict=True)
            arrays = [np.stack(x) for x in (video, scale, text, columns)]
            queries[q.name] = QueryMaps(arrays[0], arrays[1], tuple(sinks), arrays[2], arrays[3])
        n_pos = len(self.video) + len(self.text)
        none = np.zeros((len(self.found[0]), n_pos, 0), dtype=np.int64)
        words = np.stack([i.numpy() for i, _ in self.lens]) if self.lens else none
        probs = np.stack([coded(p) for _, p in self.lens]) if self.lens else none.astype(np.uint8)
        return Maps(queries, self.labels, tuple(s.numpy() for s in self.sinks), words, probs, logits)


def coded(values: Float[Tensor, "*rows n"], scale: Float[Tensor, "*rows"] | None = None) -> np.ndarray:
    """Numbers of 0 and more in 256 steps: scale x (step / 255)², which tells small ones apart; larger ones are 255."""
    share = values if scale is None else values / scale[..., None].clamp(min=1e-30)
    return (255 * share.double().clamp(0, 1).sqrt()).round().to(torch.uint8).numpy()
