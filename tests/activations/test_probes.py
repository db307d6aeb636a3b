"""Probes are judged on videos that they have not seen; directions are the means' and the covariance's."""

import sys

import numpy as np
import pytest
import torch

from hookedvid import difference_of_means, principal_components, probe
from hookedvid.activations.store import Rows
from hookedvid.errors import InputError, RunError


def rows_of(values: torch.Tensor, video: torch.Tensor) -> Rows:
    none = torch.full((len(values),), -1)
    return Rows(values, video, video, none, none, none, none)


def made(seed: int = 0, n_videos: int = 20, each: int = 6, d: int = 8):
    generator = torch.Generator().manual_seed(seed)
    video = torch.arange(n_videos).repeat_interleave(each)
    of_video = torch.randn(n_videos, d, generator=generator, dtype=torch.float64)[video]
    return generator, video, of_video + 0.05 * torch.randn(len(video), d, generator=generator, dtype=torch.float64)


def test_a_probe_reads_what_is_there():
    generator, video, values = made()
    labels = torch.randint(0, 3, (len(values),), generator=generator)
    directions = torch.eye(8, dtype=torch.float64)[:3] * 4
    rows = rows_of(values + directions[labels], video)
    found = probe(rows, labels)
    assert found.score > 0.9 and found.classes == (0, 1, 2) and 0.2 < found.chance < 0.5
    assert found.n_videos == 20 and len(found.folds) == 5 and "% right" in repr(found)
    assert found.score == np.mean(np.array(found.predicted) == labels.numpy())
    best = found.directions.abs().argmax(1)
    assert best.tolist() == [0, 1, 2] and found.directions.shape == (3, 8)


def test_what_only_the_video_tells_is_not_read():
    """A label for each video: every row of it is alike, so that a split by rows would be right all the time."""
    generator, video, values = made()
    labels = torch.randint(0, 2, (20,), generator=generator)[video]
    assert probe(rows_of(values, video), [str(x) for x in labels.tolist()]).score < 0.75


def test_numbers_are_fitted_by_ridge():
    _, video, values = made(each=10)
    y = values @ torch.linspace(-1, 1, 8, dtype=torch.float64) + 3
    found = probe(rows_of(values.unflatten(1, (2, 4)), video), y.tolist(), penalty=1e-6)
    assert found.score > 0.999 and not found.classes and found.chance == 0 and "R²" in repr(found)
    wanted = torch.linspace(-1, 1, 8, dtype=torch.float64).view(1, 2, 4)
    assert (found.directions - wanted).abs().max() < 1e-3


def test_what_cannot_be_probed_is_refused(monkeypatch):
    _, video, values = made(n_videos=3)
    rows = rows_of(values, video)
    for labels, how, says in (
        ([1], {}, "not one for each"),
        ([None, *video.tolist()[1:]], {"folds": 3}, "leave out the rows of None"),
        ([float("nan"), *video.tolist()[1:]], {"folds": 3}, "leave out the rows of None and NaN"),
        (video, {"folds": 2.5}, "do not split into 2.5 folds"),
        (video, {"folds": 3, "penalty": 0}, "penalty is 0"),
        ([0] * len(rows), {"folds": 3}, "nothing to tell apart"),
        (video, {}, "3 videos do not split into 5 folds"),
        ((video == 0).int(), {"folds": 3}, "without a fold's videos every label is 0"),
    ):
        with pytest.raises(InputError, match=says):
            probe(rows, labels, **how)
    alike = probe(rows, video.double(), folds=3)  # of a fold whose numbers are all one, no share is told
    assert np.isnan(alike.folds).all() and np.isfinite(alike.score)
    with pytest.raises(InputError, match="some rows are not finite"):
        probe(rows_of(values / 0, video), video, folds=3)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(RunError, match=r"pip install 'hookedvid\[probes\]'"):
        probe(rows, video)


def test_directions():
    _, video, values = made()
    rows, of = rows_of(values.unflatten(1, (2, 4)), video), video < 7
    wanted = sum(values[of]) / of.sum() - sum(values[~of]) / (~of).sum()
    assert (difference_of_means(rows, of).flatten() - wanted).abs().max() < 1e-12
    assert torch.equal(difference_of_means(rows, of.tolist()), difference_of_means(rows, of))
    found = principal_components(rows, 3)
    centred = values - values.mean(0)
    _, s, v = torch.linalg.svd(centred, full_matrices=False)
    assert (found.variance - s[:3] ** 2 / (len(values) - 1)).abs().max() < 1e-12
    assert ((found.directions.flatten(1) * v[:3]).sum(1).abs() - 1).abs().max() < 1e-12
    assert (found.share - s[:3] ** 2 / (s**2).sum()).abs().max() < 1e-12 and found.directions.shape == (3, 2, 4)
    assert torch.equal(found.mean, values.mean(0).view(2, 4))
    for bad, says in ((of[1:], "True or False for each"), (of | True, "and some others")):
        with pytest.raises(InputError, match=says):
            difference_of_means(rows, bad)
    with pytest.raises(InputError, match="have no 9 components"):
        principal_components(rows, 9)
