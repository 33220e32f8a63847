"""The images of a collection: loose files, and the members of tar shards, which are read when they are needed."""

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

from zsmld.images import ImageSource
from zsmld.predictor.sources import IMAGE_SUFFIXES, list_images

_BLOCK = 512  # bytes; a tar file is made of these, and ends with one of zeros
_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|Z)|tgz|tbz2?|txz)$", re.IGNORECASE)
# What tarfile raises of headers that make no sense; its own errors are of a few alone.
_DAMAGE = (tarfile.TarError, OSError, ValueError, OverflowError, LookupError, EOFError, RecursionError)
_LARGEST_SPARSE = 2**30  # bytes; a sparse member of a few may claim any number


@dataclass(frozen=True)
class CollectedImage:
    """Where one image of a collection is.

    Attributes:
        path: what its record is called: that of the file, or `SHARD.tar/MEMBER`. Bytes that are no UTF-8 stand as
            `\\xe9`, so that every record can be written.
        file: the file, or the shard it is in.
        offset: in bytes, of the image in its shard; -1 for a file of its own.
        size: in bytes, in its shard; -1 for a member that is not simply there, such as a sparse one or a link: then
            the offset is that of its header, and tarfile reads it.
    """

    path: str
    file: str
    offset: int = -1
    size: int = -1

    def source(self) -> ImageSource:
        """What `Predictor.predict` and `load_image` take."""
        return self.file if self.offset < 0 else cast(BinaryIO, ArchivedImage(self))


class ArchivedImage:
    """A member of a tar shard as an open file, whose bytes are read when the first of them is asked for.

    Nothing is open before, so that it can be handed to a process that decodes.

    Args:
        place: where it is.
    """

    def __init__(self, place: CollectedImage) -> None:
        self.name = place.path
        self._place = place
        self._content: io.BytesIO | None = None

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes from here on; all for -1."""
        return self._opened().read(size)

    def readline(self, size: int = -1) -> bytes:
        """The bytes up to the next end of a line."""
        return self._opened().readline(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; the new position in bytes."""
        return self._opened().seek(offset, whence)

    def tell(self) -> int:
        """The position in bytes."""
        return self._opened().tell()

    def _opened(self) -> io.BytesIO:
        if self._content is None:
            with _Shard(self._place.file) as file:
                file.seek(self._place.offset)
                content = file.read(self._place.size) if self._place.size >= 0 else _through_tarfile(file)
                self._content = io.BytesIO(content)
        return self._content


class _Shard(io.BufferedReader):
    """A tar file. Asked for more than it has, it takes no memory for that: a header may claim any number of bytes."""

    def __init__(self, path: str) -> None:
        super().__init__(io.FileIO(path))
        self._end = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._end - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def list_collection(images: str | Path | Iterable[str | Path]) -> Iterator[CollectedImage]:
    """Every image that paths, folders, globs and tar shards stand for, in order; no image is read.

    Of a shard, which must be an uncompressed `.tar`, the headers are read, and each member is an image whose name ends
    like one. A hard link is the image it stands for; a symbolic link is an image that cannot be read. What a shard that
    is damaged or cut off still holds is listed, and then the shard itself: as an image that cannot be read, it becomes
    an error record. An image whose path is listed twice comes twice.

    Args:
        images: a path, a folder (searched below, sorted), a glob, or a list of these.

    Raises:
        FileNotFoundError: if a folder or glob, or a path alone, matches nothing.
        TypeError: if something is no path.
        ValueError: if a shard is compressed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (8, 8)).save(folder + "/a.png")
        ...     with tarfile.open(folder + "/000.tar", "w") as shard:
        ...         shard.add(folder + "/a.png", "b.png")
        ...     [os.path.relpath(image.path, folder) for image in list_collection(folder)]
        ['000.tar/b.png', 'a.png']
    """
    if isinstance(images, (str, Path)):
        yield from _listed(images, images)
        return
    for given in images:
        if not isinstance(given, (str, Path)):
            raise TypeError(
                f"images must be paths, folders, globs or tar shards to make a collection, got "
                f"{type(given).__name__}; use Predictor.predict for images in memory"
            )
        yield from _listed(given, [given])


def _listed(given: str | Path, asked: str | Path | list[str | Path]) -> Iterator[CollectedImage]:
    """The images of one path; `asked` says whether it stands alone or in a list, where one may be missing."""
    archives = sorted(p for p in Path(given).rglob("*.tar") if p.is_file()) if Path(given).is_dir() else []
    try:
        paths = [*map(str, list_images(asked)), *map(str, archives)]
    except FileNotFoundError:
        if not archives:
            raise
        paths = [str(path) for path in archives]
    # Sorted as `list_images` sorts, part by part of the path, where shards stand among loose files.
    for path in sorted(paths, key=lambda p: Path(p).parts) if archives else paths:
        if _COMPRESSED.search(path):
            raise ValueError(
                f"a tar shard must be uncompressed, so that its images can be found again, got {path}; unpack it to "
                f"a .tar, images are compressed as they are"
            )
        if path.lower().endswith(".tar") and os.path.isfile(path):
            yield from _members(path)
        else:
            yield CollectedImage(printable(path), path)


def _members(shard: str) -> Iterator[CollectedImage]:
    """The images of a shard; at last the shard itself if it does not end as a tar file does."""
    end = 0
    targets: dict[str, tuple[int, int]] | None = None
    try:
        with _Shard(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                end = archive.offset
                is_link = member.islnk() or member.issym()
                if not (member.isreg() or is_link) or os.path.splitext(member.name)[1].lower() not in IMAGE_SUFFIXES:
                    continue
                place = _place(member)
                if member.islnk():
                    targets = _targets(shard) if targets is None else targets  # memory for shards that have links
                    place = targets.get(member.linkname, place)
                yield CollectedImage(printable(f"{shard}/{member.name.removeprefix('./')}"), shard, *place)
            file.seek(end)
            whole = file.read(_BLOCK) == bytes(_BLOCK)  # tarfile takes any rubbish for the end
    except _DAMAGE:
        whole = False
    if not whole:
        yield CollectedImage(printable(shard), shard)


def _place(member: tarfile.TarInfo) -> tuple[int, int]:
    """Offset and size of a member, as `CollectedImage` has them."""
    simple = member.isreg() and not member.issparse()
    return (member.offset_data, member.size) if simple else (member.offset, -1)


def _targets(shard: str) -> dict[str, tuple[int, int]]:
    """Where the members are that a hard link may stand for, up to the damage if there is one."""
    found: dict[str, tuple[int, int]] = {}
    with suppress(*_DAMAGE), _Shard(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]
            if member.isreg():
                found[member.name] = _place(member)
            elif member.linkname in found:
                found[member.name] = found[member.linkname]
    return found


def _through_tarfile(file: BinaryIO) -> bytes:
    """The content of the member whose header, or what stands before it, begins here."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            member = archive.next()
            if member is not None and member.isreg() and member.size <= _LARGEST_SPARSE:
                return cast(IO[bytes], archive.extractfile(member)).read()
    except _DAMAGE as error:
        raise OSError(f"its shard is damaged, {error}") from error
    if member is None or not member.isreg():
        target = "nothing" if member is None else member.linkname
        raise OSError(f"it is a link to {target}, which is not in the shard")
    raise OSError(f"it is sparse and {member.size} bytes long")


def printable(path: str | Path) -> str:
    """A path as text that can be written anywhere: bytes that are no UTF-8 as `\\xe9`.

    Example:
        >>> printable("caf\\udce9.jpg")
        'caf\\\\xe9.jpg'
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")
