"""Decoding processes that studies of a test module share: to start two takes as long as many of these studies."""

import os
from contextlib import ExitStack, nullcontext

import pytest

from hookedvid.activations import collect
from hookedvid.report import page
from hookedvid.study.run import execution, tasks
from hookedvid.video.decoders import WORKER, Decoders, Limits


@pytest.fixture(autouse=True, scope="module")
def decoders():
    """For all that decodes where it is given nothing to decode with: those made with the same arguments before."""
    made = {}
    with ExitStack() as alive, pytest.MonkeyPatch.context() as patched:

        def pool(n=None, limits=None, cache=None, worker=WORKER):
            asked = n, limits or Limits(), cache and (cache.folder, cache.limit), worker, os.getpid()  # of a fork, none
            if asked not in made:
                made[asked] = alive.enter_context(Decoders(n, limits, cache, worker))
            return nullcontext(made[asked])

        for module in (collect, page, execution, tasks):
            patched.setattr(module, "Decoders", pool)
        yield
