"""Patches as rows, and the tokens that stay, against transformers' processors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor

from hookedvid.errors import InputError
from hookedvid.values.parts import QWEN2_VIT, VIDEOLLAMA3_VIT
from hookedvid.values.patch_rows import dropped, kept, to_frames, to_rows
from versions import processors_of_today

law = settings(deadline=None)  # a loaded machine is no failure
counts = st.integers(1, 5)


def tower(patch, merge, length, **other):
    return replace(
        VIDEOLLAMA3_VIT, patch_size=patch, image_size=patch, multiple=patch * merge, patch_frames=length, **other
    )


@processors_of_today
@law
@given(counts, counts, counts, counts, counts, counts)
def test_rows_are_those_of_qwen_and_lead_back(n, high, wide, patch, merge, length):
    vision = tower(patch, merge, length)
    frames = torch.randn(n, 3, high * patch * merge, wide * patch * merge)
    made = to_rows(frames, vision)
    official, *grid = Qwen2VLVideoProcessor().patchify(frames[None], patch, merge, length)
    assert torch.equal(made.rows, official[0]) and made.grid == tuple(grid)
    back = to_frames(made.rows, made.grid, vision)
    assert torch.equal(back[:n], frames) and all(torch.equal(f, frames[-1]) for f in back[n:])
    assert len(back) == -(-n // length) * length
    assert torch.equal(to_rows(back, vision).rows, made.rows)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [((48, 1176), (2, 4, 5)), ((48, 1176), (2, 3, 8)), ((48, 588), (2, 4, 6)), ((0, 1176), (0, 4, 6))],
)
def test_rows_that_fit_no_grid_are_refused(shape, grid):
    with pytest.raises(InputError, match=r"rows of patches .* do not fit the grid"):
        to_frames(torch.zeros(shape), grid, QWEN2_VIT)


def still(*changes):
    """Frames of noise, each like the one before but for a change somewhere: a frame of [8, 12] pixels, 2 x 3 tokens."""
    g = torch.Generator().manual_seed(0)
    frames = [torch.randn(3, 8, 12, generator=g)]
    for rows, columns, amount in changes:
        frames.append(frames[-1].clone())
        frames[-1][:, rows, columns] += amount
    return torch.stack(frames)


ALL = slice(None)
STILL = still(
    (ALL, ALL, 0.0),  # nothing: the first token stays
    (slice(4, 8), slice(8, 12), 1.0),  # the last token
    (ALL, ALL, 1e-4),  # below 0.1 / 255
    (ALL, slice(0, 4), 0.01),  # the left column
    (ALL, ALL, 1.0),
)


def test_tokens_that_stay():
    vision = tower(2, 2, 1, drop_below=0.1)
    assert kept(STILL, vision).view(6, 2, 3).int().tolist() == [
        [[1, 1, 1], [1, 1, 1]],
        [[1, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 0, 0]],
        [[1, 0, 0], [1, 0, 0]],
        [[1, 1, 1], [1, 1, 1]],
    ]
    gone = dropped(STILL, vision)
    assert gone == tuple(i for i, k in enumerate(kept(STILL, vision).tolist()) if not k)
    assert dropped(STILL, tower(2, 2, 1, drop_below=None)) == () == dropped(STILL[:1], vision)


@law
@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.floats(0, 2), st.integers(0, 99))
def test_tokens_that_stay_are_those_of_videollama3(n, high, wide, merge, amount, seed):
    g = torch.Generator().manual_seed(seed)
    vision = tower(4, merge, 1, drop_below=0.1)
    frames = torch.randn(1, 3, high * 4 * merge, wide * 4 * merge, generator=g).expand(n, -1, -1, -1)
    frames = frames + amount / 255 * torch.rand(frames.shape, generator=g) * (torch.rand(n, 1, 1, 1, generator=g) < 0.5)
    rows, grid = to_rows(frames, vision)
    official = VideoLlama3VideoProcessor()._get_compression_mask(rows, torch.tensor([grid]), torch.tensor([merge]))
    assert torch.equal(kept(frames, vision), official)
