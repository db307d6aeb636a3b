"""How the source is laid out, in numbers: `python scripts/house.py [--where] [REVISION]`.

What is counted:
- modules at the root of the package;
- circles: groups of modules that import each other, imports inside functions included;
- `isinstance` (or `match`) over a kind of intervention, outside of the kinds' own module;
- comparisons with a family's or a scoring's name, outside of their own files: `==`, `in`, `match`, keys of a dict;
- parameters `model: Any`;
- public top-level names that several modules define;
- lines: of the longest file, of the longest function, of all.

With a git revision: that one's numbers in front. `--where`: the places behind each number.
"""

import argparse
import ast
import io
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = "hookedvid"
KINDS = {"Knockout", "RandomEdges", "Replace", "Patch", "Edit", "Ablate", "Steer", "EarlyExit"}
KIND_HOMES = ("values.interventions", "values.edges", "values.effects", "values.writes", "interventions")
FAMILIES = {
    "longva", "llava-onevision", "llava-video", "llava-next-video", "llava-next-video-qwen", "internvideo2.5",
}  # fmt: skip
FAMILY_HOMES = ("families", "published")
SCORINGS = {"letters", "words", "generate", "likelihood", "grounding"}
SCORING_HOMES = ("study.scorings", "study.scoring", "study.grounding", "data.shapes")  # whose tasks have such names


class Count(NamedTuple):
    """One line of the table: what is counted, how many, and where."""

    what: str
    n: int
    where: list[str]


@dataclass(frozen=True)
class House:
    """The modules of a source tree by their name inside the package (`nn.attention`), with their text."""

    texts: Mapping[str, str]

    @classmethod
    def here(cls) -> "House":
        """The tree of this checkout."""
        package = ROOT / "src" / PACKAGE
        return cls({_module(p.relative_to(package)): p.read_text(encoding="utf-8") for p in package.rglob("*.py")})

    @classmethod
    def at(cls, revision: str) -> "House":
        """The tree of a git revision. Raises subprocess.CalledProcessError for one that git does not know."""
        packed = subprocess.run(["git", "-C", ROOT, "archive", revision, "src"], check=True, capture_output=True).stdout
        package, texts = Path("src", PACKAGE), {}
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            for member in archive:
                path = Path(member.name)
                if path.suffix == ".py" and package in path.parents and (file := archive.extractfile(member)):
                    texts[_module(path.relative_to(package))] = file.read().decode()
        return cls(texts)

    def counts(self) -> list[Count]:
        """All lines of the table."""
        trees = {name: ast.parse(text) for name, text in self.texts.items()}
        nodes = {name: list(ast.walk(tree)) for name, tree in trees.items()}
        root = [m or "__init__" for m in trees if "." not in m and not self._is_package(m)]
        named = {"family": (FAMILIES, FAMILY_HOMES), "scoring": (SCORINGS, SCORING_HOMES)}
        counted = {
            f"comparisons with a {what}'s name": _outside(nodes, homes, lambda node, n=names: _compares(node, n))
            for what, (names, homes) in named.items()
        }
        lists = {
            "modules at the root": root,
            "circles of imports": circles(trees),
            "isinstance over kinds of intervention": _outside(nodes, KIND_HOMES, _asks_kind),
            **counted,
            "model: Any": _outside(nodes, (), _takes_any_model),
            "public names defined twice": _twice(trees),
        }
        files = sorted((len(text.splitlines()), m or "__init__") for m, text in self.texts.items())
        functions = sorted(f for m, some in nodes.items() for f in _functions(m, some))
        return [
            *(Count(what, len(where), sorted(where)) for what, where in lists.items()),
            Count("lines of the longest file", files[-1][0], [files[-1][1]]),
            Count("lines of the longest function", functions[-1][0], [functions[-1][1]]),
            Count("lines", sum(n for n, _ in files), []),
        ]

    def _is_package(self, module: str) -> bool:
        return any(m.startswith(f"{module}.") for m in self.texts) and module != ""


def _module(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def imported(node: ast.AST, modules: Mapping[str, object]) -> set[str]:
    """The package's modules that a piece of source imports, inside functions too; for type checking alone: none."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return set()
    names = {n for child in ast.iter_child_nodes(node) for n in imported(child, modules)}
    if isinstance(node, ast.Import):
        names.update(_inside(a.name) for a in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = _inside(node.module or "")
        names.update(full if (full := f"{module}.{a.name}".strip(".")) in modules else module for a in node.names)
    return {n for n in names if n in modules}


def _inside(name: str) -> str:
    """A module's name inside the package; one outside keeps a name that no module here has."""
    return "" if name == PACKAGE else name.removeprefix(f"{PACKAGE}.") if name.startswith(f"{PACKAGE}.") else f"!{name}"


def circles(trees: Mapping[str, ast.Module]) -> list[str]:
    """Groups of modules that import each other, one line each, names in alphabetical order."""
    graph = {m: imported(tree, trees) - {m} for m, tree in trees.items()}
    groups: dict[str, set[str]] = {m: {m} for m in graph}
    while True:
        joined = {m: groups[m] for m in graph}
        merged = {id(g): {id(groups[n]) for m in g for n in graph[m]} - {id(g)} for g in joined.values()}
        try:
            TopologicalSorter(merged).prepare()
        except CycleError as e:
            ids = set(e.args[1])
            whole = set().union(*(g for g in joined.values() if id(g) in ids))
            groups.update(dict.fromkeys(whole, whole))
        else:
            return sorted({", ".join(sorted(g)) for g in joined.values() if len(g) > 1})


def _outside(nodes: Mapping[str, list[ast.AST]], homes: tuple[str, ...], asks: Callable[[ast.AST], bool]) -> list[str]:
    """Places outside of some modules (and of packages by those names) where `asks(node)` holds."""
    return [
        f"{module}:{node.lineno}"
        for module, some in nodes.items()
        if not any(module == home or module.startswith(f"{home}.") for home in homes)
        for node in some
        if asks(node) and isinstance(node, ast.expr | ast.arg | ast.pattern)
    ]


def _asks_kind(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "issubclass"):
        return bool({_last(n) for n in ast.walk(node.args[1])} & KINDS)
    return isinstance(node, ast.MatchClass) and _last(node.cls) in KINDS


def _last(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _compares(node: ast.AST, names: set[str]) -> bool:
    match node:
        case ast.Compare():
            sides = [node.left, *node.comparators]
        case ast.Dict():
            sides = [key for key in node.keys if key is not None]
        case ast.MatchValue():
            sides = [node.value]
        case _:
            return False
    items = [i for side in sides for i in (side.elts if isinstance(side, ast.Tuple | ast.List | ast.Set) else [side])]
    return any(isinstance(i, ast.Constant) and i.value in names for i in items)


def _takes_any_model(node: ast.AST) -> bool:
    return isinstance(node, ast.arg) and node.arg == "model" and ast.unparse(node.annotation or node) == "Any"


def _twice(trees: Mapping[str, ast.Module]) -> list[str]:
    where: dict[str, list[str]] = defaultdict(list)
    for module, tree in trees.items():
        for name in {n for node in tree.body for n in _defined(node) if not n.startswith("_")}:
            where[name].append(module or "__init__")
    return [f"{name}: {', '.join(sorted(modules))}" for name, modules in where.items() if len(modules) > 1]


def _defined(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name
        case ast.Assign():
            yield from (t.id for target in node.targets for t in ast.walk(target) if isinstance(t, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name


def _functions(module: str, nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or 0) - node.lineno + 1, f"{module}.{node.name}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("revision", nargs="?", help="a git revision to compare with")
    parser.add_argument("--where", action="store_true", help="print the places too")
    asked = parser.parse_args(arguments)
    now = House.here().counts()
    before = House.at(asked.revision).counts() if asked.revision else None
    for i, count in enumerate(now):
        old = f"{before[i].n:>8,} → " if before else ""
        print(f"{count.what:<40}{old}{count.n:>8,}")
        if asked.where:
            print(*(f"    {place}" for place in count.where), sep="\n")


if __name__ == "__main__":
    main()
