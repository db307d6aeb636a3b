"""A study's page: whatever its texts are they stand there as texts, and a real browser shows it to anyone."""

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import opened
from hookedvid.data.item import Item
from hookedvid.report import adaptive, page, plots, words
from hookedvid.study import protocols
from hookedvid.study.definition import Study
from hookedvid.study.protocols.protocol import Sheet
from hookedvid.study.results.evidence import Finding
from hookedvid.study.results.findings import findings
from hookedvid.study.results.summary import Outcomes, summarise
from hookedvid.study.run.manifest import Manifest
from hookedvid.values.interventions import LV_K, VS_K

HOSTILE = '<img src=x onerror="pwned=1">\'"><script>pwned=1</script>{{7*7}}</style></table>'
N = 3  # layers


@pytest.fixture(scope="module")
def study():
    """The rows of 40 questions on 20 videos, whose family has a hostile name."""
    asked = {"question": "?", "options": ("a", "b"), "answer": 0}
    items = [Item(id=f"q{i}", video=f"v{i // 2}.mp4", family=("o", HOSTILE)[i % 2], **asked) for i in range(40)]
    conditions = [protocols.BASELINE, *protocols.everywhere([LV_K, replace(VS_K, name=HOSTILE)])]
    conditions += [*protocols.windows(LV_K, N, 2), *protocols.cumulative(LV_K, N, 1)]
    rows = [
        {"item": i.id, "condition": c.label, "status": "ok", "prob": 0.5, "margin": 0.1}
        | {"correct": c.label not in ("LV-K all layers", "LV-K after layer 0")}
        for c in conditions
        for i in items
    ]
    return items, conditions, Outcomes(items, conditions, rows)


@pytest.fixture(scope="module")
def report(study, tmp_path_factory) -> Path:
    """The page of it."""
    items, conditions, outcomes = study
    tables: dict = {}
    for s in summarise(outcomes, 50):
        tables.setdefault(s.group, []).append(s)
    tables = {"all": tables["all"], **tables}
    laws = {g: findings(outcomes, g, N, 50) for g in tables}
    settings = {"model_name": HOSTILE, "n_frames": 8}
    run = Manifest(Study(), settings, Path(), N, HOSTILE, items, conditions, [])
    figure = plots.contents(plots.heat_map(_table(), "a share"))
    sheet = Sheet(HOSTILE, ("place", "value [95 %]"), [(HOSTILE, "9"), ("b", "–"), ("c", "10 [9, 11]"), ("d", "-1")])
    examples = [
        page.Example(HOSTILE, HOSTILE, HOSTILE, "", [{"label": HOSTILE, "mark": "right", "said": HOSTILE}], HOSTILE),
        page.Example("?", "o", "A. a", "", [], "gone", view="view/q1.html"),
    ]
    text = page.render(
        HOSTILE, run.about, laws, {"windows": figure}, tables, [HOSTILE], examples, [sheet],
        words.opening(run, tables, laws["all"], "all"),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


def _table():
    import pandas as pd

    return pd.DataFrame([[0.1, 0.9], [0.5, float("nan")]])


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.names, self.said = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.said.append(data)


def test_texts_are_texts(report):
    read = _Tags()
    read.feed(report.read_text(encoding="utf-8"))
    assert read.tags.count("script") == 1 and read.tags.count("img") == 1
    assert not {name for name in read.names if name.startswith("on")}
    assert "".join(read.said).count(HOSTILE) >= 12 and "49" not in {s.strip() for s in read.said}


def test_a_stranger_reads_what_was_asked_and_found(report, study):
    read = _Tags()
    read.feed(report.read_text(encoding="utf-8"))
    said = " ".join("".join(read.said).split())
    assert "was asked 40 questions about 20 videos, of which it sees 8 frames each" in said
    assert "On all questions (40 questions, 20 videos), the intact model's accuracy is 100.0 % (chance: 50.0 %)" in said
    assert "LV-K is the language-to-video knockout: the text after the video" in said
    assert "1 of 3 claims is supported: one kind of link carries more than the others." in said
    assert "Brackets hold 95 % intervals" in said and "Share of questions that are answered right." in said
    assert "A difference of two percentages." in said and "Operations of attention alone" in said
    assert "no frame may look" not in said, "what does not occur is not explained"


def test_a_strip_of_many_frames_goes_from_first_to_last():
    frames = np.repeat(np.arange(40, dtype=np.uint8), 8 * 8 * 3).reshape(40, 8, 8, 3)
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(page._strip(frames)))))
    shown = strip[4, 4::10, 0].tolist()
    assert len(shown) == page.MOST and (shown[0], shown[-1]) == (0, 39)
    assert {b - a for a, b in pairwise(shown)} == {2, 3}


def test_every_law_is_a_claim_and_every_figure_has_a_caption():
    assert {*plots.FIGURES, adaptive.FIGURE} == words.CAPTIONS.keys()
    laws = {
        "two stages", "is the effect of LV-K graded", "what a clip reversed breaks", "cheapest pruning after layer 2",
        "a rule beats random at keep 0.5", "any law",
    }  # fmt: skip
    claims = {law: words.claim(Finding(law, True, "")) for law in laws}
    assert all(claims[law] not in ("", law) and "{" not in claims[law] for law in laws)
    assert claims["is the effect of LV-K graded"].endswith("graded: LV-K")


# ---- in a browser ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(tab, report, scheme):
    tab.emulate_media(color_scheme=scheme)
    for width in (400, 1200, 1600):
        opened(tab, report, width=width)
        assert not tab.wrong and tab.evaluate("typeof pwned") == "undefined"
        assert tab.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert tab.evaluate(FAINT) == []
    assert tab.locator("a[href='view/q1.html']").count() == 1


def test_tables_sort_by_keyboard_and_come_back(tab, report):
    opened(tab, report)
    table = "document.querySelector('table')"
    column = f"[...{table}.tBodies[0].rows].map((row) => row.cells[1].textContent)"
    before = tab.evaluate(column)
    tab.evaluate(f"{table}.tHead.rows[0].cells[1].firstChild.focus()")
    seen = []
    for _ in range(3):
        tab.keyboard.press("Enter")
        seen.append(tab.evaluate(column))
    assert seen == [["-1", "9", "10 [9, 11]", "–"], ["10 [9, 11]", "9", "-1", "–"], before]
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("[...document.querySelectorAll('details')].every((one) => one.open)")
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    tab.emulate_media(media="screen")


# Texts whose contrast with what is behind them is below 4.5 (WCAG 2).
FAINT = """() => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    pen.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((c) => c / 255).map((c) => (c > 0.04045 ? ((c + 0.055) / 1.055) ** 2.4 : c / 12.92))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const faint = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const behind = [];
    for (let e = element; e; e = e.parentElement) behind.unshift(getComputedStyle(e).backgroundColor);
    const [a, b] = [light(over([...behind, getComputedStyle(element).color])), light(over(behind))];
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) faint.push(element.outerHTML.slice(0, 80));
  }
  return faint;
}"""
