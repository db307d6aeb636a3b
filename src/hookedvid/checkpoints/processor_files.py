"""What a checkpoint's processor files say of videos: it is taken, or told where the model does otherwise.

That file counts which transformers' processor of videos would read. What defines the numbers of a pixel (`COMMON` of
`processor_settings`) is taken from settings of videos, unless those of images say otherwise: then one of the two may be
a class's default that nobody meant. All else is told and changes nothing: sizes and patches are those of the weights,
budgets and frames those of the authors' evaluation.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hookedvid.conversion import provenance
from hookedvid.conversion.provenance import Provenance
from hookedvid.errors import ConversionError
from hookedvid.families.registry import processor
from hookedvid.values.config import VideoLLMConfig, VisionConfig
from hookedvid.values.files import read_regular
from hookedvid.values.processor import PROCESSOR_FILES, Processor
from hookedvid.values.serial import override, to_dict
from hookedvid.video.processor_settings import COMMON, FIXED, INERT, READERS
from hookedvid.video.samplers import LEAST, RATED

NESTED, VIDEOS, IMAGES = PROCESSOR_FILES
MAX_JSON = 16 << 20  # bytes; those published have some 2,000
FOLLOWED = ("do_normalize", "do_rescale")  # steps that are as much an image's as a frame's
BUDGET = ("size", "min_pixels", "max_pixels")
# What the weights are made for.
OF_WEIGHTS = {"vision.image_size", "vision.patch_size", "vision.patch_frames", "vision.multiple"}
# Of FIXED, what changes no frame that was sampled before, nor one video alone: files have it either way.
LEFT = ("do_sample_frames", "do_pad", "data_format")
# What else stands in files of videos and changes no frame, such as what images are cut by.
STRAY = (
    "aspect_ratio_setting auto_map crop_to_patches do_image_splitting image_grid_pinpoints max_patches "
    "max_video_tokens min_patches model_valid_processing_keys _valid_processing_keys video_sampling"
).split()


class ProcessorFileWarning(UserWarning):
    """A checkpoint's processor files say of videos what this model does not do."""


@dataclass(frozen=True)
class Settings:
    """What a folder's processor files say of videos.

    Attributes:
        file: Which one, as messages name it; empty without any.
        fields: Its settings, those that are None left out.
        of_videos: Whether they are of videos, or of images and taken for them.
        images: The settings of images beside.
        broken: What cannot be read, one line each.
    """

    file: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    of_videos: bool = False
    images: Mapping[str, Any] = field(default_factory=dict)
    broken: tuple[str, ...] = ()


class Difference(NamedTuple):
    """One thing that a file says and the model does not do.

    Attributes:
        said: Which file says what.
        changes: Overrides of our config that would follow it; none where nothing would.
        here: What is done instead.
        taken: Whether a conversion follows it.
    """

    said: str
    changes: Mapping[str, Any]
    here: str
    taken: bool = False

    @property
    def text(self) -> str:
        """As a line that tells it."""
        todo = f"; to follow the file: overrides={dict(self.changes)!r}" if self.changes else ""
        return f"{self.said}, {self.here}{todo}"


def read(folder: Path) -> Settings:
    """What the processor files of a checkpoint say of videos; a file that cannot be read is as if it were not there."""
    broken: list[str] = []
    nested, videos, images = (_object(folder / name, broken) for name in PROCESSOR_FILES)
    of_videos, of_images = ((VIDEOS, videos), (IMAGES, images))
    if isinstance(inside := nested.get("video_processor"), Mapping):
        of_videos = (f"{NESTED} (video_processor)", inside)
    if isinstance(inside := nested.get("image_processor"), Mapping):
        of_images = (f"{NESTED} (image_processor)", inside)
    file, fields = of_videos if of_videos[1] else of_images
    return Settings(
        file=file if fields else "",
        fields=_given(fields),
        of_videos=bool(of_videos[1]),
        images=_given(of_images[1]),
        broken=tuple(broken),
    )


def _object(path: Path, broken: list[str]) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(read_regular(path, MAX_JSON, ConversionError))
        if isinstance(value, dict):
            return value
        why = f"it holds {type(value).__name__}, not an object"
    except (ValueError, RecursionError, OSError) as e:  # ConversionError and what json raises are ValueErrors
        why = str(e)
    broken.append(
        f"{path.name} is not read ({why:.200}): frames are prepared as the published checkpoints of its family"
    )
    return {}


def _given(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those that are not None, with pixels beside `size`, as transformers reads them, and not in it."""
    size = settings.get("size")
    if isinstance(size, Mapping):
        pixels = {name: n for name, n in size.items() if name in BUDGET}
        edges = {name: n for name, n in size.items() if name not in BUDGET}
        settings = {**pixels, **settings, "size": edges or None}
    return {name: value for name, value in settings.items() if value is not None}


def settled(cfg: VideoLLMConfig, settings: Settings, overrides: Mapping[str, Any]) -> tuple[VideoLLMConfig, list[str]]:
    """The config with what files of videos say of pixels, and a line for everything that they say otherwise.

    Args:
        cfg: As config.json and the family have it.
        settings: Of the checkpoint's folder.
        overrides: What the user chose, which no file changes and nothing is told of.
    """
    found = list(differences(cfg, settings, overrides))
    for one in found:
        cfg = override(cfg, one.changes, ConversionError) if one.taken else cfg
    lines = [f"{one.said}: taken" if one.taken else one.text for one in found]
    return cfg, [*settings.broken, *lines]


def warn(folder: Path, cfg: VideoLLMConfig, overrides: Mapping[str, Any], name: str) -> None:
    """Warn of everything that the processor files beside a converted model say otherwise.

    Args:
        folder: The converted model's.
        cfg: What it is loaded as.
        overrides: Given to this loading; those of the conversion stand in its provenance.
        name: What the user calls it.
    """
    settings = read(folder)
    chosen = dict(overrides)
    if settings.file and (folder / provenance.FILE).is_file():
        with suppress(ConversionError):  # a damaged one matters to export alone
            chosen |= Provenance.load(folder).overrides
    for line in [*settings.broken, *(one.text for one in differences(cfg, settings, chosen))]:
        warnings.warn(f"{name}: {line}", ProcessorFileWarning, stacklevel=2)


def differences(cfg: VideoLLMConfig, settings: Settings, overrides: Mapping[str, Any]) -> Iterator[Difference]:
    """What a file says otherwise than the model does, but for what the user chose; arguments as `settled`."""
    vision, said = cfg.vision, settings.fields
    if vision is None:
        return
    kind = processor(cfg.family) or Processor()
    readers = {**COMMON, **READERS[vision.resize]}
    if not settings.of_videos:  # of images, whose sizes and budgets are not those of frames
        frames = vision.budget is not None and vision.budget.per == "frame"
        read = {*COMMON, *FOLLOWED, "video_sampling", *(BUDGET if frames else ())}
        said = {name: value for name, value in said.items() if name in read}
    if vision.budget is not None and vision.budget.per == "clip":  # where transformers heeds `size` alone
        said = {name: value for name, value in said.items() if name not in ("min_pixels", "max_pixels")}
    told = set(overrides)
    for name in (n for n in reversed(readers) if n in said):  # the last one counts where two say the same
        yield from _of_field(name, vision, said, readers, settings, told)
    fixed = {**FIXED, "do_center_crop": vision.resize == "crop"}
    for name in (n for n in fixed if n in said and n not in LEFT and said[n] != fixed[n]):
        yield Difference(_says(settings, name, said[name]), {}, f"and this model has {name} = {fixed[name]}")
    known = {*readers, *fixed, *LEFT, *INERT, *STRAY, *kind.inert}
    if unknown := [n for n in said if n not in known and not (n == "crop_size" and not said.get("do_center_crop"))]:
        yield Difference(f"{settings.file} has {', '.join(map(repr, unknown)):.200}", {}, "which is not known here")
    yield from _of_frames(cfg, said, settings, told)


def _says(settings: Settings, name: str, value: Any) -> str:
    return f"{settings.file} says {name} = {value!r:.80}"


def _of_field(
    name: str,
    vision: VisionConfig,
    said: Mapping[str, Any],
    readers: Mapping[str, Any],
    settings: Settings,
    told: set[str],
) -> Iterator[Difference]:
    """What one setting says otherwise; `told` are the fields of ours that need no word any more."""
    says = _says(settings, name, said[name])
    try:
        read = override(vision, readers[name](vision, said), ConversionError)
    except (ValueError, TypeError, ArithmeticError) as e:  # whatever a file may hold
        yield Difference(says, {}, f"which cannot be followed ({e!s:.200})")
        return
    before, after = _flat(vision), _flat(read)
    changes = {path: value for path, value in after.items() if value != before[path] and not _is_in(path, told)}
    if not changes:
        return
    told.update(changes)
    ours = ", ".join(f"{path} = {before[path]!r}" for path in changes)
    if OF_WEIGHTS & changes.keys():
        yield Difference(says, {}, f"and this model's weights are made for {ours}, which stays")
        return
    other = settings.images.get(name, said[name]) if name in COMMON else said[name]
    apart = f" (of images it is {other!r:.80})" if other != said[name] else ""
    taken = name in COMMON and settings.of_videos and not apart
    yield Difference(says + apart, changes, f"and this model has {ours}", taken)


def _flat(vision: VisionConfig) -> dict[str, Any]:
    """The fields of a tower by their paths, with the first size that holds where none is stated."""
    fields = to_dict(vision)
    budget = fields.pop("budget") or {}
    if vision.resize in ("crop", "squash_twice"):
        fields["first_size"] = vision.first_size or vision.image_size
    return {f"vision.{k}": v for k, v in fields.items()} | {f"vision.budget.{k}": v for k, v in budget.items()}


def _is_in(path: str, paths: set[str]) -> bool:
    return any(path == p or path.startswith(f"{p}.") for p in paths)


def _of_frames(
    cfg: VideoLLMConfig, said: Mapping[str, Any], settings: Settings, told: set[str]
) -> Iterator[Difference]:
    """What settings say of the frames to take, where they have any taken."""
    sampling = said.get("video_sampling")
    if not isinstance(sampling, Mapping):
        sampling = said if settings.of_videos and said.get("do_sample_frames") is True else {}
    sampling = _given(sampling)
    counts = [name for name in ("num_frames", "max_frames") if name in sampling]
    if counts and sampling[counts[0]] != cfg.n_frames and "n_frames" not in told:
        says = _says(settings, counts[0], sampling[counts[0]])
        yield Difference(says, {"n_frames": sampling[counts[0]]}, f"and this model takes n_frames = {cfg.n_frames}")
    if "sampler" in told:
        return
    rate, least = RATED.get(cfg.sampler), LEAST.get(cfg.sampler)
    for name, ours in (("fps", rate), ("min_frames", least)):
        if name in sampling and sampling[name] != ours and (name == "fps" or ours is not None):
            takes = f"takes {ours}" if ours is not None else "goes by no rate"
            yield Difference(
                _says(settings, name, sampling[name]), {},
                f"and this model's sampler {cfg.sampler!r} {takes}; choose another `sampler`, or give the frames",
            )  # fmt: skip
