"""Predictions that were made elsewhere: a file of scores and a file of targets, aligned by image id and word."""

import csv
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zsmld.datasets import Dataset, dense_targets
from zsmld.metrics.arrays import row_chunks
from zsmld.reading import digest_of, read_numpy, read_parquet, read_torch

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
        sha256: of the file, for the report; None where there is none.
        words_from: where the words come from if not from the file itself, such as a list that names its columns in
            their order; the report then says that words are aligned by position.

    Raises:
        ValueError: if names and values do not fit each other, or a name stands twice.
    """

    values: np.ndarray
    ids: tuple[str, ...] | None = None
    words: tuple[str, ...] | None = None
    source: str = "the array"
    sha256: str | None = None
    words_from: str | None = None

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

    def as_targets(self, words: Sequence[str] | None = None) -> "Matrix":
        """The same as int8 in {1, 0, −1}, in one pass; not copied where it is that already.

        Args:
            words: the columns wanted, in this order; ignored if the matrix lacks names or one of them.

        Raises:
            ValueError: on other values.
        """
        columns, names = None, self.words
        if words is not None and self.words is not None and set(words) <= set(self.words):
            position = {word: label for label, word in enumerate(self.words)}
            columns, names = np.array([position[word] for word in words], np.int64), tuple(words)

        def check(part: np.ndarray) -> None:
            fits = part.min() >= -1 and part.max() <= 1 if part.dtype.kind in "iub" else np.isin(part, (-1, 0, 1)).all()
            if not fits:
                wrong = np.setdiff1d(np.unique(part), (-1, 0, 1))
                raise ValueError(f"targets must be 1, 0 or -1, {self.source} has {wrong[:5].tolist()}; convert them")

        return replace(self, values=_rearranged(self.values, None, columns, np.dtype(np.int8), check), words=names)

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
    load = {".npy": _load_array, ".npz": _load_arrays, ".pt": _load_tensors, ".pth": _load_tensors}
    try:
        content = load.get(path.suffix, _load_frame)(path)
    except Exception as error:  # NumPy, zip, PyTorch, pandas and Arrow have many kinds; the reader needs the path
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise ValueError(
                f"{path} must be a {path.suffix} file with a tensor, or a dict of a tensor and lists of texts, it is "
                f"damaged or holds other objects, such as NumPy arrays; save torch.from_numpy(array), or write .npy"
            ) from error
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path} must hold numbers, and texts as a text array, it holds Python objects; save "
                f"array.astype(np.float32), and names as np.array(names, dtype=str)"
            ) from error
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} must be a readable {path.suffix} file, it is not: {reason}; write it again"
        ) from error
    matrix = _from_names(content, path) if isinstance(content, dict) else _from_frame(content, path)
    return replace(matrix, sha256=digest_of(path))


def _load_array(path: Path) -> dict[str, Any]:
    return {"values": read_numpy(path)}


def _load_arrays(path: Path) -> dict[str, Any]:
    with read_numpy(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _load_tensors(path: Path) -> dict[str, Any]:
    content = read_torch(path)
    return content if isinstance(content, dict) else {"values": content}


def _load_frame(path: Path) -> Any:
    """A pandas frame; its ids are texts in a text file, where 0139 and 139 are two names."""
    import pandas as pd

    if path.suffix == ".parquet":
        frame = read_parquet(path)
        return frame.reset_index() if frame.index.name in _ID_COLUMNS else frame
    delimiter = "," if path.suffix == ".csv" else "\t"
    with open(path, encoding="utf-8-sig", newline="") as file:  # pandas would rename the second of two equal words
        header = next(csv.reader(file, delimiter=delimiter), [])
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise ValueError(f"it must name each column once, got {repeated[:3]} more than once")
    texts = {name: str for name in header if name in _ID_COLUMNS}
    frame = pd.read_csv(  # an image may be called NA: only an empty cell is a missing value
        path, sep=delimiter, encoding="utf-8-sig", dtype=texts, keep_default_na=False, na_values=[""], index_col=False
    )
    if len(texts) > 1:  # a word may be called "image": a column of numbers beside one of ids
        for name in texts:
            numbers = pd.to_numeric(frame[name], errors="coerce")
            if not numbers.isna().any():
                frame[name] = numbers
    return frame


def _from_names(content: dict[str, Any], path: Path) -> Matrix:
    found = [name for name in _VALUE_NAMES if name in content]
    if len(found) != 1:
        raise ValueError(
            f"{path.name} must hold one array named {', '.join(_VALUE_NAMES[:-1])} or values, got "
            f"{sorted(map(str, content))}; rename it"
        )
    ids, words = (_names(content.get(key), key, path) for key in ("ids", "words"))
    return Matrix(_numbers(content[found[0]], path), ids, words, path.name)


def _names(names: Any, key: str, path: Path) -> tuple[str, ...] | None:
    """Names as texts: of a list, an array of texts, bytes or numbers, or a tensor."""
    if names is None:
        return None
    listed = names.tolist() if hasattr(names, "tolist") else names
    if not isinstance(listed, (list, tuple)) or not all(isinstance(name, (str, bytes, int)) for name in listed):
        raise ValueError(
            f"{path.name} must hold {key} as a list of texts or whole numbers, one "
            f"{'a row' if key == 'ids' else 'a column'}, got {str(names)[:60]}; write them as such a list"
        )
    try:
        return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in listed)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} must hold {key} as UTF-8 texts, got other bytes: {error}; decode them"
        ) from error


def _from_frame(frame: Any, path: Path) -> Matrix:
    frame.columns = columns = [str(column) for column in frame.columns]
    found = [column for column in columns if column in _ID_COLUMNS]
    texts = [c for c, dtype in zip(columns, frame.dtypes, strict=True) if dtype.kind not in "fiub"]
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
    ids = frame.pop(found[0])
    without = [column for column in frame.columns if not isinstance(frame[column].dtype, np.dtype)]
    empty = [column for column in without if frame[column].isna().any()]  # NaN, which NumPy's have, is told later
    if ids.isna().any() or empty:
        raise ValueError(
            f"{path.name} must have a value in each cell, got empty ones in {(empty or found)[:3]}; fill them in, in "
            f"targets with -1 for unknown"
        )
    kinds = [dtype if isinstance(dtype, np.dtype) else dtype.numpy_dtype for dtype in set(frame.dtypes)]
    values = frame.to_numpy(np.result_type(*kinds)) if kinds else frame.to_numpy(np.float64)
    return Matrix(values, tuple(ids.astype(str)), tuple(frame.columns), path.name)


def _numbers(values: Any, path: Path) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor; numpy has no bfloat16
        if str(values.layout) != "torch.strided" or values.is_quantized:
            raise ValueError(f"{path.name} must hold a dense tensor, got {values.layout}; save tensor.to_dense()")
        values = values.detach()
        values = (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    if not isinstance(values, np.ndarray):
        raise ValueError(f"{path.name} must hold an array or a tensor, got {type(values).__name__}; save a tensor")
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{path.name} must hold numbers, got {values.dtype}; convert it")
    return values


def align(scores: Matrix, targets: Matrix) -> tuple[Matrix, Matrix]:
    """Scores and targets with the same images and words in the same order, that of the targets.

    Names decide where both have them, and both must have the same. Two files without names are taken as they stand.
    Scores are copied at most once, and keep the order they had: half precision becomes fp32, whole numbers fp64, other
    precisions stay.

    Raises:
        ValueError: if only one of both has names, if names are on one side only, if shapes differ, or on whole numbers
            that fp64 cannot tell apart.
    """
    rows = _positions(scores.ids, targets.ids, scores, targets, "image ids")
    columns = _positions(scores.words, targets.words, scores, targets, "words")
    if scores.values.shape != targets.values.shape:
        raise ValueError(
            f"scores and targets must have the same images and words, got {scores.source} {scores.values.shape} and "
            f"{targets.source} {targets.values.shape}; write them for the same images and words"
        )
    given = scores.values.dtype
    kept = np.dtype(np.float32 if given in (np.float16, np.float32) else np.float64)

    def check(part: np.ndarray) -> None:
        if given.kind in "iu" and given.itemsize == 8 and (part.max() > 2**53 or part.min() < -(2**53)):
            raise ValueError(
                f"scores must be at most 2**53 where they are whole numbers, {scores.source} has {part.min()} to "
                f"{part.max()}, which would lose their order; write their ranks or smaller numbers"
            )

    values = _rearranged(scores.values, rows, columns, kept, check)
    return replace(scores, values=values, ids=targets.ids, words=targets.words), targets


def _rearranged(
    values: np.ndarray,
    rows: np.ndarray | None,
    columns: np.ndarray | None,
    dtype: np.dtype[Any],
    check: Callable[[np.ndarray], None],
) -> np.ndarray:
    """Rows and columns (None for all, as they are) in another precision, by row chunks; itself if nothing changes."""
    num_rows, num_columns = values.shape
    rows = None if rows is None or np.array_equal(rows, np.arange(num_rows)) else rows
    columns = None if columns is None or np.array_equal(columns, np.arange(num_columns)) else columns
    result = values
    if rows is not None or columns is not None or values.dtype != dtype:
        result = np.empty(
            (num_rows if rows is None else len(rows), num_columns if columns is None else len(columns)), dtype
        )
    for start, end in row_chunks(len(result), num_columns):
        part = values[start:end] if rows is None else values[rows[start:end]]
        part = part if columns is None else part[:, columns]
        check(part)
        if result is not values:
            result[start:end] = part
    return result


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
