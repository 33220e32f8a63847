"""Rows of a text table: fields and what divides words; of an index: targets to Parquet and back, ids, files on disk."""

import csv
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_matrix

# Columns of rows.parquet and the target that each holds; the value of `missing` is not written.
VALUES = {"present": 1, "absent": 0, "unknown": -1}
_SEPARATORS = ("|", ";", ",")
_MAX_COLUMNS = 10_000  # pandas takes a third of a millisecond for each, even where all are empty


def read_delimited(path: Path, separator: str) -> pd.DataFrame:
    """A CSV or TSV file with a header, all texts.

    Raises:
        ValueError: with the reason alone.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            num_columns = len(next((row for row in csv.reader(file, delimiter=separator) if row), []))
        except csv.Error as error:
            raise ValueError(str(error)) from error
    if num_columns > _MAX_COLUMNS:
        raise ValueError(f"it has {num_columns:,} columns, of {_MAX_COLUMNS:,} at most")
    try:
        # The header as a row among others: pandas then refuses a longer one at once, and else takes its first fields
        # for names of rows, which is slow; and it renames no column that stands there twice.
        frame = pd.read_csv(path, sep=separator, header=None, dtype=str, keep_default_na=False)
    except pd.errors.ParserError as error:
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        hint = " (quote the words of a row or join them with |)" if "fields in line" in reason else ""
        raise ValueError(reason + hint) from error
    frame.columns = pd.Index(frame.iloc[0].tolist(), dtype=object)
    return frame.iloc[1:].reset_index(drop=True)


def read_objects(path: Path) -> pd.DataFrame:
    """A JSONL file, one object a line.

    Raises:
        ValueError: with the reason alone; among them that a key stands twice in an object, of which a dict would keep
            the last.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
        return found

    rows = []
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.strip():
                    rows.append(json.loads(line, object_pairs_hook=distinct))
                    if not isinstance(rows[-1], dict):
                        raise ValueError("it is no object")
                    if "\\u" in line:
                        json.dumps(rows[-1], ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"line {number}: it has half of a character") from error
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from error
    return pd.DataFrame(rows, dtype=object)  # 7 stays 7, where others have no number


def guess_separator(
    column: pd.Series, separator: str | None, words: Iterable[str], where: str, problems: list[str]
) -> str:
    """What divides the words of a text cell: what is given, else the one of | ; , that occurs, if no other can be.

    Example:
        >>> guess_separator(pd.Series(["dog;red car", "cat"]), None, (), "t.csv", [])
        ';'
    """
    if separator == "":
        problems.append(f"separator must not be empty, got '' for {where}; pass the character between words")
        return _SEPARATORS[0]
    if separator is not None:
        return separator
    text = column[column.map(lambda cell: isinstance(cell, str))].astype(str)
    found = [s for s in _SEPARATORS if text.str.contains(s, regex=False).any()]
    within = [s for s in found if any(s in word for word in words)]
    if len(found) > 1 or within:
        cell = next(cell for cell in text if any(s in cell for s in within or found))
        one = f"may be divided by {found[0]!r} or hold it"
        reason = f"could be divided by any of {found}" if len(found) > 1 else one
        problems.append(
            f"separator must be given for {where}, whose words {reason}, for instance {cell[:80]!r}; "
            f"pass separator={found[0]!r} or another"
        )
    spaced = text.str.strip().str.count(r"\s+")
    if not found and len(text) > 1 and (spaced > 0).mean() > 0.5 and (spaced > 1).any():
        # "red car" is one word, but a column of such cells is more likely "dog cat" without a separator we guess.
        warnings.warn(
            f"{where}: no separator was found and most cells hold blanks, each is taken as one word; pass "
            f"separator=' ' if they are several",
            stacklevel=2,
        )
    return found[0] if found else _SEPARATORS[0]


def ids_digest(ids: Iterable[str]) -> str:
    """SHA-256 of a set of image ids, whatever their order: equal digests mean the same images.

    Example:
        >>> ids_digest(["b", "a"]) == ids_digest(["a", "b"]) != ids_digest(["a"])
        True
    """
    return hashlib.sha256("\n".join(sorted(map(str, ids))).encode()).hexdigest()


def content_digest(rows_path: Path, words: Sequence[str], missing: int) -> str:
    """SHA-256 of the rows and of what gives their labels a meaning."""
    digest = hashlib.sha256(rows_path.read_bytes())
    digest.update(json.dumps([list(words), missing]).encode())
    return digest.hexdigest()


def repeated_ids(ids: pa.StringArray) -> list[str]:
    """What is wrong with ids that stand twice; checked when an index is made, not each time it is opened."""
    if pc.count_distinct(ids).as_py() == len(ids):
        return []
    twice = [entry["values"] for entry in pc.value_counts(ids).to_pylist() if entry["counts"] > 1]
    return [f"{len(twice):,} image ids stand more than once, for instance {', '.join(twice[:3])}; merge their rows"]


def check_split(split: str, val_fraction: float | None) -> None:
    """Refuse a split that no dataset has, or an impossible share of validation images.

    Raises:
        ValueError: with what it must be.
    """
    if split not in ("train", "val", "test", "all"):
        raise ValueError(f"split must be 'train', 'val', 'test' or 'all', got {split!r}; choose one")
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction}; lower it")


def share_of_training(split: str, num_images: int, val_fraction: float, seed: int) -> np.ndarray:
    """Which training images are "train" and which "val", (M,) bool, drawn at random but always alike.

    Example:
        >>> share_of_training("val", 10, 0.2, seed=0).sum(), share_of_training("train", 10, 0.2, seed=0).sum()
        (np.int64(2), np.int64(8))
    """
    order = np.random.default_rng(seed).permutation(num_images)
    is_val = np.zeros(num_images, bool)
    is_val[order[: round(val_fraction * num_images)]] = True
    return is_val if split == "val" else ~is_val


def apply_policies(
    kept: np.ndarray,
    targets: csr_matrix,
    is_seen: np.ndarray,
    split: str,
    keep_unlabelled: bool,
    exclude_unseen_images: bool,
) -> dict[str, int]:
    """Drop the images that the policies of a dataset leave out.

    Args:
        kept: (M,) bool, the images of the split; changed in place.
        targets: (M,N) of the partition's words.
        is_seen: (N,) bool.
        split: "train" and "val" are training images: under a zero-shot partition those have a seen word.
        keep_unlabelled: keep images with none of the words.
        exclude_unseen_images: drop training images that show an unseen word.

    Returns:
        How many images were listed, how many each policy took away, and how many are used.
    """
    counts = {"listed": int(kept.sum())}
    present = targets == 1
    num_seen, num_unseen = (np.asarray(present[:, np.flatnonzero(is_seen == side)].sum(1)).ravel() for side in (1, 0))
    training = split in ("train", "val")
    for policy, dropped in (
        ("without_a_seen_word", (num_seen == 0) if training and not is_seen.all() else None),
        ("with_an_unseen_word", (num_unseen > 0) if training and exclude_unseen_images else None),
        ("unlabelled", (num_seen + num_unseen == 0) if not keep_unlabelled else None),
    ):
        if dropped is not None:
            counts[policy] = int((kept & dropped).sum())
            kept &= ~dropped
    return counts | {"used": int(kept.sum())}


def select_columns(targets: csr_matrix, labels: np.ndarray) -> csr_matrix:
    """Some columns of a CSR matrix, explicit zeros kept; slicing by array would be several times slower."""
    position = np.full(targets.shape[1], -1, np.int32)
    position[labels] = np.arange(len(labels))
    moved = position[targets.indices]
    kept = moved >= 0
    rows = np.repeat(np.arange(targets.shape[0]), np.diff(targets.indptr))[kept]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=targets.shape[0]))])
    result = csr_matrix((targets.data[kept], moved[kept], indptr), (targets.shape[0], len(labels)), dtype=np.int8)
    result.sort_indices()
    return result


def to_label_lists(targets: csr_matrix, value: int) -> pa.ListArray:
    """Labels that have a value, one list a row."""
    held = targets.data == value
    offsets = np.concatenate([[0], np.cumsum(held)])[targets.indptr]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(targets.indices[held], pa.int32()))


def from_label_lists(columns: dict[str, pa.ListArray], shape: tuple[int, int]) -> csr_matrix:
    """The inverse of `to_label_lists`, for the columns of all stored values together."""
    lists = [(VALUES[name], c.offsets.to_numpy(), c.values.to_numpy()) for name, c in columns.items()]
    if len(lists) == 1:
        value, offsets, labels = lists[0]
        return csr_matrix((np.full(len(labels), value, np.int8), labels, offsets), shape)
    rows = np.concatenate([np.repeat(np.arange(shape[0]), np.diff(offsets)) for _, offsets, _ in lists])
    data = np.concatenate([np.full(len(labels), value, np.int8) for value, _, labels in lists])
    order = np.argsort(rows, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))])
    result = csr_matrix((data[order], np.concatenate([labels for *_, labels in lists])[order], indptr), shape)
    result.sort_indices()
    return result


def finder(root: Path) -> Callable[[str], bool]:
    """Whether a path below root is a file. Folders are listed once: asking for each of 270,000 files takes far longer.

    Example:
        >>> finder(Path("/no/such/folder"))("0/1.jpg")
        False
    """
    listed: dict[str, set[str]] = {}

    def is_there(path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder not in listed:
            listed[folder] = set(_files_in(root / folder))
        return name in listed[folder]

    return is_there


def _files_in(folder: Path) -> Iterator[str]:
    """Names of the files in a folder, links to files too; none if it is not there."""
    if not os.path.isdir(folder):  # Path.is_dir refuses long names
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path):  # the first asks for no file
                yield entry.name


def on_disk(root: Path, paths: pa.StringArray) -> np.ndarray:
    """Which files are there, (M,) bool."""
    return np.fromiter(map(finder(root), paths.to_pylist()), bool, len(paths))


def shown(value: Any) -> str:
    """A value of the manifest as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(inner)}" for key, inner in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def refuse(what: str, problems: Sequence[str]) -> None:
    """One error with everything that was found wrong; nothing if nothing was.

    Raises:
        ValueError: if there are problems.
    """
    if problems:
        raise ValueError(f"{what}, found:\n  - " + "\n  - ".join(problems))
