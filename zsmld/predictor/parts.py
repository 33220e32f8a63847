"""The work folder of a run over a collection: what it is about, and what is finished. No file in it is half there."""

import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from zsmld.predictor.archives import CollectedImage
from zsmld.writing import sync_folder, to_the_end, written_whole

try:
    import fcntl
except ImportError:  # not on Windows: there nothing keeps two runs apart but the number of the run
    fcntl = None  # type: ignore[assignment]

_FORMAT = 2
_MANIFEST, _IMAGES, _SHARDS, _OUTPUTS = "manifest.json", "images.arrow", "shards.json", "outputs.json"
_LOCK = "run.lock"
_SECONDS_UNTIL_LOCKED = 600  # which an empty folder may take, on a slow disk with another clock, until it has its lock
THEN = "repeat the command, what is scored is kept"  # where a disk was full
_IMAGE = pa.schema([("path", pa.string()), ("file", pa.binary()), ("offset", pa.int64()), ("size", pa.int64())])
_PART = re.compile(r"(\d{10,})-(\d{10,})\.arrow")


@dataclass(frozen=True, order=True)
class Part:
    """Some finished images.

    Attributes:
        start, stop: positions in the collection, of the first and behind the last.
        path: the file with their records.
    """

    start: int
    stop: int
    path: Path

    def table(self) -> pa.Table:
        """The records, mapped into memory."""
        with pa.memory_map(str(self.path)) as file:
            return pa.ipc.open_file(file).read_all()


class PartsFolder:
    """The work folder of one output, `OUTPUT.parts/`, and what a run needs to go on where another one stopped.

    `images.arrow` lists the images, `shards.json` says how the tar shards looked, `manifest.json` what the run is about
    and which one it is, and each part `START-STOP.arrow` has the records of the images START to STOP. The folder
    appears with the first three in it. Each file appears whole, or not at all, and survives a power failure once it is
    there. Several processes may add parts at once, on several machines too.

    Args:
        folder: of the parts.

    Raises:
        ValueError: if the folder was made by another version.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as home:
        ...     images = [CollectedImage("a.jpg", "a.jpg")]
        ...     folder = PartsFolder.begin(Path(home, "tags.jsonl.parts"), {"top_k": 5}, images)
        ...     folder.add(0, pa.table({"path": ["a.jpg"]}))
        ...     folder.image(0).path, missing(folder.parts(), len(folder)), folder.differences({"top_k": 3})
        ('a.jpg', [], ['top_k (5 then, 3 now)'])
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            if manifest["format"] != _FORMAT:
                raise ValueError(f"format {manifest['format']}")
            self.run: str = manifest["run"]
            self.identity: dict[str, Any] = manifest["identity"]
            self.images = pa.ipc.open_file(pa.memory_map(str(folder / _IMAGES))).read_all()  # mapped, not loaded
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder} must be the work folder of a run, {error.filename} is not there; give the folder that "
                f"`zsmld predict --output` made"
            ) from error
        except (ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
            raise ValueError(
                f"{folder} must be the work folder of a run of this version, got {error}; start over with "
                f"restart=True (--restart)"
            ) from error

    @classmethod
    def exists(cls, folder: Path) -> bool:
        """Whether a run was begun there."""
        return (folder / _MANIFEST).is_file()

    @classmethod
    def begin(
        cls, folder: Path, identity: Mapping[str, Any], images: Iterable[CollectedImage], replace: bool = False
    ) -> "PartsFolder":
        """A new folder; or the one that another process made there meanwhile.

        Args:
            folder: of the parts.
            identity: what the run is about, as JSON has it: all that its results depend on.
            images: in the order of the records.
            replace: take a folder that is there away, once all of the new one is ready.

        Raises:
            FileExistsError: if something is there that is no work folder; it stays.
        """
        if not (folder.is_dir() if cls.exists(folder) else _is_free(folder)):
            raise FileExistsError(
                f"{folder} must be free for the work of the run, it holds something else; move it, or choose another "
                f"--output"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        cls.remove_leftovers(folder)
        # Under a name of its own until all is in it: then it takes its name in one step, and only one process can.
        private = _private(folder)
        private.mkdir()
        try:
            # Locked, so that nobody takes it for a leftover.
            with to_the_end(folder), locked(private / _LOCK):
                cls._list_images(private, images)
                with written_whole(private / _MANIFEST) as path:
                    content = {"format": _FORMAT, "run": uuid.uuid4().hex, "identity": identity}
                    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
                if replace:
                    cls.remove(folder)
                try:
                    private.rename(folder)
                except OSError:
                    if not cls.exists(folder):
                        raise
                else:
                    sync_folder(folder.parent)
        finally:
            shutil.rmtree(private, ignore_errors=True)
        return cls(folder)

    @staticmethod
    def _list_images(folder: Path, images: Iterable[CollectedImage]) -> None:
        shards: dict[str, tuple[int, int]] = {}
        with written_whole(folder / _IMAGES) as path, pa.ipc.new_file(str(path), _IMAGE) as writer:
            for rows in _portions(images, 65_536):
                shards |= {file: _look(file) for file in {i.file for i in rows if i.offset >= 0} - shards.keys()}
                columns = {
                    "path": [image.path for image in rows],
                    "file": [os.fsencode(image.file) for image in rows],
                    "offset": [image.offset for image in rows],
                    "size": [image.size for image in rows],
                }
                writer.write_table(pa.Table.from_pydict(columns, _IMAGE))
        with written_whole(folder / _SHARDS) as path:
            path.write_text(json.dumps(shards), encoding="utf-8")

    @staticmethod
    def remove(folder: Path) -> None:
        """Take it away; what a process that dies leaves of it is never taken for a run."""
        leaving = _private(folder, ".removed")
        if folder.exists():
            folder.rename(leaving)
            shutil.rmtree(leaving, ignore_errors=True)  # a network disk may hold what another process has mapped

    @staticmethod
    def remove_leftovers(folder: Path) -> None:
        """Take away the private folders of processes that died while they built or removed this one."""
        name = re.compile(re.escape(f".{folder.name}.") + r"[0-9a-f]{32}(\.removed)?")
        for left in list(folder.parent.iterdir()) if folder.parent.is_dir() else []:
            if (found := name.fullmatch(left.name)) is None:
                continue
            if found[1]:
                shutil.rmtree(left, ignore_errors=True)
            elif fcntl is not None:
                with suppress(OSError):  # another process may be at the same
                    _remove_beginning(left)

    @contextmanager
    def at_work(self, shard: tuple[int, int] | None = None) -> Iterator[None]:
        """Keep other runs away: all of them, or for a shard those of the same shard and those of the whole.

        Raises:
            FileExistsError: if another run is at work here.
        """
        if shard is None:
            with self.alone(self.folder):
                yield
            return
        own = self.folder / f"shard-{shard[0]}-of-{shard[1]}.lock"
        with locked(self.folder / _LOCK, shared=True), locked(own):
            yield

    @staticmethod
    def alone(folder: Path) -> AbstractContextManager[None]:
        """Keep all other runs away, also from a folder of another version."""
        return locked(folder / _LOCK)

    def check_current(self) -> None:
        """Whether the folder still belongs to this run.

        Raises:
            FileNotFoundError: if it is gone.
            ValueError: if another run has taken its place.
        """
        try:
            run = json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))["run"]
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.folder} must stay while its run is at work, it is gone; repeat the command"
            ) from error
        if run != self.run:
            raise ValueError(
                f"{self.folder} must belong to one run, another one has started it over; wait for that one, or choose "
                f"another --output"
            )

    def changed_shards(self) -> list[str]:
        """Tar shards that are no longer those that were listed: their size or time of change is another one."""
        content = json.loads((self.folder / _SHARDS).read_text(encoding="utf-8"))
        return [file for file, look in content.items() if os.path.exists(file) and list(_look(file)) != look]

    def note_output(self, temporary: Path, path: Path) -> None:
        """Remember that a file which is about to appear is of this run.

        One that is there in its place, and of this run too, is so until then: a process may die in between.
        """
        noted = json.loads(_read_or(self.folder / _OUTPUTS, "{}"))
        there = [_look(path)] if self.wrote(self.folder, path) else []
        noted[os.path.abspath(path)] = [*there, _look(temporary)]
        with written_whole(self.folder / _OUTPUTS) as file:
            file.write_text(json.dumps(noted), encoding="utf-8")

    @staticmethod
    def wrote(folder: Path, path: Path) -> bool:
        """Whether a file is as the run of the folder wrote it before it was interrupted."""
        noted = json.loads(_read_or(folder / _OUTPUTS, "{}")).get(os.path.abspath(path), [])
        return path.is_file() and list(_look(path)) in noted

    def __len__(self) -> int:
        return self.images.num_rows

    def image(self, row: int) -> CollectedImage:
        """Where an image is."""
        path, file, offset, size = (self.images.column(name)[row].as_py() for name in _IMAGE.names)
        return CollectedImage(path, os.fsdecode(file), offset, size)

    def differences(self, identity: Mapping[str, Any]) -> list[str]:
        """What another run differs in, for a message."""
        identity = json.loads(json.dumps(identity))  # as it came back from the file
        names = [name for name in {**self.identity, **identity} if self.identity.get(name) != identity.get(name)]
        return [f"{name} ({_short(self.identity.get(name))} then, {_short(identity.get(name))} now)" for name in names]

    def parts(self) -> list[Part]:
        """The finished parts, sorted; those that overlap hold the same records."""
        found = []
        for path in self.folder.iterdir():
            named = _PART.fullmatch(path.name)
            if named is None:
                continue
            part = Part(int(named[1]), int(named[2]), path)
            try:
                whole = len(part.table()) == part.stop - part.start
            except (OSError, pa.ArrowException):  # a disk may lose what it had: then it is to be done again
                whole = False
            if whole:
                found.append(part)
        return sorted(found)

    def add(self, start: int, records: pa.Table) -> None:
        """Keep the records of the images from `start` on; they are on the disk when this returns.

        Raises:
            FileNotFoundError, ValueError: if the folder is no longer that of this run, see `check_current`.
            OSError: if they cannot be written, on a full disk for instance.
        """
        self.check_current()
        path = self.folder / f"{start:010d}-{start + len(records):010d}.arrow"
        name = f".{uuid.uuid4().hex}.partial"
        with (
            to_the_end(path, THEN),
            written_whole(path, name) as temporary,
            pa.ipc.new_file(str(temporary), records.schema) as writer,
        ):
            writer.write_table(records)


def missing(parts: Sequence[Part], num_images: int) -> list[tuple[int, int]]:
    """The gaps (start, stop) that sorted parts leave.

    Example:
        >>> missing([Part(0, 4, Path()), Part(2, 6, Path()), Part(8, 9, Path())], 10)
        [(6, 8), (9, 10)]
    """
    gaps, reached = [], 0
    for part in [*parts, Part(num_images, num_images, Path())]:
        if part.start > reached:
            gaps.append((reached, part.start))
        reached = max(reached, part.stop)
    return gaps


def in_chunks(parts: Sequence[Part], size: int) -> Iterator[pa.Table]:
    """The records of sorted parts without gaps, `size` at a time, however they are divided."""
    held: list[pa.Table] = []
    reached = 0
    for part in parts:
        if part.stop <= reached:
            continue
        table = part.table().slice(reached - part.start)
        reached = part.stop
        held.append(table)
        while sum(map(len, held)) >= size:
            whole = pa.concat_tables(held)
            yield whole.slice(0, size)
            held = [whole.slice(size)]
    if sum(map(len, held)):
        yield pa.concat_tables(held)


@contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a file, for this process and not for those that it forks: they may outlive it.

    Args:
        path: of the file, which is made.
        shared: beside others that share it, instead of alone.

    Raises:
        FileExistsError: if another process holds it.
    """
    with path.open("a+b") as file:
        if not _lock(file, shared):
            raise FileExistsError(f"another run is at work in {path.parent}; wait for it, or choose another --output")
        yield


def _lock(file: BinaryIO, shared: bool = False) -> bool:
    if fcntl is not None:
        try:
            fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:  # any other means that the disk knows no locks
            return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _private(folder: Path, then: str = "") -> Path:
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{then}")


def _remove_beginning(folder: Path) -> None:
    """Take away a private folder, unless the process that builds it is alive."""
    if not any(folder.iterdir()):
        if time.time() - folder.stat().st_mtime > _SECONDS_UNTIL_LOCKED:
            folder.rmdir()
    elif not (folder / _LOCK).exists():
        shutil.rmtree(folder, ignore_errors=True)  # half removed
    else:
        with (folder / _LOCK).open("r+b") as file:
            if _lock(file):
                shutil.rmtree(folder, ignore_errors=True)


def _is_free(folder: Path) -> bool:
    return not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))


def _look(file: str | Path) -> tuple[int, int]:
    """What changes when a file does: its size in bytes and its time of change in nanoseconds."""
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def _read_or(path: Path, missing: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return missing


def _portions(images: Iterable[CollectedImage], size: int) -> Iterator[list[CollectedImage]]:
    held = []
    for image in images:
        held.append(image)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "…"
