"""Rows on disk: append-only JSON lines, each with everything that fixed it and a key made of just that."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hookedvid.errors import DataError, RunError
from hookedvid.study.scoring import Outcome

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2  # of the key: raised whenever what enters it changes
ROWS = "rows.jsonl"


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
        if not (slash and index.isdigit() and count.isdigit()):
            raise DataError(f"cannot read shard {text!r}; write 0/8 for the first of eight")
        return cls(int(index), int(count))

    @property
    def file(self) -> str:
        """Its rows' file."""
        return ROWS if self.count == 1 else f"rows-{self.index}of{self.count}.jsonl"


@dataclass(frozen=True)
class Task:
    """One item under one condition, before it runs: what its row will say, and the key that says it all.

    settings: model and video hashes, sampling, dtype, kernel, scoring, convention, versions; see `study.settings`.
    """

    item: str
    video: str
    family: str
    condition: str
    protocol: str
    knockout: str
    layer: int | None
    interventions: list[dict]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Hash of everything that fixes the outcome; names of protocols and families do not."""
        fixed = {
            "schema": SCHEMA,
            "item": self.item,
            "interventions": self.interventions,
            "settings": dict(self.settings),
        }
        return digest(json.dumps(fixed, sort_keys=True, ensure_ascii=False).encode())


class Records:
    """The rows of one folder, from all shards' files; a shard writes its own.

    Interrupted at any moment, a file is complete up to its last whole line.
    """

    def __init__(self, folder: Path, shard: Shard | None = None):
        self.folder = Path(folder)
        self.path = self.folder / (shard or Shard()).file

    def read(self) -> dict[str, dict]:
        """Rows by key, where a key repeats the first that did not fail; a torn last line is passed over.

        A failed row that was run again stays in the file, and the later one counts. Raises DataError for any other
        line that cannot be read.
        """
        rows: dict[str, dict] = {}
        for path in sorted(self.folder.glob("rows*.jsonl")):
            for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
                try:
                    row = json.loads(line)
                except ValueError as e:
                    raise DataError(f"{path}, line {number} is damaged ({e}); move the file away or mend it") from e
                if rows.get(row["key"], {"status": "failed"})["status"] == "failed":
                    rows[row["key"]] = row
        return rows

    def last_video(self) -> str | None:
        """The video of this shard's last whole row: the one in flight, if the run that wrote it was killed."""
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        return json.loads(lines[-1])["video"] if lines else None

    @contextmanager
    def writer(self) -> Iterator["Writer"]:
        """Append rows; raises DataError while another process does."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b", buffering=0) as f:  # a buffer would be written once more on closing
            _lock(f, self.path)
            _drop_torn_line(f)
            yield Writer(f)


class Writer:
    """Appends one whole line at a time and waits until it is on disk.

    Raises RunError where it cannot be: the line is then torn or missing, and the next writer cuts it off.
    """

    def __init__(self, file: Any):
        self._file = file

    def append(self, task: Task, outcome: Outcome) -> dict:
        """Write and return the row of a finished task."""
        row = {"key": task.key, **asdict(task), **asdict(outcome)}
        left = memoryview(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as e:
            raise RunError(
                f"cannot write to {self._file.name}: {e.strerror}; every row before this one is kept: make room and "
                "run the same command to go on"
            ) from e
        return row


def frame(rows: Iterable[Mapping[str, Any]]) -> "pd.DataFrame":
    """Rows as a pandas table, settings spread over columns `settings.…`, interventions as JSON text."""
    import pandas as pd

    flat = []
    for row in rows:
        rest = {k: v for k, v in row.items() if k not in ("settings", "interventions")}
        rest["interventions"] = json.dumps(row["interventions"], ensure_ascii=False)
        flat.append(rest | {f"settings.{k}": v for k, v in row["settings"].items()})
    return pd.DataFrame(flat)


def digest(data: bytes) -> str:
    """The first 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def model_hash(model: Any) -> str:
    """Hash of config, tokenizer and every weight in the dtype it runs in."""
    h = hashlib.sha256(model.cfg.to_json().encode())
    if model.tokenizer is not None:
        h.update(model.tokenizer.backend_tokenizer.to_str().encode())
    for name, p in sorted(model.named_parameters()):
        h.update(f"{name} {p.dtype} {tuple(p.shape)}".encode())
        h.update(p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return h.hexdigest()[:16]


def _lock(f: Any, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no file locks on this platform: two runs into one folder are the user's to avoid
        return
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        raise DataError(f"another run is writing {path}; wait for it, or give --out another folder") from e


def _drop_torn_line(f: Any) -> None:
    """Cut what follows the last line end: the row that was being written when a run was killed."""
    size = f.seek(0, os.SEEK_END)
    at = size
    while at > 0:
        step = min(1 << 16, at)
        f.seek(at - step)
        found = f.read(step).rfind(b"\n")
        if found >= 0:
            f.truncate(at - step + found + 1)
            return
        at -= step
    f.truncate(0)
