"""Your own photos: a table (CSV, TSV, JSONL or Parquet) with a column of image paths and a column of words.

image,labels
000000000009.jpg,bowl|orange|broccoli
000000000025.jpg,giraffe
"""

import os
import posixpath
import reprlib
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.sparse import csr_matrix

from zsmld.datasets.folder import SPLIT_NAMES, divide, read_lines
from zsmld.datasets.index import Index, IndexedDataset, MissingImages, Split
from zsmld.datasets.partition import read_partition
from zsmld.datasets.rows import guess_separator, read_delimited, read_objects, refuse
from zsmld.reading import read_parquet
from zsmld.vocabulary import DEFAULT_TEMPLATES, check_words, wrong_words

_IMAGE_COLUMNS = ("image", "image_path", "path", "file", "file_name", "filename")
_WORD_COLUMNS = ("labels", "tags", "words", "label", "keywords")
_NUM_SHOWN = 5  # unusable words in an error
_NO_WORDS = (list, tuple, set, dict, np.ndarray, bytes)  # what an entry of a list may not be


def read_table(
    root: Path,
    problems: list[str],
    image_column: str | None = None,
    words_column: str | None = None,
    separator: str | None = None,
    words: list[str] | str | Path | None = None,
    images: str | Path | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Index | None:
    """Your own photos: a table with a column of image paths and a column of words, one row an image.

    Without a column named `split`, images are divided at random but always alike: by `val_fraction`, `test_fraction`
    and `seed`. Rows of the same image are merged, and have the words of each. A missing entry means absent.

    Args:
        root: the table: .csv, .tsv, .jsonl or .parquet; the latter two may hold an image's words as a list.
        problems: receives everything that is wrong.
        image_column: default the one of a usual name (image, path, file_name, …).
        words_column: default the one of a usual name (labels, tags, words, …).
        separator: between words in a cell; default the one of | ; , that occurs. Where several do, or where one that
            does is also part of one of `words`, it must be given.
        words: the vocabulary, in order, as a list or a text file with one a line; default every word of the table,
            sorted. Others are counted and left out.
        images: folder that image paths are relative to; default the table's folder, or `images/` beside it.
        val_fraction: share of the images in "val", in [0,1).
        test_fraction: share of the images in "test", in [0,1).
        seed: of the random division.

    Returns:
        An `Index` with the partition "all"; `manifest["unknown_words"]` counts the words that were left out.
    """
    if isinstance(words, (str, Path)):
        path, words = Path(words), read_lines(Path(words), "words", problems)
        if not words and path.is_file():
            problems.append(f"words must have at least one word, {path} has none; fill it or leave words out")
        try:
            words = list(check_words(words, allow_empty=True)) or None
        except ValueError as error:
            problems.append(f"{path}: {error}")
            words = None
    return _read_index(
        root, problems, image_column, words_column, separator, words, (), images, val_fraction, test_fraction, seed
    )


def table(
    path: str | Path,
    root: str | Path | None = None,
    split: Split = "all",
    image_column: str | None = None,
    words_column: str | None = None,
    separator: str | None = None,
    words: list[str] | None = None,
    partition: str | Path | None = None,
    templates: tuple[str, ...] | str = DEFAULT_TEMPLATES,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    missing_images: MissingImages = "drop",
    keep_unlabelled: bool = True,
    exclude_unseen_images: bool = False,
    descriptions: str | Path | None = None,
) -> IndexedDataset:
    """A table of images and their words, read by `read_table`, whose arguments have the same meaning here.

    What was merged, left out or is not there is counted in `manifest`, and said in one warning.

    Args:
        path: the table.
        root: folder that image paths are relative to; default the table's folder, or `images/` beside it.
        split: "train", "val", "test", or "all" images.
        image_column: of `read_table`.
        words_column: of `read_table`.
        separator: of `read_table`.
        words: the vocabulary, in order; default every word of the table, sorted.
        partition: JSON file {"seen": […], "unseen": […]}; a partition inside a larger file is named "FILE#KEY". Its
            words are the vocabulary; a word that no row has is an empty column.
        templates: prompt sentences of the vocabulary, or the name of a set of them.
        val_fraction: of `read_table`.
        test_fraction: of `read_table`.
        seed: of `read_table`.
        missing_images: "drop" uses the images that are there, "error" refuses a table that names others.
        keep_unlabelled: keep images with none of the partition's words.
        exclude_unseen_images: drop training images that show an unseen word.
        descriptions: a JSON file of sentences about some of the words, see `zsmld.vocabulary.read_descriptions`.

    Raises:
        FileNotFoundError: if the table, its images' folder or the partition does not exist.
        ValueError: for an impossible combination of arguments, if the split is empty, or with a list of everything
            that is wrong with the table.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"path must be an existing table, not found: {path}; give yours, on the command line dataset.path=FILE"
        )
    if root is not None and not Path(root).is_dir():
        raise FileNotFoundError(f"root must be an existing folder of images, not found: {root}; correct the path")
    if partition is not None and words is not None:
        raise ValueError("words must be left out beside partition, got both; the partition's words are the vocabulary")
    if missing_images not in ("error", "drop"):
        raise ValueError(f"missing_images must be 'error' or 'drop', got {missing_images!r}; choose one")
    sides = () if partition is None else read_partition(partition)
    divided = tuple(dict.fromkeys(word for side in sides for word in side))  # a word in both is refused below
    problems: list[str] = []
    index = _read_index(
        path, problems, image_column, words_column, separator, words, divided, root, val_fraction, test_fraction, seed
    )
    listed = 0 if index is None else int((index.splits == split).sum())
    if index is not None:
        index = index.without_missing_images(missing_images, problems)
    refuse(f"{path} must be a usable table of images", problems)
    assert index is not None  # a table without an index has problems
    if split in SPLIT_NAMES.values() and not (index.splits == split).any():
        without = f", or set {split}_fraction=0 to do without" if split != "train" else ""
        by_column = "split_column" in index.manifest["policies"]
        change = "the values of its split column" if by_column else f"val_fraction and test_fraction{without}"
        why = f"none of {len(index)}" if not listed else f"{listed} without an image on disk"
        raise ValueError(f"split {split!r} of {path} must have rows, got {why}; change {change}")
    dataset = index.dataset(
        split, partition, templates, keep_unlabelled, exclude_unseen_images, descriptions=descriptions
    )
    dataset.manifest["unknown_words"] = index.manifest["unknown_words"]
    _warn(path, index, partition)
    return dataset


def _warn(path: Path, index: Index, partition: str | Path | None) -> None:
    """One sentence about everything that was counted; a partition leaves words out on purpose."""
    counts, unknown = index.manifest["counts"], index.manifest["unknown_words"]
    said = []
    if unknown and partition is None:
        said.append(f"words outside the vocabulary are left out: {_some(unknown)}")
    if partition is not None and counts["words_without_images"]:
        said.append(f"{counts['words_without_images']} words of the partition are in no row")
    if counts["merged_rows"]:
        said.append(f"{counts['merged_rows']} repeated rows are merged with the first of their image")
    missing = index.manifest.get("missing_images", [])
    if missing:
        said.append(f"{len(missing)} images are not in {index.root} and left out, such as {missing[:3]}")
    if said:
        warnings.warn(f"{path}: {'; '.join(said)}", stacklevel=3)


def _some(unknown: dict[str, int]) -> str:
    more = f" and {len(unknown) - 20:,} more words" if len(unknown) > 20 else ""
    return f"{dict(list(unknown.items())[:20])}{more}"


def _read_index(
    path: Path,
    problems: list[str],
    image_column: str | None,
    words_column: str | None,
    separator: str | None,
    words: Iterable[str] | None,
    divided: tuple[str, ...],
    images: str | Path | None,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> Index | None:
    """The index of a table; `divided` are the words of a partition, if there is one."""
    if images is not None and not Path(images).is_dir():
        problems.append(f"images must be an existing folder of images, not found: {images}; correct the path")
        images = None
    given = check_words(words) if words is not None else divided
    frame = _read_frame(path, problems)
    if frame is None:
        return None
    image = _column(frame, image_column, _IMAGE_COLUMNS, "image_column", path, problems)
    cells = _column(frame, words_column, _WORD_COLUMNS, "words_column", path, problems)
    if image is None or cells is None:
        return None
    named = frame[image].map(lambda cell: "" if cell is None or cell != cell else str(cell))
    if (named.str.strip() == "").any():
        rows = (np.flatnonzero(named.str.strip() == "") + 1).tolist()
        problems.append(f"{path.name} must name an image in each row, {len(rows)} rows do not, such as {rows[:5]}")
    separator = guess_separator(frame[cells], separator, given, path.name, problems)

    # Distinct images in the order of their first row, and the row of each in that order.
    image_of_row, paths = pd.factorize(named.map(lambda name: posixpath.normpath(name.replace("\\", "/"))))
    first = np.unique(image_of_row, return_index=True)[1]
    row, word = split_words(frame[cells], separator, path.name, problems)
    occurring = pd.Index(word.unique())
    counted = word.groupby(word).size()
    vocabulary = given or tuple(sorted(occurring))
    unknown = counted[~counted.index.isin(vocabulary)].sort_values(ascending=False, kind="stable")
    if divided:  # the other words stay in the index, as columns that the partition does not take
        vocabulary = (*divided, *sorted(set(occurring) - set(divided)))
    wrong = wrong_words(vocabulary)
    for text, what in list(wrong.items())[:_NUM_SHOWN]:
        places = row[np.flatnonzero(word == text)]  # none for a word of the partition alone
        problems.append(f"{path.name}{f', row {places[0] + 1}' if len(places) else ''}: words {what}")
    if len(wrong) > _NUM_SHOWN:
        problems.append(f"{path.name} must have usable words, {len(wrong) - _NUM_SHOWN:,} more are not; correct them")
    vocabulary = tuple(text for text in vocabulary if text not in wrong)
    if not len(occurring):
        problems.append(
            f"words must have at least one word, got none in column {cells!r} of {path.name}; fill it or pass "
            f"words_column="
        )
    elif not occurring.isin(given or occurring).any():
        problems.append(
            f"{path} must have words of its vocabulary, got none of {list(given[:3])}… in any row; check spelling and "
            f"case, for instance {list(occurring[:3])}"
        )
    if not vocabulary:
        return None
    label = pd.Index(vocabulary).get_indexer(word)
    targets = indicator(image_of_row[row][label >= 0], label[label >= 0], (len(paths), len(vocabulary)))
    policies: dict[str, object] = {"separator": separator, "repeated_rows": "merged, with the words of each"}
    if "split" in frame.columns:
        policies["split_column"] = True
        splits = _splits_of_column(frame["split"], image_of_row, first, path, problems)
    else:
        policies |= {"val_fraction": val_fraction, "test_fraction": test_fraction, "seed": seed}
        splits = divide(len(paths), val_fraction, test_fraction, seed, problems)
    return Index(
        name=path.stem,
        root=_root(path, images, paths),
        words=vocabulary,
        partitions={"all": {"seen": list(vocabulary), "unseen": []}},
        ids=pa.array(named.iloc[first].tolist(), pa.string()),
        paths=pa.array(paths.tolist(), pa.string()),
        splits=splits,
        targets=targets,
        manifest={
            "policies": policies,
            "counts": {
                "rows": len(frame),
                "merged_rows": len(frame) - len(paths),
                "unknown_words": len(unknown),
                "labels_of_unknown_words": int(unknown.sum()),
                "words_without_images": int((np.bincount(targets.indices, minlength=len(vocabulary)) == 0).sum()),
                "images_without_words": int((np.diff(targets.indptr) == 0).sum()),
            },
            "unknown_words": {str(key): int(value) for key, value in unknown.items()},
        },
    )


def _read_frame(path: Path, problems: list[str]) -> pd.DataFrame | None:
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            frame = read_delimited(path, "," if suffix == ".csv" else "\t")
        elif suffix in (".jsonl", ".ndjson"):
            frame = read_objects(path)
        elif suffix == ".parquet":
            frame = read_parquet(path)
        else:
            problems.append(
                f"path must end in .csv, .tsv or .jsonl, got {path.name}; convert or rename it (.parquet works too)"
            )
            return None
    except ValueError as error:  # pandas' and Arrow's own kinds are ValueErrors
        problems.append(f"{path} must be a readable table, it is not: {error}; repair it")
        return None
    frame.columns = pd.Index([str(column) for column in frame.columns], dtype=object)
    if frame.empty:
        problems.append(f"{path} must have at least one row, got none; fill it")
        return None
    return frame.reset_index(drop=True)


def _column(
    frame: pd.DataFrame, name: str | None, usual: tuple[str, ...], argument: str, path: Path, problems: list[str]
) -> str | None:
    columns = [str(column) for column in frame.columns]
    if name is not None and name not in columns:
        problems.append(f"{argument} must be a column of {path.name}, got {name!r}; it has {columns}")
        return None
    if name is not None and columns.count(name) > 1:
        problems.append(f"{argument} must be one column of {path.name}, got {name!r}, which stands twice; rename one")
        return None
    found = [name] if name is not None else [column for column in columns if column.lower() in usual]
    if len(found) != 1:
        problems.append(
            f"{argument} must be named, {path.name} has {len(found)} columns of a usual name among {columns}, "
            f"usual are {', '.join(usual)}; pass {argument}= or rename one"
        )
        return None
    return found[0]


def _root(path: Path, images: str | Path | None, paths: pd.Index) -> Path:
    if images is not None:
        return Path(images)
    beside = path.parent / "images"
    if not beside.is_dir():
        return path.parent
    some = paths[:: max(1, len(paths) // 20)]  # where more of them are; a first photo may be missing
    return max((path.parent, beside), key=lambda folder: sum(os.path.isfile(folder / image) for image in some))


def _splits_of_column(
    column: pd.Series, image_of_row: np.ndarray, first: np.ndarray, path: Path, problems: list[str]
) -> np.ndarray:
    split = column.map(lambda cell: SPLIT_NAMES.get(str(cell).strip().lower()))
    strange = sorted({str(cell) for cell in column[split.isna()]})
    if strange:
        problems.append(f"column split of {path.name} must say train, val or test, got {strange[:5]}; correct it")
    of_image = split.iloc[first].fillna("train").to_numpy(dtype="<U5")
    different = np.unique(image_of_row[(split.fillna("train").to_numpy(dtype="<U5") != of_image[image_of_row])])
    if len(different):
        rows = (first[different[:3]] + 1).tolist()
        problems.append(
            f"{path.name} must have an image in one split, {len(different)} are in several, such as that of row "
            f"{rows}; remove their repetitions"
        )
    return of_image


def split_words(
    column: pd.Series, separator: str, where: str = "the table", problems: list[str] | None = None
) -> tuple[np.ndarray, pd.Series]:
    """Words of the cells of a column, each a text or a list: position of the cell, and word, without empty ones.

    What is in a list in a list is left out and said in `problems`, or raised if there are none to add to.

    Example:
        >>> rows, words = split_words(pd.Series(["dog| cat", "", None, ["bird"]]), "|")
        >>> rows.tolist(), words.tolist()
        ([0, 0, 3], ['dog', 'cat', 'bird'])
    """
    lists = column.map(lambda cell: _entries(cell, separator))
    entry = pd.Series(lists.to_numpy(), dtype=object).explode().dropna()
    is_word = entry.map(lambda value: not isinstance(value, _NO_WORDS)).astype(bool)
    if not is_word.all():
        value, rows = entry[~is_word].iloc[0], sorted({int(row) + 1 for row in entry.index[~is_word]})
        got = reprlib.repr(value.tolist() if isinstance(value, np.ndarray) else value)
        wrong = (
            f"{where} must have texts or a list of texts as words, got {got} in row {rows[0]} and others in "
            f"{len(rows) - 1} more rows; write each word as a text"
        )
        if problems is None:
            raise ValueError(wrong)
        problems.append(wrong)
    word = entry[is_word].astype(str).str.strip()
    word = word[word != ""]
    return word.index.to_numpy(), word.reset_index(drop=True)


def _entries(cell: Any, separator: str) -> list[Any]:
    if isinstance(cell, (list, np.ndarray)):
        return list(cell)
    if isinstance(cell, _NO_WORDS):
        return [cell]
    return [] if cell is None or cell != cell else str(cell).split(separator)  # a missing value is None or NaN


def indicator(rows: np.ndarray, labels: np.ndarray, shape: tuple[int, int]) -> csr_matrix:
    """CSR of int8 with 1 at each (row, label), however often it is named.

    Example:
        >>> indicator(np.array([1, 0, 1]), np.array([2, 0, 2]), (2, 3)).toarray().tolist()
        [[1, 0, 0], [0, 0, 1]]
    """
    pairs = np.sort(rows.astype(np.int64) * shape[1] + labels)
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(pairs // shape[1], minlength=shape[0]))])
    return csr_matrix((np.ones(len(pairs), np.int8), pairs % shape[1], indptr), shape, dtype=np.int8)
