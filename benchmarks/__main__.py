"""Write RESULTS.md: `python -m benchmarks`, from the repository's root.

Every table runs its variants in turn in one process. With --only, the other sections stay as they are.
"""

import argparse
import importlib
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.measuring import threads
from benchmarks.printing import machine

# In the order of the file. What needs a GPU is left out where there is none.
TABLES = (
    "sweep", "memory", "precision", "scaling", "exit", "hooks", "heads", "attribution", "qwen_vl", "reading",
    "structured", "records", "cuda",
)  # fmt: skip
OUT = Path(__file__).with_name("RESULTS.md")
HEAD = """# Benchmarks

Written by `python -m benchmarks`; `--only NAME …` runs some sections and leaves the others. Every section says on what
it ran. Models are random, with weights of unit gain, for queries and keys 1.6, so that attention is peaked and
knockouts move logits. Times are processor time of the process and forwards end at the last position's logits, unless a
section says otherwise. Of several rounds: the median, in brackets the range.

Elsewhere, since they need a disk or minutes of their own: [conversion](conversion.md),
[a full-size model end to end](end_to_end.md).
"""


def sections(text: str) -> dict[str, list[str]]:
    """The sections of a RESULTS.md by title, each with its heading."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        if line.startswith("## "):
            title = line.removeprefix("## ")
            found[title] = []
        if title:
            found[title].append(line)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run tables and put their sections into the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, metavar="NAME", help=", ".join(TABLES))
    parser.add_argument("--quick", action="store_true", help="toy shapes: does it run? The numbers say nothing")
    parser.add_argument("--rounds", type=int, help="in place of each table's own number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="in place of benchmarks/RESULTS.md")
    args = parser.parse_args(argv)
    if args.quick and args.out is None:
        parser.error("--quick needs --out: toy numbers must not stand where results do")
    out = args.out or OUT
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in TABLES}
    written = sections(out.read_text(encoding="utf-8")) if out.exists() else {}
    for name in args.only:
        if name == "cuda" and not torch.cuda.is_available():
            continue
        given = f"{' --quick' * args.quick}{f' --rounds {args.rounds}' if args.rounds else ''}"
        given += f" --threads {args.threads}" if args.threads > 1 else ""
        about = f"`python -m benchmarks --only {name}{given}`; {machine(args.threads)}."
        start = time.process_time()
        with threads(args.threads), torch.no_grad():
            body = modules[name].lines(args.quick, args.rounds)
        about += f" {time.process_time() - start:,.0f} s of processor time."
        title = modules[name].TITLE
        written[title] = [f"## {title}", "", about, "", *body]
        kept = [written[m.TITLE] for m in modules.values() if m.TITLE in written]
        text = "\n\n".join("\n".join(s).strip() for s in kept)
        out.write_text(f"{HEAD}\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
