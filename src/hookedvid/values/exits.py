"""Ways for video to leave the sequence early: all of it at a block, or as the run decides, by rank or by item.

Which tokens a vision-language model can do without, and from which block on, is decided here by stated rules. Every
rank has `random` as its control: the same number of positions, drawn.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, cast, get_args

from hookedvid.errors import InterventionError, nearest
from hookedvid.values.edges import Knockout
from hookedvid.values.effects import Effects, Exit, Intervention, Rank, Rule
from hookedvid.values.layer_range import LayerRange, as_number, set_fields, spelled
from hookedvid.values.selectors import as_selector
from hookedvid.values.spelling import Spelling, choice, number


def _as_share(value: object, what: str, least: float | int, most: float | int) -> float:
    """A number from `least` to `most`.

    Raises:
        InterventionError: Saying `what` it should have been.
    """
    try:
        number = float(cast(float, value))
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool | str) or not least <= number <= most:
        raise InterventionError(f"{value!r} is not {what}; give a number from {least:g} to {most:g}")
    return number


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _leaving(exit: Exit, n_layers: int) -> Effects:
    """An exit as what is done to a model.

    Raises:
        InterventionError: Beyond the last block.
    """
    if exit.layer > n_layers:
        raise InterventionError(f"{exit.label}: this model has {n_layers} blocks")
    return Effects(((),) * n_layers, exits=(exit,) if exit.keep < 1 else ())


@spelled
@dataclass(frozen=True)
class EarlyExit(Intervention):
    """Positions `drop` leave the sequence after `layer` blocks: blocks `layer`, `layer`+1, … never see them.

    The paper's exit after layer 18 of 28 is EarlyExit(18). Other positions keep their numbers. At the last
    position this equals `as_knockout()`.
    """

    kind: ClassVar[str] = "early_exit"
    spelling = Spelling("exit", "exit @ 18", {"@": ("layer", number), "of": ("drop", str)})
    layer: int
    drop: str = "video"

    def __post_init__(self):
        what = "how many blocks an EarlyExit could keep the video for"
        set_fields(self, layer=as_number(self.layer, what), drop=as_selector(self.drop))
        if self.layer < 0:
            raise InterventionError(f"EarlyExit({self.layer}): count the blocks that keep the video, from 0 up")

    def effect(self, n_layers: int) -> Effects:
        """Its exit. Raises InterventionError beyond the last block."""
        return _leaving(Exit(self.layer, self.drop, label=self.label()), n_layers)

    def as_knockout(self) -> Knockout:
        """The mask that gives the same logits at every position that is kept."""
        return Knockout(self.drop, "all", LayerRange(self.layer))

    def label(self) -> str:
        """For tables and plots; what leaves is said where it is not the whole video."""
        return f"exit after layer {self.layer}" + ("" if self.drop == "video" else f" of {self.drop}")


@spelled
@dataclass(frozen=True)
class Drop(Intervention):
    """All but a share of positions `of` leave the sequence before block `layer`; several make a pyramid.

    Of the n positions that are still there, round(n x keep), half to even, stay: those that `rank` puts first, of
    equals the earlier. Other positions keep their numbers. Nothing later in the run sees what left, nor does any
    generated token. `keep=1` drops nothing and `keep=0` is EarlyExit(layer, of).

    Ranks, from first to last:
        attention: By the attention that the prompt's last position pays, in block `layer` - 1, mean over heads, most
            first (FastV, arXiv 2403.06764, which takes the last token's row of the block before).
        text_attention: The same of all text of the prompt behind the video, mean over its positions (as SparseVLM,
            arXiv 2410.04417, lets text rate what is seen).
        norm: By the length of the residual stream that enters block `layer`, longest first.
        time: By likeness (cosine of the streams entering the block) to the position with the same place in the step
            before, least alike first; the first step's count as unlike anything (DyCoke's merging in time, arXiv
            2411.15024, drops what is alike).
        space: By mean likeness to the cells left, right, above and below in the same step, least alike first. What is
            no cell, a newline or a class token, counts as like nothing.
        uniform: Evenly through the sequence.
        random: Drawn with `seed`: the control of all others.

    A neighbour that has already left counts as unlike. A rank by attention reads block `layer` - 1 as computed from
    its queries, keys and mask; a write to its scores or pattern is refused there.
    """

    kind: ClassVar[str] = "drop"
    spelling = Spelling(
        "drop",
        "drop @ 2 keep 0.5 by attention",
        {
            "@": ("layer", number), "keep": ("keep", number), "by": ("rank", choice), "of": ("of", str),
            "seed": ("seed", number),
        },
    )  # fmt: skip
    layer: int
    keep: float = 0.5
    rank: Rank = "attention"
    of: str = "video"
    seed: int = 0

    def __post_init__(self):
        layer = as_number(self.layer, "the block before which a Drop could take place")
        keep = _as_share(self.keep, "a share of positions to keep", 0, 1)
        set_fields(self, layer=layer, keep=keep, of=as_selector(self.of), seed=as_number(self.seed, "a seed"))
        if self.rank not in get_args(Rank):
            raise InterventionError(f"no rank {self.rank!r} ({nearest(str(self.rank), get_args(Rank))})")
        least = int(self._exit.reads_attention)
        if self.layer < least:
            raise InterventionError(
                f"Drop({self.layer}, rank={self.rank!r}): blocks are counted from 0"
                + (f", and before block {least} there is no attention to rank by" if least else "")
            )
        if not 0 <= self.seed < 2**63:
            raise InterventionError(f"the seed of a Drop is {self.seed}; give one from 0 up, below 2**63")

    @property
    def _exit(self) -> Exit:
        if not self.keep:
            return Exit(self.layer, self.of, label=self.label())
        return Exit(self.layer, self.of, self.keep, self.rank, self.seed, label=self.label())

    def effect(self, n_layers: int) -> Effects:
        """Its exit, none where everything stays. Raises InterventionError beyond the last block."""
        return _leaving(self._exit, n_layers)

    def label(self) -> str:
        """For tables and plots: after how many blocks, what share stays, by what."""
        of = "" if self.of == "video" else f" of {self.of}"
        seed = f" {self.seed}" if self.rank == "random" and self.seed else ""
        return f"drop after layer {self.layer} keep {self.keep:g}{of} by {self.rank.replace('_', ' ')}{seed}"


@spelled
@dataclass(frozen=True)
class AdaptiveExit(Intervention):
    """Positions `drop` leave the sequence before the first block, from `layer` on, at which `rule` holds for the item.

    Every item of a batch leaves on its own, or never. What was decided is in `RunRecord.left`. The rule is asked at
    the prompt's last position, so a generation goes on as its prompt decided, with and without a key-value cache.

    Rules, before block i:
        mass: In block i - 1 the last position paid less than `threshold` of its attention (mean over heads) to `drop`.
        answer: The logit lens's answer on the stream entering blocks i, i - 1, … has been the same `threshold` times
            in a row, a whole number from 2 up: the likeliest option's letter, or word where there are no options.
        entropy: The entropy (in nats) of the logit lens's distribution on the stream entering block i is below
            `threshold`: over the options' letters, renormalised, or over all words where there are no options.
    """

    kind: ClassVar[str] = "adaptive_exit"
    spelling = Spelling(
        "adaptive exit",
        "adaptive exit by mass below 0.1 @ 4",
        {"@": ("layer", number), "by": ("rule", choice), "below": ("threshold", number), "of": ("drop", str)},
    )
    rule: Rule
    threshold: float
    layer: int = 1
    drop: str = "video"

    def __post_init__(self):
        if self.rule not in get_args(Rule):
            raise InterventionError(f"no rule {self.rule!r} ({nearest(str(self.rule), get_args(Rule))})")
        if self.rule == "answer":
            what = "how many times in a row an answer has to be the same"
            threshold = float(_as_share(as_number(_whole(self.threshold), what), what, 2, 10_000))
        else:
            threshold = _as_share(self.threshold, f"a threshold of {self.rule}", 0, 1 if self.rule == "mass" else 1e6)
        layer = as_number(self.layer, "the first block before which an AdaptiveExit could take place")
        set_fields(self, threshold=threshold, layer=layer, drop=as_selector(self.drop))
        if self.layer < 1:
            raise InterventionError(f"AdaptiveExit from layer {self.layer}: there is nothing to look at before block 1")

    def effect(self, n_layers: int) -> Effects:
        """Its exit. Raises InterventionError beyond the last block."""
        exit = Exit(self.layer, self.drop, rule=self.rule, threshold=self.threshold, label=self.label())
        return _leaving(exit, n_layers)

    def label(self) -> str:
        """For tables and plots."""
        what = {"mass": "mass below", "answer": "answer the same times", "entropy": "entropy below"}[self.rule]
        of = "" if self.drop == "video" else f" of {self.drop}"
        return f"exit{of} by {what} {self.threshold:g} from layer {self.layer}"
