"""Compare hookedvid with another implementation on the same weights, stage by stage.

    python scripts/check_parity.py FOLDER               # recorded outputs: case.json and expected.safetensors
    python scripts/check_parity.py NAME --against HF    # a transformers model: folder or hub repository

Prints for every stage the largest difference, absolute and relative to the largest value of theirs, and the first
stage beyond the tolerance. Exit status 1 beyond it.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from hookedvid import HookedVideoLLM
from hookedvid.checkpoints.convert import convert, export
from hookedvid.checkpoints.parity import Stage, compare, first_beyond, our_stages, random_inputs, transformers_stages
from hookedvid.checkpoints.recorded import EXPECTED, Recorded
from hookedvid.errors import HookedVidError

# The same sums in another order move float32 by some 1e-6; recorded outputs are float32 whatever we run in. Half
# precision rounds at every operation, so only its kind of error can be told from a wrong model.
TOLERANCE = {"float64": 2e-6, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        if args.against is None and (Path(args.model) / EXPECTED).is_file():
            stages = against_recording(Path(args.model), args)
        else:
            stages = against_transformers(args)
    except HookedVidError as e:
        print(f"check_parity: {e}", file=sys.stderr)
        return 2
    return show(stages, args.tolerance or TOLERANCE[args.dtype], args.quiet)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="a folder with recorded outputs, or a model as from_pretrained takes it")
    parser.add_argument("--against", help="transformers model to compare with (default: the same folder or repository)")
    parser.add_argument("--frames", type=int, default=2, help="frames of noise, against transformers")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=TOLERANCE)
    parser.add_argument("--tolerance", type=float, help="relative (default: by dtype)")
    parser.add_argument("--round-trip", action="store_true", help="recorded: export what was converted, and use that")
    parser.add_argument("--quiet", action="store_true", help="only the last line")
    return parser


def against_recording(folder: Path, args: argparse.Namespace) -> list[Stage]:
    case = Recorded.load(folder)
    with tempfile.TemporaryDirectory() as work:
        converted = convert(folder, Path(work) / "ours", overrides=case.overrides, progress=False)
        if args.round_trip:
            theirs = export(converted, Path(work) / "theirs", progress=False)
            converted = convert(theirs, Path(work) / "again", overrides=case.overrides, progress=False)
        model = HookedVideoLLM.from_pretrained(converted, device=args.device, dtype=args.dtype)
        inputs = model.inputs_from_tensors(case.tokens, case.pixels, **case.processed)
        return compare(our_stages(model, inputs, case.extension), case.theirs)


def against_transformers(args: argparse.Namespace) -> list[Stage]:
    import transformers

    dtype = getattr(torch, args.dtype)
    model = HookedVideoLLM.from_pretrained(args.model, device=args.device, dtype=dtype)
    name = args.against or args.model
    config = transformers.AutoConfig.from_pretrained(name)
    hf = getattr(transformers, config.architectures[0]).from_pretrained(name, dtype=dtype).to(args.device).eval()
    inputs = random_inputs(model, args.frames)
    return compare(our_stages(model, inputs), transformers_stages(hf, inputs))


def show(stages: Sequence[Stage], tolerance: float, quiet: bool) -> int:
    console = Console()
    table = Table(box=None)
    for column in ("stage", "largest difference", "relative"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for s in stages:
        table.add_row(s.name, f"{s.absolute:.2e}", f"{s.relative:.2e}" + ("" if s.relative <= tolerance else " !"))
    if not quiet:
        console.print(table)
    beyond = first_beyond(stages, tolerance)
    worst = max(s.relative for s in stages)
    if beyond is None:
        console.print(f"{len(stages)} stages agree within {tolerance:.0e} (largest relative difference {worst:.1e})")
        return 0
    console.print(f"first stage beyond {tolerance:.0e}: {beyond.name} ({beyond.relative:.1e}; worst {worst:.1e})")
    return 1


if __name__ == "__main__":
    sys.exit(main())
