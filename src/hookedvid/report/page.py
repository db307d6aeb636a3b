"""One HTML page of a study that needs nothing beside it: findings, plots, tables, clips with their answers."""

import base64
import hashlib
import importlib.resources
import io
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase as LETTERS
from typing import Any

from jinja2 import Environment

from hookedvid.checkpoints.locate import home
from hookedvid.data.item import Item, video_path
from hookedvid.errors import HookedVidError
from hookedvid.report import words
from hookedvid.study.protocols.protocol import Sheet
from hookedvid.study.results.evidence import Finding
from hookedvid.study.results.examples import N_EXAMPLES, varied, view_file
from hookedvid.study.results.summary import Summary
from hookedvid.study.scorings.scoring import Scoring
from hookedvid.values.texts import printable
from hookedvid.video.clip_files import ClipRequest, FrameCache
from hookedvid.video.decoders import Decoded, Decoders, Limits

MOST = 16  # frames of a clip's strip
LONGEST = 30  # seconds that decoding a clip may take: a picture is worth no longer wait


@dataclass(frozen=True)
class Example:
    """A clip as a strip of its sampled frames, or why there is none, with the answer under some conditions.

    Of many frames the strip has some, evenly from first to last.

    Attributes:
        part: Which of its frames the strip has, where it has not all.
        view: The path of its page (`hookedvid view`), where one was made.
    """

    question: str
    family: str
    options: str
    strip: str
    answers: list[dict[str, str]]
    trouble: str = ""
    part: str = ""
    view: str = ""


def pictures(figures: Iterable[str], formats: Iterable[str] = ()) -> str:
    """A study's figures as files, in words, by their names; formats besides png."""
    kinds = ", ".join(f".{kind}" for kind in ("png", *formats))
    return f"{names} as {kinds}" if (names := ", ".join(figures)) else "no figures"


def render(
    title: str,
    about: str,
    findings: Mapping[str, Sequence[Finding]],
    figures: Mapping[str, bytes],
    tables: Mapping[str, Sequence[Summary]],
    failures: Sequence[str],
    examples: Sequence[Example],
    sheets: Sequence[Sheet] = (),
    opening: Sequence[str] = (),
    scoring: Scoring | None = None,
    brackets: str = "",
) -> str:
    """The page; text from questions and files is escaped. Findings and tables are by group, the main one first.

    Args:
        figures: PNG by the figure's name.
        sheets: Tables of protocols, of the main group.
        opening: Paragraphs that come first, as `words.opening` has them.
        scoring: Of the rows; that of the tables unless given.
        brackets: What intervals are, and what a mark says; those of the tables unless given.
    """
    style, script = _part("page.css"), _part("page.js")
    scoring = scoring or next(iter(tables.values()))[0].scoring
    columns = [c.name for c in scoring.page_columns or scoring.columns]
    said = [*columns, *(c for sheet in sheets for c in (sheet.title, *sheet.columns))]
    said += [f"{s.condition.protocol}\n{s.condition.label}" for rows in tables.values() for s in rows]
    said += [f.sentence for laws in findings.values() for f in laws]
    drawn = [
        {"name": name, "png": base64.b64encode(data).decode(), "caption": words.CAPTIONS.get(name, "")}
        for name, data in figures.items()
    ]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = Environment(autoescape=True).from_string(_part("page.html.jinja"))
    return printable(
        template.render(
            title=title, about=about, opening=opening, findings=findings, figures=drawn, tables=tables, sheets=sheets,
            failures=failures, examples=examples, scoring=scoring, brackets=brackets,
            glossary=words.glossary(said), claim=words.claim, style=style, script=script,
            script_hash=f"sha256-{digest}",
        )
    )  # fmt: skip


def _part(name: str) -> str:
    return importlib.resources.files("hookedvid.report").joinpath(name).read_text(encoding="utf-8")


def examples(
    scoring: Scoring, items: Sequence[Item], annotations: Path, rows: Sequence[Mapping], shown: Sequence[str],
    sampling: Mapping[str, Any], out: Path,
) -> list[Example]:  # fmt: skip
    """The first answered item of each family and some more, each from another video where there are enough.

    Frames are those that the rows are of: kept ones, or decoded anew as in a study, apart and in bounds. Where the
    video is another one by now, or not to be had, the example says so instead.

    Args:
        shown: Labels of the conditions whose answers are printed.
        out: The study's folder, where views may be.
    """
    answers: dict[str, dict[str, Mapping]] = {}
    failed = {row["item"] for row in rows if row["status"] == "failed"}
    for row in rows:
        answers.setdefault(row["item"], {})[row["condition"]] = row
    chosen = varied([i for i in items if i.id not in failed])[:N_EXAMPLES]
    with Decoders(limits=Limits(seconds=LONGEST), cache=FrameCache(home() / "frames", 0)) as decoders:
        requests = [_request(item, annotations, answers[item.id][shown[0]]["settings"], sampling) for item in chosen]
        clips = [decoders.submit(request) for request in requests]
        made = [_example(scoring, i, clip, shown, answers[i.id]) for i, clip in zip(chosen, clips, strict=True)]
    files = [view_file(item.id) for item in chosen]
    return [replace(e, view=file if (out / file).is_file() else "") for e, file in zip(made, files, strict=True)]


def _request(item: Item, annotations: Path, settings: Mapping[str, Any], sampling: Mapping[str, Any]) -> ClipRequest:
    how = (sampling["n_frames"], sampling["sampler"], item.bound, item.folder_fps)
    return ClipRequest(str(video_path(item, annotations)), *how, content=settings["video"])


def _example(
    scoring: Scoring, item: Item, clip: "Future[Decoded]", shown: Sequence[str], answers: Mapping[str, Mapping]
) -> Example:
    strip = trouble = part = ""
    try:
        frames = clip.result().clip.frames
        strip = _strip(frames)
        if len(frames) > MOST:
            part = f"{MOST} of {len(frames)} frames, evenly from first to last"
    except HookedVidError as e:
        trouble = str(e)
    marked = [(label, *scoring.said(item, answers[label])) for label in shown]
    lines = [{"label": label, "mark": mark, "said": text} for label, mark, text in marked]
    options = ", ".join(f"{letter}. {o}" for letter, o in zip(LETTERS, item.options, strict=False))
    return Example(item.question, item.family, options, strip, lines, trouble, part)


def _strip(frames: Any) -> str:
    import numpy as np
    from PIL import Image

    gap = np.full((frames.shape[1], 2, 3), 255, dtype=np.uint8)
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), MOST)).round().astype(int)
    parts = [x for f in frames[chosen] for x in (f, gap)][:-1]
    image = Image.fromarray(np.concatenate(parts, axis=1))
    if image.width > 1800:
        image = image.resize((1800, max(1, round(image.height * 1800 / image.width))))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
