r"""Printed tables as LaTeX: `tabular` with booktabs' rules, every text escaped."""

import re
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from hookedvid.values.texts import one_line

# What TeX reads as commands, what its text fonts lack or show as another character, and signs that only maths has.
SIGNS = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}", "\u2013": "--", "\u2014": "---",
    "\u2026": r"\ldots{}", "\u00b1": r"$\pm$", "\u2192": r"$\to$", "\u2190": r"$\leftarrow$", "\u00d7": r"$\times$",
    "\u2264": r"$\le$", "\u2265": r"$\ge$", "\u2248": r"$\approx$", "\u2212": "$-$", "\u0394": r"$\Delta$",
    "\u00b7": r"$\cdot$", "\u00b0": r"$^\circ$",
}  # fmt: skip
_SIGN = re.compile("[" + re.escape("".join(SIGNS)) + "]")


def latex(table: Table) -> str:
    r"""A table as LaTeX reads it; its title is a comment above.

    Needs `\usepackage{booktabs}`. Letters beyond ASCII are left to the engine (`inputenc`, or XeTeX and LuaTeX).
    """
    sides = "".join("r" if column.justify == "right" else "l" for column in table.columns)
    heads = [_text(column.header) for column in table.columns]
    rows = list(zip(*(map(_text, column.cells) for column in table.columns), strict=True))
    lines = [comment(_plain(table.title))] if table.title else []
    lines += [rf"\begin{{tabular}}{{{sides}}}", r"\toprule"]
    lines += [_row(heads), r"\midrule"] if any(heads) else []
    for i, row in enumerate(rows):
        lines.append(_row(row))
        if table.rows[i].end_section and i + 1 < len(rows):
            lines.append(r"\midrule")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def comment(text: str) -> str:
    """Lines that TeX passes over."""
    return "\n".join(f"% {line}" for line in text.splitlines())


def escaped(text: str) -> str:
    """A text in one line, as TeX prints it."""
    return _SIGN.sub(lambda match: SIGNS[match[0]], one_line(text))


def _text(cell: object) -> str:
    return escaped(_plain(cell))


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _row(cells: Sequence[str]) -> str:
    first = f"{{}}{cells[0]}" if cells[0].startswith("*") else cells[0]  # the row before ends in a command with a star
    return " & ".join([first, *cells[1:]]) + r" \\"
