"""A file is the old one or the new one, whatever happens while it is written."""

import errno
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from zsmld.writing import check_folder, to_the_end, written_whole


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").touch()
    for folder in (".", "new", "new/er", tmp_path, tmp_path / "new"):
        check_folder(folder)
    with pytest.raises(FileExistsError, match="--output must be a folder, a is a file; choose another"):
        check_folder("a")
    with pytest.raises(FileExistsError, match="--index must lie in a folder, a is a file; choose another"):
        check_folder("a/b/c", "--index")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"--output must lie in a folder that you may write to, \. is none"):
        check_folder("new")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), ValueError("wrong")])
@pytest.mark.parametrize("at", ["content", "fsync", "rename"])
@pytest.mark.parametrize("old", ["old", None])
def test_what_fails_leaves_what_was_there(
    error: BaseException, at: str, old: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        if at != "content":
            patch.setattr(*((os, "fsync") if at == "fsync" else (Path, "replace")), fail)
        with pytest.raises(type(error)), written_whole(path) as temporary:
            temporary.write_text("half")
            if at == "content":
                raise error
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if old is None else [old])
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() or path.read_text() == old
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_one_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.partial").write_text("much longer than what comes")
    with written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "new"}


def test_files_that_belong_together_get_their_names_from_the_last_to_the_first(tmp_path: Path) -> None:
    names, seen = ["a", "b", "c"], []
    with ExitStack() as written:
        written.callback(lambda: seen.append(sorted(path.name for path in tmp_path.iterdir())))
        for name in names:
            written.enter_context(written_whole(tmp_path / name)).write_text(name)
            written.callback(lambda: seen.append(sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".")))
    assert seen == [[], ["c"], ["b", "c"], ["a", "b", "c"]]


def test_only_a_full_disk_is_told_with_its_remedy() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        expected = r"a.txt must be written to the end, got .*; make room and go on"
        with pytest.raises(OSError, match=expected) as caught, to_the_end("a.txt", "go on"):
            raise OSError(number, os.strerror(number))
        assert caught.value.errno == number
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"), to_the_end("a.txt"):
        raise FileNotFoundError(errno.ENOENT, "not there", "gone.jpg")


def test_a_full_disk_behind_the_error_of_a_library_is_found() -> None:
    def wrapped(number: int) -> None:
        try:
            try:
                raise OSError(number, os.strerror(number))
            except OSError:
                raise RuntimeError("writer failed")  # noqa: B904 (torch's writer gives no cause either)
        except RuntimeError as error:
            raise ValueError("another format") from error

    with pytest.raises(OSError, match=r"a\.txt must be written to the end") as caught, to_the_end("a.txt"):
        wrapped(errno.ENOSPC)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(ValueError, match="another format"), to_the_end("a.txt"):
        wrapped(errno.EACCES)
