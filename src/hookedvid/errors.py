"""Errors a user can cause, each saying what was asked, what exists and what to do.

`assert` is for our own mistakes; everything here is a `HookedVidError`, which command-line
verbs print without a traceback.
"""

import difflib
from collections.abc import Iterable


class HookedVidError(ValueError):
    """Base of every error that the caller can mend."""


class ConfigError(HookedVidError):
    """A model configuration that contradicts itself or holds an unknown field."""


class ConversionError(HookedVidError):
    """Weights that do not fit the model: tensors missing, left over or of the wrong shape."""


class SelectorError(HookedVidError):
    """A selector that does not parse, or names positions the layout does not have."""


class InterventionError(HookedVidError):
    """A knockout, patch or early exit that cannot apply to this model and input."""


class HookError(HookedVidError):
    """A hook name that does not exist, or one that could not fire in this run."""


class InputError(HookedVidError):
    """Tokens, pixels or a question that the model cannot take."""


class NonFiniteError(InputError):
    """Logits that are not finite, from which nothing can be chosen."""


class VideoError(HookedVidError):
    """A video that cannot be decoded exactly; nothing is repeated, skipped or concealed."""


class DecodingError(VideoError):
    """A decoder that hung, grew or died over a video; `fault` is timeout, memory, killed or crash."""

    def __init__(self, message: str, fault: str):
        super().__init__(message)
        self.fault = fault


class RunError(HookedVidError):
    """What stops a whole run, such as a full disk; whatever was finished before is kept."""


class DataError(HookedVidError):
    """An annotation file or dataset folder that does not hold what it should."""


def nearest(name: str, options: Iterable[str], n: int = 3) -> str:
    """The options closest to a mistyped name, as a clause for an error message."""
    options = list(options)
    if not options:
        return "there are none"
    close = difflib.get_close_matches(name, options, n=n, cutoff=0.4)
    if close:
        return "nearest: " + ", ".join(repr(c) for c in close)
    shown = ", ".join(repr(o) for o in options[:12])
    return f"there are: {shown}" + (", …" if len(options) > 12 else "")
