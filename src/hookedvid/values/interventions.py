"""What is done to a run, as frozen values: knockouts, patches, edits and early exit, on a range of layers.

A value says what it does (`effect`), what it is called and what a file holds of it; callbacks are the escape
hatch (`Edit`, and `run_with_hooks` for whole activations), never the carrier of a study.
"""

# What users give is looked at, whatever its type says.
# pyright: reportUnnecessaryIsInstance=false
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hookedvid.errors import InterventionError
from hookedvid.values.edges import Knockout as Knockout
from hookedvid.values.edges import RandomEdges as RandomEdges
from hookedvid.values.effects import Effects, Exit, Intervention
from hookedvid.values.exits import AdaptiveExit as AdaptiveExit
from hookedvid.values.exits import Drop as Drop
from hookedvid.values.layer_range import LayerRange as LayerRange
from hookedvid.values.layer_range import as_number as as_number
from hookedvid.values.layer_range import as_range as as_range
from hookedvid.values.layer_range import set_fields, spelled
from hookedvid.values.selectors import as_selector
from hookedvid.values.serial import from_dict
from hookedvid.values.writes import Ablate as Ablate
from hookedvid.values.writes import Edit as Edit
from hookedvid.values.writes import Patch as Patch
from hookedvid.values.writes import Steer as Steer
from hookedvid.values.writes import as_source as as_source


@spelled
@dataclass(frozen=True)
class EarlyExit(Intervention):
    """Positions `drop` leave the sequence after `layer` blocks: blocks `layer`, `layer`+1, … never see them.

    The paper's exit after layer 18 of 28 is EarlyExit(18). Other positions keep their numbers. At the last
    position this equals `as_knockout()`.
    """

    kind: ClassVar[str] = "early_exit"
    layer: int
    drop: str = "video"

    def __post_init__(self):
        what = "how many blocks an EarlyExit could keep the video for"
        set_fields(self, layer=as_number(self.layer, what), drop=as_selector(self.drop))
        if self.layer < 0:
            raise InterventionError(f"EarlyExit({self.layer}): count the blocks that keep the video, from 0 up")

    def effect(self, n_layers: int) -> Effects:
        """Its exit.

        Raises:
            InterventionError: Beyond the last block.
        """
        if self.layer > n_layers:
            raise InterventionError(f"{self.label()}: this model has {n_layers} blocks")
        return Effects(((),) * n_layers, exits=(Exit(self.layer, self.drop, label=self.label()),))

    def as_knockout(self) -> Knockout:
        """The mask that gives the same logits at every position that is kept."""
        return Knockout(self.drop, "all", LayerRange(self.layer))

    def label(self) -> str:
        """For tables and plots; what leaves is said where it is not the whole video."""
        return f"exit after layer {self.layer}" + ("" if self.drop == "video" else f" of {self.drop}")


# The paper's three (facts: language-to-video, video temporal, video spatial).
LV_K = Knockout("video", "text", name="LV-K")
VT_K = Knockout("video", "video", relation="other_frame", name="VT-K")
VS_K = Knockout("video", "video", relation="same_frame", name="VS-K")

# The pathways of Map the Flow (arXiv 2510.13251). Its "question" is the question with its options, and its
# last→last also cuts the diagonal.
PATHWAYS: dict[str, Knockout] = {
    k.name: k
    for k in (
        Knockout("patches", "patches", relation="other_frame", name="cross-frame"),
        Knockout("video", "question+options", name="video→question"),
        Knockout("video", "last", name="video→last"),
        Knockout("question+options", "last", name="question→last"),
        Knockout("last", "last", keep_self=False, name="last→last"),
    )
}


def as_interventions(interventions: "Intervention | Iterable[Intervention] | None") -> tuple[Intervention, ...]:
    """One intervention, several or none as a tuple.

    Raises:
        InterventionError: On anything else.
    """
    if interventions is None:
        return ()
    several = tuple(interventions) if isinstance(interventions, Iterable) else (interventions,)
    for g in several:
        if not isinstance(g, Intervention):
            raise InterventionError(
                f"{g!r} is no intervention; give Knockout, RandomEdges, Patch, Edit, Ablate, Steer, EarlyExit, Drop or "
                "AdaptiveExit values"
            )
    return several


def label(interventions: Sequence[Intervention]) -> str:
    """A row's name in tables: the interventions' labels, or `baseline`."""
    return " + ".join(i.label() for i in interventions) or "baseline"


def to_json(interventions: Sequence[Intervention]) -> list[dict[str, Any]]:
    """JSON objects, `kind` first. Raises on an Edit, and on a Patch whose source is a cache in memory."""
    return [i.to_json() for i in interventions]


def _below(cls: type[Intervention]) -> Iterator[type[Intervention]]:
    for kind in cls.__subclasses__():
        yield kind
        yield from _below(kind)


def from_json(data: Sequence[Mapping[str, Any]]) -> tuple[Intervention, ...]:
    """What `to_json` wrote; unknown kinds and fields are refused."""
    kinds = {cls.kind: cls for cls in _below(Intervention) if cls.kind}
    read: list[Intervention] = []
    for d in data:
        kind = d.get("kind")
        if kind not in kinds:
            raise InterventionError(f"no intervention of kind {kind!r}; there are {', '.join(kinds)}")
        rest = {k: v for k, v in d.items() if k != "kind"}
        read.append(from_dict(kinds[kind], rest, InterventionError))
    return tuple(read)
