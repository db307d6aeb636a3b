"""Video-LLMs as one fully hooked PyTorch model, for causal studies of how they answer.

Public names stand in `__init__.pyi`. They are resolved when first used, so that importing the package imports neither
torch nor TransformerLens.
"""

from typing import Any

import lazy_loader

from hookedvid.values.moved import follow_moves

__version__ = "0.2.0"

_resolve, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)

follow_moves()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'hookedvid' has no attribute {name!r}; it has {', '.join(__all__)}")
    return _resolve(name)


def __dir__() -> list[str]:
    return [*_names(), "__version__"]
