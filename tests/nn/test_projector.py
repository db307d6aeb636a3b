"""Pooling, shuffling, merging and newlines against slow formulas written from their descriptions."""

import itertools

import pytest
import torch

from hookedvid.errors import ConfigError, InputError
from hookedvid.nn.projector import Projector, merge_tokens, merged_into, pool_patches, shuffle_patches
from hookedvid.values.config import MergeConfig, ProjectorConfig
from models import square_video


def features(n_frames: int, side: int, d: int) -> torch.Tensor:
    return torch.randn(n_frames, side * side, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def projector(**kwargs) -> Projector:
    torch.manual_seed(0)
    p = Projector(ProjectorConfig(d_in=6, d_out=4, **kwargs)).double()
    for w in p.parameters():
        torch.nn.init.normal_(w)
    return p


@pytest.mark.parametrize("mode", ["average", "max"])
def test_pooling_takes_whole_windows_only(mode):
    x = features(2, 5, 3)
    grid = x.view(2, 5, 5, 3)
    reduce = torch.mean if mode == "average" else torch.amax
    slow = [reduce(grid[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2], (1, 2)) for r in range(2) for c in range(2)]
    pooled = pool_patches(x, ProjectorConfig(d_in=3, d_out=3, pool=mode))
    torch.testing.assert_close(pooled, torch.stack(slow, 1), rtol=0, atol=1e-15)  # sums of four in another order


def test_bilinear_pooling_ceils_and_samples_pixel_centres():
    x = features(1, 5, 1)
    grid = x.view(5, 5)
    pooled = pool_patches(x, ProjectorConfig(d_in=1, d_out=1, pool="bilinear")).view(3, 3)
    centres = (torch.arange(3, dtype=torch.float64) + 0.5) * 5 / 3 - 0.5
    low = centres.floor().long().clamp(0, 4)
    high = (low + 1).clamp(max=4)
    w = centres - low
    rows = grid[low] * (1 - w)[:, None] + grid[high] * w[:, None]
    slow = rows[:, low] * (1 - w) + rows[:, high] * w
    torch.testing.assert_close(pooled, slow, rtol=0, atol=1e-12)  # float64 weights in another order


def test_pooling_before_the_mlp_differs_from_pooling_after_it():
    x = features(2, 4, 6)
    before, after = projector(pool="average", pool_before=True), projector(pool="average")
    assert (before(x) - after(x)).abs().max() > 1e-3
    pooled = pool_patches(x, before.cfg)
    torch.testing.assert_close(before(x), projector()(pooled), rtol=0, atol=0)


def test_shuffle_joins_squares_in_row_order():
    x = torch.arange(16.0).view(1, 16, 1)
    assert shuffle_patches(x, 2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]


def test_merging_averages_the_most_similar_pairs_weighted_by_size():
    x = features(2, 4, 8)
    cfg = MergeConfig(frames_per_clip=2, tokens_per_clip=8, metric_heads=2)
    tokens, sizes = x.reshape(32, 8), [1.0] * 32
    while len(tokens) > 8:
        metric = tokens.view(-1, 2, 4).mean(1)
        metric = metric / metric.norm(dim=-1, keepdim=True)
        a, b = list(range(0, len(tokens), 2)), list(range(1, len(tokens), 2))
        sums = {j: (tokens[j] * sizes[j], sizes[j]) for j in b}
        for i in a:
            best = max(b, key=lambda j: float(metric[i] @ metric[j]))
            total, n = sums[best]
            sums[best] = (total + tokens[i] * sizes[i], n + sizes[i])
        tokens, sizes = torch.stack([sums[j][0] / sums[j][1] for j in b]), [sums[j][1] for j in b]
    merged = merge_tokens(x, cfg).reshape(8, 8)
    torch.testing.assert_close(merged, tokens, rtol=0, atol=1e-12)  # sums in another order


def test_merged_into_says_which_tokens_make_each_merged_one():
    cfg = MergeConfig(frames_per_clip=2, tokens_per_clip=6, metric_heads=2)
    x = features(4, 5, 8).requires_grad_()
    number, merged = merged_into(x.detach(), cfg), merge_tokens(x, cfg).flatten(0, 1)
    for token, row in enumerate(merged):
        (moved,) = torch.autograd.grad(row.sum(), x, retain_graph=True)
        assert torch.equal(moved.abs().sum(-1) > 0, number == token)


def test_merging_keeps_unmerged_tokens_in_front():
    x = features(1, 4, 8)
    out = merge_tokens(x, MergeConfig(frames_per_clip=1, tokens_per_clip=12, metric_heads=2))[0]
    assert out.shape == (12, 8)
    even = x[0, ::2]
    assert all(any(torch.equal(out[i], t) for t in even) for i in range(4))


def test_frames_that_fill_no_clip_are_refused():
    with pytest.raises(InputError, match="merges clips of 4 frames, and 6 frames were given; use a multiple of 4"):
        merge_tokens(features(6, 4, 8), MergeConfig(tokens_per_clip=16, metric_heads=2))


@pytest.mark.parametrize(
    ("newline", "pool"), itertools.product(["none", "once", "frame", "row"], ["none", "average", "max", "bilinear"])
)
def test_packing_matches_the_layout(newline, pool):
    p = projector(newline=newline, pool=pool)
    tokens = p(features(3, 5, 6))
    packed = p.pack(tokens)
    segments = square_video(p.cfg, 5, 3)
    assert segments[-1].stop == len(packed)
    assert sum(len(s) for s in segments if s.frame == 1) == p.cfg.tokens_per_frame(5)
    patches, newlines = [], []
    for s in segments:
        (patches if s.role == "video" else newlines).extend(packed[s.start : s.stop])
    assert torch.equal(torch.stack(patches), tokens.flatten(0, 1))
    side = p.cfg.side(5)
    assert len(newlines) == {"none": 0, "once": 1, "frame": 3, "row": 3 * side}[newline]
    assert all(torch.equal(n, p.newline) for n in newlines)


def test_merging_and_pooling_exclude_each_other():
    with pytest.raises(ConfigError, match="merged tokens have no grid left"):
        ProjectorConfig(d_in=4, d_out=4, merge=MergeConfig(), pool="average")
