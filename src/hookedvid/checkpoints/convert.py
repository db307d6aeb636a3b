"""Converting a checkpoint folder into ours, and exporting it back into the layout it came from."""

import json
import shutil
from collections.abc import Collection, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from hookedvid import __version__
from hookedvid.checkpoints import layouts, processor_files
from hookedvid.checkpoints.conversion_folder import check_free, fingerprint, partial_folder, resumed
from hookedvid.checkpoints.locate import source_of
from hookedvid.checkpoints.tokenizer_files import TOKENIZER_FILES, check_tokens, load_tokenizer
from hookedvid.conversion import provenance
from hookedvid.conversion.lines import Ignored
from hookedvid.conversion.packed import refuse_type
from hookedvid.conversion.provenance import Provenance, source_files
from hookedvid.conversion.rules import match, stored
from hookedvid.conversion.shards import CODES, DTYPES, INDEX, Shards, aliases_of, open_shards, read_header, shapes_of
from hookedvid.conversion.stream import Lines, convert_file, export_file, target
from hookedvid.errors import ConversionError
from hookedvid.families.prompts import special_strings
from hookedvid.families.registry import ARCHITECTURES, FAMILIES, named_in, template
from hookedvid.nn.parts import parameter_shapes
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.files import read_regular, write_bytes, write_text
from hookedvid.values.processor import PROCESSOR_FILES

MAX_JSON = 64 << 20  # bytes of a config.json; those published have some 10,000
SPARE = 64 << 20  # bytes of disk left free beside what is written


@dataclass(frozen=True)
class Plan:
    """A conversion that was checked in full from headers alone; nothing is written yet.

    Attributes:
        config_json: config.json as it was read.
        seen: The folder's fingerprint before anything was.
    """

    folder: Path
    shards: Shards
    config_json: bytes
    seen: str
    cfg: VideoLLMConfig
    lines: Lines
    dtype: torch.dtype | None
    tokenizer: Any
    origin: Provenance

    @property
    def size(self) -> int:
        """Bytes the conversion will write."""
        headers = {f: target(h, self.lines, self.dtype) for f, h in self.shards.headers.items()}
        return sum(h.length + sum(e.size for e in h.entries) for h in headers.values())


def plan(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    overrides: Mapping[str, Any] | None = None,
    ignore: Collection[str] = (),
    source: str = "",
    commit: str | None = None,
) -> Plan:
    """Check a checkpoint folder against the family it says it is; arguments as `convert`."""
    seen = fingerprint(folder)
    config, config_json = _read_config(folder)
    shards = open_shards(folder)
    source = source or str(folder)
    shapes, pair = shards.shapes, layouts.head_and_embedding(shards.shapes)
    same_head = pair is not None and shards.same_bits(*pair)
    reading = layouts.read(config, shapes, overrides, ignore, same_head=same_head, stated=named_in(source))
    hint = layouts.hint(None, shapes, reading.cfg.family)
    lines = match(shapes, reading.table, parameter_shapes(reading.cfg), str(folder), hint)
    lines = stored(lines, shards.aliases)
    _check_types(shards, lines)
    tokenizer = load_tokenizer(folder)
    cfg, said = reading.cfg, []
    if _heeds_processors(config["architectures"][0], cfg):
        cfg, said = processor_files.settled(cfg, processor_files.read(folder), overrides or {})
    cfg = _with_tokenizer(cfg, tokenizer, folder, overrides or {})
    origin = Provenance(
        source=source,
        architecture=config["architectures"][0],
        version=__version__,
        commit=commit,
        dtype=None if dtype is None else CODES[dtype],
        overrides=dict(overrides or {}),
        ignored=tuple(sorted(ignore)),
        notes=(*reading.notes, *said, *_tokenizer_notes(tokenizer, reading.cfg)),
        files=source_files(shards),
    )
    return Plan(folder, shards, config_json, seen, cfg, lines, dtype, tokenizer, origin)


def _heeds_processors(architecture: str, cfg: VideoLLMConfig) -> bool:
    """Whether the code of an architecture takes a video's pixels as a checkpoint's processor files say."""
    return cfg.vision is not None and ARCHITECTURES[architecture].processor_files


def _check_types(shards: Shards, lines: Lines) -> None:
    """Raise ConversionError for a weight that is no floating-point number."""
    for header in shards.headers.values():
        for e in header.entries:
            if not isinstance(lines[e.name], Ignored) and not e.dtype.is_floating_point:
                refuse_type(e.name, str(e.dtype).removeprefix("torch."))
                raise ConversionError(f"tensor {e.name!r} is stored as {e.dtype}, which is no weight's type")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder.

    Raises:
        ConversionError: If it is missing or damaged.
    """
    return _read_config(folder)[0]


def _read_config(folder: Path, name: str = "config.json") -> tuple[dict[str, Any], bytes]:
    """As `read_config`, of a file of any name, and the bytes that it was read from."""
    path = folder / name
    if not path.is_file():
        raise ConversionError(f"{folder} has no {name}, so it is no checkpoint folder{_in_hub_cache(folder)}")
    data = read_regular(path, MAX_JSON, ConversionError)
    try:
        config = json.loads(data)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise ConversionError(f"{path} is no JSON: {e}; download it again") from e
    if not isinstance(config, dict):
        raise ConversionError(f"{path} holds {type(config).__name__}, not an object; download it again")
    return config, data


def _in_hub_cache(folder: Path) -> str:
    """For the folder of a repository in the hub's cache: which of its folders is the checkpoint's."""
    root = folder.parent if folder.name == "snapshots" else folder
    snapshots = sorted(p for p in (root / "snapshots").glob("*") if (p / "config.json").is_file())
    if not snapshots:
        return ""
    main = root / "refs" / "main"
    named = root / "snapshots" / (read_regular(main, 1 << 10).decode().strip() if main.is_file() else "")
    repo = "/".join(root.name.split("--")[1:])
    return (
        f" but the hub's cache of {repo or 'a repository'}: give {named if named in snapshots else snapshots[-1]}"
        f"{f', or the name {repo}' if repo else ''}"
    )


def _with_tokenizer(cfg: VideoLLMConfig, tokenizer: Any, folder: Path, overrides: Mapping[str, Any]) -> VideoLLMConfig:
    """The config with what only the tokenizer tells: how many ids it has, and which one stands for video."""
    if tokenizer is None or cfg.decoder is None:
        return cfg
    if cfg.vision is not None and (wrong := check_tokens(tokenizer, special_strings(template(cfg.prompt)))):
        raise ConversionError(
            f"the tokenizer of {folder} is not the one of prompt {cfg.prompt!r}: {', '.join(map(repr, wrong))} should "
            "be one token each; copy the checkpoint's own tokenizer files"
        )
    ids = tokenizer.get_vocab()
    beyond = sorted((i, text) for text, i in ids.items() if i >= cfg.decoder.d_vocab)
    if beyond and "n_tokens" not in overrides:
        raise ConversionError(
            f"the tokenizer of {folder} has ids up to {beyond[-1][0]} (first {beyond[0][1]!r} = {beyond[0][0]}), and "
            f"the embedding has {cfg.decoder.d_vocab} rows: take tokenizer and weights from one release. If no prompt "
            f"holds such tokens, override n_tokens={cfg.decoder.d_vocab}"
        )
    known: dict[str, Any] = {"n_tokens": 1 + max(ids.values(), default=0)}
    family = FAMILIES.get(cfg.family)
    if family is not None and family.placeholder is not None:
        known["placeholder_id"] = ids.get(family.placeholder, cfg.placeholder_id)
    return replace(cfg, **{k: v for k, v in known.items() if k not in overrides})


def _tokenizer_notes(tokenizer: Any, cfg: VideoLLMConfig) -> tuple[str, ...]:
    if tokenizer is not None or cfg.decoder is None:
        return ()
    return ("the folder has no tokenizer: the model takes token ids (inputs_from_tensors), not questions (prepare)",)


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    ignore: Collection[str] = (),
    revision: str | None = None,
    progress: bool = True,
) -> Path:
    """Convert a checkpoint into a folder of ours, which `from_pretrained` loads; returns that folder.

    Interrupted, the same call goes on after the last finished file, once it has seen by sha256 that nothing of it
    changed since; nothing stands at `dst` before all does.

    Args:
        src: A name (`hookedvid models`), a hub repository or a folder, in the layout of the original packages or of
            transformers.
        dst: A folder that does not exist yet, or is empty.
        dtype: As stored unless given.
        overrides: Fields of `VideoLLMConfig` by dotted path, over what the checkpoint says, such as {"vision.n_heads":
            4}.
        ignore: Fields of its config.json that change nothing.
        revision: Of a hub repository.

    Raises:
        ConversionError: Leaving nothing behind, for a checkpoint that does not fit in any part.
    """
    checkpoint = source_of(str(src), revision)
    ours = {**checkpoint.overrides, **(overrides or {})}
    dst = Path(dst)
    check_free(dst)
    dtype, name = as_dtype(dtype), checkpoint.name
    prepared = plan(
        checkpoint.folder, dtype=dtype, overrides=ours, ignore=ignore, source=name, commit=checkpoint.commit
    )
    with partial_folder(dst) as partial:
        origin = resumed(prepared.origin, prepared.folder, prepared.config_json, partial)
        write_bytes(partial / provenance.SOURCE_CONFIG, prepared.config_json)
        _check_space(prepared, partial, origin)
        origin = _convert_files(prepared, partial, origin, progress)
        _write_around(prepared, partial, origin)
        if fingerprint(prepared.folder) != prepared.seen:
            raise ConversionError(f"{prepared.folder} changed while it was converted; convert it again")
    for note in origin.notes if progress else ():
        tqdm.write(f"note: {note}")
    return dst


def _check_space(prepared: Plan, partial: Path, origin: Provenance) -> None:
    done = sum((partial / f).stat().st_size for f, s in origin.files.items() if s.sha256)
    needed, free = prepared.size - done + SPARE, shutil.disk_usage(partial).free
    if needed > free:
        raise ConversionError(
            f"the converted checkpoint needs {needed / 1e9:.1f} GB and {partial.parent} has {free / 1e9:.1f} GB free; "
            "free some, or convert into another disk"
        )


def _convert_files(prepared: Plan, partial: Path, origin: Provenance, progress: bool) -> Provenance:
    todo = [f for f, s in origin.files.items() if not s.sha256]
    sizes = {f: sum(e.size for e in prepared.shards.headers[f].entries) for f in origin.files}
    with _bar(sizes, todo, f"converting {prepared.folder.name}", progress) as step:
        for file in todo:
            if read_header(prepared.folder / file) != prepared.shards.headers[file]:
                raise ConversionError(f"{prepared.folder / file} changed while it was converted; convert it again")
            digest, hashes = convert_file(prepared.folder / file, partial / file, prepared.lines, prepared.dtype, step)
            files = {**origin.files, file: replace(origin.files[file], sha256=digest)}
            origin = replace(origin, files=files, tensors={**origin.tensors, **hashes})
            origin.save(partial)
    return origin


@contextmanager
def _bar(sizes: Mapping[str, int], todo: Collection[str], what: str, shown: bool):
    total = sum(sizes.values())
    done = total - sum(sizes[f] for f in todo)
    with tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=what, disable=None if shown else True) as bar:
        yield bar.update


def _write_around(prepared: Plan, partial: Path, origin: Provenance) -> None:
    """What stands beside the weights: configs, index, tokenizer, processor files."""
    origin.save(partial)
    write_text(partial / "config.json", prepared.cfg.file_text)
    if list(origin.files) != ["model.safetensors"]:
        headers = {f: read_header(partial / f) for f in origin.files}
        write_text(partial / INDEX, provenance.index_of(headers))
    if prepared.tokenizer is not None:
        prepared.tokenizer.save_pretrained(partial)
    if _heeds_processors(origin.architecture, prepared.cfg):
        for path in (p for name in PROCESSOR_FILES if (p := prepared.folder / name).is_file()):
            shutil.copyfile(path, partial / path.name)


def export(src: str | Path, dst: str | Path, *, progress: bool = True) -> Path:
    """Write a converted checkpoint back in the layout it came from, under its own file and tensor names.

    Weights kept in their dtype come out as the very bytes that were converted, which is checked by hash; those cast
    come out in the new dtype.

    Raises:
        ConversionError: For a folder `convert` did not write, or one whose weights have changed since.
    """
    src, dst = Path(src), Path(dst)
    origin = Provenance.load(src)
    check_free(dst)
    config, config_json = _read_config(src, provenance.SOURCE_CONFIG)
    theirs, same_head = shapes_of(origin.headers), "unembed.weight" not in origin.tensors
    reading = layouts.read(
        config, theirs, origin.overrides, origin.ignored, same_head=same_head, stated=named_in(origin.source)
    )
    lines = stored(match(theirs, reading.table, parameter_shapes(reading.cfg), str(src)), aliases_of(origin.headers))
    cast = None if origin.dtype is None else DTYPES[origin.dtype]
    sizes = {f: sum(e.size for e in s.header.entries) for f, s in origin.files.items()}
    with partial_folder(dst) as partial, _bar(sizes, list(sizes), f"exporting {src.name}", progress) as step:
        headers = {}
        for file, known in origin.files.items():
            headers[file] = provenance.cast(known.header, lines, cast)
            digest = export_file(src / file, partial / file, headers[file], lines, origin.tensors, step)
            if cast is None and digest != known.sha256:
                raise ConversionError(f"{src / file}: the exported file is not the one that was converted")
        write_bytes(partial / "config.json", config_json)
        if list(origin.files) != ["model.safetensors"]:
            write_text(partial / INDEX, provenance.index_of(headers))
        for pattern in (*TOKENIZER_FILES, *PROCESSOR_FILES):
            for path in src.glob(pattern):
                shutil.copyfile(path, partial / path.name)
    return dst


def as_dtype(name: torch.dtype | str | None) -> torch.dtype | None:
    """A floating-point dtype by name.

    Raises:
        ConversionError: For anything else.
    """
    dtype = getattr(torch, name, None) if isinstance(name, str) else name
    if name is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConversionError(f"dtype {name!r} is no floating-point type of torch; e.g. 'bfloat16'")
    return dtype
