"""Trainings and reports again: the same weights, the same figures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
REPORTS = ROOT / "evaluation" / "reports"
SHORT = ("trainer.epochs=2", "trainer.steps_per_epoch=20", "dataset.num_images=200")


def run(script: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, f"evaluation/{script}.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_training_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    """The script that writes the report, on a short training of the same recipe."""
    run("reproducibility", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path), *SHORT)
    found = json.loads((tmp_path / "reproducibility.json").read_text(encoding="utf-8"))
    assert found["settings"] == list(SHORT)
    twice, shipped = found["first_and_second"], found["first_and_shipped"]
    assert twice["same_bytes"] and twice["sha256"][0] == twice["sha256"][1]
    assert twice["tensors_apart"] == 0 and twice["config_keys_apart"] == []
    assert not shipped["same_bytes"] and shipped["tensors_apart"] > 50  # it was trained longer: the comparison can tell
    assert "recipe.trainer.epochs" in shipped["config_keys_apart"]


@pytest.mark.parametrize(
    ("name", "options"),
    [("scenes_zsl", ["--picture", "demo.png"]), ("calibration_scenes", [])],
)
def test_the_figures_are_still_those_of_the_report(name: str, options: list[str], tmp_path: Path) -> None:
    """Measured anew, to the last digit that the report prints, give or take one: processors add up differently."""
    run(name, "--output", str(tmp_path), *(str(tmp_path / value) if "." in value else value for value in options))
    committed, now = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for folder in (REPORTS, tmp_path)
    )
    key = "values" if "values" in committed else "rows"
    assert numbers(now[key]) == pytest.approx(numbers(committed[key]), abs=1e-3)
    assert len(numbers(now[key])) > 20


def numbers(content: object) -> list[float]:
    """All numbers of a JSON value, in its order."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return [number for part in content for number in numbers(part)]
    return [float(content)] if isinstance(content, int | float) and not isinstance(content, bool) else []
