"""Where a copy of NUS-WIDE keeps its lists and its images."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from zsmld.datasets.rows import finder

_TOPS = ("", "NUS-WIDE", "NUS_WIDE", "nuswide")
_FOLDERS = ("Flickr", "images", "image", "")
_OFFICIAL = "<class>/<number>_<Flickr id>.jpg"
# What the file of a row of Imagelist.txt may be called: by its class, its name there, and its Flickr id.
_NAMES = {
    _OFFICIAL: "{0}/{1}",
    "<number>_<Flickr id>.jpg": "{1}",
    "<Flickr id>.jpg": "{2}.jpg",
    "<Flickr id>_m.jpg": "{2}_m.jpg",
}
# As Flickr's addresses end; a widespread copy has the row of Imagelist.txt, from 0, in front.
_FLICKR = "[<row>_]<Flickr id>_<secret>_m.jpg"
_FLICKR_NAME = re.compile(r"(?:(\d+)_)?(\d+)_[0-9a-fA-F]+_m\.jpg")


def locate(root: Path, *paths: str) -> Path | None:
    """The first of some relative paths that exists in a download, or in a folder `NUS-WIDE/` of it, in any case."""
    for top in _TOPS:
        for path in paths:
            found = _in_any_case(root / top, path) if not top or (root / top).is_dir() else None
            if found is not None:
                return found
    return None


def _in_any_case(folder: Path, path: str) -> Path | None:
    if (folder / path).exists():
        return folder / path
    for part in Path(path).parts:
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        alike = [name for name in names if name.lower() == part.lower()]
        if not alike:
            return None
        folder = folder / alike[0]
    return folder


def parts_of(name: str) -> tuple[str, str, str]:
    """Class, file and Flickr id of an image of the official list.

    Example:
        >>> parts_of("actor/0001_2124494179.jpg")
        ('actor', '0001_2124494179.jpg', '2124494179')
    """
    folder, _, file = name.rpartition("/")
    return folder, file, file.rpartition(".")[0].rpartition("_")[2]


def image_paths(root: Path, names: Sequence[str]) -> tuple[list[str], dict[str, object]]:
    """Paths of listed images relative to a folder, in the layout of which most are there.

    Args:
        root: folder of the images, or one above it.
        names: M names of the official list, "actor/0001_2124494179.jpg".

    Returns:
        M paths, also of images that are not there, and what the manifest says of them.
    """
    parts = [parts_of(name) for name in names]
    classes = {part[0] for part in parts}
    best = 0, [f"Flickr/{name}" for name in names], "Flickr", _OFFICIAL
    for folder in _FOLDERS:
        if not (root / folder).is_dir():
            continue
        there = _listing(root / folder, classes)
        if not there:
            continue
        for layout, template in _NAMES.items():
            paths = [template.format(*part).lstrip("/") for part in parts]
            best = _better(best, paths, there, folder, layout)
        files = {m[1] or m[2]: m for m in map(_FLICKR_NAME.fullmatch, there) if m}
        if files:
            paths = []
            for row, (_, _, flickr_id) in enumerate(parts):
                match = files.get(str(row)) or files.get(flickr_id)
                same = match is not None and match[2] == flickr_id
                paths.append(match[0] if match is not None and same else f"{row}_{flickr_id}_<secret>_m.jpg")
            best = _better(best, paths, there, folder, _FLICKR)
    found, paths, folder, layout = best
    return paths, {"folder": folder or ".", "layout": layout, "listed": len(names), "found": found}


def _better(
    best: tuple[int, list[str], str, str], paths: list[str], there: set[str], folder: str, layout: str
) -> tuple[int, list[str], str, str]:
    found = sum(path in there for path in paths)
    if found <= best[0]:
        return best
    return found, [f"{folder}/{path}" if folder else path for path in paths], folder, layout


def count_files(root: Path, paths: Sequence[str]) -> int:
    """How many relative paths are files, each folder listed once."""
    return sum(map(finder(root), paths))


def _listing(folder: Path, classes: set[str]) -> set[str]:
    """Files of a folder, and those of the classes' folders in it as class/file."""
    files: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.name in classes:
                    files.update(f"{entry.name}/{name}" for name in os.listdir(entry.path))
            else:
                files.add(entry.name)
    return files
