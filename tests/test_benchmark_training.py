"""The benchmark of training: its reference does the same work as ours, and the script writes what it says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import load_script

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "evaluation" / "benchmark_training.py"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    return load_script(SCRIPT)


@pytest.mark.parametrize("number", range(5), ids=["words", "more words", "classes", "groups", "whole model"])
def test_losses_gradients_and_steps_of_the_reference_are_ours(benchmark: Any, number: int, tmp_path: Path) -> None:
    case = benchmark.TINY_CASES[number]
    ours, batch, reference, pair = benchmark.build(case, tmp_path, torch.device("cpu"), "fp32", dropout=0.0)
    for module in [*ours.run.model.modules(), *reference.model.modules()]:
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)  # timm starts some at 0, through which nothing flows back
    torch.testing.assert_close(reference.backward(*pair).double(), ours.backward(batch), rtol=1e-5, atol=0)
    compared = list(benchmark.gradients(case, ours, reference))
    trained = sum(p.numel() for p in reference.model.parameters() if p.requires_grad)
    assert sum(a.numel() for _, a, _ in compared) == trained  # all of them
    assert trained == sum(p.numel() for p in ours.weights.trained.parameters() if p.requires_grad)
    for name, mine, theirs in compared:
        assert theirs.abs().max() > 0 or "in_proj_bias" in name, name
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5 * float(theirs.abs().max()) + 1e-7, msg=name)
    reference.model.head.looped = False
    torch.testing.assert_close(reference.backward(*pair).double(), ours.backward(batch), rtol=1e-5, atol=0)
    ours.optimizer.zero_grad()
    for _ in range(3):  # the optimiser's work is the same, too
        reference.step(*pair)
        ours.step(batch)
    torch.testing.assert_close(reference.backward(*pair).double(), ours.backward(batch), rtol=1e-4, atol=0)


def test_different_work_is_not_timed(benchmark: Any, tmp_path: Path) -> None:
    case = benchmark.TINY_CASES[0]
    ours, batch, reference, (inputs, targets) = benchmark.build(case, tmp_path, torch.device("cpu"), "fp32", 0.0)
    with pytest.raises(ValueError, match=r"both sides must be the same work, got losses \("):
        benchmark.agree(case, ours, batch, reference, (inputs, 1 - targets), "fp32")


@pytest.mark.parametrize(("quartiles", "expected"), [((0.8, 0.9), "slower"), ((0.9, 1.1), "undecided")])
def test_a_row_that_is_not_faster_is_said_to_be(benchmark: Any, quartiles: Any, expected: str) -> None:
    row = {"ratio": 0.9, "ratio_quartiles": quartiles, "reference_quartiles": (1, 2), "ours_quartiles": (1, 2)}
    row |= {"what": "head", "mode": "word", "words": 5, "groups": None, "precision": "fp32", "load_before": 0.0}
    row |= {"reference_images_per_second": 1.0, "ours_images_per_second": 0.9, "loss_difference": 0.0, "batch": 8}
    row |= {"gradient_difference": 0.0, "ratio_to_reference_without_loop": 0.9}
    row |= {"ratio_to_reference_without_loop_quartiles": quartiles}
    machine = {"load_before": [0.0], "load_after": [0.0], "threads": 1, "cores": 1, "torch": "2"}
    machine |= {"device": "cpu", "processor": "x"}
    text = benchmark.markdown({"machine": machine, "rows": [row], "rounds": 1, "command": "c"})
    sentence = {"slower": "**Ours is slower in:**", "undecided": "No clear difference in:"}[expected]
    assert f"{sentence} head on kept embeddings: 5 words (fp32, 0.90)." in text
    assert "There ours is not clearly faster in: head on kept" in text and "faster in every row" not in text


def test_the_script_writes_its_report(tmp_path: Path) -> None:
    output = tmp_path / "new" / "report.json"
    command = [sys.executable, SCRIPT, "--tiny", "--rounds", "1", "--threads", "1", "--device", "cpu"]
    done = subprocess.run([*command, "--output", output], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text(encoding="utf-8"))
    assert [row["what"] for row in report["rows"]] == ["head"] * 4 + ["whole model", "loop"]
    for row in report["rows"]:
        assert row["precision"] == "fp32" and row["loss_difference"] < 1e-4 and row["gradient_difference"] < 1e-3
        assert row["ratio"] == pytest.approx(row["ours_images_per_second"] / row["reference_images_per_second"])
    assert len(report["machine"]["load_before"]) == 3 and report["machine"]["torch"] == torch.__version__
    text = output.with_suffix(".md").read_text(encoding="utf-8")
    assert text == done.stdout.removesuffix("\n") and "| whole loop, head: 5 words | 3 | fp32 |" in text
