"""What a run costs in floating-point operations, counted from config, layout and interventions alone.

A multiply-add is 2 operations. Counted are the matrix products: q, k, v, o and MLP of every row, the unembedding of
the positions kept, QK^T and AV of every allowed (query, key) pair, and those of tower and projector. Left out are
norms, activations, softmax, rotary angles, pooling and the similarities of token merging, together well below 1 % at
the sizes of published models. Pairs are those that interventions allow, as the paper counts them: a kernel with a
dense mask computes more, one for each structure (`nn.structured`) nearly these. Edges that are left a weight count. Of
a Drop the number of rows is exact; which they are matters to cuts alone, and where the run decides it they are taken
evenly.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from hookedvid.errors import InterventionError
from hookedvid.model.leaving import without
from hookedvid.nn.grids import windows
from hookedvid.nn.structured import n_edges
from hookedvid.values.clips import parted
from hookedvid.values.config import DecoderConfig, ProjectorConfig, VideoLLMConfig, VisionConfig
from hookedvid.values.effects import Cut, Effects, Exit, FrameChange, Intervention, by_heads, check_heads, effects
from hookedvid.values.layout import TokenLayout
from hookedvid.values.masks import allowed

Left = Sequence[int | None] | None


class Shares(NamedTuple):
    """What is left of the intact model's operations, 0 to 1; `attention` is Tab. 1's column, `edge_share`."""

    linear: float
    attention: float
    decoder: float
    total: float


@dataclass(frozen=True)
class Flops:
    """Operations of one run.

    Attributes:
        linear, attention: The decoder's.
        tower, projector: Of all frames, 0 without a video.
    """

    linear: int = 0
    attention: int = 0
    tower: int = 0
    projector: int = 0

    @classmethod
    def of(cls, cfg: VideoLLMConfig, layout: TokenLayout, interventions: Sequence[Intervention] = ()) -> "Flops":
        """Of one forward that keeps the last position's logits."""
        return Costs(cfg, layout).of(interventions)

    @property
    def decoder(self) -> int:
        """Linear and attention."""
        return self.linear + self.attention

    @property
    def total(self) -> int:
        """Everything from the pixels on."""
        return self.decoder + self.tower + self.projector

    def shares(self, intact: "Flops") -> Shares:
        """Part by part, against the intact model's."""
        parts = ((getattr(self, p), getattr(intact, p)) for p in Shares._fields)
        return Shares(*(mine / theirs for mine, theirs in parts))

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.linear + other.linear,
            self.attention + other.attention,
            self.tower + other.tower,
            self.projector + other.projector,
        )


class Costs:
    """Operations of runs on one layout under any interventions; pairs are counted once for each distinct set."""

    def __init__(self, cfg: VideoLLMConfig, layout: TokenLayout):
        self.cfg, self.layout = cfg, layout
        self._pairs: _Memo = {}

    def of(
        self,
        interventions: Sequence[Intervention] = (),
        start_at_layer: int = 0,
        logits_to_keep: int | None = None,
        left: Left = None,
    ) -> Flops:
        """Of a forward with these arguments; one that starts at a later block runs no tower.

        Unless told, logits are those of the prompt's last position and of an answer after it.

        Args:
            left: Of each exit the block before which the run let it take place, None where it did not, as
                `RunRecord.left` tells of one item. Empty: no rule ever held, which costs most.

        Raises:
            InterventionError: For an exit of which the run decides when it takes place, without `left`; and for a clip
                that may have other tokens than this layout (`moves_tokens`).
        """
        lm, layout = self.cfg.lm, self.layout
        joint = effects(interventions, lm.n_layers)
        if moves_tokens(self.cfg, joint.clips):
            raise InterventionError(
                f"{parted(interventions, lm.n_layers)[0][0].label()}: its pictures decide which tokens there are; give "
                "the layout of model.counterfactual(inputs, clips), and what else is done"
            )
        n_logits = 1 + layout.n_tokens - layout.n_prompt if logits_to_keep is None else logits_to_keep
        joint = _decided(joint, left)
        blocks = _blocks(self.layout, joint, lm.n_heads, self._pairs)[start_at_layer:]
        linear = block_linear(lm) * sum(rows for rows, _ in blocks) + unembedding(lm) * n_logits
        attention = pair(lm) * sum(pairs for _, pairs in blocks)
        return Flops(linear, attention) + (Flops() if start_at_layer else video(self.cfg, self.layout))

    def shares(self, interventions: Sequence[Intervention], left: Left = None) -> Shares:
        """What interventions leave of the intact forward; `left` as in `of`."""
        return self.of(interventions, left=left).shares(self.of())


def moves_tokens(cfg: VideoLLMConfig, clips: Sequence[FrameChange]) -> bool:
    """Whether changes of a clip may give it other tokens: where what repeats is dropped, or another shape is kept."""
    if not clips or (vision := cfg.vision) is None:
        return False
    return vision.drop_below is not None or (vision.resize == "fit" and any(c.files for c in clips))


def edge_share(
    layout: TokenLayout, interventions: Sequence[Intervention], n_layers: int, n_heads: int | None = None
) -> float:
    """Allowed (query, key) pairs summed over layers, as a share of the intact model's: Tab. 1's FLOPs column.

    Counts QK^T and AV pairs under causality. Patches leave attention whole and count nothing.

    Args:
        layout: Of the input; of a changed clip, that of `model.counterfactual`.
        interventions: What is done to it.
        n_layers: Of the model.
        n_heads: Of a block, where interventions name heads.

    Raises:
        InterventionError: For heads named without how many there are.
    """
    joint = _decided(effects(interventions, n_layers))
    named = [cut for cut in joint.every_cut if cut.heads is not None]
    if named and n_heads is None:
        raise InterventionError(f"{named[0].label}: its share depends on how many heads there are; give n_heads")
    n, heads = layout.n_tokens, n_heads or 1
    pairs = sum(pairs for _, pairs in _blocks(layout, joint, heads, {}))
    return pairs / (heads * n_layers * n * (n + 1) // 2)


def n_pairs(
    layout: TokenLayout,
    cuts: Sequence[Cut] = (),
    query: Int[Tensor, " query"] | None = None,
    key: Int[Tensor, " key"] | None = None,
) -> int:
    """Allowed (query, key) pairs under causality and cuts of all heads, of these positions (default: all).

    Counted without a query x key mask, but for random edges among part of the positions or with other cuts.
    """
    cuts = [cut for cut in cuts if cut.removes]
    edges = n_edges(layout, cuts, query, key)
    if edges is not None:
        return edges
    if len(cuts) == 1 and query is None and key is None and cuts[0].drawn:
        # As many as the knockout they are like cuts in the prompt, where there are so many to draw from.
        n, prompt = layout.n_prompt, torch.arange(layout.n_prompt)
        cut = n * (n + 1) // 2 - n_pairs(layout, (replace(cuts[0], seed=None),), prompt, prompt)
        if cut <= n * (n - 1) // 2:
            return layout.n_tokens * (layout.n_tokens + 1) // 2 - cut
    return int(allowed(layout, cuts, query, key).sum())


def head_pairs(
    layout: TokenLayout,
    cuts: Sequence[Cut],
    n_heads: int,
    query: Int[Tensor, " query"] | None = None,
    key: Int[Tensor, " key"] | None = None,
) -> int:
    """`n_pairs` of every head, summed, under cuts that may name some of them."""
    groups = by_heads(cuts, range(n_heads))
    return sum(len(heads) * n_pairs(layout, mine, query, key) for heads, mine in groups)


_Memo = dict[tuple[tuple[Exit, ...], tuple[Cut, ...]], tuple[int, int]]


def _decided(joint: Effects, left: Left = None) -> Effects:
    """Effects whose rules are replaced by what came of them, exits in the order of their blocks."""
    exits: list[Exit] = []
    for n, exit in enumerate(joint.exits):
        if not exit.rule:
            exits.append(exit)
            continue
        if left is None:
            raise InterventionError(
                f"{exit.label}: what it costs is known after the run alone; RunRecord.left says when it took place"
            )
        at = left[n] if left else None
        if at is not None:
            exits.append(Exit(at, exit.drop, label=exit.label))
    return replace(joint, exits=tuple(sorted(exits, key=lambda e: e.layer)))


def _blocks(layout: TokenLayout, joint: Effects, n_heads: int, memo: _Memo) -> list[tuple[int, int]]:
    """Rows and all heads' allowed pairs in each block; `memo` holds them by who left and what is cut."""
    check_heads(joint.every_cut, n_heads)
    rest, left = torch.arange(layout.n_tokens), 0
    blocks: list[tuple[int, int]] = []
    for layer, cuts in enumerate(joint.cuts):
        for exit in joint.exits[left:]:
            if exit.layer <= layer:
                rest, left = without(layout, exit, rest), left + 1
        what = (tuple(replace(e, layer=0) for e in joint.exits[:left]), cuts)
        if what not in memo:
            some = rest if left else None
            memo[what] = len(rest), head_pairs(layout, cuts, n_heads, some, some)
        blocks.append(memo[what])
    return blocks


# Operations of one row, one pair, one frame.


def block_linear(lm: DecoderConfig) -> int:
    """q, k, v, o and the gated MLP, of one row of one block."""
    return 2 * lm.d_model * (2 * lm.n_heads * lm.d_head + 3 * lm.d_mlp) + keys_values(lm)


def keys_values(lm: DecoderConfig) -> int:
    """Keys and values alone, of one row of one block."""
    return 2 * lm.d_model * 2 * lm.n_kv_heads * lm.d_head


def pair(lm: DecoderConfig) -> int:
    """QK^T and AV of one (query, key) pair of one head."""
    return 2 * 2 * lm.d_head


def unembedding(lm: DecoderConfig) -> int:
    """The logits of one position."""
    return 2 * lm.d_model * lm.d_vocab


def video(cfg: VideoLLMConfig, layout: TokenLayout) -> Flops:
    """Tower and projector on a layout's video."""
    n = len(layout.steps)
    if not n or cfg.vision is None or cfg.projector is None:
        return Flops()
    grid = patch_grid(cfg, layout)
    rows = _projected_rows(cfg.projector, *grid) + cfg.vision.cls_kept
    projectors = 1 + len(cfg.vision.deepstack)
    return Flops(
        tower=n * _tower_unit(cfg.vision, *grid), projector=projectors * n * rows * _projector_row(cfg.projector)
    )


def patch_grid(cfg: VideoLLMConfig, layout: TokenLayout) -> tuple[int, int]:
    """Rows and columns of patches of each frame of a layout's video."""
    assert cfg.vision is not None and cfg.projector is not None
    if cfg.vision.resize != "fit" or layout.grid is None:
        return cfg.vision.grid, cfg.vision.grid
    side = cfg.projector.shuffle if cfg.projector.pool == "none" else cfg.projector.pool_stride
    return layout.grid.rows * side, layout.grid.columns * side


def _tower_unit(v: VisionConfig, height: int, width: int) -> int:
    n_patches = height * width
    rows = n_patches + v.cls_token
    patches = 2 * n_patches * v.patch_frames * 3 * v.patch_size**2 * v.d_model
    linear = v.n_layers * rows * 2 * v.d_model * (4 * v.d_model + (3 if v.gated else 2) * v.d_mlp)
    full = len(v.full_blocks) if v.window else v.n_layers
    pairs = full * rows**2 + (windows([(1, height, width)], v.window).edges * (v.n_layers - full) if v.window else 0)
    return patches + linear + 2 * 2 * pairs * v.d_model


def _projected_rows(p: ProjectorConfig, height: int, width: int) -> int:
    """What joining, merging and pooling before the MLP leave of the patches."""
    if p.merge is not None:
        return p.merge.tokens_per_frame
    return math.prod(p.cells(height, width) if p.shuffle > 1 or p.pool_before else (height, width))


def _projector_row(p: ProjectorConfig) -> int:
    hidden = p.d_hidden or p.d_out
    return 2 * (p.d_in * p.d_out if p.linear else hidden * (p.d_in + p.d_out))
