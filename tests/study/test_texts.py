"""Any text of a user is printed, drawn and written as the text it is, and what goes wrong is one line."""

import csv
import io
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hookedvid.checkpoints.devices import usable_device
from hookedvid.cli.commands import main
from hookedvid.data.item import Item, read_items, write_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.errors import ConfigError, DataError, InputError
from hookedvid.report import page as report
from hookedvid.report import plots, presenter
from hookedvid.report.terminal import Terminal
from hookedvid.study import protocols
from hookedvid.study.definition import Study
from hookedvid.study.results.file_names import MANIFEST, manifest_fields
from hookedvid.study.results.summary import Outcomes, summarise
from hookedvid.study.rows import json_bytes, sealed
from hookedvid.study.run.manifest import Manifest
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.values.interventions import LV_K
from hookedvid.values.texts import csv_text, one_line, printable
from hookedvid.video.decoders import Limits
from models import LAW

HOSTILE = (
    *("[/red]", "[bold", ":smile:", "$\\frac{$", "$x$ y", "_hidden", "<script>", "{0}", "\\", "端口"),
    *("\x1b[31mred", "\x07", "\x00", "a\nb", "a\rb", "\u202eabc", "\ud800", "caf\udce9.mp4"),
    *("=1+1", "-x", "@a", "+b"),
)
TEXTS = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=()), min_size=1, max_size=12).filter(str.strip),
)


def terminal(width: int = 200) -> tuple[Terminal, io.StringIO]:
    file = io.StringIO()
    return Terminal(width, file=file, force_terminal=False), file


def study_of(family: str, knockout: str):
    """Items, conditions and rows of a study with two families and one knockout, all named by a user."""
    items = [
        Item(id=f"q{i}", video=f"v{i}.mp4", question="?", options=("a", "b"), answer=0, family=(family, "other")[i % 2])
        for i in range(6)
    ]
    cut = replace(LV_K, name=knockout)
    conditions = [protocols.BASELINE, *protocols.everywhere([cut]), *protocols.windows(cut, 3, 2)]
    conditions += protocols.cumulative(cut, 3, 1)
    fixed = {"interventions": [], "settings": {"model_name": family}}
    rows = [
        {"item": i.id, "video": i.video, "family": i.family, "condition": c.label, **fixed}
        | asdict(Outcome("ok", 0, n % 3 > 0, 0.5, 0.1, reason=family))
        for n, (i, c) in enumerate((i, c) for i in items for c in conditions)
    ]
    return items, conditions, rows


@settings(LAW, max_examples=12)
@given(TEXTS, TEXTS)
@example("[/red]", "$\\frac{$")
@example("\ud800", "=\x1b[2J")
@example("_", "a\nb")
def test_tables_figures_csv_and_report_show_any_text(family, knockout):
    items, conditions, rows = study_of(family, knockout)
    summaries = summarise(Outcomes(items, conditions, rows), 20)
    tables: dict = {}
    for s in summaries:
        tables.setdefault(s.group, []).append(s)
    console, file = terminal(2000)
    console.print(presenter.condition_table(tables["all"]))
    console.print(presenter.group_table(tables))
    console.say(family, lead=knockout)
    printed = file.getvalue()
    printed.encode()
    assert "".join(printable(family).split()) in "".join(printed.split())
    assert not {c for c in printed if ord(c) < 32 and c != "\n"} and "\x7f" not in printed
    page = report.render("t", family, {g: [] for g in tables}, {}, tables, [family], [])
    assert page.encode() and not {c for c in page if ord(c) < 32 and c not in "\n\t"} and "<script>" not in page


def test_a_long_name_takes_no_number_away():
    items, conditions, rows = study_of("static", "every edge " * 9)
    summaries = [s for s in summarise(Outcomes(items, conditions, rows), 20) if s.group == "all"]
    console, file = terminal(80)
    console.print(presenter.condition_table(summaries))
    printed = file.getvalue()
    assert "…" not in printed and printed.count("every edge") > 9 and f" {summaries[0].n} " in printed


@pytest.mark.parametrize("text", ["$\\frac{$ $x$", "_\ud800端口\x1b", "[/red]\n" + "long " * 500])
def test_figures_draw_any_text(text):
    items, conditions, rows = study_of(text, text)
    summaries = summarise(Outcomes(items, conditions, rows), 20)
    main = [s for s in summaries if s.group == "all"]
    figures = [plots.all_layers(summaries, text), plots.window_curves(main, text)]
    figures.append(plots.window_heatmap(summaries, text, text))
    for figure in figures:
        plots.contents(figure)  # warnings are errors here: of glyphs that are missing, of labels left out
    labels = [t.get_text() for t in figures[0].axes[0].get_legend().get_texts()]
    shown = next(label for label in labels if label not in ("intact", "chance"))
    assert shown.strip() == one_line(text).replace("端口", "\\u7aef\\u53e3")[:99] + "…" * (len(text) > 100)


@LAW
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_a_spreadsheet_shows_texts_as_texts_and_numbers_as_numbers(texts):
    written = csv_text([{"text": t, "number": -1.5, "none": None} for t in texts])
    written.encode()
    for text, row in zip(texts, csv.DictReader(io.StringIO(written)), strict=True):
        assert row["text"].removeprefix("'") == one_line(text).removeprefix("'") and row["text"][:1] not in "=+-@\t\r"
        assert (float(row["number"]), row["none"]) == (-1.5, "")


def test_what_steers_a_terminal_is_shown_as_its_escape():
    assert printable("a\x1b[31m\r\x9b\u202e\ud800\n\tb") == "a\\x1b[31m\\r\\x9b\\u202e\\ud800\n\tb"
    assert one_line("a\n\tb ü 端 🎬 \\n") == "a\\n\\tb ü 端 🎬 \\n"


def test_figures_are_named_where_there_are_any():
    assert report.pictures(["windows", "all_layers"]) == "windows, all_layers as .png"
    assert report.pictures([]) == "no figures"


def test_paths_are_printed_as_they_are():
    path = "/data/[bold]x[/]/:smile:/" + "long " * 60 + "ü.mp4"
    console, file = terminal(40)
    console.say(f"rows in {path}")
    assert file.getvalue() == f"rows in {path}\n"


# ---- one line for what goes wrong ------------------------------------------------------------------------------


def said(capsys, *argv: str) -> str:
    """The one line that a command ends with."""
    try:
        status = main(argv)
    except SystemExit as e:
        status = e.code
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def short(tmp_path) -> Path:
    path = tmp_path / "short.toml"
    path.write_text('protocols = ["baseline"]\n', encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "flags",
    [
        *(["--limit", n] for n in ("-1", "0", "1.5", "nan", "²", "1e3")),
        *(["--decode-limit", x] for x in ("inf", "nan", "0", "-1", "x")),
        *(["--frame-cache", x] for x in ("inf", "nan", "-1", "1e99")),
        *(["--decoders", n] for n in ("0", "-1", "x")),
        *(["--actors", n] for n in ("0", "-1")),
        *(["--shard", x] for x in ("1/0", "²/³", "2/2", "-1/2", "1", "1/2/3")),
    ],
)
def test_numbers_that_are_none_are_refused_where_they_are_given(short, tmp_path, capsys, flags):
    line = said(capsys, "study", str(short), "--out", str(tmp_path / "out"), *flags)
    assert line.startswith("hookedvid study: ") and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "given",
    [{"n_resamples": -1}, {"n_resamples": 0}, {"n_resamples": 10**9}, {"seed": -1}, {"seed": 2**64}, {"step": 0},
     {"width": -1}, {"grid": -1}, {"keep": float("nan")}],
)  # fmt: skip
def test_numbers_of_a_study_are_checked_when_it_is_made(given):
    (name,) = given
    with pytest.raises(ConfigError, match=f"{name} is "):
        Study(**given)


def test_limits_of_decoding_are_finite():
    for seconds in (float("inf"), float("nan"), 0, -1):
        with pytest.raises(InputError, match="give finite numbers above 0"):
            Limits(seconds)


def test_devices_and_dtypes_that_are_not_there_are_said(short, capsys):
    unusable = {"cuda:99": "device 'cuda:99' cannot be used", "meta": "device 'meta' holds shapes without numbers"}
    for name, what in {"nonsense": "no device 'nonsense'", **unusable}.items():
        for argv in (("ask", "x.mp4", "q", "--device", name), ("study", str(short), "--plan", "--device", name)):
            assert what in said(capsys, *argv)
    line = "patch resid_post @ 1 at video from foil"
    assert "has no such source; name it in a study file's [sources]" in said(capsys, "ask", "x", "q", "--under", line)
    assert "dtype 'float31'" in said(capsys, "ask", "x.mp4", "q", "--dtype", "float31")
    assert usable_device(None).type == usable_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300, "sealed/below"])
def test_results_that_cannot_be_kept_are_refused_before_anything_runs(short, tmp_path, capsys, name):
    (tmp_path / "file").touch()
    (tmp_path / "sealed").mkdir(mode=0o500)
    if name.startswith("sealed") and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    items = [Item(id="a", video="a.mp4", question="q ?", options=("x", "y"), answer=0)]
    write_items(items, tmp_path / "items.jsonl")
    short.write_text('protocols = ["baseline"]\nitems = "items.jsonl"\n', encoding="utf-8")
    line = said(capsys, "study", str(short), "--out", str(tmp_path / name))
    assert "cannot keep results in" in line and "give --out another folder" in line


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"\xff", "cannot read study"), (b"x = " + b"[" * 5000, "cannot read study"), (b"model = 3", "should be a str")],
)
def test_study_files_that_are_none_are_refused(short, capsys, content, what):
    short.write_bytes(content)
    assert what in said(capsys, "study", str(short))


def test_a_reader_that_goes_away_ends_nothing(tmp_path):
    program = (
        "import os, sys\nfrom contextlib import redirect_stdout\n"
        "from hookedvid.report.terminal import Output, Terminal\n"
        "with redirect_stdout(Output(sys.stdout)):\n"
        "    for _ in range(5000): Terminal().say('line ' * 20)\n"
        f"open({str(tmp_path / 'written')!r}, 'w').close()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0 and process.stderr.read() == b""
    assert (tmp_path / "written").exists()


# ---- a whole study, and a folder that a stranger made ----------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """The results of a study whose texts and whose folder's name are as bad as can be."""
    folder = tmp_path_factory.mktemp("study")
    shapes = read_items(make_dataset(folder / "clips", seed=0, split="test", n_videos=2, questions_per_video=2))
    named = ("[/red]\x1b[31m", "\ud800x", "$\\frac{$", "=1+1")
    items = [replace(i, id=f"{name}{n}", family=name) for n, (i, name) in enumerate(zip(shapes, named, strict=True))]
    items[1] = replace(items[1], options=("\ud800", *items[1].options[1:]))
    lines = [json.dumps({f: v for f, v in asdict(i).items() if v or v == 0}) for i in items]
    (folder / "clips" / "bad.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "study.toml").write_text(
        'protocols = ["all-layers"]\nknockouts = ["LV-K"]\nitems = "clips/bad.jsonl"\nn_resamples = 20\n'
        'custom = [[{ kind = "knockout", src = "video", dst = "last", name = "[/b]\\u001b[2J$x$" }]]\n',
        encoding="utf-8",
    )
    out = Path(os.fsdecode(os.fsencode(folder) + b"/out\xe9"))
    assert main(["study", str(folder / "study.toml"), "--out", str(out)]) == 0
    return out


def test_a_study_of_any_texts_is_printed_drawn_and_written(study, capsys):
    assert main(["plot", str(study)]) == 0
    printed = capsys.readouterr().out
    printed.encode()
    assert "\x1b" not in printed and f"{printable(str(study))}/report.html" in printed
    for text in ("[/b]\\x1b[2J$x$", "[/red]\\x1b[31m", "\\ud800x", "$\\frac{$", "=1+1"):
        assert text in printed
    assert "failed: \\ud800x1: '\\ud800' holds half of a surrogate pair" in printed
    with (study / "summary.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"'=1+1", "[/red]\\x1b[31m", "\\ud800x"} <= {row["group"] for row in rows}
    assert all(float(row["accuracy"]) >= 0 for row in rows if row["n"] != "0")
    with (study / "rows.parquet").open("rb") as file:
        assert {"=1+1", "\\ud800x"} <= set(pd.read_parquet(file)["family"])
    assert "\x1b" not in (study / "report.html").read_text(encoding="utf-8")


JUNK = st.sampled_from([None, True, -1, 0, 1.5, "x", [], {}, [1], {"x": 1}, [[]], "\ud800"])


@settings(LAW, max_examples=60)
@given(st.data())
def test_a_strangers_manifest_is_read_or_refused_in_words(study, tmp_path_factory, data):
    """Anybody can write a checksum; what it seals is checked all the same."""
    fields = manifest_fields(study)
    inside, keys = fields, [data.draw(st.sampled_from(sorted(fields)))]
    while isinstance(inside[keys[-1]], dict | list) and inside[keys[-1]] and data.draw(st.booleans()):
        inside = inside[keys[-1]]
        keys.append(data.draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside)))))
    if data.draw(st.booleans()) and isinstance(inside, dict):
        del inside[keys[-1]]
    else:
        inside[keys[-1]] = data.draw(JUNK)
    folder = tmp_path_factory.mktemp("stranger")
    (folder / MANIFEST).write_bytes(sealed(json_bytes(fields)))
    try:
        Manifest.load(folder)
    except DataError as e:
        assert MANIFEST in str(e)


@pytest.mark.parametrize("name", ["study", "settings", "items", "conditions", "keys", "n_layers", "annotations"])
def test_a_strangers_folder_is_one_line(study, tmp_path, capsys, name):
    fields = manifest_fields(study)
    for junk in (None, 1, [], {}, "x"):
        (tmp_path / MANIFEST).write_bytes(sealed(json_bytes({**fields, name: junk})))
        assert said(capsys, "plot", str(tmp_path)).startswith("hookedvid plot: ")
