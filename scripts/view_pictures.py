"""The pictures of docs/view.md: a page of the shapes clips in a real browser, light, dark and narrow.

Needs Chromium; run in the repository: python scripts/view_pictures.py
"""

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from hookedvid import HookedVideoLLM
from hookedvid.data.item import read_items, video_path
from hookedvid.data.shapes import make_dataset

DOCS = Path(__file__).parents[1] / "docs"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
# Name, width and height in CSS pixels, theme, what is seen.
SHOTS = (
    ("view-light", 1280, 960, "light", ""),
    ("view-dark", 1280, 960, "dark", "#sinks=hidden&curve=root&scale=query"),
    ("view-narrow", 400, 1000, "light", ""),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = page(Path(folder))
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            for name, width, height, scheme, seen in SHOTS:
                tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                tab.goto(f"file://{path}{seen}")
                tab.wait_for_selector("body[data-ready=yes]")
                with Image.open(io.BytesIO(tab.screenshot())) as image:
                    image.convert("RGB").save(DOCS / f"{name}.webp", quality=85, method=6)
            browser.close()


def page(folder: Path) -> Path:
    """A question about a movement, on the tiny model."""
    items = make_dataset(folder, seed=0, split="test", n_videos=1, questions_per_video=5)
    item = next(i for i in read_items(items) if i.family == "temporal")
    model = HookedVideoLLM.from_pretrained("tiny")
    inputs = model.prepare(video_path(item, items), item.question, item.options)
    return model.view(inputs, answer=item.answer, question=item.question).save(folder / "view.html")


if __name__ == "__main__":
    main()
