"""Reading a finished study's texts once more by another rule, without its model; stored rows stay as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hookedvid.data.convention import Convention
from hookedvid.data.item import Item
from hookedvid.errors import DataError
from hookedvid.study.extractors import Extractor
from hookedvid.study.rows import Row
from hookedvid.study.scorings.generate import Generate, read_text


@dataclass(frozen=True)
class Rescored:
    """Rows as the other rule reads them; how many there are with a text, how many of these it reads otherwise."""

    rows: list[Row]
    n: int
    changed: int


def rescore(items: Sequence[Item], rows: Sequence[Mapping[str, Any]], by: Convention | Extractor) -> Rescored:
    """Rows with status, chosen, correct and flag anew, what is stored of these beside them; failed ones as they were.

    Raises:
        DataError: For rows of a study that generated nothing.
    """
    if any(row["settings"]["scoring"] != Generate.name for row in rows):
        raise DataError(f'this study kept no texts: only those with scoring = "{Generate.name}" can be read once more')
    item_of = {item.id: item for item in items}
    anew: list[Row] = []
    n, changed = 0, 0
    for row in rows:
        stored = {f"stored_{name}": row[name] for name in ("status", "chosen", "correct")}
        if row["status"] == "failed":
            anew.append({**row, **stored})
            continue
        new = read_text(item_of[row["item"]], row["text"], by)
        read = {name: getattr(new, name) for name in ("status", "chosen", "correct", "flag")}
        anew.append({**row, **read, **stored})
        n, changed = n + 1, changed + (new.chosen != row["chosen"])
    return Rescored(anew, n, changed)
