"""Predictions that were made elsewhere: a file of scores and a file of targets, aligned by image id and word."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zsmld.datasets import Dataset, dense_targets

_ID_COLUMNS = ("id", "image_id", "image", "path", "file_name", "filename")
_VALUE_NAMES = ("scores", "logits", "targets", "values")
_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".parquet", ".csv", ".tsv")


@dataclass(frozen=True)
class Matrix:
    """Numbers of images and words, with the names of both where the file has them.

    Attributes:
        values: (M,N) real.
        ids: M image ids, or None.
        words: N words, or None.
        source: the file, for messages.

    Raises:
        ValueError: if names and values do not fit each other, or a name stands twice.
    """

    values: np.ndarray
    ids: tuple[str, ...] | None = None
    words: tuple[str, ...] | None = None
    source: str = "the array"

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not self.values.size:
            raise ValueError(
                f"{self.source} must be (M, N), one row an image and one column a word, and not empty, got "
                f"{self.values.shape}; reshape it"
            )
        for names, axis, what in ((self.ids, 0, "image ids"), (self.words, 1, "words")):
            if names is None:
                continue
            if len(names) != self.values.shape[axis]:
                raise ValueError(
                    f"{self.source} must have one of its {what} for each of {self.values.shape[axis]} "
                    f"{'rows' if axis == 0 else 'columns'}, got {len(names)}; write them together"
                )
            repeated = [name for name, count in Counter(names).items() if count > 1]
            if repeated:
                raise ValueError(f"{self.source} must name its {what} once each, got {repeated[:3]} more than once")

    def select(self, words: Sequence[str]) -> "Matrix":
        """The columns of some of the words, in the order given; as it is if it lacks one of them, or has these."""
        if self.words is None or not set(words) <= set(self.words) or tuple(words) == self.words:
            return self
        position = {word: label for label, word in enumerate(self.words)}
        return replace(self, values=self.values[:, [position[word] for word in words]], words=tuple(words))

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> "Matrix":
        """The targets of a dataset, with its image ids and words."""
        ids = getattr(dataset, "ids", None)
        return cls(
            dense_targets(dataset),
            None if ids is None else tuple(str(image_id) for image_id in ids),
            dataset.vocabulary.words,
            repr(dataset),
        )


def read_matrix(path: str | Path) -> Matrix:
    """A matrix from a file.

    Args:
        path: `.npy`: the array alone. `.npz` and `.pt`: an array or tensor named scores, logits, targets or values,
            and lists named `ids` and `words` (a `.pt` may hold the tensor alone). `.parquet`, `.csv`, `.tsv`: a column
            of image ids (id, image_id, image, path, file_name) and one column a word.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its ending is not known or its content is not such a matrix.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be an existing file, not found; correct the path")
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path.name} must end in one of {', '.join(_SUFFIXES)}; convert or rename it")
    try:
        if path.suffix == ".npy":
            return Matrix(_numbers(np.load(path, allow_pickle=False), path), source=path.name)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return _from_names({name: arrays[name] for name in arrays.files}, path)
        if path.suffix in (".pt", ".pth"):
            import torch

            content = torch.load(path, map_location="cpu", weights_only=True)
            return _from_names(content if isinstance(content, dict) else {"values": content}, path)
        return _from_frame(path)
    except (OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} must be a readable {path.suffix} file, it is not: {error}; write it again") from error


def _from_names(content: dict[str, Any], path: Path) -> Matrix:
    found = [name for name in _VALUE_NAMES if name in content]
    if len(found) != 1:
        raise ValueError(
            f"{path.name} must hold one array named {', '.join(_VALUE_NAMES[:-1])} or values, got {sorted(content)}; "
            f"rename it"
        )
    names = {key: None if key not in content else tuple(str(name) for name in content[key]) for key in ("ids", "words")}
    return Matrix(_numbers(content[found[0]], path), names["ids"], names["words"], path.name)


def _from_frame(path: Path) -> Matrix:
    import pandas as pd

    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
    else:
        with open(path, encoding="utf-8-sig") as file:  # pandas would rename the second of two equal words
            header = file.readline().rstrip("\r\n").split("," if path.suffix == ".csv" else "\t")
        repeated = [name for name, count in Counter(header).items() if count > 1]
        if repeated:
            raise ValueError(f"{path.name} must name each column once, got {repeated[:3]} more than once")
        frame = pd.read_csv(path, sep="," if path.suffix == ".csv" else "\t", encoding="utf-8-sig")
    columns = [str(column) for column in frame.columns]
    found = [column for column in columns if column in _ID_COLUMNS]
    texts = [c for c in columns if frame[c].dtype.kind not in "fiub"]
    if len(found) > 1:  # a word may be called "image"; ids are texts then
        found = [column for column in found if column in texts] or found
    if len(found) != 1:
        raise ValueError(
            f"{path.name} must have one column of image ids named {', '.join(_ID_COLUMNS)}, got {found} among "
            f"{columns[:5]}…; rename it"
        )
    strangers = [column for column in texts if column != found[0]]
    if strangers:
        raise ValueError(
            f"{path.name} must have numbers in the column of each word, got other values in {strangers[:3]}; "
            f"remove these columns"
        )
    ids = tuple(frame[found[0]].astype(str))
    words = tuple(column for column in columns if column != found[0])
    return Matrix(frame[list(words)].to_numpy(), ids, words, path.name)


def _numbers(values: Any, path: Path) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor; numpy has no bfloat16
        values = values.detach()
        values = (values.float() if values.is_floating_point() else values).numpy()
    values = np.asarray(values)
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{path.name} must hold numbers, got {values.dtype}; convert it")
    return values


def align(scores: Matrix, targets: Matrix) -> tuple[Matrix, Matrix]:
    """Scores and targets with the same images and words in the same order, that of the targets.

    Names decide where both have them, and both must have the same. Two files without names are taken as they stand.

    Raises:
        ValueError: if only one of both has names, if names are on one side only, or if shapes differ.
    """
    rows = _positions(scores.ids, targets.ids, scores, targets, "image ids")
    columns = _positions(scores.words, targets.words, scores, targets, "words")
    values = scores.values
    if rows is not None and not np.array_equal(rows, np.arange(len(values))):
        values = values[rows]
    if columns is not None and not np.array_equal(columns, np.arange(values.shape[1])):
        values = values[:, columns]
    if values.shape != targets.values.shape:
        raise ValueError(
            f"scores and targets must have the same images and words, got {scores.source} {values.shape} and "
            f"{targets.source} {targets.values.shape}; write them for the same images and words"
        )
    return replace(scores, values=values, ids=targets.ids, words=targets.words), targets


def _positions(
    names: Sequence[str] | None, wanted: Sequence[str] | None, scores: Matrix, targets: Matrix, what: str
) -> np.ndarray | None:
    """Where each wanted name stands; None where neither side has names."""
    if names is None and wanted is None:
        return None
    if names is None or wanted is None:
        with_names, without = (scores, targets) if wanted is None else (targets, scores)
        raise ValueError(
            f"scores and targets must both have {what}, or neither: {with_names.source} has them, {without.source} "
            f"has none; an order that is guessed would give wrong figures, so write them to {without.source} as well"
        )
    missing, extra = sorted(set(wanted) - set(names)), sorted(set(names) - set(wanted))
    if missing or extra:
        raise ValueError(
            f"scores and targets must have the same {what}, got {len(missing)} only in {targets.source} "
            f"{missing[:3]} and {len(extra)} only in {scores.source} {extra[:3]}; score the same {what}"
        )
    position = {name: i for i, name in enumerate(names)}
    return np.array([position[name] for name in wanted], np.int64)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
