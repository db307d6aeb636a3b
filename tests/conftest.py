"""One thread: small models run no faster on two, and sums keep one order."""

import gc
import os
from typing import get_args

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too
# MKL's sums else depend, on some processors, on where in memory weights lie: in files elsewhere than in models.
os.environ.setdefault("MKL_CBWR", "AUTO")

import jaxtyping
import pytest
import torch
from jaxtyping import AbstractArray, config

torch.set_num_threads(1)
gc.disable()  # until all is imported, which stays: a fifth of that time


def with_shapes(hint) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(with_shapes, get_args(hint)))


def checked(*, typechecker, jaxtyped=jaxtyping.jaxtyped):
    """Checks what says shapes; other types are pyright's. A function made in a call would be compiled in each."""

    def decorate(made):
        some = "<locals>" not in made.__qualname__ and any(map(with_shapes, made.__annotations__.values()))
        return jaxtyped(made, typechecker=typechecker) if some else made

    return decorate


jaxtyping.jaxtyped = checked  # what the option --jaxtyping-packages puts before every function and class


# Modules that take longest are begun first, so that no process is left with one of them in the end.
LONGEST = "sweep cluster study tiny benchmarks faults likelihood reading convert hub docs".split()


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_collection_finish():
    """What libraries hold is walked through by no later collection of garbage, and what tests hold less often."""
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def home(tmp_path_factory):
    """Nothing is kept in, or found in, the user's own cache."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HOOKEDVID_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True, scope="module")
def checks_of_shapes(request):
    """Off in modules marked `shapes_unchecked`: many or long runs, which checks of every call make twice as long."""
    off = request.node.get_closest_marker("shapes_unchecked") is not None
    config.update("jaxtyping_disable", off)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def shapes_checked():
    """For single tests of such a module."""
    config.update("jaxtyping_disable", False)
    yield
    config.update("jaxtyping_disable", True)
