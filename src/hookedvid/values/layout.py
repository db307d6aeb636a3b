"""Where everything is in the sequence a decoder reads: segments, frames, and the positions that a selector names.

The only place that turns a selector such as `video[2:5]+question` into positions; how one is read lives in
`selectors`. How a layout is made from a prompt lives in `hookedvid.families.prompts`; what is done with positions lives
in `masks`.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hookedvid.errors import InputError, InterventionError, SelectorError
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.grid import Grid, VideoShape
from hookedvid.values.markup import shown, table
from hookedvid.values.selectors import (
    ROLES_OF,
    Cells,
    Role,
    Seconds,
    Term,
    frames_at,
    numbers_of,
    parse_selector,
    unknown_name,
)


class FrameBlendWarning(UserWarning):
    """Tokens called one frame's hold content of several.

    InternVideo2.5 merges clips of four; a token of Qwen's models is made of two frames.
    """


@dataclass(frozen=True)
class Segment:
    """A half-open run of positions [start, stop) with one role.

    `frame` is the sampled frame (0-based) of video, newline and marker positions; None for the one newline
    that ends a whole video. `frames` counts the frames, from that one on, that have these positions together: two
    where a patch takes in two. `index` is the option's number. `blend` is how many frames each token mixes.
    """

    role: Role
    start: int
    stop: int
    frame: int | None = None
    index: int | None = None
    blend: int = 1
    frames: int = 1

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class TokenLayout:
    """Segments that tile [0, n_tokens) of one unpadded sequence.

    `markers_are_language` counts the text between frames (InternVideo2.5's `Frame1: `) as language, so
    that `text`, and with it LV-K, covers it; by default it is neither language nor video. `grid` says which cell of
    its frame each video position is, and by what rule positions are numbered; None without a video. `groups` are sets
    of positions by their names, which are selectors then (`VideoInputs.with_group`).
    """

    segments: tuple[Segment, ...]
    markers_are_language: bool = False
    grid: Grid | None = None
    groups: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self):
        at = 0
        for s in self.segments:
            if s.start != at or s.stop <= s.start:
                raise SelectorError(f"segments must tile the sequence without gaps; {s} does not start at {at}")
            at = s.stop

    @classmethod
    def of(cls, runs: Iterable[Segment], markers_are_language: bool = False, grid: Grid | None = None) -> "TokenLayout":
        """A layout from segments in order, their start moved to where the one before ends; empty ones go."""
        at, placed = 0, list[Segment]()
        for s in runs:
            if len(s):
                placed.append(replace(s, start=at, stop=at + len(s)))
                at += len(s)
        return cls(tuple(placed), markers_are_language, grid)

    @property
    def n_tokens(self) -> int:
        """Length of the sequence, generated tokens included."""
        return self.segments[-1].stop if self.segments else 0

    @property
    def n_frames(self) -> int:
        """Sampled frames."""
        return max((s.frame + s.frames for s in self.segments if s.role == "video" and s.frame is not None), default=0)

    @property
    def steps(self) -> tuple[range, ...]:
        """The sampled frames of each step of the video: one each, or the two that a patch takes in."""
        spans = {s.frame: s.frames for s in self.segments if s.role == "video" and s.frame is not None}
        return tuple(range(first, first + n) for first, n in sorted(spans.items()))

    @property
    def step_names(self) -> tuple[str, ...]:
        """The selector of each step: `video[3]`, or `video[2:4]` where two frames share it."""
        return tuple(step_name(step) for step in self.steps)

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

    @property
    def merged(self) -> bool:
        """Whether tokens are merged of some anywhere in several frames, so that none is in a cell."""
        return any(s.blend > s.frames for s in self.segments)

    def mask(self, selector: str) -> Bool[Tensor, " pos"]:
        """Positions a selector names.

        `video[2:5]` is frames 2, 3, 4 (sampled frames, 0-based, negative from the end), `video[::2]` every second one,
        the newlines inside them included; `video` also has the one newline that ends the video. Where frames share
        their tokens, a frame is all of the step it is in, and `steps[1]` is that step by its own number.
        `video[2.0s:4.5s]` is the frames that were sampled from 2 s on and before 4.5 s of the video, `video[3.0s]` the
        one nearest to that.

        `video[3][0:2, 4]` is the tokens in rows 0 and 1 and column 4 of frame 3's grid of tokens (0-based, half-open,
        negative from the end): no newline and no class token, which are in no cell; where cells are dropped, those
        that are tokens.

        `last` is the final prompt position and every generated token: each was last when it was read. `generated` may
        be empty. A group's name is its positions.

        Raises:
            SelectorError: Listing what is present, when anything else selects nothing.
        """
        chosen = np.zeros(self.n_tokens, dtype=bool)  # a run, of which a video may have a thousand, costs torch more
        groups = dict(self.groups)
        for term in parse_selector(selector):
            if term.name in groups:
                chosen[list(groups[term.name])] = True
            elif term.name == "last":
                chosen[self.n_prompt - 1 :] = True
            elif term.name not in ROLES_OF:
                raise unknown_name(term.name, selector, list(groups))
            else:
                runs = self._runs_of(term)
                if not runs and term.name != "generated":
                    raise SelectorError(
                        f"{selector!r} selects nothing: this sequence has {', '.join(self.roles)}; "
                        f"{self.n_frames} frames, {self.n_options} options"
                    )
                for positions in runs:
                    chosen[positions] = True
        return torch.as_tensor(chosen)

    def positions(self, selector: str) -> Int[Tensor, " chosen"]:
        """Indices of the positions a selector names, ascending."""
        return self.mask(selector).nonzero().squeeze(-1)

    @property
    def frames(self) -> Int[Tensor, " pos"]:
        """The frame of every position, the first of those that share it; -1 outside frames.

        The newline that ends a whole video gets a number of its own, `n_frames`: it shares a frame with
        nothing, and every frame is another one to it.
        """
        ids = np.full(self.n_tokens, -1, dtype=np.int64)
        for s in self.segments:
            if s.frame is not None:
                ids[s.start : s.stop] = s.frame
            elif s.role == "newline":
                ids[s.start : s.stop] = self.n_frames
        return torch.as_tensor(ids)

    @cached_property
    def position_ids(self) -> Int[Tensor, "axis pos"]:
        """The number of every position on each axis that rotary positions turn by: time, height, width, or one.

        Text has the same on all axes. A run of video that begins at s has s + (step x its rate, cut to a whole
        number), s + row, s + column; what follows goes on by the grid's rule, generated tokens behind the prompt's:
        under `sides` directly behind video on each axis by itself, as transformers' `generate` does.
        """
        grid = self.grid
        if grid is None or grid.n_axes == 1:
            return torch.arange(self.n_tokens)[None]
        parts, at = list[Tensor](), 0
        for video, run in groupby(self.segments, key=lambda s: s.role in ROLES_OF["video"]):
            segments = list(run)
            if not video:
                n = sum(map(len, segments))
                alone = parts and segments[0].role == "generated" and grid.text_after == "sides"
                start = parts[-1][:, -1:] + 1 if alone else torch.full((grid.n_axes, 1), at)
                parts.append(start + torch.arange(n))
                at += n
                continue
            places = torch.cat([grid.places(i, self.steps.index(_span(s))) for i, s in enumerate(segments)], 1)
            parts.append(at + places)
            at += int(places.max()) + 1 if grid.text_after == "largest" else max(grid.rows, grid.columns)
        return torch.cat(parts, 1)

    @cached_property
    def position_ids_at_one_time(self) -> Int[Tensor, "axis pos"]:
        """`position_ids` with every video position at the time of the first one.

        Raises:
            InterventionError: Where positions have no time, and without a video.
        """
        at = [s.start for s in self.segments if s.role in ROLES_OF["video"]]
        if self.grid is None or self.grid.n_axes == 1 or not at:
            raise InterventionError(
                "all frames at one time: "
                + (
                    "this model's positions have one number each, and none for time; Qwen-VL's have"
                    if at
                    else "this input has no video"
                )
            )
        ids = self.position_ids.clone()
        ids[0, self.mask("video")] = ids[0, at[0]]
        return ids

    def extend(self, n: int) -> "TokenLayout":
        """The layout after `n` more tokens were generated."""
        if n == 0:
            return self
        prompt = tuple(s for s in self.segments if s.role != "generated")
        return replace(self, segments=(*prompt, Segment("generated", self.n_prompt, self.n_tokens + n)))

    def with_group(self, name: str, positions: Iterable[int]) -> "TokenLayout":
        """The layout with a set of positions named, in place of one of that name."""
        rest = [(n, p) for n, p in self.groups if n != name]
        return replace(self, groups=(*rest, (name, tuple(sorted(set(positions))))))

    def cells_of(self, step: int) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
        """The positions of a step's tokens in raster order, and each one's cell, row x columns + column.

        Raises:
            SelectorError: Where tokens are in no cell.
        """
        own = [s for s in self.segments if s.role == "video" and s.frame == self.steps[step].start]
        if self.grid is None:
            raise SelectorError("these frames have no cells: nothing says how their tokens lie; count frames, video[3]")
        if self.merged:
            raise SelectorError(
                f"these frames have no cells: each token is merged of some anywhere in its {self.blend} frames; count "
                "frames, video[3], or name positions, inputs.with_group(…, positions=…)"
            )
        return torch.cat([torch.arange(s.start, s.stop) for s in own]), self.grid.kept(step)

    def _runs_of(self, term: Term) -> list[slice | Tensor]:
        """The positions that a role's term names, run by run."""
        segments = self._segments_of(term)
        if term.cells is None or not segments:
            return [slice(s.start, s.stop) for s in segments]
        starts = {s.frame for s in segments if s.role == "video"}
        steps = [i for i, step in enumerate(self.steps) if step.start in starts]
        runs = [self._in_cells(step, term.cells, term.name) for step in steps]
        return [run for run in runs if len(run)]

    def _in_cells(self, step: int, cells: Cells, name: str) -> Int[Tensor, " chosen"]:
        positions, numbers = self.cells_of(step)
        assert self.grid is not None
        rows, columns = (
            torch.tensor(numbers_of(index, n, f"{name}[…]", what))
            for index, n, what in zip(
                cells, (self.grid.rows, self.grid.columns), ("rows of tokens", "columns of tokens"), strict=True
            )
        )
        inside = torch.isin(numbers // self.grid.columns, rows) & torch.isin(numbers % self.grid.columns, columns)
        return positions[inside]

    def _segments_of(self, term: Term) -> list[Segment]:
        roles = ROLES_OF[term.name]
        if term.name == "text" and self.markers_are_language:
            roles = (*roles, "marker")
        segments = [s for s in self.segments if s.role in roles]
        if term.which is None:
            return segments
        wanted = self._numbers(term)
        if term.name == "option":
            return [s for s in segments if s.index in wanted]
        if term.name == "steps":
            wanted = [f for step in wanted for f in self.steps[step]]
        chosen = [s for s in segments if s.frame is not None and any(f in wanted for f in _span(s))]
        if any(s.blend > s.frames or not all(f in wanted for f in _span(s)) for s in chosen if s.role == "video"):
            warnings.warn(
                f"each token of {term.name!r} mixes {self.blend} frames, so one frame's tokens also hold its "
                "neighbours' content",
                FrameBlendWarning,
                stacklevel=5,
            )
        return chosen

    def _numbers(self, term: Term) -> Sequence[int]:
        assert term.which is not None
        if isinstance(term.which, Seconds):
            return frames_at(term.which, () if self.grid is None else self.grid.times, term.name)
        counts = {"option": (self.n_options, "options"), "steps": (len(self.steps), "steps")}
        n, what = counts.get(term.name, (self.n_frames, "frames"))
        return numbers_of(term.which, n, term.name, what)

    def __str__(self) -> str:
        head, rows = self._told()
        width = max((len(span) for span, _, _ in rows), default=0)
        return "\n".join(
            [f"TokenLayout: {head}", *(f"  {s:>{width}}  {name:<12}{note}".rstrip() for s, name, note in rows)]
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Its table: positions, selector, what is there."""
        head, rows = self._told()
        return shown(f"TokenLayout: {head}", table(("positions", "selector", "holds"), rows, n_left=3))

    def _told(self) -> tuple[str, list[tuple[str, str, str]]]:
        """What a reader is told: how much it is, and of each stretch its positions, its selector and what it holds."""
        rows = _rows(self.segments)
        if len(self.steps) > 6:
            first, last = (
                next(i for i, r in enumerate(rows) if r[1].startswith("video[") and r[3] == step.start)
                for step in (self.steps[2], self.steps[-1])
            )
            rows[first:last] = [("…", "…", "", None)]
        in_steps = f" in {len(self.steps)} steps" if len(self.steps) < self.n_frames else ""
        named = [("", name, f"{len(positions)} tokens, a group") for name, positions in self.groups]
        return f"{self.n_tokens:,} tokens, {self.n_frames} frames{in_steps}", [*(r[:3] for r in rows), *named]


def _rows(segments: Sequence[Segment]) -> list[tuple[str, str, str, int | None]]:
    """(span, name, note, frame) of each printed row: the rows and newlines of a frame are joined."""
    groups: list[list[Segment]] = []
    for s in segments:
        same = groups and s.role in ROLES_OF["video"] and s.frame is not None
        if same and groups[-1][0].role in ROLES_OF["video"] and groups[-1][0].frame == s.frame:
            groups[-1].append(s)
        else:
            groups.append([s])
    rows: list[tuple[str, str, str, int | None]] = []
    for g in groups:
        start, stop, s = g[0].start, g[-1].stop, g[0]
        note = "1 token" if stop - start == 1 else f"{stop - start} tokens"
        is_video = any(x.role == "video" for x in g)
        if is_video:
            others = {r: sum(len(x) for x in g if x.role == r) for r in ("newline", "cls")}
            note = f"{stop - start - sum(others.values())} patches"
            note += f" + {others['newline']} newlines" if others["newline"] else ""
            note += " + 1 class token" if others["cls"] else ""
            note += f", each mixing {g[-1].blend} frames" if g[-1].blend > 1 else ""
        number = s.frame if is_video or s.role == "marker" else s.index
        name = "video" if is_video else {"options": "option"}.get(s.role, s.role) if number is not None else s.role
        if number is not None:
            name += f"[{number}]" if s.frames == 1 else f"[{number}:{number + s.frames}]"
        span = f"{start}" if stop - start == 1 else f"{start}–{stop - 1}"
        rows.append((span, name, note, s.frame if is_video else None))
    return rows


def stream_length(layout: TokenLayout) -> int:
    """Positions up to the last of the video, which no text after it can change; 0 without a video."""
    return max((s.stop for s in layout.segments if s.role in ("video", "newline")), default=0)


def step_name(frames: range) -> str:
    """The selector of a step of the video, by its frames."""
    return f"video[{frames.start}]" if len(frames) == 1 else f"video[{frames.start}:{frames.stop}]"


def _span(s: Segment) -> range:
    assert s.frame is not None
    return range(s.frame, s.frame + s.frames)


def video_segments(cfg: VideoLLMConfig, shape: VideoShape) -> list[Segment]:
    """Segments of one uninterrupted video, counted from 0: raster order, frames in time order.

    Raises:
        InputError: For frames that do not fill the clips a projector merges.
    """
    projector, grid, n_frames = cfg.projector, Grid.of(cfg, shape), shape.n_frames
    assert projector is not None and cfg.vision is not None
    if projector.merge is not None and n_frames % projector.merge.frames_per_clip:
        raise InputError(
            f"this model merges clips of {projector.merge.frames_per_clip} frames, and {n_frames} frames were given; "
            f"use a multiple of {projector.merge.frames_per_clip}"
        )
    runs: list[Segment] = []
    for step, f in enumerate(range(0, n_frames, cfg.patch_frames)):
        if projector.merge is not None:
            m = projector.merge
            runs.append(Segment("video", 0, m.tokens_per_frame, frame=f, blend=m.frames_per_clip))
            continue
        if cfg.vision.cls_kept:
            runs.append(Segment("cls", 0, 1, frame=f))
        span = min(cfg.patch_frames, n_frames - f)  # an odd last frame is alone, taken twice
        rows = [(grid.columns, 1)] * grid.rows
        rows = rows if projector.newline == "row" else [(grid.n_kept(step), projector.newline == "frame")]
        for patches, newlines in rows:
            runs += [
                Segment("video", 0, patches, frame=f, blend=span, frames=span),
                Segment("newline", 0, int(newlines), frame=f),
            ]
    if projector.newline == "once":
        runs.append(Segment("newline", 0, 1))
    return list(TokenLayout.of(runs).segments)
