"""lmms-eval as a client: its tasks run on our models, with a knockout or an early exit given in `--model_args`.

Nothing here is imported until lmms-eval asks for it, and nothing else imports what is here.

Floor 7.
"""

from typing import Any


def manifest() -> Any:
    """What lmms-eval registers as `--model hookedvid`; it finds this by the entry point `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest("hookedvid", simple_class_path="hookedvid.lmms.plugin.HookedVid")
