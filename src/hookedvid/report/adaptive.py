"""What is told of an adaptive study: verdicts, after how many videos each, in intervals that hold for any number.

Conditions were asked about unequally many videos, until something was settled. Tests and intervals for a number of
videos that was fixed before do not hold for such rows, so none of them are shown.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hookedvid.report.plots.verdicts import verdicts
from hookedvid.study.definition import brief
from hookedvid.study.protocols.protocol import Sheet
from hookedvid.study.results import sequential
from hookedvid.study.results.adaptive import Course
from hookedvid.study.results.cells import number, short
from hookedvid.study.results.evidence import Finding, on
from hookedvid.study.results.sequential import CRITICAL, NOT_CRITICAL, OPEN
from hookedvid.study.results.statistics import Interval
from hookedvid.study.run.manifest import Manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE = "verdicts"
BRACKETS = (
    "Brackets are 95 % confidence sequences of the mean over videos, by betting: they hold at every number of videos "
    "at once, so also at the one after which a condition was stopped, and are wider than intervals for a number fixed "
    "before. Conditions were asked about unequally many videos: their costs are each against the baseline on the same "
    "videos, and differences between two conditions are not tested. The chance that any verdict of this study is wrong "
    "is 5 % at most."
)


class Told:
    """What an adaptive study says.

    Args:
        run: What was asked.
        rows: Of it.
    """

    def __init__(self, run: Manifest, rows: Sequence[Mapping[str, Any]]):
        self.run, self.scoring = run, run.scoring
        self.course = Course(run.study, run.items, run.conditions, run.scoring).replay(rows)
        self.last = self.course.last
        self._times = 100 if self.scoring.chooses else 1
        self.unit = "points" if self.scoring.chooses else self.scoring.unit
        self.smallest = f"{self._times * run.study.smallest_effect:g} {self.unit}"

    @cached_property
    def sheet(self) -> Sheet:
        """The table of verdicts."""
        n = len(self.course.videos)
        title = (
            f"{self.course.group} questions; layers from 1; cost in {self.unit} [95 % at any number of videos]\n"
            f"critical: shown to cost something; not critical: less than {self.smallest}; open: no videos left"
        )
        rows = [
            (d.condition.label, d.verdict, short(d.cost, self._times), f"{d.videos} of {n}", str(d.questions))
            for d in self.last
        ]
        return Sheet(title, ("condition", "verdict", "cost", "videos", "questions"), rows)

    @cached_property
    def baseline(self) -> Interval:
        """The mean score over the videos that were asked."""
        assert self.scoring.bounds is not None
        low, high = self.scoring.bounds
        middle, half = (low + high) / 2, (high - low) / 2
        found = sequential.interval(self.course.baseline_scores - middle, half)
        return Interval(*(x + middle for x in found))

    @cached_property
    def findings(self) -> list[Finding]:
        """Which conditions are critical, and how many are not."""
        guess = self.scoring.level(self.course.items)
        if self.scoring.chooses and not self.baseline.low > guess:
            text = f"the baseline's accuracy, {self._score()}, is not above chance, {guess:.0%}"
            return [Finding("any law", False, text)]
        by = {verdict: [d for d in self.last if d.verdict == verdict] for verdict in (CRITICAL, NOT_CRITICAL, OPEN)}
        text = "; ".join(
            f"{d.condition.label} costs {self.scoring.amount(d.cost)} ({on(d.questions, d.videos)})"
            for d in sorted(by[CRITICAL], key=lambda d: -d.cost.value)
        )
        text = text or "no condition is shown to cost anything"
        rest = f"{_count(len(by[NOT_CRITICAL]), 'condition')} shown to cost less than {self.smallest}"
        rest += f", {len(by[OPEN])} left open" if by[OPEN] else ""
        return [Finding("critical conditions", bool(by[CRITICAL]), f"{text}; {rest}")]

    @cached_property
    def stopped(self) -> str:
        """After how many videos conditions were stopped."""
        n, counts = len(self.course.videos), Counter(d.verdict for d in self.last)
        said = ", ".join(f"{counts[v]} {v}" for v in (CRITICAL, NOT_CRITICAL, OPEN) if counts[v])
        early = [d.videos for d in self.last if d.verdict != OPEN]
        several = f"{min(early)} to {max(early)}" if len(set(early)) > 1 else f"{max(early, default=0)}"
        after = f"; settled after {several} of {n} videos" if early else ""
        share = int(self.course.asked.sum()) / max(1, n * len(self.last))
        return f"{said}{after}; {share:.0%} of what asking all would have taken"

    @cached_property
    def opening(self) -> list[str]:
        """What was asked, what was found, how sure that is."""
        settings, rule = self.run.settings, self.run.study
        asked = (
            f"The model {settings['model_name']} was asked about {_count(len(self.course.videos), 'video')} at most, "
            f"of which it sees {settings['n_frames']} frames each: as it is (the baseline), and under "
            f"{_count(len(self.last), 'other condition')}. After every {_count(rule.look_every, 'video')} it was "
            "checked what is settled, and settled conditions were asked no more. A condition is critical when it is "
            f"shown to cost something, and not critical when it is shown to cost less than {self.smallest}."
        )
        found = f"The intact model's {self.scoring.title} is {self._score()}. Conditions: {self.stopped}."
        return [asked, found, BRACKETS]

    def figure(self) -> "Figure":
        """Costs with their confidence sequences."""
        title = f"What conditions cost, {self.course.group} questions, each until it was settled"
        counts = sorted({d.questions for d in self.last}) or [0]
        about = brief(self.run.settings, " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1]))))
        return verdicts(self.last, self.run.study.smallest_effect, title, self.unit, about, self._times)

    def _score(self) -> str:
        i, times, unit = self.baseline, self._times, self.scoring.unit
        value, low, high = (number(times * x, 1 if times > 1 else 3) for x in i)
        return f"{value} {unit} [{low}, {high}]"


def _count(n: int, name: str) -> str:
    return f"{n} {name}{'s' * (n != 1)}"
