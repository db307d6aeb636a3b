"""Modules under the names they had before they moved."""

import importlib
import sys

import pytest

from hookedvid.values.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_name_gives_the_module_itself(old):
    if MOVED[old].startswith("study.run.cluster"):
        pytest.importorskip("ray")
    with pytest.warns(DeprecationWarning, match=f"hookedvid.{old} is hookedvid.{MOVED[old]} now"):
        sys.modules.pop(f"hookedvid.{old}", None)
        module = importlib.import_module(f"hookedvid.{old}")
    assert module is importlib.import_module(f"hookedvid.{MOVED[old]}")
    assert module.__spec__.name == module.__name__ == f"hookedvid.{MOVED[old]}"


def test_a_name_that_never_was_stays_unknown():
    with pytest.raises(ModuleNotFoundError, match=r"hookedvid\.neverwas"):
        importlib.import_module("hookedvid.neverwas")
