"""A study: what to ask of which model under which conditions, run so that it can stop and go on."""

import importlib.metadata
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hookedvid.data.item import Item, read_items, video_path
from hookedvid.errors import ConfigError, DataError, nearest
from hookedvid.interventions import LV_K, PATHWAYS, VS_K, VT_K, Knockout, from_json, to_json
from hookedvid.study import grounding, protocols, scoring
from hookedvid.study.protocols import Condition
from hookedvid.study.records import Task, digest, model_hash, video_hash
from hookedvid.study.scoring import Scoring
from hookedvid.values import from_dict

PROTOCOLS = ("baseline", "cumulative", "all-layers", "windows", "random-control")
KNOCKOUTS: dict[str, Knockout] = {k.name: k for k in (LV_K, VT_K, VS_K, *PATHWAYS.values())}


# What a record says of scorings that follow a rule.
SCORED_BY = {
    "generate": scoring.EXTRACTOR,
    "likelihood": "likelihood of the reference and its end",
    "grounding": grounding.PARSER,
}

Reuse = Literal["none", "layers", "layers+positions"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """The fields of a study file (TOML); everything that changes a number is one of them.

    model, overrides: as `from_pretrained` takes them. items: an annotation file (empty: the shapes clips, made
    on the spot).
    protocols, knockouts: which to run, by name; cumulative takes the first knockout. step: of cumulative.
    width: of windows (0: the paper's 4, or 2 on models of 16 layers and fewer). custom: lists of interventions
    in their JSON form, one condition each.
    scoring: `letters`, `words` and `generate` choose among an item's options; `likelihood` is that of its reference,
    `grounding` the overlap of the span it names with its own. frame_order: `shuffled` permutes the sampled frames of
    every clip.
    reuse: `none` runs every condition from the pixels; `layers` starts it at its first changed block, which gives
    the same bits; `layers+positions` also shares the video's rows between conditions and questions
    (`hookedvid.sweep`), which gives the same numbers up to rounding, checked on one row in a hundred.
    n_frames, sampler, time_instruction: as in `prepare`; the model's own unless given.
    """

    model: str = "tiny"
    overrides: dict = field(default_factory=dict)
    items: str = ""
    protocols: tuple[str, ...] = PROTOCOLS
    knockouts: tuple[str, ...] = ("LV-K", "VT-K", "VS-K")
    step: int = 1
    width: int = 0
    custom: tuple[tuple[dict, ...], ...] = ()
    scoring: Scoring = "letters"
    n_frames: int | None = None
    sampler: str | None = None
    time_instruction: str | None = None
    frame_order: Literal["time", "shuffled"] = "time"
    markers_are_language: bool = False
    kernel: Literal["sdpa", "eager"] = "sdpa"
    reuse: Reuse = "layers+positions"
    dtype: str | None = None
    n_resamples: int = 2000
    seed: int = 0

    def __post_init__(self):
        for given, known, what in ((self.protocols, PROTOCOLS, "protocol"), (self.knockouts, KNOCKOUTS, "knockout")):
            for name in given:
                if name not in known:
                    raise ConfigError(f"no {what} {name!r} ({nearest(name, known)})")
        if self.scoring not in scoring.SCORINGS:
            raise ConfigError(f"no scoring {self.scoring!r} ({nearest(self.scoring, scoring.SCORINGS)})")

    @classmethod
    def from_toml(cls, path: str | Path) -> "Study":
        """The study of a file. Raises ConfigError naming every unknown or wrong field."""
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as e:
            raise ConfigError(f"cannot read study {str(path)!r}: {e}") from e
        return from_dict(cls, data, ConfigError)

    def conditions(self, n_layers: int) -> list[Condition]:
        """Every condition for a model of that depth; the baseline first, whether it is asked for or not."""
        cuts = [KNOCKOUTS[k] for k in self.knockouts]
        width = self.width or protocols.window_width(n_layers)
        found = [protocols.BASELINE]
        if "cumulative" in self.protocols:
            found += protocols.cumulative(cuts[0], n_layers, self.step)
        if "all-layers" in self.protocols:
            found += protocols.everywhere(cuts)
        if "windows" in self.protocols:
            found += [c for k in cuts for c in protocols.windows(k, n_layers, width)]
        if "random-control" in self.protocols:
            found += protocols.random_control(cuts, self.seed)
        return found + protocols.custom([from_json(c) for c in self.custom])


@dataclass(frozen=True)
class Plan:
    """A study laid out: every task with its key, in running order."""

    study: Study
    items: list[Item]
    annotations: Path
    conditions: list[Condition]
    settings: dict[str, Any]
    tasks: list[tuple[Item, Condition, Task]] = field(default_factory=list)


def settings_of(study: Study, model: Any) -> dict[str, Any]:
    """What fixes every number besides item, video and interventions, as it stands in each row."""
    cfg = model.cfg
    versions = {p: importlib.metadata.version(p) for p in ("hookedvid", "torch", "av")}
    return {
        "model": model_hash(model),
        "model_name": cfg.model_name or cfg.family,
        "n_frames": cfg.n_frames if study.n_frames is None else study.n_frames,
        "sampler": study.sampler or cfg.sampler,
        "frame_order": study.frame_order if study.frame_order == "time" else f"shuffled by seed {study.seed}",
        "scoring": SCORED_BY.get(study.scoring, study.scoring),
        "prompt": cfg.prompt,
        "time_instruction": study.time_instruction or cfg.time_instruction,
        "markers_are_language": study.markers_are_language,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "kernel": model.kernel,
        "device": model.device.type,
        "reuse": study.reuse,
        "empty_row": "zero",
        **versions,
    }


def plan(study: Study, model: Any, annotations: Path, limit: int | None = None) -> Plan:
    """Tasks and their keys, before anything runs; videos are read once, for their hashes.

    Raises DataError for items that have not what their answers are scored against.
    """
    items = read_items(annotations)[:limit]
    _check_scorable(items, study.scoring)
    conditions = study.conditions(model.cfg.n_layers)
    laid = Plan(study, items, annotations, conditions, settings_of(study, model))
    if study.frame_order == "shuffled" and laid.settings["time_instruction"] != "none":
        raise ConfigError('shuffled frames have no times to tell: set time_instruction = "none"')
    hashes: dict[Path, str] = {}
    for item in items:
        path = video_path(item, annotations)
        if path not in hashes:
            hashes[path] = video_hash(path)
        gold = {"likelihood": (item.reference,), "grounding": (item.span,)}.get(study.scoring, ())
        content = digest(repr((item.question, item.options, item.answer, *gold)).encode())
        for c in conditions:
            settings = {**laid.settings, "video": hashes[path], "question": content}
            task = Task(
                item.id, item.video, item.family, c.label, c.protocol, c.knockout, c.layer,
                to_json(c.interventions), settings,
            )  # fmt: skip
            laid.tasks.append((item, c, task))
    return laid


def _check_scorable(items: Sequence[Item], scoring: Scoring) -> None:
    lacking = {
        "likelihood": ("reference", [i.id for i in items if not i.reference]),
        "grounding": ("span", [i.id for i in items if i.span is None]),
    }
    options = [i.id for i in items if len(i.options) < 2 or i.answer is None]
    what, unusable = lacking.get(scoring, ("options or no answer", options))
    if unusable:
        raise DataError(
            f"{len(unusable)} items have no {what} to score against: {unusable[:3]}; this study scores by {scoring}"
        )


def brief(settings: Mapping[str, Any], n: int) -> str:
    """What a plot must name: model, frames, dtype and how many questions."""
    return f"{settings['model_name']}, {settings['n_frames']} frames, {settings['dtype']}, n = {n} questions"


def describe(settings: Mapping[str, Any]) -> str:
    """The settings a figure must name, in one line."""
    return (
        f"{settings['model_name']} ({settings['model']}), {settings['n_frames']} frames {settings['sampler']}, "
        f"{settings['dtype']}, {settings['kernel']}, scored by {settings['scoring']}"
    )
