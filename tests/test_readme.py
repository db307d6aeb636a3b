"""What the README shows runs as it stands, and leads somewhere."""

import re
from pathlib import Path

from hookedvid.data.item import read_items, video_path
from hookedvid.data.shapes.clips import make_dataset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_the_quick_start_runs(tmp_path, monkeypatch):
    path = make_dataset(tmp_path, seed=1, split="test", n_videos=1, questions_per_video=1)
    video_path(read_items(path)[0], path).rename(tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    (quick_start,) = blocks("python")
    names: dict = {}
    exec(compile(quick_start, "README.md", "exec"), names)
    assert names["base"].text in ("left", "right", "up", "down")
    assert names["logits"].shape == (1, names["inputs"].layout.n_tokens, names["model"].cfg.d_vocab)
    assert Path("question.html").stat().st_size > 100_000


def test_what_came_out_is_an_excerpt():
    (shown,) = blocks("text")
    lines = shown.splitlines()
    whole = (ROOT / "docs" / "study.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 10
    for line in lines:
        assert any(full.startswith(line.removesuffix("…")) for full in whole)


def test_it_is_read_in_a_minute_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 120
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_set_up_commands_do_all_their_own_set_up():
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 2
    assert all(c.startswith("python3 -m venv .venv && .venv/bin/pip install") for c in commands)
