"""What a converted checkpoint was made of: enough to check it, to continue it, and to write the original again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from hookedvid.conversion.lines import Ignored, Line
from hookedvid.conversion.shards import CODES, DTYPES, Entry, Header, Shards, layout
from hookedvid.errors import ConversionError
from hookedvid.values.files import is_plain_name, read_regular, write_text
from hookedvid.values.serial import from_dict, numbered, to_dict, unnumbered

FILE = "provenance.json"
FORMAT = 1  # of that file: raised whenever its fields change
MAX_SIZE = 256 << 20  # bytes; that of the largest published checkpoint has 0.6 million
SOURCE_CONFIG = "source_config.json"
UNUSED = "unused."  # before the names of tensors carried along for export alone


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of the source, in the order of its file's bytes; `dtype` by the format's own code (`BF16`)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SourceFile:
    """One file of the source; `sha256` of all its bytes, empty until it has been read."""

    tensors: tuple[SourceTensor, ...]
    metadata: dict
    sha256: str = ""

    @property
    def header(self) -> Header:
        """The file's header, as the safetensors package would have written it."""
        return layout([(t.name, DTYPES[t.dtype], t.shape) for t in self.tensors], self.metadata)


@dataclass(frozen=True)
class Provenance:
    """A conversion: from what, with which choices; hashes of what was read and of what was written.

    Attributes:
        source: As the user named it.
        commit: Of the hub's repository.
        dtype: None where tensors kept theirs.
        overrides, ignored: The user's own.
        tensors: sha256 of each of our tensors' bytes.
    """

    source: str
    architecture: str
    version: str
    commit: str | None = None
    dtype: str | None = None
    overrides: dict = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files: dict = field(default_factory=dict)
    tensors: dict = field(default_factory=dict)

    @property
    def headers(self) -> list[Header]:
        """Those of the source's files."""
        return [f.header for f in self.files.values()]

    def plan(self) -> "Provenance":
        """The same conversion before anything was read: what two runs must share to be one."""
        return replace(self, files={k: replace(f, sha256="") for k, f in self.files.items()}, tensors={})

    def save(self, folder: Path) -> None:
        """Write it whole into a folder, over an older one."""
        write_text(folder / FILE, json.dumps(numbered(to_dict(self), FORMAT), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Provenance":
        """What `save` wrote.

        Raises:
            ConversionError: Where there is none, or one of another format, or one that names files elsewhere.
        """
        path = folder / FILE
        if not path.is_file():
            raise ConversionError(f"{folder} has no {FILE}: it was not converted, so its original layout is unknown")
        try:
            data: Any = json.loads(read_regular(path, MAX_SIZE, ConversionError))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
            raise ConversionError(f"{path} cannot be read: {e}") from e
        known = from_dict(cls, unnumbered(data, FORMAT, path, ConversionError), ConversionError)
        if strange := [f for f in known.files if not (is_plain_name(f) and f.endswith(".safetensors"))]:
            raise ConversionError(
                f"{path} lists {', '.join(map(repr, strange[:4]))}, which is no safetensors file of it"
            )
        return replace(known, files={k: from_dict(SourceFile, f, ConversionError) for k, f in known.files.items()})


def source_files(shards: Shards) -> dict[str, SourceFile]:
    """What the files of a checkpoint hold."""
    return {
        name: SourceFile(tuple(map(_tensor, header.entries)), dict(header.metadata))
        for name, header in shards.headers.items()
    }


def _tensor(e: Entry) -> SourceTensor:
    return SourceTensor(e.name, CODES[e.dtype], e.shape)


def index_of(files: Mapping[str, Header]) -> str:
    """model.safetensors.index.json of these files."""
    names = {e.name: file for file, header in files.items() for e in header.entries}
    total = sum(e.size for header in files.values() for e in header.entries)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}, indent=2) + "\n"


def cast(header: Header, lines: Mapping[str, Line], dtype: torch.dtype | None) -> Header:
    """A source file's header with the floating-point tensors that were converted in another dtype."""
    if dtype is None:
        return header
    tensors = [
        (e.name, dtype if e.dtype.is_floating_point and not isinstance(lines[e.name], Ignored) else e.dtype, e.shape)
        for e in header.entries
    ]
    return layout(tensors, header.metadata)
