"""What the fuzz tests stand on: a reader that breaks the law is noticed, and stopped if it does not end."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzing import TooSlow, bounded, is_refused


def spin(folder: Path) -> None:
    while True:
        try:
            sum(range(1000))
        except Exception:  # as a reader that takes every error for damage
            continue


@pytest.mark.timeout(100)
def test_a_reader_that_never_ends_is_stopped(tmp_path: Path) -> None:
    before = time.process_time()
    with pytest.raises(TooSlow, match=r"not done after 0\.5 s of processor time"):
        is_refused(lambda: spin(tmp_path), tmp_path, ["a.csv"], seconds=0.5)
    assert 0.4 < time.process_time() - before < 5
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0), "what follows has no bound"
    assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100, "pytest-timeout's clock must go on"


def test_a_reader_that_waits_is_given_the_time_on_the_wall(tmp_path: Path) -> None:
    with bounded(tmp_path, seconds=0.5):
        time.sleep(1)


def test_a_reader_that_only_waits_is_stopped_by_the_clock_of_the_test(tmp_path: Path) -> None:
    """As TooSlow, which Hypothesis lets through: after a failure it reads again, and this clock strikes once."""

    def wait() -> None:
        pytest.fail("Timeout (>900.0s) from pytest-timeout.")

    with pytest.raises(TooSlow, match=r"Timeout \(>900"):
        is_refused(wait, tmp_path, ["a.csv"])


@pytest.mark.parametrize("change", [os.rename, os.replace, os.link, os.symlink])
@pytest.mark.parametrize("outside", ["source", "target"])
def test_a_reader_that_reaches_out_of_its_folder_is_noticed(
    change: Callable[[Path, Path], None], outside: str, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    source, target = ((tmp_path if outside == name else tmp_path / "in") / name for name in ("source", "target"))
    source.write_text("x")
    with pytest.raises(AssertionError, match=f"a reader must only read, it did .*{outside}"):
        is_refused(lambda: change(source, target), tmp_path / "in", ["a.csv"])


@pytest.mark.parametrize("change", [os.rename, os.replace, os.link, os.symlink])
def test_a_reader_may_do_so_within_its_folder(change: Callable[[Path, Path], None], tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    assert not is_refused(lambda: change(tmp_path / "a", tmp_path / "b"), tmp_path, ["a.csv"])


def test_a_link_is_meant_from_where_it_stands(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert not is_refused(lambda: os.symlink("a", tmp_path / "in" / "b"), tmp_path / "in", ["a.csv"])
    with pytest.raises(AssertionError, match=r"a reader must only read, it did .*os\.symlink"):
        is_refused(lambda: os.symlink("../a", tmp_path / "in" / "c"), tmp_path / "in", ["a.csv"])
