"""`hookedvid check-data items.jsonl`: every bad line by its number, with what is wrong and what to do."""

import json

import numpy as np
import pytest
from PIL import Image

from hookedvid.cli.commands import main
from hookedvid.data.item import Item, read_items, write_items
from hookedvid.errors import DataError

GOOD = {"id": "a", "video": "clip", "question": "what ?", "options": ["red", "blue"], "answer": 0, "folder_fps": 2.0}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clip").mkdir()
    for i in range(4):
        Image.fromarray(np.full((12, 16, 3), 60 * i, np.uint8)).save(tmp_path / "clip" / f"{i}.png")
    (tmp_path / "torn.mp4").write_bytes(b"no video at all")
    (tmp_path / "words.srt").write_text("no times\n")
    return tmp_path


def checked(folder, lines, capsys):
    path = folder / "items.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    status = main(["check-data", str(path)])
    return status, capsys.readouterr()


def test_each_bad_line_is_told_with_what_to_do(folder, capsys):
    bad = {
        "{": "not JSON",
        "answer 'B' is a letter; write the option's number, counted from 0: 1": {"answer": "B"},
        "answer 2 names none of the 2 options (counted from 0)": {"answer": 2},
        "one option alone, 'red': give the wrong ones too": {"options": ["red"]},
        "option 1 is empty": {"options": ["red", " "]},
        "torn.mp4": {"video": "torn.mp4"},
        "gone.mp4: there is no such file; check the path": {"video": "gone.mp4"},
        "are these subtitles?": {"subtitles": "words.srt"},
        "group 'ball' knows nothing of boks": {"groups": {"ball": {"boks": 1}}},
        "'video' is a selector already": {"groups": {"video": {"selector": "last"}}},
        "box [90, 0, 99, 9] lies outside the frames of 16 x 12 pixels": {"groups": {"ball": {"box": [90, 0, 99, 9]}}},
        "seconds [5, 6] lie beyond the video's 2.00 s": {"groups": {"ball": {"seconds": [5, 6]}}},
        "span [3.0, 4.0] begins behind the video's end at 2.00 s": {"span": [3, 4]},
    }
    lines = [
        GOOD,
        "",
        *("{" if said == "{" else GOOD | how | {"id": f"i{n}"} for n, (said, how) in enumerate(bad.items())),
    ]
    status, printed = checked(folder, [*lines, GOOD], capsys)
    assert status == 1
    told = printed.out.splitlines()
    for number, said in enumerate(bad, start=3):
        (line,) = [t for t in told if t.startswith(f"line {number}: ")]
        assert ("not JSON" if said == "{" else said) in line
    assert f"line {len(lines) + 1}: 'a': id 'a' was used on line 1; ids are unique" in told
    assert told[-1] == "14 problems on 14 lines"


def test_a_good_file_is_said_to_be_one_and_what_may_not_be_meant(folder, capsys):
    hidden, double = {"id": "b", "answer": None}, {"id": "c", "options": ["red", "red"]}
    bare = {"id": "d", "options": [], "answer": None, "groups": {"ball": {"box": [4, 4, 9, 9], "seconds": [0, 1]}}}
    status, printed = checked(folder, [GOOD, GOOD | hidden, GOOD | double, GOOD | bare], capsys)
    assert status == 0 and printed.out.splitlines()[0].endswith("4 questions that can be read, about 1 videos")
    assert [line.split(" questions")[0] for line in printed.out.splitlines()[1:-1]] == ["note: 1"] * 3
    assert printed.out.splitlines()[-1] == "nothing is wrong"


def test_what_is_no_file_of_items_ends_in_one_line(folder, capsys):
    assert checked(folder, [""], capsys)[0] == 2
    assert main(["check-data", str(folder / "none.jsonl")]) == 2
    assert "cannot read annotations" in capsys.readouterr().err
    assert main(["check-data", "mvbench"]) == 2
    assert "hookedvid check-data mvbench FOLDER" in capsys.readouterr().err


def test_reading_says_the_same_of_a_letter(folder):
    write_items([Item(**GOOD | {"options": ("red", "blue")})], folder / "items.jsonl")
    text = (folder / "items.jsonl").read_text()
    (folder / "items.jsonl").write_text(text.replace('"answer": 0', '"answer": "(b)"'))
    with pytest.raises(DataError, match=r"line 1: answer '\(b\)' is a letter; .*: 1"):
        read_items(folder / "items.jsonl")
