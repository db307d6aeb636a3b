"""Studies of a module share decoding processes: to start two takes as long as many of these studies."""

from contextlib import nullcontext

import pytest

from hookedvid.study.run import tasks
from hookedvid.video.decoders import Decoders


@pytest.fixture(autouse=True, scope="module")
def decoders():
    """What `run` decodes with where it is given nothing; the command starts its own."""
    with Decoders() as pool, pytest.MonkeyPatch.context() as patched:
        patched.setattr(tasks, "Decoders", lambda: nullcontext(pool))
        yield
