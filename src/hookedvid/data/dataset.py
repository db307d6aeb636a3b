"""A published dataset: what it declares of itself, what a folder holds of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hookedvid.data.convention import Convention
from hookedvid.data.folder import Folder, Found
from hookedvid.data.item import Item
from hookedvid.errors import DataError, nearest


@dataclass(frozen=True)
class Entry:
    """A question, and whether its video is there; `reason` says why not.

    missing: it should be there, and the question is asked all the same, to fail. left out: nobody finds it in the
    published download, and the question is not asked.
    """

    item: Item
    status: Literal["there", "missing", "left out"] = "there"
    reason: str = ""


@dataclass(frozen=True)
class Dataset:
    """What a folder holds of a dataset; `name` as it was asked for.

    Attributes:
        published: How many questions each group has in the published set, by axis (`task` is the item's family, any
            other a key of its meta) and group, in the order to print; `{"": {"": n}}` where there are no groups.
        notes: What else is wrong with the folder. wants_subtitles: whether an item without them lacks something.
    """

    name: str
    folder: Path
    entries: tuple[Entry, ...]
    published: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...] = ()

    @property
    def items(self) -> list[Item]:
        """The questions to ask, those whose video is missing among them."""
        return [e.item for e in self.entries if e.status != "left out"]

    @property
    def missing(self) -> dict[str, str]:
        """Reasons by id of the questions that will fail."""
        return {e.item.id: e.reason for e in self.entries if e.status == "missing"}

    @property
    def left_out(self) -> dict[str, str]:
        """Reasons by id of the questions that are not asked."""
        return {e.item.id: e.reason for e in self.entries if e.status == "left out"}

    @property
    def complete(self) -> bool:
        """Whether every question that can be asked has its video, and nothing else is wrong."""
        return not self.missing and not self.notes


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a dataset's evaluation server takes: a JSON object of 0-based options, one for each entry.

    Attributes:
        entry: What the server calls an item.
        file: How the file's name begins; time and `.json` follow.
        unknown: What stands for an answer that is none of the options.
    """

    entry: Callable[[Item], str]
    file: str
    unknown: int = -1


@dataclass(frozen=True, kw_only=True)
class PublishedDataset:
    """All that is special about one published dataset.

    Attributes:
        name: As it is asked for.
        title: As it is printed.
        read: From a folder and the options asked for, what there is. Raises DataError as `registry.read_dataset`.
        axes: Keys of its items' meta that the field reports accuracy by, beside their family.
        conventions: How evaluators ask it, newest first.
        submission: What its evaluation server takes, if it has one.
    """

    name: str
    title: str
    read: Callable[[Path, tuple[str, ...]], Dataset]
    axes: tuple[str, ...] = ()
    conventions: tuple[Convention, ...] = ()
    submission: Submission | None = None


def check_options(name: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raises DataError for an option that the dataset does not have."""
    known = list(known)
    for option in options:
        if option not in known:
            raise DataError(f"{name} has no part {option!r} ({nearest(option, known)}); write {name}:{known[0]}")


def placed(found: Found | None, usual: str) -> tuple[str, Literal["there", "missing"], str]:
    """An item's video, its status and the reason; `usual` is where a video that was not found should be."""
    if found is None:
        return usual, "missing", f"there is no {usual}"
    return found.where, "missing" if found.trouble else "there", found.trouble and f"{found.where}: {found.trouble}"


def finished(
    name: str,
    options: tuple[str, ...],
    folder: Folder,
    entries: list[Entry],
    published: Mapping,
    notes: Iterable[str] = (),
) -> Dataset:
    """The dataset, once everything was looked for.

    Raises:
        DataError: If it is empty or leads out of its folder.
    """
    folder.check()
    whole = ":".join((name, *options))
    if not entries:
        raise DataError(f"{folder.path} holds no questions of {whole}")
    return Dataset(whole, folder.path, tuple(entries), published, (*notes, *folder.notes))
