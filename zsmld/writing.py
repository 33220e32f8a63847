"""Files that appear whole, or not at all, whatever ends the process that writes them."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def written_whole(path: Path, temporary_name: str | None = None) -> Iterator[Path]:
    """Write to the path this gives; it takes the file's place once all of it is on the disk, and not if writing fails.

    Several may be entered at once, so that files that belong together are all written before the first has its name.

    Args:
        path: of the file, in a folder that is there.
        temporary_name: of the file beside it; default the same for each try, so that a killed one leaves no heap.

    Yields:
        The path to write to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_whole(Path(folder, "words.txt")) as path:
        ...         _ = path.write_text("dog")
        ...         print(path.name)
        ...     print([path.name for path in Path(folder).iterdir()])
        .words.txt.partial
        ['words.txt']
    """
    temporary = path.with_name(temporary_name or f".{path.name}.partial")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def check_folder(folder: str | Path, option: str = "--output", of_file: bool = False) -> None:
    """Refuse a folder that is none and cannot be made; a door asks before the long work. Nothing is made here.

    Args:
        folder: that will be written to.
        option: what it, or a file in it, is called for the user.
        of_file: whether the option names a file in it.

    Raises:
        FileExistsError: if a file is in its place, or in that of a folder that it lies in.
        PermissionError: if nothing may be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     check_folder(file.name)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileExistsError: --output must be a folder, ... is a file; choose another
    """
    folder = Path(folder)
    place = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), Path())
    wanted = "be" if place == folder and not of_file else "lie in"
    if not place.is_dir():
        raise FileExistsError(f"{option} must {wanted} a folder, {place} is a file; choose another")
    if not os.access(place, os.W_OK):
        raise PermissionError(f"{option} must {wanted} a folder that you may write to, {place} is none; choose another")


@contextmanager
def to_the_end(path: str | Path, then: str = "repeat the command") -> Iterator[None]:
    """Around writing: where the disk is full, the error says which file is not there, and what to do.

    Args:
        path: of the file or folder.
        then: what to do once there is room.

    Raises:
        OSError: with both in its message.

    Example:
        >>> with to_the_end("tags.csv", "go on"):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] tags.csv must be written to the end, got No space left on device; make room and go on
    """
    try:
        yield
    except Exception as error:
        full: BaseException | None = error
        while full is not None and not (isinstance(full, OSError) and full.errno in _FULL):
            full = full.__cause__ or full.__context__  # writers of libraries hide what the disk said behind their own
        if full is None:
            raise
        raise OSError(
            full.errno, f"{path} must be written to the end, got {full.strerror or full}; make room and {then}"
        ) from error


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can: a file's content alone is not enough."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
