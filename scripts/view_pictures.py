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
# Name, width and height in CSS pixels, theme, what is seen; the window has 900 pixels of height.
SHOTS = (
    ("view-light", 1280, 1360, "light", ""),
    ("view-dark", 1280, 1360, "dark", "#frame=2&query=question&head=1&curve=root"),
    ("view-narrow", 400, 1000, "light", ""),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = page(Path(folder))
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            for name, width, height, scheme, seen in SHOTS:
                tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                tab.goto(f"file://{path}{seen}")
                tab.wait_for_selector("body[data-ready=yes]")
                with Image.open(io.BytesIO(tab.screenshot(full_page=True))) as image:
                    image.convert("RGB").crop((0, 0, width, height)).save(DOCS / f"{name}.webp", quality=85, method=6)
            browser.close()


def page(folder: Path) -> Path:
    """A question about a movement, on the tiny model, which it answers from the video alone."""
    items = make_dataset(folder, seed=0, split="test", n_videos=8, questions_per_video=5)
    model = HookedVideoLLM.from_pretrained("tiny")
    for item in read_items(items):
        if item.family == "temporal":
            inputs = model.prepare(video_path(item, items), item.question, item.options)
            view = model.view(inputs, answer=item.answer, question=item.question)
            if "turned wrong by LV-K all layers" in view.about["outcome"]:
                return view.save(folder / "view.html")
    raise SystemExit("no such question")


if __name__ == "__main__":
    main()
