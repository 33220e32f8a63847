"""Time, memory and agreement of the metrics at the size of NUS-WIDE, beside scikit-learn, torchmetrics and the
algorithm of the official ML-Decoder function.

    python evaluation/benchmark_metrics.py [--images 107859 --words 1006 --real ../shared/real]

Writes evaluation/reports/benchmark_metrics.{json,md}. Every contender runs in a process of its own, one after the
other, on the same random scores; its peak memory is that of the process above what it held before the call, which Linux
alone can tell. Cost: about four minutes on two cores.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from zsmld.evaluator import evaluate_scores
from zsmld.metrics import average_precision
from zsmld.protocols import Protocol
from zsmld.vocabulary import Vocabulary

SHARE = 0.01  # of entries that are positive
CONTENDERS = {
    "all_figures": "zsmld: all figures of ZSL and GZSL",
    "exact": "zsmld: average precision",
    "legacy": "zsmld: average precision, legacy",
    "scikit_learn": "scikit-learn: average precision, a loop over words",
    "official": "official function's algorithm: average precision",
    "torchmetrics": "torchmetrics: multilabel average precision",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=107_859)
    parser.add_argument("--words", type=int, default=1006)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "reports" / "benchmark_metrics.json")
    parser.add_argument("--real", type=Path, default=Path(__file__).parents[2] / "shared" / "real")
    parser.add_argument("--contender", choices=[*CONTENDERS, "real"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    labels = options.real / "nus_wide" / "ground_truth_81.npz"
    if options.contender == "real":
        print(json.dumps(measure_real(labels)))
    elif options.contender:
        print(json.dumps(measure(options.contender, options.images, options.words)))
    else:
        load = os.getloadavg()[0]
        rows = {name: in_own_process(name, options) for name in CONTENDERS}
        real = in_own_process("real", options) if labels.is_file() else None
        write_report(rows, real, load, options)


def in_own_process(contender: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a process that runs one contender printed."""
    sizes = ["--images", str(options.images), "--words", str(options.words), "--real", str(options.real)]
    command = [sys.executable, __file__, "--contender", contender, *sizes]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


# ------------------------------------------------------------------------------------------------------ one contender


def measure(contender: str, num_images: int, num_words: int) -> dict[str, Any]:
    """Seconds of each repetition, peak memory above the arrays', and the largest difference to zsmld's values."""
    run = PREPARE[contender]
    run(*random_problem(100, num_words))()  # imports and first calls are not timed
    scores, targets = random_problem(num_images, num_words)
    call = run(scores, targets)
    seconds: list[float] = []
    before = reset_peak_memory()
    for _ in range(3 if contender in ("all_figures", "exact", "legacy") else 1):
        start = time.perf_counter()
        values = call()
        seconds.append(time.perf_counter() - start)
    result = {"seconds": seconds, "peak_memory_mb": peak_memory() - before, "score_matrix_mb": scores.nbytes / 2**20}
    if contender in ("scikit_learn", "official", "torchmetrics"):
        ours = average_precision(scores, targets, "legacy" if contender == "official" else "exact")
        result["largest_difference"] = float(np.abs(values - ours).max())
    return result


def random_problem(num_images: int, num_words: int) -> tuple[np.ndarray, np.ndarray]:
    """fp32 logits that know a little, and 1% positives; every word has one."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((num_images, num_words), dtype=np.float32)
    targets = np.zeros(scores.shape, np.int8)
    for row_scores, row_targets in zip(scores, targets, strict=True):
        row_targets[rng.random(num_words, dtype=np.float32) < SHARE] = 1
        row_scores += row_targets
    targets[0] = 1
    return scores, targets


def all_figures(scores: np.ndarray, targets: np.ndarray) -> Callable[[], Any]:
    words = [f"word {i}" for i in range(scores.shape[1])]
    vocabulary = Vocabulary(words, seen=words[: round(len(words) * 925 / 1006)])
    protocol = Protocol.named("nus_wide_gzsl" if len(words) == 1006 else "gzsl")
    return lambda: evaluate_scores(scores, targets, vocabulary, protocol, kind="logits")


def scikit_learn(scores: np.ndarray, targets: np.ndarray) -> Callable[[], Any]:
    from sklearn.metrics import average_precision_score

    return lambda: np.array([average_precision_score(t, s) for t, s in zip(targets.T, scores.T, strict=True)])


def torchmetrics(scores: np.ndarray, targets: np.ndarray) -> Callable[[], Any]:
    import torch
    from torchmetrics.functional.classification import multilabel_average_precision

    np.divide(1, 1 + np.exp(-scores, out=scores), out=scores)  # it guesses logits from values outside [0,1]
    tensors = torch.from_numpy(scores), torch.from_numpy(targets)
    return lambda: multilabel_average_precision(*tensors, scores.shape[1], average=None).numpy()


def official(scores: np.ndarray, targets: np.ndarray) -> Callable[[], Any]:
    """Written from its description: the mean, over positives, of the precision at their ranks, 1e-8 below the line."""

    def one_word(scores: np.ndarray, targets: np.ndarray) -> float:
        ranked = targets[np.argsort(scores, kind="stable")[::-1]] == 1
        correct = np.cumsum(ranked)
        precision = correct / np.arange(1, len(ranked) + 1)
        return precision[ranked].sum() / (correct[-1] + 1e-8)

    return lambda: np.array([one_word(s, t) for s, t in zip(scores.T, targets.T, strict=True)])


PREPARE: dict[str, Callable[[np.ndarray, np.ndarray], Callable[[], Any]]] = {
    "all_figures": all_figures,
    "exact": lambda scores, targets: lambda: average_precision(scores, targets),
    "legacy": lambda scores, targets: lambda: average_precision(scores, targets, "legacy"),
    "scikit_learn": scikit_learn,
    "official": official,
    "torchmetrics": torchmetrics,
}


def measure_real(labels: Path) -> dict[str, Any]:
    """Average precision on the real NUS-WIDE test labels with random scores, beside scikit-learn."""
    targets = np.unpackbits(np.load(labels)["test"], axis=1)[:, :81].astype(np.int8)
    scores = np.random.default_rng(0).random(targets.shape, dtype=np.float32)
    values, seconds = {}, {}
    for name in ("exact", "scikit_learn"):
        call = PREPARE[name](scores, targets)
        start = time.perf_counter()
        values[name] = call()
        seconds[name] = time.perf_counter() - start
    return {
        "images": len(targets),
        "words": targets.shape[1],
        "labels_per_image": float(targets.sum() / len(targets)),
        "seconds": seconds,
        "mean_average_precision": float(values["exact"].mean()),
        "largest_difference": float(np.abs(values["exact"] - values["scikit_learn"]).max()),
    }


def reset_peak_memory() -> float:
    """Forget the peak so far; MiB this process holds."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> float:
    """The most MiB this process has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


# --------------------------------------------------------------------------------------------------------- the report


def write_report(rows: dict[str, Any], real: dict[str, Any] | None, load: float, options: argparse.Namespace) -> None:
    """JSON and Markdown."""
    median = {name: float(np.median(row["seconds"])) for name, row in rows.items()}
    matrix = rows["all_figures"]["score_matrix_mb"]
    ratios = {
        "all_figures_to_scikit_learn": median["all_figures"] / median["scikit_learn"],
        "all_figures_to_official": median["all_figures"] / median["official"],
        "all_figures_to_torchmetrics": median["all_figures"] / median["torchmetrics"],
        "exact_to_scikit_learn": median["exact"] / median["scikit_learn"],
        "legacy_to_official": median["legacy"] / median["official"],
        "scores_and_peak_to_scores": 1 + rows["all_figures"]["peak_memory_mb"] / matrix,
    }
    processor = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    content = {
        "command": f"python evaluation/benchmark_metrics.py --images {options.images} --words {options.words}",
        "images": options.images,
        "words": options.words,
        "share_of_positives": SHARE,
        "rows": [{"contender": CONTENDERS[name], "median_seconds": median[name], **row} for name, row in rows.items()],
        "ratios": ratios,
        "real": real,
        "machine": {
            "processor": processor[0].split(":", 1)[1].strip() if processor else platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "load_before": load,
            "system": platform.system(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "scikit-learn", "torch", "torchmetrics", "zsmld")},
        },
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    machine, versions = content["machine"], content["versions"]
    text = [
        "# Time and memory of the metrics",
        "",
        f"{options.images:,} images × {options.words:,} words, fp32 logits ({matrix:.0f} MiB), {SHARE:.0%} positives; "
        f"{machine['cores']} cores of {machine['processor']}, load {load:.1f} before the run; "
        f"{', '.join(f'{name} {number}' for name, number in versions.items())}.",
        f"Written by `{content['command']}`; zsmld's seconds are medians of three. scikit-learn and the official",
        "function's algorithm use one core, as they come.",
        "",
        "| what | seconds | memory beside both arrays, MiB | largest difference to zsmld |",
        "|---|---:|---:|---:|",
    ]
    for name, row in rows.items():
        difference = f"{row['largest_difference']:.0e}" if "largest_difference" in row else ""
        text.append(f"| {CONTENDERS[name]} | {median[name]:.1f} | {row['peak_memory_mb']:.0f} | {difference} |")
    text += [
        "",
        f"All figures take {ratios['all_figures_to_scikit_learn']:.2f} of the time of scikit-learn's loop and "
        f"{ratios['all_figures_to_official']:.2f} of that of the official function's algorithm, which compute average "
        f"precision alone. Scores and everything beside the targets: {ratios['scores_and_peak_to_scores']:.2f} × the "
        "scores.",
    ]
    if real:
        text += [
            "",
            f"On the real NUS-WIDE test labels ({real['images']:,} × {real['words']}, {real['labels_per_image']:.3f} "
            f"an image) with random scores: {real['seconds']['exact']:.2f} s, scikit-learn "
            f"{real['seconds']['scikit_learn']:.2f} s, largest difference {real['largest_difference']:.0e}.",
        ]
    options.output.with_suffix(".md").write_text("\n".join([*text, ""]))
    print("\n".join(text))


if __name__ == "__main__":
    main()
