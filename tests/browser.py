"""A real browser, where there is one: fixtures for tests that open pages. A conftest imports `browser` and `tab`."""

import shutil
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="there is no playwright here: pip install playwright")
    with api.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def tab(browser):
    """One tab, with what went wrong in it."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(8000)
    page.wrong = []
    page.on("console", lambda m: page.wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.wrong.append(str(e)))
    page.on("request", lambda r: page.wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
    return page


def opened(tab, path: Path, hash: str = "", width: int = 1600):
    """The tab with a page in it that is ready."""
    tab.wrong.clear()
    tab.set_viewport_size({"width": width, "height": 1000})
    tab.goto("about:blank")
    tab.goto(f"file://{path}{hash}")
    tab.wait_for_selector("body[data-ready=yes]")
    return tab
