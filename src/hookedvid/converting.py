"""Converting a checkpoint folder into ours, and exporting it back into the layout it came from."""

import json
import shutil
from collections.abc import Collection, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from hookedvid import __version__
from hookedvid.config import VideoLLMConfig
from hookedvid.conversion import layouts, provenance
from hookedvid.conversion.provenance import Provenance, source_files
from hookedvid.conversion.rules import match
from hookedvid.conversion.shards import CODES, DTYPES, INDEX, Shards, open_shards, read_header
from hookedvid.conversion.stream import Lines, convert_file, export_file, target
from hookedvid.errors import ConversionError
from hookedvid.sources import source_of
from hookedvid.tokenizer_files import TOKENIZER_FILES, check_tokens, load_tokenizer
from hookedvid.video.prompt import special_strings, template

PARTIAL = ".partial"  # after the name of a folder that is still being written
SPARE = 64 << 20  # bytes of disk left free beside what is written


@dataclass(frozen=True)
class Plan:
    """A conversion that was checked in full from headers alone; nothing is written yet."""

    folder: Path
    shards: Shards
    config: Mapping[str, Any]
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
    config = read_config(folder)
    shards = open_shards(folder)
    shapes = shards.shapes
    reading = layouts.read(config, shapes, overrides, ignore)
    tokenizer = load_tokenizer(folder)
    cfg = _with_tokenizer(reading.cfg, tokenizer, folder, overrides or {})
    hint = layouts.hint(None, shapes)
    lines = match(shapes, reading.table, our_shapes(cfg), str(folder), hint)
    origin = Provenance(
        source=source or str(folder),
        architecture=config["architectures"][0],
        version=__version__,
        commit=commit,
        dtype=None if dtype is None else CODES[dtype],
        overrides=dict(overrides or {}),
        ignored=tuple(sorted(ignore)),
        notes=(*reading.notes, *_tokenizer_notes(tokenizer, reading.cfg)),
        files=source_files(shards),
    )
    return Plan(folder, shards, config, cfg, lines, dtype, tokenizer, origin)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder. Raises ConversionError if it is missing or damaged."""
    path = folder / "config.json"
    if not path.is_file():
        raise ConversionError(f"{folder} has no config.json, so it is no checkpoint folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ConversionError(f"{path} is no JSON: {e}; download it again") from e
    if not isinstance(config, dict):
        raise ConversionError(f"{path} holds {type(config).__name__}, not an object; download it again")
    return config


def our_shapes(cfg: VideoLLMConfig) -> dict[str, torch.Size]:
    """Names and shapes of a model's parameters; no memory is taken."""
    from hookedvid.loading import empty_model
    from hookedvid.model import HookedVideoLLM

    return {k: p.shape for k, p in empty_model(HookedVideoLLM, cfg).named_parameters()}


def _with_tokenizer(cfg: VideoLLMConfig, tokenizer: Any, folder: Path, overrides: Mapping[str, Any]) -> VideoLLMConfig:
    """The config with what only the tokenizer tells: how many ids it has, and which one stands for video."""
    if tokenizer is None or cfg.decoder is None:
        return cfg
    if cfg.vision is not None and (wrong := check_tokens(tokenizer, special_strings(template(cfg.prompt)))):
        raise ConversionError(
            f"the tokenizer of {folder} is not the one of prompt {cfg.prompt!r}: {', '.join(map(repr, wrong))} should "
            "be one token each; copy the checkpoint's own tokenizer files"
        )
    known: dict[str, Any] = {"n_tokens": min(1 + max(tokenizer.get_vocab().values()), cfg.decoder.d_vocab)}
    if cfg.family == "internvideo2.5":
        known["placeholder_id"] = tokenizer.get_vocab().get("<IMG_CONTEXT>")
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

    src: a name (`hookedvid models`), a hub repository or a folder, in the layout of the original packages or of
    transformers. dst: a folder that does not exist yet. dtype: as stored unless given. overrides: fields of
    `VideoLLMConfig` by dotted path, over what the checkpoint says, such as {"vision.n_heads": 4}. ignore: fields
    of its config.json that change nothing. revision: of a hub repository.

    Interrupted, the same call goes on after the last finished file; nothing stands at `dst` before all does.
    Raises ConversionError, leaving nothing behind, for a checkpoint that does not fit in any part.
    """
    found = source_of(str(src), revision)
    given = {**found.overrides, **(overrides or {})}
    dst = Path(dst)
    if dst.exists():
        raise ConversionError(f"{dst} exists already; choose another folder, or remove it")
    prepared = plan(
        found.folder, dtype=as_dtype(dtype), overrides=given, ignore=ignore, source=found.name, commit=found.commit
    )
    with _partial(dst) as partial:
        origin = _resumed(prepared, partial)
        _check_space(prepared, partial, origin)
        origin = _convert_files(prepared, partial, origin, progress)
        _write_around(prepared, partial, origin)
    for note in origin.notes if progress else ():
        tqdm.write(f"note: {note}")
    return dst


def _resumed(prepared: Plan, partial: Path) -> Provenance:
    """What an interrupted run of the same conversion has finished; its files are removed if it was another."""
    if (partial / provenance.FILE).is_file():
        before = Provenance.load(partial)
        if before.plan() == prepared.origin:
            return before
    for path in partial.iterdir():
        path.unlink()
    return prepared.origin


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
    """What stands beside the weights: configs, index, tokenizer."""
    (partial / "config.json").write_text(prepared.cfg.to_json() + "\n", encoding="utf-8")
    shutil.copyfile(prepared.folder / "config.json", partial / provenance.SOURCE_CONFIG)
    if list(origin.files) != ["model.safetensors"]:
        headers = {f: read_header(partial / f) for f in origin.files}
        (partial / INDEX).write_text(provenance.index_of(headers), encoding="utf-8")
    if prepared.tokenizer is not None:
        prepared.tokenizer.save_pretrained(partial)


@contextmanager
def _partial(dst: Path):
    """A folder beside `dst` that takes its name at the end; kept when interrupted, removed on an error."""
    partial = dst.with_name(dst.name + PARTIAL)
    partial.mkdir(parents=True, exist_ok=True)
    lock = FileLock(dst.with_name(f".{dst.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConversionError(f"another process is writing {dst}; wait for it to end") from None
    try:
        yield partial
        partial.rename(dst)
    except OSError as e:
        shutil.rmtree(partial, ignore_errors=True)
        raise ConversionError(f"writing {dst} failed: {e}") from e
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def export(src: str | Path, dst: str | Path, *, progress: bool = True) -> Path:
    """Write a converted checkpoint back in the layout it came from, under its own file and tensor names.

    Weights kept in their dtype come out as the very bytes that were converted, which is checked by hash; those
    cast come out in the new dtype. Raises ConversionError for a folder `convert` did not write, or one whose
    weights have changed since.
    """
    src, dst = Path(src), Path(dst)
    origin = Provenance.load(src)
    if dst.exists():
        raise ConversionError(f"{dst} exists already; choose another folder, or remove it")
    config = json.loads((src / provenance.SOURCE_CONFIG).read_text(encoding="utf-8"))
    reading = layouts.read(config, origin.shapes, origin.overrides, origin.ignored)
    lines = match(origin.shapes, reading.table, our_shapes(reading.cfg), str(src))
    cast = None if origin.dtype is None else DTYPES[origin.dtype]
    sizes = {f: sum(e.size for e in s.header.entries) for f, s in origin.files.items()}
    with _partial(dst) as partial, _bar(sizes, list(sizes), f"exporting {src.name}", progress) as step:
        headers = {}
        for file, known in origin.files.items():
            headers[file] = provenance.cast(known.header, lines, cast)
            digest = export_file(src / file, partial / file, headers[file], lines, origin.tensors, step)
            if cast is None and digest != known.sha256:
                raise ConversionError(f"{src / file}: the exported file is not the one that was converted")
        shutil.copyfile(src / provenance.SOURCE_CONFIG, partial / "config.json")
        if list(origin.files) != ["model.safetensors"]:
            (partial / INDEX).write_text(provenance.index_of(headers), encoding="utf-8")
        for pattern in TOKENIZER_FILES:
            for path in src.glob(pattern):
                shutil.copyfile(path, partial / path.name)
    return dst


def as_dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    """A floating-point dtype by name. Raises ConversionError for anything else."""
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if given is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ConversionError(f"dtype {given!r} is no floating-point type of torch; e.g. 'bfloat16'")
    return found
