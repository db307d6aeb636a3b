"""The how-tos run as they stand and print what they say; the reference has every public name."""

import doctest
import re
import shlex
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

import hookedvid
from decoding import decoders  # noqa: F401
from held_out_clips import held_out_clips
from hookedvid.cli.commands import main
from hookedvid.study.definition import Study

pytestmark = pytest.mark.shapes_unchecked

DOCS = Path(__file__).parents[1] / "docs"
# Executed in one namespace a page: ```python; ```sh by the command line. A ```text after either is what it prints.
PAGES = (
    "cache", "frames", "knockout", "patch", "attention", "study", "sweep", "structured-attention", "which-head", "dose",
    "where", "order", "pruning", "figures", "view",
    "coming-from", "lens", "probing", "steering", "attribution", "adaptive", "agreement",
)  # fmt: skip
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", re.M | re.S)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A folder with the two clips that the first page makes, and the held-out ones, which its study would make."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "runs" / "first").mkdir(parents=True)
    (folder / "runs" / "first" / "videos").symlink_to(held_out_clips(tmp_path_factory))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        executed("index")
    return folder


def executed(page: str) -> list[tuple[str, str]]:
    """What a page says its blocks print, and what they print."""
    names: dict = {}
    told = []
    for language, body, text in BLOCK.findall((DOCS / f"{page}.md").read_text(encoding="utf-8")):
        with redirect_stdout(StringIO()) as printed:
            if language == "python":
                exec(compile(body, f"{page}.md", "exec"), names)
            else:
                for line in body.splitlines():
                    verb, *arguments = shlex.split(line)
                    assert verb == "hookedvid"
                    assert main(arguments) == 0
        if text:
            told.append((text, printed.getvalue()))
    return told


@pytest.mark.parametrize("page", PAGES)
def test_a_page_prints_what_it_says(page, clips, monkeypatch):
    monkeypatch.chdir(clips)
    told = executed(page)
    assert told
    for text, printed in told:
        same = doctest.OutputChecker().check_output(text, printed, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        assert same, f"{page}.md says\n{text}\nand prints\n{printed}"


def test_the_study_file_is_one(tmp_path):
    (text,) = re.findall(r"^```toml\n(.*?)^```$", (DOCS / "study.md").read_text(encoding="utf-8"), re.M | re.S)
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    conditions = Study.from_toml(tmp_path / "study.toml").conditions(28)
    assert [c.label for c in conditions[-3:-2]] == ["exit after layer 18 + video→video other frames 1–8"]
    protocols = {"baseline", "cumulative", "all layers", "windows", "random control", "custom"}
    assert {c.protocol for c in conditions} == protocols


def test_every_public_name_has_its_reference():
    pages = "\n".join(p.read_text(encoding="utf-8") for p in (DOCS / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", pages, re.M))
    stub = Path(hookedvid.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    public = re.findall(r"^from \.(\S+) import (\w+) as", stub, re.M)
    assert {name for _, name in public} == set(hookedvid.__all__)
    missing = [f"{m}.{name}" for m, name in public if not {f"hookedvid.{m}", f"hookedvid.{m}.{name}"} & shown]
    assert not missing
