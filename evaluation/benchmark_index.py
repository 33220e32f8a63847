"""How long a prepared index of NUS-WIDE's size takes to open, and its memory.

    python evaluation/benchmark_index.py

Writes a generated index of 269,648 images and 1,006 words (its images are not needed), opens it in fresh processes,
and writes `evaluation/reports/benchmark_index.{json,md}`. The reference in the same run reads the same labels from CSV.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from zsmld.datasets import Index

REPORT = Path(__file__).parent / "reports" / "benchmark_index.json"
NUM_TRAIN, NUM_TEST, NUM_SEEN, NUM_UNSEEN = 161_789, 107_859, 925, 81

# Each measurement runs in a process of its own, after the imports, so that nothing is warm but the disk cache.
MEASURE = """
import json, sys, time
from pathlib import Path
import pandas as pd, psutil
from zsmld.datasets import Index, build_dataset

what, folder = sys.argv[1], sys.argv[2]
memory = psutil.Process().memory_info
before = memory().rss
started = time.perf_counter()
if what == "index":
    kept = Index.open(folder)
    images = len(kept)
elif what == "dataset":
    kept = build_dataset("prepared", path=folder, split="test", partition="925_81")
    images = len(kept)
else:
    frame = pd.read_csv(Path(folder) / "rows.csv")
    kept = [[int(label) for label in cell.split()] for cell in frame["labels"].fillna("")]
    images = len(kept)
seconds = time.perf_counter() - started
print(json.dumps({"images": images, "seconds": seconds, "mebibytes": (memory().rss - before) / 2**20}))
"""


def make_index(folder: Path, labels_per_image: float, seed: int = 0) -> Index:
    """An index of NUS-WIDE's size with random labels."""
    rng = np.random.default_rng(seed)
    num_images, num_words = NUM_TRAIN + NUM_TEST, NUM_SEEN + NUM_UNSEEN
    indptr = np.concatenate([[0], np.cumsum(rng.poisson(labels_per_image, num_images))])
    labels = rng.integers(0, num_words, indptr[-1])
    targets = csr_matrix((np.ones(len(labels), np.int8), labels, indptr), (num_images, num_words))
    targets.sum_duplicates()
    targets.data[:] = 1
    ids = [f"{number:04d}_{flickr_id}" for number, flickr_id in enumerate(rng.integers(10**8, 10**10, num_images))]
    words = tuple(f"word {label}" for label in range(num_words))
    return Index(
        name="nus_wide",
        root=folder,
        words=words,
        partitions={"925_81": {"seen": list(words[:NUM_SEEN]), "unseen": list(words[NUM_SEEN:])}},
        ids=ids,
        paths=[f"Flickr/{image_id}.jpg" for image_id in ids],
        splits=np.array(["train"] * NUM_TRAIN + ["test"] * NUM_TEST),
        targets=targets,
    )


def measure(what: str, folder: Path) -> dict[str, float]:
    """One measurement in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, what, str(folder)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    """Generate, measure, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--labels-per-image", type=float, default=8.0)
    parser.add_argument("--output", type=Path, default=REPORT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = make_index(folder, options.labels_per_image)
        index.save(folder)
        size = sum((folder / file).stat().st_size for file in ("rows.parquet", "manifest.json"))
        indptr, labels = index.targets.indptr, index.targets.indices
        with open(folder / "rows.csv", "w", encoding="utf-8") as file:
            file.write("id,labels\n")
            for row, image_id in enumerate(index.ids.to_pylist()):
                file.write(f"{image_id},{' '.join(map(str, labels[indptr[row] : indptr[row + 1]]))}\n")
        rows = []
        for what, title in (
            ("index", "open the index"),
            ("dataset", "open it and take the test split"),
            ("csv", "reference: the same labels from CSV into Python lists"),
        ):
            found = [measure(what, folder) for _ in range(options.repeats)]
            seconds = sorted(run["seconds"] for run in found)
            rows.append(
                {
                    "what": title,
                    "images": found[0]["images"],
                    "seconds_median": seconds[len(seconds) // 2],
                    "seconds_max": seconds[-1],
                    "mebibytes": float(np.median([run["mebibytes"] for run in found])),
                }
            )
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
    }
    report = {
        "command": "python evaluation/benchmark_index.py",
        "rows": rows,
        "file_mebibytes": size / 2**20,
        "repeats": options.repeats,
        "machine": machine,
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Opening a prepared index of NUS-WIDE's size",
        "",
        f"269,648 images, 1,006 words, {options.labels_per_image:g} labels an image; {size / 2**20:.1f} MiB on disk. "
        f"{options.repeats} fresh processes each, on {machine['cores']} shared cores (load {machine['load'][0]:.1f}).",
        "",
        "| | images | seconds, median | seconds, worst | memory, MiB |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {r['what']} | {r['images']:,} | {r['seconds_median']:.2f} | {r['seconds_max']:.2f} | "
            f"{r['mebibytes']:.0f} |"
            for r in rows
        ),
        "",
        "Command: `python evaluation/benchmark_index.py`",
    ]
    options.output.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
