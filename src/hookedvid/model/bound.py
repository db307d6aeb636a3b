"""A model with its input bound, for tools that pass token ids and nothing else."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hookedvid.values.inputs import VideoInputs


class BoundModel:
    """What TransformerLens's `patching` and `tools.analysis` take for a model.

    `tokens` of the bound input (`-200` at video positions) go in and out as ids; tokens with other text,
    but the same video positions, run with the bound video. Everything else is the model's.
    """

    def __init__(self, model: Any, inputs: VideoInputs):
        self.model = model
        self.inputs = inputs

    @property
    def tokens(self) -> Tensor:
        """Ids [batch, pos] of the bound input, -200 at video positions."""
        return self.inputs.tokens

    cfg = property(lambda self: self.model.cfg)
    blocks = property(lambda self: self.model.blocks)
    ln_final = property(lambda self: self.model.ln_final)
    unembed = property(lambda self: self.model.unembed)
    hook_dict = property(lambda self: self.model.hook_dict)

    def to_tokens(self, text: str | None = None) -> Tensor:
        """The bound ids; a text's ids if one is given."""
        return self.tokens if text is None else self.model.to_tokens(text)

    def to_single_token(self, text: str) -> int:
        """See the model's."""
        return self.model.to_single_token(text)

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        """See the model's."""
        return self.model.tokens_to_residual_directions(tokens)

    def accumulated_bias(self, *args: Any, **kwargs: Any) -> Tensor:
        """See the model's."""
        return self.model.accumulated_bias(*args, **kwargs)

    def __call__(self, tokens: Tensor | None = None, **kwargs: Any) -> Any:
        """`forward` on the bound input, its text replaced by `tokens` if they are given."""
        return self.model(self._with(tokens), **kwargs)

    def run_with_hooks(self, tokens: Tensor | None = None, **kwargs: Any) -> Any:
        """The model's `run_with_hooks` on the bound input."""
        return self.model.run_with_hooks(self._with(tokens), **kwargs)

    def run_with_cache(self, tokens: Tensor | None = None, **kwargs: Any) -> Any:
        """The model's `run_with_cache` on the bound input."""
        return self.model.run_with_cache(self._with(tokens), **kwargs)

    def hooks(self, *args: Any, **kwargs: Any) -> Any:
        """The model's `hooks`."""
        return self.model.hooks(*args, **kwargs)

    def __getattr__(self, name: str) -> Callable | Any:
        return getattr(self.model, name)

    def _with(self, tokens: Tensor | None) -> VideoInputs:
        return self.inputs if tokens is None else self.inputs.with_tokens(tokens)
