"""List files of images and their labels, as PaddleClas and PaddleX write them."""

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_matrix

from zsmld.datasets.folder import distinct_words, read_lines
from zsmld.datasets.index import Index

_LISTS = {
    "train": ("train_list.txt", "multilabel_train_list.txt", "train.txt"),
    "val": ("val_list.txt", "multilabel_val_list.txt", "val.txt"),
    "test": ("test_list.txt", "multilabel_test_list.txt", "test.txt"),
}
_LABELS = ("label_list.txt", "labels.txt", "label.txt")


def read_image_list(
    root: Path,
    problems: list[str],
    train_list: str | Path | None = None,
    val_list: str | Path | None = None,
    test_list: str | Path | None = None,
    label_list: str | Path | None = None,
    images: str | Path | None = None,
    delimiter: str | None = None,
) -> Index | None:
    """List files: one image a line, with 0 or 1 for each word, or with the number of its one word.

    multilabel_train_list.txt    0001_1.jpg<TAB>0,1,0,0,…     one 0 or 1 a word (−1: unknown)
    train_list.txt               train/n01440764/1.JPEG 0     the number of its word
    label_list.txt               a word a line, or `number word`

    A missing entry means absent. Lines of the same image are merged, and have the words of each; an image in two lists
    is refused, for it would be trained on and tested.

    Args:
        root: folder with the lists.
        problems: receives everything that is wrong.
        train_list: list of "train"; this and the next two default to the one file of a usual name
            (train_list.txt, multilabel_train_list.txt, train.txt, …). Paths relative to `root`, or absolute.
        val_list: list of "val".
        test_list: list of "test". PaddleClas tests on its val list: pass that here, and it is not "val".
        label_list: words, one a line, or `number word`; default label_list.txt, labels.txt or label.txt.
        images: folder that image paths are relative to; default `root`.
        delimiter: between path and labels; default a tab where the line has one, else the last space.

    Returns:
        An `Index` with the partition "all".

    Source: PaddleClas, ppcls/data/dataloader/multilabel_dataset.py (a tab) and imagenet_dataset.py (a space). They
        strip lines and split at every delimiter; here paths may hold spaces.
    """
    if not root.is_dir():
        problems.append(f"root must be the folder of the lists, got the file {root}; pass its folder")
        return None
    files = _files(root, {"train": train_list, "val": val_list, "test": test_list}, problems)
    image_root = root if images is None else root / images
    if not image_root.is_dir():
        problems.append(f"images must be an existing folder of images, not found: {image_root}; correct the path")
    label_path = _one(root, "label_list", label_list, _LABELS, set(), problems)
    if label_path is None and label_list is None:
        problems.append(f"label_list must be given, {root} has none of {list(_LABELS)}; write one word a line")
    number_of, words, num_repeated = _read_words(label_path, problems) if label_path else ({}, [], 0)
    if not files or not words:
        return None
    lists = [_read_list(path, split, delimiter, number_of, len(words), problems) for split, path in files.items()]
    paths = np.concatenate([one.paths for one in lists])
    if not len(paths):
        names = ", ".join(path.name for path in files.values())
        problems.append(f"{names} must have lines that can be read, got none; fill or correct them")
        return None
    splits = np.repeat(list(files), [len(one.paths) for one in lists])
    distinct, first, image = np.unique(paths, return_index=True, return_inverse=True)
    order = np.argsort(first)  # distinct images in the order of their first line
    position = np.argsort(order)[image]
    twice = np.unique(paths[splits != splits[first][image]])
    if len(twice):
        problems.append(
            f"{len(twice):,} images must be in one list only, they are in several, such as {twice[:3].tolist()}; "
            f"remove them from one"
        )
        return None
    offsets = np.cumsum([0, *(len(one.paths) for one in lists[:-1])])
    rows = np.concatenate([one.rows + offset for one, offset in zip(lists, offsets, strict=True)])
    targets = _merge(
        position[rows],
        np.concatenate([one.labels for one in lists]),
        np.concatenate([one.values for one in lists]),
        (len(distinct), len(words)),
    )
    ids = pa.array(distinct[order].tolist(), pa.string())
    return Index(
        name=root.resolve().name or "image_list",
        root=image_root,
        words=tuple(words),
        partitions={"all": {"seen": words, "unseen": []}},
        ids=ids,
        paths=ids,
        splits=splits[first][order].astype("<U5"),
        targets=targets,
        manifest={
            "policies": {"repeated_lines": "merged, with the words of each"},
            "counts": {
                **{f"{split}_lines": len(one.paths) for split, one in zip(files, lists, strict=True)},
                "merged_lines": len(paths) - len(distinct),
                "images_without_words": int(len(distinct) - len(np.unique(targets.tocoo().row[targets.data == 1]))),
                "words_without_images": int(len(words) - len(np.unique(targets.indices[targets.data == 1]))),
                "words_renamed_as_others_have_their_name": num_repeated,
            },
            "lists": {split: path.name for split, path in files.items()} | {"label_list": Path(str(label_path)).name},
        },
    )


@dataclass
class _List:
    """One list file: its images, and (row, label, value) of each entry that is 1 or unknown."""

    paths: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    values: np.ndarray


def _files(root: Path, given: dict[str, str | Path | None], problems: list[str]) -> dict[str, Path]:
    taken = {(root / path).resolve() for path in given.values() if path is not None}
    if len(taken) < sum(path is not None for path in given.values()):
        problems.append(f"train_list, val_list and test_list must be different files, got {list(given.values())}")
    files = {}
    for split, names in _LISTS.items():
        path = _one(root, f"{split}_list", given[split], names, taken, problems)
        if path is not None:
            files[split] = path
    if not files and not any(given.values()):
        problems.append(
            f"{root} must hold list files such as train_list.txt, got none; name them with train_list, val_list, "
            f"test_list"
        )
    return files


def _one(
    root: Path, argument: str, given: str | Path | None, names: tuple[str, ...], taken: set[Path], problems: list[str]
) -> Path | None:
    """The file that is given, else the only one of the usual names."""
    if given is not None:
        if not (root / given).is_file():
            problems.append(f"{argument} must be an existing file, not found: {root / given}; correct the path")
            return None
        return root / given
    there = [root / name for name in names if (root / name).is_file() and (root / name).resolve() not in taken]
    if len(there) > 1:
        problems.append(f"{argument} must be given, {root} has {[path.name for path in there]}; pass {argument}=")
        return None
    return there[0] if there else None


def _read_words(path: Path, problems: list[str]) -> tuple[dict[int, int], list[str], int]:
    """Column of each number, words, and how many were renamed; the lines may be `number word`."""
    lines = read_lines(path, "label_list", problems)
    split = [line.split(None, 1) for line in lines]
    if lines and all(len(parts) == 2 and re.fullmatch(r"\d+", parts[0]) for parts in split):
        numbers = [int(parts[0]) for parts in split]
        names = [parts[1].strip() for _, parts in sorted(zip(numbers, split, strict=True), key=lambda pair: pair[0])]
        if len(set(numbers)) != len(numbers):
            problems.append(f"label_list must give each number once, {path.name} repeats some; correct it")
        numbers = sorted(numbers)
    else:
        names, numbers = lines, list(range(len(lines)))
    if not lines:
        problems.append(f"label_list must have words, {path} has none; write one a line")
    words, num_repeated = distinct_words(names, [str(number) for number in numbers])
    return {number: column for column, number in enumerate(numbers)}, words, num_repeated


def _read_list(
    path: Path, split: str, delimiter: str | None, number_of: dict[int, int], num_words: int, problems: list[str]
) -> _List:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        problems.append(f"{split}_list must be a UTF-8 text file, {path.name} is not: {error}; convert it")
        lines = []
    paths: list[str] = []
    rows: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    values: list[np.ndarray] = []
    single: list[int] = []
    wrong: dict[str, list[str]] = {}
    fields = [(number, *_fields(line, delimiter)) for number, line in enumerate(lines, 1) if line.strip()]
    vectors = num_words == 1 or any("," in text for *_, text in fields)
    for number, image, text in fields:
        if not image or not text:
            wrong.setdefault("path, delimiter and labels", []).append(f"line {number} is {lines[number - 1][:60]!r}")
        elif vectors:
            vector = _vector(text)
            if vector is None:
                wrong.setdefault("0, 1 or −1 with commas between", []).append(f"line {number} has {text[:40]!r}")
            elif len(vector) != num_words:
                kind = f"{num_words} labels, one a word of the label list"
                wrong.setdefault(kind, []).append(f"line {number} has {len(vector)}")
            else:
                label = np.flatnonzero(vector)
                rows.append(np.full(len(label), len(paths)))
                labels.append(label)
                values.append(vector[label])
                paths.append(image)
        elif text.isdecimal() and int(text) in number_of:
            single.append(number_of[int(text)])
            paths.append(image)
        else:
            kind = f"the number of one of the {num_words} words"
            wrong.setdefault(kind, []).append(f"line {number} has {text[:40]!r}")
    for kind, found in wrong.items():
        more = f" and {len(found) - 5:,} lines more" if len(found) > 5 else ""
        problems.append(f"{path.name} must have on each line {kind}; {', '.join(found[:5])}{more}; correct them")
    return _List(
        np.array([posixpath.normpath(path.replace("\\", "/")) for path in paths], dtype=object),
        np.concatenate([np.arange(len(single)), *rows]),
        np.concatenate([np.array(single, np.int64), *labels]),
        np.concatenate([np.ones(len(single), np.int8), *values]),
    )


def _vector(text: str) -> np.ndarray | None:
    """Values of "0,1,-1" as int8; None if it is not such a text."""
    characters = np.frombuffer(text.replace("-1", "/").encode("ascii", "replace"), np.uint8)  # / comes before 0
    digits, commas = characters[::2].astype(np.int8) - ord("0"), characters[1::2]
    good = len(characters) % 2 and "/" not in text and (commas == ord(",")).all() and (abs(digits) <= 1).all()
    return digits if good else None


def _fields(line: str, delimiter: str | None) -> tuple[str, str]:
    """Path and labels of a line, without spaces around."""
    line = line.strip()
    if delimiter is None and "\t" not in line:
        parts = line.rsplit(None, 1) if not re.search(r",\s", line) else line.split(None, 1)
    else:
        parts = line.split(delimiter or "\t", 1)
    return parts[0].strip(), re.sub(r"\s", "", parts[1]) if len(parts) == 2 else ""


def _merge(rows: np.ndarray, labels: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> csr_matrix:
    """CSR with one entry a (row, label): 1 where any of its lines says so, else −1."""
    pairs = rows.astype(np.int64) * shape[1] + labels
    if not (pairs[1:] > pairs[:-1]).all():  # else no image has two lines
        order = np.lexsort((-values, pairs))
        rows, labels, values = rows[order], labels[order], values[order]
    first = np.ones(len(rows), bool)
    first[1:] = (rows[1:] != rows[:-1]) | (labels[1:] != labels[:-1])
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows[first], minlength=shape[0]))])
    return csr_matrix((values[first], labels[first], indptr), shape, dtype=np.int8)
