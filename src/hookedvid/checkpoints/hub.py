"""Checkpoints of the Hugging Face hub: the few files a conversion needs, in the hub library's own cache.

Nothing here loads weights, and no pickle is ever downloaded. huggingface_hub is imported where it is used, so
that importing this module stays light. Its settings hold as it reads them: HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT,
HF_TOKEN; Xet needs no setting.
"""

import re
import shlex
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hookedvid.checkpoints.tokenizer_files import TOKENIZER_FILES
from hookedvid.conversion.pickles import pickle_message
from hookedvid.errors import ConversionError, nearest
from hookedvid.values.processor import PROCESSOR_FILES

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

NEEDED = (
    "config.json",
    *PROCESSOR_FILES,
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    *TOKENIZER_FILES,
    "chat_template.json",
    "chat_template.jinja",
    "adapter_config.json",
)
PICKLES = ("*.bin", "*.pt", "*.pth")
NOT_WEIGHTS = ("training_args.*", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*")  # transformers' Trainer
# LLaVA's trainer puts the projector beside a LoRA; without it the base's projector would be used in silence.
BESIDE_ADAPTER = "non_lora_trainables.bin"
COMMIT = re.compile("[0-9a-f]{40}")


def fetch(repo: str, revision: str | None = None) -> Path:
    """The local folder of a hub repository's files that a conversion needs, downloaded where they are missing.

    It is the snapshot folder of huggingface_hub's cache. A connection lost within a file is taken up again from
    the bytes received while this call runs. A later call downloads only the files that had not finished, but those
    whole (huggingface_hub 2 keeps no partial file); so they come one at a time, and at most one is lost. Where
    the hub cannot be asked, a complete cached copy is returned.

    Args:
        repo: `owner/name`.
        revision: A branch, a tag or a commit's full hash; the hub's default branch unless given.

    Raises:
        ConversionError: The repository or revision is not there or closed to this user, holds no safetensors,
            does not fit on the disk, or cannot be reached while the cache lacks it.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  httpx's or httpx2's, as this version has it
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=10)
    except (HFValidationError, RevisionNotFoundError) as e:
        raise ConversionError(_reason(e, repo, revision)) from e
    except (HTTPError, OSError) as e:
        return _cached(repo, revision, e)
    files = [f for f in info.siblings or [] if "/" not in f.rfilename]
    _check_formats(repo, info.sha, [f.rfilename for f in files])
    _check_space(repo, info.sha, [f for f in files if _is_one_of(f.rfilename, NEEDED)])
    try:
        return Path(snapshot_download(repo, revision=revision, max_workers=1, **_selection()))
    except (HTTPError, OSError, RuntimeError) as e:  # RuntimeError: from hf_xet, a Rust extension
        raise ConversionError(_reason(e, repo, revision)) from e


def commit_of(folder: Path) -> str | None:
    """The commit hash of a snapshot folder in the hub's cache; None for any other folder."""
    folder = Path(folder).resolve()
    return folder.name if folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name) else None


def _selection() -> dict[str, Any]:
    # In subfolders are optimizer states, other formats and earlier checkpoints; a conversion reads the top level.
    return {"allow_patterns": list(NEEDED), "ignore_patterns": ["*/*"]}


def _cached(repo: str, revision: str | None, trouble: Exception) -> Path:
    """The cache's copy, for a hub that gave `trouble`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True, **_selection()))
    except LocalEntryNotFoundError as e:
        part = hasattr(e, "snapshot_path")  # IncompleteSnapshotError, which older versions lack
        raise ConversionError(_reason(trouble, repo, revision, part=part)) from trouble
    if not any(folder.glob("*.safetensors")):  # another program cached its configuration alone
        raise ConversionError(_reason(trouble, repo, revision, part=True)) from trouble
    return folder


def _check_formats(repo: str, commit: str | None, names: Sequence[str]) -> None:
    pickles = [n for n in names if _is_one_of(n, PICKLES) and not _is_one_of(n, NOT_WEIGHTS)]
    if any(n.endswith(".safetensors") for n in names):
        beside = Path(BESIDE_ADAPTER).with_suffix(".safetensors").name
        pickles = [BESIDE_ADAPTER] if BESIDE_ADAPTER in pickles and beside not in names else []
    elif not pickles:
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise ConversionError(
            f"{repo} holds no *.safetensors at its top level (it has {shown or 'no files'}); "
            "name a repository with a model's weights"
        )
    if pickles:
        folder = repo.split("/")[-1]
        pinned = f" --revision {commit}" if commit else ""
        raise ConversionError(
            f"{repo} has weights that only pickles hold. Download it with\n"
            f"hf download {shlex.quote(repo)}{pinned} --local-dir {shlex.quote(folder)}\n"
            + pickle_message(folder, pickles)
        )


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, p) for p in patterns)


def _check_space(repo: str, commit: str | None, files: "Sequence[RepoSibling]") -> None:
    """Raises ConversionError where the files not yet in the cache are larger than the disk's free space."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE).expanduser().resolve()
    folder = cache / "--".join(["models", *repo.split("/")])
    need = 0
    for f in files:
        blob = folder / "blobs" / str(f.lfs.sha256 if f.lfs else f.blob_id)
        if not blob.exists() and not (folder / "snapshots" / str(commit) / f.rfilename).exists():
            need += f.size or 0
    disk = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(disk).free
    if need > free:
        raise ConversionError(
            f"{repo} needs {_size(need)} more and {cache} has {_size(free)} free; set HF_HOME to a folder on a "
            "larger disk, or make room (`hf cache prune` removes what killed downloads left behind)"
        )


def _size(n: int) -> str:
    return f"{n / 1e9:,.1f} GB" if n >= 1e8 else f"{n / 1e6:,.1f} MB"


def _reason(e: Exception, repo: str, revision: str | None, *, part: bool = True) -> str:
    """What went wrong and what to do, for an exception of the hub's library.

    Args:
        part: Some files are cached.
    """
    from huggingface_hub import constants, errors

    what = repo if revision is None else f"{repo} at revision {revision!r}"
    again = "run the same command again: files that finished are kept"
    lacking = f"{'only a part of it is' if part else 'it is not'} in the cache {constants.HF_HUB_CACHE}"
    if isinstance(e, errors.LocalEntryNotFoundError) and isinstance(e.__cause__, Exception):
        e = e.__cause__  # the library's "not cached either", raised from what the hub answered
    if isinstance(e, errors.HFValidationError):
        return f"{repo!r} is neither a folder nor the name of a hub repository, owner/name"
    if isinstance(e, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}{_revisions(repo, revision)}"
    if isinstance(e, errors.OfflineModeIsEnabled):
        return (
            f"HF_HUB_OFFLINE is set and of {what}, {lacking}; unset HF_HUB_OFFLINE to download it, or copy the "
            "folder from a machine that has it and give its path"
        )
    status = e.response.status_code if isinstance(e, errors.HfHubHTTPError) else None
    log_in = "log in with `hf auth login` or set HF_TOKEN to a token that may read it"
    if isinstance(e, errors.GatedRepoError):
        return f"{repo} is gated: accept its conditions at {constants.ENDPOINT}/{repo}, then {log_in}"
    if isinstance(e, errors.RepositoryNotFoundError) or status in (401, 403):
        return (
            f"{constants.ENDPOINT} shows no model {repo} (it answered {status}): check the name; "
            f"if it is private or gated, {log_in}"
        )
    if status is not None:
        return f"{constants.ENDPOINT} answered {status} for {what}, and {lacking}; wait, then {again}"
    if isinstance(e, OSError) and e.errno is not None and not isinstance(e, ConnectionError | TimeoutError):
        return f"{what} cannot be written to the cache ({e}); set HF_HOME to a folder with room that you may write to"
    if type(e).__name__ in ("ConnectError", "ProxyError") or type(e).__name__.endswith("Timeout"):
        return (
            f"cannot reach {constants.ENDPOINT} for {what} ({e}), and {lacking}; connect and {again}. On a machine "
            "without network, copy the folder from one that has it and give its path"
        )
    return f"the connection to {constants.ENDPOINT} dropped before {what} was complete ({str(e) or repr(e)}); {again}"


def _revisions(repo: str, revision: str | None) -> str:
    """The revisions that exist, as a clause of an error message; empty where the hub does not tell."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        refs = HfApi().list_repo_refs(repo)
    except (HTTPError, OSError):
        return "; give a branch, a tag or a full commit hash"
    names = [r.name for r in (*refs.branches, *refs.tags)]
    return f" ({nearest(str(revision), names)}); give a branch, a tag or a full commit hash"
