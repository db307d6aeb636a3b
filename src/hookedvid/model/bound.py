"""A model with its input bound, or two videos, for tools that pass token ids and nothing else."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.nn.model import Model
from hookedvid.values.inputs import PAD, VIDEO, VideoInputs
from hookedvid.values.layout import TokenLayout


class BoundModel:
    """What TransformerLens's `patching` and `tools.analysis` take for a model.

    `tokens` of the bound input (`-200` at video positions) go in and out as ids; tokens with other text,
    but the same video positions, run with the bound video. Everything else is the model's.
    """

    def __init__(self, model: Model, inputs: VideoInputs):
        self.model = model
        self.inputs = inputs

    @property
    def tokens(self) -> Tensor:
        """Ids [batch, pos] of the bound input, -200 at video positions."""
        return self.inputs.tokens

    def to_tokens(self, text: str | None = None) -> Tensor:
        """The bound ids; a text's ids if one is given."""
        return self.tokens if text is None else self.model.to_tokens(text)

    def __call__(self, tokens: Tensor | None = None, **kwargs: Any) -> Any:
        """`forward` on the bound input, its text replaced by `tokens` if they are given."""
        return self.model(self._with(tokens), **kwargs)

    def run_with_hooks(self, tokens: Tensor | None = None, **kwargs: Any) -> Any:
        """The model's `run_with_hooks` on the bound input."""
        return self.model.run_with_hooks(self._with(tokens), **kwargs)

    def run_with_cache(self, tokens: Tensor | None = None, **kwargs: Any) -> Any:
        """The model's `run_with_cache` on the bound input."""
        return self.model.run_with_cache(self._with(tokens), **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # asked for by copies and pickles before it is there
            raise AttributeError(name)
        return getattr(self.model, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.model.cfg.family}, tokens {list(self.tokens.shape)}"

    def _with(self, tokens: Tensor | None) -> VideoInputs:
        return self.inputs if tokens is None else self.inputs.with_tokens(tokens)


class BoundPair(BoundModel):
    """A model that reads from token ids which of several videos they ask about: pairs of a clean and a corrupt one.

    Two videos under one question have the same ids, -200 at every video position. Here each has a number of its own
    there, from -201 down, so that tools that know nothing of videos run the right one. Rows of `clean` and `corrupt`
    may come in any choice and order, with other text too. Everything else is the model's.

    Attributes:
        clean, corrupt: Ids [pair, pos] of one side each.
    """

    def __init__(self, model: Model, clean: VideoInputs, corrupt: VideoInputs):
        _check_alike(clean, corrupt)
        super().__init__(model, VideoInputs.stack([clean, corrupt]))
        numbers = VIDEO - 1 - torch.arange(self.inputs.batch_size, device=self.inputs.tokens.device)
        self._ids = torch.where(self.inputs.is_video, numbers[:, None], self.inputs.tokens)
        self.clean: Tensor = self._ids[: clean.batch_size]
        self.corrupt: Tensor = self._ids[clean.batch_size :]

    @property
    def tokens(self) -> Tensor:
        """Ids of the corrupt side, which patching tools run on."""
        return self.corrupt

    def _with(self, tokens: Tensor | None) -> VideoInputs:
        """The videos that these ids name."""
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or bool((tokens == VIDEO).any()):
            raise InputError("these tokens do not say which video they ask about: pass rows of .clean or .corrupt")
        which = [VIDEO - 1 - int(row.min()) for row in tokens]
        if not all(0 <= i < self.inputs.batch_size for i in which):
            raise InputError("tokens without a video of this pair: pass rows of .clean or .corrupt")
        chosen = self.inputs.take(which).with_tokens(torch.where(tokens < VIDEO, VIDEO, tokens))
        if not torch.equal(tokens.clamp(max=PAD).to(self._ids), self._ids[which].clamp(max=PAD)):
            raise InputError("a row of tokens that names several videos: pass rows of .clean or .corrupt")
        return chosen


def bind(model: Model, inputs: VideoInputs) -> BoundModel:
    """This model on this input, for TransformerLens's tools, which pass tokens alone.

    Raises:
        InputError: For what is no input.
    """
    return BoundModel(model, _checked(inputs).to(model.device))


def bind_pair(
    model: Model, clean: VideoInputs | Sequence[VideoInputs], corrupt: VideoInputs | Sequence[VideoInputs]
) -> BoundPair:
    """This model on two videos, for TransformerLens's tools that compare a clean and a corrupt prompt.

    `attribution_patch(pair, pair.clean, pair.corrupt, metric)`. Inputs that are encoded (`encoded`) spare each run
    the tower.

    Args:
        clean, corrupt: One input, a batch, or several; of each side as many. The two of a pair have one layout: the
            same parts of the prompt at the same positions, the video's in the same cells.

    Raises:
        InputError: For what is no input, inputs without a video, and pairs of unlike layouts.
    """
    sides = (
        VideoInputs.stack([*map(_checked, side)]) if isinstance(side, Iterable) else _checked(side)
        for side in (clean, corrupt)
    )
    return BoundPair(model, *(side.to(model.device) for side in sides))


def _checked(inputs: Any) -> VideoInputs:
    if not isinstance(inputs, VideoInputs):
        raise InputError(f"{type(inputs).__name__} is no input: give what model.prepare(video, question) gives")
    return inputs


def _check_alike(clean: VideoInputs, corrupt: VideoInputs) -> None:
    if clean.batch_size != corrupt.batch_size:
        raise InputError(f"{clean.batch_size} clean inputs and {corrupt.batch_size} corrupt ones; give pairs")
    for i, (a, b) in enumerate(zip(clean.layouts, corrupt.layouts, strict=True)):
        if not (a.n_frames and b.n_frames):
            raise InputError(f"pair {i}: an input without a video; token ids of texts go to the model itself")
        if apart := _apart(a, b):
            raise InputError(
                f"pair {i}: {apart}. What is patched from one into the other goes by position: give both as many "
                "frames of one size and a prompt of the same parts, or patch by selectors (hookedvid.Patch)"
            )


def _apart(clean: TokenLayout, corrupt: TokenLayout) -> str:
    """Where two layouts first differ, in words; empty where they are alike."""
    if clean.n_frames != corrupt.n_frames:
        return f"the clean video has {clean.n_frames} frames, the corrupt one {corrupt.n_frames}"
    cells = [g and (g.rows, g.columns, g.dropped) for g in (clean.grid, corrupt.grid)]
    if cells[0] != cells[1]:
        here, there = (c and f"{c[0]} x {c[1]} cells, {len(c[2])} of all dropped," for c in cells)
        return f"a clean frame has {here} a corrupt one {there} so their tokens are not of the same places"
    for a, b in zip(clean.segments, corrupt.segments, strict=False):
        if a != b:
            told = (f"{s.role} at positions {s.start} to {s.stop - 1}" for s in (a, b))
            return "the clean prompt has {}, the corrupt one {}".format(*told)
    n, m = clean.n_tokens, corrupt.n_tokens
    return "" if n == m else f"the clean prompt has {n} tokens, the corrupt one {m}"
