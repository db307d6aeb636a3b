"""In which order an adaptive study takes its conditions: first what attribution says costs most.

The estimate decides when a condition is asked and nothing of what is said of it: every verdict is of exact rows.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hookedvid.data.item import Item
from hookedvid.errors import HookedVidError
from hookedvid.model.attribution.attribute import attribute
from hookedvid.model.attribution.metrics import logit_diff
from hookedvid.nn.model import Model
from hookedvid.study.definition import Plan
from hookedvid.study.protocols import Condition
from hookedvid.study.results.adaptive import Course
from hookedvid.study.rows import Task, canonical, digest, json_bytes, sealed, unsealed
from hookedvid.study.run.failures import attempt
from hookedvid.study.run.inputs import clip_request, prepared
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.values.effects import effects
from hookedvid.values.files import write_bytes
from hookedvid.values.interventions import Knockout
from hookedvid.video.decoders import Decoders, gathered
from hookedvid.video.frames import Clip

FILE = "order.json"
# Along each kind of edges alone, from weight 0 to 1. One step is no guide where answers are sure: of the tiny model's
# 32 cuts its ranks correlate with exact costs by -0.39, a path of all kinds at once by 0.76, one of each by 0.91.
STEPS = 8


def ordered(plan: Plan, model: Model, folder: Path, decoders: Callable[[], Decoders] = Decoders) -> Plan:
    """The plan with its conditions in the order in which they are taken, the baseline first.

    Cuts of edges come first, by what of the right option's margin `model.attribute` estimates that they lose, along a
    path of weights, over the first question of each video of the first look; then all others as they stand. The order
    is kept in the folder, and found there by a run that goes on. A study that takes all conditions at once stays as it
    is, and so does one of whose questions no option's logit is read.
    """
    if not plan.study.adaptive or not plan.study.at_once:
        return plan
    course = Course(plan.study, plan.items, plan.conditions, plan.scoring)
    ask = course.next()
    first = list({item.video: item for item in reversed(ask.items if ask else [])}.values())[::-1]
    name = digest(canonical([plan.settings, [c.label for c in plan.conditions], [item.id for item in first], STEPS]))
    costs = _stored(folder / FILE, name)
    if costs is None:
        with decoders() as pool:
            costs = _estimates(plan, model, first, pool)
        write_bytes(folder / FILE, sealed(json_bytes({"name": name, "costs": costs})))
    known = sorted((c for c in plan.conditions if c.label in costs), key=lambda c: -costs[c.label])
    rest = [c for c in plan.conditions[1:] if c.label not in costs]
    return _in_order(plan, [plan.conditions[0], *known, *rest])


def _estimates(plan: Plan, model: Model, items: list[Item], decoders: Decoders) -> dict[str, float]:
    """Estimated costs of those conditions that are cuts of edges, in logits, by label."""
    n = model.cfg.n_layers
    cuts = [cut for c in plan.conditions[1:] for several in effects(c.interventions, n).cuts for cut in several]
    whole = {(k.src, k.dst, k.relation, k.keep_self): k for k in cuts if k.removes and not k.drawn}
    edges = [Knockout(k.src, k.dst, relation=k.relation, keep_self=k.keep_self) for k in whole.values()]
    tasks = {item.id: task for item, _, task in plan.tasks}
    sums: dict[str, float] = {}
    for item in items if edges else ():
        task = tasks[item.id]
        request = clip_request(plan, item, task.settings)
        clip = gathered({request: decoders.submit(request)}).clips[request]
        found = attempt(_lost, plan, model, item, task, clip, edges)
        for label, cost in () if isinstance(found, Outcome) else found.items():  # the run will tell why a row failed
            sums[label] = sums.get(label, 0.0) + cost
    return sums


def _lost(
    plan: Plan, model: Model, item: Item, task: Task, clip: Clip | HookedVidError, edges: list[Knockout]
) -> dict[str, float]:
    if isinstance(clip, HookedVidError):
        raise clip
    inputs = prepared(plan, model, item, task, clip)
    assert item.answer is not None  # of others nothing is asked
    metric, lost = logit_diff(inputs, item.answer), dict[str, float]()
    for kind in edges:
        found = attribute(model, inputs, metric, edges=kind, path="weights", n_steps=STEPS)
        each = ((c.label, attempt(found.estimate, c.interventions)) for c in plan.conditions[1:])
        lost |= {label: cost for label, cost in each if not isinstance(cost, Outcome)}
    return lost


def _stored(path: Path, name: str) -> dict[str, float] | None:
    """The costs that a run before found, if they are of this study and as they were written."""
    try:
        data = json.loads(unsealed(path.read_bytes()) or b"{}")
    except (OSError, ValueError):
        return None
    return data["costs"] if data.get("name") == name else None


def _in_order(plan: Plan, conditions: list[Condition]) -> Plan:
    place = {c.label: i for i, c in enumerate(conditions)}
    n = len(conditions)
    of_items = [plan.tasks[i : i + n] for i in range(0, len(plan.tasks), n)]
    tasks = [t for several in of_items for t in sorted(several, key=lambda t: place[t[1].label])]
    return replace(plan, conditions=conditions, tasks=tasks)
