"""The notebooks run from top to bottom, their own assertions hold, and none is kept with its output."""

from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

pytestmark = pytest.mark.shapes_unchecked
NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 5


class Shell(InteractiveShell):
    """A kernel's, which draws into no window."""

    def enable_gui(self, gui=None):
        pass


@pytest.mark.filterwarnings("default")  # as in a kernel
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    """In this process: one of its own would import for as long as it runs."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # nothing of the user's own is read or written
    monkeypatch.chdir(tmp_path)
    shell = Shell()
    shell.history_manager.enabled = False
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source, store_history=True).raise_error()
    assert shell.execution_count > 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_kept_without_output(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
