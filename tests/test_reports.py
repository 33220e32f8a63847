"""The reports' commands, and the tables of README and docs that are theirs."""

import json
import re
from pathlib import Path

import pytest
from scripts import load_script

from zsmld.reading import digest_of

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "evaluation" / "reports"
make_reports = load_script(ROOT / "evaluation" / "make_reports.py")
SHOWN = [  # the tables that README shows, in both languages
    ("scenes_zsl", 1),
    ("zero_shot_study", 1),
    ("zero_shot_study", 3),
    ("query_augmentation_scenes", 1),
    ("query_augmentation_scenes", 3),
    ("query_augmentation_photos", 1),
    ("query_augmentation_photos", 3),
    ("benchmark_head", 1),
]


def test_every_report_has_its_command() -> None:
    found = {path.stem: json.loads(path.read_text(encoding="utf-8"))["command"] for path in REPORTS.glob("*.json")}
    assert found == {name: f"python {command}" for name, command in make_reports.REPORTS.items()}
    assert {path.stem for path in REPORTS.glob("*.md")} == set(found)
    for command in make_reports.REPORTS.values():
        assert (ROOT / command.split()[0]).is_file()


def test_reports_on_the_shipped_model_are_of_this_one() -> None:
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in REPORTS.glob("*.json")}
    said = {name: content["shipped_model"] for name, content in found.items() if "shipped_model" in content}
    assert said.keys() == {"scenes_zsl", "calibration_scenes", "benchmark_head", "export", "query_augmentation_scenes"}
    said["reproducibility"] = found["reproducibility"]["first_and_shipped"]["sha256"][1]
    now = digest_of(ROOT / "data" / "scenes" / "model" / "model.safetensors")
    assert [name for name in said if said[name] != now] == [], (
        "run `python evaluation/make_reports.py` with these names"
    )


def test_no_table_is_stale() -> None:
    stale = [page for page in make_reports.pages() if make_reports.with_tables(text := page.read_text("utf-8")) != text]
    assert not stale, "run `python evaluation/make_reports.py --tables`"


def test_every_table_of_figures_is_copied() -> None:
    for page in make_reports.pages():
        text = page.read_text(encoding="utf-8")
        copied = [(Path(path).stem, int(number)) for path, number, _ in make_reports.COPIED.findall(text)]
        if page.name.startswith("README"):
            assert copied == SHOWN
        assert text.count("<!-- copied:") == len(copied), f"{page}: a mark that no table follows"
        if "notebooks" in page.parts:  # what a cell printed
            continue
        by_hand = make_reports.COPIED.sub("", text)
        for row in re.findall(r"^\|.*$", re.sub(r"(?s)```.*?```", "", by_hand), re.MULTILINE):
            assert len(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", row)) < 3, (
                f"{page}: a figure that no report keeps: {row}"
            )


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "README.zh-CN.md"], ids=lambda page: page.stem)
def test_a_stale_table_is_found_and_written(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    (table,) = make_reports.tables(REPORTS / "scenes_zsl.md")
    figures = next(cells for row in table[2:] if text.count(cells := row.split("|", 2)[2]) == 1)
    stale = text.replace(figures, re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), figures))
    assert make_reports.with_tables(stale) == text


def test_rows_that_are_new_come_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("# A\n\n| a | b |\n|---|---|\n| word | 1.5 |\n\nend\n\n| c |\n|---|\n| 2 |\n")
    there = "text\n\n<!-- copied: report.md, table 1 -->\n\n| a | 乙 |\n|---|---|\n\nmore | than\n"
    now = make_reports.with_tables(there, tmp_path)
    assert now == there.replace("| a | 乙 |\n|---|---|\n", "| a | b |\n|---|---|\n| word | 1.5 |\n")
    translated = there.replace("|---|---|\n", "|---|---|\n| 词 | 1.0 |\n")
    assert make_reports.with_tables(translated, tmp_path) == translated.replace("| 词 | 1.0 |", "| 词 | 1.5 |")
    assert make_reports.tables(tmp_path / "report.md")[1] == ["| c |", "|---|", "| 2 |"]


def test_what_cannot_be_measured_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_reports, "PHOTOS", tmp_path / "none")
    ran = []
    monkeypatch.setattr(make_reports.subprocess, "run", lambda command, cwd: ran.append(command) or Finished(len(ran)))
    left = make_reports.measure(["export", "scenes_zsl", "zero_shot_study"])
    assert [name.split(" ")[0] for name in left] == ["export", "scenes_zsl", "zero_shot_study"]
    assert len(ran) == 1 and ran[0][1:] == ["evaluation/scenes_zsl.py"]
    monkeypatch.setattr("sys.argv", ["make_reports.py", "nothing"])
    with pytest.raises(SystemExit):
        make_reports.main()
    assert "NAME must be a report, got nothing; there are scenes_zsl" in capsys.readouterr().err


class Finished:
    """What a command came to."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode
