"""Which items of a study are shown, and where the view of one is: for the report that links it and who writes it."""

import hashlib
import re
from collections.abc import Sequence

from hookedvid.data.item import Item

N_EXAMPLES = 6
VIEWS = "view"  # the folder of views, inside the study's own


def view_file(item_id: str) -> str:
    """The path of an item's view inside a study's folder; ids that differ have other files, on any system."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", item_id.lower()).strip("-")[:60]
    mark = hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{VIEWS}/{plain if plain == item_id != 'index' else f'{plain}-{mark}'}.html"


def varied(items: Sequence[Item]) -> list[Item]:
    """Items with new families first, then new videos, then the rest."""
    families: set[str] = set()
    videos: set[str] = set()
    ranked: list[tuple[tuple[bool, bool], Item]] = []
    for item in items:
        ranked.append(((item.family in families, item.video in videos), item))
        families.add(item.family)
        videos.add(item.video)
    return [item for _, item in sorted(ranked, key=lambda r: r[0])]
