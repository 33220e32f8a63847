"""Where the bundled files are."""

import json
import subprocess
from pathlib import Path

import pytest

import zsmld.resources
from zsmld import resources
from zsmld.resources import git_revision, resource_path

ROOT = Path(__file__).resolve().parent.parent


def test_every_bundled_file_is_found_where_it_is() -> None:
    files = [path for folder in ("data", "configs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert len(files) >= 2
    for path in files:
        assert resource_path(*path.relative_to(ROOT).parts).read_bytes() == path.read_bytes()
    assert resource_path("configs").is_dir()


def test_scenes_partition_is_whole() -> None:
    partition = json.loads(resource_path("data", "scenes", "partition.json").read_text())
    assert len(partition["seen"]) == 80 and len(partition["unseen"]) == 20


@pytest.mark.parametrize("parts", [("data", "nothing.json"), ("configs", "nothing.yaml"), ("nothing",)])
def test_missing_file_is_named(parts: tuple[str, ...]) -> None:
    message = rf"{'/'.join(parts)} must be among the files that come with zsmld, not found at .*; install zsmld again"
    with pytest.raises(FileNotFoundError, match=message):
        resource_path(*parts)


def test_a_wheel_uses_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("a: 1")
    monkeypatch.setattr(zsmld.resources, "_BUNDLED", tmp_path)
    assert resource_path("configs", "mine.yaml") == tmp_path / "configs" / "mine.yaml"
    with pytest.raises(FileNotFoundError):
        resource_path("data", "scenes", "partition.json")


def test_the_revision_of_a_checkout_is_a_commit() -> None:
    revision = git_revision()
    if not (ROOT / ".git").exists():
        assert revision is None
        return
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert revision is not None and len(revision.removesuffix("-dirty")) >= 12
    assert commit.startswith(revision.removesuffix("-dirty"))


def test_outside_a_checkout_there_is_no_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "zsmld")
    git_revision.cache_clear()
    assert git_revision() is None
    (tmp_path / ".git").mkdir()  # no repository
    git_revision.cache_clear()
    assert git_revision() is None
    git_revision.cache_clear()
