"""How fast the head is on a GPU: absolute, of what the card can do, and beside the official design in the same run.

    python evaluation/benchmark_gpu.py --root ../shared/real      # all of it, some two minutes on one GPU
    python evaluation/benchmark_gpu.py --rounds 5 --output F

Each precision is beside the official design in that precision, bf16 by autocast. The reference is that of
benchmark_head.py, whose loop over queries starts some kernels for each: a second column has one product instead.
The card's peak is measured in the same run, by a product of two large random matrices.
What bf16 changes is measured on real photos, by a head of the paper's size trained here; without --root it is left out.
Writes evaluation/reports/benchmark_gpu.{json,md}.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark_head import (
    ENCODER_DIM,
    NUM_POSITIONS,
    TEXT_DIM,
    OfficialHead,
    changes,
    interleaved,
    processor_name,
    trained_on_photos,
)
from torch import Tensor

from zsmld import MLDecoder, TextEncoder
from zsmld.decoder.inference import InferenceDecoder
from zsmld.model import package_versions

REPORT = Path(__file__).parent / "reports" / "benchmark_gpu.json"
PRECISIONS = ("fp32", "bf16")
WORD_ROWS = ((81, 8), (81, 256), (1006, 8), (1006, 128), (7186, 32), (20000, 32))
CLASS_ROW = (9605, 200, 256)  # classes, groups, images
PEAK_SIZE = 8192


def peak(precision: str, rounds: int) -> float:
    """TFLOP/s of a product of two random matrices of 8192 x 8192."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, device="cuda", dtype=dtype) for _ in range(2))
    times = interleaved({"product": lambda: a @ b}, rounds, torch.device("cuda"))["product"]
    return 2 * PEAK_SIZE**3 / statistics.median(times) / 1e9


def official(head: OfficialHead, precision: str, *inputs: Tensor) -> Tensor:
    """The reference, as one would run it in this precision."""
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        return head(*inputs).float()


def one_product(h: Tensor, weight: Tensor, out: Tensor) -> None:
    """What the reference's loop computes: (B,N,D) -> out (B,N,classes of a query)."""
    if weight.dim() == 2:
        out.copy_(h @ weight)
    else:
        out.copy_(torch.bmm(h.transpose(0, 1), weight).transpose(0, 1))


@torch.no_grad()
def measure(mode: str, num_words: int, batch: int, num_groups: int | None, peaks: dict[str, float], rounds: int) -> Any:
    """A row for each precision."""
    torch.manual_seed(0)
    device, options = torch.device("cuda"), {"num_classes": num_words, "num_groups": num_groups}
    head = MLDecoder(ENCODER_DIM, **(options if num_groups else {"text_dim": TEXT_DIM})).eval().to(device)
    spatial = torch.randn(batch, NUM_POSITIONS, ENCODER_DIM, device=device)
    words = () if num_groups else (torch.randn(num_words, TEXT_DIM, device=device),)
    looped, unlooped = (OfficialHead(head).eval().to(device) for _ in range(2))
    unlooped.group_projection = one_product
    num_rows = batch * (num_groups or num_words)
    ways: dict[str, Callable[[], Any]] = {}
    for precision in PRECISIONS:
        ours = InferenceDecoder(head, precision, NUM_POSITIONS)
        compiled = tuple(ours.compile(some) for some in words)
        ways[f"looped {precision}"] = partial(official, looped, precision, spatial, *words)
        ways[f"unlooped {precision}"] = partial(official, unlooped, precision, spatial, *words)
        ways[precision] = partial(ours, spatial, *compiled)
    expected = ways["looped fp32"]()
    differences = {name: float((way() - expected).abs().max()) for name, way in ways.items()}
    if differences["fp32"] > 1e-4:
        raise SystemExit(f"fp32 must equal the reference to 1e-4, got {differences['fp32']:.1e}")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ways["fp32"]()
    memory = (torch.cuda.max_memory_allocated() - before) / 2**20
    times = interleaved(ways, rounds, device)
    median = {name: statistics.median(found) for name, found in times.items()}
    feedforward = head.layers[0].linear1.out_features
    products = 2 * head.decoder_dim * (batch * NUM_POSITIONS * ENCODER_DIM + 2 * num_rows * feedforward)
    for precision in PRECISIONS:
        row = {"mode": mode, "words": num_words, "groups": num_groups, "batch": batch, "precision": precision}
        row |= {f"{name}_ms": median[f"{name} {precision}"] for name in ("looped", "unlooped")}
        row |= {"ours_ms": median[precision], "images_per_second": 1000 * batch / median[precision]}
        for name in ("looped", "unlooped"):
            ratios = np.divide(times[f"{name} {precision}"], times[precision])
            row[f"ratio_to_{name}"] = float(np.median(ratios))
            row[f"ratio_to_{name}_quartiles"] = [float(q) for q in np.quantile(ratios, (0.25, 0.75))]
        row["teraflops"] = products / median[precision] / 1e9
        row["share_of_peak"] = row["teraflops"] / peaks[precision]
        row |= {"max_difference": differences[precision], "of_official": differences[f"looped {precision}"]}
        row["fp32_memory_mib"] = memory
        yield row


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    machine, peaks = report["machine"], report["peak_teraflops"]
    lines = [
        "# The head on a GPU",
        "",
        f"Command: `{report['command']}`",
        "",
        f"{machine['device']}, {machine['processor']}, {machine['cores']} cores, torch {machine['torch']}.",
        f"Its peak, a product of random {PEAK_SIZE} x {PEAK_SIZE} matrices in the same run: "
        f"{peaks['fp32']:,.0f} TFLOP/s in fp32, {peaks['bf16']:,.0f} in bf16.",
        "",
        f"D=768, feed-forward 2048, C=2048, S=49; medians of {report['rounds']} rounds, interleaved, from the call to",
        "the synchronised end. Ratios are official / ours in the same precision, bf16 of the official design by",
        "autocast: as it is, with its loop over queries, and with one product in the loop's place. TFLOP/s count the",
        "products of the feed-forward and the spatial projection alone, which are most of the arithmetic.",
        "",
        "| mode | words | images | precision | ours ms | images/s | official ms | ratio | without its loop ms | "
        "ratio | TFLOP/s | of the peak |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['mode']} | {row['words']:,} | {row['batch']} | {row['precision']} | {row['ours_ms']:.2f} | "
        f"{row['images_per_second']:,.0f} | {row['looped_ms']:.2f} | **{row['ratio_to_looped']:.1f}** | "
        f"{row['unlooped_ms']:.2f} | {row['ratio_to_unlooped']:.2f} | {row['teraflops']:.0f} | "
        f"{100 * row['share_of_peak']:.0f} % |"
        for row in report["rows"]
    ]
    worst = max(row["max_difference"] for row in report["rows"] if row["precision"] == "fp32")
    lines += ["", f"fp32 logits differ from the official design's by at most {worst:.0e}."]
    slower = [row for row in report["rows"] if row["ratio_to_unlooped"] < 1]
    if slower:
        rows = "; ".join(f"{row['mode']} {row['words']:,} x {row['batch']} {row['precision']}" for row in slower)
        lines += [f"Ours is slower than the official design without its loop in: {rows}."]
    if "accuracy" in report:
        lines += [
            "",
            "On real photos, a head of that size: mAP in percent, its change in points, the largest change of a logit.",
            "",
            "| precision | mAP | change | logit |",
            "|---|---:|---:|---:|",
        ]
        lines += [
            f"| {row['precision']} | {row['mean_average_precision']:.2f} | {row['change_points']:+.3f} | "
            f"{row['max_difference']:.0e} |"
            for row in report["accuracy"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="the folder of the real material")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=REPORT)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "benchmark_gpu: a CUDA GPU must be there, torch sees none; use benchmark_head.py on a CPU\n")
    peaks = {precision: peak(precision, options.rounds) for precision in PRECISIONS}
    rows = []
    shapes = [("word", *shape, None) for shape in WORD_ROWS] + [("class", CLASS_ROW[0], CLASS_ROW[2], CLASS_ROW[1])]
    for shape in shapes:
        for row in measure(*shape, peaks, options.rounds):
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
    report = {
        "command": "python evaluation/benchmark_gpu.py" + (" --root ../shared/real" if options.root else ""),
        "rounds": options.rounds,
        "peak_teraflops": peaks,
        "rows": rows,
        "machine": {
            "device": torch.cuda.get_device_name(),
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "torch": torch.__version__,
        },
        "versions": package_versions(),
    }
    if options.root:
        vectors = TextEncoder(f"vectors:{options.root / 'vectors' / 'coco80_clip_vit_b32.npz'}")
        report["accuracy"] = changes(*trained_on_photos(options.root, vectors, "cuda"), PRECISIONS)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(report)
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
