"""Pages of the notebooks: mkdocs runs them while it builds, and shows what they print and draw.

They are kept without outputs, so that none is older than the code it came from.
"""

import base64
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.displayhook import DisplayHook
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from IPython.utils.capture import capture_output
from mkdocs.structure.files import File, Files

FOLDER = "notebooks/"


class Result(DisplayHook):
    """What a cell ends with is shown as by `display`."""

    def __call__(self, result: Any = None) -> None:
        """Unless it is nothing, or a semicolon ends the cell."""
        if result is not None and not self.quiet():
            display(result)


class Shell(InteractiveShell):
    """A kernel's, which draws into no window."""

    displayhook_class = Result

    def enable_gui(self, gui: Any = None) -> None:
        """There is none."""


def on_files(files: Files, config: Any) -> Files:
    """A page beside each notebook, and its pictures."""
    for file in [f for f in files if f.src_uri.endswith(".ipynb")]:
        name, pictures = Path(file.src_uri).stem, {}
        text = "\n\n".join([*page(Path(str(file.abs_src_path)), pictures), f"[This page as a notebook]({name}.ipynb)"])
        files.append(File.generated(config, f"{FOLDER}{name}.md", content=text))
        for picture, data in pictures.items():
            files.append(File.generated(config, f"{FOLDER}{picture}", content=data))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks lead to their pages."""
    return re.sub(rf"\({FOLDER}([^)#]+)\.ipynb", rf"({FOLDER}\1.md", markdown)


def page(path: Path, pictures: dict[str, bytes]) -> Iterator[str]:
    """A notebook's cells and what they give, as Markdown; pictures are added by file name.

    It runs in this process, in a folder of its own: a kernel would import for as long as it runs.
    """
    shell = Shell.instance()
    shell.reset()
    shell.history_manager.enabled = False
    shell.display_formatter.active_types = shell.display_formatter.format_types  # pictures and HTML too
    with tempfile.TemporaryDirectory() as folder, chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shell.run_line_magic("matplotlib", "inline")
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                yield cell.source
                continue
            with capture_output() as given:
                ran = shell.run_cell(cell.source, store_history=True)
            ran.raise_error()
            yield f"```python\n{cell.source}\n```"
            if given.stdout:
                yield f"```text\n{given.stdout.rstrip()}\n```"
            for output in given.outputs:
                yield shown(output.data, path.stem, pictures)


def shown(data: dict[str, Any], name: str, pictures: dict[str, bytes]) -> str:
    """What a cell shows, in the richest form that a page has."""
    if "image/png" in data:
        picture, png = f"{name}-{len(pictures)}.png", data["image/png"]
        pictures[picture] = png if isinstance(png, bytes) else base64.b64decode(png)
        return f"![]({picture})"
    if "text/html" in data:
        return f'<div class="output">\n{data["text/html"]}\n</div>'
    return f"```text\n{data['text/plain']}\n```"
