"""The published datasets by name."""

from collections.abc import Callable
from pathlib import Path

from hookedvid.data import egoschema, mvbench, videomme
from hookedvid.data.dataset import Dataset
from hookedvid.errors import DataError, nearest

READERS: dict[str, Callable[[Path, tuple[str, ...]], Dataset]] = {
    "videomme": videomme.read,
    "mvbench": mvbench.read,
    "egoschema": egoschema.read,
}


def read_dataset(name: str, folder: str | Path) -> Dataset:
    """The dataset of that name in a folder: `videomme`, `mvbench` or `egoschema`, with options after colons.

    videomme: `short`, `medium`, `long` keep these videos, `subtitles` gives items their subtitles. mvbench: the
    tasks to keep. egoschema: `subset` (unless told) is the 500 with public answers, `full` all 5,031, no answers.

    Raises DataError for an unknown name or option, for annotations that are not what was published, listing every
    problem, and for links that lead out of the folder. Missing videos raise nothing.
    """
    base, *options = name.split(":")
    if base not in READERS:
        raise DataError(f"no dataset {base!r} ({nearest(base, READERS)}); your own questions go into a JSONL file")
    return READERS[base](Path(folder), tuple(options))
