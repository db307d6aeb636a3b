"""The verb `view` of a model; what it does is above, where sweeps are known (`hookedvid.viewer`)."""

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hookedvid.nn.model import Model
from hookedvid.values.effects import Intervention
from hookedvid.values.inputs import VideoInputs

if TYPE_CHECKING:
    from hookedvid.viewer.view import View


def view(
    model: Model, inputs: VideoInputs, conditions: Iterable[Any] | Intervention | None = None, **how: Any
) -> "View":
    """One question as an HTML page of its own: frames, attention on them, what cutting each costs, words of a lens.

    `.save(path)` writes it, a notebook shows it.

    Args:
        model: The model.
        inputs: Of one item, with a video.
        conditions: Whose answers stand beside the baseline's; LV-K, VT-K and VS-K in all layers unless given.
        how: Other arguments of `hookedvid.viewer.view.view`.
    """
    return importlib.import_module("hookedvid.viewer.view").view(model, inputs, conditions, **how)
