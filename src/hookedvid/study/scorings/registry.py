"""The scorings there are, by the names that study files and rows hold."""

from hookedvid.study.scorings.generate import Generate
from hookedvid.study.scorings.grounding import Grounding
from hookedvid.study.scorings.letters import Letters
from hookedvid.study.scorings.likelihood import Likelihood
from hookedvid.study.scorings.scoring import Scoring
from hookedvid.study.scorings.words import Words

SCORINGS: dict[str, type[Scoring]] = {s.name: s for s in (Letters, Words, Generate, Likelihood, Grounding)}
