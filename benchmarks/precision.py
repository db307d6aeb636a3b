"""How far logits are from transformers' in float32, and from float32 in bfloat16."""

from collections.abc import Callable, Sequence

import torch

from benchmarks.models import TOY, Condition, Masked, Shape, apart, build, joined, questions, rms, study
from benchmarks.printing import over, spread, table
from hookedvid.sweep.run import sweep

TITLE = "Precision"
SHAPE = Shape(12, 512, 8, 2, 1536, side=4)
FLOATS, HALVES = ("sdpa", "eager"), ("transformers, sdpa", "transformers, eager", "our forwards", "the sweep")


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section; a round is another draw of the weights."""
    shape, rounds = (TOY, rounds or 1) if quick else (SHAPE, rounds or 3)
    wide: dict[str, list[float]] = {}
    half: dict[str, list[float]] = {name: [] for name in HALVES}
    for seed in range(rounds):
        measure(shape, seed, wide, half)
    sdpa, eager = half[HALVES[0]], half[HALVES[1]]
    moved = wide.pop("moved")
    return [
        f"{shape}; every condition of the study, n = {rounds} draws of the weights. Knockouts move logits by "
        f"{spread(moved)} (rms), of a standard deviation of {spread(wide.pop('std'))}.",
        "",
        *table(["float32, largest difference of a logit", ""], [[k, f"{max(v):.1e}"] for k, v in wide.items()]),
        "bfloat16, rms distance of logits to transformers' sdpa in float32 with the same weights:",
        "",
        *table(
            ["bfloat16", "distance", "of transformers' sdpa", "of transformers' eager"],
            [[k, spread(v, 4), spread(over(v, sdpa)), spread(over(v, eager))] for k, v in half.items()],
        ),
    ]


def measure(shape: Shape, seed: int, wide: dict[str, list[float]], half: dict[str, list[float]]) -> None:
    """Add one draw's numbers."""
    model = build(shape, dtype=torch.bfloat16, seed=seed)
    conditions = joined(study(shape.n_layers))
    (x,) = questions(model, shape, 1)

    def all_of(run: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        return [run(x, c) for c in conditions]

    def ours(x: object, c: Condition) -> torch.Tensor:
        return model(x, interventions=c, logits_to_keep=1)[0, -1]

    logits: dict[str, Sequence[torch.Tensor]] = {f"transformers, {k}": all_of(Masked(model, k)) for k in FLOATS}
    logits |= {"our forwards": all_of(ours), "the sweep": sweep(model, [x], conditions)[0]}
    # The very weights, in float32; there is nothing else in our model that a cast could round.
    model = model.float()
    sdpa, eager = (all_of(Masked(model, k)) for k in FLOATS)
    swept, forward = sweep(model, [x], conditions)[0], all_of(ours)
    for name, rows in logits.items():
        half[name].append(rms(rows, sdpa))
    pairs = {
        "the sweep, transformers' sdpa": (swept, sdpa), "the sweep, transformers' eager": (swept, eager),
        "the sweep, our forwards": (swept, forward), "transformers' sdpa, its eager": (sdpa, eager),
    }  # fmt: skip
    for name, (a, b) in pairs.items():
        wide.setdefault(name, []).append(max(map(apart, a, b)))
    wide.setdefault("moved", []).append(rms(sdpa[1:], [sdpa[0]] * (len(sdpa) - 1)))
    wide.setdefault("std", []).append(torch.stack(list(sdpa)).std().item())
