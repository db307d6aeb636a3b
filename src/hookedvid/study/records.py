"""Rows on disk: append-only files of JSON lines, read once, written by one process each."""

# What has no stubs of its own: pandas.
# pyright: reportMissingTypeStubs=false
import hashlib
import json
import os
import stat
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Int

from hookedvid.errors import DataError, RunError
from hookedvid.nn.model import Model
from hookedvid.study.rows import SHARED, Lines, Row, Task, line_of, row_of
from hookedvid.study.scorings.outcome import Outcome
from hookedvid.values.files import open_regular, take_lock, written
from hookedvid.values.progress import bar
from hookedvid.values.texts import utf8

if TYPE_CHECKING:
    import pandas as pd

ROWS = "rows.jsonl"
LONGEST = 64 << 20  # bytes of a line; one with a long generated text has some kilobytes


@dataclass(frozen=True)
class Shard:
    """Part `index` (0-based) of `count` equal parts of a study, by video; parts share nothing but the folder."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise DataError(f"shard {self.index}/{self.count} does not exist; they run from 0/{self.count} up")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """`0/8`: the first of eight."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise DataError(f"cannot read shard {text!r}; write 0/8 for the first of eight")
        return cls(int(index), int(count))

    @property
    def file(self) -> str:
        """Its rows' file."""
        return ROWS if self.count == 1 else f"rows-{self.index}of{self.count}.jsonl"


class Records:
    """The rows of one folder, from all shards' files; a shard writes its own.

    Interrupted at any moment, a file is complete up to its last whole line. What was read once is not read again.

    last_video: of this shard's last whole row; the one in flight, if the run that wrote it was killed.
    """

    def __init__(self, folder: Path, shard: Shard | None = None):
        self.folder, self.shard = Path(folder), shard or Shard()
        self.path = self.folder / self.shard.file
        self.last_video: str | None = None
        self._lines = Lines()
        self._rows: dict[str, Row] = {}
        self._read: defaultdict[Path, _Read] = defaultdict(_Read)

    @classmethod
    def of(cls, folder: "Folder", shard: Shard | None = None) -> "Records":
        """The rows of a folder; given themselves, they know their shard and what was read already."""
        return folder if isinstance(folder, Records) else cls(Path(folder), shard)

    def __fspath__(self) -> str:
        return str(self.folder)

    def read(self) -> dict[str, Row]:
        """Rows by key, where a key repeats the first that did not fail; a torn last line is passed over.

        A failed row that was run again stays in the file, and the later one counts. Lines that are damaged are passed
        over, and `damaged` tells of them.

        Raises:
            DataError: For a file that cannot be read at all.
        """
        for path in sorted(self.folder.glob("rows*.jsonl")):
            try:
                with open_regular(path) as file:
                    self._add(path, file)
            except OSError as e:
                raise DataError(f"cannot read rows in {path}: {e.strerror}") from e
        return self._rows

    def _add(self, path: Path, file: BinaryIO) -> None:
        """Take in what was added to a file since it was read last."""
        known = self._read[path]
        file.seek(known.n_bytes)
        while (line := file.readline(LONGEST)) and (line.endswith(b"\n") or len(line) == LONGEST):
            known.n_bytes, known.n_lines = known.n_bytes + len(line), known.n_lines + 1
            row = self._lines.row(line[:-1])
            if row is None:
                known.damaged.append(known.n_lines)
                continue
            if path == self.path:
                self.last_video = row["video"]
            if self._rows.get(row["key"], {"status": "failed"})["status"] == "failed":
                self._rows[row["key"]] = row

    @property
    def damaged(self) -> str:
        """What was passed over of all that was read, and where; empty if nothing was."""
        files = [(path.name, read.damaged) for path, read in self._read.items() if read.damaged]
        if not files:
            return ""
        places = "; ".join(
            f"{name} line {', '.join(map(str, lines[:5]))}" + (", …" if len(lines) > 5 else "") for name, lines in files
        )
        n = sum(len(lines) for _, lines in files)
        return (
            f"{n} damaged rows are passed over ({places}): they are not as they were written, or in the format of "
            "another version; the study's command runs them again"
        )

    @contextmanager
    def writer(self) -> Generator["Writer"]:
        """Append rows.

        Raises:
            DataError: While another process does.
            RunError: Where no file can be written.
            OSError: On a file system without locks.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # A link would be followed to a file that is none of ours.
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as e:
            raise RunError(
                f"cannot write rows to {self.path}: {e.strerror}; it must be a file of its own in a folder that can be "
                "written to: give --out another folder"
            ) from e
        with os.fdopen(descriptor, "r+b", buffering=0) as f:  # a buffer would be written once more on closing
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise RunError(f"{self.path} is no regular file; give --out another folder")
            if not take_lock(descriptor):
                raise DataError(f"another run is writing {self.path}; wait for it, or give --out another folder")
            _drop_torn_line(f)
            yield Writer(f, self.path)


Folder = os.PathLike[str]  # a path, or the rows that are kept there


@dataclass
class _Read:
    """How far a file was read: bytes, lines, and which of these (from 1) are damaged."""

    n_bytes: int = 0
    n_lines: int = 0
    damaged: list[int] = field(default_factory=list[int])


class Writer:
    """Appends whole lines and waits until they are on disk.

    Raises:
        RunError: Where they cannot be: a line is then torn or missing, and the next writer cuts it off.
    """

    def __init__(self, file: Any, path: Path):
        self._file, self._path = file, path

    def append(self, finished: Iterable[tuple[Task, Outcome]]) -> dict[str, Row]:
        """Write the rows of finished tasks, all with one wait for the disk; what they are, by key."""
        rows = {task.key: row_of(task, outcome) for task, outcome in finished}
        rest = memoryview(b"".join(line_of(row) + b"\n" for row in rows.values()))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as e:
            raise RunError(
                f"cannot write to {self._path}: {e.strerror}; every row before this one is kept: make room and "
                "run the same command to go on"
            ) from e
        return rows


def frame(rows: Iterable[Mapping[str, Any]]) -> "pd.DataFrame":
    """Rows as a pandas table, settings spread over columns `settings.…`, interventions as JSON text."""
    import pandas as pd

    rows = list(rows)
    names = dict.fromkeys(name for fields in dict.fromkeys(map(tuple, rows)) for name in fields if name not in SHARED)
    columns: dict[str, Any] = {name: [_utf8(row.get(name)) for row in rows] for name in names}
    # Of many rows these are one object each, so a column of theirs is made of few values.
    cuts, settings = ({id(row[name]): row[name] for row in rows} for name in SHARED)
    texts = [utf8(json.dumps(cut, ensure_ascii=False)) for cut in cuts.values()]
    columns["interventions"] = pd.Series(texts).array.take(_places(rows, "interventions", cuts))
    where = _places(rows, "settings", settings)
    for name in dict.fromkeys(name for several in settings.values() for name in several):
        values = pd.Series([_utf8(several.get(name)) for several in settings.values()])
        columns[f"settings.{name}"] = values.array.take(where)
    return pd.DataFrame(columns)


def _places(rows: Sequence[Mapping[str, Any]], name: str, objects: Mapping[int, Any]) -> Int[np.ndarray, " row"]:
    """Of each row which of the objects its field is, counted from 0."""
    place = {i: n for n, i in enumerate(objects)}
    return np.array([place[id(row[name])] for row in rows], dtype=int)


def _utf8(value: Any) -> Any:
    return utf8(value) if isinstance(value, str) else value


def write_parquet(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows as a Parquet table, as `frame` spreads them."""
    with written(path) as part, part.open("wb") as file:  # pyarrow opens no path that is not UTF-8
        table: Any = frame(rows)
        table.to_parquet(file)


def model_hash(model: Model) -> str:
    """Hash of config, tokenizer and every weight in the dtype it runs in."""
    h = hashlib.sha256(model.cfg.to_json().encode())
    if model.tokenizer is not None:
        h.update(model.tokenizer.backend_tokenizer.to_str().encode())
    weights = sorted(model.named_parameters())
    with bar(len(weights), "hashing weights", "tensors") as done:
        for name, p in weights:
            h.update(f"{name} {p.dtype} {tuple(p.shape)}".encode())
            h.update(p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            done(1)
    return h.hexdigest()[:16]


def _drop_torn_line(f: Any) -> None:
    """Cut what follows the last line end: the row that was being written when a run was killed."""
    size = f.seek(0, os.SEEK_END)
    at = size
    while at > 0:
        step = min(1 << 16, at)
        f.seek(at - step)
        end = f.read(step).rfind(b"\n")
        if end >= 0:
            f.truncate(at - step + end + 1)
            return
        at -= step
    f.truncate(0)
