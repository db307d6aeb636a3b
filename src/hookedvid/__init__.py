"""Video-LLMs as one fully hooked PyTorch model, for causal studies of how they answer.

Public names are resolved when first used, so that importing the package imports neither torch nor
TransformerLens.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hookedvid.checkpoints.convert import convert, export
    from hookedvid.families.sizes import small_config
    from hookedvid.model.answers import Answer
    from hookedvid.model.cache import VideoCache
    from hookedvid.model.flops import Flops, edge_share
    from hookedvid.model.hooked_video_llm import HookedVideoLLM
    from hookedvid.model.patching import patch_sweep
    from hookedvid.sweep.session import Session
    from hookedvid.values.config import (
        DecoderConfig,
        MergeConfig,
        ProjectorConfig,
        RopeConfig,
        VideoLLMConfig,
        VisionConfig,
    )
    from hookedvid.values.inputs import VideoInputs
    from hookedvid.values.interventions import (
        LV_K,
        PATHWAYS,
        VS_K,
        VT_K,
        EarlyExit,
        Edit,
        Knockout,
        LayerRange,
        Patch,
        RandomEdges,
    )
    from hookedvid.values.layout import Segment, TokenLayout
    from hookedvid.values.masks import NoEdgeWarning
    from hookedvid.video.frames import read_frames

__version__ = "0.2.0"

_HOMES = {
    "model.answers": ("Answer",),
    "model.cache": ("VideoCache",),
    "values.config": (
        "DecoderConfig",
        "MergeConfig",
        "ProjectorConfig",
        "RopeConfig",
        "VideoLLMConfig",
        "VisionConfig",
    ),
    "checkpoints.convert": ("convert", "export"),
    "families.sizes": ("small_config",),
    "model.flops": ("Flops", "edge_share"),
    "values.inputs": ("VideoInputs",),
    "values.interventions": (
        "EarlyExit",
        "Edit",
        "Knockout",
        "LV_K",
        "LayerRange",
        "PATHWAYS",
        "Patch",
        "RandomEdges",
        "VS_K",
        "VT_K",
    ),
    "values.layout": ("Segment", "TokenLayout"),
    "values.masks": ("NoEdgeWarning",),
    "model.hooked_video_llm": ("HookedVideoLLM",),
    "model.patching": ("patch_sweep",),
    "sweep.session": ("Session",),
    "video.frames": ("read_frames",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "LV_K",
    "PATHWAYS",
    "VS_K",
    "VT_K",
    "Answer",
    "DecoderConfig",
    "EarlyExit",
    "Edit",
    "Flops",
    "HookedVideoLLM",
    "Knockout",
    "LayerRange",
    "MergeConfig",
    "NoEdgeWarning",
    "Patch",
    "ProjectorConfig",
    "RandomEdges",
    "RopeConfig",
    "Segment",
    "Session",
    "TokenLayout",
    "VideoCache",
    "VideoInputs",
    "VideoLLMConfig",
    "VisionConfig",
    "convert",
    "edge_share",
    "export",
    "patch_sweep",
    "read_frames",
    "small_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hookedvid' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"hookedvid.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
