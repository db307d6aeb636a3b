"""Scorings: what every one of them states, and that nothing else knows them by name."""

import ast
import io
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest

from hookedvid.data.item import Item
from hookedvid.data.shapes.clips import TASKS
from hookedvid.errors import DataError
from hookedvid.report import plots, presenter
from hookedvid.report.terminal import Terminal
from hookedvid.study.definition import Study
from hookedvid.study.protocols import BASELINE
from hookedvid.study.results.summary import Outcomes, Summary, summarise, write_csv
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.study.scorings.registry import SCORINGS

SOURCE = Path(__file__).parents[2] / "src" / "hookedvid"
HOMES = ("study/scorings", "data/shapes")  # whose tasks have such names, too
ITEMS = [
    Item(
        id=str(i), video=f"{i}.mp4", question="q ?", options=("a", "b"), answer=0, reference="a", span=(0.0, 1.0),
    )
    for i in range(3)
]  # fmt: skip
OUTCOME = Outcome("ok", 0, True, 0.9, 1.0, "a", log_probs=(-1.0, -2.0), span=(0.0, 1.0))
ROWS = [{"item": i.id, "condition": BASELINE.label, **asdict(OUTCOME)} for i in ITEMS]


def named(node: ast.AST) -> set[str]:
    """Names of scorings that a comparison, a pattern or a dict's keys hold."""
    held = (ast.Compare, ast.MatchValue)
    parts = node.keys if isinstance(node, ast.Dict) else [node] if isinstance(node, held) else []
    texts = {n.value for part in parts if part for n in ast.walk(part) if isinstance(n, ast.Constant)}
    return texts & SCORINGS.keys()


def test_no_module_asks_for_a_scorings_name():
    assert named(ast.parse("x == 'letters'").body[0].value) == {"letters"}  # pyright: ignore
    for path in SOURCE.rglob("*.py"):
        if not path.relative_to(SOURCE).as_posix().startswith(HOMES):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                assert not named(node), f"{path.relative_to(SOURCE)}, line {getattr(node, 'lineno', '?')}"


@pytest.mark.parametrize("name", SCORINGS)
def test_a_scoring_says_all_that_a_study_asks_it(name):
    scoring = SCORINGS[name]()
    assert scoring.name == Study(scoring=name).scoring and set(scoring.tasks) <= TASKS.keys()
    assert all(scoring.has(item) and scoring.scored(item) for item in ITEMS)
    bare = Item(id="bare", video="v.mp4", question="q ?")
    with pytest.raises(DataError, match=rf"1 items have no {scoring.requires} .* scores by {name}"):
        scoring.check([*ITEMS, bare])
    assert set(scoring.settings()) == ({"extractor", "max_new_tokens"} if scoring.reads_text else set())
    assert scoring.values(ITEMS[0], ROWS[0]).keys() == set(scoring.measures)


@pytest.mark.parametrize("name", SCORINGS)
def test_every_scoring_is_summed_up_shown_and_drawn_alike(name, tmp_path):
    scoring = SCORINGS[name]()
    (line,) = summarise(Outcomes(ITEMS, [BASELINE], ROWS, scoring), 20)
    assert line.n == 3 and line.score == getattr(line, scoring.measures[0]) == next(iter(line.means.values()))
    assert scoring.kept in line.against and np.isclose(line.kept.value, scoring.baseline_kept)
    assert {*scoring.counts} <= {f.name for f in fields(Summary)}
    cells = [c.cell(line) for c in (*scoring.columns, *scoring.page_columns)]
    assert all(isinstance(cell, str) and "nan" not in cell for cell in cells)
    table = presenter.condition_table([line])
    assert table.row_count >= 1 and "questions; layers from 1" in str(table.title)
    write_csv([line], tmp_path / "summary.csv")
    head = (tmp_path / "summary.csv").read_text().splitlines()[0].split(",")
    assert {*scoring.measures, *line.against, scoring.level_column, f"{scoring.test}_p_holm"} <= {*head}
    assert plots.all_layers([line]).axes[0].get_ylabel() == scoring.label


def test_what_a_study_writes_includes_every_figure_that_is_drawn():
    assert {f"{name}.png" for name in plots.FIGURES} < {*presenter.PRESENTED}


def test_groups_that_do_not_fit_side_by_side_are_said_to_be_elsewhere():
    few, many = ([replace(item, family=f"f{i % n}") for i, item in enumerate(ITEMS * 4)] for n in (2, 12))
    for items, said in (
        (few, "accuracy by group, %"),
        (many, "13 groups are too many to stand side by side; summary.csv"),
    ):
        items = [replace(item, id=str(i)) for i, item in enumerate(items)]
        rows = [{**ROWS[0], "item": item.id} for item in items]
        tables = {s.group: [s] for s in summarise(Outcomes(items, [BASELINE], rows), 20)}
        console = Terminal(120, file=io.StringIO())
        presenter.print_groups(tables, console)
        assert isinstance(console.file, io.StringIO) and said in console.file.getvalue()
