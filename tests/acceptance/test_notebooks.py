"""Each notebook runs from beginning to end, without network, warnings or much time, and shows what it promises."""

import resource
from pathlib import Path
from typing import Any

import pytest
from scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def rendering() -> Any:
    return load_script(ROOT / "evaluation" / "render_notebooks.py")


def seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_there_are_six() -> None:
    assert len(NOTEBOOKS) == 6


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, rendering: Any, tmp_path: Path) -> None:
    before, spent = path.read_bytes(), seconds_of_children()
    notebook = rendering.execute(path)  # a cell that fails raises, and its text is in the message
    spent = seconds_of_children() - spent
    assert path.read_bytes() == before

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 2
    assert len(list((rendering.render(notebook, path.stem, tmp_path).parent / path.stem).iterdir())) >= len(pictures)
    # Two minutes, of processor time: a machine that does other work as well is no fault of the notebook.
    assert spent <= 120, f"{path.stem} took {spent:.0f} s of processor time"
