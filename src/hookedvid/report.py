"""One HTML page of a study that needs nothing beside it: findings, plots, tables, clips with their answers."""

import base64
import importlib.resources
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment

from hookedvid.answering import LETTERS
from hookedvid.data.item import Item, video_path
from hookedvid.errors import VideoError
from hookedvid.study.laws import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_EXAMPLES = 6


@dataclass(frozen=True)
class Example:
    """A clip as a strip of its sampled frames, with the answer under some conditions."""

    question: str
    family: str
    options: str
    strip: str
    answers: list[dict[str, str]]


def render(
    title: str,
    about: str,
    findings: Mapping[str, Sequence[Finding]],
    figures: Sequence["Figure"],
    tables: Mapping[str, Sequence[Any]],
    failures: Sequence[str],
    examples: Sequence[Example],
    columns: Mapping[str, Callable[[Any], str]] | None = None,
    note: str = "",
) -> str:
    """The page; text from questions and files is escaped. Findings and tables are by group, the main one first.

    columns: of the tables, name and a line's text, where a study scores something else than accuracy; note: on them.
    """
    source = importlib.resources.files("hookedvid").joinpath("report.html.jinja").read_text(encoding="utf-8")
    template = Environment(autoescape=True).from_string(source)
    return template.render(
        title=title,
        about=about,
        findings=findings,
        plots=[_png(f) for f in figures],
        tables=tables,
        failures=failures,
        examples=examples,
        pct=percent,
        columns=columns,
        note=note,
    )


def percent(i: Any) -> str:
    """`61.2 % [55.0, 67.1]`."""
    return f"{i.value * 100:.1f} % [{i.low * 100:.1f}, {i.high * 100:.1f}]"


def examples(
    items: Sequence[Item], annotations: Path, rows: Sequence[Mapping], shown: Sequence[str], sampling: Mapping[str, Any]
) -> list[Example]:
    """The first answered item of each family and some more, each from another video where there are enough.

    shown: labels of the conditions whose answers are printed.
    """
    from hookedvid.video.frames import read_frames

    answers: dict[str, dict[str, Mapping]] = {}
    failed = {row["item"] for row in rows if row["status"] == "failed"}  # decoding them once more may hang
    for row in rows:
        answers.setdefault(row["item"], {})[row["condition"]] = row
    found: list[Example] = []
    for item in _varied([i for i in items if i.id not in failed]):
        if len(found) == N_EXAMPLES:
            break
        try:
            frames = read_frames(
                video_path(item, annotations), sampling["n_frames"], sampling["sampler"], bound=item.bound,
                folder_fps=item.folder_fps,
            )  # fmt: skip
        except VideoError:
            continue
        said = [_said(item, label, answers[item.id][label]) for label in shown]
        options = ", ".join(f"{letter}. {o}" for letter, o in zip(LETTERS, item.options, strict=False))
        found.append(Example(item.question, item.family, options, _strip(frames), said))
    return found


def _varied(items: Sequence[Item]) -> list[Item]:
    """Items with new families first, then new videos, then the rest."""
    families: set[str] = set()
    videos: set[str] = set()
    ranked = []
    for item in items:
        ranked.append(((item.family in families, item.video in videos), item))
        families.add(item.family)
        videos.add(item.video)
    return [item for _, item in sorted(ranked, key=lambda r: r[0])]


def _said(item: Item, label: str, row: Mapping) -> dict[str, str]:
    if row.get("log_probs"):  # rows of before have none
        mean = sum(row["log_probs"]) / len(row["log_probs"])
        return {"label": label, "mark": "", "said": f"{mean:.3f} nats per token of {item.reference!r}"}
    if row["chosen"] is None:
        return {"label": label, "mark": "wrong", "said": row["text"] or row["status"]}
    mark = {True: "right", False: "wrong", None: ""}[row["correct"]]
    return {"label": label, "mark": mark, "said": item.options[row["chosen"]]}


def _strip(frames: Any) -> str:
    import numpy as np
    from PIL import Image

    gap = np.full((frames.shape[1], 2, 3), 255, dtype=np.uint8)
    parts = [x for f in frames[:16] for x in (f, gap)][:-1]
    image = Image.fromarray(np.concatenate(parts, axis=1))
    if image.width > 1800:
        image = image.resize((1800, max(1, round(image.height * 1800 / image.width))))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _png(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
