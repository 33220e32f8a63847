"""What the soak run keeps is of the sources that it was measured on."""

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripts import load_script

ROOT = Path(__file__).resolve().parent.parent
soak = load_script(ROOT / "evaluation" / "soak.py")


def test_every_change_of_the_sources_changes_their_digest(tmp_path: Path) -> None:
    found = [soak.sources_digest(tmp_path)]
    for name, content in (
        ("zsmld/model.py", "a = 1"),
        ("zsmld/text/cache.py", "b = 1"),
        ("tests/acceptance/faults.py", "c = 1"),
        ("zsmld/model.py", "a = 2"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
        found.append(soak.sources_digest(tmp_path))
    (tmp_path / "zsmld" / "model.py").rename(tmp_path / "zsmld" / "head.py")
    found.append(soak.sources_digest(tmp_path))
    assert len(set(found)) == 6
    for name in ("zsmld/README.md", "tests/test_model.py"):
        (tmp_path / name).write_text("d = 1")
    assert soak.sources_digest(tmp_path) == found[-1]


class StandIn:
    """Of pytest in a process of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names = [f"tests/acceptance/test_{kind}_a.py::test_{n}" for kind in ("faults", "fuzz") for n in range(25)]
        self.ran: list[str] = []
        self.fails, self.skips, self.changes = set[str](), set[str](), set[str]()
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(subprocess, "run", self.run)
        monkeypatch.setattr(soak, "sources_digest", lambda: "before")

    def run(self, command: list[str], **_: Any) -> SimpleNamespace:
        if "--collect-only" in command:
            return SimpleNamespace(returncode=0, stdout="\n".join(self.names))
        self.ran.append(name := command[-1])
        if name in self.changes:
            self.monkeypatch.setattr(soak, "sources_digest", lambda: "after")
        said = "1 failed in 2s" if name in self.fails else ".\n1 passed in 2s"
        if name in self.skips:
            said = "SKIPPED [1] tests/acceptance/faults.py:212: needs a disk\n1 skipped in 2s"
        return SimpleNamespace(returncode=int(name in self.fails), stdout=said)


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tests = StandIn(monkeypatch)
    names = tests.names
    tests.fails.add(names[3])
    tests.skips.add(names[5])
    soak.run_tests(soak.names_of_tests(), tmp_path / "before", "before")
    assert tests.ran == names
    came = soak.outcomes(tmp_path / "before")
    assert [name for name in names if not came[name]["passed"]] == [names[3], names[5]]
    assert {name: outcome["skipped"] for name, outcome in came.items() if outcome["skipped"]} == {
        names[5]: ["tests/acceptance/faults.py:212: needs a disk"]
    }
    tests.ran.clear()
    tests.fails.clear()
    soak.run_tests(names, tmp_path / "before", "before")
    assert tests.ran == [names[3], names[5]]
    assert sum(outcome["passed"] for outcome in soak.outcomes(tmp_path / "before").values()) == 49
    tests.ran.clear()
    tests.changes.add(names[1])
    with pytest.raises(SystemExit, match=r"sources must stay as they are, they changed while .*test_1 ran"):
        soak.run_tests(names, tmp_path / "other", "before")
    assert tests.ran == names[:2] and len(soak.outcomes(tmp_path / "other")) == 1


def test_the_report_names_what_was_skipped_and_what_was_fuzzed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tests = StandIn(monkeypatch)
    monkeypatch.setattr(soak, "sources_digest", lambda: "0123456789abcdef" * 4)
    monkeypatch.setattr(soak, "REPORT", tmp_path / "soak.json")
    arguments = ["soak.py", "--kept", str(tmp_path / "kept")]
    monkeypatch.setattr("sys.argv", arguments)
    tests.skips.add(tests.names[0])
    kept = tmp_path / "kept" / "0123456789abcdef"
    kept.mkdir(parents=True)
    (kept / "fuzzing of test_3.json").write_text('{"figures": {"mutations": 1600, "refused": 900}}')
    assert soak.main() == 1
    for more in ([], ["--report-only"]):
        monkeypatch.setattr("sys.argv", arguments + more)
        assert soak.main() == 1, "what is skipped is not done"
        report = json.loads((tmp_path / "soak.json").read_text())
        assert report["tests_that_passed"] == 49 and report["tests_that_failed"] == []
        assert list(report["tests_that_were_skipped"]) == [tests.names[0]]
        written = (tmp_path / "soak.md").read_text()
        assert f"not done: {tests.names[0]} (tests/acceptance/faults.py:212: needs a disk)" in written
        assert "sources 0123456789ab (" in written
        assert "## Fuzzing" in written and "| test_3 | 1,600 | 900 | 0 |" in written and "| test_4 | 0 |" in written
    tests.skips.clear()
    monkeypatch.setattr("sys.argv", arguments)
    assert soak.main() == 0
    tests.names.append("tests/acceptance/test_fuzz_b.py::test_more")
    monkeypatch.setattr("sys.argv", [*arguments, "--report-only"])
    assert soak.main() == 1, "what did not run is not done"
    assert json.loads((tmp_path / "soak.json").read_text())["tests_that_did_not_run"] == tests.names[-1:]
    assert f"not done: {tests.names[-1]}.\n" in (tmp_path / "soak.md").read_text()


def test_the_committed_report_has_all_that_the_tests_keep() -> None:
    """Made by a full run; whether by one of these very sources is its digest's to say, not each commit's."""
    report = json.loads((ROOT / "evaluation" / "reports" / "soak.json").read_text(encoding="utf-8"))
    assert re.fullmatch("[0-9a-f]{64}", report.get("sources", "")), "run `make soak`"
    assert report["tests_that_failed"] == [] and report["tests_that_were_skipped"] == {}
    assert report["tests_that_did_not_run"] == []
    expected = pieces_of_the_tests()
    assert len(expected) >= 45
    missing = [piece for piece in expected if not any(re.fullmatch(piece, found) for found in report["pieces"])]
    assert not missing, "run `make soak`"
    figures = report["pieces"]
    assert {found["kills"] for piece, found in figures.items() if piece.startswith("kills of ")} == {50}
    assert all(found["disks"] == 10 for piece, found in figures.items() if piece.startswith("full disk, "))
    assert figures["mutated images"]["images"] == 500 and figures["large evaluation"]["images"] == 107_859
    assert {found["images"] for piece, found in figures.items() if piece.startswith("large folder")} == {100_000}


def pieces_of_the_tests() -> set[str]:
    """A pattern for each piece: what the fault tests name where they keep it, and each fuzz test."""
    found = set()
    for path in (ROOT / "tests" / "acceptance").glob("test_f*.py"):
        text = path.read_text(encoding="utf-8")
        for keeper, name in re.findall(r'\b(keep|kill_again_and_again|fill_and_go_on)\(\s*f?"([^"]+)"', text):
            name = f"full disk, {name}" if keeper == "fill_and_go_on" else name
            found.add(".+".join(map(re.escape, re.split(r"\{.*?\}", name))))
        if path.stem.startswith("test_fuzz_"):
            found |= {rf"fuzzing of {name}(\[.+\])?" for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    return found
