"""Attention of many text states to one video stream: its keys and values are shared, each state adds its own.

A state is the rows of text under one question and one condition. States that look at the same columns of the stream
become rows of one kernel call; what they see of themselves is a second call, and both are merged by their
log-sum-exps. Which states there are, and what each may see, is said in `hookedvid.sweep`.

Axis words: state text key head kv_head d_head.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.nn.structured import merge, with_lse


@dataclass(frozen=True, eq=False)
class View:
    """States that see the same of the stream: which columns (None: all), and which rows see which (None: all)."""

    states: Int[Tensor, " state"]
    columns: Int[Tensor, " column"] | None
    may: Bool[Tensor, "text column"] | None


@dataclass(frozen=True, eq=False)
class SharedStream:
    """What states attend to besides themselves: `k` and `v` of the stream, and each state's view of them.

    own: who sees whom inside a state. explicit: by scores rather than the fused kernel, as `kernel="eager"` does.
    """

    k: Float[Tensor, "1 key kv_head d_head"]
    v: Float[Tensor, "1 key kv_head d_head"]
    views: tuple[View, ...]
    own: Bool[Tensor, "state text text"]
    explicit: bool = False

    def attend(
        self,
        q: Float[Tensor, "state text head d_head"],
        k: Float[Tensor, "state text kv_head d_head"],
        v: Float[Tensor, "state text kv_head d_head"],
    ) -> Float[Tensor, "state text head d_head"]:
        """Attention of every state to its view of the stream and to itself; a row with no key left is zero."""
        n_kv, n_text = k.shape[2], q.shape[1]
        grouped = q.unflatten(2, (n_kv, -1)).permute(0, 2, 3, 1, 4)  # [state, kv_head, head of it, text, d_head]
        k, v = (x.transpose(1, 2).flatten(0, 1)[:, None].expand(-1, grouped.shape[2], -1, -1) for x in (k, v))
        own = self.own[:, None, None].expand(-1, n_kv, -1, -1, -1).flatten(0, 1)
        z, lse = with_lse(grouped.flatten(0, 1), k, v, own, explicit=self.explicit)
        z, lse = z.view_as(grouped), lse.view(grouped.shape[:-1])
        seen_z, seen_lse = torch.zeros_like(z), torch.full_like(lse, float("-inf"))
        for view in self.views:
            if view.columns is not None and not len(view.columns):
                continue
            rows = grouped if len(view.states) == len(q) else grouped[view.states]
            of_kv = rows.permute(1, 2, 0, 3, 4)  # all rows of a kv_head together: its keys are read once
            keys, values = (self._columns(x, view) for x in (self.k, self.v))
            may = None if view.may is None else view.may.repeat(of_kv.shape[1] * of_kv.shape[2], 1)[None, None]
            a, b = with_lse(of_kv.flatten(1, 3)[:, None], keys, values, may, explicit=self.explicit)
            a, b = a.view_as(of_kv).permute(2, 0, 1, 3, 4), b.view(of_kv.shape[:-1]).permute(2, 0, 1, 3)
            seen_z[view.states], seen_lse[view.states] = a, b.to(seen_lse.dtype)
        merged = merge(z, lse, seen_z, seen_lse)
        return merged.permute(0, 3, 1, 2, 4).reshape(len(q), n_text, -1, q.shape[-1])

    def _columns(self, x: Tensor, view: View) -> Float[Tensor, "kv_head 1 column d_head"]:
        chosen = x[0] if view.columns is None else x[0, view.columns]
        return chosen.transpose(0, 1)[:, None]
