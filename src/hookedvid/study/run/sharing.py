"""Which of the questions on a video a sweep takes together: one account, for the run and for what is said of it before.

What no sweep takes is run alone, condition by condition.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from hookedvid.study.protocols import Condition
from hookedvid.study.rows import Task
from hookedvid.study.run.failures import attempt
from hookedvid.study.sources import names
from hookedvid.sweep.tree import groups_before, shareable, stream_length
from hookedvid.values.effects import Intervention
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.layout import TokenLayout
from hookedvid.values.tensors import ints

Tasks = list[tuple[Condition, Task]]  # of one item


class Swept(NamedTuple):
    """Questions of one sweep: the conditions that all are asked under, and of each the inputs and tasks, alike."""

    conditions: tuple[tuple[Intervention, ...], ...]
    inputs: list[VideoInputs]
    tasks: list[Tasks]


def swept_together(questions: Sequence[tuple[VideoInputs, Tasks]], n_layers: int) -> list[Swept]:
    """The sweeps that take what can be shared of the questions on one video.

    Questions share one that are asked under the same conditions, behind the same tokens at the same times with the same
    names.
    """
    groups: dict[Any, Swept] = {}
    for inputs, tasks in questions:
        layout, n = inputs.layout, stream_length(inputs.layout)
        shared = [(c, t) for c, t in tasks if n and attempt(_is_swept, c.interventions, layout, n_layers) is True]
        if shared:
            conditions = tuple(c.interventions for c, _ in shared)
            alike = tuple(ints(inputs.tokens[0, :n])), layout.grid, groups_before(layout, n), conditions
            group = groups.setdefault(alike, Swept(conditions, [], []))
            group.inputs.append(inputs)
            group.tasks.append(shared)
    return list(groups.values())


def _is_swept(interventions: Sequence[Intervention], layout: TokenLayout, n_layers: int) -> bool:
    """Whether a sweep takes a condition: one that takes from nowhere else, which questions would not share."""
    return not names(interventions) and shareable(interventions, layout, n_layers)
