"""The work folder of a run over a collection: what it is about, and what is finished. No file in it is half there."""

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from zsmld.predictor.archives import CollectedImage

_FORMAT = 1
_MANIFEST, _IMAGES = "manifest.json", "images.arrow"
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

    `images.arrow` lists the images, `manifest.json` says what the run is about and is written after it, and each part
    `START-STOP.arrow` has the records of the images START to STOP. Each file appears whole, or not at all, and survives
    a power failure once it is there. Several processes may add parts at once, on several machines too.

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
            self.identity: dict[str, Any] = manifest["identity"]
            self.images = pa.ipc.open_file(pa.memory_map(str(folder / _IMAGES))).read_all()  # mapped, not loaded
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder} must be the work folder of a run, {error.filename} is not there; give the folder that "
                f"`zsmld predict --output` made"
            ) from error
        except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise ValueError(
                f"{folder} must be the work folder of a run of this version, got {error}; start over with "
                f"restart=True (--restart)"
            ) from error

    @classmethod
    def exists(cls, folder: Path) -> bool:
        """Whether a run was begun there."""
        return (folder / _MANIFEST).is_file()

    @classmethod
    def begin(cls, folder: Path, identity: Mapping[str, Any], images: Iterable[CollectedImage]) -> "PartsFolder":
        """A new folder.

        Args:
            folder: of the parts.
            identity: what the run is about, as JSON has it: all that its results depend on.
            images: in the order of the records.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():  # of a run that never came to its manifest, or lost it
            if _PART.fullmatch(path.name) or path.suffix == ".partial":
                path.unlink()
        try:
            cls._list_images(folder, images)
        except BaseException:
            with suppress(OSError):  # it is not empty, then it is somebody's
                folder.rmdir()
            raise
        with written_whole(folder / _MANIFEST) as path:
            content = {"format": _FORMAT, "identity": identity}
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return cls(folder)

    @staticmethod
    def _list_images(folder: Path, images: Iterable[CollectedImage]) -> None:
        with written_whole(folder / _IMAGES) as path, pa.ipc.new_file(str(path), _IMAGE) as writer:
            for rows in _portions(images, 65_536):
                columns = {
                    "path": [image.path for image in rows],
                    "file": [os.fsencode(image.file) for image in rows],
                    "offset": [image.offset for image in rows],
                    "size": [image.size for image in rows],
                }
                writer.write_table(pa.Table.from_pydict(columns, _IMAGE))

    @staticmethod
    def remove(folder: Path) -> None:
        """Take it away; what a process that dies leaves of it is never taken for a run."""
        leaving = folder.with_name(folder.name + ".removed")
        shutil.rmtree(leaving, ignore_errors=True)
        if folder.exists():
            folder.rename(leaving)
            shutil.rmtree(leaving, ignore_errors=True)  # a network disk may hold what another process has mapped

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
        """Keep the records of the images from `start` on; they are on the disk when this returns."""
        path = self.folder / f"{start:010d}-{start + len(records):010d}.arrow"
        name = f".{uuid.uuid4().hex}.partial"
        with written_whole(path, name) as temporary, pa.ipc.new_file(str(temporary), records.schema) as writer:
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
def written_whole(path: Path, temporary_name: str | None = None) -> Iterator[Path]:
    """Write to the path this gives; it takes the file's place once all of it is on the disk, and not if writing fails.

    Args:
        path: of the file; its folder is made.
        temporary_name: of the file beside it; default the same for each try, so that a killed one leaves no heap.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(temporary_name or f".{path.name}.partial")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the name is on the disk only when the folder is
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
