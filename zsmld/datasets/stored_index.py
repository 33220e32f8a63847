"""A stored index read back: its files may be damaged, or be another's, so nothing in them is taken on trust."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_matrix

from zsmld.datasets.rows import VALUES, content_digest, from_label_lists
from zsmld.reading import read_arrow
from zsmld.vocabulary import check_words

_SPLITS = ("train", "val", "test")
_COUNTS = ("policies", "counts", "fingerprints", "missing_by_split")  # what is shown of a manifest, each a mapping


def read_manifest(path: Path, rows_path: Path, format: int) -> dict[str, Any]:
    """The manifest of an index, with each key that an index needs.

    Args:
        path: of the manifest.
        rows_path: of its rows, whose hash it has.
        format: that this version writes.

    Raises:
        ValueError: if it is damaged, of another format, or does not belong to the rows.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the last: lists in lists without end
        raise ValueError(f"{path} must be JSON, it is damaged: {error}; prepare it again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != format:
        raise ValueError(f"{path} must have format {format}; prepare it again with this zsmld")
    needed = ("dataset", "root", "missing", "words", "partitions", "sha256")
    words: Any = manifest.get("words")
    missing: Any = manifest.get("missing")
    whole = all(key in manifest for key in needed) and isinstance(words, list) and type(missing) is int
    # Words and rows are hashed together: labels are positions in the words.
    if not whole or content_digest(rows_path, words, missing) != manifest["sha256"]:
        raise ValueError(
            f"{rows_path} and {path.name} must belong together, they are damaged or of two indices; prepare it again"
        )
    texts = {key: manifest[key] for key in ("dataset", "root")}
    wrong = [f"{key} is {_shortened(value)}" for key, value in texts.items() if not isinstance(value, str)]
    wrong += [] if missing in (0, -1) else [f"missing is {missing}"]
    wrong += [f"{key} is no mapping" for key in _COUNTS if not isinstance(manifest.get(key, {}), dict)]
    missing_by_split = manifest.get("missing_by_split", {})
    if isinstance(missing_by_split, dict) and not all(type(number) is int for number in missing_by_split.values()):
        wrong.append("missing_by_split has no numbers")
    try:
        words = list(check_words(words))
    except (TypeError, ValueError) as error:
        wrong.append(str(error))
    wrong += [] if wrong else _wrong_partitions(manifest["partitions"], set(words))
    if wrong:
        raise ValueError(f"{path} must describe an index, it is damaged: {'; '.join(wrong)}; prepare it again")
    return manifest


def _wrong_partitions(partitions: Any, words: set[str]) -> list[str]:
    if not isinstance(partitions, dict) or not partitions:
        return [f"partitions is {_shortened(partitions)}"]
    wrong = []
    for name, sides in partitions.items():
        lists = [sides.get(side) for side in ("seen", "unseen")] if isinstance(sides, dict) else [None]
        named = [word for side in lists for word in (side if isinstance(side, list) else [None])]
        if not all(isinstance(word, str) and word in words for word in named):
            wrong.append(f"partition {_shortened(name)} has no seen and unseen words of the index")
    return wrong


def read_rows(path: Path, num_words: int) -> tuple[pa.StringArray, pa.StringArray, np.ndarray, csr_matrix]:
    """Ids, paths, splits and targets (M,N).

    Raises:
        ValueError: if the file is damaged, or its columns are others.
    """
    try:
        table = read_arrow(path)
        names = ("id", "path", "split", *(name for name in VALUES if name in table.column_names))
        columns = {name: table.column(name).combine_chunks() for name in names}
        ids, paths, splits = (columns.pop(name).cast(pa.string()) for name in ("id", "path", "split"))
        lists = {name: column.cast(pa.list_(pa.int32())) for name, column in columns.items()}
        if any(column.null_count for column in (ids, paths, splits, *lists.values())):
            raise ValueError("it has empty fields")
        for name, column in lists.items():
            labels = column.values.to_numpy()  # NaN and no integers where one is empty
            if not ((labels >= 0) & (labels < num_words)).all():
                raise ValueError(f"{name} has labels beyond the {num_words} words")
        divided = splits.to_numpy(zero_copy_only=False).astype("<U5")
        if not np.isin(divided, _SPLITS).all():
            raise ValueError(f"split must be one of {_SPLITS}")
        targets = from_label_lists(lists, (len(table), num_words))
    except Exception as error:  # Arrow has many kinds
        raise ValueError(f"{path} must be the rows of an index, it is damaged: {error}; prepare it again") from error
    return ids, paths, divided, targets


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
