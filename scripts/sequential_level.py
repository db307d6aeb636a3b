"""How often adaptive studies err, what they find and what they spend: made-up answers, and the tiny model's.

`python scripts/sequential_level.py --studies 1000` writes the tables of docs/adaptive.md. The tiny model's answers are
those that `tiny_answers.py` recorded. Of made-up ones the truth is known: a study has 20 conditions and 300 videos, or
900 (Video-MME's number), with one to five questions each. An answer is lost under a condition where sqrt(r) a +
sqrt(1 - r) b lies below one threshold and won where it lies above another, a and b standard normal, a drawn for each
video and condition, b for each answer, r = 0.5. The full study asks everything. It says that a condition costs
something as studies do, by exact sign flips over videos after Holm's correction, and that it costs less than the
smallest of interest where the 95 % interval of its mean lies below. What is asked at best is what a gambler would ask
who knew the truth and so which share to bet: no bets at the same thresholds grow faster.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from hookedvid.data.item import Item
from hookedvid.study.definition import Study
from hookedvid.study.results import sequential, statistics
from hookedvid.study.results.adaptive import Course
from hookedvid.study.results.cells import short
from hookedvid.study.results.evidence import Evidence
from hookedvid.study.results.group import Group
from hookedvid.study.results.sequential import CRITICAL, NOT_CRITICAL, OPEN, VERDICTS, Verdicts
from hookedvid.study.results.summary import Outcomes
from hookedvid.study.scorings.letters import Letters

PAGE = Path(__file__).parents[1] / "docs" / "adaptive.md"
ANSWERS = Path(__file__).parents[1] / "tests" / "study" / "tiny_answers.json"
N_LAYERS = 8  # of the tiny model
CORRELATION = 0.5  # of answers on one video
SMALLEST, EVERY = 0.1, 5  # as a study has them unless told
SIZES = (300, 900)  # videos: the tiny model's, Video-MME's
N_FULL = 50  # studies of a row that are held against full ones, whose exact tests take longest


class Effect(NamedTuple):
    """Chances that a question's answer is lost, and that it is won, under a condition; the cost is their difference."""

    lost: float
    won: float

    @property
    def cost(self) -> float:
        """Mean cost."""
        return self.lost - self.won


SAME, NOISE = Effect(0.0, 0.0), Effect(0.05, 0.05)
# What the conditions of a study do: the first of each pair a quarter of them, the second the others.
TRUTHS = {
    "nothing changes": (SAME, SAME),
    "answers change, as many lost as won: 5 % each": (NOISE, NOISE),
    "20 % each": (Effect(0.2, 0.2), Effect(0.2, 0.2)),
    "a quarter cost 30 points, the others nothing": (Effect(0.3, 0.0), SAME),
    "the same, answers change 5 % more each way": (Effect(0.35, 0.05), NOISE),
    "a quarter cost 15 points, the others nothing": (Effect(0.15, 0.0), SAME),
    "all cost 10 points": (Effect(0.1, 0.0), Effect(0.1, 0.0)),
    "all cost 10 points, 15 % lost, 5 % won": (Effect(0.15, 0.05), Effect(0.15, 0.05)),
    "all cost 5 points": (Effect(0.05, 0.0), Effect(0.05, 0.0)),
}


class Rates(NamedTuple):
    """Of simulated studies.

    Attributes:
        false_critical, false_not: Shares of studies with a wrong verdict of either kind.
        critical, not_critical: Shares of the conditions that cost something, and of those that cost less than the
            smallest of interest, for which that is found.
        left_open: Share of all conditions.
        asked: Of what the full study asks.
        at_best: The same, if it were known which share to bet.
        full: Share of the conditions that cost something for which the full study finds it.
        alike: Share of the settled conditions of which the full study says the same.
    """

    false_critical: float
    false_not: float
    critical: float
    not_critical: float
    left_open: float
    asked: float
    at_best: float
    full: float
    alike: float


def draw(effects: list[Effect], n_videos: int, g: np.random.Generator) -> np.ndarray:
    """Costs [condition, video] of one made-up study, means over each video's questions."""
    n = g.integers(1, 6, n_videos)
    video = np.repeat(np.arange(n_videos), n)
    a, b = g.standard_normal((len(effects), n_videos)), g.standard_normal((len(effects), len(video)))
    z = np.sqrt(CORRELATION) * a[:, video] + np.sqrt(1 - CORRELATION) * b
    lost, won = (stats.norm.ppf([[getattr(e, name)] for e in effects]) for name in ("lost", "won"))
    return statistics.by_video((z < lost).astype(float) - (z > -won), video, n_videos) / n


def settle(costs: np.ndarray, evidence: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Verdicts [study, condition] by logarithms of evidence of either kind, and how many videos each took."""
    n_videos = costs.shape[-1]
    found = Verdicts(*costs.shape[:-1])
    videos = np.full(costs.shape[:-1], n_videos)
    for n in range(EVERY, n_videos + 1, EVERY):
        before = found.open
        found.look(*(log_e[..., n - 1] for log_e in evidence), n >= 10)
        videos[before & ~found.open] = n
    return found.verdict, videos


def best_evidence(costs: np.ndarray, effects: list[Effect]) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the evidence of a gambler who bets the share under which wealth grows fastest."""
    log_e = np.zeros((2, *costs.shape))
    for effect in set(effects):
        mine, of_it = [e == effect for e in effects], draw([effect], 20_000, np.random.default_rng(0))[0]
        for which, (sign, mean) in enumerate(((1.0, 0.0), (-1.0, -SMALLEST))):
            many, few = ((sign * x + 1.0) / (mean + 1.0) for x in (of_it, costs[:, mine]))
            share = max(np.linspace(0.0, 1.0, 101), key=lambda f: np.log(np.maximum(1e-300, 1 - f + f * many)).mean())
            with np.errstate(divide="ignore"):
                log_e[which][:, mine] = np.log(1 - share + share * few).cumsum(-1)
    return log_e[0], log_e[1]


def simulate(truth: str, n_studies: int, n_conditions: int = 20, n_videos: int = SIZES[0], seed: int = 0) -> Rates:
    """What that many studies of one truth find."""
    few, others = TRUTHS[truth]
    effects = [few if i < n_conditions // 4 else others for i in range(n_conditions)]
    cost = np.array([e.cost for e in effects])
    at_most, at_least = cost <= 0, cost >= SMALLEST - 1e-12
    tallies: list[list[np.ndarray]] = []
    for start in range(0, n_studies, 50):
        size = min(50, n_studies - start)
        costs = np.stack([draw(effects, n_videos, np.random.default_rng([seed, start + i])) for i in range(size)])
        verdict, videos = settle(costs, sequential.evidence(costs, SMALLEST, 1.0))
        critical, not_, open_ = (verdict == VERDICTS.index(v) for v in (CRITICAL, NOT_CRITICAL, OPEN))
        wrong = [(critical & at_most).any(1), (not_ & at_least).any(1)]
        found = [_share(critical[:, ~at_most]), _share(not_[:, ~at_least]), _share(open_)]
        asked = [_asked(videos, n_videos), _asked(settle(costs, best_evidence(costs, effects))[1], n_videos)]
        told = [np.full(size, np.nan)] * 2
        if start < N_FULL:
            above, below = (np.stack(each) for each in zip(*map(full_study, costs), strict=True))
            unlike = ((critical & ~above) | (not_ & ~below)).sum(1)
            told = [_share(above[:, ~at_most]), 1 - unlike / np.maximum(1, (~open_).sum(1))]
        tallies.append([*wrong, *found, *asked, *told])
    return Rates(*(statistics.known_mean(np.concatenate(each)) for each in zip(*tallies, strict=True)))


def full_study(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of which conditions [condition] a study that asks everything says that they cost something, and little."""
    above = (statistics.holm([statistics.sign_flips(c) for c in costs]) < statistics.LEVEL) & (costs.mean(1) > 0)
    deviation = costs.std(1, ddof=1) / np.sqrt(costs.shape[1])
    return above, costs.mean(1) + stats.norm.ppf(1 - statistics.LEVEL / 2) * deviation < SMALLEST


def _asked(videos: np.ndarray, n_videos: int) -> np.ndarray:
    """Of what full studies ask; the baseline is asked as long as any condition."""
    return (videos.sum(1) + videos.max(1)) / (n_videos * (videos.shape[1] + 1))


def _share(some: np.ndarray) -> np.ndarray:
    """Of each study; NaN where there are none."""
    return some.mean(1) if some.shape[1] else np.full(len(some), np.nan)


class Tiny(NamedTuple):
    """The tiny model's answers as an adaptive study takes them, and as a full one does."""

    course: Course
    full: Evidence

    @property
    def asked(self) -> float:
        """Rows that the adaptive study asked, of the full one's on the same questions; the baseline's among both."""
        course = self.course
        n = sum(d.questions for d in course.last) + max(d.questions for d in course.last)
        return n / (len(course.items) * (len(course.conditions) + 1))

    def says(self, label: str) -> tuple[str, ...]:
        """Verdicts on a condition that the full study gives; both, of one that costs something, but little."""
        little = self.full.cost[label].size.high < SMALLEST
        return (CRITICAL,) * self.full.costs(label) + (NOT_CRITICAL,) * little


def tiny(study: Study) -> Tiny:
    """Recorded answers of the default study's conditions, read in both ways."""
    data = json.loads(ANSWERS.read_text(encoding="utf-8"))
    conditions = study.conditions(N_LAYERS)
    assert [c.label for c in conditions] == data["conditions"]
    one = Item(id="0", video="0", question="?", options=("a", "b", "c", "d"), answer=0)
    items = [replace(one, id=str(i), video=str(v), family=family) for i, (v, family) in enumerate(data["items"])]
    bits = [np.unpackbits(np.frombuffer(bytes.fromhex(line), np.uint8))[: len(items)] for line in data["right"]]
    rows = [
        {"item": item.id, "condition": c.label, "status": "ok", "correct": bool(right), "prob": None, "margin": None}
        for c, line in zip(conditions, bits, strict=True)
        for item, right in zip(items, line.tolist(), strict=True)
    ]
    group = Group(Outcomes(items, conditions, rows), "video", N_LAYERS)
    course = Course(study, items, conditions, Letters()).replay(rows)
    return Tiny(course, group.evidence(conditions[1:], "accuracy"))


def tiny_table() -> list[str]:
    """What both say of each condition."""
    found = tiny(Study(adaptive=True))
    heads = ("condition", "adaptive", "videos", "cost", "full study", "cost")
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for d in found.course.last:
        label, full = d.condition.label, found.says(d.condition.label)
        told = f"{CRITICAL}, but less than {100 * SMALLEST:.0f}" if len(full) > 1 else "".join(full)
        cells = (label, d.verdict, str(d.videos), short(d.cost), told, short(found.full.cost[label].size))
        rows.append(f"| {' | '.join(cells)} |")
    n, alike = len(found.course.videos), sum(d.verdict in found.says(d.condition.label) for d in found.course.last)
    said = f"{100 * found.asked:.0f} % of the rows of the full study, which has {n} videos and says the same of {alike}"
    return [f"{said} of {len(found.course.last)} conditions.", "", *rows]


def main() -> None:
    """Writes the tables into their page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000, help="made-up studies a row")
    n_studies = parser.parse_args().studies
    heads = ("truth", "critical errs", "not critical errs", "critical found", "not critical found", "open", "asked",
             "asked at best", "full study finds", "same verdict")  # fmt: skip
    lines = [f"{n_studies} studies a row, {min(n_studies, N_FULL)} of them against full ones; in %."]
    for n_videos in SIZES:
        lines += ["", f"{n_videos} videos:", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
        for truth in TRUTHS:
            rates = simulate(truth, n_studies, n_videos=n_videos)
            cells = ("" if np.isnan(x) else f"{100 * x:.1f}" for x in rates)
            lines.append(f"| {' | '.join([truth, *cells])} |")
            print(lines[-1], flush=True)
    _write("simulated", lines)
    _write("tiny", tiny_table())


def _write(name: str, lines: list[str]) -> None:
    """Put lines between the page's marks of that name and the next end."""
    before, rest = PAGE.read_text(encoding="utf-8").split(f"<!-- {name} -->\n")
    body, end = "\n".join(lines), rest.partition("<!-- end -->\n")[2]
    PAGE.write_text(f"{before}<!-- {name} -->\n\n{body}\n\n<!-- end -->\n{end}", encoding="utf-8")


if __name__ == "__main__":
    main()
