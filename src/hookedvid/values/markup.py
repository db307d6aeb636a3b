"""HTML by which notebooks show values: lines, tables, pictures; every text in it is escaped.

Colours are those of the page, lighter by opacity, so that it reads on dark pages and on light ones.
"""

from collections.abc import Sequence
from html import escape

from hookedvid.values.texts import one_line

BOX = "font-family:ui-monospace,monospace;font-size:12px;line-height:1.4;overflow-x:auto;max-width:100%"
CELL = "padding:1px 8px;white-space:nowrap"
SHADE = "37,99,235"  # of a share: blue, by opacity


class Markup(str):
    """HTML already, of which nothing is escaped any more."""


def text(value: object) -> Markup:
    """Any text, or HTML, as HTML of one line; what steers a terminal or turns writing round shows as its escape."""
    return value if isinstance(value, Markup) else Markup(escape(one_line(str(value))))


def shown(title: object, *parts: object) -> Markup:
    """What a notebook shows of a value: a title and parts below each other."""
    rows = "".join(f"<div>{text(part)}</div>" for part in parts)
    return Markup(f'<div style="{BOX}"><b>{text(title)}</b>{rows}</div>')


def line(code: object, note: object = "") -> Markup:
    """A text as it is written in code, and what is to be said of it."""
    return Markup(f'<div style="{BOX}"><code>{text(code)}</code> <span style="opacity:.65">{text(note)}</span></div>')


def table(head: Sequence[object], rows: Sequence[Sequence[object]], n_left: int = 1) -> Markup:
    """A table, whose first `n_left` columns hold words, and numbers those behind."""
    top = "".join(_cell("th", i < n_left, value) for i, value in enumerate(head))
    body = "".join(f"<tr>{''.join(_cell('td', i < n_left, value) for i, value in enumerate(row))}</tr>" for row in rows)
    table = '<table style="border-collapse:collapse;margin:4px 0">'
    return Markup(f"{table}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>")


def shaded(value: object, share: float) -> Markup:
    """A cell's text on a ground that is the darker the nearer a share is to 1."""
    strength = min(max(share, 0.0), 1.0) * 0.45  # so that text of any page stays legible
    return Markup(
        f'<span style="background:rgba({SHADE},{strength:.3f});display:inline-block;min-width:4em;padding:0 4px">'
        f"{text(value)}</span>"
    )


def pictures(sources: Sequence[str], captions: Sequence[Sequence[object]]) -> Markup:
    """Pictures beside each other, each over its caption.

    Args:
        sources: `data:` URIs of ours.
        captions: The lines of each.
    """
    figures = "".join(
        f'<figure style="margin:0 6px 4px 0;display:inline-block"><img src="{source}" alt="" '
        f'style="height:72px;display:block"><figcaption style="font-size:10px;line-height:1.2">'
        f"{''.join(f'<div>{text(words)}</div>' for words in lines)}</figcaption></figure>"
        for source, lines in zip(sources, captions, strict=True)
    )
    return Markup(f"<div>{figures}</div>")


def _cell(tag: str, left: bool, value: object) -> str:
    return f'<{tag} style="{CELL};text-align:{"left" if left else "right"}">{text(value)}</{tag}>'
