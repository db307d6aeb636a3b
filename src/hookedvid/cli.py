"""The command line: `hookedvid study`, `plot`, `ask`, `inspect`. Verbs import what they need when they run."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hookedvid.errors import HookedVidError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the user's own errors print without a traceback, with exit status 2."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except HookedVidError as e:
        print(f"hookedvid {args.verb}: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hookedvid",
        description="Video-LLMs as one fully hooked PyTorch model: knockout studies and more.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    study = verbs.add_parser("study", help="ask every question under every knockout: table, plots, report")
    study.add_argument(
        "file", nargs="?", type=Path, help="a study file (TOML); default: the whole study on the tiny model"
    )
    study.add_argument("--model", help="another model than the file's: a shipped name or a folder")
    study.add_argument(
        "--protocol", action="append", default=[], help="only this one (repeatable): baseline, cumulative, …"
    )
    study.add_argument(
        "--out", type=Path, default=Path("runs/study"), help="folder for rows, tables, plots (and resuming)"
    )
    study.add_argument("--limit", type=int, help="only the first so many questions")
    study.add_argument("--device", help="cpu, cuda, … (default: cpu)")
    study.add_argument("--shard", default="0/1", help="only this part of the videos, e.g. 0/8; parts share --out")
    study.set_defaults(run=_study)

    ask = verbs.add_parser("ask", help="ask one question about one video, with and without knockouts")
    ask.add_argument("video", help="a video file or a folder of frames")
    ask.add_argument("question")
    ask.add_argument("options", nargs="*", help="answers to choose from; none: a free answer")
    ask.add_argument("--model", default="tiny")
    ask.add_argument("--frames", type=int, help="how many frames to sample (default: the model's)")
    ask.add_argument(
        "--knockout", action="append", default=[], metavar="KNOCKOUT",
        help='"LV-K @ 4:8" or "video->question @ 2:", layers 0-based; repeatable',
    )  # fmt: skip
    ask.add_argument("--device")
    ask.set_defaults(run=_ask)

    plot = verbs.add_parser("plot", help="table, plots and report of a finished study once more")
    plot.add_argument("folder", type=Path, help="the study's --out folder")
    plot.set_defaults(run=_plot)

    inspect = verbs.add_parser("inspect", help="a model's parts, and its hook points")
    inspect.add_argument("model", nargs="?", default="tiny")
    inspect.add_argument("--hooks", action="store_true", help="list every hook point")
    inspect.set_defaults(run=_inspect)
    return parser


def _study(args: argparse.Namespace) -> int:
    from hookedvid.faces import run_study
    from hookedvid.study.records import Shard

    shard = Shard.parse(args.shard)
    return run_study(args.file, args.out, args.limit, args.device, args.protocol, args.model, shard)


def _ask(args: argparse.Namespace) -> int:
    from hookedvid.faces import ask

    return ask(args.model, args.video, args.question, args.options, args.knockout, args.frames, args.device)


def _plot(args: argparse.Namespace) -> int:
    from hookedvid.faces import plot

    return plot(args.folder)


def _inspect(args: argparse.Namespace) -> int:
    from hookedvid.faces import inspect

    return inspect(args.model, args.hooks)


if __name__ == "__main__":
    sys.exit(main())
