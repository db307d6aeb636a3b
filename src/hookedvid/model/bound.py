"""A model with its input bound, for tools that pass token ids and nothing else."""

from typing import Any

from torch import Tensor

from hookedvid.nn.model import Model
from hookedvid.values.inputs import VideoInputs


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
        return getattr(self.model, name)

    def _with(self, tokens: Tensor | None) -> VideoInputs:
        return self.inputs if tokens is None else self.inputs.with_tokens(tokens)
