"""How little any exact method can do that evaluates blocks whole, each distinct state once."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch

from benchmarks.models import Condition
from hookedvid.model.flops import Costs, block_linear, head_pairs, keys_values, pair
from hookedvid.sweep.run import stream_length
from hookedvid.values.config import DecoderConfig, VideoLLMConfig
from hookedvid.values.effects import effects
from hookedvid.values.layout import TokenLayout

History = tuple[tuple, ...]  # of each layer so far, its knockouts


class Work(NamedTuple):
    """Counts of a study, and operations of the decoder.

    distinct: conditions that differ in what they do. blocks: distinct (layer, history of the video's rows) but the
    last layer's, and `last` of that, which needs keys and values alone. video: these with all their rows; least: only
    rows a history can have changed, without what the intact run has computed. text: what one question's distinct
    states add at the least. naive: every condition's own forward of one question.
    """

    distinct: int
    blocks: int
    last: int
    video: int
    least: int
    text: int
    naive: int

    def bound(self, n_questions: int) -> float:
        """No such method is more times as fast as the forwards than this, in operations."""
        return n_questions * self.naive / (self.least + n_questions * self.text)


def work(cfg: VideoLLMConfig, layout: TokenLayout, conditions: Sequence[Condition]) -> Work:
    """Counted from the conditions, without the sweep's own plan. They are knockouts alone."""
    n_layers, lm, costs, n = cfg.n_layers, cfg.lm, Costs(cfg, layout), stream_length(layout)
    rows_of = cache(layout.positions)
    pairs = cache(lambda cuts, first: head_pairs(layout, cuts, lm.n_heads, torch.arange(first, n), torch.arange(n)))
    every = [_history(c, n_layers, n, rows_of) for c in conditions]
    states = {whole[: i + 1] for whole, _ in every for i in range(n_layers - 1)}
    streams = {stream[: i + 1] for _, stream in every for i in range(n_layers - 1)}
    last = {stream[:-1] for _, stream in every}
    distinct = len({whole for whole, _ in every})
    video, least = (sum(x) for x in zip(*(_evaluation(lm, layout, s, pairs) for s in streams), strict=True))
    # Of text rows the output projection and the MLP, in the last layer of the last row.
    rest = block_linear(lm) - _projections(lm)
    return Work(
        distinct,
        len(streams),
        len(last),
        video + len(last) * n * keys_values(lm),
        least + sum(_n_changed(layout, s) for s in last) * keys_values(lm),
        (len(states) * (layout.n_tokens - n) + distinct) * rest,
        sum(costs.of(c).decoder for c in conditions),
    )


def _history(
    condition: Condition, n_layers: int, n_stream: int, rows_of: Callable[[str], torch.Tensor]
) -> tuple[History, History]:
    """What each layer cuts that is read later, and of that what cuts rows of the video (in the last, nothing is)."""
    whole, of_stream = [], []
    for layer, cuts in enumerate(effects(condition, n_layers).cuts):
        first_read = 0 if layer < n_layers - 1 else n_stream
        assert not any(k.drawn for k in cuts), "random edges have no rows of their own"
        rows = [(k, rows_of(k.dst)) for k in cuts]
        whole.append(tuple(k for k, dst in rows if int(dst[-1]) >= first_read))
        of_stream.append(tuple(k for k, dst in rows if first_read <= int(dst[0]) < n_stream))
    return tuple(whole), tuple(of_stream)


def _n_changed(layout: TokenLayout, history: History) -> int:
    """Rows that can differ from the intact run's; all of them where nothing was cut.

    What stands before the video never does, nor the first frame under cuts between frames.
    """
    if not any(history):
        return stream_length(layout)
    start = int(layout.positions("video")[0])
    if all(k.relation == "other_frame" for cuts in history for k in cuts):
        start = int(layout.positions("video[0]")[-1]) + 1
    return stream_length(layout) - start


def _evaluation(
    lm: DecoderConfig, layout: TokenLayout, history: History, pairs: Callable[[tuple, int], int]
) -> tuple[int, int]:
    """Operations of the last layer of a history: of all rows; and of what cannot have been computed elsewhere."""
    n, changed = stream_length(layout), _n_changed(layout, history)
    whole = n * block_linear(lm) + pairs(history[-1], 0) * pair(lm)
    if not any(history):
        return whole, whole
    if not any(history[:-1]):
        # The first cut of its history: queries, keys and values are the intact run's, and what is left of
        # attention could come from parts of it.
        return whole, changed * (block_linear(lm) - _projections(lm))
    return whole, changed * block_linear(lm) + pairs(history[-1], n - changed) * pair(lm)


def _projections(lm: DecoderConfig) -> int:
    """Queries, keys and values of one row."""
    return 2 * lm.d_model * lm.n_heads * lm.d_head + keys_values(lm)
