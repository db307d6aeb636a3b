import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hookedvid.data.item import Item, read_items, video_path, write_items
from hookedvid.errors import DataError

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
meta_values = words | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def items(draw):
    options = tuple(draw(st.lists(words, max_size=5)))
    answers = st.none() | st.integers(0, len(options) - 1) if options else st.none()
    return Item(
        id=draw(words),
        video=draw(words),
        question=draw(words),
        options=options,
        answer=draw(answers),
        family=draw(st.text(st.characters(exclude_categories=["Cs"]))),
        meta=draw(st.dictionaries(words, meta_values, max_size=3)),
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(items(), min_size=1, unique_by=lambda item: item.id))
def test_what_is_written_is_read_back(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    write_items(written, path)
    assert read_items(path) == written


def test_writing_what_was_read_gives_the_same_bytes(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_items([Item(id="1", video="a.mp4", question="où ?", options=("x", "y"), answer=1, meta={"n": 2.5})], first)
    write_items(read_items(first), second)
    assert first.read_bytes() == second.read_bytes()


def test_an_item_is_hashable_and_frozen():
    item = Item(id="1", video="a.mp4", question="?", meta={"n": 1})
    assert item in {item}
    with pytest.raises(AttributeError):
        item.answer = 1  # type: ignore[misc]


def test_every_problem_is_reported_at_once_with_its_line(tmp_path):
    good = {"id": "a", "video": "a.mp4", "question": "what ?", "options": ["x", "y"], "answer": 1}
    lines = [
        json.dumps(good),
        "",
        json.dumps({**good, "id": "b", "answer": 2}),
        json.dumps({**good, "id": "c", "anwser": 0}),
        json.dumps({**good, "id": "d", "options": "xy", "meta": [1]}),
        json.dumps({"id": "e", "question": 3}),
        "{not json",
        '{"id": "f", "video": "a.mp4", "question": "?", "meta": {"x": NaN}}',
        json.dumps({**good, "id": "g", "meta": {"deep": {}, "sure": True}}),
        "[1]",
        json.dumps(good),
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        read_items(path)
    found = dict(line.strip().split(": ", 1) for line in str(caught.value).splitlines()[1:])
    assert list(found) == [f"line {n}" for n in (3, 4, 5, 6, 7, 8, 9, 10, 11)]
    assert "answer 2 names none of the 2 options (counted from 0)" in found["line 3"]
    assert "no field 'anwser' (nearest: 'answer'" in found["line 4"]
    assert "options should be a list" in found["line 5"] and "meta should be an object" in found["line 5"]
    assert "lacks the field 'video'" in found["line 6"] and "question should be a str" in found["line 6"]
    assert "not JSON" in found["line 7"] and "not JSON" in found["line 8"]
    assert "meta['deep']" in found["line 9"] and "meta['sure']" in found["line 9"]
    assert "should be an object" in found["line 10"]
    assert "id 'a' was used on line 1" in found["line 11"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"id": " "}, "id is empty"),
        ({"question": ""}, "question is empty"),
        ({"options": ("x", "")}, "option 1 is empty"),
        ({"answer": 0}, "answer 0 names none of the 0 options"),
        ({"options": ("x",), "answer": -1}, "answer -1"),
    ],
)
def test_an_impossible_item_is_refused(wrong, said):
    with pytest.raises(DataError, match=said):
        Item(**{"id": "1", "video": "a.mp4", "question": "?", **wrong})


def test_repeated_options_are_allowed_as_published_sets_have_them():
    assert Item(id="1", video="a.mp4", question="?", options=("x", "x"), answer=1).answer == 1


def test_repeated_ids_are_not_written(tmp_path):
    item = Item(id="1", video="a.mp4", question="?")
    with pytest.raises(DataError, match="'1'"):
        write_items([item, item], tmp_path / "items.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_items_is_refused(tmp_path):
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "clip.mp4"
    empty.write_text("\n")
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no items"):
        read_items(empty)
    with pytest.raises(DataError, match="not UTF-8"):
        read_items(binary)
    with pytest.raises(DataError, match="No such file"):
        read_items(tmp_path / "absent.jsonl")


def test_videos_lie_beside_the_annotations_unless_absolute(tmp_path):
    item = Item(id="1", video="clips/a.mp4", question="?")
    assert video_path(item, tmp_path / "items.jsonl") == tmp_path / "clips" / "a.mp4"
    elsewhere = Item(id="1", video=str(tmp_path / "b.mp4"), question="?")
    assert video_path(elsewhere, "items.jsonl") == tmp_path / "b.mp4"
