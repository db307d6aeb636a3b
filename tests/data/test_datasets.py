"""Published datasets in every layout: read, and their frames decoded, from zip files as from folders."""

import json
import os
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import miniatures
from clips import numbers
from hookedvid.cli.commands import main
from hookedvid.data.item import read_items, subtitles_path, video_path, write_items
from hookedvid.data.mvbench import TASKS, WHY_NOT
from hookedvid.data.registry import read_dataset
from hookedvid.errors import DataError
from hookedvid.video import samplers
from hookedvid.video.frames import Clip, read_clip
from hookedvid.video.source import video_hash
from hookedvid.video.subtitles import Line, expected_subtitles, sampled_lines, shown_subtitles
from miniatures import BOUND, UIDS

LAYOUTS = ("zip", "data", "video", "flat")


def shown(dataset, item):
    """The numbers of four sampled frames."""
    path = video_path(item, dataset.folder)
    return numbers(read_clip(path, 4, bound=item.bound, folder_fps=item.folder_fps).frames)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_videomme_is_the_same_in_every_layout(tmp_path, layout):
    found = read_dataset("videomme:subtitles", miniatures.videomme(tmp_path, layout))
    assert found.complete and not found.left_out and len(found.items) == 9
    first = found.items[0]
    assert (first.id, first.family, first.options[0], first.answer) == ("001-1", "Counting Problem", "Apples.", 0)
    assert first.meta["duration"] == "short" and first.meta["videoID"] == "-Abc_123xyz" and "options" not in first.meta
    assert [i.answer for i in found.items] == [0, 1, 2, 1, 2, 3, 2, 3, 0]
    for item in found.items[::3]:
        assert shown(found, item) == [0, 19, 39, 59]
        path = subtitles_path(item, found.folder)
        assert (path is None) == (item.meta["duration"] == "medium")
        assert path is None or expected_subtitles(path, 32) == "hello there\nsecond line"
    assert ("zip::" in first.video) == (layout == "zip")


@pytest.mark.parametrize("suffix", [".MP4", ".mkv"])
@pytest.mark.parametrize("layout", ["zip", "data"])
def test_videos_may_end_otherwise_and_be_compressed(tmp_path, layout, suffix):
    found = read_dataset(
        "videomme", miniatures.videomme(tmp_path, layout, suffix=suffix, compression=zipfile.ZIP_DEFLATED)
    )
    assert found.complete and shown(found, found.items[0]) == [0, 19, 39, 59]
    assert not any(i.subtitles for i in found.items)


def test_zip_and_extracted_share_rows(tmp_path):
    one, other = (read_dataset("videomme", miniatures.videomme(tmp_path / x, x)) for x in ("zip", "data"))
    for a, b in zip(one.items, other.items, strict=True):
        assert replace(a, video="x") == replace(b, video="x")
        hashes = {video_hash(video_path(i, d.folder)) for i, d in ((a, one), (b, other))}
        assert len(hashes) == 1 and "" not in hashes
    one, other = (
        read_dataset("mvbench:episodic_reasoning", miniatures.mvbench(tmp_path / x, layout=x))
        for x in ("zip", "extracted")
    )
    assert (
        video_hash(video_path(one.items[0], one.folder)) == video_hash(video_path(other.items[0], other.folder)) != ""
    )


def test_parts_of_videomme(tmp_path):
    folder = miniatures.videomme(tmp_path)
    assert {i.meta["duration"] for i in read_dataset("videomme:long:short", folder).items} == {"long", "short"}
    assert read_dataset("videomme:long", folder).name == "videomme:long"
    with pytest.raises(DataError, match=r"videomme has no part 'lon' \(nearest: 'long'"):
        read_dataset("videomme:lon", folder)
    with pytest.raises(DataError, match=r"no dataset 'video-mme' \(nearest: 'videomme'"):
        read_dataset("video-mme", folder)


def test_options_give_their_bytes_back_or_are_kept_as_they_were(tmp_path):
    rows = miniatures.videomme_rows()[:4]
    rows[1]["options"] = ["A.Apples", "B. Pears ", "(C) Plums", "D) none"]
    rows[2]["options"] = ["A.  two blanks", "B. Pears\n", "C. C. elegans", "D. D"]
    rows[3]["options"] = ["Apples", "Pears", "Plums", "none"]
    read = read_dataset("videomme", miniatures.videomme(tmp_path, rows=rows)).items
    for row, item in zip(rows, read, strict=True):
        lines = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", item.options, strict=True))
        assert item.meta.get("options", lines) == "\n".join(row["options"])
    assert ["options" in i.meta for i in read] == [False, True, False, True]
    assert read[1].options == ("Apples", "Pears ", "Plums", "none") and read[2].options[2] == "C. elegans"


@pytest.mark.parametrize(
    ("branch", "layout"), [("main", "zip"), ("main", "extracted"), ("video", "json"), ("video", "test.json")]
)
def test_mvbench_is_read_in_every_layout(tmp_path, branch, layout):
    found = read_dataset("mvbench", miniatures.mvbench(tmp_path, branch, layout))
    assert found.complete
    by = {t: [i for i in found.items if i.family == t] for t in TASKS}
    assert [len(by[t]) for t in TASKS] == [0 if t == "fine_grained_pose" and branch == "main" else 2 for t in TASKS]
    assert set(found.left_out.values()) == ({WHY_NOT} if branch == "main" else set())
    assert [i.family for i in found.items] == sorted((i.family for i in found.items), key=list(TASKS).index)
    for task, items in by.items():
        for n, item in enumerate(items):
            assert item.answer == 1 and item.id == f"{task}-{n}" and len(item.options) == 3 - n
            cut = TASKS[task].cut and branch == "main"
            assert item.bound == (BOUND if cut else None)
            assert item.folder_fps == (3.0 if task == "episodic_reasoning" and branch == "main" else None)
            replaced = n == 1 and getattr(TASKS[task], branch).startswith(("clevrer", "star"))
            assert ("data0613" in item.video) == replaced
            expected = [0, 19, 39, 59]
            if cut:
                expected = [15, 22, 29, 36]
            if item.folder_fps:
                expected = [2, 2, 3, 4]
            assert shown(found, item) == expected, item.video


def test_cut_clips_are_not_cut_twice_and_whole_ones_not_left_whole(tmp_path):
    """Branches mixed: the file that is found decides, not the annotations."""
    rows = miniatures.mvbench_rows("video")
    for task in ("action_sequence", "action_localization"):
        for row in rows[task]:
            row |= {"start": 0.5, "end": 1.2}
    found = read_dataset(
        "mvbench:action_sequence:action_localization", miniatures.mvbench(tmp_path / "a", "video", "json", rows)
    )
    assert [i.bound for i in found.items] == [None] * 4 and found.complete
    rows = miniatures.mvbench_rows("main")
    del rows["action_localization"][0]["start"], rows["action_localization"][0]["end"]
    with pytest.raises(
        DataError, match=r"sta_video/action_localization0.mp4 is a whole video, and the row does not say"
    ):
        read_dataset("mvbench:action_localization", miniatures.mvbench(tmp_path / "b", "main", "extracted", rows))


def test_ntu_videos_are_read_once_somebody_has_them(tmp_path):
    folder = miniatures.mvbench(tmp_path, layout="extracted", shipped=True)
    found = read_dataset("mvbench:fine_grained_pose", folder)
    assert found.complete and not found.left_out
    assert [shown(found, i) for i in found.items] == [[0, 19, 39, 59]] * 2
    miniatures.without(folder, "video/nturgbd/fine_grained_pose0.avi")
    found = read_dataset("mvbench:fine_grained_pose", folder)
    assert list(found.missing) == ["fine_grained_pose-0"] and not found.left_out and len(found.items) == 2


@pytest.mark.parametrize("layout", ["zip", "extracted"])
@pytest.mark.parametrize("route", ["hub", "authors"])
def test_egoschema_is_the_same_by_both_routes(tmp_path, route, layout):
    folder = miniatures.egoschema(tmp_path, route, layout)
    found, full = read_dataset("egoschema", folder), read_dataset("egoschema:full", folder)
    assert [(i.id, i.answer) for i in found.items] == [(UIDS[0], 0), (UIDS[1], 1)]
    assert [(i.id, i.answer) for i in full.items] == [(uid, None) for uid in UIDS]
    assert found.complete and full.complete and read_dataset("egoschema:subset", folder).items == found.items
    assert full.items[0].options == tuple(f"C does {x}." for x in "abcde")
    assert all(shown(full, i) == [0, 19, 39, 59] for i in full.items)


def test_a_hub_snapshot_of_links_is_read_and_other_links_are_not(tmp_path):
    real = miniatures.egoschema(tmp_path / "real")
    snapshot = tmp_path / "cache" / "snapshots" / "abc"
    blobs = tmp_path / "cache" / "blobs"
    blobs.mkdir(parents=True)
    for path in [p for p in real.rglob("*") if p.is_file()]:
        blob = blobs / path.name.replace("test", path.parent.name)
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(real)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    found = read_dataset("egoschema", snapshot)
    assert found.complete and shown(found, found.items[0]) == [0, 19, 39, 59]
    moved = snapshot.rename(tmp_path / "cache" / "elsewhere")
    with pytest.raises(DataError, match=r"links lead out of"):
        read_dataset("egoschema", moved)


@pytest.mark.parametrize("what", ["file", "folder", "frame", "archive", "annotations"])
def test_links_out_of_the_folder_are_refused(tmp_path, what):
    outside = tmp_path / "outside"
    if what in ("file", "folder", "annotations"):
        folder, name = miniatures.videomme(tmp_path / "set", "data"), "videomme"
        at = {"file": "data/-Abc_123xyz.mp4", "folder": "data", "annotations": "videomme/test-00000-of-00001.parquet"}[
            what
        ]
    elif what == "frame":
        folder, name = miniatures.mvbench(tmp_path / "set", layout="extracted"), "mvbench:episodic_reasoning"
        at = "video/tvqa/frames_fps3_hq/episodic_reasoning0/00002.jpg"
    else:
        folder, name, at = miniatures.egoschema(tmp_path / "set"), "egoschema", "videos_chunked_01.zip"
    (folder / at).rename(outside)
    (folder / at).symlink_to(outside)
    with pytest.raises(DataError, match=r"lead out of .*set"):
        read_dataset(name, folder)
    (folder / at).unlink()
    (folder / "kept").mkdir()
    outside.rename(folder / "kept" / "it")
    (folder / at).symlink_to(folder / "kept" / "it")
    assert read_dataset(name, folder).complete


def test_every_problem_of_the_rows_is_listed(tmp_path):
    rows = miniatures.videomme_rows()[:8]
    rows[0]["videoID"] = "../../etc/passwd"
    rows[1]["answer"] = "E"
    rows[2]["options"] = ["A. x", "C. y", "B. z", "D. w"]
    rows[3]["duration"] = "endless"
    rows[4]["question"] = " "
    rows[5]["task_type"] = "\x1b[31mred"
    rows[6]["question_id"] = rows[7]["question_id"]
    rows[7]["videoID"] = "ab::c"
    rows[4]["videoID"] = "a/b"
    with pytest.raises(DataError) as caught:
        miniatures.videomme(tmp_path, "none", rows=rows)
        read_dataset("videomme", tmp_path)
    said = str(caught.value)
    for n, what in [
        (0, "videoID '../../etc/passwd' points outside its folder"),
        (1, "answer should be one of ABCD, got 'E'"),
        (2, "option B should begin with 'B. ', got 'C. y'"),
        (3, "duration should be one of short, medium, long, got 'endless'"),
        (4, "question should be a text, got ' '"),
        (4, "videoID 'a/b' has a slash in it"),
        (5, r"task_type should be a short text, got '\x1b[31mred'"),
        (7, "videoID 'ab::c' has '::' in it"),
    ]:
        assert f"row {n}: {what}" in said
    assert "\x1b" not in said and "has 8 problem(s)" in said


@pytest.mark.parametrize("answer", ["AB", "", "a", "E", "1", "A.", "ABCD"])
def test_an_answer_is_one_letter(tmp_path, answer):
    rows = miniatures.videomme_rows()[:3]
    rows[2]["answer"] = answer
    miniatures.videomme(tmp_path, "none", rows=rows)
    with pytest.raises(DataError, match=rf"row 2: answer should be (one of ABCD|a text), got '{answer}'"):
        read_dataset("videomme", tmp_path)
    rows[2]["answer"] = " B "
    miniatures.videomme(tmp_path, "none", rows=rows)
    assert read_dataset("videomme", tmp_path).items[2].answer == 1


def test_columns_are_checked_by_type(tmp_path):
    rows = [
        {k: v for k, v in r.items() if k != "domain"} | {"options": "A. x\nB. y", "answer": 1}
        for r in miniatures.videomme_rows()
    ]
    miniatures.parquet(tmp_path / "test-00000-of-00001.parquet", rows)
    with pytest.raises(DataError) as caught:
        read_dataset("videomme", tmp_path)
    for what in (
        "no column 'domain'",
        "'options' should be of type texts, not string",
        "'answer' should be of type text, not int64",
    ):
        assert what in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"video": "/etc/passwd"}, "is no relative path"),
        ({"video": "..\\x.mp4"}, "is no relative path"),
        ({"video": "a\0b"}, "do not print"),
        ({"video": None}, "video should be a text, got None"),
        ({"answer": "He flew."}, "answer 'He flew.' is none of the candidates"),
        ({"candidates": ["He sat."]}, "candidates should be 2 to 26 texts, got 1"),
        ({"candidates": {"a": 1}}, "candidates should be a list of texts"),
        ({"start": "0"}, "start should be a number of seconds"),
        ({"start": 3.0}, "the part from 3.0 to 1.2 s is empty"),
        ({"end": -1}, "end should be a number of seconds, got -1"),
        ("row", "should be an object, got 'row'"),
    ],
)
def test_hostile_rows_of_mvbench_are_refused(tmp_path, change, said):
    rows = miniatures.mvbench_rows()["action_sequence"]
    rows[1] = rows[1] | change if isinstance(change, dict) else change
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "action_sequence.json").write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"json/action_sequence.json, row 1: .*" + said.replace("[", r"\[")):
        read_dataset("mvbench", tmp_path)


@pytest.mark.parametrize("root", ["/mnt/disk/star", "../..", "s3://bucket/star", 3, None])
def test_roots_of_test_json_never_lead_out(tmp_path, root):
    folder = miniatures.mvbench(tmp_path, "video", "test.json")
    whole = json.loads((folder / "test.json").read_text())
    whole["root"]["action_sequence"] = root
    (folder / "test.json").write_text(json.dumps(whole))
    found = read_dataset("mvbench:action_sequence", folder)
    assert found.complete and found.items[0].video == "star/Charades_segment/action_sequence0_0.5_1.2.mp4"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("json/action_count.json", b"[" * 100_000, "nested too deeply"),
        ("json/action_count.json", b"<html>", "is no JSON file"),
        ("json/action_count.json", b'[{"video": NaN}]', "NaN is no JSON number"),
        ("json/action_count.json", b"{}", "should be a list of questions"),
        ("test.json", b"[]", "should hold an object with the keys root and meta"),
        ("json/other.json", b"[]", "holds no questions of mvbench"),
        ("README.md", b"", "has no annotations of MVBench"),
    ],
)
def test_what_is_no_annotation_file_is_said_to_be_none(tmp_path, name, data, said):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=said):
        read_dataset("mvbench", tmp_path)


def test_tables_that_are_cut_or_pointers_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        read_dataset("videomme", tmp_path / "absent")
    with pytest.raises(DataError, match="has no annotations of Video-MME"):
        read_dataset("videomme", tmp_path)
    with pytest.raises(
        DataError, match=r"no annotations of egoschema:subset; they are in Subset/.*, or in questions.json"
    ):
        read_dataset("egoschema", tmp_path)
    miniatures.egoschema(tmp_path)
    table = tmp_path / "Subset" / "test-00000-of-00001.parquet"
    table.rename(table.with_name("test-00001-of-00002.parquet"))
    with pytest.raises(DataError, match="has 1 of 2 parts of its table; part 0 is not there"):
        read_dataset("egoschema", tmp_path)
    (tmp_path / "MC" / "test-00000-of-00001.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"is no Parquet file \(it begins with b'version https"):
        read_dataset("egoschema:full", tmp_path)


def test_egoschema_answers_and_clips_are_checked(tmp_path):
    rows = miniatures.egoschema_rows(UIDS[:3])
    rows[0]["answer"], rows[1]["option"], rows[2]["video_idx"] = "5", rows[1]["option"][:4], UIDS[0]
    miniatures.parquet(tmp_path / "hub" / "Subset" / "test-00000-of-00001.parquet", rows)
    with pytest.raises(DataError) as caught:
        read_dataset("egoschema", tmp_path / "hub")
    assert "row 0: answer should be 0 to 4, got '5'" in str(caught.value)
    assert "row 1: there should be 5 options, ABCDE, got 4" in str(caught.value)
    folder = miniatures.egoschema(tmp_path / "authors", "authors")
    (folder / "subset_answers.json").write_text(json.dumps({UIDS[0]: True, "gone": 1}))
    with pytest.raises(DataError) as caught:
        read_dataset("egoschema", folder)
    assert "answer should be 0 to 4, got True" in str(caught.value) and "1 clips have no question: 'gone'" in str(
        caught.value
    )


def test_missing_videos_are_asked_and_said(tmp_path):
    folder = miniatures.without(miniatures.videomme(tmp_path, "data"), "data/fFjv93ACGo8.mp4")
    found = read_dataset("videomme", folder)
    assert found.missing == dict.fromkeys(["002-1", "002-2", "002-3"], "there is no data/fFjv93ACGo8.mp4")
    assert len(found.items) == 9 and not found.complete


def test_a_cut_archive_is_a_note_and_its_videos_missing(tmp_path):
    folder = miniatures.egoschema(tmp_path)
    archive = folder / "videos_chunked_01.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    found = read_dataset("egoschema:full", folder)
    assert list(found.missing) == UIDS[:3]
    assert any("videos_chunked_01.zip: the archive cannot be read" in n for n in found.notes)


def test_check_data_prints_what_is_there(tmp_path, capsys):
    folder = miniatures.mvbench(tmp_path)
    assert main(["check-data", "mvbench", str(folder)]) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    assert lines["action_sequence"] == ["200", "2", "2", "2", "0", "0"]
    assert lines["fine_grained_pose"] == ["200", "2", "2", "0", "0", "2"]
    assert lines["all"] == ["4000", "40", "40", "38", "0", "2"]
    assert f"left out: 2 questions: {WHY_NOT}" in printed
    miniatures.without(folder, "video/sta.zip")
    miniatures.without(folder, "json/action_count.json")
    assert main(["check-data", "mvbench", str(folder)]) == 1
    printed = capsys.readouterr().out
    assert "missing: 2 videos of 2 questions, which will fail: there is no video/sta/sta_video/action_loc" in printed
    assert "note: 1 of 20 tasks have no annotations: action_count" in printed


def test_check_data_counts_durations_tasks_and_subtitles(tmp_path, capsys):
    folder = miniatures.without(miniatures.videomme(tmp_path, "video"), "subtitle/w0Wmc8C0Eq0.srt")
    assert main(["check-data", "videomme", str(folder)]) == 0
    capsys.readouterr()
    assert main(["check-data", "videomme:subtitles", str(folder)]) == 1
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["short", "900", "3", "1", "3", "0", "0", "1"] in rows
    assert ["Counting", "Problem", "3", "3", "3", "0", "0", "1"] in rows
    assert "note: 1 long videos have no subtitles, and all should: w0Wmc8C0Eq0" in printed


def test_items_of_a_dataset_survive_the_item_format(tmp_path):
    found = read_dataset("mvbench", miniatures.mvbench(tmp_path))
    write_items(found.items, tmp_path / "items.jsonl")
    assert read_items(tmp_path / "items.jsonl") == found.items
    assert video_path(found.items[0], tmp_path) == video_path(found.items[0], tmp_path / "items.jsonl")


def spoken(path, text):
    """What is said during any frame of 25 a second."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return expected_subtitles(path, samplers.MOST).split("\n")


def test_subtitles_are_read_whoever_wrote_them(tmp_path):
    path = tmp_path / "a.srt"
    assert spoken(path, miniatures.SRT) == ["hello there", "second line"]
    one, two = (f'<font color="white" size=".72c">{text}</font>' for text in ("one\n2", "two"))
    plain = f"00:00:01.5 --> 00:00:02,250 X1:40\n{one}\n\n7\n00:01:00,000 --> 01:00:00,000\n\n"
    plain += f"\n8\n1:02:03,004 --> 1:02:04,000\n{two}"
    assert spoken(path, plain) == ["one 2", "two"]
    frames = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    for fps, said in ((1.0, ""), (2.0, ""), (8.0, "one 2")):  # of frames 0 and 13 the last is 13, 6.5, 1.6 s in
        clip = Clip(frames, (0,), (0.0,), fps, 14, 14 / fps, "a.mp4")
        assert shown_subtitles(path, clip, 2) == said
    assert spoken(path, "") == [""]
    with pytest.raises(DataError, match="has no lines like"):
        spoken(path, "<html>404</html>")
    with pytest.raises(DataError, match="is not UTF-8"):
        spoken(path, b"1\n00:00:00,000 --> 00:00:01,000\n\xe9\n")
    with pytest.raises(DataError, match="cannot read subtitles"):
        expected_subtitles(tmp_path / "absent.srt", 1)


def test_sampled_lines_are_those_of_whole_frames():
    """The end is not included, a line shown twice is said once, and times are cut to frames."""
    found = [Line(0.0, 1.0, "hello there"), Line(1.0, 1.5, "second line")]
    assert sampled_lines(found, [0, 5, 29], 30.0) == ["hello there"]
    assert sampled_lines(found, [44, 30, 0], 30.0) == ["hello there", "second line"]
    assert sampled_lines(found, [45, 59], 30.0) == []
    assert sampled_lines([Line(0.0, 0.99, "x"), Line(0.5, 1.0, "x")], [20], 30.0) == ["x", "x"]


def test_subtitles_at_frames_are_those_of_lmms_eval_in_its_order(tmp_path):
    """Theirs is the order of a set of line numbers, and takes what stands in white font tags alone."""
    cues = []
    for n in range(900):
        said = f"plain {n}" if n % 3 == 1 else f'<font color="white" size=".72c">line {n}</font>'
        seconds = [f"00:{t // 60:02}:{t % 60:02},000" for t in (n, n + 1)]
        cues.append(f"{n + 1}\n{seconds[0]} --> {seconds[1]}\n{said}\n")
    (tmp_path / "a.srt").write_text("\n".join(cues), encoding="utf-8")
    frames = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    clip = Clip(frames, (0,), (0.0,), 25.0, 900 * 25, 900.0, "a.mp4")
    said = shown_subtitles(tmp_path / "a.srt", clip, 32).split("\n")
    chosen = {int(i) // 25 for i in np.linspace(0, 900 * 25 - 1, 32, dtype=int)}
    assert said[:6] == ["line 0", "line 899", "line 261", "line 522", "line 783", "line 29"]
    assert sorted(int(line.split()[1]) for line in said) == sorted(n for n in chosen if n % 3 != 1)
    assert expected_subtitles(tmp_path / "a.srt", 32).split("\n") == said  # as an estimate takes them
    some = [Line(n, n + 1, str(n)) for n in range(900)]
    assert sampled_lines(some, [136, 518, 893], 1.0) == ["136", "893", "518"]


def test_frames_come_out_of_an_archive_as_from_disk(tmp_path):
    for suffix in miniatures.CODECS:
        plain = tmp_path / f"a{suffix}"
        plain.write_bytes(miniatures.clip(suffix))
        for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
            with zipfile.ZipFile(tmp_path / "a.zip", "w", compression) as archive:
                archive.write(plain, f"x/{plain.name}")
            one, other = read_clip(plain, 7), read_clip(f"{tmp_path}/a.zip::x/{plain.name}", 7)
            assert np.array_equal(one.frames, other.frames) and one[1:6] == other[1:6]
        assert sorted(p.name for p in tmp_path.iterdir() if p.suffix not in miniatures.CODECS) == ["a.zip"]
        assert Path(other.source) == tmp_path / f"a.zip::x/{plain.name}"


@pytest.mark.parametrize(
    "filler",
    [
        "\n",
        " \n",
        "\n7",
        "7\n\n",
        '<font color="white" size=".72c">',
        "<a",
        "</b",
        "0:0:0,0 ",
        "0:0:0,0 --> ",
        "<font ",
    ],
)
def test_subtitles_take_time_in_proportion_to_their_size(tmp_path, filler):
    """500 kB of blank lines took 50 seconds; now 4 MB of anything take some tenths."""
    cue = '00:00:01,000 --> 00:00:02,000\n<font color="white" size=".72c">hello</font>\n'
    start = time.process_time()
    found = spoken(tmp_path / "a.srt", cue + filler * (4_000_000 // len(filler)) + "\n2\n" + cue)
    assert found == ["hello", "hello"]
    assert time.process_time() - start < 5


def test_choosing_among_many_lines_takes_time_in_proportion_to_them():
    many = [Line(float(n), n + 0.5, str(n)) for n in range(50_000)]
    start = time.process_time()
    found = sampled_lines(many, range(0, 1_500_000, 300), 30.0)
    assert sorted(found, key=int) == [str(n) for n in range(0, 50_000, 10)]
    assert time.process_time() - start < 5
