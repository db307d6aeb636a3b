"""Miniature copies of Video-MME, MVBench and EgoSchema in every layout they are downloaded or unpacked in.

Every video is 60 frames at 30 a second that carry their number (`clips.number`). Annotations have the published
columns; `rows` lets a test change them before they are written.
"""

import io
import json
import shutil
import zipfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clips import picture, write_clip
from hookedvid.data.mvbench import FRAMES, TASKS

CODECS = {".mp4": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4"}
SRT = (
    "\ufeff1\r\n00:00:00,000 --> 00:00:01,000\r\n"
    '<font color="white" size=".72c">hello there</font>\r\n\r\n'
    "2\r\n00:00:01,000 --> 00:00:01,500\r\n"
    '<font color="white" size=".72c">second line</font>\r\n'
)
UIDS = [f"{i:08x}-0000-4000-8000-00000000000{i}" for i in range(4)]


@cache
def clip(suffix):
    """The bytes of the video, one for each container."""
    with TemporaryDirectory() as folder:
        path = write_clip(Path(folder) / f"clip{suffix.lower()}", CODECS[suffix.lower()])
        return path.read_bytes()


@cache
def jpeg(number):
    data = io.BytesIO()
    Image.fromarray(picture(number)).save(data, "JPEG", quality=95)
    return data.getvalue()


class Tree:
    """Files to be, by name, written out or into zip files."""

    def __init__(self):
        self.files = {}

    def add(self, name, data):
        self.files[name] = data.encode() if isinstance(data, str) else data

    def write(self, folder):
        for name, data in self.files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def zip(self, path, compression=zipfile.ZIP_STORED):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in self.files.items():
                archive.writestr(name, data)


def parquet(path, rows, schema=None):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def videomme_rows():
    """Three videos, one of each duration, three questions each; the medium one has no subtitles."""
    return [
        {
            "video_id": f"00{v + 1}",
            "duration": duration,
            "domain": "Knowledge",
            "sub_category": "Humanity & History",
            "url": f"https://example.org/watch?v={name}",
            "videoID": name,
            "question_id": f"00{v + 1}-{q + 1}",
            "task_type": ["Counting Problem", "OCR Problems", "Temporal Reasoning"][q],
            "question": "What is shown?",
            "options": ["A. Apples.", "B. Pears.", "C. Plums.", "D. None of them."],
            "answer": "ABCD"[(v + q) % 4],
        }
        for v, (duration, name) in enumerate(
            [("short", "-Abc_123xyz"), ("medium", "fFjv93ACGo8"), ("long", "w0Wmc8C0Eq0")]
        )
        for q in range(3)
    ]


def videomme(folder, layout="zip", rows=None, suffix=".mp4", compression=zipfile.ZIP_STORED):
    """layout: zip, or where the extracted videos are: data, video, flat."""
    rows = videomme_rows() if rows is None else rows
    parquet(Path(folder) / "videomme" / "test-00000-of-00001.parquet", rows)
    names = sorted({row["videoID"] for row in rows})
    spoken = {row["videoID"] for row in rows if row["duration"] != "medium"}
    if layout == "zip":
        for number, part in enumerate((names[:1], names[1:]), start=1):
            tree = Tree()
            for name in part:
                tree.add(f"data/{name}{suffix}", clip(suffix))
            tree.zip(Path(folder) / f"videos_chunked_{number:02d}.zip", compression)
        tree = Tree()
        for name in spoken:
            tree.add(f"subtitle/{name}.srt", SRT)
        tree.zip(Path(folder) / "subtitle.zip", zipfile.ZIP_DEFLATED)
    else:
        tree, place = Tree(), "" if layout == "flat" else f"{layout}/"
        for name in names:
            tree.add(f"{place}{name}{suffix}", clip(suffix))
        for name in spoken:
            tree.add(f"{'' if layout == 'flat' else 'subtitle/'}{name}.srt", SRT)
        tree.write(folder)
    return Path(folder)


# What videos are called in branch `main` where it is not <number>.mp4.
MAIN_SUFFIX = {"action_antonym": ".webm", "fine_grained_pose": ".avi", "episodic_reasoning": ""}
BOUND = (0.5, 1.2)


def mvbench_rows(branch="main"):
    """Two questions for each of the twenty tasks, the second on a replaced clip where there are such."""
    found = {}
    for task, folders in TASKS.items():
        whole = folders.cut and branch == "main"
        suffix = MAIN_SUFFIX.get(task, ".mp4") if branch == "main" else ".mp4"
        cut = f"_{BOUND[0]}_{BOUND[1]}" if folders.cut and not whole else ""
        found[task] = [
            {
                "video": f"{task}{n}{cut}{suffix}",
                "question": "What happened?",
                "candidates": ["He ran.", "He sat.", "He ate."][: 3 - n],
                "answer": "He sat.",
                **({"start": BOUND[0], "end": BOUND[1]} if whole else {}),
            }
            for n in range(2)
        ]
    return found


def mvbench(folder, branch="main", layout="zip", rows=None, shipped=False):
    """branch: main or video. layout: zip or extracted (main); json or test.json (video). shipped: with NTU videos."""
    folder, rows = Path(folder), mvbench_rows(branch) if rows is None else rows
    if layout == "test.json":
        roots = {task: TASKS[task].video + "/" for task in rows}
        tree = Tree()
        tree.add("test.json", json.dumps({"root": roots, "meta": rows}))
    else:
        tree = Tree()
        for task, asked in rows.items():
            tree.add(f"json/{task}.json", json.dumps(asked))
    tree.write(folder)
    media = {}  # archive -> tree
    for task, asked in rows.items():
        if task == "fine_grained_pose" and branch == "main" and not shipped:
            continue
        top = getattr(TASKS[task], branch)
        for n, row in enumerate(asked):
            replaced = n == 1 and top.startswith(("clevrer/", "star/"))
            inside = f"data0613/{top}" if replaced else top
            _add_media(media.setdefault(inside.split("/")[0], Tree()), inside, row["video"])
    for name, tree in media.items():
        if layout == "zip":
            tree.zip(folder / "video" / f"{name}.zip")
        else:
            tree.write(folder / "video" if branch == "main" else folder)
    return folder


def _add_media(tree, top, name):
    if top == FRAMES:
        for number in range(6):  # two seconds
            tree.add(f"{top}/{name}/{number + 1:05d}.jpg", jpeg(number))
    else:
        tree.add(f"{top}/{name}", clip(Path(name).suffix))


def egoschema_rows(uids=UIDS, answers=True):
    return [
        {
            "question_idx": f"{i:05d}",
            "question": "What does C do?",
            "video_idx": uid,
            "option": [f"{letter}. C does {letter.lower()}." for letter in "ABCDE"],
            "answer": str(i % 5) if answers else None,
        }
        for i, uid in enumerate(uids)
    ]


def egoschema(folder, route="hub", layout="zip", suffix=".mp4"):
    """route: hub or authors. layout: zip or extracted. Two of the four clips have public answers."""
    folder = Path(folder)
    if route == "hub":
        parquet(folder / "Subset" / "test-00000-of-00001.parquet", egoschema_rows(UIDS[:2]))
        names = {name: pa.string() for name in ("question_idx", "question", "video_idx")}
        schema = pa.schema(names | {"option": pa.list_(pa.string()), "answer": pa.null()})
        for part in ("MC", "GENERATION"):
            parquet(folder / part / "test-00000-of-00001.parquet", egoschema_rows(answers=False), schema)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        asked = [
            {"q_uid": row["video_idx"], "question": row["question"]}
            | {f"option {i}": option[3:] for i, option in enumerate(row["option"])}
            for row in egoschema_rows()
        ]
        (folder / "questions.json").write_text(json.dumps(asked))
        (folder / "subset_answers.json").write_text(json.dumps({UIDS[0]: 0, UIDS[1]: 1}))
    for number, uids in enumerate((UIDS[:3], UIDS[3:]), start=1):
        tree = Tree()
        for uid in uids:
            tree.add(f"videos/{uid}{suffix}", clip(suffix))
        if layout == "zip":
            tree.zip(folder / f"videos_chunked_{number:02d}.zip")
        else:
            tree.write(folder)
    return folder


def without(folder, name):
    """Removes a file or folder of a copy."""
    path = Path(folder) / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Path(folder)
