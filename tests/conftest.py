"""One thread: small models run no faster on two, and sums keep one order."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def home(tmp_path_factory):
    """Nothing is kept in, or found in, the user's own cache."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HOOKEDVID_HOME", str(tmp_path_factory.mktemp("home")))
        yield
