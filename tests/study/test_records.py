"""Rows and results of a folder: what is damaged is found, what is another study's stays its own, links lead nowhere."""

import json
import random
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from hookedvid.cli.commands import main
from hookedvid.data.item import read_items, write_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.errors import DataError, RunError
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.study.definition import Study, plan
from hookedvid.study.records import ROWS, Records, frame
from hookedvid.study.results.file_names import MANIFEST
from hookedvid.study.rows import Lines, json_bytes, line_of, sealed, unsealed
from hookedvid.study.run.manifest import Manifest
from hookedvid.study.run.tasks import run

pytestmark = pytest.mark.shapes_unchecked

DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture(scope="module")
def model() -> HookedVideoLLM:
    return HookedVideoLLM.from_pretrained("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A study file over 2 clips with 2 questions each."""
    at = tmp_path_factory.mktemp("records")
    make_dataset(at / "set", seed=3, split="test", n_videos=2, questions_per_video=2)
    (at / "study.toml").write_text('items = "set/items.jsonl"\nprotocols = ["all-layers"]\nn_resamples = 50\n')
    return at


@pytest.fixture(scope="module")
def laid(folder, model):
    return plan(Study.from_toml(folder / "study.toml"), model, folder / "set" / "items.jsonl")


@pytest.fixture(scope="module")
def finished(folder, laid, model):
    """The folder of the study, run by the command, and its rows."""
    assert main(["study", str(folder / "study.toml"), "--out", str(folder / "out")]) == 0
    return folder / "out", Manifest.load(folder / "out").rows(folder / "out")


def resealed(row: dict, **changes) -> bytes:
    return line_of(row | changes)


def other_digit(line: bytes) -> bytes:
    at = line.index(b'"prob": 0.') + len(b'"prob": 0.')
    return line[:at] + (b"3" if line[at : at + 1] != b"3" else b"4") + line[at + 1 :]


DAMAGE = {
    "a number": lambda line, row: b"7",
    "a list": lambda line, row: b'["key"]',
    "nothing at all": lambda line, row: b"null",
    "an empty line": lambda line, row: b"",
    "no JSON": lambda line, row: b"nonsense",
    "no UTF-8": lambda line, row: b'{"key": "\xff"}',
    "no key": lambda line, row: sealed(json.dumps({k: v for k, v in row.items() if k != "key"}).encode()),
    "no status": lambda line, row: sealed(json.dumps({k: v for k, v in row.items() if k != "status"}).encode()),
    "nested deep": lambda line, row: DEEP,
    "nested deep, and sealed": lambda line, row: sealed(DEEP[:-1] + b"}"),
    "an object nested deep, and sealed": lambda line, row: sealed(b'{"key": ' + DEEP + b"}"),
    "a digit": lambda line, row: other_digit(line),
    "cut off": lambda line, row: line[: len(line) // 2],
    "no checksum, as in rows of before": lambda line, row: json.dumps(row).encode(),
    "the key of another item": lambda line, row: resealed(row, item="other"),
    "the key of other settings": lambda line, row: resealed(row, settings=row["settings"] | {"n_frames": 9}),
    "the key of other interventions": lambda line, row: resealed(row, interventions=[]),
    "a status there is not": lambda line, row: resealed(row, status="fine"),
    "a text for a number": lambda line, row: resealed(row, prob="0.5"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_row_is_passed_over_and_said(what, finished, tmp_path):
    out, rows = finished
    lines = (out / ROWS).read_bytes().split(b"\n")
    lines[1] = DAMAGE[what](lines[1], rows[1])
    (tmp_path / ROWS).write_bytes(b"\n".join(lines))
    records = Records(tmp_path)
    assert records.read() == {r["key"]: r for r in rows if r["key"] != rows[1]["key"]}
    assert records.damaged.startswith(f"1 damaged rows are passed over ({ROWS} line 2)")


def test_every_flipped_bit_of_a_row_is_found(finished):
    line = (finished[0] / ROWS).read_bytes().split(b"\n")[1]
    assert Lines().row(line) == finished[1][1]
    for at in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[at // 8] ^= 1 << at % 8
        assert Lines().row(bytes(flipped)) is None, at


@pytest.mark.usefixtures("undrawn")
def test_damaged_rows_are_run_again_and_a_plot_of_them_is_refused(folder, finished, laid, model, tmp_path, capsys):
    out, rows = tmp_path / "out", finished[1]
    shutil.copytree(finished[0], out)
    lines, rng = (out / ROWS).read_bytes().split(b"\n"), random.Random(0)
    for at in rng.sample(range(len(lines) - 1), 5):
        lines[at] = other_digit(lines[at])
    (out / ROWS).write_bytes(b"\n".join(lines))
    for verb in (["plot", str(out)], ["rescore", str(out), "--extractor", "official"]):
        assert main(verb) == 2
        said = capsys.readouterr().err
        assert "5 rows of this study are not in" in said and "5 damaged rows are passed over" in said
    assert main(["study", str(folder / "study.toml"), "--out", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "5 rows run, 11 found in" in printed and "5 damaged rows are passed over" in printed
    assert Manifest.load(out).rows(out) == rows
    assert (out / "summary.csv").read_bytes() == (finished[0] / "summary.csv").read_bytes()
    assert run(laid, model, out) == rows and (out / ROWS).read_bytes().count(b"\n") == len(rows) + 5
    assert main(["plot", str(out)]) == 0


def test_a_damaged_manifest_is_refused(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "out")
    path = tmp_path / "out" / MANIFEST
    for data in (path.read_bytes().replace(b'"answer": ', b'"answer": 1', 1), DEEP, b"", b"null"):
        path.write_bytes(data)
        assert main(["plot", str(tmp_path / "out")]) == 2
        assert "study.json is damaged" in capsys.readouterr().err


def test_a_manifest_of_another_format_is_refused_and_one_of_0_2_is_read(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "out")
    path = tmp_path / "out" / "study.json"
    told = json.loads(unsealed(path.read_bytes()) or b"")
    assert told.pop("format") == 1
    path.write_bytes(sealed(json_bytes(told)))
    assert Manifest.load(tmp_path / "out") == Manifest.load(finished[0])
    path.write_bytes(sealed(json_bytes(told | {"format": 2})))
    with pytest.raises(DataError, match=r"study\.json is of format 2, and this version of hookedvid reads format 1"):
        Manifest.load(tmp_path / "out")


def test_rows_are_read_under_the_lock(finished, laid, model, tmp_path, monkeypatch):
    """Another process writes them all before this one gets the lock: nothing is left to run, and none is doubled."""
    whole, writer = (finished[0] / ROWS).read_bytes(), Records.writer

    @contextmanager
    def late(self):
        (tmp_path / ROWS).write_bytes(whole)
        with writer(self) as found:
            yield found

    monkeypatch.setattr(Records, "writer", late)
    assert run(laid, model, tmp_path) == finished[1]
    assert (tmp_path / ROWS).read_bytes() == whole


def test_what_was_read_is_not_read_again(finished, tmp_path, monkeypatch):
    data = (finished[0] / ROWS).read_bytes()
    lines = data.splitlines(keepends=True)
    records, n, row = Records(tmp_path), 0, Lines.row

    def counted(self, line):
        nonlocal n
        n += 1
        return row(self, line)

    monkeypatch.setattr(Lines, "row", counted)
    (tmp_path / ROWS).write_bytes(b"".join(lines[:5]) + lines[5][:100])  # the last is being written
    assert len(records.read()) == 5
    (tmp_path / ROWS).write_bytes(data)
    assert len(records.read()) == len(records.read()) == n == len(lines)
    assert records.damaged == ""


def test_rows_as_a_table_are_as_they_are_one_by_one(finished):
    rows = [*finished[1], finished[1][0] | {"stored_status": "ok", "settings": {"n_frames": 3, "more": 1}}]
    table = frame(rows)
    for i, row in enumerate(rows):
        flat = {k: v for k, v in row.items() if k not in ("settings", "interventions")}
        flat |= {f"settings.{k}": v for k, v in row["settings"].items()}
        assert json.loads(table["interventions"][i]) == row["interventions"]
        assert all(table[k][i] == v or (v is None and pd.isna(table[k][i])) for k, v in flat.items())


def study(folder: Path, out: Path, *more: str, **fields) -> int:
    text = (folder / "study.toml").read_text() + "".join(f"{k} = {json.dumps(v)}\n" for k, v in fields.items())
    path = folder / f"{out.name}.toml"
    path.write_text(text)
    return main(["study", str(path), "--out", str(out), *more])


def shown(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file() and not p.name.startswith("rows")}


@pytest.mark.usefixtures("undrawn")
def test_results_of_another_study_keep_a_name_of_their_own(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert study(folder, out, "--protocol", "windows", "--limit", "2") == 0
    first, stray = shown(out), out / "mine.png"
    assert {"windows.png", "report.html", "summary.csv", MANIFEST} <= first.keys()
    stray.write_bytes(b"the user's own")
    capsys.readouterr()
    assert study(folder, out, "--limit", "2", n_frames=4) == 0
    said = " ".join(capsys.readouterr().out.split())
    (kept,) = (out / "earlier").iterdir()
    assert f"what {out} showed before, of another study, is in {kept}" in said
    assert shown(kept) == first and (kept / "rows.parquet").exists()
    second = shown(out)
    assert second.pop("mine.png") == b"the user's own"
    assert not {"windows.png", "windows-by-family.png"} & second.keys() and second.keys() != first.keys()
    assert study(folder, out, "--limit", "2", n_frames=4) == 0  # the same again moves nothing
    assert list((out / "earlier").iterdir()) == [kept]
    assert study(folder, out, n_frames=4) == 0  # nor do more items lose anything
    more = next(p for p in (out / "earlier").iterdir() if p != kept)
    assert shown(more).keys() == second.keys() and shown(more)["summary.csv"] == second["summary.csv"]
    assert main(["plot", str(out)]) == 0
    assert study(folder, out, "--protocol", "windows", "--limit", "2") == 0  # every row is there yet
    assert shown(out)["summary.csv"] == first["summary.csv"]


@pytest.mark.usefixtures("undrawn")
def test_shards_are_one_study(folder, tmp_path):
    for shard in ("0/2", "1/2"):
        assert study(folder, tmp_path / "out", "--shard", shard) == 0
    assert not (tmp_path / "out" / "earlier").exists() and (tmp_path / "out" / "report.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_presentation_leaves_no_file_of_the_one_before(folder, finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "out")
    (tmp_path / "out" / "windows.png").write_bytes(b"old")
    assert main(["plot", str(tmp_path / "out"), "--format", "latex,pdf"]) == 0
    drawn = {p.stem for p in (tmp_path / "out").glob("*.png")}
    assert drawn and {p.stem for p in (tmp_path / "out").glob("*.pdf")} == drawn
    assert r"\begin{tabular}" in capsys.readouterr().out
    assert main(["plot", str(tmp_path / "out")]) == 0
    assert shown(tmp_path / "out").keys() == shown(finished[0]).keys()


@pytest.mark.usefixtures("undrawn")
def test_links_in_a_results_folder_are_replaced_and_not_followed(folder, finished, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    names = [*shown(finished[0]), "rows.parquet"]
    for name in names:
        (tmp_path / name).write_bytes(b"not yours")
        (out / name).symlink_to(tmp_path / name)
    assert study(folder, out) == 0
    assert all((tmp_path / name).read_bytes() == b"not yours" and not (out / name).is_symlink() for name in names)
    other.mkdir()
    (other / ROWS).write_bytes(b"not yours")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / ROWS).symlink_to(other / ROWS)
    capsys.readouterr()
    assert study(folder, tmp_path / "linked") == 2
    assert "cannot write rows to" in capsys.readouterr().err and (other / ROWS).read_bytes() == b"not yours"
    shutil.rmtree(out / "earlier", ignore_errors=True)
    (out / "earlier").symlink_to(other)
    assert study(folder, out, n_frames=4) == 2
    assert "earlier is a link" in capsys.readouterr().err and [p.name for p in other.iterdir()] == [ROWS]


def test_nothing_torn_stands_in_a_results_folder_on_a_full_disk(folder, finished, tmp_path, monkeypatch, capsys):
    shutil.copytree(finished[0], tmp_path / "out")
    before = shown(tmp_path / "out")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hookedvid.values.files.os.fsync", full)
    assert main(["plot", str(tmp_path / "out")]) == 2
    assert "cannot write results in" in capsys.readouterr().err and shown(tmp_path / "out") == before


def test_a_study_of_failures_alone_does_not_end_well(folder, tmp_path, capsys):
    shutil.copytree(folder / "set", tmp_path / "set")
    items = read_items(tmp_path / "set" / "items.jsonl")
    write_items([replace(i, video="absent.mp4") for i in items], tmp_path / "set" / "items.jsonl")
    shutil.copy(folder / "study.toml", tmp_path)
    assert main(["study", str(tmp_path / "study.toml"), "--out", str(tmp_path / "out")]) == 1
    assert "every one of them failed" in capsys.readouterr().out
    assert main(["plot", str(tmp_path / "out")]) == 1


def test_rows_that_are_no_file_are_refused(tmp_path):
    (tmp_path / ROWS).mkdir()
    with pytest.raises(DataError, match="no regular file"):
        Records(tmp_path).read()
    with pytest.raises(RunError, match="cannot write rows"), Records(tmp_path).writer():
        pass
