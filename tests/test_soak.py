"""What the soak run keeps is of the sources that it was measured on."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripts import load_script

soak = load_script(Path(__file__).resolve().parent.parent / "evaluation" / "soak.py")


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


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"tests/acceptance/test_faults_a.py::test_{number}" for number in range(15)]
    ran: list[str] = []
    fails, changes = {names[3]}, set[str]()

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        if "--collect-only" in command:
            return SimpleNamespace(stdout="\n".join(names))
        ran.append(command[-1])
        if command[-1] in changes:
            monkeypatch.setattr(soak, "sources_digest", lambda: "after")
        return SimpleNamespace(returncode=int(command[-1] in fails))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(soak, "sources_digest", lambda: "before")
    assert soak.run_tests(tmp_path / "before", "before") == [names[3]] and ran == names
    ran.clear()
    fails.clear()
    assert soak.run_tests(tmp_path / "before", "before") == [] and ran == [names[3]]
    ran.clear()
    changes.add(names[1])
    with pytest.raises(SystemExit, match=r"sources must stay as they are, they changed while .*test_1 ran"):
        soak.run_tests(tmp_path / "other", "before")
    assert ran == names[:2] and len(list((tmp_path / "other").glob("*.passed"))) == 1
