"""What `scripts/house.py` counts: on a made tree, and on this one."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "house.py"


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["house"] = module
    spec.loader.exec_module(module)
    return module


MADE = {
    "": "from hookedvid import one\n",
    "one": "class Same: ...\ndef f(model: Any, n):\n    import hookedvid.two\n    return isinstance(n, Patch | int)\n",
    "two": "from hookedvid import one\nif TYPE_CHECKING:\n    import hookedvid.three\n_own = 1\n",
    "three": "from hookedvid.two import f\nclass Same: ...\nif x.scoring in ('words',): ...\nA = {'longva': 1}",
    "families.longva": "from hookedvid.three import Same as S\ncfg.family == 'longva'\n",
    "values.interventions": "isinstance(x, Knockout)\n",
}


def test_every_count_finds_its_own_and_no_more(house):
    where = {count.what: (count.n, count.where) for count in house.House(MADE).counts()}
    assert where == {
        "modules at the root": (4, ["__init__", "one", "three", "two"]),
        "circles of imports": (1, ["one, two"]),
        "isinstance over kinds of intervention": (1, ["one:4"]),
        "comparisons with a family's name": (1, ["three:4"]),
        "comparisons with a scoring's name": (1, ["three:3"]),
        "model: Any": (1, ["one:2"]),
        "public names defined twice": (1, ["Same: one, three"]),
        "lines of the longest file": (4, ["two"]),
        "lines of the longest function": (3, ["one.f"]),
        "lines": (16, []),
    }


TARGETS = {
    "modules at the root": 3,
    "circles of imports": 0,
    "isinstance over kinds of intervention": 0,
    "model: Any": 0,
    "comparisons with a family's name": 0,
    "comparisons with a scoring's name": 0,
}


def test_this_house_keeps_its_targets_and_the_command_prints_a_line_each(house, capsys, monkeypatch):
    counts = house.House.here().counts()
    by_name = {c.what: c for c in counts}
    assert not {what: by_name[what].where for what, most in TARGETS.items() if by_name[what].n > most}
    monkeypatch.setattr(house.House, "counts", lambda self: counts)  # of what lies here, once
    house.main(["--where"])
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("modules at the root")] == [
        f"{'modules at the root':<40}{2:>8}"
    ]
    assert "    errors" in printed
