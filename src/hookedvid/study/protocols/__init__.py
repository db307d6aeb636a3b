"""The study's protocols: functions from a model's depth to the conditions to run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from hookedvid.errors import InterventionError
from hookedvid.values.interventions import (
    VT_K,
    EarlyExit,
    Intervention,
    Knockout,
    LayerRange,
    RandomEdges,
    as_interventions,
    from_json,
    label,
    to_json,
)

InJson = dict[str, Any]  # an intervention


@dataclass(frozen=True)
class Estimate:
    """Of which conditions gradients say what they cost, and how, as of `HookedVideoLLM.attribute`.

    Attributes:
        of: Their labels.
        n_steps: 1: at the intact run. More: along the path from there to the run where all that the estimating
            condition holds is cut together.
        softmax: Of one step.
    """

    of: tuple[str, ...]
    n_steps: int = 1
    softmax: Literal["slope", "cut"] = "slope"

    @property
    def how(self) -> str:
        """`slope`, `cut` or `path`."""
        return "path" if self.n_steps > 1 else self.softmax


@dataclass(frozen=True)
class Condition:
    """Interventions under a name.

    Attributes:
        protocol: `baseline`, `cumulative`, `all layers`, `windows`, `efficiency`, one of `registry`, or the user's own.
        knockout: Its name; of pruning and adaptive exits, the rule's.
        layer: Where the condition stands on the protocol's axis, counted from 1 (cumulative: layers left intact, 0 =
            none; efficiency: layers that see the video), if it has one.
        estimate: Of a condition that is not run: what gradients are asked instead, along these interventions' edges.
    """

    label: str
    interventions: tuple[Intervention, ...] = ()
    protocol: str = "custom"
    knockout: str = ""
    layer: int | None = None
    estimate: Estimate | None = field(default=None, metadata={"later": True})


BASELINE = Condition("baseline", protocol="baseline")
EFFICIENCY = "efficiency"  # the protocol of exits and windows


def cumulative(knockout: Knockout, n_layers: int, step: int = 1) -> list[Condition]:
    """The knockout in all layers after the i-th, i = 0, step, …: the paper's Global 1 (there in steps of 2).

    i = n_layers, which cuts nothing, is the baseline and is not repeated.
    """
    if step < 1:
        raise InterventionError(f"step is {step}; count layers by 1 or more")
    name = knockout.name or label((knockout,))
    return [
        Condition(f"{name} after layer {i}", (knockout.at(LayerRange(i)),), "cumulative", name, i)
        for i in range(0, n_layers, step)
    ]


def everywhere(knockouts: Sequence[Knockout]) -> list[Condition]:
    """Each knockout in every layer: Global 2."""
    return [
        Condition(k.at(LayerRange()).label(), (k.at(LayerRange()),), "all layers", k.name or label((k,)))
        for k in knockouts
    ]


def windows(knockout: Knockout, n_layers: int, width: int) -> list[Condition]:
    """The knockout in `width` layers ending at x = width … n_layers, x counted from 1 as in the paper."""
    if not 1 <= width <= n_layers:
        raise InterventionError(f"a window of {width} layers does not fit a model of {n_layers}")
    name = knockout.name or label((knockout,))
    ranges = [(x, LayerRange.ending(x, width)) for x in range(width, n_layers + 1)]
    return [Condition(knockout.at(r).label(), (knockout.at(r),), "windows", name, x) for x, r in ranges]


def in_json(several: Sequence[Sequence[InJson | str | Intervention]]) -> tuple[tuple[InJson, ...], ...]:
    """Lists of interventions in their JSON form, from that, from values or from their lines of text.

    Raises:
        InterventionError: For all else.
    """
    conditions: list[tuple[InJson, ...]] = []
    for condition in several:
        if not isinstance(condition, list | tuple):
            raise InterventionError(
                f"custom holds a list of interventions for each condition, and {condition!r} is none: [[LV_K], [VT_K]]"
            )
        written = [[i] if isinstance(i, dict) else to_json(as_interventions(i)) for i in condition]
        conditions.append(tuple(one for several in written for one in several))
        from_json(conditions[-1])
    return tuple(conditions)


def custom(several: Sequence[Sequence[InJson | str | Intervention]]) -> list[Condition]:
    """One condition for each list of interventions."""
    return [Condition(label(i), i) for i in map(from_json, in_json(several))]


def window_width(n_layers: int) -> int:
    """The paper's 4 of 28 layers; 2 where four layers would be a quarter of the model or more."""
    return 4 if n_layers > 16 else 2


def random_control(knockouts: Sequence[Knockout], seed: int = 0) -> list[Condition]:
    """In every layer, as many random edges cut as each knockout cuts: does it matter which edges go?"""
    controls = [RandomEdges(k.at(LayerRange()), seed) for k in knockouts]
    return [Condition(c.label(), (c,), "random control", c.like.name or label((c.like,))) for c in controls]


def efficiency(n_layers: int, step: int = 0) -> list[Condition]:
    """Every exit after i layers with frames apart in the first w <= i: the paper's way to cheaper inference, as a grid.

    i and w are multiples of `step` (0: an eighth of the depth, which makes 43 conditions at most); in the last of them
    the video stays. The paper's choice of 28 layers, i = 18 and w = 8, is on the grid of step 2.
    """
    if step < 0:
        raise InterventionError(f"step is {step}; count layers by 1 or more, or 0 for an eighth of the depth")
    step = step or -(-n_layers // 8)
    conditions: list[Condition] = []
    for i in [*range(step, n_layers, step), n_layers]:
        leave = (EarlyExit(i),) if i < n_layers else ()
        for w in range(0, i + 1, step):
            what: tuple[Intervention, ...] = (*leave, VT_K.at(LayerRange(0, w))) if w else leave
            if what:
                cut = what[-1].label() if w else ""
                conditions.append(Condition(label(what), what, EFFICIENCY, cut, i))
    return conditions
