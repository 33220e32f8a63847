"""Where the photos of COCO's instance files lie: by split and file name, or by the number that both years share."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from zsmld.datasets.rows import finder

# A name of COCO itself, by whose twelve digits the photo is the same in both years.
_OFFICIAL = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12}\.\w+)")
_PREFIXES = ("", "COCO_train2014_", "COCO_val2014_")


def photo_paths(root: Path, year: int, file_names: Mapping[str, Sequence[str]]) -> list[str]:
    """Paths of listed photos relative to a download, one after the other, also of photos that are not there.

    A photo is `<own split's folder>/<file_name>` before all else, with the folders that `file_name` itself may have.
    Where that file is missing it is `file_name` in another folder, then a file of another folder or name with the same
    twelve digits, for names of COCO itself alone. A file that is one listed photo by the first rule is no other's:
    numbering in two splits may start at 0001.jpg in both.

    Args:
        root: folder of the download.
        year: of the instance files; its folders come before those of the other year.
        file_names: split -> the `file_name` of each image; photos of "train" are in train<year>, others in val<year>.

    Returns:
        M paths with forward slashes; <own split's folder>/<file_name> where nothing is found.
    """
    is_there = finder(root)
    years = (year, 2017 if year == 2014 else 2014)
    folders = [f"{split}{y}" for y in years for split in ("val", "train")]
    others = [place for place in (*folders, *(f"images/{f}" for f in folders), "images", "") if (root / place).is_dir()]
    wanted = [
        (f"{'train' if split == 'train' else 'val'}{year}", name.lstrip("/"))
        for split, names in file_names.items()
        for name in names
    ]
    own = [next(filter(is_there, (f"{folder}/{name}", f"images/{folder}/{name}")), None) for folder, name in wanted]
    taken = set(own)
    paths = []
    for path, (folder, name) in zip(own, wanted, strict=True):
        if path is None:
            official = _OFFICIAL.fullmatch(name.rpartition("/")[2])
            spellings = [name, *(f"{prefix}{official[1]}" for prefix in _PREFIXES if official is not None)]
            candidates = (f"{place}/{spelled}".lstrip("/") for spelled in spellings for place in others)
            path = next((p for p in candidates if p not in taken and is_there(p)), f"{folder}/{name}")
        paths.append(path)
    return paths
