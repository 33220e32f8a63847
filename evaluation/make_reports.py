"""Every report measured anew, its tables put where README and docs show them, and the notebooks' pages with them.

    python evaluation/make_reports.py                      # or `make reports`: all, about half a day on two cores
    python evaluation/make_reports.py scenes_zsl export    # these
    python evaluation/make_reports.py --tables             # measures nothing: README and docs show what reports say

Reports on photos need ../shared/real (photos, weights and word vectors that do not come with zsmld), and one needs a
GPU; without them they are left as they are, and named. A table of README or docs that is a report's stands under a line
that says so, `<!-- copied: evaluation/reports/scenes_zsl.md, table 1 -->`, and the test suite fails when it is not the
report's.
"""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
REPORTS = {  # the command of each; those that take minutes first
    "scenes_zsl": "evaluation/scenes_zsl.py",
    "calibration_scenes": "evaluation/calibration_scenes.py",
    "benchmark_index": "evaluation/benchmark_index.py",
    "benchmark_metrics": "evaluation/benchmark_metrics.py --images 107859 --words 1006",
    "benchmark_predict": "evaluation/benchmark_predict.py --root ../shared/real",
    "benchmark_training": "evaluation/benchmark_training.py --rounds 4 --threads 1",
    "benchmark_head": "evaluation/benchmark_head.py",
    "benchmark_gpu": "evaluation/benchmark_gpu.py --root ../shared/real",
    "export": "evaluation/export_study.py --root ../shared/real",
    "benchmark_features": "evaluation/benchmark_features.py --root ../shared/real",
    "reproducibility": "evaluation/reproducibility.py",
    "coco_photos_zsl": "evaluation/coco_photos_zsl.py --root ../shared/real",
    "query_augmentation_scenes": "evaluation/query_augmentation.py --study scenes",
    "query_augmentation_photos": "evaluation/query_augmentation.py --study photos",
    "zero_shot_study": "evaluation/zero_shot_study.py",
    "soak": "evaluation/soak.py",
}
COMMANDS = {**REPORTS, "notebooks": "evaluation/render_notebooks.py"}  # no report, but docs/notebooks have its figures
ON_PHOTOS = {"query_augmentation_photos", "zero_shot_study"}  # beside those whose command says --root
ON_GPUS = {"benchmark_gpu"}
PHOTOS = ROOT.parent / "shared" / "real"
COPIED = re.compile(r"<!-- copied: (\S+\.md), table (\d+) -->\n\n((?:\|.*\n)+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMMANDS)} (default: all)")
    parser.add_argument(
        "--tables", action="store_true", help="measure nothing, copy the tables of the reports there are"
    )
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(COMMANDS)):
        parser.error(f"NAME must be a report, got {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
    failed = [] if options.tables else measure(options.names or list(COMMANDS))
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (now := with_tables(text)) != text:
            page.write_text(now, encoding="utf-8")
            print(f"tables written: {page.relative_to(ROOT)}")
    if failed:
        sys.exit(f"left as they were: {', '.join(failed)}")


def measure(names: list[str]) -> list[str]:
    """Run the commands of some reports; the names of those that could not be."""
    failed = []
    for name in names:
        command = COMMANDS[name]
        if (name in ON_PHOTOS or "--root" in command) and not PHOTOS.is_dir():
            failed.append(f"{name} (needs {PHOTOS})")
            continue
        if name in ON_GPUS and not torch.cuda.is_available():
            failed.append(f"{name} (needs a CUDA GPU)")
            continue
        print(f"{name}: python {command}", flush=True)
        if status := subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT).returncode:
            failed.append(f"{name} (exit status {status})")
    return failed


def pages() -> list[Path]:
    """README in both languages, and the guides."""
    return [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def with_tables(text: str, root: Path = ROOT) -> str:
    """A page with its copied tables as the reports have them.

    In a translation the words of a row stay, as long as it has the figures of the report's; rows of which there are
    more or fewer than in the report come as the report has them.
    """

    def anew(found: re.Match[str]) -> str:
        path, number, shown = found[1], int(found[2]), found[3].splitlines()
        rows = tables(root / path)[number - 1]
        same_shape = [row.count("|") for row in rows] == [row.count("|") for row in shown]
        if same_shape and any(re.search(r"[\u4e00-\u9fff]", row) for row in shown):
            rows = [translated(row, there) for row, there in zip(rows, shown, strict=True)]
        return "\n".join([f"<!-- copied: {path}, table {number} -->", "", *rows, ""])

    return COPIED.sub(anew, text)


def tables(path: Path) -> list[list[str]]:
    """The tables of a Markdown file, each the list of its lines."""
    return [found.splitlines() for found in re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE)]


def translated(row: str, there: str) -> str:
    """The row of a report with the words of its translation where both have the same figures."""
    cells = [
        theirs if re.findall(r"[\d.]+", ours) == re.findall(r"[\d.]+", theirs) else ours
        for ours, theirs in zip(row.split("|"), there.split("|"), strict=True)
    ]
    return "|".join(cells)


if __name__ == "__main__":
    main()
