"""Where everything is in the sequence a decoder reads: segments, frames and the selector grammar.

The only place that turns a selector such as `video[2:5]+question` into positions. How a layout is made
from a prompt lives in `hookedvid.families.prompts`; what is done with positions lives in `masks`.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hookedvid.errors import InputError, SelectorError, nearest
from hookedvid.values.config import ProjectorConfig

Role = Literal["system", "video", "newline", "marker", "question", "options", "template", "generated"]

# What each selector name covers. `text` is the language after the video: what LV-K cuts off. The prefix
# before the video and the markers between frames are neither language nor video (facts of the study).
ROLES_OF: dict[str, tuple[Role, ...]] = {
    "video": ("video", "newline"),
    "patches": ("video",),
    "newlines": ("newline",),
    "system": ("system",),
    "markers": ("marker",),
    "question": ("question",),
    "options": ("options",),
    "option": ("options",),
    "template": ("template",),
    "generated": ("generated",),
    "text": ("question", "options", "template", "generated"),
    "all": get_args(Role),
}
NAMES = (*ROLES_OF, "last")
BY_FRAME = ("video", "patches", "newlines", "markers")

_TERM = re.compile(r"(?P<name>[a-z_]+)(\[(?:(?P<index>-?\d+)|(?P<start>-?\d*):(?P<stop>-?\d*))\])?")


class FrameBlendWarning(UserWarning):
    """Tokens called one frame's hold content of several (InternVideo2.5 merges clips of four)."""


class Term(NamedTuple):
    """One part of a selector: a name, then the frames or option it is narrowed to (None = all)."""

    name: str
    number: int | None = None
    span: slice | None = None


def as_selector(selector: object) -> str:
    """A selector that can be read: itself, or several in a list joined.

    Raises:
        SelectorError: For anything else.
    """
    text = _joined(selector)
    parse_selector(text)
    return text


def _joined(selector: object) -> str:
    kind = type(selector).__name__
    names = cast(list[object], selector) if isinstance(selector, list | tuple) else []
    if names and all(isinstance(s, str) for s in names):
        return "+".join(map(str, names))
    if not isinstance(selector, str):
        raise SelectorError(
            f"{kind} is no selector; write names joined by '+', such as 'video[2:5]+question' "
            "(positions by number: a hook on `hook_mask`, or on the activation, takes any)"
        )
    return selector


def parse_selector(selector: str) -> tuple[Term, ...]:
    """The terms of a selector, joined by `+`.

    Raises:
        SelectorError: On a name or form that does not exist.
    """
    terms: list[Term] = []
    for part in _joined(selector).replace(" ", "").split("+"):
        match = _TERM.fullmatch(part)
        if not match:
            raise SelectorError(
                f"cannot read {part!r} in selector {selector!r}; write a name, name[3] or name[2:5], "
                "joined by '+', e.g. 'video[2:5]+question'"
            )
        name, index = match["name"], match["index"]
        if name not in NAMES:
            raise SelectorError(f"no selector {name!r} in {selector!r} ({nearest(name, NAMES)})")
        sliced = match["start"] is not None
        if (index is not None or sliced) and name not in (*BY_FRAME, "option"):
            raise SelectorError(f"{name!r} takes no index in {selector!r}; frames: video[3], options: option[1]")
        if name == "option" and index is None and not sliced:
            raise SelectorError(f"'option' needs a number in {selector!r}: option[1]; all of them are 'options'")
        span = slice(*(int(match[k]) if match[k] else None for k in ("start", "stop"))) if sliced else None
        terms.append(Term(name, None if index is None else int(index), span))
    return tuple(terms)


@dataclass(frozen=True)
class Segment:
    """A half-open run of positions [start, stop) with one role.

    `frame` is the sampled frame (0-based) of video, newline and marker positions; None for the one newline
    that ends a whole video. `index` is the option's number. `blend` is how many frames each token mixes.
    """

    role: Role
    start: int
    stop: int
    frame: int | None = None
    index: int | None = None
    blend: int = 1

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class TokenLayout:
    """Segments that tile [0, n_tokens) of one unpadded sequence.

    `markers_are_language` counts the text between frames (InternVideo2.5's `Frame1: `) as language, so
    that `text`, and with it LV-K, covers it; by default it is neither language nor video.
    """

    segments: tuple[Segment, ...]
    markers_are_language: bool = False

    def __post_init__(self):
        at = 0
        for s in self.segments:
            if s.start != at or s.stop <= s.start:
                raise SelectorError(f"segments must tile the sequence without gaps; {s} does not start at {at}")
            at = s.stop

    @classmethod
    def of(cls, runs: Iterable[Segment], markers_are_language: bool = False) -> "TokenLayout":
        """A layout from segments in order, their start moved to where the one before ends; empty ones go."""
        at, placed = 0, list[Segment]()
        for s in runs:
            if len(s):
                placed.append(replace(s, start=at, stop=at + len(s)))
                at += len(s)
        return cls(tuple(placed), markers_are_language)

    @property
    def n_tokens(self) -> int:
        """Length of the sequence, generated tokens included."""
        return self.segments[-1].stop if self.segments else 0

    @property
    def n_frames(self) -> int:
        """Sampled frames."""
        return 1 + max((s.frame for s in self.segments if s.role == "video" and s.frame is not None), default=-1)

    @property
    def n_options(self) -> int:
        """Answer options in the prompt."""
        return 1 + max((s.index for s in self.segments if s.role == "options" and s.index is not None), default=-1)

    @property
    def n_prompt(self) -> int:
        """Length of the prompt: everything but the generated tokens."""
        return self.n_tokens - sum(len(s) for s in self.segments if s.role == "generated")

    @property
    def roles(self) -> tuple[Role, ...]:
        """Roles present, in order of first appearance."""
        return tuple(dict.fromkeys(s.role for s in self.segments))

    @property
    def blend(self) -> int:
        """Frames mixed into one video token: 1, or 4 after token merging."""
        return max((s.blend for s in self.segments), default=1)

    def mask(self, selector: str) -> Bool[Tensor, " pos"]:
        """Positions a selector names.

        `video[2:5]` is frames 2, 3, 4 (sampled frames, 0-based, negative from the end), the newlines inside them
        included; `video` also has the one newline that ends the video. `last` is the final prompt position and every
        generated token: each was last when it was read. `generated` may be empty.

        Raises:
            SelectorError: Listing what is present, when anything else selects nothing.
        """
        chosen = torch.zeros(self.n_tokens, dtype=torch.bool)
        for term in parse_selector(selector):
            segments = self._segments_of(term)
            if not segments and not self._may_be_empty(term):
                raise SelectorError(
                    f"{selector!r} selects nothing: this sequence has {', '.join(self.roles)}; "
                    f"{self.n_frames} frames, {self.n_options} options"
                )
            for s in segments:
                chosen[s.start : s.stop] = True
            if term.name == "last":
                chosen[self.n_prompt - 1 :] = True
        return chosen

    def positions(self, selector: str) -> Int[Tensor, " chosen"]:
        """Indices of the positions a selector names, ascending."""
        return self.mask(selector).nonzero().squeeze(-1)

    @property
    def frames(self) -> Int[Tensor, " pos"]:
        """The frame of every position; -1 outside frames.

        The newline that ends a whole video gets a number of its own, `n_frames`: it shares a frame with
        nothing, and every frame is another one to it.
        """
        ids = torch.full((self.n_tokens,), -1, dtype=torch.long)
        for s in self.segments:
            if s.frame is not None:
                ids[s.start : s.stop] = s.frame
            elif s.role == "newline":
                ids[s.start : s.stop] = self.n_frames
        return ids

    def extend(self, n: int) -> "TokenLayout":
        """The layout after `n` more tokens were generated."""
        if n == 0:
            return self
        prompt = tuple(s for s in self.segments if s.role != "generated")
        return replace(self, segments=(*prompt, Segment("generated", self.n_prompt, self.n_tokens + n)))

    def _may_be_empty(self, term: Term) -> bool:
        return term.name in ("generated", "last")

    def _segments_of(self, term: Term) -> list[Segment]:
        if term.name == "last":
            return []
        roles = ROLES_OF[term.name]
        if term.name == "text" and self.markers_are_language:
            roles = (*roles, "marker")
        segments = [s for s in self.segments if s.role in roles]
        if term.number is None and term.span is None:
            return segments
        wanted = self._numbers(term)
        if term.name == "option":
            return [s for s in segments if s.index in wanted]
        if self.blend > 1:
            warnings.warn(
                f"each token of {term.name!r} mixes {self.blend} frames, so one frame's tokens also hold its "
                "neighbours' content",
                FrameBlendWarning,
                stacklevel=4,
            )
        return [s for s in segments if s.frame in wanted]

    def _numbers(self, term: Term) -> range:
        n, what = (self.n_options, "options") if term.name == "option" else (self.n_frames, "frames")
        if term.number is not None:
            text, bounds = str(term.number), [term.number]
            wanted = range(term.number % n, term.number % n + 1) if n else range(0)
        else:
            span = term.span or slice(None)
            text = f"{'' if span.start is None else span.start}:{'' if span.stop is None else span.stop}"
            last = None if span.stop is None else span.stop - (span.stop > 0)
            bounds = [b for b in (span.start, last) if b is not None]
            wanted = range(n)[span]
        if any(not -n <= b < n for b in bounds) or not wanted:
            raise SelectorError(
                f"{term.name}[{text}] is out of range: this sequence has {n} {what}"
                + (f", numbered 0 to {n - 1}" if n else "")
            )
        return wanted

    def __str__(self) -> str:
        rows = _rows(self.segments)
        if self.n_frames > 6:
            first = next(i for i, r in enumerate(rows) if r[1].startswith("video[") and r[3] == 2)
            last = next(i for i, r in enumerate(rows) if r[1].startswith("video[") and r[3] == self.n_frames - 1)
            rows[first:last] = [("…", "…", "", None)]
        head = f"TokenLayout: {self.n_tokens:,} tokens, {self.n_frames} frames"
        width = max((len(r[0]) for r in rows), default=0)
        return "\n".join([head, *(f"  {span:>{width}}  {name:<12}{note}".rstrip() for span, name, note, _ in rows)])


def _rows(segments: Sequence[Segment]) -> list[tuple[str, str, str, int | None]]:
    """(span, name, note, frame) of each printed row: the rows and newlines of a frame are joined."""
    groups: list[list[Segment]] = []
    for s in segments:
        same = groups and s.role in ("video", "newline") and s.frame is not None
        if same and groups[-1][0].role in ("video", "newline") and groups[-1][0].frame == s.frame:
            groups[-1].append(s)
        else:
            groups.append([s])
    rows: list[tuple[str, str, str, int | None]] = []
    for g in groups:
        start, stop, s = g[0].start, g[-1].stop, g[0]
        note = "1 token" if stop - start == 1 else f"{stop - start} tokens"
        if s.role == "video":
            newlines = sum(len(x) for x in g if x.role == "newline")
            note = f"{stop - start - newlines} patches" + (f" + {newlines} newlines" if newlines else "")
            note += f", each mixing {s.blend} frames" if s.blend > 1 else ""
        number = s.frame if s.role in ("video", "marker") else s.index
        name = {"options": "option"}.get(s.role, s.role) if number is not None else s.role
        name += f"[{number}]" if number is not None else ""
        span = f"{start}" if stop - start == 1 else f"{start}–{stop - 1}"
        rows.append((span, name, note, s.frame if s.role == "video" else None))
    return rows


def video_segments(projector: ProjectorConfig, grid: int, n_frames: int) -> list[Segment]:
    """Segments of one uninterrupted video, counted from 0: raster order, frames in time order.

    Raises:
        InputError: For frames that do not fill the clips a projector merges.
    """
    if projector.merge is not None and n_frames % projector.merge.frames_per_clip:
        raise InputError(
            f"this model merges clips of {projector.merge.frames_per_clip} frames, and {n_frames} frames were given; "
            f"use a multiple of {projector.merge.frames_per_clip}"
        )
    side = projector.side(grid)
    runs: list[Segment] = []
    for f in range(n_frames):
        if projector.merge is not None:
            m = projector.merge
            runs.append(Segment("video", 0, m.tokens_per_frame, frame=f, blend=m.frames_per_clip))
            continue
        rows = [(side, 1)] * side if projector.newline == "row" else [(side * side, projector.newline == "frame")]
        for patches, newlines in rows:
            runs += [Segment("video", 0, patches, frame=f), Segment("newline", 0, int(newlines), frame=f)]
    if projector.newline == "once":
        runs.append(Segment("newline", 0, 1))
    return list(TokenLayout.of(runs).segments)
