"""A view as one HTML file: words as JSON, numbers as compressed binary, script and style inside it.

What it says of a question is text, whatever it holds: markup of the page's own is in the template alone.
"""

import base64
import importlib.resources
import io
import json
import zlib
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jinja2 import Environment

from hookedvid.values.places import Pieces
from hookedvid.values.texts import one_line, printable
from hookedvid.video.pictures import as_uri
from hookedvid.viewer.queries import Query

if TYPE_CHECKING:
    from hookedvid.viewer.view import View

HEIGHT = "56rem"  # in a notebook
THUMB = 240  # pixels of the longest side, in an index


def render(view: "View") -> str:
    """The page."""
    arrays = _arrays(view)
    blocks = {name: packed(a) for name, a in arrays.items()}
    kinds = {name: {"type": a.dtype.name, "shape": a.shape} for name, a in arrays.items()}
    return filled(
        "page.html.jinja",
        title=printable(view.about["question"]),
        about=json_text({**view.about, "thumb": _thumb(view)}),
        values=json_text({**_values(view), "arrays": kinds}),
        frames=[base64.b64encode(f).decode() for f in view.pictures.files],
        blocks=blocks,
        style=part("page.css"),
        script="\n".join(part(name) for name in ("data.js", "draw.js", "page.js")),
    )


def _thumb(view: "View") -> str:
    """The frame in the middle, as a small picture."""
    from PIL import Image

    files = view.pictures.files
    with Image.open(io.BytesIO(files[len(files) // 2])) as image:
        return as_uri(np.asarray(image.convert("RGB")), THUMB, 60)


def filled(template: str, **values: Any) -> str:
    """A template of this room with its values, all text escaped but what it calls safe: script, style, JSON."""
    return Environment(autoescape=True).from_string(part(template)).render(**values)


def part(name: str) -> str:
    """A file of this room."""
    return importlib.resources.files("hookedvid.viewer").joinpath(name).read_text(encoding="utf-8")


def json_text(value: Any) -> str:
    """JSON that no HTML parser finds an end in; texts in it as they are printed."""
    text = json.dumps(_shown(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def in_frame(html: str) -> str:
    """A page inside another one, such as a notebook, from which its script is kept apart."""
    style = f"width:100%;height:{HEIGHT};border:0"
    return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{escape(html)}"></iframe>'


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(k)): _shown(v) for k, v in value.items()}
    return [_shown(v) for v in value] if isinstance(value, list | tuple) else value


def packed(array: np.ndarray) -> str:
    """An array's bytes, compressed, as letters."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 6)).decode()


def _values(view: "View") -> dict[str, Any]:
    layout, grid = view.layout, view.layout.grid
    words = list(view.vocabulary.values())
    return {
        "segments": [
            {"role": s.role, "start": s.start, "stop": s.stop, "index": s.index, "frame": s.frame}
            for s in layout.segments
        ],
        "steps": [
            {"name": n, "from": s.start, "to": s.stop} for n, s in zip(layout.step_names, layout.steps, strict=True)
        ],
        "times": list(grid.times) if grid is not None else [],
        "blend": layout.blend,
        "size": [view.pictures.width, view.pictures.height],
        "decoded": view.pictures.decoded,
        "tokens": {str(i): one_line(t) for i, t in enumerate(view.tokens) if t},
        "queries": [_query(q, view) for q in view.queries],
        "left_out": view.left_out,
        "columns": view.maps.labels,
        "sinks": [len(s) for s in view.maps.sinks],
        "vocabulary": [one_line(w) for w in words],
        "candidates": view.candidates,
        "conditions": {n: [round(float(x), 6) for x in p] for n, p in view.conditions.items()},
        "cuts": [c.dst for c in view.cuts],
    }


def _query(q: Query, view: "View") -> dict[str, Any]:
    if q.numbers:
        return {"name": q.name, "label": "numbers given", "apart": False, "positions": [], "numbers": True}
    text = f"“{one_line(view.tokens[q.positions[0]])}”" if len(q.positions) == 1 else f"mean of {len(q.positions)}"
    return {"name": q.name, "label": text, "apart": q.apart, "positions": list(q.positions)}


def _pieces(view: "View") -> Pieces:
    """What tokens are made of; cells share the picture evenly where nobody knows, and the page says so."""
    places, grid = view.places, view.layout.grid
    if view.pictures.decoded or grid is None:
        return places.pieces
    own = (places.row >= 0).nonzero()[:, 0]
    height, width = view.pictures.height / grid.rows, view.pictures.width / grid.columns
    corner = torch.stack([places.column[own] * width, places.row[own] * height], 1).double()
    return Pieces(own, places.frames[own], torch.cat([corner, corner + torch.tensor([width, height])], 1))


def _arrays(view: "View") -> dict[str, np.ndarray]:
    places, maps, pieces = view.places, view.maps, _pieces(view)
    number = {token: i for i, token in enumerate(view.vocabulary)}
    words = np.vectorize(number.__getitem__, otypes=[np.uint32])(maps.words) if maps.words.size else maps.words
    arrays = {
        "position": places.position.numpy().astype(np.int32),
        "frames": places.frames.numpy().astype(np.int32),
        "row": places.row.numpy().astype(np.int32),
        "column": places.column.numpy().astype(np.int32),
        "piece": pieces.token.numpy().astype(np.int32),
        "piece_frames": pieces.frames.numpy().astype(np.int32),
        "piece_box": pieces.box.numpy(),
        "sinks": np.concatenate(maps.sinks).astype(np.int32),
        "lens": words.astype(np.uint16 if len(number) < 1 << 16 else np.uint32),
        "probs": maps.probs,
    }
    for i, q in enumerate(view.queries):
        arrays |= {f"q{i}.{name}": a for name, a in maps.queries[q.name].arrays().items()}
    for i, c in enumerate(view.cuts):
        arrays |= {f"cut{i}.everywhere": c.everywhere, f"cut{i}.by_layer": c.by_layer}
    return {name: a.astype(np.float32) if a.dtype == np.float64 else a for name, a in arrays.items()}
