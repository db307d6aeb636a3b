"""The published datasets by name."""

from pathlib import Path

from hookedvid.data import egoschema, mvbench, videomme
from hookedvid.data.convention import Convention
from hookedvid.data.dataset import Dataset, PublishedDataset
from hookedvid.errors import DataError, nearest

DATASETS: dict[str, PublishedDataset] = {module.NAME: module.DATASET for module in (videomme, mvbench, egoschema)}
CONVENTIONS: dict[str, Convention] = {c.full_name: c for d in DATASETS.values() for c in d.conventions}
AXES = tuple(dict.fromkeys(axis for d in DATASETS.values() for axis in d.axes))


def read_dataset(name: str, folder: str | Path) -> Dataset:
    """A published dataset in the folder that it was downloaded to.

    Args:
        name: One of `DATASETS`, with options after colons, as `videomme:long:subtitles`; each dataset's `read` says
            which it has.
        folder: Where it was downloaded to.

    Raises:
        DataError: For an unknown name or option, for annotations that are not what was published, listing every
            problem, and for links that lead out of the folder. Missing videos raise nothing.
    """
    base, *options = name.split(":")
    if base not in DATASETS:
        raise DataError(f"no dataset {base!r} ({nearest(base, DATASETS)}); your own questions go into a JSONL file")
    return DATASETS[base].read(Path(folder), tuple(options))
