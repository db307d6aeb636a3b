"""Rules that read an option out of generated text: ours, and those of the datasets' conventions, by name and date.

Rules disagree on the same text ("Answer: D" is D or A), so a score says little without the name of its rule.
Each is restated as it behaves, oddities included; none ever names an option that does not exist.
"""

import re

from hookedvid.data.convention import Extractor, Options, index_of
from hookedvid.data.registry import CONVENTIONS
from hookedvid.errors import InputError, nearest

OURS = "leading-letter@1"
_LEADING = re.compile(r"\s*\(?([A-Z])(?![A-Za-z])")


def leading_letter(text: str, options: Options) -> int | None:
    """The option a text begins with, as `B`, `B.`, `(B)`; nothing else counts."""
    match = _LEADING.match(text)
    return index_of(match[1], len(options)) if match else None


EXTRACTORS: dict[str, Extractor] = {
    OURS: Extractor(OURS, leading_letter),
    **{c.extractor: c.rule for c in CONVENTIONS.values()},
}


def extractor(name: str) -> Extractor:
    """The extractor of a name.

    Raises:
        InputError: Listing those that exist.
    """
    if name not in EXTRACTORS:
        raise InputError(f"no extractor {name!r} ({nearest(name, EXTRACTORS)})")
    return EXTRACTORS[name]
