"""The fault tests and the fuzzing in full, for hours if it must be: kills, full disks, damaged images, files, load.

    python evaluation/soak.py            # or `make soak`; goes on where it was stopped

Runs each test of tests/acceptance/test_faults_*.py and test_fuzz_*.py with its full counts, keeps what it measured in
runs/soak, a folder for each state of the sources, and writes `evaluation/reports/soak.{json,md}` with plots of memory
over time, `soak_*.png`. It goes on where it was stopped on the same sources; after a change all is measured anew.
A test that is skipped has not passed: the report names it.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from zsmld.model import package_versions

ROOT = Path(__file__).resolve().parent.parent
REPORT = Path(__file__).parent / "reports" / "soak.json"
SECTIONS = {
    "kills": (
        "SIGKILL to the whole process group, at moments drawn from the time of an undisturbed run and at changes of a "
        "file, and the same command again. At its end every file has the bytes of an undisturbed run (of a training, "
        "all but its speed; of cached features, each image has its bytes, in whichever file), nothing is left over, "
        "and after each kill what has its name is whole."
    ),
    "full disk": (
        "On disks with room for 2 to 92 % of what is written (where none is mounted: where no file may grow beyond "
        "that share of the largest): one sentence says what is not there, what an earlier run wrote stays, and with "
        "room the same command ends with the bytes of an undisturbed run (of a training, its model; of cached "
        "features, the values; an export has the same files, and can be loaded)."
    ),
    "images": (
        "Through `zsmld predict`: what Pillow decodes is scored as alone (to 1e-5), all else is named with an error."
    ),
    "fuzzing": (
        "Valid files, mutated: each is read, or refused in a sentence that names it; no reader takes more than "
        "20 seconds of processor time or 1 GiB, starts a process, connects or writes elsewhere. Seconds are of a test "
        "with its start."
    ),
    "load": "Memory over time, in MiB, of the process and its own; the plots show what no file backs as well.",
}


def section_of(piece: str) -> str:
    """Of what a test measured, by its name."""
    return next(
        (name for name in SECTIONS if piece.startswith(name)), "load" if piece.startswith("large ") else "images"
    )


def sources_digest(root: Path = ROOT) -> str:
    """What the figures depend on: SHA-256 over the paths and the content of the package and of the fault tests."""
    digest = hashlib.sha256()
    for path in sorted([*root.glob("zsmld/**/*.py"), *root.glob("tests/acceptance/*.py")]):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


PYTEST = [sys.executable, "-m", "pytest", "--timeout", "7200"]


def names_of_tests() -> list[str]:
    """Of the fault tests and the fuzz tests, as pytest takes them."""
    folder = ROOT / "tests" / "acceptance"
    tests = sorted(
        str(path.relative_to(ROOT)) for kind in ("faults", "fuzz") for path in folder.glob(f"test_{kind}_*.py")
    )
    listed = subprocess.run([*PYTEST, "--collect-only", *tests], cwd=ROOT, capture_output=True, text=True)
    names = [line for line in listed.stdout.splitlines() if "::" in line]
    if listed.returncode or len(names) < 50:
        sys.exit(f"the tests must be found, pytest says:\n{listed.stdout}{listed.stderr}")
    return names


def run_tests(names: list[str], kept: Path, digest: str) -> None:
    """Each test that has not passed yet, in a process of its own; what came of it is a line of `tests.jsonl`.

    Args:
        names: of the tests.
        kept: folder of what is measured on these sources.
        digest: theirs; a test while which they changed counts for nothing.
    """
    kept.mkdir(parents=True, exist_ok=True)
    former = outcomes(kept)
    for name in names:
        if former.get(name, {}).get("passed"):
            continue
        print(name, flush=True)
        environment, since = os.environ | {"ZSMLD_SOAK": str(kept), "OMP_NUM_THREADS": "1"}, time.monotonic()
        command = [*PYTEST, "--tb", "short", "-rs", name]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        if sources_digest() != digest:
            sys.exit(f"the sources must stay as they are, they changed while {name} ran; start again")
        outcome = {
            "test": name,
            "passed": done.returncode == 0 and re.search(r"^1 passed", done.stdout, re.MULTILINE) is not None,
            "skipped": re.findall(r"^SKIPPED \[\d+\] (.+)", done.stdout, re.MULTILINE),
            "seconds": round(time.monotonic() - since),
        }
        with (kept / "tests.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(outcome) + "\n")


def outcomes(kept: Path) -> dict[str, dict[str, Any]]:
    """Test -> what came of it the last time."""
    path = kept / "tests.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {outcome["test"]: outcome for outcome in map(json.loads, lines)}


def measured_in(kept: Path) -> dict[str, dict[str, Any]]:
    """Piece -> what a test kept of it; each fuzz test that passed is a piece, with its seconds beside what it kept."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(kept.glob("*.json"))}
    for name, outcome in outcomes(kept).items():
        if outcome["passed"] and "/test_fuzz_" in name:
            figures = found.setdefault(f"fuzzing of {name.split('::')[1]}", {"figures": {}})["figures"]
            figures["seconds"] = outcome["seconds"]
    return found


def table(pieces: dict[str, dict[str, Any]]) -> list[str]:
    """A row a piece, a column a figure."""
    columns = list(dict.fromkeys(name for figures in pieces.values() for name in figures))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for piece, figures in pieces.items():
        cells = (f"{figures[name]:,}" if name in figures else "" for name in columns)
        lines.append(f"| {piece} | {' | '.join(cells)} |")
    return lines


def plot(piece: str, samples: list[list[float]], path: Path) -> None:
    """Memory over time."""
    seconds, held, private = zip(*samples, strict=True)
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    axes.plot(seconds, held, label="resident", color="#999999", linewidth=1)
    axes.plot(seconds, private, label="of these, backed by no file", color="#1f4e79", linewidth=1.5)
    axes.set(title=piece, xlabel="seconds", ylabel="MiB", ylim=(0, None), xlim=(0, None))
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """Run what has not passed, and write the report of all that has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=Path, default=ROOT / "runs" / "soak", help="folder of what is measured")
    parser.add_argument("--report-only", action="store_true", help="write the report of what is there")
    options = parser.parse_args()
    digest = sources_digest()
    kept = options.kept.resolve() / digest[:16]
    if options.report_only and not any(kept.glob("*.json")):
        parser.error(f"--report-only must find what was measured on these sources, {kept} has none; leave it out")
    names = names_of_tests()
    if not options.report_only:
        run_tests(names, kept, digest)
    measured, came = measured_in(kept), outcomes(kept)
    skipped = {name: outcome["skipped"] for name, outcome in came.items() if outcome["skipped"]}
    failed = [name for name, outcome in came.items() if not outcome["passed"] and name not in skipped]
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    report = {
        "command": "python evaluation/soak.py",
        "sources": digest,
        "pieces": {piece: content["figures"] for piece, content in measured.items()},
        "tests_that_passed": sum(outcome["passed"] for outcome in came.values()),
        "tests_that_failed": failed,
        "tests_that_were_skipped": skipped,
        "tests_that_did_not_run": [name for name in names if name not in came],
        "machine": machine | {"load": os.getloadavg()},
        "versions": package_versions(),
    }
    REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    lines = ["# Soak", "", "Written by `python evaluation/soak.py` (`make soak`).", ""]
    lines += [f"{report['tests_that_passed']} tests passed, {len(failed)} failed: {', '.join(failed) or 'none'}."]
    lines += [f"Skipped, so not done: {name} ({'; '.join(reasons)})." for name, reasons in skipped.items()]
    lines += [f"Did not run, so not done: {name}." for name in report["tests_that_did_not_run"]]
    lines += [
        f"Measured on the sources {digest[:12]} (`zsmld/` and `tests/acceptance/`, the beginning of their SHA-256)."
    ]
    lines += [f"On {machine['cores']} cores, shared with other work: seconds are no measure of speed here."]
    for section, explained in SECTIONS.items():
        pieces = {piece: figures for piece, figures in report["pieces"].items() if section_of(piece) == section}
        if not pieces:
            continue
        lines += ["", f"## {section.capitalize()}", "", explained, ""]
        groups: dict[tuple[str, ...], dict[str, Any]] = {}
        for piece, figures in pieces.items():
            groups.setdefault(tuple(figures), {})[piece.removeprefix(f"{section} of ").removeprefix("full disk, ")] = (
                figures
            )
        for group in groups.values():
            lines += [*table(group), ""]
        for piece in pieces:
            if "samples" in measured[piece]:
                path = REPORT.with_name(f"soak_{piece.replace(' ', '_').replace(',', '')}.png")
                plot(piece, measured[piece]["samples"], path)
                lines += [f"![{piece}]({path.name})", ""]
    REPORT.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 1 if failed or skipped or report["tests_that_did_not_run"] else 0


if __name__ == "__main__":
    sys.exit(main())
