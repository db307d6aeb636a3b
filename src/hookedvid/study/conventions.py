"""The datasets' conventions by name; a study names the one it follows.

`videomme/lmms-eval@2026-04` is a full name; without `videomme/` it is that of whichever dataset is asked.
"""

from collections.abc import Sequence

from hookedvid.data.convention import Convention
from hookedvid.data.item import Item
from hookedvid.data.registry import CONVENTIONS
from hookedvid.errors import ConfigError, nearest

NAMES = tuple(dict.fromkeys([*CONVENTIONS, *(c.name for c in CONVENTIONS.values())]))


def known(name: str) -> None:
    """Raises ConfigError unless some dataset has a convention of that name, full or without its dataset."""
    if name not in NAMES:
        raise ConfigError(f"no convention {name!r} ({nearest(name, NAMES)}; all of them: {', '.join(CONVENTIONS)})")


def convention(name: str, items: Sequence[Item], dataset: str = "") -> Convention:
    """The convention of a name for these items, whose dataset is `dataset`, or what their meta says.

    Raises:
        ConfigError: Where it is another dataset's, or has no letters for as many options.
    """
    known(name)
    datasets = {dataset} if dataset else {str(i.meta["dataset"]) for i in items if "dataset" in i.meta}
    exist = [c.full_name for c in CONVENTIONS.values() if c.dataset in datasets] or list(CONVENTIONS)
    if "/" in name:
        full = name
    elif len(datasets) == 1:
        full = f"{min(datasets)}/{name}"
    else:
        whose = f"of several datasets, {', '.join(sorted(datasets))}" if datasets else "of no dataset that is told"
        raise ConfigError(
            f"convention {name!r} depends on the dataset, and the items are {whose}; write one of {exist}"
        )
    if full not in CONVENTIONS or (datasets and CONVENTIONS[full].dataset not in datasets):
        raise ConfigError(f"convention {name!r} is not for {', '.join(sorted(datasets))}; there are {', '.join(exist)}")
    wide = [i.id for i in items if len(i.options) > CONVENTIONS[full].options]
    if wide:
        raise ConfigError(
            f"convention {full!r} letters {CONVENTIONS[full].options} options, and {len(wide)} items have more "
            f"({', '.join(wide[:3])}); leave convention empty for them"
        )
    return CONVENTIONS[full]
