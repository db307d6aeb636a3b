"""`grounding`: a span of seconds read out of generated text, and how far it covers the right one."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hookedvid.data.item import Item
from hookedvid.nn.model import Model
from hookedvid.study.results.cells import number, short, star
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.study.scorings.scoring import COSTS, LOST, Ask, Column, N, Scoring
from hookedvid.values.inputs import VideoInputs

Span = tuple[float, float]

# The rule that reads spans; its name goes into every record, so a new rule gets a new one.
PARSER = "span@1"
THRESHOLDS = (0.3, 0.5, 0.7)
MAX_NEW_TOKENS = 64

# 1:02:03.5, 00:12, 2 min 5 s, 12.3s, 12 seconds, 12. No sign, no more digits than a video has seconds.
_UNIT = r"\s?(?:seconds?|secs?|s)\b"
_CLOCK = r"(?:\d{1,2}:)?\d{1,2}:\d{2}(?:\.\d{1,6})?"
_MINUTES = rf"\d{{1,3}}\s?(?:minutes?|mins?|m)\b(?:\s?(?:and\s)?\d{{1,2}}(?:\.\d{{1,6}})?{_UNIT})?"
_NUMBER = r"\d{1,6}(?:\.\d{1,6})?"
_TIME = rf"(?<![\w.:,-])(?:{_CLOCK}|{_MINUTES}|{_NUMBER}(?:{_UNIT})?)(?![\w%]|[.:]\d)"
# The second may stand after a dash, which joins, but not before another: 2024-05-06 is no span.
_SECOND = _TIME.replace(r"(?<![\w.:,-])", r"(?<![\w.:])") + r"(?!-\d)"
_AT = r"(?:the\s)?(?:time\s)?(?:at\s|around\s|about\s)?"
_FORMS = (
    rf"[\[(<{{]\s*({_TIME})\s*(?:,|;|-|–|—|to\b)\s*({_SECOND})\s*[\])>}}]",  # [3, 5]
    rf"\b(?:from|between)\s+{_AT}({_TIME})\s*(?:-|–|—|to\b|until\b|till\b|and\b)\s*{_AT}({_SECOND})",  # from 3s to 5s
    rf"({_TIME})\s*(?:-|–|—|to\b|until\b|till\b|through\b)\s*{_AT}({_SECOND})",  # 3.0 - 5.0 seconds
    rf"\b(?:start|begin)\w*\b\D{{0,20}}?({_TIME})[^\d]{{0,40}}?\b(?:end|stop|finish)\w*\b\D{{0,20}}?({_SECOND})",
)
_FRAMES = re.compile(r"\bframes?\b[^\d.]{0,12}$", re.IGNORECASE)  # "frames 3 to 5" are not seconds
_PATTERNS = tuple(re.compile(form, re.IGNORECASE) for form in _FORMS)


def parse_span(text: str) -> Span | None:
    """The first span of seconds that a text names, by the rule `span@1`; None if it names none.

    Read are, in this order: a bracketed pair, "from (between) … to (and) …", two times joined by a dash or "to",
    "starts at … ends at …". A time is seconds with or without a unit, minutes and seconds, or a clock's
    m:ss or h:mm:ss. Start and end are as said: a reversed span stays reversed.
    """
    for pattern in _PATTERNS:
        for match in pattern.finditer(text):
            if not _FRAMES.search(text[max(0, match.start(1) - 24) : match.start(1)]):
                return _seconds(match[1]), _seconds(match[2])
    return None


def _seconds(time: str) -> float:
    if ":" in time:
        seconds = 0.0
        for part in time.split(":"):
            seconds = 60 * seconds + float(part)
        return seconds
    numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", time)]
    if re.search(r"\d\s?m", time, re.IGNORECASE):
        return 60 * numbers[0] + sum(numbers[1:])
    return numbers[0]


def iou(said: Span, gold: Span) -> float:
    """Intersection over union of two spans, 0 to 1; a span that is empty or reversed overlaps nothing.

    Nothing is cut to the clip: who says too much is held to it. `gold` lasts.
    """
    both = min(said[1], gold[1]) - max(said[0], gold[0])
    if said[0] >= said[1] or both <= 0:
        return 0.0
    return both / ((said[1] - said[0]) + (gold[1] - gold[0]) - both)


class Grounding(Scoring):
    """When something happens, in seconds that a model says."""

    name = "grounding"
    requires = "span"
    tasks = ("grounding",)
    title, unit, label = "mean IoU", "IoU", "mean IoU"
    kept_label = f"{label}: change"
    measures = ("iou", *(f"recall_{t}" for t in THRESHOLDS), "iou_parsed")
    bounds = (0.0, 1.0)
    level_name = "whole video"
    interval = "% [95 % interval]"
    note = (
        "Intersection over union of the span that was said with the right one, 0 where none was said; parsed: mean "
        "over those that said one. whole video: what always naming all of it scores."
    )
    columns = (
        N,
        replace(LOST, optional=True),
        Column("mIoU", lambda s: short(s.score), level=lambda s: _known(s.level)),
        Column("change", lambda s: short(s.against["change"]) + star(s.p_holm)),
        *(Column(f"R@{t}", lambda s, t=t: number(100 * s.means[f"recall_{t}"].value)) for t in THRESHOLDS),
        Column("parsed", lambda s: number(100 * s.means["iou_parsed"].value) if s.unparsed else "", optional=True),
        *COSTS,
    )

    def inputs(self, ask: Ask, model: Model, item: Item, subtitles: str | None = None) -> VideoInputs:
        """The question alone."""
        return ask(item.question, answer="")

    def settings(self) -> dict[str, Any]:
        """The rule of `parse_span`, on a text as long as a sentence."""
        return {"extractor": PARSER, "max_new_tokens": MAX_NEW_TOKENS}

    def read_text(self, item: Item, text: str) -> Outcome:
        """The span of seconds that a text names; `unparsed` where it names none."""
        span = parse_span(text)
        return Outcome("unparsed", text=text) if span is None else Outcome("ok", text=text, span=span)

    def values(self, item: Item, row: Mapping[str, Any]) -> dict[str, float]:
        """IoU and whether it reaches each threshold, 0 where no span was named; iou_parsed: of those that named one."""
        assert item.span is not None
        span = row["span"]
        overlap = 0.0 if span is None else iou(tuple(span), item.span)
        recalls = {f"recall_{t}": float(overlap >= t) for t in THRESHOLDS}
        return {"iou": overlap, **recalls, "iou_parsed": math.nan if span is None else overlap}

    def level(self, items: Sequence[Item]) -> float:
        """Mean IoU of always naming the whole video; NaN unless every item's meta tells its `duration`."""
        lengths = [i.meta.get("duration") for i in items]
        if any(isinstance(x, str | None) for x in lengths):
            return math.nan
        whole = [iou((0.0, float(x)), i.span) for x, i in zip(lengths, items, strict=True) if x and i.span]
        return float(np.mean(whole))


def _known(level: float) -> str:
    return "not known" if math.isnan(level) else number(100 * level)
