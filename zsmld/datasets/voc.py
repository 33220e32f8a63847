"""Pascal VOC 2007 and 2012: XML annotations, with a policy for difficult objects."""

import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from zsmld.datasets.index import Index
from zsmld.resources import resource_path

# Images of ImageSets/Main/<set>.txt.
_OFFICIAL = {
    2007: {"trainval": 5_011, "train": 2_501, "val": 2_510, "test": 4_952},
    2012: {"trainval": 11_540, "train": 5_717, "val": 5_823},
}
_ARCHIVES = {
    (2007, "test"): "VOCtest_06-Nov-2007.tar",
    (2007, "trainval"): "VOCtrainval_06-Nov-2007.tar",
    (2012, "trainval"): "VOCtrainval_11-May-2012.tar",
}
_DIFFICULT = {"1": True, "0": False, "": False, "Unspecified": False}  # nobody was asked: not difficult
_NUM_EXAMPLES = 3  # of images in a message


def read_voc(
    root: Path,
    problems: list[str],
    year: Literal[2007, 2012] = 2007,
    difficult: Literal["unknown", "drop", "keep"] = "unknown",
    train_set: Literal["trainval", "train"] = "trainval",
    test_set: Literal["test", "val", "none"] = "test",
    class_files: Literal["check", "ignore"] = "check",
    check_counts: bool = True,
) -> Index | None:
    """Pascal VOC: a class is present in an image that has an object of it.

    Layout: `root` is `VOCdevkit`, the folder that holds it, or `VOC<year>` itself, as the archives unpack:

        VOC2007/ImageSets/Main/train.txt, val.txt, trainval.txt, test.txt
        VOC2007/ImageSets/Main/aeroplane_trainval.txt, …        (1 present, -1 absent, 0 difficult objects only)
        VOC2007/Annotations/000005.xml
        VOC2007/JPEGImages/000005.jpg

    The XML files are the source of labels, read for the images of the Main sets alone. Ids are the image names
    ("000005", "2008_000002"); the 20 words stand in the challenge's order, spelled as it spells them ("diningtable").
    Partition: "20" (all seen).

    Args:
        root: folder of the download.
        problems: receives everything that is wrong with it.
        year: 2007, the only one whose test labels are public, or 2012.
        difficult: what a class is in an image where each of its objects is marked difficult. "unknown" (−1): left out
            of loss and AP, as the challenge ignores such pairs; "drop": absent; "keep": present. An object is difficult
            if its <difficult> is 1, and not if that is 0, "Unspecified", empty or left out; all else is a problem.
        train_set: "trainval" is all training data, "train" leaves the official val to split="val".
        test_set: "test" (2007), or the official "val" (with train_set="train"), or "none".
        class_files: "check" compares the labels with the <class>_<set>.txt files that are there.
        check_counts: images of the sets must be as many as the official ones; False for a subset.

    Returns:
        The `Index`, or None if no set can be read.

    Raises:
        ValueError: for an unknown value of an option, or sets that do not go together. Missing, damaged or
            inconsistent files become problems.

    Source: Everingham et al., IJCV 2010 and 2015; development kits of VOC2007 and VOC2012,
    http://host.robots.ox.ac.uk/pascal/VOC/.
    """
    year, sets = _checked_options(year, difficult, train_set, test_set, class_files)
    devkit = _devkit(root, year)
    if devkit is None:
        problems.append(
            f"{root} must be VOCdevkit or VOC{year} with the folder ImageSets/Main, not found; "
            f"unpack {_ARCHIVES[year, 'trainval']} there"
        )
        return None
    classes = resource_path("data", "voc", "classes.txt").read_text(encoding="utf-8").split()

    names: dict[str, list[str]] = {}
    for split, image_set in sets.items():
        names[split] = _read_set(root / devkit, year, image_set, check_counts, problems)
    _check_disjoint(names, sets, problems)
    names = {split: list(dict.fromkeys(listed)) for split, listed in names.items() if listed}
    if not names:
        return None

    # 1 present, 0 difficult objects only, −1 absent: as in the class files
    values: dict[str, np.ndarray] = {}
    objects: dict[str, Counter[str]] = {}
    damaged: dict[str, list[str]] = {}
    for split, listed in names.items():
        values[split], objects[split] = _read_annotations(root / devkit / "Annotations", listed, classes, damaged)
    for reason, examples in damaged.items():
        problems.append(
            f"{root / devkit / 'Annotations'} must have an XML file of each listed image with objects of the "
            f"{len(classes)} classes, {len(examples):,} {reason}, for instance {', '.join(examples[:_NUM_EXAMPLES])}; "
            f"unpack the archive again"
        )
    num_files = 0
    if class_files == "check" and not damaged:
        for split, listed in names.items():
            num_files += _compare_class_files(root / devkit, sets[split], listed, classes, values[split], problems)

    challenge = np.concatenate(list(values.values()))
    hard = {"unknown": -1, "drop": 0, "keep": 1}[difficult]
    targets = np.where(challenge == 1, 1, np.where(challenge == 0, hard, 0)).astype(np.int8)
    prefix = "" if devkit == Path() else f"{devkit.as_posix()}/"
    ids = [name for listed in names.values() for name in listed]
    return Index(
        name=f"voc{year}",
        root=root,
        words=tuple(classes),
        partitions={str(len(classes)): {"seen": classes, "unseen": []}},
        ids=ids,
        paths=[f"{prefix}JPEGImages/{name}.jpg" for name in ids],
        splits=np.repeat(list(names), [len(listed) for listed in names.values()]),
        targets=csr_matrix(targets),
        manifest={
            "policies": {"year": str(year), "difficult": difficult, "train_set": train_set, "test_set": test_set},
            "counts": {
                split: {
                    "image_set": sets[split],
                    "images": len(listed),
                    "objects": objects[split]["objects"],
                    "difficult_objects": objects[split]["difficult"],
                    "labels": int((values[split] == 1).sum()),
                    "labels_of_difficult_objects_only": int((values[split] == 0).sum()),
                }
                for split, listed in names.items()
            }
            | {"class_files_compared": num_files},
        },
    )


def _checked_options(
    year: Any, difficult: str, train_set: str, test_set: str, class_files: str
) -> tuple[Any, dict[str, str]]:
    """The year, and split -> image set."""
    year = int(year) if str(year).isdigit() else year
    for name, value, known in (
        ("year", year, (2007, 2012)),
        ("difficult", difficult, ("unknown", "drop", "keep")),
        ("train_set", train_set, ("trainval", "train")),
        ("test_set", test_set, ("test", "val", "none")),
        ("class_files", class_files, ("check", "ignore")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {list(known)}, got {value!r}; choose one")
    if year == 2012 and test_set == "test":
        raise ValueError(
            "test_set must be 'val' or 'none' for year 2012, whose test labels are not public, got 'test'; pass "
            "train_set=train test_set=val to test on the official val, or test_set=none to train only"
        )
    if test_set == "val" and train_set == "trainval":
        raise ValueError(
            "train_set must be 'train' where test_set is 'val', got 'trainval', which contains it; pass train_set=train"
        )
    sets = {"train": train_set}
    if train_set == "train" and test_set != "val":
        sets["val"] = "val"
    if test_set != "none":
        sets["test"] = test_set
    return year, sets


def _devkit(root: Path, year: int) -> Path | None:
    """The folder VOC<year> relative to root."""
    for path in (Path(f"VOC{year}"), Path("VOCdevkit", f"VOC{year}"), Path()):
        if (root / path / "ImageSets" / "Main").is_dir():
            return path
    return None


def _read_set(devkit: Path, year: int, image_set: str, check_counts: bool, problems: list[str]) -> list[str]:
    """Image names of ImageSets/Main/<set>.txt."""
    path = devkit / "ImageSets" / "Main" / f"{image_set}.txt"
    if not path.is_file():
        archive = _ARCHIVES.get((year, image_set), _ARCHIVES[year, "trainval"])
        instead = " (or pass test_set=none)" if image_set == "test" else ""
        problems.append(f"{path} must be there, not found; unpack {archive} beside it{instead}")
        return []
    try:
        names = path.read_text(encoding="utf-8-sig", errors="replace").split()
    except OSError as error:
        problems.append(f"{path} must be a readable file, it is not: {error.strerror}; unpack it again")
        return []
    expected = _OFFICIAL[year][image_set]
    if check_counts and len(names) != expected:
        problems.append(
            f"{path} must list {expected:,} images, got {len(names):,}; unpack it again, or pass check_counts=False "
            f"for a subset"
        )
    elif not names:
        problems.append(f"{path} must list images, it is empty; unpack it again")
    return names


def _check_disjoint(names: dict[str, list[str]], sets: dict[str, str], problems: list[str]) -> None:
    """No image twice; of an image in two splits, the first keeps it."""
    split_of: dict[str, str] = {}
    for split, listed in names.items():
        repeated = [name for name, count in Counter(listed).items() if count > 1]
        both = [name for name in dict.fromkeys(listed) if name in split_of]
        for examples, where in (
            (repeated, f"{sets[split]}.txt"),
            (both, f"{sets[split]}.txt and {sets[split_of[both[0]]]}.txt" if both else ""),
        ):
            if examples:
                problems.append(
                    f"ImageSets/Main/{where} must list each image once, {len(examples):,} are repeated such as "
                    f"{examples[0]}; unpack the archives again"
                )
        names[split] = [name for name in listed if name not in split_of]
        split_of.update(dict.fromkeys(listed, split))


def _read_annotations(
    folder: Path, names: list[str], classes: list[str], damaged: dict[str, list[str]]
) -> tuple[np.ndarray, Counter[str]]:
    """Values (M,N) int8 as class files have them; images whose file cannot be used join `damaged`, by reason."""
    values = np.full((len(names), len(classes)), -1, np.int8)
    label_of = {name: label for label, name in enumerate(classes)}
    counts: Counter[str] = Counter()
    present = set(os.listdir(folder)) if folder.is_dir() else set()
    for row, name in enumerate(names):
        if f"{name}.xml" not in present:
            damaged.setdefault("are missing", []).append(name)
            continue
        try:
            content = (folder / f"{name}.xml").read_bytes()
            if b"<!DOCTYPE" in content:  # official files have none, and entities could expand without end
                damaged.setdefault("declare a document type", []).append(name)
                continue
            annotation = ElementTree.fromstring(content)
        except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:  # the last: an unknown encoding
            damaged.setdefault("cannot be read", []).append(f"{name} ({getattr(error, 'strerror', None) or error})")
            continue
        if annotation.tag != "annotation":
            damaged.setdefault("are no <annotation>", []).append(f"{name} (<{annotation.tag}>)")
            continue
        for element in annotation.findall("object"):  # <name> of the object itself: body parts have names too
            kind, difficult = ((element.findtext(tag) or "").strip() for tag in ("name", "difficult"))
            if kind not in label_of:
                damaged.setdefault("have an object of another class", []).append(f"{name} ({kind!r})")
            elif difficult not in _DIFFICULT:
                damaged.setdefault("have <difficult> other than 0 and 1", []).append(f"{name} ({difficult!r})")
            else:
                label, is_difficult = label_of[kind], _DIFFICULT[difficult]
                counts.update(("objects", "difficult") if is_difficult else ("objects",))
                values[row, label] = max(values[row, label], 0 if is_difficult else 1)
    return values, counts


def _compare_class_files(
    devkit: Path, image_set: str, names: list[str], classes: list[str], values: np.ndarray, problems: list[str]
) -> int:
    """Compare with the <class>_<set>.txt files that are there; their number."""
    num_files, differing, examples = 0, 0, []
    for label, name in enumerate(classes):
        path = devkit / "ImageSets" / "Main" / f"{name}_{image_set}.txt"
        if not path.is_file():
            continue
        num_files += 1
        try:
            fields = path.read_text(encoding="utf-8-sig", errors="replace").split()
        except OSError as error:
            problems.append(f"{path} must be a readable file, it is not: {error.strerror}; unpack it again")
            continue
        listed = pd.to_numeric(pd.Series(fields[1::2], index=fields[: 2 * (len(fields) // 2) : 2]), errors="coerce")
        if len(fields) % 2 or not listed.isin((1, 0, -1)).all() or listed.index.has_duplicates:
            problems.append(f"{path} must have lines of an image and 1, -1 or 0, each image once; unpack it again")
            continue
        differs = listed.reindex(names).to_numpy() != values[:, label]
        differing += int(differs.sum())
        examples += [f"{names[row]} in {path.name}" for row in np.flatnonzero(differs)[:_NUM_EXAMPLES]]
    if differing:
        problems.append(
            f"{devkit} must have the same labels in Annotations and in the class files of {image_set}, {differing:,} "
            f"differ or are not listed, for instance {', '.join(examples[:_NUM_EXAMPLES])}; unpack the archives again, "
            f"or pass class_files=ignore to take the annotations"
        )
    return num_files
