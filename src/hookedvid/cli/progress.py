"""A study while it runs: one progress bar, wherever its rows are computed, and a few lines of what it took."""

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from hookedvid.nn.model import Model
from hookedvid.report.terminal import Terminal
from hookedvid.study.definition import Plan
from hookedvid.study.records import Records
from hookedvid.study.results.adaptive import Course
from hookedvid.study.run import cluster
from hookedvid.study.run.execution import Execution
from hookedvid.study.run.rounds import at_most
from hookedvid.study.run.tasks import Audit, carry_out, run
from hookedvid.study.run.timing import Timing


def conduct(
    plan: Plan, model: Model | Mapping[str, Any], records: Records, how: Execution, console: Terminal
) -> tuple[Audit, Timing, set[str]]:
    """Carry a plan out; what was checked, what it took, and the keys of the rows that it asked for.

    Args:
        model: Itself, or with Ray the arguments of `from_pretrained` that its actors load it by.
        records: Of the folder and shard that are written to.
    """
    audit, timing, fresh = Audit(), Timing(), 0
    most = plan
    if plan.study.adaptive:
        most = at_most(plan, Course(plan.study, plan.items, plan.conditions, plan.scoring))
    size = f"{len(most.items)} questions x {len(plan.conditions)} conditions"
    with tqdm(total=len(most.tasks), desc=size, unit=" rows", disable=None) as bar:

        def step(row: Mapping[str, Any], new: bool) -> None:
            nonlocal fresh
            fresh += new
            bar.update()

        options: Any = {"audit": audit, "retry_failed": how.retry_failed, "timing": timing}
        if isinstance(model, Mapping):
            rows = carry_out(plan, cluster.engine(plan, model, how, timing), records, step, **options)
        else:
            with how.decoders() as decoders:
                rows = run(plan, model, records, step, decoders=decoders, **options)
    keys = {row["key"] for row in rows}
    lines = [f"{fresh} rows run, {len(keys) - fresh} found in {records.folder}"]
    if plan.study.adaptive:
        everything = len({task.key for _, _, task in most.tasks})
        lines.append(f"{len(keys):,} of {everything:,} rows settled what could be settled")
    lines += [records.damaged] * bool(records.damaged)
    if audit.n:
        lines.append(f"{audit.n} rows run again in full: {plan.scoring.reads} differ by {audit.largest:.1e} at most")
    if timing.n_clips:
        lines.append(str(timing))
    for line in lines:
        console.say(line)
    return audit, timing, keys
