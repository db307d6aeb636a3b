"""The house: which room may import which, how long a file or a function may be, what imports stay light."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src"
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in ROOT.rglob("*.py")}
# Modules that may import what an extra declares.
EXTRAS = {
    "hookedvid.lmms": "lmms-eval",
    "hookedvid.study.run.cluster": "cluster",
    "hookedvid.activations.probes": "probes",
}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imported(node: ast.AST) -> set[str]:
    """Full names of the modules that a piece of source imports, inside functions too; for type checking alone: none."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return set()
    found = {n for child in ast.iter_child_nodes(node) for n in imported(child)}
    if isinstance(node, ast.Import):
        found.update(a.name for a in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{ast.unparse(node)} is relative"
        names = [f"{node.module}.{a.name}" for a in node.names]
        found.update(n if n in FILES else str(node.module) for n in names)
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """Of a module, by its full name."""
    return frozenset(imported(tree(module)))


def room(module: str) -> str:
    """`nn` of hookedvid.nn.attention; empty for the root's own files and outside of the package."""
    package, *names = module.split(".")
    return names[0] if package == "hookedvid" and names and (ROOT / package / names[0]).is_dir() else ""


@cache
def floor(room: str) -> int:
    """The number of a room's floor, which its docstring says."""
    said = re.search(r"^Floor (\d+)\.$", ast.get_docstring(tree(f"hookedvid.{room}")) or "", re.M)
    assert said, f"the docstring of hookedvid.{room} should say its floor"
    return int(said[1])


def test_the_root_holds_the_public_names_and_the_errors():
    assert {m for m in FILES if not room(m)} == {"hookedvid", "hookedvid.errors"}


def test_a_room_imports_floors_below_and_itself():
    higher = [
        f"{module} of floor {floor(here)} imports {other} of floor {floor(other)}"
        for module in FILES
        if (here := room(module))
        for other in sorted({room(n) for n in imports(module)} - {here, ""})
        if floor(other) >= floor(here)
    ]
    assert not higher, "\n".join(higher)


def test_values_import_torch_and_modules_import_values():
    for module in FILES:
        outside = {n.split(".")[0] for n in imports(module)} - {"hookedvid", *sys.stdlib_module_names}
        if room(module) == "values":
            # Tensors are stored in safetensors; frames come as numpy's arrays, and its generator orders shuffled ones.
            # What takes long shows tqdm's bar in any room.
            assert outside <= {"torch", "jaxtyping", "safetensors", "numpy", "tqdm"}, module
        if room(module) == "nn":
            assert {room(n) for n in imports(module)} <= {"nn", "values", ""}, module


def test_a_dataset_is_known_to_its_own_file_and_the_registry():
    declared = {m for m in FILES if re.search(r"^DATASET = ", FILES[m].read_text(encoding="utf-8"), re.M)}
    names = {m.rpartition(".")[2] for m in declared}
    assert len(names) >= 3
    for module in FILES.keys() - declared:
        assert not imports(module) & declared or module == "hookedvid.data.registry", module
        texts = {n.value for n in ast.walk(tree(module)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        assert not texts & names, f"{module} names {texts & names}"


def test_transformer_lens_enters_by_one_file():
    users = [m for m in FILES if any(n.split(".")[0] == "transformer_lens" for n in imports(m))]
    assert users == ["hookedvid.nn.hooks"]


def test_the_command_line_imports_its_verbs_when_they_run():
    body = tree("hookedvid.cli.commands").body
    tops = {n for node in body if isinstance(node, ast.Import | ast.ImportFrom) for n in imported(node)}
    assert tops & set(FILES) == {"hookedvid.errors"}


def test_no_module_imports_itself_by_way_of_others():
    graph = {m: set(imports(m)) & set(FILES) for m in FILES}
    while leaves := [m for m, needs in graph.items() if not needs]:
        graph = {m: needs - set(leaves) for m, needs in graph.items() if m not in leaves}
    assert not graph, f"a cycle among {sorted(graph)}"


def test_every_package_imported_is_declared():
    """What an extra declares is imported by its part alone, which says how to install it where it is missing."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {part: named(project["optional-dependencies"][e]) for part, e in EXTRAS.items()}
    distributions = {"google": "protobuf", "PIL": "pillow", "open_clip": "open_clip_torch", "sklearn": "scikit_learn"}
    known = {"hookedvid", *sys.stdlib_module_names}
    for module in FILES:
        declared = named(project["dependencies"])
        declared |= {n for part, names in extras.items() if module.startswith(part) for n in names}
        for name in {n.split(".")[0] for n in imports(module)} - known:
            assert distributions.get(name, name).lower() in declared, f"{module} imports {name}"


def named(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~! ]", r)[0].lower().replace("-", "_") for r in requirements}


def test_files_and_functions_fit_a_reader():
    long = [m for m in FILES if len(FILES[m].read_text(encoding="utf-8").splitlines()) > 450]
    for module in FILES:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                long += [f"{node.name} of {module}"] * (node.end_lineno - node.lineno >= 60)
    assert not long, f"too long: {long}"


HELP = "from hookedvid.cli.commands import main\ntry:\n main(['--help'])\nexcept SystemExit: pass"


MODELS = "from hookedvid.cli.commands import main\nmain(['models'])"


@pytest.mark.parametrize("what", ["import hookedvid", HELP, MODELS])
def test_light_imports_stay_light(what):
    heavy = ("torch", "transformers", "transformer_lens", "open_clip", "av", "matplotlib", "numpy")
    program = f"{what}\nimport sys\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert {HELP: "study", MODELS: "llava-video-7b"}.get(what, "") in done.stdout


def test_every_public_name_resolves():
    import hookedvid

    assert all(getattr(hookedvid, name) is not None for name in hookedvid.__all__)
    assert set(hookedvid.__all__) <= set(dir(hookedvid))
    with pytest.raises(AttributeError, match="module 'hookedvid' has no attribute 'HookedVideoLM'; it has "):
        hookedvid.HookedVideoLM  # noqa: B018
