"""Linear probes of collected rows, judged on videos that they were not fitted on. They need scikit-learn."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.activations.store import Rows, check_rows
from hookedvid.errors import InputError, RunError
from hookedvid.values.serial import as_whole, is_number


class ProbeScores(NamedTuple):
    """What a linear probe reads.

    Attributes:
        score: Of all rows by probes of other videos: the share that is right, or R² of numbers.
        folds: The same, fold by fold; NaN for numbers where a fold's are all one.
        chance: Of always guessing the commonest label of the other videos, judged alike; 0 for numbers.
        classes: Labels; empty for numbers.
        predicted: Of each row, by a probe of other videos.
        directions: Of a probe of all rows, in the rows' own units: for each class, of two the second alone; of numbers
            one. `Steer` takes each.
        n_videos: That rows are of.
    """

    score: float
    folds: tuple[float, ...]
    chance: float
    classes: tuple[Any, ...]
    predicted: tuple[Any, ...]
    directions: Float[Tensor, "class *channels"]
    n_videos: int

    def __repr__(self) -> str:
        what = (
            f"{self.score:.1%} right, {self.chance:.1%} by the commonest label"
            if self.classes
            else f"R² {self.score:.3f}"
        )
        return f"ProbeScores: {what}, {len(self.folds)} folds of {self.n_videos} videos, n = {len(self.predicted)} rows"


def probe(
    rows: Rows, labels: Sequence[Any] | Tensor, *, folds: int = 5, penalty: float = 1.0, seed: int = 0
) -> ProbeScores:
    """A linear probe of rows, cross-validated by video: rows of one video are alike, and never on both sides.

    Channels are scaled to mean 0 and deviation 1 over what a probe is fitted on. Labels that are floating-point numbers
    are fitted by ridge regression, all others by logistic regression.

    Args:
        rows: Of one hook point, in memory.
        labels: One a row: `[acts.items[i].family for i in rows.item]`, `rows.frame`, ….
        folds: Parts of the videos, each judged by the probe of the others.
        penalty: On the squared weights: 1 / C of LogisticRegression, alpha of Ridge.
        seed: Which videos are together.

    Raises:
        InputError: For labels that are not one a row, of one class alone, or of fewer videos than folds; for what is
            not finite.
        RunError: Without scikit-learn.
    """
    try:
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.model_selection import GroupKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as e:
        raise RunError("probes need scikit-learn: pip install 'hookedvid[probes]'") from e
    x, y, videos = _given(rows, labels, folds, penalty)
    n_videos, numbers = len(np.unique(videos)), np.issubdtype(y.dtype, np.floating)

    def fitted(which: Any) -> Any:
        kind = Ridge(penalty) if numbers else LogisticRegression(C=1 / penalty, max_iter=2000)
        return make_pipeline(StandardScaler(), kind).fit(x[which], y[which])

    predicted, commonest, scores = np.empty_like(y), np.empty_like(y), list[float]()
    for fit, judged in GroupKFold(folds, shuffle=True, random_state=seed).split(x, y, videos):
        if len(np.unique(y[fit])) < 2:
            raise InputError(
                f"without a fold's videos every label is {y[fit].tolist()[0]!r}: take fewer folds, or more videos"
            )
        predicted[judged] = fitted(fit).predict(x[judged])
        commonest[judged] = Counter(y[fit].tolist()).most_common(1)[0][0]
        scores.append(_score(y[judged], predicted[judged], numbers))
    scaler, kind = (step for _, step in fitted(slice(None)).steps)
    weights = torch.from_numpy(np.atleast_2d(kind.coef_ / scaler.scale_))
    classes = () if numbers else tuple(kind.classes_.tolist())
    chance = 0.0 if numbers else _score(y, commonest, numbers)
    directions = weights.unflatten(1, rows.values.shape[1:])
    return ProbeScores(
        _score(y, predicted, numbers), tuple(scores), chance, classes, tuple(predicted.tolist()), directions, n_videos
    )


def _given(rows: Rows, labels: Any, folds: Any, penalty: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, labels and videos of what can be probed; InputError for what cannot."""
    check_rows(rows)
    x = rows.values.double().flatten(1).numpy()
    y = np.asarray(labels.tolist() if isinstance(labels, Tensor) else list(labels))
    videos = rows.video.numpy()
    n_videos = len(np.unique(videos))
    if y.shape != (len(rows),):
        raise InputError(f"{y.shape} labels are not one for each of {len(rows)} rows")
    numbers = np.issubdtype(y.dtype, np.floating)
    if y.dtype == object or (numbers and not np.isfinite(y).all()):
        raise InputError("labels are texts, or finite numbers; leave out the rows of None and NaN: rows[mask]")
    if not np.isfinite(x).all():
        raise InputError("some rows are not finite")
    if not is_number(penalty) or not 0 < penalty < math.inf:
        raise InputError(f"penalty is {penalty!r}; give a finite number above 0")
    if as_whole(folds) is None or not 2 <= folds <= n_videos:
        raise InputError(f"{n_videos} videos do not split into {folds} folds; give 2 folds or more, and as many videos")
    if len(np.unique(y)) < 2:
        raise InputError(f"every label is {y.tolist()[0]!r}: there is nothing to tell apart")
    return x, y, videos


def _score(y: np.ndarray, predicted: np.ndarray, numbers: Any) -> float:
    if numbers:
        varies = ((y - y.mean()) ** 2).sum()
        return float(1 - ((y - predicted) ** 2).sum() / varies) if varies else math.nan
    return float((y == predicted).mean())
