"""What a protocol answers for: the conditions it runs, and what their rows say in a table, findings and a figure.

Each protocol is a file of this folder, and a line of `registry`. The paper's own five came first: their conditions are
functions of the package, their findings and figures stand in `results.findings` and `report.plots`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from hookedvid.errors import ConfigError
from hookedvid.study.protocols import Condition
from hookedvid.study.results.charts import Chart
from hookedvid.study.results.evidence import Finding
from hookedvid.study.results.group import Group
from hookedvid.values.interventions import Knockout


@dataclass(frozen=True)
class Setting:
    """What conditions are made of.

    Attributes:
        knockouts: The study's, each once.
        n_layers, n_heads: Of the model.
        n_frames: That a video has, as many as are asked for.
        frames_together: Frames whose tokens are the same.
        step, grid, drop_at, seed: As in a Study.
    """

    knockouts: Sequence[Knockout]
    n_layers: int
    n_heads: int
    step: int = 1
    grid: int = 0
    drop_at: int = 0
    seed: int = 0
    n_frames: int = 0
    frames_together: int = 1

    def first(self, protocol: str) -> Knockout:
        """The first knockout, which some protocols ask about alone.

        Raises:
            ConfigError: Where the study names none.
        """
        if not self.knockouts:
            raise ConfigError(f'{protocol} cuts the first knockout, and there is none: knockouts = ["LV-K"]')
        return self.knockouts[0]


@dataclass(frozen=True)
class Sheet:
    """A table in words: a title, heads of columns, rows of as many cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Reading:
    """What the rows of a protocol say of one group of items."""

    sheet: Sheet
    findings: Sequence[Finding]
    chart: Chart


class Protocol(ABC):
    """One protocol of a study."""

    name: ClassVar[str]  # in study files, of its conditions and of its figure's file
    against_baseline: ClassVar[bool] = False  # each condition can be read against the baseline alone
    sources: ClassVar[Mapping[str, Any]] = {}  # that its conditions take from, as a study file defines them
    needs_logits: ClassVar[bool] = False  # whether what is scored has to be a function of logits

    @abstractmethod
    def conditions(self, s: Setting) -> list[Condition]:
        """What it runs, besides the baseline; labels are its own."""

    @abstractmethod
    def read(self, group: Group) -> Reading | None:
        """What the rows say; None where a scoring has nothing that could be read so."""
