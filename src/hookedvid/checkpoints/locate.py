"""Where a checkpoint is that is not converted yet: a published name, a hub repository, a folder."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hookedvid.conversion.experts import refuse_named
from hookedvid.errors import ConversionError, nearest
from hookedvid.families.registry import PUBLISHED, SHIPPED, of_repo

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A checkpoint folder on disk, what the user called it, and what is known of it besides."""

    folder: Path
    name: str
    commit: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


def home() -> Path:
    """Where checkpoints converted by `from_pretrained` are kept: HOOKEDVID_HOME, or hookedvid in the user's cache."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("HOOKEDVID_HOME", caches / "hookedvid"))


def repo_of(name: str) -> str | None:
    """The hub repository a name stands for, if it is no folder: a published name's, or itself."""
    if name in PUBLISHED:
        return PUBLISHED[name].repo
    return name if _REPO.fullmatch(name) and not Path(name).exists() else None


def source_of(name: str, revision: str | None = None) -> Source:
    """The checkpoint of a name, downloaded if it has to be.

    Raises:
        ConversionError: Listing what exists.
    """
    repo = repo_of(name)
    if not Path(name).exists():
        refuse_named(name)  # before anything of it is downloaded
    if repo is None:
        folder = Path(name)
        if not name or not folder.is_dir():
            raise ConversionError(
                f"no model {name!r}: it is neither a folder, nor a hub repository (owner/name), nor a known name "
                f"({nearest(name, [*SHIPPED, *PUBLISHED])})"
            )
        if revision is not None:
            raise ConversionError(f"{name!r} is a folder, which has no revision {revision!r}")
        return Source(folder, name)
    from hookedvid.checkpoints.hub import commit_of, fetch

    folder, known = fetch(repo, revision), of_repo(repo)
    choices = {"family": known[0].name, **known[1].overrides} if known else {}
    return Source(folder, name, commit_of(folder), choices)
