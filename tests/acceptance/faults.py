"""What the fault tests share: processes that are killed at random moments, full disks, and what a soak run measured.

`make acceptance` does each thing a few times. ZSMLD_SOAK names a folder: then each is done in full, and what it
measured is kept there, one file a piece; evaluation/soak.py makes its report of them.
"""

import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from zsmld.cli import main

SOAK = os.environ.get("ZSMLD_SOAK")
NUM_KILLS = 50 if SOAK else 4
PAGE = 4096
Work = Callable[[], int]

for _name in ("accelerate", "jsonargparse", "timm", "zsmld.evaluator", "zsmld.recipe", "zsmld.trainer"):
    importlib.import_module(_name)  # else each child would do it again

# What changes files, of Python's audit events; kernels, Arrow and safetensors are reached by the clock alone.
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"}


class Child:
    """Work in a fork of this process: a process group of its own, with every import done already.

    Args:
        work: gives the exit status.
        folder: the working folder.
        dies_at: the whole group is killed at its change of a file of that number, from 0.
    """

    def __init__(self, work: Work, folder: Path, dies_at: int | None = None) -> None:
        self.said = folder.with_name(f"{folder.name}.said")
        self.started = time.monotonic()
        self._counted, tell = os.pipe()
        self.id = os.fork()
        if self.id == 0:
            try:
                os.setpgid(0, 0)
                os.chdir(folder)
                said = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(said, 1)
                os.dup2(said, 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # pytest's own lead elsewhere
                torch.set_num_threads(1)
                _count_changes(tell, dies_at)
                status = work()
            except BaseException:
                import traceback

                traceback.print_exc()
                status = 99
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        with suppress(OSError):  # the child may have done so, and be at its end
            os.setpgid(self.id, self.id)
        os.close(tell)

    def wait(self, seconds: float | None = None, limit: float = 3600) -> int | None:
        """The exit status, −9 if it was killed; None if it goes on after these seconds."""
        until = self.started + (limit if seconds is None else seconds)
        while time.monotonic() < until:
            found, status = os.waitpid(self.id, os.WNOHANG)
            if found:
                self.num_changes = sum(len(part) for part in iter(lambda: os.read(self._counted, 65536), b""))
                os.close(self._counted)
                self.seconds = time.monotonic() - self.started
                self.status = os.waitstatus_to_exitcode(status)
                return self.status
            time.sleep(0.002)
        assert seconds is not None, f"it hangs: {self.said.read_text()}"
        return None

    def kill(self) -> None:
        """The whole group, at once."""
        os.killpg(self.id, signal.SIGKILL)


def _count_changes(tell: int, dies_at: int | None) -> None:
    """From now on in this process: each change of a file is one byte to `tell`, and the group dies at one of them."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in _CHANGES or (writes and not str(arguments[0]).startswith("/dev")):
            count += 1
            os.write(tell, b".")
            if count - 1 == dies_at:
                if writes and arguments[2] & os.O_TRUNC:  # just after: what was there is gone, and nothing is new
                    os.close(os.open(arguments[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(hook)


def watched(child: Child, every: float = 0.1) -> tuple[list[tuple[float, float, float]], int]:
    """Waits for the end of a child.

    Returns:
        Samples of (seconds since it began, MiB that it and its own children hold, MiB of these that no file backs), and
        its exit status.
    """
    process, samples = psutil.Process(child.id), [(0.0, 0.0, 0.0)]
    while (status := child.wait(time.monotonic() - child.started + every)) is None:
        with suppress(psutil.NoSuchProcess):
            held = [one.memory_info() for one in (process, *process.children(recursive=True))]
            rss, shared = (sum(getattr(one, name) for one in held) / 2**20 for name in ("rss", "shared"))
            samples.append((round(time.monotonic() - child.started, 2), round(rss, 1), round(rss - shared, 1)))
    return samples[1:], status


def command(*arguments: str) -> Work:
    """`zsmld ARGUMENTS`."""
    return lambda: main(list(arguments))


def run(work: Work, folder: Path) -> Child:
    """Undisturbed to its end; it has `seconds` and `num_changes` then."""
    folder.mkdir(parents=True, exist_ok=True)
    child = Child(work, folder)
    status = child.wait()
    assert status in (0, 1), child.said.read_text()
    return child


def kill_again_and_again(
    piece: str,
    work: Work,
    begin: Callable[[], Path],
    check_killed: Callable[[Path], None],
    check_done: Callable[[Path], None],
    is_done: Callable[[Path, str], bool] = lambda folder, said: False,
) -> None:
    """SIGKILL at random moments, and the same work again, until enough were killed.

    Every second moment is drawn from the time that the whole work takes, with start and end; the others are a change
    of a file, which is where half a file would be left.

    Args:
        piece: name of what is measured.
        work: what is killed, repeated when it was killed, and must come to its end at last.
        begin: gives a new working folder, for the first run and whenever the work is done.
        check_killed: of the folder, after each kill.
        check_done: of the folder, when the work has come to its end.
        is_done: whether a repeated work that is refused has nothing left to do, by its folder and what it said.
    """
    whole = run(work, begin())
    chance, since = random.Random(piece), time.monotonic()
    killed: dict[str, list[float]] = {"clock": [], "change": []}
    num_done, folder = 0, begin()
    while sum(map(len, killed.values())) < NUM_KILLS:
        by = "clock" if len(killed["clock"]) <= len(killed["change"]) else "change"
        moment = chance.random()
        dies_at = int(moment * whole.num_changes) if by == "change" else None
        child = Child(work, folder, dies_at)
        status = child.wait(moment * 1.05 * whole.seconds if by == "clock" else None)
        if status is None:
            child.kill()
            status = child.wait()
        if status == -signal.SIGKILL:
            killed[by].append(moment)
            check_killed(folder)
            continue
        said = child.said.read_text()
        assert status in (0, 1) or is_done(folder, said), said
        check_done(folder)
        folder, num_done = begin(), num_done + 1
    child = Child(work, folder)
    status = child.wait()
    assert status in (0, 1) or is_done(folder, child.said.read_text()), child.said.read_text()
    check_done(folder)
    keep(
        piece,
        {
            "kills": NUM_KILLS,
            "by the clock": len(killed["clock"]),
            "at a change of a file": len(killed["change"]),
            "runs that came to their end": num_done + 1,
            "seconds of an undisturbed run": round(whole.seconds, 2),
            "changes of files in it": whole.num_changes,
            "seconds in all": round(time.monotonic() - since),
        },
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by path; hidden files and those of its folders as well."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def small_disk(folder: Path, mounts: bool) -> Iterator[Callable[[Work, float, list[int]], Child]]:
    """A disk in the place of a folder, which is there to be full.

    Args:
        folder: its place; empty at the end.
        mounts: a disk, see `may_mount`; else a plain folder, in which files can grow to a size and no more.

    Yields:
        What runs a work to its end where there is room for a share of what it writes, by the sizes of those files: of
        all their pages on a disk, of the largest of them in a plain folder. After it, there is room.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def run_on_full_disk(work: Work, share: float, sizes: list[int]) -> Child:
        filler, num_pages = folder / ".filler", sum(-(-size // PAGE) for size in sizes)
        filler.write_bytes(bytes(shutil.disk_usage(folder).free - int(share * num_pages) * PAGE))
        child = Child(work, folder)
        child.wait()
        filler.unlink()
        return child

    def run_with_limit(work: Work, share: float, sizes: list[int]) -> Child:
        child = Child(lambda: limited(work, int(share * max(sizes))), folder)
        child.wait()
        return child

    if mounts:
        _mount(folder)
    try:
        yield run_on_full_disk if mounts else run_with_limit
    finally:
        if mounts:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        else:
            shutil.rmtree(folder)


def _mount(folder: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={64 * 2**20}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True, capture_output=True)


@cache
def may_mount() -> bool:
    """Whether this process has the right to mount a disk: root has it, but not in every container."""
    with tempfile.TemporaryDirectory() as folder, suppress(OSError, subprocess.CalledProcessError):
        _mount(Path(folder))
        subprocess.run(["umount", folder], check=True)
        return True
    return False


def limited(work: Work, num_bytes: int) -> int:
    """The work, with an error for whoever would write more into a file: EFBIG, as Python ignores SIGXFSZ."""
    said, (_, hard) = io.StringIO(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        with redirect_stdout(said), redirect_stderr(said):  # what it says goes into a file as well
            return work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        sys.stdout.write(said.getvalue())


def keep(piece: str, figures: dict[str, Any], **series: Any) -> None:
    """What a soak run measured."""
    if SOAK:
        path = Path(SOAK, f"{piece}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"figures": figures, **series}, indent=1) + "\n", encoding="utf-8")
