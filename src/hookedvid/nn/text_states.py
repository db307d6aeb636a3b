"""Attention of many text states to one video stream: its keys and values are shared, each state adds its own.

A state is the rows of text under one question and one condition. States lie one after the other in one item, behind
the stream's rows or without them. States that look at the same columns of the stream become rows of one kernel call;
what they see of themselves is a second call, and both are merged by their log-sum-exps. Heads that differ from most of
their state look once more, in calls of their own. Which states there are, and what each may see, is said in
`hookedvid.sweep.run`.

Axis words: state text key head kv_head d_head.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.nn.flows import Flow, with_flows
from hookedvid.nn.head_groups import Calls
from hookedvid.nn.structured import merge, with_lse


@dataclass(frozen=True, eq=False)
class View:
    """States that see the same of the stream.

    Attributes:
        states: Which. Where `heads` is given, the i-th number with the i-th head.
        columns: That any row sees; None for all.
        mask: Which rows see which columns, or M there; None for all.
        heads: Places of heads behind the kv_head; None for all heads of all kv_heads.
        kv_head: Whose heads they are.
    """

    states: Int[Tensor, " state"]
    columns: Int[Tensor, " column"] | None
    mask: Bool[Tensor, "text column"] | Float[Tensor, "text column"] | None
    heads: Int[Tensor, " state"] | None = None
    kv_head: int = 0


@dataclass(frozen=True, eq=False)
class States:
    """Which view of the stream each state has, and whom of itself each of its last rows sees (`own`, booleans or M).

    Attributes:
        views: Those of heads behind those of whole states, over which they go.
        explicit: By scores rather than the fused kernel, as `kernel="eager"` does.
        flows: Other values along some edges. Their items are states, their keys the stream's and then the state's own.
    """

    views: tuple[View, ...]
    own: Bool[Tensor, "state #head row text"] | Float[Tensor, "state #head row text"]
    explicit: bool = False
    flows: tuple[Flow, ...] = ()

    def attend(
        self,
        q: Float[Tensor, "item rows head d_head"],
        k: Float[Tensor, "item keys kv_head d_head"],
        v: Float[Tensor, "item keys kv_head d_head"],
        stream_k: Float[Tensor, "1 key kv_head d_head"],
        stream_v: Float[Tensor, "1 key kv_head d_head"],
    ) -> Float[Tensor, "item rows head d_head"]:
        """Attention of every state to its view of the stream and to itself; a row with no key left is zero.

        An item is a state or, one after the other, all. Of a state q may hold its last rows alone.
        """
        n_items = len(q)
        q, k, v = (x.reshape(len(self.own), -1, *x.shape[2:]) for x in (q, k, v))
        own_k, own_v = k, v
        n_kv = k.shape[2]
        grouped = q.unflatten(2, (n_kv, -1)).permute(0, 2, 3, 1, 4)  # [state, kv_head, head of it, text, d_head]
        k, v = (x.transpose(1, 2).flatten(0, 1)[:, None].expand(-1, grouped.shape[2], -1, -1) for x in (k, v))
        own = self.own[:, None] if self.own.shape[1] == 1 else self.own.unflatten(1, (n_kv, -1))
        own = own.expand(-1, n_kv, -1, -1, -1).flatten(0, 1)
        z, lse = with_lse(grouped.flatten(0, 1), k, v, own, explicit=self.explicit)
        z, lse = z.view_as(grouped), lse.view(grouped.shape[:-1])
        seen_z, seen_lse = torch.zeros_like(z), torch.full_like(lse, float("-inf"))
        for view in self.views:
            at = view.states if view.heads is None else (view.states, view.kv_head, view.heads)
            if view.columns is None or len(view.columns):
                rows = grouped if view.heads is None and len(view.states) == len(q) else grouped[at]
                seen_z[at], own_lse = self._seen(view, rows, stream_k, stream_v)
                seen_lse[at] = own_lse.to(seen_lse.dtype)
            elif view.heads is not None:
                seen_z[at], seen_lse[at] = 0.0, float("-inf")
        merged = merge(z, lse, seen_z, seen_lse).permute(0, 3, 1, 2, 4).flatten(2, 3)

        def keys_values(state: int) -> tuple[Tensor, Tensor]:
            return torch.cat([stream_k[0], own_k[state]]), torch.cat([stream_v[0], own_v[state]])

        return with_flows(self.flows, merged, q, keys_values).reshape(n_items, -1, *q.shape[2:])

    def _seen(self, view: View, rows: Tensor, stream_k: Tensor, stream_v: Tensor) -> tuple[Tensor, Tensor]:
        """Attention of a view's states to the stream, and its log-sum-exps, in the order of their rows.

        Rows are [state, kv_head, head, text, d_head], of a view of heads [state, text, d_head].
        """
        # All rows of a kv_head together: its keys are read once.
        of_kv = rows.permute(1, 2, 0, 3, 4) if view.heads is None else rows[None, None]
        keys, values = (_columns(x, view) for x in (stream_k, stream_v))
        mask = None if view.mask is None else view.mask.repeat(of_kv.shape[1] * of_kv.shape[2], 1)[None, None]
        z, lse = with_lse(of_kv.flatten(1, 3)[:, None], keys, values, mask, explicit=self.explicit)
        z, lse = z.view_as(of_kv), lse.view(of_kv.shape[:-1])
        return (z.permute(2, 0, 1, 3, 4), lse.permute(2, 0, 1, 3)) if view.heads is None else (z[0, 0], lse[0, 0])


@dataclass(frozen=True, eq=False)
class Joined:
    """What rows of one item may see of which the last are `states`.

    Attributes:
        held: Keys and values of the stream where only states are among the rows; else `n_stream` rows stand before them
            and, up to row `n_first`, others that go on from these. The rows up to `n_first` see of each other what
            `first` says (None: what is not after them).
    """

    states: States
    n_stream: int = 0
    n_first: int = 0
    first: Bool[Tensor, "1 #head first first"] | Float[Tensor, "1 #head first first"] | Calls | None = None
    held: tuple[Float[Tensor, "1 key kv_head d_head"], Float[Tensor, "1 key kv_head d_head"]] | None = None


def _columns(x: Tensor, view: View) -> Float[Tensor, "kv_head 1 column d_head"]:
    heads = slice(None) if view.heads is None else slice(view.kv_head, view.kv_head + 1)
    chosen = x[0, :, heads] if view.columns is None else x[0, view.columns, heads]
    return chosen.transpose(0, 1)[:, None]
