"""A study: what to ask of which model under which conditions, run so that it can stop and go on."""

import importlib.metadata
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from hookedvid.data.convention import Convention
from hookedvid.data.item import Item, read_items, subtitles_path, video_path
from hookedvid.errors import ConfigError, HookError, InterventionError, nearest
from hookedvid.families.registry import named_instruction, template
from hookedvid.nn.hooks import hooked
from hookedvid.nn.model import Model
from hookedvid.study import conventions, protocols
from hookedvid.study.protocols import Condition, InJson
from hookedvid.study.protocols.protocol import Setting
from hookedvid.study.protocols.registry import REGISTRY
from hookedvid.study.records import model_hash
from hookedvid.study.rows import Task, canonical, digest, key_of
from hookedvid.study.scorings.registry import SCORINGS
from hookedvid.study.scorings.scoring import Scoring
from hookedvid.study.sources import Source, check_named, named
from hookedvid.study.sources import names as source_names
from hookedvid.values.effects import effects
from hookedvid.values.files import read_regular
from hookedvid.values.interventions import NAMED as KNOCKOUTS
from hookedvid.values.interventions import Intervention, from_json, to_json
from hookedvid.values.progress import bar
from hookedvid.values.selectors import NAMES as SELECTORS
from hookedvid.values.selectors import parse_selector, unknown_name
from hookedvid.values.serial import as_whole, from_dict, is_number
from hookedvid.video import samplers, subtitles
from hookedvid.video.source import video_hash

WHOLE = ("baseline", "cumulative", "all-layers", "windows", "random-control")
PROTOCOLS = (*WHOLE, protocols.EFFICIENCY, *REGISTRY)

LARGEST = 16 << 20  # bytes of a study file
Reuse = Literal["none", "layers", "layers+positions"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """The fields of a study file (TOML); everything that changes a number is one of them.

    Attributes:
        model, overrides: As `from_pretrained` takes them.
        items: An annotation file.
        dataset, data: In its place, the name of a published dataset, as `read_dataset` takes it, and the folder it was
            downloaded to (neither: the shapes clips, made on the spot). Paths are relative to the study file.
        protocols, knockouts: Which to run, by name; cumulative, heads and attribution take the first knockout.
        step: Of cumulative, and of the layers that heads looks at.
        width: Of windows (0: the paper's 4, or 2 on models of 16 layers and fewer).
        grid: Layers between the exits, and the windows, that efficiency tries (0: an eighth of the depth).
        drop_at: Layers that see all of the video before pruning drops from it (0: a quarter of the depth).
        keep: The share of the intact accuracy that its cheapest has to keep.
        custom: Lists of interventions, one condition each: lines of text (`LV-K @ 4:8 heads 0,3 weight 0.5`, see
            `hookedvid.values.interventions.parse`), values, or their JSON form (which is kept).
        sources: What interventions take activations from, by name: another item's run (`{item = "ID"}`), the item's
            own question on another video (`{paired = "video", seed = 0}`), its own intact run (`{paired = "itself"}`),
            or mean and standard deviation of the positions they name over items (`{reference = "all"}`, or ids), see
            `hookedvid.study.sources`. Conditions that take from one are run alone.
        scoring: One of `hookedvid.study.scorings`: `letters`, `words` and `generate` choose among an item's options;
            `likelihood` is that of its reference, `grounding` the overlap of the span it names with its own.
        frame_order: `shuffled` permutes the sampled frames of every clip.
        reuse: `none` runs every condition from the pixels; `layers` starts it at its first changed block, which gives
            the same bits; `layers+positions` also shares the video's rows between conditions and questions
            (`hookedvid.sweep.run`), which gives the same numbers up to rounding, checked on one row in a hundred.
        convention: An evaluator's way to ask and score, by its name in `hookedvid.study.conventions` (empty: the
            model's template, and with `generate` our own extractor).
        n_frames, sampler, time_instruction: As in `prepare`; the convention's or else the model's own unless given.
        adaptive: Whether a condition is asked no more once it is settled whether it is critical, see
            `hookedvid.study.results.adaptive`. Rows and their keys are the same.
        smallest_effect: The cost from which on a condition is of interest, in the score's units (0.1 of an accuracy: 10
            points); one shown to cost less is not critical.
        look_every: Videos between two looks at what is settled.
        at_once: Conditions asked together, in their order; the next ones when all of these are settled (0: all).
    """

    model: str = "tiny"
    overrides: dict[str, Any] = field(default_factory=dict[str, Any])
    items: str = ""
    dataset: str = ""
    data: str = ""
    protocols: tuple[str, ...] = WHOLE
    knockouts: tuple[str, ...] = ("LV-K", "VT-K", "VS-K")
    step: int = 1
    width: int = 0
    grid: int = 0
    drop_at: int = 0
    keep: float = 0.97
    custom: tuple[tuple[InJson | str | Intervention, ...], ...] = ()
    sources: dict[str, Any] = field(default_factory=dict[str, Any])
    scoring: str = "letters"
    convention: str = ""
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
    adaptive: bool = False
    smallest_effect: float = 0.1
    look_every: int = 5
    at_once: int = 0

    def __post_init__(self):
        for names, known, what in ((self.protocols, PROTOCOLS, "protocol"), (self.knockouts, KNOCKOUTS, "knockout")):
            for name in names:
                if name not in known:
                    raise ConfigError(f"no {what} {name!r} ({nearest(name, known)})")
        if self.items and (self.dataset or self.data):
            raise ConfigError("a study asks either its items or a dataset in the folder data; give one of the two")
        if self.scoring not in SCORINGS:
            raise ConfigError(f"no scoring {self.scoring!r} ({nearest(self.scoring, SCORINGS)})")
        custom = protocols.in_json(self.custom)
        object.__setattr__(self, "custom", custom)
        sources = self.named_sources
        for several in custom:
            check_named(from_json(several), sources)
        samplers.check(self.sampler or "linspace", 1 if self.n_frames is None else self.n_frames)
        self._check_numbers()
        for name in self.protocols:
            if name in REGISTRY and REGISTRY[name].needs_logits and SCORINGS[self.scoring]().reads_text:
                raise ConfigError(
                    f"protocol {name!r} differentiates what is scored, and {self.scoring!r} reads a text; score by "
                    "letters, words or likelihood"
                )
        if not 0 < self.keep <= 1:
            raise ConfigError(f"keep is {self.keep}; it is a share of the intact accuracy, above 0 and at most 1")
        if self.adaptive:
            self._check_adaptive()
        if self.convention:
            conventions.known(self.convention)
            if not SCORINGS[self.scoring].lettered:
                raise ConfigError(
                    f'conventions letter the options; score "generate" or "letters", not "{self.scoring}"'
                )

    def _check_adaptive(self) -> None:
        known = (*WHOLE, *(name for name, protocol in REGISTRY.items() if protocol.against_baseline))
        if others := [name for name in self.protocols if name not in known]:
            raise ConfigError(
                f"{others[0]} compares its conditions with each other, which an adaptive study asks about unequally "
                f"many videos; leave adaptive away, or take {', '.join(known)}"
            )
        scoring = SCORINGS[self.scoring]
        if scoring.bounds is None:
            raise ConfigError(
                f"an adaptive study bets on scores that have ends, and those of {self.scoring!r} have none; leave "
                f"adaptive away, or score {' or '.join(n for n, s in SCORINGS.items() if s.bounds is not None)}"
            )
        span = scoring.bounds[1] - scoring.bounds[0]
        if not (is_number(self.smallest_effect) and 0 < self.smallest_effect < span):
            raise ConfigError(f"smallest_effect is {self.smallest_effect}; give a cost above 0 and below {span:g}")

    def _check_numbers(self) -> None:
        # 100,000 resamples of 2,700 questions take 2 GB; 10,000 layers are more than any model has.
        bounds = {"n_resamples": (1, 100_000), "seed": (0, 2**63 - 1)}
        bounds |= {"step": (1, 10_000), "width": (0, 10_000), "grid": (0, 10_000), "drop_at": (0, 10_000)}
        bounds |= {"look_every": (1, 10_000), "at_once": (0, 100_000)}
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if as_whole(value) is None or not least <= value <= most:
                raise ConfigError(f"{name} is {value}; give a whole number from {least:,} to {most:,}")

    @property
    def named_sources(self) -> dict[str, Source]:
        """Its sources, and those that its protocols take from.

        Raises:
            ConfigError: For what is none, and for one that goes by the name of a protocol's.
        """
        return named(self.sources, {name: REGISTRY[name].sources for name in self.protocols if name in REGISTRY})

    @classmethod
    def from_toml(cls, path: str | Path) -> "Study":
        """The study of a file.

        Raises:
            ConfigError: Naming every unknown or wrong field.
        """
        try:
            data = tomllib.loads(read_regular(Path(path), LARGEST, ConfigError).decode())
        except (OSError, ValueError, RecursionError) as e:  # no file; no UTF-8 or no TOML; nested without end
            raise ConfigError(f"cannot read study {str(path)!r}: {e}") from e
        return from_dict(cls, data, ConfigError)

    def conditions(
        self, n_layers: int, n_heads: int = 0, n_frames: int = 0, frames_together: int = 1
    ) -> list[Condition]:
        """Every condition for a model of that size; the baseline first, whether it is asked for or not.

        A knockout named twice is run once, and a custom condition that is one of the others is left out.

        Args:
            frames_together: Frames whose tokens are the same, as of pairs and of merged clips.

        Raises:
            ConfigError: For two that go by one name.
        """
        cuts = [KNOCKOUTS[k] for k in dict.fromkeys(self.knockouts)]
        width = self.width or protocols.window_width(n_layers)
        setting = Setting(
            cuts, n_layers, n_heads, self.step, self.grid, self.drop_at, self.seed, n_frames, frames_together
        )
        conditions = [protocols.BASELINE]
        if "cumulative" in self.protocols:
            conditions += protocols.cumulative(setting.first("cumulative"), n_layers, self.step)
        if "all-layers" in self.protocols:
            conditions += protocols.everywhere(cuts)
        if "windows" in self.protocols:
            conditions += [c for k in cuts for c in protocols.windows(k, n_layers, width)]
        if "random-control" in self.protocols:
            conditions += protocols.random_control(cuts, self.seed)
        if protocols.EFFICIENCY in self.protocols:
            conditions += protocols.efficiency(n_layers, self.grid)
        for name, protocol in REGISTRY.items():
            conditions += protocol.conditions(setting) if name in self.protocols else []
        named = {c.label: c.interventions for c in conditions}
        for c in protocols.custom(self.custom):
            if named.setdefault(c.label, c.interventions) != c.interventions:
                raise ConfigError(f"two conditions are called {c.label!r}; give a knockout of one another name")
            conditions += [c] * (c.label not in {f.label for f in conditions})
        return conditions


@dataclass(frozen=True)
class Plan:
    """A study laid out: every task with its key, in running order.

    Attributes:
        annotations: The file or the dataset's folder that the items' paths are relative to.
        left_out: Reasons by id of what the dataset asks and this study cannot.
        sources: By name.
        pool: The items that sources are taken of, and nothing without sources; `videos` are their hashes.
    """

    study: Study
    items: list[Item]
    annotations: Path
    conditions: list[Condition]
    settings: dict[str, Any]
    convention: Convention | None = None
    tasks: list[tuple[Item, Condition, Task]] = field(default_factory=list[tuple[Item, Condition, Task]])
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    sources: Mapping[str, Source] = field(default_factory=dict[str, Source])
    pool: Sequence[Item] = ()
    videos: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def scoring(self) -> Scoring:
        """How its rows are scored, by its convention."""
        return SCORINGS[self.study.scoring](self.convention)


def settings_of(
    study: Study, model: Model, convention: Convention | None = None, device: str | None = None
) -> dict[str, Any]:
    """What fixes every number besides item, video and interventions, as it stands in each row.

    Args:
        device: The kind that the rows are computed on, if it is not the one that this model is on.
    """
    cfg = model.cfg
    form = convention.form_for(cfg.family) if convention else template(cfg.prompt).form
    sampler = study.sampler or (convention.sampler_for(cfg.family) if convention else None)
    n_frames = convention.n_frames if study.n_frames is None and convention else study.n_frames
    versions = {p: importlib.metadata.version(p) for p in ("hookedvid", "torch", "av")}
    return {
        "model": model_hash(model),
        "model_name": cfg.model_name or cfg.family,
        "n_frames": cfg.n_frames if n_frames is None else n_frames,
        "sampler": sampler or cfg.sampler,
        "frame_order": study.frame_order if study.frame_order == "time" else f"shuffled by seed {study.seed}",
        "scoring": study.scoring,
        "convention": convention.full_name if convention else "",
        "prompt": cfg.prompt,
        "form": digest(repr(form).encode()),
        "time_instruction": study.time_instruction or cfg.time_instruction,
        "markers_are_language": study.markers_are_language,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "kernel": model.kernel,
        "device": device or model.device.type,
        "reuse": study.reuse,
        "empty_row": "zero",
        **SCORINGS[study.scoring](convention).settings(),
        **versions,
    }


def _convention(study: Study, items: Sequence[Item]) -> Convention | None:
    dataset = study.dataset.partition(":")[0]
    return conventions.convention(study.convention, items, dataset) if study.convention else None


def plan(
    study: Study,
    model: Model,
    annotations: Path,
    limit: int | None = None,
    items: Sequence[Item] | None = None,
    left_out: Mapping[str, str] | None = None,
    device: str | None = None,
) -> Plan:
    """Tasks and their keys, before anything runs; videos are read once, for their hashes.

    `items` are those of the file `annotations` unless given, with the folder that their paths are relative to.

    Args:
        device: As in `settings_of`.  Raises HookError for a model with hooks, whose numbers are not those of its hash,
            ConfigError or InputError for sampling that no video could have.

    Raises:
        DataError: For items that have not what their answers are scored by; those whose right option is hidden are
            asked and not scored.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}; ask at least 1 question")
    check_bare(model)
    items = list(read_items(annotations) if items is None else items)[:limit]
    SCORINGS[study.scoring]().check(items)
    convention = _convention(study, items)
    settings = settings_of(study, model, convention, device)
    cfg = model.cfg
    conditions = study.conditions(cfg.n_layers, cfg.lm.n_heads, settings["n_frames"], cfg.frames_together)
    samplers.check(settings["sampler"], settings["n_frames"])  # once, and not for each video
    named_instruction(settings["time_instruction"])
    sources = study.named_sources
    plan = Plan(
        study, items, annotations, conditions, settings, convention, left_out=left_out or {}, sources=sources,
        pool=items if sources else (),
    )  # fmt: skip
    if study.frame_order == "shuffled" and plan.settings["time_instruction"] != "none":
        raise ConfigError('shuffled frames have no times to tell: set time_instruction = "none"')
    _check_conditions(conditions, items, model.cfg.n_layers)
    contents = _Contents(plan)
    cuts = [(c, cut, canonical(cut)) for c, cut in ((c, to_json(c.interventions)) for c in conditions)]
    estimated = _estimated(conditions)
    with bar(len(items), "laying out, hashing videos", "questions") as done:
        for item in items:
            settings = {**plan.settings, **contents.of(item)}
            fixed = canonical(settings)
            for c, cut, text in cuts:
                taken = {n: contents.source(n, item) for n in source_names(c.interventions)}
                more = ({"sources": taken} if taken else {}) | estimated.get(c.label, {})
                own, own_text = (settings | more, None) if more else (settings, fixed)
                key = key_of(item.id, text, own_text or canonical(own))
                names = (item.id, item.video, item.family, c.label, c.protocol, c.knockout, c.layer)
                plan.tasks.append((item, c, Task(key, *names, cut, own)))
            done(1)
    return replace(plan, videos=contents.videos) if sources else plan


def _estimated(conditions: Sequence[Condition]) -> dict[str, dict[str, Any]]:
    """What fixes estimates besides interventions, as it stands in the settings of their rows, by condition."""
    does = {c.label: to_json(c.interventions) for c in conditions}
    asked = [(c.label, c.estimate) for c in conditions if c.estimate is not None]
    return {
        label: {"estimate": {"how": e.how, "n_steps": e.n_steps, "of": digest(canonical([does[x] for x in e.of]))}}
        for label, e in asked
    }


class _Contents:
    """Hashes of what a plan's items hold; a video is read once."""

    def __init__(self, plan: "Plan"):
        self._plan = plan
        self.videos: dict[str, str] = {}
        self._known: dict[str, str] = {}

    def of(self, item: Item) -> dict[str, str]:
        """Of an item's video and question, as they stand in the settings of its rows."""
        plan, path = self._plan, str(video_path(item, self._plan.annotations))
        if path not in self.videos:
            self.videos[path] = video_hash(Path(path))
        named = {"shuffled_as": item.video} if plan.study.frame_order == "shuffled" else {}  # moved, in another way
        return {"video": self.videos[path], "question": question_hash(item, plan.annotations, plan.scoring), **named}

    def source(self, name: str, item: Item) -> str:
        """A digest of all that a source is made of, for an item."""
        source = self._plan.sources[name]
        memo = f"{name} of {item.id}" if source.paired else name
        if memo not in self._known:
            items = source.items(item, self._plan.pool)
            made = [[one.id, *self.of(one).values()] for one in items]
            self._known[memo] = digest(canonical(made))
        return self._known[memo]


def _check_conditions(conditions: Sequence[Condition], items: Sequence[Item], n_layers: int) -> None:
    """Raise for a condition with a name that is no selector, and no group of any item, or with another video."""
    given: list[Any] = [item.groups for item in items]
    groups: list[str] = list(dict.fromkeys(name for group in given if hasattr(group, "keys") for name in group))
    for condition in conditions:
        joint = effects(condition.interventions, n_layers)
        if files := [f for clip in joint.clips for f in clip.files]:
            raise InterventionError(
                f"{condition.label}: a study cannot show the frames of {files[0]}, since the keys of its rows say "
                "nothing of that file's bytes; ask in Python, model.answer(inputs, [From(…)])"
            )
        for selector in joint.selectors:
            for term in parse_selector(selector):
                if term.name not in (*SELECTORS, *groups):
                    raise unknown_name(term.name, selector, groups)


def question_hash(item: Item, annotations: Path, scoring: Scoring) -> str:
    """Hash of what is asked of a video and how the answer is scored, subtitles included."""
    part = (item.bound, item.folder_fps) if item.bound or item.folder_fps else ()
    speech = (video_hash(spoken), subtitles.RULE) if (spoken := subtitles_path(item, annotations)) else ()
    alike = item.right if len(item.right) > 1 else ()  # these are scored as one
    named = (canonical(item.groups),) if item.groups else ()
    lines = (item.meta["options"],) if scoring.convention and "options" in item.meta else ()  # printed for the options
    asked = (item.question, item.options, item.answer, *part, *speech, *scoring.gold(item), *alike, *named, *lines)
    return digest(repr(asked).encode())


def check_bare(model: Model) -> None:
    """Raise HookError for a model with hooks, ours or plain torch's: its rows would say that they are the model's."""
    if names := [{"": "the model", "*": "every module"}.get(name, name) for name in hooked(cast(nn.Module, model))]:
        raise HookError(
            f"a study asks a model as its weights are, and there are hooks on {', '.join(names[:3])}: remove them "
            "(reset_hooks(including_permanent=True), or the handles' remove()) and name what shall change as custom "
            "conditions"
        )


def brief(settings: Mapping[str, Any], n: int | str) -> str:
    """What a plot must name: model, frames, dtype and how many questions."""
    return f"{settings['model_name']}, {settings['n_frames']} frames, {settings['dtype']}, n = {n} questions"


def describe(settings: Mapping[str, Any]) -> str:
    """The settings a figure must name, in one line."""
    return (
        f"{settings['model_name']} ({settings['model']}), {settings['n_frames']} frames {settings['sampler']}, "
        f"{settings['dtype']}, {settings['kernel']}, "
        + (f"asked as {settings['convention']}, " if settings["convention"] else "")
        + f"scored by {settings.get('extractor', settings['scoring'])}"
    )
