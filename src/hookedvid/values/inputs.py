"""One prepared batch: token ids, pixels and the layout that says what each position is."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.contents import html, plain
from hookedvid.values.grid import Grid, VideoShape
from hookedvid.values.layout import Segment, TokenLayout, video_segments
from hookedvid.values.patch_rows import shape_of
from hookedvid.values.places import TokenPlaces, as_definitions, group_name, group_positions

Tokens = Int[Tensor, "*batch pos"] | Sequence[int] | Sequence[Sequence[int]]
Pixels = (  # one video's where ids are one row's, or [1, …] as processors give them
    Float[Tensor, "*_batch frame 3 height width"] | Sequence[Float[Tensor, "_frame 3 _height _width"] | None] | None
)
PatchRows = Float[Tensor, "patch values"]  # as Qwen's processors make them of all videos together
VIDEO = -200  # the id that stands for video in the original LLaVA code (IMAGE_TOKEN_INDEX)
PAD = -1


@dataclass(frozen=True, eq=False)
class VideoInputs:
    """What a model reads; made by `prepare`, `inputs_from_tensors` or `stack`, never by hand.

    Attributes:
        tokens: Ids, -200 at every video position (newlines of the projector included), -1 where padded (left).
        layouts: One per item, positions counted without the padding.
        pixel_values: One per item, float32 [frame, 3, height, width], None without a video.
        options: The option texts of each item; `option_tokens` the ids whose logits are compared.
        features: One per item, [video_pos, columns] in place of encoding its pixels, None to encode them; empty: all
            are encoded. Columns are the stream's d_model, then as many for each block of DeepStack. Made by
            `HookedVideoLLM.encoded`, so that one video asked often goes through the tower once; `encoder` says by
            which weights (`hookedvid.model.encode_video.encoder_of`).
        footage: One per item, how its decoded frames are had again (`hookedvid.video.footage.Footage`), for `frames`
            and counterfactual clips; None, or empty, for inputs of tensors.
    """

    tokens: Int[Tensor, "batch pos"]
    layouts: tuple[TokenLayout, ...]
    pixel_values: tuple[Float[Tensor, "_frame 3 _height _width"] | None, ...]  # _: items differ
    options: tuple[tuple[str, ...], ...] = ()
    option_tokens: tuple[tuple[int, ...], ...] = ()
    features: tuple[Float[Tensor, "_video_pos _d_model"] | None, ...] = ()
    encoder: str = ""
    footage: tuple[Any, ...] = ()

    @property
    def batch_size(self) -> int:
        """Items in the batch."""
        return self.tokens.shape[0]

    @property
    def layout(self) -> TokenLayout:
        """The layout of a single item.

        Raises:
            InputError: On a batch, whose items each have their own.
        """
        if self.batch_size != 1:
            raise InputError(f"this batch holds {self.batch_size} items, each with its own layout: use .layouts[i]")
        return self.layouts[0]

    @property
    def pads(self) -> tuple[int, ...]:
        """Padding positions on the left of each item."""
        return tuple(self.tokens.shape[1] - layout.n_tokens for layout in self.layouts)

    @property
    def pos(self) -> Int[Tensor, "batch pos"]:
        """The layout position of every column, -1 where padded; on the CPU, so that no device is waited for."""
        columns = torch.arange(self.tokens.shape[1])
        return (columns[None] - torch.tensor(self.pads)[:, None]).clamp(min=PAD)

    @property
    def position_ids(self) -> Int[Tensor, "axis pos"]:
        """The numbers that rotary positions of a single item turn by, on each axis; int64, on the CPU.

        Raises:
            InputError: On a batch, whose items each have their own.
        """
        return self.layout.position_ids.clone()  # a caller may write to it; the layout keeps its own

    @property
    def is_video(self) -> Bool[Tensor, "batch pos"]:
        """Positions the projector fills."""
        return self.tokens == VIDEO

    @property
    def has_video(self) -> bool:
        """Whether any item has a video."""
        return any(p is not None for p in self.pixel_values)

    @property
    def to_encode(self) -> tuple[Float[Tensor, "_frame 3 _height _width"], ...]:
        """Pixels of the items whose features are not given, in order."""
        features = self.features or (None,) * self.batch_size
        return tuple(p for p, f in zip(self.pixel_values, features, strict=True) if p is not None and f is None)

    def to(self, device: torch.device | str) -> "VideoInputs":
        """The same batch on another device."""
        pixels, features = (
            tuple(None if x is None else x.to(device) for x in xs) for xs in (self.pixel_values, self.features)
        )
        return replace(self, tokens=self.tokens.to(device), pixel_values=pixels, features=features)

    def extend(self, tokens: Int[Tensor, "batch new"]) -> "VideoInputs":
        """The batch with generated tokens at the end of every item."""
        layouts = tuple(layout.extend(tokens.shape[1]) for layout in self.layouts)
        return replace(self, tokens=torch.cat([self.tokens, tokens], 1), layouts=layouts)

    def with_tokens(self, tokens: Int[Tensor, "batch pos"]) -> "VideoInputs":
        """The same video and layout with other text.

        Raises:
            InputError: Unless the video stays where it is.
        """
        if tokens.shape != self.tokens.shape or not torch.equal(tokens < 0, self.tokens < 0):
            raise InputError(
                f"tokens {tuple(tokens.shape)} do not fit this input {tuple(self.tokens.shape)}: they must have its "
                "shape, and -200 at its video positions; start from its own .tokens"
            )
        return replace(self, tokens=tokens.to(self.tokens))

    def with_group(
        self,
        name: str,
        *,
        positions: Any = None,
        cells: Any = None,
        box: Any = None,
        seconds: Any = None,
        share: float | int | None = None,
        selector: str | None = None,
    ) -> "VideoInputs":
        """The inputs of one item with a set of its positions named: `name` is a selector then, wherever one is read.

        A group of that name is replaced. Groups are positions of these inputs: another video's are others.

        Args:
            name: A word of a-z, 0-9 and _.
            positions: Their numbers in the layout.
            cells: (frames, rows, columns) of the frames' grid of tokens, each a number, (from, to) half-open, or None
                for all: the tokens that `video[frames][rows, columns]` names.
            box: (x0, y0, x1, y1) in pixels of the video as decoded, upright: the tokens of every frame whose patches'
                pixels have an area in common with it (`hookedvid.values.places.TokenPlaces`).
            seconds: (a, b): of frames that were sampled from a on and before b, in seconds of the video. Alone, all of
                these frames.
            share: With a box, the least part of a token's own pixels that is in the box; any unless given.
            selector: Another selector's positions.

        Raises:
            InputError: For a name that is a selector, or a definition that names no token.
            SelectorError: For frames, rows and columns that are not there.
        """
        how = {"positions": positions, "cells": cells, "box": box, "seconds": seconds, "share": share}
        found = group_positions(self.layout, {**how, "selector": selector})
        return replace(self, layouts=(self.layout.with_group(group_name(name), found),))

    def with_groups(self, groups: Any) -> "VideoInputs":
        """The inputs with several groups, as items.jsonl has them: {name: {argument of `with_group`: value}}.

        In place of `cells` it may have `frames`, `rows` and `columns`, each a number or [from, to].

        Raises:
            InputError: For what defines no group.
        """
        inputs = self
        for name, how in as_definitions(groups):
            inputs = inputs.with_group(name, **how)
        return inputs

    @property
    def places(self) -> TokenPlaces:
        """Where the video positions of a single item are: frames, rows and columns, pixels of the video, seconds."""
        return TokenPlaces.of(self.layout)

    @property
    def frames(self) -> UInt8[np.ndarray, "frame height width 3"]:
        """The sampled frames of a single item's video as they are shown, in RGB: what `places.box` counts pixels of.

        As decoded, before any resizing; of a counterfactual clip as it was changed. Up to 256 MiB of them are held;
        those of a longer video are decoded from its file anew each time.

        Raises:
            InputError: On a batch, and where there are none: without a video, and of inputs of tensors.
            VideoError: Where the file cannot be read again, or is another one by now.
        """
        if not self.layout.n_frames:
            raise InputError("these inputs have no video, so no frames")
        footage = self.footage[0] if self.footage else None
        if footage is None:
            raise InputError(
                "inputs of tensors hold no decoded frames, but what preprocessing made of them (.pixel_values): to see "
                "frames, prepare the video"
            )
        return footage.frames()

    @property
    def times(self) -> tuple[float, ...]:
        """When each sampled frame of a single item was taken, in seconds of the video; empty where nobody knows."""
        return () if self.layout.grid is None else self.layout.grid.times

    def __repr__(self) -> str:
        return plain(self)

    def _repr_html_(self) -> str:
        """Its items: the prompt's parts by role, and its frames."""
        return html(self)

    def take(self, which: Sequence[int]) -> "VideoInputs":
        """Some items of the batch, in this order, padded as they are; an item may be taken several times."""
        names = (*_PER_ITEM, "features", "footage")
        per_item = {f: tuple(xs[i] for i in which) if (xs := getattr(self, f)) else () for f in names}
        return replace(self, tokens=self.tokens[list(which)], **per_item)

    @staticmethod
    def stack(items: Sequence["VideoInputs"]) -> "VideoInputs":
        """One batch of several inputs, shorter ones padded on the left.

        Also where two hold features that unlike towers made.

        Raises:
            InputError: Without any.
        """
        if not items:
            raise InputError("no inputs to stack; give at least one")
        if len(encoders := {i.encoder for i in items if i.features}) > 1:
            raise InputError("these inputs hold features that unlike towers made: encode all by the model that runs")
        longest = max(i.tokens.shape[1] for i in items)
        features = tuple(f for i in items for f in i.features or (None,) * i.batch_size) if encoders else ()
        tokens = [torch.nn.functional.pad(i.tokens, (longest - i.tokens.shape[1], 0), value=PAD) for i in items]
        per_item = {f: tuple(x for i in items for x in getattr(i, f)) for f in _PER_ITEM}
        footage = tuple(f for i in items for f in i.footage or (None,) * i.batch_size)
        encoder = "".join(encoders)
        return VideoInputs(torch.cat(tokens), **per_item, features=features, encoder=encoder, footage=footage)


_PER_ITEM = ("layouts", "pixel_values", "options", "option_tokens")


def from_tokens(
    cfg: VideoLLMConfig, tokens: Tokens, pixel_values: Pixels, shapes: Sequence[VideoShape | None] | None = None
) -> VideoInputs:
    """Inputs of ids in which -200, or the family's own placeholder id, marks the video.

    Both may be lists: ids of one item or of several, which may differ in length, and one video an item, None where it
    has none. The placeholder stands once per video, or once per visual token (newlines included), in one run or in one
    run per step; or once per cell, those that are dropped among them. Text before the video becomes `system`, between
    steps `marker`, after it `question`.

    Args:
        cfg: The model's.
        tokens: Ids.
        pixel_values: Of each video.
        shapes: Of each video, where pixels do not tell all of it. They tell which tokens are dropped.

    Raises:
        InputError: When ids and pixels do not fit each other or the model.
    """
    items, device = ids_of(tokens), tokens.device if isinstance(tokens, Tensor) else None
    pixels: list[Tensor | None] = [None] * len(items)
    if pixel_values is not None:
        batched = [pixel_values] if isinstance(pixel_values, Tensor) and pixel_values.ndim != 5 else pixel_values
        if len(batched) != len(items):
            raise InputError(f"{len(items)} rows of tokens came with {len(batched)} videos; give one for each")
        pixels = [None if p is None else _checked_pixels(cfg, p) for p in batched]
    rows: list[VideoInputs] = []
    for ids, frames, shape in zip(items, pixels, shapes or (None,) * len(items), strict=True):
        runs = _runs(ids, {VIDEO, cfg.placeholder_id} - {None})
        shape = None if frames is None or cfg.vision is None else shape or shape_of(frames, cfg.vision)
        if shape is not None:
            _check_seconds(cfg, shape)
        segments = _segments(cfg, runs, shape)
        layout = TokenLayout.of((s for s, _ in segments), grid=None if shape is None else Grid.of(cfg, shape))
        text = [t for _, chunk in segments for t in chunk]
        check_vocabulary(cfg, text)
        row = torch.tensor([text], dtype=torch.long, device=device)
        rows.append(VideoInputs(row, (layout,), (frames,), ((),), ((),)))
    return VideoInputs.stack(rows)


def _check_seconds(cfg: VideoLLMConfig, shape: VideoShape) -> None:
    """Raise InputError where positions count seconds and nobody said how many lie between steps."""
    if cfg.decoder is not None and cfg.decoder.rope.per_second is not None and shape.seconds is None:
        raise InputError(
            "this model's positions count seconds, and nothing says how many lie between the video's steps: pass "
            "second_per_grid_ts (of each video), which its processor gives, or fps to prepare's source (folder_fps)"
        )


def ids_of(tokens: Tensor | Sequence[Any]) -> list[list[int]]:
    """The ids of every item. Raises InputError for what are no ids."""
    if isinstance(tokens, Tensor):
        if tokens.ndim not in (1, 2) or tokens.is_floating_point():
            raise InputError(f"tokens are {tokens.dtype} {tuple(tokens.shape)}; give integer ids [pos] or [batch, pos]")
        table: Any = tokens if tokens.ndim == 2 else tokens[None]
        return table.tolist()
    items: list[Any] = list(tokens)
    rows = items if items and all(isinstance(i, Sequence) for i in items) else [items]
    if not all(type(i) is int for row in rows for i in row):
        raise InputError(f"tokens are {tokens!r:.80}; give whole numbers, [pos] or [batch, pos]")
    return [list(row) for row in rows]


def _checked_pixels(cfg: VideoLLMConfig, pixels: Tensor) -> Tensor:
    if cfg.vision is None:
        raise InputError("this model takes no video; leave pixel_values out")
    size, multiple = cfg.vision.image_size, cfg.vision.multiple
    fits = tuple(pixels.shape[2:]) == (size, size)
    if cfg.vision.resize == "fit":
        fits = pixels.ndim == 4 and not any(n % multiple for n in pixels.shape[2:]) and 0 not in pixels.shape[2:]
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not fits:
        sides = f"height, width] with sides that are multiples of {multiple}"
        wanted = sides if cfg.vision.resize == "fit" else f"{size}, {size}]"
        raise InputError(f"pixel_values are {tuple(pixels.shape)}; this tower reads preprocessed [frame, 3, {wanted}")
    if not pixels.is_floating_point():
        raise InputError(f"pixel_values are {pixels.dtype}; preprocess them to floating point first")
    if len(pixels) == 0:
        raise InputError("pixel_values hold no frame; give at least one")
    return pixels


def check_vocabulary(cfg: VideoLLMConfig, ids: Sequence[int]) -> None:
    """Raise InputError for token ids without a row in the embedding: a GPU would end the process over them."""
    wrong = sorted({i for i in ids if i != VIDEO and not 0 <= i < cfg.d_vocab})
    if wrong:
        raise InputError(
            f"token ids {wrong[:5]} are outside this model's vocabulary of {cfg.d_vocab} rows: is this tokenizer "
            "another model's?"
        )


def _runs(ids: Sequence[int], placeholders: set[int | None]) -> list[tuple[bool, list[int]]]:
    """Maximal stretches of (is video, ids)."""
    runs: list[tuple[bool, list[int]]] = []
    for i in ids:
        video = i in placeholders
        if runs and runs[-1][0] == video:
            runs[-1][1].append(i)
        else:
            runs.append((video, [i]))
    return runs


def _segments(
    cfg: VideoLLMConfig, runs: list[tuple[bool, list[int]]], shape: VideoShape | None
) -> list[tuple[Segment, list[int]]]:
    """Every segment with its ids."""
    videos = [chunk for video, chunk in runs if video]
    if shape is None:
        if videos:
            raise InputError(f"the tokens mark a video ({len(videos)} place(s)), but no pixel_values were given")
        return [(Segment("question", 0, len(chunk)), chunk) for _, chunk in runs]
    per_run = _per_run(cfg, shape, [len(v) for v in videos])
    out: list[tuple[Segment, list[int]]] = []
    seen = 0
    for video, chunk in runs:
        if video:
            out += [(s, [VIDEO] * len(s)) for s in per_run[seen]]
            seen += 1
        else:
            role = "system" if seen == 0 else "marker" if seen < len(per_run) else "question"
            first = per_run[seen][0] if role == "marker" else None  # it announces the step that follows
            own = Segment(role, 0, len(chunk))
            out.append((own if first is None else replace(own, frame=first.frame, frames=first.frames), chunk))
    return out


def _per_run(cfg: VideoLLMConfig, shape: VideoShape, lengths: list[int]) -> list[list[Segment]]:
    """The segments of each run of placeholders: of the whole video, or of one step each."""
    whole = video_segments(cfg, shape)
    n_video = whole[-1].stop
    steps = sorted({s.frame for s in whole if s.frame is not None})
    by_step = [[s for s in whole if s.frame == f] for f in steps]
    cells = video_segments(cfg, replace(shape, dropped=()))
    all_cells = [sum(len(s) for s in cells if s.frame == f) for f in steps]
    if lengths in ([1], [n_video]) or (shape.dropped and lengths == [sum(all_cells)]):
        return [whole]
    of_steps = [sum(map(len, segments)) for segments in by_step]
    if sum(of_steps) == n_video and lengths in (of_steps, all_cells):
        return by_step
    raise InputError(
        f"the tokens hold video placeholders in runs of {lengths or 'no'} ids; {shape.n_frames} frames of this model "
        f"are {n_video} tokens: mark them by one -200, by {n_video} ids in a row, or by {len(steps)} runs of "
        f"{', '.join(map(str, dict.fromkeys(of_steps)))}"
    )
