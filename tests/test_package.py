"""What is shipped: the wheel, and a README that runs."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the tracked files, without touching the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip("not a git checkout")
    subprocess.run(["tar", "xf", "-", "-C", folder], input=archive.stdout, check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        folder,
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("zsmld-*.whl")
    return path


def test_wheel_installs_one_top_level_name(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"zsmld"}


def test_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Its data and recipes are found inside it, and the bundled model loads."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    program = (
        "import zsmld, zsmld.resources as r, zsmld.recipe as c;"
        "assert '_bundled' in str(r.resource_path('data')), r.resource_path('data');"
        "print(c.recipe_names());"
        "print(zsmld.ZeroShotClassifier.from_pretrained(r.resource_path('data', 'scenes', 'model')))"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "scenes_zsl" in ran.stdout and "ZeroShotClassifier" in ran.stdout


def test_readme_python_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    exec(compile(blocks[0], "README.md", "exec"), {})
    assert "Report('scenes_gzsl'" in capsys.readouterr().out
    exec(compile(blocks[1], "README.md", "exec"), {})
    assert "torch.Size([2, 80]) {'label': " in capsys.readouterr().out


def test_every_folder_of_the_package_is_in_the_wheel() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"])
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "zsmld").rglob("__init__.py")}
    assert folders == {name for name in listed if "._bundled" not in name}


def test_readme_links_exist() -> None:
    names = ["README.md", "CONTRIBUTING.md", "evaluation/protocols.md"]
    names += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))]
    names += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "data").glob("*/README.md"))]
    assert len(names) == 24
    for name in names:
        text = (ROOT / name).read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
        for link in links:
            assert ((ROOT / name).parent / link).exists(), f"{name} links to {link}"


@pytest.mark.parametrize(
    ("guide", "printed"),
    [
        ("training", "heldout_mean_average_precision"),
        ("zero_shot", "torch.Size([2, 2])"),
        ("scikit_learn", "(48, 2)"),
        ("prediction", "('red circle', 'green star', 'blue triangle')"),
        ("attention", "Attention(3 words, 8x8 places, 480x320px)"),
        ("speed", "torch.Size([2, 1000]) 1010"),
        ("migrate_weights", "timm head in class mode on timm:resnet18"),
        ("hub", "mAP, ZSL (unseen words)"),
        ("export", "verified against PyTorch with 1, 3, 8 images and 2 words"),
    ],
)
def test_the_guides_run(
    guide: str, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{guide}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], f"docs/{guide}.md", "exec"), {})
    assert printed in capsys.readouterr().out
