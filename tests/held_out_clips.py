"""The shapes' 50 held-out clips, made once for all processes of a test run."""

import os
from pathlib import Path

import pytest

from hookedvid.data.shapes.clips import held_out


def held_out_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their folder, to read from and to link to."""
    base = tmp_path_factory.getbasetemp()  # of xdist's processes each, in one of the run's
    return held_out((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "held-out").parent
