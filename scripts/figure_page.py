"""The pictures of docs/figures.md, made anew by the page's own code.

python scripts/figure_page.py
"""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"


def run(page: str) -> None:
    """The Python blocks of a page, in one namespace, in this folder."""
    names: dict[str, Any] = {}
    for body in re.findall(r"^```python\n(.*?)^```$", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.M | re.S):
        exec(compile(body, f"{page}.md", "exec"), names)


if __name__ == "__main__":
    (DOCS / "figures").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run("index")  # makes the clips
        run("figures")
        for picture in sorted(Path().glob("*.png")):
            print(shutil.copy(picture, DOCS / "figures"))
        os.chdir(DOCS)
