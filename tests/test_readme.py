"""What the README shows runs as it stands."""

import re
from pathlib import Path

from hookedvid.data.shapes.clips import make_dataset
from hookedvid.study.definition import Study

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_the_quick_start_runs(tmp_path, monkeypatch):
    clips = make_dataset(tmp_path, seed=1, split="test", n_videos=2, questions_per_video=1).parent / "clips"
    for name, clip in zip(("clip.mp4", "other.mp4"), sorted(clips.iterdir()), strict=True):
        clip.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (quick_start,) = blocks("python")
    names: dict = {}
    exec(compile(quick_start, "README.md", "exec"), names)
    assert names["base"].text in ("left", "right", "up", "down")
    assert names["logits"].shape == (1, names["inputs"].layout.n_tokens, names["model"].cfg.d_vocab)


def test_the_study_file_is_one(tmp_path):
    (text,) = blocks("toml")
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    conditions = Study.from_toml(tmp_path / "study.toml").conditions(28)
    assert [c.label for c in conditions[-1:]] == ["exit after layer 18 + video→video other frames 1–8"]
    assert {c.protocol for c in conditions} == {
        "baseline",
        "cumulative",
        "all layers",
        "windows",
        "random control",
        "custom",
    }


def test_set_up_commands_do_all_their_own_set_up():
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 2
    assert all(c.startswith("python3 -m venv .venv && .venv/bin/pip install") for c in commands)
