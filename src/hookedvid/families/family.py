"""What a file of a family states: its parts, how its checkpoints read, its prompt, who publishes and evaluates it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hookedvid.conversion.lines import Line, Shapes
from hookedvid.families.prompts import Template, TimeInstruction
from hookedvid.values.config import RopeConfig, VideoLLMConfig, VisionConfig
from hookedvid.values.processor import Processor


@dataclass(frozen=True)
class Source:
    """What there is to read of a checkpoint, before its weights.

    Attributes:
        config: Its config.json, or transformers' config object of it.
        shapes: Its tensors' names and shapes.
        overrides: Fields of our config by dotted path, taken over what the checkpoint says.
        ignore: Fields of its config that change nothing.
        family: The family it is of; None of a decoder or a tower alone.
        notes: What the config leaves open, one sentence each; readers add to it.
    """

    config: Any
    shapes: Shapes
    overrides: Mapping[str, Any] = field(default_factory=dict)
    ignore: Collection[str] = ()
    family: "Family | None" = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the checkpoints of one architecture read: its config, and what its tensors are called.

    Attributes:
        architecture: The class that config.json names.
        read: Our config of a source.
        table: The lines of its tensors, given our config and the names there are.
        transformers: Whether `read` takes transformers' config object; config.json itself otherwise.
        fits: Whether a config of this architecture can be the family's; asked where several families share it.
        parts: What `fits` looks at in a config, for an error's text.
        processor_files: Whether its code reads a checkpoint's processor files; else pixels are constants of the code.
        looks: What the tensors show besides the family, `, a CLIP tower`, if they look like this layout; else None.
    """

    architecture: str
    read: Callable[[Source], VideoLLMConfig]
    table: Callable[[VideoLLMConfig, Sequence[str]], list[Line]]
    transformers: bool = False
    fits: Callable[[Source], bool] = lambda source: True
    parts: Callable[[Source], str] = lambda source: ""
    processor_files: bool = True
    looks: Callable[["Family", Shapes], str | None] = lambda family, shapes: None


@dataclass(frozen=True)
class Published:
    """One public checkpoint.

    Attributes:
        repo: On the Hugging Face hub.
        frames: Per video unless told, as its authors evaluate it.
        tokens: Of one frame, and beside them.
        size: Gigabytes (10^9) to download.
        scores: Percent on Video-MME (without subtitles), MVBench and EgoSchema as reported for it, None where no
            figure is confirmed.
        overrides: Fields of our config that its own config.json leaves open or states otherwise.
    """

    repo: str
    frames: int
    tokens: str
    size: float
    scores: tuple[float | None, float | None, float | None] = (None, None, None)
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Wrapper:
    """What an evaluator does otherwise for one family, where it has a wrapper of its own for it.

    Attributes:
        name: The evaluator's name for the wrapper, by which its tasks choose a prompt.
        sampler: Its way to choose frames; the model's own if None.
        subtitle_frames: How many uniform frames choose the subtitles.
    """

    name: str = ""
    sampler: str | None = None
    subtitle_frames: int = 32


@dataclass(frozen=True, kw_only=True)
class Family:
    """The parts and ways of a family of models; sizes are left open where checkpoints of it differ.

    Attributes:
        name: As configs hold it and overrides state it.
        title: As its authors write it.
        released: The month of its release, as 2024-06; lists begin with the newest.
        tower: Its vision tower.
        tower_name: What that is called.
        projector: Fields of its ProjectorConfig.
        decoder: Fields of its DecoderConfig.
        rope: The decoder's rotary positions.
        prompt: The name of its template.
        layouts: The architectures its checkpoints have.
        adapter: The lines of every name that an adapter trained on it may use for our tensors.
        templates: Its prompts by name, those shared with other families too.
        published: Its public checkpoints by name.
        parity: What it is compared with in the tests, stage by stage on tiny weights.
        n_frames: Of a video, unless told.
        sampler: The rule that chooses them, unless told.
        time_instructions: Texts that tell when frames were taken, by name.
        placeholder: The special token that stands for video in its prompts; None where the ids say it.
        wrappers: What evaluators do otherwise, by the evaluator's name.
        processor: The tensors of its official processor; None where nobody asks for them.
        small: Fields of `small_config` that differ, by dotted path.
    """

    name: str
    title: str
    released: str
    tower: VisionConfig
    tower_name: str
    projector: Mapping[str, Any]
    decoder: Mapping[str, Any]
    rope: RopeConfig
    prompt: str
    layouts: tuple[Layout, ...]
    adapter: Callable[[VideoLLMConfig], list[Line]]
    templates: Mapping[str, Template]
    published: Mapping[str, Published]
    parity: str
    n_frames: int = 32
    sampler: str = "linspace"
    time_instructions: Mapping[str, TimeInstruction] = field(default_factory=dict)
    placeholder: str | None = None
    wrappers: Mapping[str, Wrapper] = field(default_factory=dict)
    processor: Processor | None = None
    small: Mapping[str, Any] = field(default_factory=dict)
