"""Who leaves the sequence of a run, and when, where the run itself decides it: by rank, or by a rule for each item."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hookedvid.errors import InterventionError
from hookedvid.nn.attention import Attended, Probe
from hookedvid.values.effects import Effects, Exit
from hookedvid.values.inputs import PAD
from hookedvid.values.layout import TokenLayout
from hookedvid.values.masks import leavers, masked, masks_of
from hookedvid.values.tensors import ints

# Of one item's stream at its prompt's last position [d_model], the logits of what it could answer.
Lens = Callable[[int, Tensor], Tensor]
Pattern = Float[Tensor, " pos"]


@dataclass
class RunRecord:
    """What a forward that is given one turned out to do.

    Attributes:
        rows: Layout positions [batch, row] of the rows that each block held, -1 where padded.
        left: For each exit of the run, in the order of their blocks, and each item: the block (0-based) before which
            it took place, None where it did not.
    """

    rows: list[Int[Tensor, "batch _"]] = field(default_factory=list[Tensor])
    left: list[list[int | None]] = field(default_factory=lambda: list[list[int | None]]())


class Leaving:
    """Decides block by block who stays, from the stream and the attention that it is shown.

    Args:
        effects: Of one run.
        layouts: Of its items.
        start: Its first block.
        lens: What rules that ask for an answer look through.

    Raises:
        InterventionError: Where the run does not show what an exit has to see.
    """

    def __init__(self, effects: Effects, layouts: Sequence[TokenLayout], start: int, lens: Lens):
        exits = effects.exits
        self.layouts, self.cuts, self.lens = layouts, effects.cuts, lens
        self.left: list[list[int | None]] = [[None if e.decided_late else e.layer] * len(layouts) for e in exits]
        self._late = [(n, e) for n, e in enumerate(exits) if e.decided_late]
        for _, exit in self._late:
            _check_seen(exit, effects, start)
        self._candidates = {n: [leavers(layout, e) for layout in layouts] for n, e in self._late}
        self._last: list[Pattern] = []
        self._text: list[Pattern] = []
        self._said: dict[tuple[int, int], list[int]] = {}

    def probe(self, layer: int, pos: Int[Tensor, "batch row"]) -> Probe | None:
        """What looks at a block's attention, where an exit before the next block asks for it."""
        due = [e for n, e in self._late if self._due(n, e, layer + 1)]
        if not any(e.reads_attention for e in due):
            return None
        text = any(e.rank == "text_attention" for e in due)

        @torch.no_grad()
        def look(seen: Attended) -> None:
            q, k, mask = seen.q, seen.k, seen.allowed if isinstance(seen.allowed, Tensor) else None
            self._last, self._text = [], []
            for item, layout in enumerate(self.layouts):
                last = torch.tensor([layout.n_prompt - 1])
                self._last.append(self._attention(item, layer, pos[item], last, q, k, mask))
                if text:
                    of_text = layout.positions("text")
                    of_text = of_text[of_text < layout.n_prompt]
                    self._text.append(self._attention(item, layer, pos[item], of_text, q, k, mask))

        return look

    def _attention(
        self,
        item: int,
        layer: int,
        pos: Int[Tensor, " row"],
        query: Int[Tensor, " query"],
        q: Float[Tensor, "batch row head d_head"],
        k: Float[Tensor, "batch row kv_head d_head"],
        mask: Bool[Tensor, "#batch #head row row"] | Float[Tensor, "#batch #head row row"] | None,
    ) -> Pattern:
        """What some queries pay to each position, mean over queries and heads; the pattern is made again.

        By position and not by row: fixed exits take rows away before it is read.
        """
        layout, n_kv = self.layouts[item], k.shape[2]
        rows = torch.searchsorted(pos.contiguous(), query).to(q.device)
        precise = torch.promote_types(q.dtype, torch.float32)
        of_kv = cast(Tensor, q[item, rows].to(precise).unflatten(1, (n_kv, -1))).permute(1, 2, 0, 3)
        scores = of_kv @ k[item].to(precise).permute(1, 2, 0)[:, None] * q.shape[-1] ** -0.5
        scores = scores.flatten(0, 1)  # [head, query, key]
        if mask is None:
            m = masks_of(layout, self.cuts[layer], range(len(scores)), query, pos).to(q.device)
        else:
            m = mask[item % len(mask)][:, rows]
        scores = masked(scores, m)
        empty = (scores == float("-inf")).all(-1, keepdim=True)
        paid = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0).mean((0, 1)).to("cpu")
        there = pos != PAD
        return paid.new_zeros(layout.n_tokens).index_copy(0, pos[there], paid[there])

    def _due(self, n: int, exit: Exit, layer: int) -> bool:
        """Whether an exit may take place before a block."""
        return exit.layer <= layer and None in self.left[n] if exit.rule else exit.layer == layer

    @torch.no_grad()
    def stays(
        self, layer: int, pos: Int[Tensor, "batch row"], resid: Float[Tensor, "batch row d_model"]
    ) -> list[Int[Tensor, " _"]] | None:
        """Of each item the positions that go on into a block, ascending; None where nobody leaves before it."""
        there = [p[p != PAD] for p in pos]
        moved = False
        for n, exit in self._late:
            for item, layout in enumerate(self.layouts):
                if exit.rule == "answer" and exit.first_layer <= layer:
                    self._listen(n, item, self._stream(item, pos, resid, layout.n_prompt - 1))
                if self.left[n][item] is not None or not self._due(n, exit, layer):
                    continue
                candidates = there[item][self._candidates[n][item][there[item]]]
                if exit.rule and not self._holds(n, exit, item, candidates, pos, resid):
                    continue
                self.left[n][item] = layer
                first = self._first(exit, item, candidates, there[item], pos[item], resid[item])
                gone = candidates[~torch.isin(candidates, first)]
                there[item] = there[item][~torch.isin(there[item], gone)]
                moved = moved or len(gone) > 0
        return there if moved else None

    def _stream(
        self, item: int, pos: Int[Tensor, "batch row"], resid: Float[Tensor, "batch row d_model"], position: int
    ) -> Float[Tensor, " d_model"]:
        row = int(torch.searchsorted(pos[item].contiguous(), torch.tensor(position)))
        return resid[item, row]

    # ---- rules ---------------------------------------------------------------------------------------------

    def _listen(self, n: int, item: int, last: Float[Tensor, " d_model"]) -> None:
        self._said.setdefault((n, item), []).append(int(self.lens(item, last).argmax()))

    def _holds(
        self,
        n: int,
        exit: Exit,
        item: int,
        candidates: Int[Tensor, " candidate"],
        pos: Int[Tensor, "batch row"],
        resid: Float[Tensor, "batch row d_model"],
    ) -> bool:
        if exit.rule == "mass":
            return float(self._last[item][candidates].sum()) < exit.threshold
        if exit.rule == "answer":
            said = self._said[n, item][-int(exit.threshold) :]
            return len(said) == exit.threshold and len(set(said)) == 1
        logits = self.lens(item, self._stream(item, pos, resid, self.layouts[item].n_prompt - 1))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return float(torch.distributions.Categorical(logits=logits).entropy()) < exit.threshold

    # ---- ranks ---------------------------------------------------------------------------------------------

    def _first(
        self,
        exit: Exit,
        item: int,
        candidates: Int[Tensor, " candidate"],
        there: Int[Tensor, " there"],
        pos: Int[Tensor, " row"],
        resid: Float[Tensor, "row d_model"],
    ) -> Int[Tensor, " kept"]:
        """The candidates that stay."""
        count = round(len(candidates) * exit.keep)
        if exit.rank is None or not count:
            return candidates[:0]
        if exit.rank in ("uniform", "random"):
            return candidates[_by_layout(exit, len(candidates), count)]
        if exit.reads_attention:
            score = (self._last if exit.rank == "attention" else self._text)[item][candidates]
        else:
            rows = torch.searchsorted(pos.contiguous(), candidates)
            stream = resid.to(torch.promote_types(resid.dtype, torch.float32))
            if exit.rank == "norm":
                score = stream[rows.to(resid.device)].square().sum(-1).to("cpu")
            else:
                beside = _neighbours(self.layouts[item], exit)[:, candidates]
                score = -_likeness(stream, pos, there, candidates, beside)
        order = torch.sort(score, descending=True, stable=True)[1]
        return candidates[torch.sort(order[:count])[0]]


def both(one: Probe | None, other: Probe | None) -> Probe | None:
    """A probe that shows what it is shown to both."""
    if one is None or other is None:
        return one or other

    def shown(seen: Attended) -> None:
        one(seen)
        other(seen)

    return shown


def _check_seen(exit: Exit, effects: Effects, start: int) -> None:
    if start > exit.first_layer:
        raise InterventionError(
            f"{exit.label}: who leaves is decided by what blocks from {exit.first_layer} (0-based) on show, and this "
            f"run starts at block {start}; start it there or before"
        )
    last = len(effects.cuts) if exit.rule else exit.layer
    for w in effects.writes if exit.reads_attention else ():
        if w.hook.rsplit("hook_", 1)[-1] in ("attn_scores", "pattern", "mask") and w.layer in range(
            exit.first_layer, last
        ):
            raise InterventionError(
                f"{exit.label} reads the attention of blocks that {w.label} writes to, and would not see what is "
                "written; give one of the two"
            )


def without(layout: TokenLayout, exit: Exit, there: Int[Tensor, " there"]) -> Int[Tensor, " kept"]:
    """Positions that an exit leaves of those that are there; where the run decides which, as many taken evenly."""
    candidates = there[leavers(layout, exit)[there]]
    count = round(len(candidates) * exit.keep)
    first = candidates[_by_layout(exit, len(candidates), count)]
    return there[~torch.isin(there, candidates) | torch.isin(there, first)]


def _by_layout(exit: Exit, n: int, count: int) -> Int[Tensor, " kept"]:
    """Which of `n` candidates stay by a rank that looks at nothing, ascending."""
    if exit.rank == "random":
        return torch.sort(torch.randperm(n, generator=torch.Generator().manual_seed(exit.seed))[:count])[0]
    return ((torch.arange(count) + 0.5) * n / max(1, count)).long()


def _likeness(
    stream: Float[Tensor, "row d_model"],
    pos: Int[Tensor, " row"],
    there: Int[Tensor, " there"],
    candidates: Int[Tensor, " candidate"],
    beside: Int[Tensor, "neighbour candidate"],
) -> Float[Tensor, " candidate"]:
    """Mean cosine of each candidate's stream with those of its neighbours that are there, -1 without any."""
    unit = torch.nn.functional.normalize(stream, dim=-1)
    known = (beside >= 0) & torch.isin(beside, there)
    rows = torch.searchsorted(pos.contiguous(), beside.clamp(min=0)).clamp(max=len(pos) - 1).to(unit.device)
    mine = unit[torch.searchsorted(pos.contiguous(), candidates).to(unit.device)]
    likeness = (unit[rows] * mine).sum(-1).cpu().masked_fill(~known, 0.0).sum(0)
    n = known.sum(0)
    return (likeness / n.clamp(min=1)).masked_fill(n == 0, -1.0)


def _neighbours(layout: TokenLayout, exit: Exit) -> Int[Tensor, "neighbour pos"]:
    """Positions beside each, -1 where there is none: in time, or left, right, above and below."""
    columns = 0 if layout.grid is None or layout.merged else layout.grid.columns
    if exit.rank == "space" and not columns:
        raise InterventionError(
            f"{exit.label}: the tokens of this video are merged and have no neighbours in space; rank by another way"
        )
    at: dict[tuple[int, str, int], int] = {}  # step, role, and cell or, of what is in none, number among its like
    for step, frames in enumerate(layout.steps):
        for role in ("video", "cls", "newline"):
            own = [s for s in layout.segments if s.role == role and s.frame == frames.start]
            positions = [p for s in own for p in range(s.start, s.stop)]
            cells = ints(layout.cells_of(step)[1]) if columns and role == "video" else range(len(positions))
            at |= {(step, role, cell): p for cell, p in zip(cells, positions, strict=True)}
    beside = torch.full((1 if exit.rank == "time" else 4, layout.n_tokens), -1)
    for (step, role, cell), p in at.items():
        if exit.rank == "time":
            beside[0, p] = at.get((step - 1, role, cell), -1)
        elif role == "video":
            column = cell % columns
            left, right = cell - 1 if column else -1, cell + 1 if column < columns - 1 else -1
            near = (left, right, cell - columns, cell + columns)
            beside[:, p] = torch.tensor([at.get((step, role, c), -1) for c in near])
    return beside
