"""What a sweep holds in memory beside one naive forward."""

from benchmarks.measuring import Cost, cost
from benchmarks.models import CUTS, DEEP, LONG, TOY, WIDE, Shape, build, joined, questions, study
from benchmarks.printing import mib, table
from hookedvid.sweep.run import sweep

TITLE = "Peak memory of a sweep"


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section."""
    shapes = {"toy": TOY} if quick else {"deep": DEEP, "long": LONG, "wide": WIDE._replace(n_layers=4)}
    return [
        "Bytes of tensors alive above the loaded model, inputs included from the embedding on. They are counted as "
        "operations make them and Python lets them go, which is the same on every run (n = 1) and equals the peak of "
        "torch's own allocator log; a process's resident size would add what its allocator keeps.",
        "",
        *(line for name, shape in shapes.items() for line in measure(name, shape)),
    ]


def measure(name: str, shape: Shape) -> list[str]:
    """One shape: a forward intact and under each knockout, and the whole study on one and three questions."""
    model, kinds = build(shape), study(shape.n_layers)
    inputs, conditions = questions(model, shape, 3), joined(kinds)

    def forward(*cuts: object) -> Cost:
        return cost(lambda: model(inputs[0], interventions=cuts, logits_to_keep=1))

    costs = {"forward": forward(), **{f"forward, {k.name} in all layers": forward(k) for k in CUTS}}
    for n in (1, 3):
        what = f"sweep of {len(conditions)} conditions, {n} question{'s' * (n > 1)}"
        costs[what] = cost(lambda n=n: sweep(model, inputs[:n], conditions))
    least = costs["forward"].peak
    rows = [[what, mib(c.peak), f"{c.peak / least:.2f}"] for what, c in costs.items()]
    return [f"### {name}: {shape}", "", *table(["run", "peak, MiB", "of a forward"], rows)]
