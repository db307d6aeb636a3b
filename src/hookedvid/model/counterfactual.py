"""Inputs that show another clip than the one they were prepared from: one entrance for every verb of a model.

Frames are decoded anew where they are not held, changed, preprocessed and laid out as `prepare` does; they are encoded
by whatever runs on these inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hookedvid.errors import InputError, InterventionError
from hookedvid.nn.model import Model
from hookedvid.values.clips import parted
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.effects import Intervention
from hookedvid.values.frame_size import frame_size
from hookedvid.values.grid import Grid, VideoShape
from hookedvid.values.inputs import VIDEO, VideoInputs
from hookedvid.values.interventions import Asked, as_interventions
from hookedvid.values.layout import Segment, TokenLayout, video_segments
from hookedvid.values.patch_rows import dropped
from hookedvid.values.selectors import ROLES_OF
from hookedvid.values.tensors import ints


def shown(
    model: Model, inputs: VideoInputs, interventions: Any, from_pixels: bool = True
) -> tuple[VideoInputs, tuple[Intervention, ...]]:
    """The inputs that a condition shows, and what else it does.

    Args:
        model: The model.
        inputs: As they were prepared.
        interventions: Of the condition, clips among them.
        from_pixels: Whether the run begins there, and not from a stream that is given.

    Raises:
        InterventionError: Where a clip is changed that the run does not look at.
    """
    clips, rest = parted(as_interventions(interventions), model.cfg.lm.n_layers)
    if not clips:
        return inputs, rest
    if not from_pixels:
        raise InterventionError(
            f"{clips[0].label()}: a run from a given residual stream looks at no clip; give the stream of a run on "
            "model.counterfactual(inputs, clips)"
        )
    return counterfactual(model, inputs, clips), rest


def counterfactual(model: Model, inputs: VideoInputs, clips: Asked) -> VideoInputs:
    """The inputs with the pictures of every video changed, in order; texts, times and features' places stay.

    What `prepare` would give for these frames, were the times told those of the original. The layout is the same, but
    where the pictures decide which tokens there are: VideoLLaMA3 drops those that repeat, and another video (`From`)
    may have another shape in families that keep it. Nothing is encoded here.

    Raises:
        InputError: For inputs of tensors, whose decoded frames nobody has, and for groups that another layout lacks.
        InterventionError: For what changes no clip, and for frames that are not there.
    """
    changes, rest = parted(as_interventions(clips), model.cfg.lm.n_layers)
    if rest:
        raise InterventionError(f"{rest[0].label()} changes no clip; give it to the run")
    return several(model, [inputs], changes)[0]


def several(model: Model, inputs: Sequence[VideoInputs], changes: Sequence[Intervention]) -> list[VideoInputs]:
    """`counterfactual` of each; questions on one video share its pixels."""
    seen: list[tuple[Tensor, _Seen]] = []
    return [VideoInputs.stack([_one(model, x, i, changes, seen) for i in range(x.batch_size)]) for x in inputs]


@dataclass(frozen=True, eq=False)
class _Seen:
    """What became of a video's frames."""

    pixels: Tensor
    shape: VideoShape


def _one(
    model: Model, inputs: VideoInputs, item: int, changes: Sequence[Intervention], seen: list[tuple[Tensor, _Seen]]
) -> VideoInputs:
    footage = inputs.footage[item] if inputs.footage else None
    before, layout = inputs.pixel_values[item], inputs.layouts[item]
    if before is None or footage is None:
        what = "an input without a video" if before is None else "inputs of tensors, which hold no decoded frames"
        raise InputError(
            f"{changes[0].label()}: it changes a clip, and this is {what}; prepare a video, or give the changed "
            "frames to prepare"
        )
    now = footage.under(tuple(changes))
    known = next((s for pixels, s in seen if pixels is before or torch.equal(pixels, before)), None)
    if known is None:
        known = _seen(model.cfg, now.frames())
        seen.append((before, known))
    old = layout.grid
    assert old is not None
    grid = replace(Grid.of(model.cfg, known.shape), rate=old.rate, times=old.times)
    other = _laid_out(model.cfg, layout, known.shape, grid)
    text = iter([t for t in ints(inputs.tokens[item, inputs.pads[item] :]) if t != VIDEO])
    ids = [VIDEO if s.role in ROLES_OF["video"] else next(text) for s in other.segments for _ in range(len(s))]
    return VideoInputs(
        torch.tensor([ids], device=inputs.tokens.device),
        (other,),
        (known.pixels.to(before.device),),
        inputs.options[item : item + 1],
        inputs.option_tokens[item : item + 1],
        footage=(now,),
    )


def _seen(cfg: VideoLLMConfig, frames: Any) -> _Seen:
    from hookedvid.video.transforms import preprocess

    assert cfg.vision is not None
    pixels = preprocess(frames, cfg.vision)
    n, height, width, _ = frames.shape
    size = frame_size(cfg.vision, n, height, width)
    return _Seen(pixels, VideoShape(n, *size, dropped(pixels, cfg.vision), source=(height, width)))


def _laid_out(cfg: VideoLLMConfig, layout: TokenLayout, shape: VideoShape, grid: Grid) -> TokenLayout:
    """The layout with another video in place of its own, step by step.

    Raises:
        InputError: Where groups name positions that are others then.
    """
    own = video_segments(cfg, shape)
    runs: list[Segment] = []
    placed: set[int | None] = set()
    for s in layout.segments:
        if s.role not in ROLES_OF["video"]:
            runs.append(s)
        elif s.frame not in placed:
            placed.add(s.frame)
            runs += [new for new in own if new.frame == s.frame]
    other = replace(TokenLayout.of(runs, layout.markers_are_language, grid), groups=layout.groups)
    if other.groups and other.segments != layout.segments:
        raise InputError(
            f"the counterfactual clip has other tokens than its original, so that the groups "
            f"{', '.join(name for name, _ in layout.groups)} are no longer the same positions; name them in "
            "model.counterfactual(inputs, clips)"
        )
    return other
