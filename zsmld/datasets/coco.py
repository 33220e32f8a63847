"""COCO 2014 and 2017: `instances_*.json`, loaded through pycocotools, supervised and zero-shot."""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix, vstack

from zsmld.datasets.coco_photos import photo_paths
from zsmld.datasets.index import Index, Partition
from zsmld.datasets.partition import read_partition
from zsmld.datasets.rows import refuse
from zsmld.resources import resource_path

Size = Literal["small", "medium", "large"]

# Pixels of an object, lower bound included, upper not: those of COCO's evaluation and of the loader of ML-Decoder.
_SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}

# Images and annotations of instances_<split><year>.json.
_OFFICIAL = {
    (2014, "train"): (82_783, 604_907),
    (2014, "val"): (40_504, 291_875),
    (2017, "train"): (118_287, 860_001),
    (2017, "val"): (5_000, 36_781),
}
# What published 48/17 figures were computed on: images with one of the words, and labels per such image.
_LITERATURE = {"48_17_zsl": (2_729, 1.2074), "48_17_gzsl": (6_392, 2.5702)}

_KEYS = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "area", "iscrowd"),
}
_TEXT = ("file_name", "name")


def read_coco(
    root: Path,
    problems: list[str],
    year: Literal[2014, 2017] = 2014,
    crowd: Literal["keep", "drop"] = "keep",
    sizes: tuple[Size, ...] = ("small", "medium", "large"),
    min_area: float = 0.0,
    test_instances: str | Path | None = None,
    check_counts: bool = True,
) -> Index | None:
    """COCO: a word is present in an image that has an object of its category.

    Layout of `root`, as the archives unpack; photos may also lie in `images/<split><year>/` or all in `images/`:

        annotations/instances_train2014.json, instances_val2014.json     (…2017.json for year=2017)
        train2014/COCO_train2014_000000000009.jpg                        (train2017/000000000009.jpg)
        val2014/COCO_val2014_000000000042.jpg                            (val2017/000000000139.jpg)

    A photo is <its split's folder>/<file_name>, in that folder or in `images/`; where that is missing, `file_name` in
    another of these folders or in `root`. The two years divide the same photos differently, so the photos of one serve
    the files of the other: names of COCO itself are found by their twelve digits as well.

    Splits: train = train<year>, test = val<year>, as published figures have it. Images without an object are there
    too. Ids are COCO's numbers without zeros in front; words stand in the order of category ids. Partitions: "80"
    (all seen), "48_17", "65_15".

    Args:
        root: folder of the download.
        problems: receives everything that is wrong with it.
        year: 2014 is what multi-label figures are published on, ML-Decoder's and the zero-shot ones among them;
            2017 is today's usual download, with 5,000 test images.
        crowd: whether a group of objects outlined as one ("iscrowd") makes its word present. pycocotools returns
            crowds unless told otherwise, so published figures keep them.
        sizes: which objects make their word present: "small" below 32² pixels of area, "medium" below 96², "large"
            the rest. An image with other objects of a word only counts as without it.
        min_area: objects below this area, in pixels, do not count either.
        test_instances: an instance file that replaces the test list, such as other projects' 48/17 lists; also found
            in `root` and `root/annotations`. Its images leave the training images; words whose category the file
            does not have are unknown (−1) in its images. `manifest["fingerprints"]` says how many images of this list
            have an unseen word (zsl) or any word (gzsl) of 48/17, labels per such image, and whether both equal the
            literature's. They are those of the list, whether or not its photos are on disk: with
            missing_images="drop" fewer images may be used.
        check_counts: images, annotations and names must be the official ones; False for a subset.

    Returns:
        The `Index`, or None if no file can be read.

    Raises:
        ValueError: for an unknown value of an option. Missing, damaged or inconsistent files become problems.

    Source: Lin et al., arXiv 1405.0312, https://cocodataset.org. Sizes: the COCO evaluation and the loader of
    ML-Decoder. 48/17: Bansal et al., arXiv 1804.04340; 65/15: Rahman et al., arXiv 1811.08982.
    """
    year, sizes = _checked_options(year, crowd, sizes, min_area)
    train = _load(_official_path(root, "train", year, problems), problems)
    if test_instances is None:
        test = _load(_official_path(root, "val", year, problems), problems)
    else:
        test = _load(_find(test_instances, root, problems), problems)
    if check_counts:
        for split, instances in (("train", train), ("val", test if test_instances is None else None)):
            _check_counts(instances, _OFFICIAL[year, split], problems)
    parts = {name: part for name, part in (("train", train), ("test", test)) if part is not None}
    if not parts:
        return None

    first = next(iter(parts.values()))
    words = tuple(first.words)
    official = tuple(resource_path("data", "coco", "classes.txt").read_text(encoding="utf-8").splitlines())
    if check_counts and words != official and (train is not None or test_instances is None):
        wrong = sorted(set(words) ^ set(official)) or "another order"
        problems.append(
            f"{first.path} must have the {len(official)} categories of COCO, got {len(words)} with {wrong} amiss; "
            f"download it again, or pass check_counts=False for a set of your own"
        )
    if strangers := [word for part in parts.values() for word in part.words if word not in words]:
        problems.append(
            f"{parts['test'].path} must have categories of {first.path.name}, got {strangers[:5]} besides; "
            f"correct their names"
        )

    overlap = 0
    if test_instances is not None and len(parts) == 2:
        trained = ~np.isin(parts["train"].ids, parts["test"].ids)
        overlap = int((~trained).sum())
        parts["train"] = parts["train"].of_images(trained)
    elif len(parts) == 2 and len(both := np.intersect1d(parts["train"].ids, parts["test"].ids)):
        problems.append(
            f"{parts['train'].path.name} and {parts['test'].path.name} must share no image, they share {len(both):,} "
            f"such as {both[0]}; take both of one year"
        )
        parts["test"] = parts["test"].of_images(~np.isin(parts["test"].ids, both))

    by_split = {name: _targets(part, words, part.shown(crowd, sizes, min_area)) for name, part in parts.items()}
    partitions: dict[str, Partition] = {str(len(words)): {"seen": list(words), "unseen": []}}
    for name in ("48_17", "65_15"):
        seen, unseen = read_partition(resource_path("data", "coco", f"partition_{name}.json"))
        if set(seen) | set(unseen) <= set(words):
            partitions[name] = {"seen": list(seen), "unseen": list(unseen)}
    policies: dict[str, Any] = {"year": str(year), "crowd": crowd, "sizes": list(sizes), "min_area": float(min_area)}
    counts: dict[str, Any] = {name: part.counts(by_split[name]) for name, part in parts.items()}
    manifest: dict[str, Any] = {"policies": policies, "counts": counts}
    if test_instances is not None:
        policies["test_instances"] = str(test_instances)
        counts["training_images_moved_to_test"] = overlap
        if "test" in parts and "48_17" in partitions:
            manifest["fingerprints"] = _fingerprints(by_split["test"], words, partitions["48_17"])
    return Index(
        name=f"coco{year}",
        root=root,
        words=words,
        partitions=partitions,
        ids=[str(i) for part in parts.values() for i in part.ids.tolist()],
        paths=photo_paths(root, year, {name: part.file_names for name, part in parts.items()}),
        splits=np.repeat(list(parts), [len(part.ids) for part in parts.values()]),
        targets=vstack(list(by_split.values()), format="csr", dtype=np.int8),
        manifest=manifest,
    )


def targets_by_size(instances: str | Path, crowd: Literal["keep", "drop"] = "keep") -> dict[str, csr_matrix]:
    """Targets of small, of medium and of large objects apart: the rows that ML-Decoder's loader takes the maximum of.

    Args:
        instances: an instance file.
        crowd: as in `read_coco`.

    Returns:
        {"small": …, "medium": …, "large": …}, each (M,N) CSR of int8 with 1 for present; rows in the order of the
        file's images, columns in the order of category ids. Their element-wise maximum is the target of all sizes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with everything that is wrong with it.

    Source: Alibaba-MIIL/ML_Decoder, src_files/helper_functions/helper_functions.py, CocoDetection.
    """
    path, problems = Path(instances), list[str]()
    if not path.is_file():
        raise FileNotFoundError(f"instances must be an existing JSON file, not found: {path}; correct the path")
    loaded = _load(path, problems)
    refuse(f"{path} must be a COCO instance file", problems)
    assert loaded is not None  # else it said why
    return {size: _targets(loaded, tuple(loaded.words), loaded.shown(crowd, (size,), 0)) for size in _SIZES}


@dataclass
class _Instances:
    """One instance file: M images, A annotations."""

    path: Path
    ids: np.ndarray  # (M,) int64
    file_names: list[str]  # M
    words: list[str]  # in the order of category ids
    rows: np.ndarray  # (A,) image of each annotation
    labels: np.ndarray  # (A,) word of each annotation
    areas: np.ndarray  # (A,) pixels
    crowds: np.ndarray  # (A,) bool

    def shown(self, crowd: str, sizes: Sequence[str], min_area: float) -> np.ndarray:
        """(A,) bool: the annotations that make their word present."""
        fits = np.zeros(len(self.rows), bool)
        for size in sizes:
            low, high = _SIZES[size]
            fits |= (self.areas >= low) & (self.areas < high)
        return fits & (self.areas >= min_area) & ~(self.crowds & (crowd == "drop"))

    def of_images(self, kept: np.ndarray) -> "_Instances":
        """The images of a mask (M,) bool with their annotations."""
        moved, held = np.cumsum(kept) - 1, kept[self.rows]
        names = [name for name, keep in zip(self.file_names, kept.tolist(), strict=True) if keep]
        rest = (values[held] for values in (self.labels, self.areas, self.crowds))
        return _Instances(self.path, self.ids[kept], names, self.words, moved[self.rows[held]], *rest)

    def counts(self, targets: csr_matrix) -> dict[str, int]:
        """What the manifest says of the file, and of the targets made of it."""
        return {
            "images": len(self.ids),
            "images_without_annotation": len(self.ids) - len(np.unique(self.rows)),
            "images_without_label": int(((targets == 1).sum(1) == 0).sum()),
            "annotations": len(self.rows),
            "crowd_annotations": int(self.crowds.sum()),
            "labels": int((targets.data == 1).sum()),
        }


def _checked_options(year: Any, crowd: str, sizes: Sequence[str], min_area: float) -> tuple[Any, tuple[Any, ...]]:
    sizes = (sizes,) if isinstance(sizes, str) else tuple(sizes)
    if str(year) not in ("2014", "2017"):
        raise ValueError(f"year must be 2014 or 2017, got {year!r}; choose one")
    if crowd not in ("keep", "drop"):
        raise ValueError(f"crowd must be 'keep' or 'drop', got {crowd!r}; choose one")
    if not sizes or not set(sizes) <= set(_SIZES):
        raise ValueError(f"sizes must be some of {list(_SIZES)}, got {list(sizes)}; correct them")
    if not min_area >= 0:
        raise ValueError(f"min_area must be at least 0 pixels, got {min_area}; raise it")
    return int(year), sizes


def _official_path(root: Path, split: str, year: int, problems: list[str]) -> Path | None:
    path = root / "annotations" / f"instances_{split}{year}.json"
    if path.is_file():
        return path
    other = 2017 if year == 2014 else 2014
    instead = f", or pass year={other}" if path.with_name(f"instances_{split}{other}.json").is_file() else ""
    problems.append(f"{path} must be there, not found; unpack annotations_trainval{year}.zip in {root}{instead}")
    return None


def _find(test_instances: str | Path, root: Path, problems: list[str]) -> Path | None:
    for path in (Path(test_instances), root / test_instances, root / "annotations" / test_instances):
        if path.is_file():
            return path
    problems.append(f"test_instances must be an existing instance file, not found: {test_instances}; correct the path")
    return None


def _load(path: Path | None, problems: list[str]) -> _Instances | None:
    """Read one instance file; entries that cannot be used are a problem and left out."""
    if path is None:
        return None
    from pycocotools.coco import COCO

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=_without_outline)
    except (OSError, ValueError, RecursionError) as error:  # the last: lists in lists without end
        problems.append(f"{path} must be JSON, it is damaged: {error}; unpack or download it again")
        return None
    lists = content if isinstance(content, dict) else {}
    absent = [key for key in _KEYS if not isinstance(lists.get(key), list)]
    if absent:
        problems.append(
            f"{path} must be an object with the lists images, annotations and categories, it lacks "
            f"{' and '.join(absent)}; take an instances_*.json"
        )
        return None
    tables = {key: _table(content, key, path, problems) for key in _KEYS}
    # From here on as COCO(path) does; it would stop at the first entry that lacks something, and it prints.
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    for key, index in (("images", coco.imgs), ("categories", coco.cats)):
        if repeated := len(tables[key]) - len(index):
            example = tables[key]["id"][tables[key]["id"].duplicated()].iloc[0]
            problems.append(
                f"{path} must list each of its {key} once, {repeated:,} ids are repeated such as {example:.0f}; "
                f"remove the repetitions"
            )
    category_ids = sorted(coco.cats)
    words = [coco.cats[i]["name"] for i in category_ids]
    if len(set(words)) < len(words) or not words or not coco.imgs:
        problems.append(
            f"{path} must have images, and categories of distinct names, got {len(coco.imgs)} images and {len(words)} "
            f"categories with {len(set(words))} names; correct the file"
        )
        return None
    ids = np.fromiter(coco.imgs, np.int64, len(coco.imgs))
    annotations = tables["annotations"]
    rows = pd.Index(ids).get_indexer(annotations["image_id"])
    labels = pd.Index(category_ids).get_indexer(annotations["category_id"])
    for what, column, positions in (("image", "image_id", rows), ("category", "category_id", labels)):
        unknown = annotations[column][positions < 0]
        if len(unknown):
            problems.append(
                f"{path} must have the {what} of each annotation, {len(unknown):,} annotations are of an unknown "
                f"{what} such as {unknown.iloc[0]:.0f}; download the file again"
            )
    if num_negative := int((annotations["area"] < 0).sum()):
        example = annotations["id"][annotations["area"] < 0].iloc[0]
        problems.append(
            f"{path} must have areas of at least 0 pixels, {num_negative:,} annotations have a negative one such as "
            f"that of id {example:.0f}; correct them, they are neither small, medium nor large"
        )
    known = (rows >= 0) & (labels >= 0)
    return _Instances(
        path=path,
        ids=ids,
        file_names=[str(image["file_name"]) for image in coco.imgs.values()],
        words=words,
        rows=rows[known],
        labels=labels[known],
        areas=annotations["area"].to_numpy(np.float64)[known],
        crowds=annotations["iscrowd"].to_numpy(np.float64)[known] != 0,
    )


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry without the outline of its object, which is most of the file and of the memory that it takes."""
    entry.pop("segmentation", None)
    return entry


def _table(content: dict[str, Any], key: str, path: Path, problems: list[str]) -> pd.DataFrame:
    """The needed columns of a list of entries; incomplete entries are a problem, and leave `content` too."""
    entries, columns = content[key], {}
    for column in _KEYS[key]:
        values = [entry.get(column) if isinstance(entry, dict) else None for entry in entries]
        if column in _TEXT:
            columns[column] = pd.Series([v if isinstance(v, str) and v else None for v in values], dtype=object)
        else:
            # Neither infinite nor an integer beyond what a float holds; NaN fails the comparison too.
            fit = (v if isinstance(v, int | float) and abs(v) < 1e300 else None for v in values)
            numbers = pd.Series(list(fit), dtype=np.float64)
            if column.endswith("id"):
                numbers = numbers.where((numbers % 1 == 0) & (numbers.abs() < 2**53))
            columns[column] = numbers
    frame = pd.DataFrame(columns)
    complete = frame.notna().all(axis=1).to_numpy(bool)
    if not complete.all():
        position = int(np.flatnonzero(~complete)[0])
        problems.append(
            f"{path} must have {', '.join(_KEYS[key])} in each entry of {key}, {int((~complete).sum()):,} lack one or "
            f"have another type, the first at position {position}; download the file again"
        )
        content[key] = [entry for entry, keep in zip(entries, complete.tolist(), strict=True) if keep]
    return frame[complete].reset_index(drop=True)


def _check_counts(instances: _Instances | None, official: tuple[int, int], problems: list[str]) -> None:
    if instances is None:
        return
    found = {"images": len(instances.ids), "annotations": len(instances.rows)}
    for (what, count), expected in zip(found.items(), official, strict=True):
        if count != expected:
            problems.append(
                f"{instances.path} must have {expected:,} {what}, got {count:,}; download it again, or pass "
                f"check_counts=False for a subset"
            )


def _targets(instances: _Instances, words: tuple[str, ...], shown: np.ndarray) -> csr_matrix:
    """(M,N) CSR of int8: 1 where an annotation shows the word, −1 where the file has no such category."""
    column_of = {word: column for column, word in enumerate(words)}
    columns = np.array([column_of.get(word, -1) for word in instances.words], np.int64)[instances.labels]
    shown = shown & (columns >= 0)
    size, num_words = len(instances.ids), len(words)
    present = np.unique(instances.rows[shown] * num_words + columns[shown])
    lacking = np.array(sorted(set(column_of.values()) - {column_of.get(word) for word in instances.words}), np.int64)
    unknown = (np.arange(size)[:, None] * num_words + lacking).ravel()
    cells = np.concatenate([present, unknown])
    values = np.repeat(np.array([1, -1], np.int8), [len(present), len(unknown)])
    return csr_matrix((values, (cells // num_words, cells % num_words)), (size, num_words), dtype=np.int8)


def _fingerprints(targets: csr_matrix, words: tuple[str, ...], partition: Partition) -> dict[str, dict[str, Any]]:
    """Listed images with a word and labels per such image, for the unseen words and for all words of 48/17."""
    fingerprints: dict[str, dict[str, Any]] = {}
    for name, (num_images, labels_per_image) in _LITERATURE.items():
        chosen = [*partition["unseen"], *(partition["seen"] if name.endswith("gzsl") else [])]
        labels = np.asarray((targets[:, [words.index(word) for word in chosen]] == 1).sum(1)).ravel()
        num_labelled = int((labels > 0).sum())
        per_image = float(labels.sum() / max(num_labelled, 1))
        fingerprints[name] = {
            "num_listed_images": num_labelled,
            "labels_per_image": round(per_image, 4),
            "literature": {"num_images": num_images, "labels_per_image": labels_per_image},
            "matches": num_labelled == num_images and round(per_image, 4) == labels_per_image,
        }
    return fingerprints
