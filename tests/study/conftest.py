"""Studies share their decoding processes, and draw nothing where nobody looks."""

import pytest

from decoding import decoders  # noqa: F401
from hookedvid.report import plots


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made, their files are empty: to draw one takes as long as a small study."""
    monkeypatch.setattr(plots, "contents", lambda *_: b"")
