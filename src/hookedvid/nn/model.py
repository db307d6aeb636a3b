"""What is asked of a model by whoever is given one: parts and verbs of `HookedVideoLLM`, where all can import them."""

# ruff: noqa: D102 - what the verbs do is said where they are made

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hookedvid.nn.attention import Kernel
from hookedvid.nn.layers import RMSNorm
from hookedvid.nn.projector import Projector
from hookedvid.nn.vision import VisionTower
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.inputs import PatchRows, Pixels, Tokens, VideoInputs


@runtime_checkable
class Model(Protocol):
    """A Video-LLM. At run time only `cfg` is looked for: a plain decoder has no tower, a bare tower no blocks."""

    cfg: VideoLLMConfig

    if TYPE_CHECKING:
        tokenizer: Any
        kernel: Kernel
        vision: VisionTower
        projector: Projector
        embed: nn.Embedding
        blocks: Any  # nn.ModuleList of Block; torch's type forgets of what
        ln_final: RMSNorm
        unembed: nn.Linear
        encoder_read: tuple[Any, str] | None
        hook_dict: dict[str, Any]

        @property
        def device(self) -> torch.device: ...
        def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
        def named_parameters(
            self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
        ) -> Iterator[tuple[str, nn.Parameter]]: ...
        def get_parameter(self, target: str) -> nn.Parameter: ...
        def get_submodule(self, target: str) -> nn.Module: ...
        def modules(self) -> Iterator[nn.Module]: ...

        # Inputs.
        @property
        def prepare(self) -> Callable[..., VideoInputs]: ...
        def inputs_from_tensors(
            self, tokens: Tokens, pixel_values: Pixels | PatchRows = None, **processed: Any
        ) -> VideoInputs: ...
        def to_tokens(self, text: str) -> Tensor: ...
        def inputs_of(self, input: Any, **how: Any) -> VideoInputs: ...
        def embed_inputs(self, inputs: VideoInputs, n_new: int | None = None) -> Float[Tensor, "batch pos d_model"]: ...
        def enter(
            self, inputs: VideoInputs
        ) -> tuple[Float[Tensor, "batch pos d_model"], list[Float[Tensor, "batch pos d_model"]]]: ...
        def encoded(self, inputs: VideoInputs) -> VideoInputs: ...

        # Runs.
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
        def turn(self, hooked: bool = False) -> AbstractContextManager[None]: ...
        def hooks(self, fwd_hooks: Any = ...) -> AbstractContextManager[Any]: ...
        def run_with_hooks(self, *args: Any, **kwargs: Any) -> Any: ...
        def run_with_cache(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]: ...
        def answer(self, inputs: VideoInputs, interventions: Any = None) -> Any: ...
        @property
        def generate(self) -> Callable[..., Any]: ...
