"""The whole house: which way imports go, what stands where, and what no file may do."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import zsmld

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "zsmld"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "_bundled" not in path.parts)

# DESIGN, section 2: a module imports from its own step or from those before it.
STEPS = [
    {"resources", "processes", "display", "reading", "writing"},
    {"decoder", "losses", "metrics", "augmentation", "text", "images", "vocabulary"},
    {"datasets", "protocols", "model", "baseline"},
    {"scoring", "calibration", "features", "predictor", "evaluator", "report", "attention"}
    | {"export", "interop", "estimator"},
    {"trainer"},
    {"recipe"},
    {"demo"},
    {"cli", "web"},
]
STEP_OF = {module: step for step, modules in enumerate(STEPS) for module in modules}
ENTRANCES = {"__init__", "__main__"}  # they open doors of every step


def module_of(path: Path) -> str:
    """The top module a file belongs to: "text" for zsmld/text.py, "datasets" for zsmld/datasets/coco.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names a file imports, wherever in the file; `from zsmld import X` counts as the module X lives in."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "zsmld":
                for alias in node.names:
                    name = zsmld._PUBLIC.get(alias.name, alias.name)
                    yield f"zsmld.{name}"
            else:
                yield str(node.module)


def own_imports(path: Path) -> set[str]:
    """Modules of zsmld that a file imports, other than its own; the version is no module."""
    found = {name.split(".")[1] for name in imports_of(path) if name.startswith("zsmld.")}
    return found - {module_of(path), "__version__"}


def test_the_files_are_there() -> None:
    assert len(FILES) >= 20
    assert {module_of(path) for path in FILES} - ENTRANCES <= set(STEP_OF), "a new module needs its step in DESIGN"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    module = module_of(path)
    if module in ENTRANCES:
        return
    later = {name for name in own_imports(path) if STEP_OF[name] > STEP_OF[module]}
    assert not later, f"{module} imports {sorted(later)} of a later step"


def test_imports_form_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        if module_of(path) not in ENTRANCES:
            graph.setdefault(module_of(path), set()).update(own_imports(path))
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("vocabulary") < order.index("model") < order.index("cli")


@pytest.mark.parametrize("module", ["decoder", "losses", "metrics", "augmentation"])
def test_the_mathematics_needs_torch_and_numpy_only(module: str) -> None:
    paths = [path for path in FILES if module_of(path) == module]
    assert paths
    names = {name for path in paths for name in imports_of(path) if not name.startswith(f"zsmld.{module}")}
    roots = {name.split(".")[0] for name in names}
    assert roots - set(sys.stdlib_module_names) <= {"torch", "numpy"}


def test_import_loads_nothing_heavy() -> None:
    heavy = (
        "torch torchvision timm open_clip sentence_transformers transformers numpy scipy pandas sklearn PIL matplotlib"
    )
    code = (
        f"import sys; before = set(sys.modules); import zsmld; dir(zsmld); zsmld.__version__; "
        f"print([m for m in {heavy.split()!r} if m in sys.modules], "
        f"sorted(m for m in set(sys.modules) - before if m.startswith('zsmld')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[] ['zsmld']"


def test_public_names() -> None:
    assert 0 < len(zsmld.__all__) <= 12
    assert set(zsmld.__all__) == set(zsmld._PUBLIC) and len(set(zsmld.__all__)) == len(zsmld.__all__)
    for name in zsmld.__all__:
        assert getattr(zsmld, name).__name__ == name
        assert name in dir(zsmld)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", zsmld.__version__)
    with pytest.raises(AttributeError, match="module 'zsmld' has no attribute 'predictr'"):
        _ = zsmld.predictr


def test_names_for_type_checkers_are_the_public_ones() -> None:
    checked = {
        alias.name: node.module
        for outer in tree_of(PACKAGE / "__init__.py").body
        if isinstance(outer, ast.If)
        for node in outer.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert checked == {name: f"zsmld.{module}" for name, module in zsmld._PUBLIC.items()}


# -------------------------------------------------------------------------------------------------- every single file


def arguments_of(node: ast.FunctionDef) -> list[str]:
    """Names of the arguments, in order, without self and those with an underscore in front."""
    every = [*node.args.posonlyargs, *node.args.args]
    every += [node.args.vararg] if node.args.vararg else []
    every += node.args.kwonlyargs + ([node.args.kwarg] if node.args.kwarg else [])
    return [a.arg for a in every if a.arg not in ("self", "cls") and not a.arg.startswith("_")]


def explained_lines(docstring: str | None) -> list[list[str]]:
    """Names in the section Args, in order; several may share a line."""
    section = re.search(r"^Args:\n((?:    .*\n?|\n)+)", docstring or "", re.MULTILINE)
    lines = re.findall(r"^    ([*\w][\w*, ]*?):", section.group(1), re.MULTILINE) if section else []
    return [[name.strip(" *") for name in line.split(",")] for line in lines]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
class TestEveryFile:
    def test_is_short(self, path: Path) -> None:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 420

    def test_has_a_telling_name(self, path: Path) -> None:
        parts = {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts}
        assert not parts & {"utils", "util", "common", "helpers", "helper", "base", "misc", "core"}

    def test_is_documented(self, path: Path) -> None:
        tree = tree_of(path)
        missing = [] if ast.get_docstring(tree) else ["the module"]
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                inner = node.body if isinstance(node, ast.ClassDef) else []
                methods = [n for n in inner if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
                missing += [f"{node.name}.{n.name}" for n in (node, *methods) if not ast.get_docstring(n)]
        assert not missing

    def test_docstrings_explain_the_arguments_that_are_there(self, path: Path) -> None:
        wrong = []
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                made = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
                fields = [
                    n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
                ]
                there = [*fields, *(arguments_of(made[0]) if made else [])]
            elif isinstance(node, ast.FunctionDef):
                there = arguments_of(node)
            else:
                continue
            explained = {name for line in explained_lines(ast.get_docstring(node)) for name in line} - {"self", "cls"}
            public = not node.name.startswith("_")
            if explained and explained - set(there):
                wrong.append(f"{node.name} explains {sorted(explained - set(there))}, which are not there")
            if explained and public and isinstance(node, ast.FunctionDef) and set(there) - explained:
                wrong.append(f"{node.name} leaves out {sorted(set(there) - explained)}")
            if isinstance(node, ast.FunctionDef):
                places = [there.index(line[0]) for line in explained_lines(ast.get_docstring(node)) if line[0] in there]
                if places != sorted(places):
                    wrong.append(f"{node.name} explains in another order than {there}")
        assert not wrong

    def test_does_not_print_or_leave_or_swallow(self, path: Path) -> None:
        module, wrong = module_of(path), []
        for node in ast.walk(tree_of(path)):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.id if isinstance(called, ast.Name) else ""
            if name == "print" and module not in ("cli", "demo"):
                wrong.append(f"line {node.lineno}: print")
            if name in ("exit", "quit", "eval", "exec", "breakpoint"):
                wrong.append(f"line {node.lineno}: {name}")
            if isinstance(called, ast.Attribute) and ast.unparse(called) in ("sys.exit", "os._exit", "pickle.load"):
                wrong.append(f"line {node.lineno}: {ast.unparse(called)}")
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                wrong.append(f"line {node.lineno}: bare except")
            if isinstance(called, ast.Attribute) and called.attr == "load_state_dict":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if keywords.get("strict") == "False":
                    wrong.append(f"line {node.lineno}: strict=False")
        assert not wrong

    def test_takes_no_recipe(self, path: Path) -> None:
        """No class receives a Recipe: what it needs are arguments."""
        if module_of(path) in ("recipe", "cli", "web", "demo"):
            return
        arguments = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.arg) and node.annotation]
        assert not [a.arg for a in arguments if re.search(r"\bRecipe\b", ast.unparse(a.annotation))]


def test_no_class_inherits_from_another_of_ours() -> None:
    classes = {node.name: node for path in FILES for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)}
    bases = {name: [ast.unparse(base) for base in node.bases] for name, node in classes.items()}
    assert len(bases) >= 10
    ours = set(classes) - {"Protocol"}  # typing.Protocol stands for structural types; protocols.Protocol is final
    assert not {name: found for name, found in bases.items() if set(found) & ours}


# ------------------------------------------------------------------------------------------------------ data and files


@pytest.mark.parametrize("folder", ["data", "configs"])
def test_data_and_configs_hold_files_only(folder: str) -> None:
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if path.suffix in (".py", ".pyc", ".ipynb", ".sh", ".pkl", ".pth")]


def test_recipes_open_with_four_comment_lines() -> None:
    recipes = sorted((ROOT / "configs").glob("*.yaml"))
    assert recipes and {path.suffix for path in (ROOT / "configs").iterdir()} == {".yaml"}
    for path in recipes:
        comments = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            comments.append(line)
        titles = [
            m.group(1) for m in (re.match(r"# (Source|Cost|Expected result|Command): \S", c) for c in comments) if m
        ]
        assert titles == ["Source", "Cost", "Expected result", "Command"], path.name
        assert re.fullmatch(r"[a-z0-9_]+", path.stem), path.name


def test_constraints_pin_exact_versions() -> None:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    ]
    assert lines
    wrong = [
        line for line in lines if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*", line)
    ]
    assert not wrong
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines]
    assert len(set(names)) == len(names)


def test_every_commit_is_checked_with_the_pinned_versions() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    used = re.findall(r"\[(\w+)==([\w.]+)\]", (ROOT / ".pre-commit-config.yaml").read_text())
    assert used and {name for name, _ in used} == {"ruff"}
    assert {version for _, version in used} == {pins["ruff"]}
