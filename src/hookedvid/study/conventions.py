"""How the field's evaluators ask and score three benchmarks, by name and date; a study names the one it follows.

A convention is a prompt, a sampler, a length of answer, an extractor, and what becomes of answers it finds nothing
in. `videomme/lmms-eval@2026-04` is a full name; without `videomme/` it is that of whichever dataset is asked.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from hookedvid.data.item import Item
from hookedvid.errors import ConfigError, nearest
from hookedvid.families.prompts import QuestionForm
from hookedvid.study.extractors import Extractor, extractor

# What an evaluator makes of an answer its extractor finds nothing in: a wrong one; none at all, kept out of the mean;
# that only where nothing was said; a guess. `check`: it extracts nothing, but holds the text against the right option.
Unparsed = Literal["wrong", "dropped", "dropped if empty", "guess", "check"]


@dataclass(frozen=True, kw_only=True)
class Convention:
    """One evaluator's way with one dataset.

    name: without the dataset. forms, samplers: by family of models, where they differ from form and sampler (None:
    the model's own). n_frames: likewise. unit: what the evaluator prints. options: how many it can letter at most.
    gold: where several options say the right text, the one that the annotation or the first match names, or the last.
    echo: what it puts in front of an answer's first line, the rest of which it drops. subtitle_frames: how many
    uniform frames choose the subtitles, by family where it is not 32.
    """

    name: str
    dataset: str
    form: QuestionForm
    extractor: str
    unparsed: Unparsed
    options: int
    gold: Literal["answer", "last"] = "answer"
    forms: Mapping[str, QuestionForm] = field(default_factory=dict)
    sampler: str | None = None
    samplers: Mapping[str, str] = field(default_factory=dict)
    n_frames: int | None = None
    max_new_tokens: int = 16
    unit: Literal["percent", "fraction"] = "percent"
    echo: str = ""
    subtitle_frames: Mapping[str, int] = field(default_factory=dict)

    def subtitle_frames_for(self, family: str) -> int:
        """How many frames, from first to last, choose the subtitles: those shown during one of them."""
        return self.subtitle_frames.get(family, 32)

    @property
    def full_name(self) -> str:
        """Dataset and name, as records hold it."""
        return f"{self.dataset}/{self.name}"

    @property
    def rule(self) -> Extractor:
        """The extractor itself."""
        return extractor(self.extractor)

    def form_for(self, family: str) -> QuestionForm:
        """The prompt's form for a family of models."""
        return self.forms.get(family, self.form)

    def sampler_for(self, family: str) -> str | None:
        """The sampler for a family of models; None: the model's own."""
        return self.samplers.get(family, self.sampler)

    def heard(self, text: str) -> str:
        """A generated text as the evaluator takes it up."""
        return self.echo + text.strip().split("\n")[0] if self.echo else text

    def gold_of(self, item: Item) -> int:
        """The option that the evaluator takes for the right one. The item's answer must be known."""
        assert item.answer is not None
        return item.right[-1] if self.gold == "last" else item.answer

    def counted(self, item: Item, text: str, chosen: int | None) -> float | None:
        """What the evaluator counts a row as: 0 or 1, None where it leaves it out of the mean.

        `chosen` is what the extractor found. The item's answer must be known.
        """
        gold = self.gold_of(item)
        if self.unparsed == "check":
            check = self.rule.check
            assert check is not None
            return float(check(self.heard(text), gold))
        if chosen is None and (self.unparsed == "dropped" or (self.unparsed == "dropped if empty" and not text)):
            return None
        return float(self.submitted(item, chosen) == gold)

    def submitted(self, item: Item, chosen: int | None) -> int | None:
        """The option that stands for a row: what was found, or the evaluator's guess."""
        return guess(item) if chosen is None and self.unparsed == "guess" else chosen

    def printed(self, value: float) -> str:
        """A mean in the evaluator's unit."""
        return f"{100 * value:.2f}" if self.unit == "percent" else f"{value:.3f}"


def guess(item: Item) -> int:
    """An option drawn for an item, the same on every machine and under every condition."""
    return random.Random(item.id).randrange(len(item.options))


_SELECT = "Select the best answer to the following multiple-choice question based on the video"
_LETTER_ONLY = ". Respond with only the letter (A, B, C, or D) of the correct option.\n"
_BEST = "\nThe best answer is:"
_DIRECTLY = "\nAnswer with the option's letter from the given choices directly."
_LINES = "\n{lettered}"

# "and the subtitles" stands in the prompt of the task without subtitles too.
_VIDEOMME = QuestionForm(before=f"{_SELECT} and the subtitles{_LETTER_ONLY}", option=_LINES, instruction=_BEST)
_MVBENCH_SYSTEM = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\n"
)
_MVBENCH_ORIGINAL = QuestionForm(
    system=_MVBENCH_SYSTEM,
    question="Question: {question}\nOptions:",
    option="\n({letter}) {option}",
    instruction="\nOnly give the best option.",
    prefill="Best option:(",
)
# llava_vid's wrapper takes every second's frame, up to its count; the others sample as the models' own code does.
_WRAPPERS = {"llava-video": "one_fps"}

_VIDEOMME_LMMS = Convention(
    name="lmms-eval@2026-04",
    dataset="videomme",
    form=replace(_VIDEOMME, instruction=f"\n{_DIRECTLY}"),
    forms={"llava-video": _VIDEOMME},
    samplers=_WRAPPERS,
    extractor="videomme/lmms-eval@2026-04",
    unparsed="wrong",
    options=4,
)
_VIDEOMME_SUBTITLED = replace(
    _VIDEOMME_LMMS,
    name="lmms-eval@2026-04+subtitles",
    form=replace(_VIDEOMME, before=f"This video's subtitles are listed below: \n{{subtitles}}\n{_VIDEOMME.before}"),
    forms={},
    subtitle_frames={"llava-video": 768},
)
_VIDEOMME_OFFICIAL = Convention(
    name="official",
    dataset="videomme",
    form=replace(_VIDEOMME, before=_SELECT + _LETTER_ONLY),
    extractor="videomme/lmms-eval@2024-06",
    unparsed="dropped",
    options=4,
)
_VIDEOMME_VLMEVALKIT = Convention(
    name="vlmevalkit",
    dataset="videomme",
    form=QuestionForm(
        before=f"\nThese are the frames of a video. {_SELECT}{_LETTER_ONLY}",
        question="Question: {question}",
        option=_LINES,
        instruction="\nAnswer: ",
    ),
    sampler="inner",
    extractor="videomme/vlmevalkit",
    unparsed="wrong",
    unit="fraction",
    options=4,
)
_MVBENCH_LMMS = Convention(
    name="lmms-eval@2026-04",
    dataset="mvbench",
    form=QuestionForm(
        question="Question:{question}\nOption:\n",
        option="({letter}) {option}\n",
        instruction="Only give the best option.\n",
    ),
    samplers=_WRAPPERS,
    extractor="mvbench/lmms-eval",
    unparsed="dropped if empty",
    options=5,
)
_MVBENCH_OFFICIAL = Convention(
    name="official",
    dataset="mvbench",
    form=_MVBENCH_ORIGINAL,
    sampler="mid_segment",
    n_frames=16,
    extractor="mvbench/official",
    unparsed="check",
    echo="(",
    options=5,
    gold="last",
)
_EGOSCHEMA_LMMS = Convention(
    name="lmms-eval@2026-07",
    dataset="egoschema",
    form=QuestionForm(option=_LINES, instruction=_DIRECTLY),
    samplers=_WRAPPERS,
    extractor="egoschema/lmms-eval",
    unparsed="guess",
    unit="fraction",
    options=5,
)


def _named(base: Convention, *names: str) -> list[Convention]:
    return [replace(base, name=name) for name in names]


# One date serves all three datasets: 2026-04 is when Video-MME's extractor was replaced, 2026-07 when EgoSchema's
# answers were cut to 16 tokens.
_OLDER = {"extractor": "videomme/lmms-eval@2024-06"}
_ALL = (
    *_named(_VIDEOMME_LMMS, "lmms-eval@2026-07", "lmms-eval@2026-04"),
    *_named(replace(_VIDEOMME_LMMS, **_OLDER), "lmms-eval@2024-06"),
    *_named(_VIDEOMME_SUBTITLED, "lmms-eval@2026-07+subtitles", "lmms-eval@2026-04+subtitles"),
    *_named(replace(_VIDEOMME_SUBTITLED, **_OLDER), "lmms-eval@2024-06+subtitles"),
    _VIDEOMME_OFFICIAL,
    _VIDEOMME_VLMEVALKIT,
    *_named(_MVBENCH_LMMS, "lmms-eval@2026-07", "lmms-eval@2026-04", "lmms-eval@2024-06"),
    _MVBENCH_OFFICIAL,
    replace(_MVBENCH_OFFICIAL, name="vlmevalkit", n_frames=None, echo=""),
    _EGOSCHEMA_LMMS,
    *_named(replace(_EGOSCHEMA_LMMS, max_new_tokens=1024), "lmms-eval@2026-04", "lmms-eval@2024-06"),
)
CONVENTIONS: dict[str, Convention] = {c.full_name: c for c in _ALL}
NAMES = tuple(dict.fromkeys([*CONVENTIONS, *(c.name for c in _ALL)]))


def known(name: str) -> None:
    """Raises ConfigError unless some dataset has a convention of that name, full or without its dataset."""
    if name not in NAMES:
        raise ConfigError(f"no convention {name!r} ({nearest(name, NAMES)}; all of them: {', '.join(CONVENTIONS)})")


def convention(name: str, items: Sequence[Item], dataset: str = "") -> Convention:
    """The convention of a name for these items, whose dataset is `dataset`, or what their meta says.

    Raises ConfigError where it is another dataset's, or has no letters for as many options.
    """
    known(name)
    found = {dataset} if dataset else {str(i.meta["dataset"]) for i in items if "dataset" in i.meta}
    exist = [c.full_name for c in _ALL if c.dataset in found] or list(CONVENTIONS)
    if "/" in name:
        full = name
    elif len(found) == 1:
        full = f"{min(found)}/{name}"
    else:
        said = f"of several datasets, {', '.join(sorted(found))}" if found else "of no dataset that is told"
        raise ConfigError(f"convention {name!r} depends on the dataset, and the items are {said}; write one of {exist}")
    if full not in CONVENTIONS or (found and CONVENTIONS[full].dataset not in found):
        raise ConfigError(f"convention {name!r} is not for {', '.join(sorted(found))}; there are {', '.join(exist)}")
    wide = [i.id for i in items if len(i.options) > CONVENTIONS[full].options]
    if wide:
        raise ConfigError(
            f"convention {full!r} letters {CONVENTIONS[full].options} options, and {len(wide)} items have more "
            f"({', '.join(wide[:3])}); leave convention empty for them"
        )
    return CONVENTIONS[full]
