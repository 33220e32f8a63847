"""Your own photos: a table (CSV, TSV or JSONL) with a column of image paths and a column of words.

image,labels
000000000009.jpg,bowl|orange|broccoli
000000000025.jpg,giraffe
"""

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from zsmld.images import load_image
from zsmld.vocabulary import DEFAULT_TEMPLATES, Vocabulary, check_words

TableSplit = Literal["train", "val", "test", "all"]

_IMAGE_COLUMNS = ("image", "image_path", "path", "file", "file_name", "filename")
_WORD_COLUMNS = ("labels", "tags", "words", "label", "keywords")
_SEPARATORS = ("|", ";", ",")


class Table:
    """A table of images and their words.

    Without a column named `split`, rows are divided at random but always alike: by `val_fraction`, `test_fraction`
    and `seed`.

    Args:
        path: .csv, .tsv or .jsonl; a JSONL row may hold its words as a list.
        root: folder that image paths are relative to; default the table's folder, or `images/` beside it.
        split: "train", "val", "test", or "all" rows.
        image_column: default the one of a usual name (image, path, file_name, …).
        words_column: default the one of a usual name (labels, tags, words, …).
        separator: between words in a cell; default the one that occurs, if only one of | ; , does.
        words: the vocabulary, in order; default every word of the table, sorted. Others are counted and left out.
        partition: JSON file {"seen": […], "unseen": […]}; a partition inside a larger file is named "FILE#KEY".
        val_fraction: share of rows in "val", in [0,1).
        test_fraction: share of rows in "test", in [0,1).
        seed: of the random division.

    Attributes:
        targets: (M,N) CSR of int8; a missing entry means absent (`missing` = 0).
        ids: image paths as the table writes them.
        unknown_words: words of the table outside the vocabulary, with their counts.

    Raises:
        FileNotFoundError: if the table, its images' folder or the partition does not exist.
        ValueError: if a column cannot be found, the separator is ambiguous, or the table is empty.
    """

    name = "table"
    missing = 0

    def __init__(
        self,
        path: str | Path,
        root: str | Path | None = None,
        split: TableSplit = "all",
        image_column: str | None = None,
        words_column: str | None = None,
        separator: str | None = None,
        words: list[str] | None = None,
        partition: str | Path | None = None,
        templates: tuple[str, ...] = DEFAULT_TEMPLATES,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
    ) -> None:
        path = Path(path)
        frame = _read(path)
        image_column = _column(frame, image_column, _IMAGE_COLUMNS, "image_column", path)
        words_column = _column(frame, words_column, _WORD_COLUMNS, "words_column", path)
        self.name, self.split = path.stem, split
        self.root = _root(path, root, frame[image_column].astype(str))
        duplicates = int(frame[image_column].duplicated().sum())
        if duplicates:
            raise ValueError(
                f"{path} must name each image once, got {duplicates} repeated rows such as "
                f"{frame[image_column][frame[image_column].duplicated()].iloc[0]!r}; merge their words"
            )
        cells = _split_cells(frame[words_column], separator, path)
        if partition is not None and words is not None:
            raise ValueError(
                "words must be left out beside partition, got both; the partition's words are the vocabulary"
            )
        if partition is not None:
            seen, unseen = _read_partition(partition)
            self.vocabulary = Vocabulary([*seen, *unseen], seen=seen, templates=templates)
        else:
            self.vocabulary = Vocabulary(
                words if words is not None else sorted({word for cell in cells for word in cell}), templates=templates
            )
        self.unknown_words = Counter(word for cell in cells for word in cell if word not in self.vocabulary)
        if not any(word in self.vocabulary for cell in cells for word in cell):
            raise ValueError(
                f"{path} must have words of its vocabulary, got none of {list(self.vocabulary.words[:3])}… in any row; "
                f"check spelling and case, for instance {list(self.unknown_words)[:3]}"
            )
        if self.unknown_words and partition is None:
            warnings.warn(
                f"{path}: words outside the vocabulary are left out: {dict(self.unknown_words)}", stacklevel=2
            )

        rows = _rows_of_split(frame, split, val_fraction, test_fraction, seed)
        if not len(rows):
            instead = f", or set {split}_fraction=0 to do without" if split in ("val", "test") else ""
            what = "the values of its split column" if "split" in frame.columns else "val_fraction and test_fraction"
            raise ValueError(
                f"split {split!r} of {path} must have rows, got none of {len(frame)}; change {what}{instead}"
            )
        self.ids = [str(frame[image_column].iloc[row]) for row in rows]
        pairs = [
            (i, self.vocabulary.index(word))
            for i, row in enumerate(rows)
            for word in cells[row]
            if word in self.vocabulary
        ]
        i, j = np.array(pairs, np.int64).reshape(-1, 2).T
        self.targets = csr_matrix((np.ones(len(i), np.int8), (i, j)), (len(rows), len(self.vocabulary)), dtype=np.int8)
        self.targets.data[:] = 1  # a word twice in one cell is still one word

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": PIL RGB, "targets": (N,) int8, "id": str}; an unreadable image is an error that names it."""
        image = load_image(self.root / self.ids[index])
        return {"image": image, "targets": self.targets[index].toarray()[0], "id": self.ids[index]}

    def __repr__(self) -> str:
        return f"Table({self.name!r}, split={self.split!r}, num_images={len(self)}, words={len(self.vocabulary)})"


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"path must be an existing table, not found: {path}; correct the path")
    if path.suffix not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        raise ValueError(f"path must end in .csv, .tsv or .jsonl, got {path.name}; convert or rename it")
    try:
        if path.suffix in (".csv", ".tsv"):
            frame = pd.read_csv(path, sep="," if path.suffix == ".csv" else "\t", dtype=str, keep_default_na=False)
        else:
            frame = pd.read_json(path, lines=True, dtype=False, encoding="utf-8-sig")
    except ValueError as error:  # pandas' own kinds are ValueErrors
        raise ValueError(f"{path} must be a readable table, it is not: {error}; repair it") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas took a first field too many for row names
        raise ValueError(
            f"{path} must have as many fields in each row as columns, got more; quote the words of a row or "
            f"join them with |"
        )
    if frame.empty:
        raise ValueError(f"{path} must have at least one row, got none; fill it")
    return frame


def _column(frame: pd.DataFrame, name: str | None, usual: tuple[str, ...], argument: str, path: Path) -> str:
    columns = [str(column) for column in frame.columns]
    if name is not None and name not in columns:
        raise ValueError(f"{argument} must be a column of {path.name}, got {name!r}; it has {columns}")
    found = [name] if name is not None else [column for column in columns if column.lower() in usual]
    if len(found) != 1:
        raise ValueError(
            f"{argument} must be named, {path.name} has {len(found)} columns of a usual name among {columns}; "
            f"pass {argument}="
        )
    return found[0]


def _root(path: Path, root: str | Path | None, images: pd.Series) -> Path:
    if root is not None:
        if not Path(root).is_dir():
            raise FileNotFoundError(f"root must be an existing folder of images, not found: {root}; correct the path")
        return Path(root)
    beside = path.parent / "images"
    if not beside.is_dir():
        return path.parent
    some = images.iloc[:: max(1, len(images) // 20)]  # where more of them are; a first photo may be missing
    return max((path.parent, beside), key=lambda folder: sum((folder / image).is_file() for image in some))


def _split_cells(column: pd.Series, separator: str | None, path: Path) -> list[list[str]]:
    if separator is None:
        texts = [cell for cell in column if isinstance(cell, str)]
        found = [s for s in _SEPARATORS if any(s in text for text in texts)]
        if len(found) > 1:
            raise ValueError(
                f"separator must be given for {path.name}, whose words could be divided by any of {found}; "
                f"pass separator={found[0]!r} or another"
            )
        separator = found[0] if found else "|"
    cells = [cell if isinstance(cell, list) else _text(cell).split(separator) for cell in column]
    return [[word for word in (str(word).strip() for word in cell) if word] for cell in cells]


def _text(cell: object) -> str:
    return "" if cell is None or cell != cell else str(cell)  # a missing JSONL value is None or NaN


def _read_partition(partition: str | Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    file, _, key = str(partition).partition("#")
    if not Path(file).is_file():
        raise FileNotFoundError(f"partition must be an existing JSON file, not found: {file}; correct the path")
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"partition must be JSON, {file} cannot be read: {error}; repair it") from error
    if key:
        if key not in content:
            raise ValueError(f"partition must name a key of {file}, got {key!r}; it has {sorted(content)}")
        content = content[key]
    if not isinstance(content, dict) or not {"seen", "unseen"} <= set(content):
        raise ValueError(
            f"partition must be a JSON object with 'seen' and 'unseen', got {file} with "
            f"{sorted(content) if isinstance(content, dict) else type(content).__name__}; write FILE#KEY for one inside"
        )
    return check_words(content["seen"], "seen"), check_words(content["unseen"], "unseen")


def _rows_of_split(frame: pd.DataFrame, split: str, val_fraction: float, test_fraction: float, seed: int) -> np.ndarray:
    if split not in ("train", "val", "test", "all"):
        raise ValueError(f"split must be 'train', 'val', 'test' or 'all', got {split!r}; choose one")
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ValueError(
            f"val_fraction and test_fraction must leave rows to train on, got {val_fraction} and {test_fraction}; "
            f"lower them"
        )
    if split == "all":
        return np.arange(len(frame))
    if "split" in frame.columns:
        return np.flatnonzero((frame["split"] == split).to_numpy())
    order = np.random.default_rng(seed).permutation(len(frame))
    num_test, num_val = round(test_fraction * len(frame)), round(val_fraction * len(frame))
    parts = {
        "test": order[:num_test],
        "val": order[num_test : num_test + num_val],
        "train": order[num_test + num_val :],
    }
    return np.sort(parts[split])
