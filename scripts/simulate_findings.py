"""How often intervals miss and findings err, on made-up answers of which the truth is known.

`python scripts/simulate_findings.py --studies 1000` writes the table of docs/statistics.md. Every study has the default
conditions of a model of 8 layers, one to five questions a video, and answers that go together within a video: a
question is right where sqrt(r) a + sqrt(1 - r) b lies below a threshold, a and b standard normal, a drawn for each
video and condition, b for each answer.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from hookedvid.data.item import Item
from hookedvid.study.definition import Study
from hookedvid.study.protocols import Condition
from hookedvid.study.results import findings as laws
from hookedvid.study.results.statistics import Interval, Resamples
from hookedvid.study.results.summary import Outcomes, summarise

PAGE = Path(__file__).parents[1] / "docs" / "statistics.md"
BEGIN, END = "<!-- simulated -->\n", "<!-- end -->\n"
N_LAYERS, START = 8, 4  # text needs the video up to layer 4, where it needs it
VIDEOS, CORRELATIONS = (1, 3, 5, 10, 30, 100), (0.3, 0.9)
N_RESAMPLES = 1000
CONDITIONS = Study().conditions(N_LAYERS)
_ITEM = Item(id="0", video="0.mp4", question="?", options=("a", "b", "c", "d"), answer=0)


class Errors(NamedTuple):
    """What one made-up study got wrong: shares of intervals that hold the truth; whether any test or law errs.

    told: laws that are true and called supported, of those that are true.
    """

    accuracy: float
    change: float
    ratio: float
    unbounded: float
    star: bool
    law: bool
    told: float


def truth(c: Condition, large: bool) -> float:
    """The chance that a question is answered rightly under a condition: 0.7 throughout, or with large effects."""
    if not large:
        return 0.7
    hit = {"cumulative": (c.layer or 0) < START, "all layers": True, "windows": c.layer == START}
    return 0.3 if c.knockout == "LV-K" and hit.get(c.protocol, False) else 0.9


def simulate(n_videos: int, correlation: float, large: bool, seed: int) -> Errors:
    """One study."""
    g = np.random.default_rng(seed)
    video = np.repeat(np.arange(n_videos), g.integers(1, 6, n_videos))
    items = [replace(_ITEM, id=str(i), video=f"{v}.mp4") for i, v in enumerate(video)]
    right = np.array([truth(c, large) for c in CONDITIONS])
    a, b = g.standard_normal((len(right), n_videos)), g.standard_normal((len(right), len(items)))
    drawn = np.sqrt(correlation) * a[:, video] + np.sqrt(1 - correlation) * b
    o = Outcomes(items, CONDITIONS, [])
    o.score[:] = (drawn < stats.norm.ppf(right)[:, None]).astype(float)
    table = [s for s in summarise(o, N_RESAMPLES, seed) if s.group == "all"]
    resamples = Resamples.of([i.video for i in items], N_RESAMPLES, seed)
    changes = resamples.means(o.score[1:] - o.score[0], (-1.0, 1.0))
    null = [s.condition.label for s in table[1:] if truth(s.condition, large) == right[0]]
    found = laws.findings(o, "all", N_LAYERS, N_RESAMPLES, seed)
    wrong, told = judged(found, large, null)
    return Errors(
        covered([s.accuracy for s in table], right),
        covered(changes, right[1:] - right[0]),
        covered([s.ratio for s in table[1:]], right[1:] / right[0]),
        covered(resamples.means(drawn), np.zeros(len(right))),
        any(s.p_holm < 0.05 for s in table if s.condition.label in null),
        wrong,
        told,
    )


def judged(found: Sequence[laws.Finding], large: bool, null: Sequence[str]) -> tuple[bool, float]:
    """Whether a law is called supported that is not true or says what is not; and how many true ones are."""
    if not large:
        return any(f.supported for f in found), float("nan")
    said = {f.law: f.sentence for f in found if f.supported}
    low, high = (
        (int(x) for x in said["two stages"].split("of 8 [")[1].split("]")[0].split(", "))
        if "two stages" in said
        else (0, N_LAYERS)
    )
    critical = [part.split(" costs ")[0] for part in said.get("critical windows", "").split("; ")]
    wrong = (
        not low <= START <= high
        or not said.get("which flow dominates", "LV-K").startswith("LV-K")
        or any(label in null for label in critical)
        or "these edges or fewer edges" in said  # VT-K and VS-K cost what random edges cost
    )
    return wrong, sum(law in said for law in ("two stages", "which flow dominates", "critical windows")) / 3


def covered(intervals: Sequence[Interval], truths: np.ndarray) -> float:
    """The share of intervals that hold the truth; bounds that are not known exclude nothing."""
    missed = [t < i.low - 1e-9 or t > i.high + 1e-9 for i, t in zip(intervals, truths, strict=True)]
    return 1 - float(np.mean(missed))


def line(n_videos: int, correlation: float, large: bool, n_studies: int) -> str:
    """One row of the table."""
    each = np.array([simulate(n_videos, correlation, large, seed) for seed in range(n_studies)], dtype=float)
    *shares, told = each.mean(0)
    cells = [str(n_videos), str(correlation), "large" if large else "none", *(f"{100 * x:.1f}" for x in shares)]
    return f"| {' | '.join([*cells, f'{100 * told:.0f}' if large else ''])} |"


def main() -> None:
    """Writes the table into its page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000, help="made-up studies a row")
    n_studies = parser.parse_args().studies
    heads = (
        "videos",
        "correlation",
        "effects",
        "accuracy",
        "change",
        "ratio",
        "no ends",
        "star errs",
        "law errs",
        "found",
    )
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for large in (False, True):
        for correlation in CORRELATIONS:
            for n_videos in VIDEOS:
                rows.append(line(n_videos, correlation, large, n_studies))
                print(rows[-1], flush=True)
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    said = f"{n_studies} studies a row, in %.\n"
    PAGE.write_text(f"{before}{BEGIN}\n{said}\n" + "\n".join(rows) + f"\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
