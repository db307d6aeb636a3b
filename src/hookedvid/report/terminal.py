"""The terminal: what is printed there is text, and a reader who has gone ends nothing."""

import io
import os
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hookedvid.report.latex import comment, latex
from hookedvid.values.texts import printable

TEXT, LATEX = TABLES = ("text", "latex")


class Terminal(Console):
    """A console on which a text is a text: no markup, no emoji's names, nothing that steers it.

    Args:
        width: Columns that are needed; a narrower terminal wraps.
    """

    def __init__(self, width: int = 0, **kwargs: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **kwargs)
        self.widen(width)

    def widen(self, width: int) -> None:
        """Make sure of so many columns."""
        self.width = max(self.width, width)

    def render_str(self, text: str, **kwargs: Any) -> Text:
        """Rich's own way with every text that it is given, tables' cells and titles included."""
        return super().render_str(printable(text), **kwargs)

    def print(self, *objects: Any, **kwargs: Any) -> None:
        """Rich's own; where tables are asked for as LaTeX, all else is a comment there."""
        if getattr(self.file, "tables", TEXT) == LATEX:
            kwargs = {"soft_wrap": True}
            objects = tuple(Text(latex(o) if isinstance(o, Table) else comment(_plain(o))) for o in objects)
        super().print(*objects, **kwargs)

    def say(self, text: str, lead: str = "", style: str = "") -> None:
        """A line as it is, not broken into several: paths stay whole.

        Args:
            lead: What stands in front, in bold.
        """
        self.print(Text.assemble((printable(lead), "bold"), (printable(text), style)), soft_wrap=True)


def _plain(shown: object) -> str:
    return printable(shown.plain if isinstance(shown, Text) else str(shown))


class Output:
    """A stream that goes on when its reader has gone, such as `head`: what is printed later goes nowhere.

    Args:
        stream: Where it goes.
        tables: As what a `Terminal` prints tables there, text or LaTeX.
    """

    def __init__(self, stream: Any, tables: str = TEXT):
        self._stream, self.tables = stream, tables
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that are not UTF-8

    def write(self, text: str) -> int:
        """As a stream does."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._go_on()
            return len(text)

    def flush(self) -> None:
        """As a stream does."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._go_on()

    def _go_on(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
