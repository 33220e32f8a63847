"""A tree of folders whose names are words: yours, or ImageNet's."""

import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from scipy.sparse import csr_matrix

from zsmld.datasets.index import Index

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_folder(
    root: Path,
    problems: list[str],
    class_names: str | Path | None = None,
    split_folders: bool | None = None,
    val_list: str | Path | None = None,
    val_as_test: bool = False,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
) -> Index | None:
    """A tree of folders whose names are words: each image has the one word of its folder, and no other.

    root/dog/…/1.jpg                      every image below root/dog shows a dog
    root/train/n01440764/*.JPEG           with split folders: train, val (validation) and test, as ImageNet's

    An image's id is its path relative to `root`. Images outside of a word's folder are counted and left out, and so
    are files of other kinds in a word's folder, by their endings. Images end in .jpg, .jpeg, .jpe, .jfif, .png, .webp,
    .bmp, .gif, .tif, .tiff, or .avif where the installed Pillow reads it.

    Args:
        root: of the tree.
        problems: receives everything that is wrong.
        class_names: what the folders are called: a text file with `folder name` on each line, of which the first of
            several names with commas between is the word (ImageNet's LOC_synset_mapping.txt), or JSON: {folder: word}
            or imagenet_class_index.json's {"0": [folder, word], …}. The file's words are the vocabulary, in its
            order; of several folders with one name, the later ones are called `name (folder)`.
        split_folders: whether the folders of `root` are splits; default yes where all of them have a split's name and
            hold folders. Say it where some are called so and others not, or where they hold images directly.
        val_list: word folder of each image that lies in val/ directly: ImageNet's LOC_val_solution.csv.
        val_as_test: the images of val/ are "test". ImageNet's test labels are not public, so papers test on val/; take
            training images as "val" then, with `val_fraction`.
        val_fraction: share of the images that is "val"; default 0.1, or none where there are split folders.
        test_fraction: share of the images that is "test"; default 0.2, or none where there are split folders.
        seed: of the random division.

    Returns:
        An `Index` with the partition "all"; a missing entry means absent.

    Source: layouts of ImageNet, image-net.org (ILSVRC2012 CLS-LOC) and its Kaggle edition.
    """
    found = len(problems)
    if not root.is_dir():
        problems.append(f"root must be the folder of a tree, got the file {root}; pass its folder")
        return None
    with_splits = _has_splits(root, split_folders, problems)
    if (val_as_test or val_list is not None) and not with_splits:
        problems.append(f"val_as_test and val_list must be left out for a tree without split folders, as {root} is")
    solution = _read_solution(Path(val_list), problems) if val_list is not None else {}
    paths: list[str] = []
    folders: list[str] = []
    splits: list[str] = []
    counts: dict[str, Any] = {"images_without_a_word": 0, "folders_without_images": 0}
    others: Counter[str] = Counter()
    for top in _folders(root) if with_splits else [""]:
        split = SPLIT_NAMES[top.lower()] if with_splits else "train"
        split = "test" if split == "val" and val_as_test else split
        words = _folders(root / top)
        loose, _ = _images(root, top, deep=False)
        if loose and solution and SPLIT_NAMES.get(top.lower()) == "val":
            known = [path for path in loose if path.rpartition("/")[2].partition(".")[0] in solution]
            paths += known
            folders += [solution[path.rpartition("/")[2].partition(".")[0]] for path in known]
            splits += [split] * len(known)
            loose = sorted(set(loose) - set(known))
        elif with_splits and loose and not words and SPLIT_NAMES[top.lower()] != "test":
            problems.append(
                f"{root / top} must hold a folder a word, got {len(loose):,} images directly, such as {loose[0]}; sort "
                f"them into folders, or for ImageNet's val pass val_list=LOC_val_solution.csv"
            )
        counts["images_without_a_word"] += len(loose)
        for word in words:
            below, other = _images(root, f"{top}/{word}" if top else word, deep=True)
            others += other
            counts["folders_without_images"] += not below
            paths += below
            folders += [word] * len(below)
            splits += [split] * len(below)
    named_otherwise = [path for path in (str(root), *paths) if path.encode(errors="replace").decode() != path]
    if named_otherwise:  # ascii(): such a name cannot be printed
        problems.append(
            f"paths must be UTF-8, got {len(named_otherwise):,} that are not, such as {named_otherwise[0]!a}; "
            f"rename their folders or files"
        )
        return None
    if not paths:
        if len(problems) == found:
            kinds = f", but {sum(others.values()):,} files of other kinds: {_endings(others)}" if others else ""
            problems.append(f"{root} must hold folders with images, got none{kinds}; its folders are the words")
        return None
    tested = {path.partition("/")[0] for path, split in zip(paths, splits, strict=True) if split == "test"}
    if val_as_test and any(SPLIT_NAMES.get(top.lower()) == "test" for top in tested):
        problems.append("val_as_test must be left out for a tree whose test folder has words, as this one has")
    names, order = sorted(set(folders)), sorted(set(folders))
    num_repeated = 0
    if class_names is not None:
        named = _read_names(Path(class_names), problems)
        strangers = sorted(set(folders) - set(named))
        if strangers:
            problems.append(
                f"class_names must name every folder, {Path(class_names).name} lacks {len(strangers)} such as "
                f"{strangers[:5]}; complete it"
            )
        order = [*named, *strangers]
        names, num_repeated = distinct_words([named.get(folder, folder) for folder in order], order)
    label = {folder: i for i, folder in enumerate(order)}
    labels = np.array([label[folder] for folder in folders], np.int64)
    split_of = _divide(np.array(splits), with_splits, val_fraction, test_fraction, seed, problems)
    if len(problems) > found:
        return None
    counts |= {
        "words_without_images": int((np.bincount(labels, minlength=len(names)) == 0).sum()),
        "words_renamed_as_others_have_their_name": num_repeated,
        **({"files_of_other_kinds": _endings(others)} if others else {}),
    }
    return Index(
        name=root.resolve().name or "folder",
        root=root,
        words=tuple(names),
        partitions={"all": {"seen": names, "unseen": []}},
        ids=pa.array(paths, pa.string()),
        paths=pa.array(paths, pa.string()),
        splits=split_of,
        targets=csr_matrix(
            (np.ones(len(labels), np.int8), labels, np.arange(len(labels) + 1)), (len(labels), len(names))
        ),
        manifest={
            "policies": {
                "words_of_an_image": "the one of its folder",
                "splits": "folders" if with_splits else "drawn at random",
                "val_as_test": val_as_test,
            },
            "counts": counts,
        },
    )


def _has_splits(root: Path, split_folders: bool | None, problems: list[str]) -> bool:
    folders = _folders(root)
    named = [name for name in folders if name.lower() in SPLIT_NAMES]
    others = [name for name in folders if name.lower() not in SPLIT_NAMES]
    if split_folders is not None:
        if split_folders and (others or not named):
            problems.append(
                f"root must hold split folders alone with split_folders=true, got {others[:5] or 'none'} as well; "
                f"move them away or pass split_folders=false"
            )
        return split_folders and not others and bool(named)
    nested = [name for name in named if _folders(root / name)]
    if nested and others:
        problems.append(
            f"split_folders must be given for {root}: {nested[:3]} may be splits, or words as {others[:3]} must be; "
            f"pass split_folders=false, or true once the others are moved away"
        )
    flat = [name for name in named if not others and not nested and _images(root, name, deep=False)[0]]
    if flat:
        problems.append(
            f"split_folders must be given for {root}: {flat[:3]} hold images directly and may be splits or words; sort "
            f"them into a folder a word (such as {flat[0]}/dog), or pass split_folders=false if {flat[:3]} are words"
        )
    return bool(nested) and not others


def _divide(
    splits: np.ndarray,
    with_splits: bool,
    val_fraction: float | None,
    test_fraction: float | None,
    seed: int,
    problems: list[str],
) -> np.ndarray:
    """Fractions of the training images become "val" and "test"; a split that has images gets no others."""
    wanted = {"val": val_fraction, "test": test_fraction}
    for name, fraction in wanted.items():
        if fraction and (splits == name).any():
            problems.append(
                f"{name}_fraction must be 0 for a tree that has {name} images, got {fraction}; leave it out"
            )
            return splits
    usual_val, usual_test = (0.0, 0.0) if with_splits else (0.1, 0.2)
    val = usual_val if val_fraction is None else val_fraction
    test = usual_test if test_fraction is None else test_fraction
    train = np.flatnonzero(splits == "train")
    result = splits.astype("<U5")
    result[train] = divide(len(train), val, test, seed, problems)
    return result


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(root: Path, folder: str, deep: bool) -> tuple[list[str], Counter[str]]:
    """Paths of the images in a folder, or below it, relative to root, with forward slashes; endings of other files."""
    suffixes = (*_SUFFIXES, ".avif") if ".avif" in Image.registered_extensions() else _SUFFIXES
    listed: list[str] = []
    others: Counter[str] = Counter()
    entered: set[str] = set()  # a link may lead back to a folder above it
    for where, folders, files in os.walk(root / folder, followlinks=True):
        entered.add(os.path.realpath(where))
        folders[:] = sorted(name for name in folders if deep and not name.startswith("."))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(where, name)) not in entered]
        prefix = Path(where).relative_to(root).as_posix()
        prefix = "" if prefix == "." else f"{prefix}/"
        visible = sorted(name for name in files if not name.startswith("."))
        images = [name for name in visible if name.lower().endswith(suffixes)]
        listed += [prefix + name for name in images]
        if len(images) < len(visible):
            others.update(os.path.splitext(name)[1].lower() for name in visible if not name.lower().endswith(suffixes))
    return listed, others


def _endings(others: Counter[str]) -> dict[str, int]:
    """Files of each ending, most first; nothing that cannot be written as UTF-8."""
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0] == "", item[0]))
    return {ending.encode(errors="replace").decode() or "no ending": count for ending, count in ranked}


def _read_names(path: Path, problems: list[str]) -> dict[str, str]:
    """{folder: name} of a file that tells what folders are called."""
    if path.suffix.lower() == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            pairs = [value if isinstance(value, list) else [key, value] for key, value in content.items()]
            nameless = [pair for pair in pairs if not all(isinstance(text, str) and text.strip() for text in pair)]
            if nameless:
                problems.append(
                    f"class_names must give each folder a text, {path.name} has {len(nameless)} others such as "
                    f"{nameless[:3]}; write a word, or remove them"
                )
            return {folder: name.replace("_", " ").strip() for folder, name in pairs if [folder, name] not in nameless}
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            problems.append(
                f"class_names must be JSON {{folder: word}} or {{position: [folder, word]}}, {path} is not: {error}; "
                f"correct it"
            )
            return {}
    lines = [line.split(None, 1) for line in read_lines(path, "class_names", problems)]
    wrong = [" ".join(line) for line in lines if len(line) != 2 or not line[1].split(",")[0].strip()]
    if wrong:
        problems.append(f"class_names must have `folder name` on each line, {path.name} has {wrong[:3]}; correct it")
    return {line[0]: line[1].split(",")[0].strip() for line in lines if len(line) == 2}


def _read_solution(path: Path, problems: list[str]) -> dict[str, str]:
    """{image: folder} of ImageNet's LOC_val_solution.csv; the folder is the first token of PredictionString."""
    if not path.is_file():
        problems.append(f"val_list must be an existing file, not found: {path}; correct the path")
        return {}
    try:
        reader = csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        problems.append(f"val_list must be a UTF-8 text file, {path} is not in line {line}: {error.reason}; convert it")
        return {}
    except csv.Error as error:
        problems.append(f"val_list must be a CSV file, {path} is not in line {reader.line_num}: {error}; repair it")
        return {}
    if len(rows) < 2 or not {"ImageId", "PredictionString"} <= set(rows[0][1]):
        problems.append(
            f"val_list must have the columns ImageId,PredictionString, and rows, {path.name} has not; pass the file of "
            f"ImageNet's Kaggle edition"
        )
        return {}
    (_, header), *rows = rows
    image, boxes = header.index("ImageId"), header.index("PredictionString")
    tokens = [row[boxes].split() if len(row) == len(header) else [] for _, row in rows]
    boxed = any(len(found) > 1 for found in tokens)  # a folder and four coordinates for each box
    wrong = [line for (line, _), found in zip(rows, tokens, strict=True) if not found or (boxed and len(found) % 5)]
    if wrong:
        problems.append(
            f"val_list must have an image and its folder, with four coordinates a box, on each line, {path.name} has "
            f"not in {len(wrong):,}, such as line {wrong[0]}; download it again"
        )
        return {}
    return {row[image]: found[0] for (_, row), found in zip(rows, tokens, strict=True)}


def divide(num_images: int, val_fraction: float, test_fraction: float, seed: int, problems: list[str]) -> np.ndarray:
    """ "train", "val" or "test" for each image, drawn at random but always alike.

    Example:
        >>> np.unique(divide(10, 0.1, 0.2, 0, []), return_counts=True)[1].tolist()
        [2, 7, 1]
    """
    splits = np.full(num_images, "train")
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        problems.append(
            f"val_fraction and test_fraction must leave rows to train on, got {val_fraction} and {test_fraction}; "
            f"lower them"
        )
        return splits
    order = np.random.default_rng(seed).permutation(num_images)
    num_test, num_val = round(test_fraction * num_images), round(val_fraction * num_images)
    splits[order[:num_test]] = "test"
    splits[order[num_test : num_test + num_val]] = "val"
    return splits


def distinct_words(words: Sequence[str], keys: Sequence[str]) -> tuple[list[str], int]:
    """Words made distinct: of those alike, the first stays, and each other has its key behind it. And how many.

    Example:
        >>> distinct_words(["crane", "dog", "crane"], ["n02012849", "n02084071", "n03126707"])
        (['crane', 'dog', 'crane (n03126707)'], 1)
    """
    taken = set(words)
    used: set[str] = set()
    result = []
    for word, key in zip(words, keys, strict=True):
        name = word
        while name in used or (name != word and name in taken):
            name = f"{name} ({key})"
        used.add(name)
        result.append(name)
    return result, sum(name != word for name, word in zip(result, words, strict=True))


def read_lines(path: Path, argument: str, problems: list[str]) -> list[str]:
    """Lines of a UTF-8 text file, stripped, without empty ones; none and a problem if it cannot be read."""
    if not path.is_file():
        problems.append(f"{argument} must be an existing text file, not found: {path}; correct the path")
        return []
    try:
        return [line for line in (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()) if line]
    except UnicodeDecodeError as error:
        problems.append(f"{argument} must be a UTF-8 text file, {path} is not: {error}; convert it")
        return []
