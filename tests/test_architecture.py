"""The floors of the design: who may import whom, how long a file or a function may be, what imports stay light."""

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
VALUES = {"errors", "files", "values", "config", "layout", "interventions", "masks", "families"}
FACES = ("plots", "report", "scores", "measured", "accuracy", "progress", "faces", "model_list", "cli", "lmms")
OUTER = ("data", "study", *FACES)
# Modules that may import what an extra declares.
EXTRAS = {"hookedvid.lmms": "lmms-eval", "hookedvid.study.run.cluster": "cluster"}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def is_typing(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(module: str, inside_functions: bool = True) -> set[str]:
    """Full names of the modules a module imports; those for type checking alone are left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if is_typing(node) or (not inside_functions and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            return
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [f"{node.module}.{a.name}" for a in node.names]
            found.update(n if n in FILES else str(node.module) for n in names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree(module))
    return found


def part(module: str) -> str:
    """`nn` of hookedvid.nn.attention, `model` of hookedvid.model.hooked_video_llm; empty outside the package."""
    names = module.split(".")
    return names[1] if names[0] == "hookedvid" and len(names) > 1 else ""


def of(*parts: str) -> list[str]:
    return [m for m in FILES if part(m) in parts]


def test_values_import_the_standard_library_torch_jaxtyping_and_each_other():
    outside = {"torch", "jaxtyping", *sys.stdlib_module_names}
    for module in of(*VALUES):
        for name in imports(module):
            assert name.split(".")[0] in outside or part(name) in VALUES, f"{module} imports {name}"


def test_transformer_lens_enters_by_one_file():
    users = [m for m in FILES if any(n.split(".")[0] == "transformer_lens" for n in imports(m))]
    assert users == ["hookedvid.nn.hooks"]


def test_modules_and_tables_stand_on_values_alone_and_not_on_each_other():
    for floor in ("nn", "conversion"):
        for module in of(floor):
            inside = {part(n) for n in imports(module) if n.startswith("hookedvid")}
            assert inside <= VALUES | {floor}, f"{module} imports {inside - VALUES - {floor}}"


def test_the_model_and_its_inputs_know_nothing_of_experiments():
    for module in FILES:
        if part(module) not in (*OUTER, ""):
            up = {n for n in imports(module) if part(n) in OUTER}
            assert not up, f"{module} imports {up}"


def test_data_and_study_meet_in_the_item_alone():
    for module in of("data"):
        assert not any(part(n) == "study" for n in imports(module)), module
    for module in of("study"):
        assert {n for n in imports(module) if part(n) == "data"} <= {"hookedvid.data.item"}, module


def test_experiments_know_nothing_of_the_faces():
    for module in of("data", "study"):
        assert not any(part(n) in FACES for n in imports(module)), module


def test_nothing_imports_the_command_line_and_only_it_imports_its_verbs():
    for module in FILES:
        assert not any(part(n) == "cli" for n in imports(module)), module
        if part(module) not in ("cli", "faces", "model_list"):
            assert not any(part(n) in ("faces", "model_list") for n in imports(module)), module
    assert imports("hookedvid.cli.commands", inside_functions=False) & set(FILES) == {"hookedvid.errors"}


def test_nothing_imports_the_client_of_lmms_eval():
    for module in FILES:
        assert part(module) == "lmms" or not any(part(n) == "lmms" for n in imports(module)), module


def test_no_module_imports_itself_by_way_of_others():
    graph = {m: imports(m, inside_functions=False) & set(FILES) for m in FILES}
    while leaves := [m for m, needs in graph.items() if not needs]:
        graph = {m: needs - set(leaves) for m, needs in graph.items() if m not in leaves}
    assert not graph, f"a cycle among {sorted(graph)}"


def test_every_package_imported_is_declared():
    """What an extra declares is imported by its part alone, which says how to install it where it is missing."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {part: named(project["optional-dependencies"][e]) for part, e in EXTRAS.items()}
    distributions = {"google": "protobuf", "PIL": "pillow", "open_clip": "open_clip_torch"}
    known = {"hookedvid", *sys.stdlib_module_names}
    for module in FILES:
        declared = named(project["dependencies"])
        declared |= {n for part, names in extras.items() if module.startswith(part) for n in names}
        for name in {n.split(".")[0] for n in imports(module)} - known:
            assert distributions.get(name, name).lower() in declared, f"{module} imports {name}"


def named(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~! ]", r)[0].lower().replace("-", "_") for r in requirements}


@pytest.mark.parametrize("module", FILES)
def test_files_and_functions_fit_a_reader(module):
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} of {module}"


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
