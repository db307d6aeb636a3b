"""Which tasks of a plan are run in which order: all at once, or as an adaptive study asks for them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from hookedvid.data.item import Item
from hookedvid.errors import ConfigError
from hookedvid.study.definition import Plan, Study
from hookedvid.study.protocols import Condition
from hookedvid.study.results.adaptive import Course
from hookedvid.study.rows import Row, Task, named_by

Planned = tuple[Item, Condition, Task]


def rounds(plan: Plan, stored: Callable[[], Mapping[str, Row]]) -> Iterator[list[Planned]]:
    """Tasks that are run together; those of one round have their rows before the next is asked for.

    Args:
        stored: Gives the rows by key that there are by then.
    """
    if not plan.study.adaptive:
        yield plan.tasks
        return
    course = Course(plan.study, plan.items, plan.conditions, plan.scoring)
    planned = {(item.id, c.label): (item, c, task) for item, c, task in plan.tasks}
    while ask := course.next():
        labels = [c.label for c in (course.baseline, *ask.conditions)]
        tasks = [planned[item.id, label] for item in ask.items for label in labels]
        yield tasks
        rows = stored()
        course.take(ask, [named_by(rows[task.key], task) for _, _, task in tasks])


def at_most(plan: Plan, course: Course) -> Plan:
    """A plan of all that an adaptive study may come to ask."""
    asked = {item.id for item in course.items}
    return replace(plan, items=course.items, tasks=[t for t in plan.tasks if t[0].id in asked])


def check_whole(study: Study, n_shards: int = 1, on_cluster: bool = False) -> None:
    """Raises ConfigError for an adaptive study in parts: what is asked next follows from all the rows before."""
    how = "in shards" if n_shards > 1 else "on a Ray cluster" if on_cluster else ""
    if study.adaptive and how:
        raise ConfigError(
            f"an adaptive study looks at every row before it goes on, and cannot be run {how}; run it in one process, "
            "or leave adaptive away"
        )
