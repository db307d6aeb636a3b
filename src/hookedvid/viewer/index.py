"""A folder's views as one page of pictures, filtered by family and by what happened to the answer."""

import json
import re
from pathlib import Path
from typing import Any, cast

from hookedvid.errors import DataError
from hookedvid.values.files import read_regular, write_text
from hookedvid.viewer.page import filled, part

INDEX = "index.html"
LARGEST = 1 << 30  # bytes of a page
_ABOUT = re.compile(r'<script type="application/json" id="about">(.*?)</script>', re.S)


def write_index(folder: Path) -> Path:
    """An index of all views in a folder, whenever they were made; where it is.

    Raises:
        DataError: Where there are none.
    """
    cards = [card for path in sorted(folder.glob("*.html")) if path.name != INDEX and (card := _card(path))]
    if not cards:
        raise DataError(f"{folder} holds no views; make some: hookedvid view")
    choices = {
        "family": sorted({c["family"] for c in cards if c["family"]}),
        "outcome": sorted({o for c in cards for o in c["outcome"]}),
    }
    html = filled(
        "index.html.jinja", cards=cards, choices=choices, style=part("page.css") + part("index.css"),
        script=part("index.js"), models=sorted({str(c["model"]) for c in cards}),
    )  # fmt: skip
    write_text(folder / INDEX, html)
    return folder / INDEX


def _card(path: Path) -> dict[str, Any] | None:
    """What a page says of itself, None of a file that is no view."""
    found = _ABOUT.search(read_regular(path, LARGEST).decode("utf-8", "replace"))
    try:
        about = json.loads(found[1]) if found else None
    except ValueError:
        about = None
    if not isinstance(about, dict) or "question" not in about:
        return None
    about = cast(dict[str, Any], about)
    return {**about, "file": path.name, "family": about.get("family", ""), "id": about.get("id", path.stem)}
