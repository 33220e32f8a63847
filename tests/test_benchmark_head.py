"""The benchmark of the head: its reference is the official design, and its committed report keeps what it claims."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts import load_script

from zsmld import MLDecoder

EVALUATION = Path(__file__).resolve().parent.parent / "evaluation"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    return load_script(EVALUATION / "benchmark_head.py")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((EVALUATION / "reports" / "benchmark_head.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("options", [{"text_dim": 12}, {"num_classes": 23, "num_groups": 5}], ids=["words", "classes"])
def test_the_reference_has_the_weights_of_the_head(benchmark: Any, options: dict[str, int]) -> None:
    torch.manual_seed(0)
    head = MLDecoder(encoder_dim=24, decoder_dim=32, feedforward_dim=48, num_heads=4, **options).eval()
    with torch.no_grad():
        for weight in head.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        reference = benchmark.OfficialHead(head).eval()
        words = (torch.randn(7, 12),) if "text_dim" in options else ()
        spatial = torch.randn(3, 9, 24)
        torch.testing.assert_close(reference(spatial, *words), head(spatial, *words), atol=1e-5, rtol=1e-5)


def test_the_report_has_the_rows_that_other_programs_read(benchmark: Any, report: dict[str, Any]) -> None:
    shapes = {(row["mode"], row["words"], row["batch"]) for row in report["rows"] if row["precision"] == "fp32"}
    assert shapes == set(benchmark.GOALS)
    for row in report["rows"]:
        assert row["precision"] in ("fp32", "bf16", "int8")
        assert row["ratio"] == pytest.approx(row["reference_ms"] / row["ours_ms"])
    assert report["machine"]["processor"]


def test_fp32_is_equal_and_a_precision_changes_little(report: dict[str, Any]) -> None:
    assert all(row["max_difference"] <= 1e-4 for row in report["rows"] if row["precision"] == "fp32")
    assert set(report["accuracy"]) == {"scenes", "photos"}
    for rows in report["accuracy"].values():
        assert {row["precision"] for row in rows} == {"fp32", "bf16", "int8"}
        assert all(abs(row["change_points"]) <= 0.1 for row in rows)


def test_memory_is_bounded(report: dict[str, Any]) -> None:
    peaks = {(row["words"], row["batch"]): row["peak_above_weights_mib"] for row in report["memory"]["rows"]}
    assert peaks[20000, 32] < 1024


def test_the_shortlist_keeps_the_best_words_at_a_tenth_of_the_cost(report: dict[str, Any]) -> None:
    found = report["shortlist"]
    assert found["words"] == 20000 and found["top_10_kept"] >= 0.99 and found["cost"] <= 0.1
    assert found["max_difference_of_kept"] <= 1e-5


def test_on_a_gpu_bf16_is_faster_than_the_official_design_without_its_loop_and_changes_little() -> None:
    report = json.loads((EVALUATION / "reports" / "benchmark_gpu.json").read_text(encoding="utf-8"))
    gpu = load_script(EVALUATION / "benchmark_gpu.py")
    shapes = {("word", *shape) for shape in gpu.WORD_ROWS} | {("class", gpu.CLASS_ROW[0], gpu.CLASS_ROW[2])}
    for precision in gpu.PRECISIONS:
        rows = [row for row in report["rows"] if row["precision"] == precision]
        assert {(row["mode"], row["words"], row["batch"]) for row in rows} == shapes
        assert all(0 < row["share_of_peak"] < 1 for row in rows)
        if precision == "fp32":
            assert all(row["max_difference"] <= 1e-4 for row in rows)
        else:
            assert all(row["ratio_to_unlooped"] > 1 for row in rows)
    assert [row["precision"] for row in report["accuracy"]] == list(gpu.PRECISIONS)
    assert all(abs(row["change_points"]) <= 0.1 for row in report["accuracy"])
    assert gpu.markdown(report) == (EVALUATION / "reports" / "benchmark_gpu.md").read_text(encoding="utf-8")
