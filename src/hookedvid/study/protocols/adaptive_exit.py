"""`adaptive-exit`: the video leaves when a rule says so, item by item. Is that cheaper than a fixed exit?"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from hookedvid.study.protocols import Condition
from hookedvid.study.protocols.protocol import Protocol, Reading, Setting, Sheet
from hookedvid.study.results import efficiency
from hookedvid.study.results.cells import number, short, star
from hookedvid.study.results.charts import Curves, Line
from hookedvid.study.results.evidence import Finding, enough
from hookedvid.study.results.group import Group
from hookedvid.study.results.statistics import LEVEL, known_mean, paired_p
from hookedvid.values.effects import Rule
from hookedvid.values.interventions import AdaptiveExit, EarlyExit

THRESHOLDS: dict[Rule, tuple[float, ...]] = {
    "mass": (0.2, 0.1, 0.05, 0.02, 0.01),
    "answer": (2, 3, 4),
    "entropy": (1.0, 0.5, 0.2, 0.1, 0.05, 0.02),
}
FIXED = "fixed"


class AdaptiveExits(Protocol):
    """Every rule at some thresholds, and fixed exits to hold them against.

    The threshold is chosen on half of the videos and judged on the others, as the fixed exit is. Operations are
    those of the block at which each item's video left; what a rule itself computes is not counted.
    """

    name: ClassVar[str] = "adaptive-exit"

    def conditions(self, s: Setting) -> list[Condition]:
        """Rules by thresholds, then exits every `grid` layers, or an eighth of the depth."""
        step = s.grid or -(-s.n_layers // 8)
        conditions = [
            Condition(f"{rule} {threshold:g}", (AdaptiveExit(rule, threshold),), self.name, rule)
            for rule, thresholds in THRESHOLDS.items()
            for threshold in thresholds
        ]
        return conditions + [
            Condition(f"fixed exit after layer {i}", (EarlyExit(i),), self.name, FIXED, i)
            for i in range(step, s.n_layers, step)
        ]

    def read(self, group: Group) -> Reading | None:
        """When the video left, what that costs and keeps; the cheapest rule, and whether it beats the fixed exit."""
        if not group.scoring.chooses:
            return None
        conditions = group.conditions(self.name)
        return Reading(_sheet(group, conditions), _findings(group), _chart(group, conditions))


def _adaptive(c: Condition) -> bool:
    return c.protocol == AdaptiveExits.name and c.knockout != FIXED


def _fixed(c: Condition) -> bool:
    return c.protocol == AdaptiveExits.name and c.knockout == FIXED


def _layers(group: Group, c: Condition) -> np.ndarray:
    """Layers that saw the video, of each item of the group [item]."""
    if c.layer is not None:
        return np.full(int(group.columns.sum()), float(c.layer))
    left = group.outcomes.left[group.outcomes.conditions.index(c), group.columns]
    return np.minimum(left, group.n_layers)


def _sheet(group: Group, conditions: Sequence[Condition]) -> Sheet:
    base = group.outcomes.conditions[0]
    e = group.evidence(conditions, group.scoring.measures[0])
    rows = [[base.label, str(group.n_layers), "", "100.0", short(group.score(base)), ""]]
    for c in conditions:
        layers = _layers(group, c)
        known = layers[~np.isnan(layers)]
        span = f"{known.min():g}–{known.max():g}" if len(known) else ""
        p = e.p_holm[c.label]
        share = number(100 * group.decoder_share(c))
        rows.append([c.label, number(known_mean(layers)), span, share, short(group.score(c)), f"{p:.3f}{star(p)}"])
    title = f"{group.name} questions; layers that see the video, mean and range; decoder: % of its operations left"
    return Sheet(title, ("exit", "layers", "range", "decoder", group.scoring.title, "p"), rows)


def _findings(group: Group) -> list[Finding]:
    def found(among: Callable[[Condition], bool]) -> efficiency.Search:
        sampling = group.n_resamples, group.seed
        return efficiency.search(group.outcomes, group.name, group.keep, *sampling, among=among)

    adaptive, fixed = found(_adaptive), found(_fixed)
    kept = efficiency.cheapest(adaptive, group.keep, "leaving by a rule", "rules and thresholds")
    return [kept, _against(group, adaptive, fixed)]


def _against(group: Group, adaptive: efficiency.Search, fixed: efficiency.Search) -> Finding:
    """The operations of the two that were chosen, on the videos that they were not chosen on."""
    law = "adaptive beats fixed"
    if adaptive.choice is None:
        return Finding(law, False, f"no rule keeps {group.keep:.0%} of the accuracy")
    if fixed.choice is None:
        return Finding(law, False, f"no fixed exit keeps {group.keep:.0%} of the accuracy, to hold a rule against")
    o, conditions = group.outcomes, (fixed.choice.condition, adaptive.choice.condition)
    second = efficiency.halves(
        [i.video if inside else "" for i, inside in zip(o.items, group.columns, strict=True)], group.seed
    )[1][group.columns]
    costs, right = (
        np.array([values[o.conditions.index(c), group.columns] for c in conditions])
        for values in (o.decoder_share, o.score)
    )
    saved = np.where(second, costs[0] - costs[1], np.nan)
    size, p = group.resamples.mean(saved, (-1.0, 1.0)), paired_p(saved, group.resamples.video)
    loses = group.resamples.mean(np.where(second, right[0] - right[1], np.nan), (-1.0, 1.0))
    n, videos = int((~np.isnan(saved)).sum()), group.resamples.n_videos(~np.isnan(saved))
    saving = f"{efficiency.percents(size)} less" if size.value >= 0 else f"{efficiency.percents(-size)} more"
    text = (
        f"{conditions[1].label} takes {saving} of the decoder's operations than {conditions[0].label}, chosen in the "
        f"same way, and {group.scoring.amount(loses)} of accuracy less "
        f"({n} questions, {videos} videos)"
    )
    return Finding(law, enough(n, videos) and p < LEVEL and size.low > 0 and adaptive.choice.held_out.low >= group.keep,
                   text)  # fmt: skip


def _chart(group: Group, conditions: Sequence[Condition]) -> Curves:
    lines: list[Line] = []
    for name in (*THRESHOLDS, FIXED):
        some = sorted((c for c in conditions if c.knockout == name), key=group.decoder_share)
        shares = [100 * group.decoder_share(c) for c in some]
        scores = [group.score(c) for c in some]
        lines.append(Line(name if name == FIXED else f"by {name}", shares, scores, control=name == FIXED))
    levels = {
        "intact": group.score(group.outcomes.conditions[0]).value,
        group.scoring.level_name: group.level,
    }
    return Curves(
        f"The video leaves by a rule or at a fixed block, {group.name} questions", "decoder operations left, %",
        group.scoring.label, lines, levels,
    )  # fmt: skip
