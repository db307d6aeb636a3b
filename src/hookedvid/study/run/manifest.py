"""The plan of a run beside its rows, so that its table can be made again without model or videos."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hookedvid.data.convention import Convention
from hookedvid.data.item import Item
from hookedvid.errors import DataError, HookedVidError
from hookedvid.study import conventions, protocols
from hookedvid.study.definition import Plan, Study
from hookedvid.study.protocols import Condition, Estimate
from hookedvid.study.records import Folder, Records
from hookedvid.study.results import file_names as results
from hookedvid.study.rows import Row, digest, json_bytes, named, sealed
from hookedvid.study.run.tasks import Audit
from hookedvid.study.run.timing import Timing
from hookedvid.study.scorings.registry import SCORINGS
from hookedvid.study.scorings.scoring import Scoring
from hookedvid.values.files import write_bytes
from hookedvid.values.interventions import from_json, to_json
from hookedvid.values.serial import from_dict, numbered, to_dict, unnumbered

FORMAT = 1  # of the file: raised whenever its fields change


@dataclass(frozen=True)
class Manifest:
    """What a finished run asked: items, conditions in order, and the key of each pair's row."""

    study: Study
    settings: Mapping[str, Any]
    annotations: Path
    n_layers: int
    about: str
    items: list[Item]
    conditions: list[Condition]
    keys: list[list[str]]  # [item][condition]; empty where an adaptive study did not ask
    audit: Mapping[str, Any] = field(default_factory=dict[str, Any])  # rows run again, largest difference of a logit
    left_out: Mapping[str, str] = field(default_factory=dict[str, Any])  # reasons by id of what was not asked
    timing: Mapping[str, Any] = field(default_factory=dict[str, Any])  # seconds of the last run, see `timing.Timing`

    @classmethod
    def of(
        cls, plan: Plan, n_layers: int, about: str, audit: Audit | None = None, timing: Timing | None = None,
        taken: Collection[str] | None = None,
    ) -> "Manifest":  # fmt: skip
        """The manifest of a plan that was run.

        Args:
            taken: Keys of the rows that an adaptive study asked for; all unless given.
        """
        n = len(plan.conditions)
        keys = [t.key if taken is None or t.key in taken else "" for _, _, t in plan.tasks]
        rows = [keys[i : i + n] for i in range(0, len(keys), n)]
        audited = {} if audit is None else {"rows": audit.n, "largest": audit.largest}
        seconds = {} if timing is None else asdict(timing)
        return cls(
            plan.study, plan.settings, plan.annotations, n_layers, about, plan.items, plan.conditions, rows, audited,
            plan.left_out, seconds,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Hash of what the results show: every row that was asked for, and how they are summed up."""
        fields = self._data()
        rule = ("adaptive", "smallest_effect", "look_every", "at_once") if self.study.adaptive else ()
        summed = {name: fields["study"][name] for name in ("n_resamples", "seed", "keep", *rule)}
        rows = {name: fields[name] for name in ("settings", "items", "conditions", "keys", "left_out")}
        return digest(json_bytes([summed, rows]))

    def _data(self) -> dict[str, Any]:
        return {
            "study": to_dict(self.study),
            "settings": dict(self.settings),
            "annotations": str(self.annotations.resolve()),
            "n_layers": self.n_layers,
            "about": self.about,
            "items": [to_dict(i) for i in self.items],
            "conditions": [
                {**to_dict(replace(c, interventions=()), brief=True), "interventions": to_json(c.interventions)}
                for c in self.conditions
            ],
            "keys": self.keys,
            "audit": dict(self.audit),
            "left_out": dict(self.left_out),
            "timing": dict(self.timing),
        }

    def save(self, folder: Path, presented: Collection[str]) -> Path | None:
        """Write it into the run's folder; where the results of another study were moved to, if there were any.

        Args:
            presented: Names of the files that show results, which are moved.
        """
        earlier = results.set_aside(folder, self.name, presented)
        write_bytes(
            folder / results.MANIFEST, sealed(json_bytes(numbered({"name": self.name, **self._data()}, FORMAT)))
        )
        return earlier

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """The manifest of a run's folder.

        Raises:
            DataError: Where there is none, or one of another format, or one that no study wrote.
        """
        path = folder / results.MANIFEST
        data = unnumbered(results.manifest_fields(folder), FORMAT, path, DataError)
        try:
            stored = from_dict(_Stored, data, DataError)
            conditions = [replace(c.condition, interventions=from_json(c.interventions)) for c in stored.conditions]
            stored.check(conditions)
        except HookedVidError as e:
            raise DataError(f"{path} is not as a study writes it: {e}; run the study's command once more") from e
        return cls(
            stored.study, stored.settings, Path(stored.annotations), stored.n_layers, stored.about, list(stored.items),
            conditions, [list(keys) for keys in stored.keys], stored.audit, stored.left_out, stored.timing,
        )  # fmt: skip

    @property
    def convention(self) -> Convention | None:
        """The convention that the items were asked by, and generated texts read."""
        name = self.settings["convention"]
        return conventions.convention(name, self.items, self.dataset) if name else None

    @property
    def scoring(self) -> Scoring:
        """How its rows are scored, by that convention."""
        return SCORINGS[self.settings["scoring"]](self.convention)

    @property
    def dataset(self) -> str:
        """The published dataset that was asked, or as whose its items were; empty where nothing tells it."""
        return self.study.dataset.partition(":")[0] or self.settings["convention"].partition("/")[0]

    def missing(self, folder: Folder) -> int:
        """How many different rows are not in the folder yet."""
        return len({k for keys in self.keys for k in keys if k} - Records.of(folder).read().keys())

    def rows(self, folder: Folder) -> list[Row]:
        """The stored rows, one for each item and condition that was asked.

        Raises:
            DataError: If some are missing.
        """
        records = Records.of(folder)
        if missing := self.missing(records):
            damaged = f" ({records.damaged})" if records.damaged else ""
            raise DataError(
                f"{missing} rows of this study are not in {records.folder}; run it again to fill them in{damaged}"
            )
        stored, names = records.read(), [(c.label, c.protocol, c.knockout, c.layer) for c in self.conditions]
        pairs = ((key, name) for keys in self.keys for key, name in zip(keys, names, strict=True))
        return [named(stored[key], *name) for key, name in pairs if key]


@dataclass(frozen=True, kw_only=True)
class _StoredCondition:
    label: str
    interventions: tuple[dict[str, Any], ...]
    protocol: str
    knockout: str
    layer: int | None
    estimate: Estimate | None = None

    @property
    def condition(self) -> Condition:
        return Condition(self.label, (), self.protocol, self.knockout, self.layer, self.estimate)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """The fields of a manifest's file, each of its type: anybody may have written it, checksum included."""

    name: str
    study: Study
    settings: dict[str, Any]
    annotations: str
    n_layers: int
    about: str
    items: tuple[Item, ...]
    conditions: tuple[_StoredCondition, ...]
    keys: tuple[tuple[str, ...], ...]
    audit: dict[str, Any]
    left_out: dict[str, Any]
    timing: dict[str, Any]

    def check(self, conditions: Sequence[Condition]) -> None:
        """Raises DataError for fields that do not fit each other."""
        texts = ("model", "model_name", "dtype", "kernel", "convention", "sampler")
        ids = [item.id for item in self.items]
        fits = {
            "settings": all(isinstance(self.settings.get(name), str) for name in texts)
            and isinstance(self.settings.get("n_frames"), int)
            and self.settings.get("scoring") == self.study.scoring,
            "items": bool(ids) and len(set(ids)) == len(ids),
            "conditions": conditions[:1] == [protocols.BASELINE],
            "keys": [len(keys) for keys in self.keys] == [len(conditions)] * len(ids),
            "n_layers": self.n_layers > 0,
            "annotations": "\0" not in self.annotations,
            "left_out": all(isinstance(reason, str) for reason in self.left_out.values()),
        }
        if wrong := [name for name, right in fits.items() if not right]:
            raise DataError(f"wrong: {', '.join(wrong)}")
