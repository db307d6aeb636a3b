"""The command line: `hookedvid study`, `ask`, `convert` and others. Verbs import what they need when they run."""

import argparse
import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from hookedvid.errors import HookedVidError

TABLES, FIGURES = ("text", "latex"), ("pdf", "svg")  # what --format names; figures are png as well


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; errors of the user or the machine print as one line, with exit status 2."""
    arguments = vars(_parser().parse_args(argv))
    verb, run, formats = arguments.pop("verb"), arguments.pop("run"), arguments.pop("formats", ())
    if "figures" in arguments:
        arguments["figures"] = tuple(f for f in dict.fromkeys(formats) if f in FIGURES)
    from hookedvid.report.terminal import Output
    from hookedvid.values.texts import printable

    with redirect_stdout(Output(sys.stdout, "latex" if "latex" in formats else "text")):
        try:
            return run(**arguments)
        except HookedVidError as e:
            message = str(e)
        except OSError as e:  # the machine's: a full disk, a folder that may not be written to
            message = f"{e.strerror}: {os.fsdecode(e.filename)}" if isinstance(e.filename, str | bytes) else str(e)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    print(f"hookedvid {verb}: {printable(message)}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, as text."""

    def error(self, message: str) -> NoReturn:
        from hookedvid.values.texts import printable

        self.exit(2, f"{self.prog}: {printable(message)} (see {self.prog} --help)\n")


class _Fields(argparse.Action):
    """FIELD=VALUE, however often: a dict of them."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, getattr(namespace, self.dest) | dict([values]))


def _from(module: str, name: str) -> Callable[..., int]:
    """A verb's function, imported when it runs; its parameters are the parser's, by name."""

    def run(**arguments: Any) -> int:
        return getattr(importlib.import_module(f"hookedvid.{module}"), name)(**arguments)

    return run


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hookedvid",
        description="Video-LLMs as one fully hooked PyTorch model: knockout studies and more.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    _add_study(verbs)

    _add_questions(verbs)

    _add_collect(verbs)

    plot = verbs.add_parser("plot", help="table, plots and report of a finished study once more")
    plot.add_argument("out", metavar="folder", type=Path, help="the study's --out folder")
    _add_format(plot, figures=True)
    plot.set_defaults(run=_from("cli.verbs", "plot"))

    inspect = verbs.add_parser("inspect", help="a model's parts, and its hook points")
    inspect.add_argument("name", metavar="model", nargs="?", default="tiny")
    inspect.add_argument("--hooks", action="store_true", help="list every hook point")
    inspect.set_defaults(run=_from("cli.verbs", "inspect"))

    check = verbs.add_parser(
        "check-data",
        help="what is there of a downloaded dataset, what is missing; what is wrong in your own items.jsonl",
    )
    check.add_argument(
        "name", help="a published dataset, parts after colons as in videomme:long:subtitles; or your own file, x.jsonl"
    )
    check.add_argument("folder", type=Path, nargs="?", help="where the dataset was downloaded to")
    _add_format(check)
    check.set_defaults(run=_from("cli.verbs", "check_data"))
    _add_scores(verbs)
    _add_weights(verbs)
    return parser


def _add_questions(verbs: Any) -> None:
    ask = verbs.add_parser("ask", help="ask one question about one video, with and without knockouts")
    ask.add_argument("video", help="a video file or a folder of frames")
    ask.add_argument("question")
    _add_question(ask)
    ask.set_defaults(run=_from("cli.verbs", "ask"))

    view = verbs.add_parser("view", help="a page of one question, or of a study's: frames, attention, effects, lens")
    view.add_argument("video", help="a video file, a folder of frames; without a question, a study's --out folder")
    view.add_argument("question", nargs="?")
    _add_question(view)
    view.add_argument("--answer", metavar="LETTER", help="the right option, where it is known")
    view.add_argument("--items", nargs="+", default=[], metavar="ID", help="of a study: which (default: its examples)")
    view.add_argument("--attention-of", dest="queries", action="append", default=[], metavar="SELECTOR",
        help="also where these positions look, on average; repeatable",
    )  # fmt: skip
    view.add_argument("--budget", type=_megabytes, default=20_000_000, metavar="MB", help="of a page (default: 20)")
    view.add_argument("--out", type=Path, help="the page (default: view.html; a study's go into its folder)")
    view.set_defaults(run=_from("cli.verbs", "view"), name=None)  # a study has its own


def _add_question(verb: argparse.ArgumentParser) -> None:
    """Who is asked, and under what."""
    verb.add_argument("options", nargs="*", help="answers to choose from; none: a free answer")
    verb.add_argument("--model", dest="name", metavar="MODEL", default="tiny")
    verb.add_argument(
        "--frames", dest="n_frames", metavar="FRAMES", type=_count,
        help="how many frames to sample (default: the model's)",
    )  # fmt: skip
    verb.add_argument(
        "--under", dest="conditions", action="append", default=[], metavar="INTERVENTIONS",
        help='"LV-K @ 4:8 heads 0,3 weight 0.5", "drop @ 2 keep 0.5 by attention", several joined by ";", layers '
        "0-based; repeatable, one condition each",
    )  # fmt: skip
    verb.add_argument("--device")
    verb.add_argument("--dtype", help="bfloat16, float32, … (default: as stored)")
    _add_override(verb)


def _add_collect(verbs: Any) -> None:
    collect = verbs.add_parser("collect", help="activations of every item, kept in a folder (hookedvid.Activations)")
    collect.add_argument("items", type=Path, help="the questions, items.jsonl")
    collect.add_argument(
        "--hooks", nargs="+", required=True, metavar="NAME", help="resid_post, blocks.3.attn.hook_z, …"
    )
    collect.add_argument("--at", default="all", metavar="SELECTOR", help="which positions (default: all)")
    collect.add_argument("--pool", choices=("mean", "frame", "last"), help="one row an item, or a frame (default: all)")
    collect.add_argument("--out", type=Path, default=Path("activations"), help="folder (and resuming)")
    collect.add_argument("--store", metavar="DTYPE", help="rows are kept as (default: the model's)")
    collect.add_argument("--batch", type=_count, default=1, metavar="N", help="items of one run (default: 1)")
    collect.add_argument("--model", dest="name", metavar="MODEL", default="tiny")
    collect.add_argument("--frames", dest="n_frames", type=_count, metavar="FRAMES", help="default: the model's")
    collect.add_argument("--under", metavar="INTERVENTIONS", help='"LV-K @ 4:8", "reversed", several joined by ";"')
    collect.add_argument("--device")
    collect.add_argument("--dtype", help="bfloat16, float32, … (default: as stored)")
    collect.add_argument("--retry-failed", action="store_true", help="run failed items once more")
    _add_override(collect)
    collect.set_defaults(run=_from("cli.verbs", "collect_items"))


def _add_study(verbs: Any) -> None:
    study = verbs.add_parser("study", help="ask every question under every knockout: table, plots, report")
    study.add_argument(
        "file", nargs="?", type=Path, help="a study file (TOML); default: the whole study on the tiny model"
    )
    study.add_argument("--dataset", help="ask a published dataset (parts after colons: videomme:long)")
    study.add_argument("--data", type=Path, help="the folder that the dataset was downloaded to")
    study.add_argument("--model", help="another model than the file's: a name (hookedvid models), a folder")
    study.add_argument(
        "--task", choices=("questions", "captions", "answers", "grounding"),
        help="what to ask of the shapes clips, scored by letters, likelihood of the reference, or overlap of spans",
    )  # fmt: skip
    study.add_argument(
        "--protocol", action="append", default=[], help="only this one (repeatable): baseline, cumulative, …"
    )
    study.add_argument(
        "--out", type=Path, default=Path("runs/study"), help="folder for rows, tables, plots (and resuming)"
    )
    study.add_argument("--limit", type=_count, help="only the first so many questions")
    study.add_argument("--device", help="cpu, cuda, … (default: cpu)")
    study.add_argument("--plan", action="store_true", help="print what it will take, and run nothing")
    _add_format(study, figures=True)
    _add_execution(study)
    study.set_defaults(run=_study)


def _add_scores(verbs: Any) -> None:
    rescore = verbs.add_parser("rescore", help="read a finished study's generated texts by another rule, without model")
    rescore.add_argument("out", metavar="folder", type=Path, help="the study's --out folder")
    rescore.add_argument(
        "--extractor", dest="name", required=True, metavar="NAME",
        help="lmms-eval@2026-04, official, leading-letter@1, …",
    )  # fmt: skip
    _add_format(rescore)
    rescore.set_defaults(run=_from("cli.verbs", "rescore"))

    submission = verbs.add_parser("submission", help="a finished study's file for the server that knows the answers")
    submission.add_argument("out", metavar="folder", type=Path, help="the study's --out folder")
    submission.add_argument("--condition", default="baseline", help='whose answers, e.g. "LV-K all layers"')
    submission.set_defaults(run=_from("cli.verbs", "submit"))


def _add_execution(study: argparse.ArgumentParser) -> None:
    """What changes no number: where rows are computed, how videos are decoded, which failures are tried again."""
    study.add_argument("--shard", default="0/1", help="only this part of the videos, e.g. 0/8; parts share --out")
    study.add_argument(
        "--ray", default="", metavar="ADDRESS",
        help="run on a Ray cluster, one model a GPU (--device cuda) or CPU; local: on this machine, without a server",
    )  # fmt: skip
    study.add_argument("--actors", type=_count, metavar="N", help="with --ray: at most so many models at once")
    study.add_argument(
        "--decoders", type=_count, metavar="N", help="decoding processes (default: 2, 1 on a single core)"
    )
    study.add_argument(
        "--decode-limit", type=_seconds, default=300.0, metavar="SECONDS",
        help="a clip that takes longer to decode is a failed row (default: 300)",
    )  # fmt: skip
    study.add_argument(
        "--frame-cache", type=_size, default=10.0, metavar="GB",
        help="how much of sampled frames to keep on disk for later runs, in HOOKEDVID_HOME (default: 10; 0: none)",
    )  # fmt: skip
    study.add_argument(
        "--retry-failed", action="store_true", help="run all failed rows again, not only those whose cause may pass"
    )


def _add_weights(verbs: Any) -> None:
    models = verbs.add_parser("models", help="the published models known by name")
    _add_format(models)
    models.set_defaults(run=_from("cli.model_list", "models"))

    convert = verbs.add_parser("convert", help="a checkpoint of the original packages or transformers into our layout")
    convert.add_argument("source", help="a name (hookedvid models), a hub repository or a folder")
    convert.add_argument("folder", type=Path, help="where to; must not exist, or be empty")
    convert.add_argument("--dtype", help="bfloat16, float32, … (default: as stored)")
    convert.add_argument("--revision", help="branch, tag or commit of a hub repository")
    _add_override(convert, "a field of our config over what the checkpoint says, e.g. vision.n_heads=4; repeatable")
    convert.add_argument(
        "--ignore", action="append", default=[], metavar="FIELD", help="a field of its config.json that changes nothing"
    )
    convert.set_defaults(run=_from("cli.verbs", "convert"))

    export = verbs.add_parser("export", help="a converted checkpoint back into the layout it came from")
    export.add_argument("folder", type=Path, help="what hookedvid convert wrote")
    export.add_argument("out", type=Path, help="where to; must not exist, or be empty")
    export.set_defaults(run=_from("cli.verbs", "export"))


def _add_format(parser: argparse.ArgumentParser, figures: bool = False) -> None:
    """How printed tables look and, where a study's figures are drawn, as which files these are written."""
    known = (*TABLES, *FIGURES) if figures else TABLES
    drawn = "; pdf, svg: figures as these files too, beside png; several joined by commas" if figures else ""
    parser.add_argument(
        "--format", dest="formats", type=lambda text: _formats(text, known), default=(), metavar="FORMAT",
        help=f"latex: printed tables for LaTeX (booktabs; all else that is printed is a comment then){drawn}",
    )  # fmt: skip
    if figures:
        parser.set_defaults(figures=())


def _formats(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Words joined by commas."""
    formats = tuple(text.split(","))
    if unknown := [f for f in formats if f not in known]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no format; there are {', '.join(known)}")
    return formats


def _add_override(parser: argparse.ArgumentParser, help: str | None = None) -> None:
    parser.add_argument(
        "--override", dest="overrides", action=_Fields, default={}, metavar="FIELD=VALUE", type=_override, help=help
    )


def _count(text: str) -> int:
    """A whole number of 1 or more, in ASCII digits."""
    if not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    """A time above 0 that ends."""
    if not 0 < (value := _number(text)) <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0 and up to a million")
    return value


def _size(text: str) -> float:
    """A number of 0 or more."""
    if not 0 <= (value := _number(text)) <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 0 or more")
    return value


def _megabytes(text: str) -> int:
    """A size in bytes, of megabytes."""
    return int(1e6 * _size(text))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # which lies within no bounds


def _override(text: str) -> tuple[str, Any]:
    """`field=value` with a JSON value, or a bare word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _study(
    file: Path | None, out: Path, limit: int | None, device: str | None, protocol: list[str], model: str | None,
    plan: bool, dataset: str | None, data: Path | None, task: str | None, shard: str, retry_failed: bool,
    decoders: int | None, decode_limit: float, frame_cache: float, ray: str, actors: int | None,
    figures: Sequence[str],
) -> int:  # fmt: skip
    from hookedvid.checkpoints.locate import home
    from hookedvid.cli.verbs import run_study
    from hookedvid.study.records import Shard
    from hookedvid.study.run.execution import Execution
    from hookedvid.video.clip_files import FrameCache
    from hookedvid.video.decoders import Limits

    cache = FrameCache(home() / "frames", int(frame_cache * 1e9)) if frame_cache > 0 else None
    how = Execution(Shard.parse(shard), retry_failed, decoders, Limits(decode_limit), cache, ray=ray, actors=actors)
    return run_study(file, out, limit, device, protocol, model, plan, (dataset, data), task, how, figures)
