"""Prediction records as tables, and their files: JSONL, CSV, Parquet, and the matrix of all scores."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zsmld.predictor.prediction import Prediction

# The design's prediction record; scores are fp32 as they were computed.
RECORD = pa.schema(
    [
        ("path", pa.string()),
        ("words", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("labels", pa.list_(pa.int32())),
        ("error", pa.string()),
    ]
)
RECORD_SUFFIXES = (".jsonl", ".csv", ".parquet")
SCORES_SUFFIXES = (".npy", ".parquet")
_ID_COLUMNS = ("path", "image_id", "id", "file_name", "filename", "image")  # what `zsmld evaluate` takes for ids
_CHUNK_BYTES = 2**26


def table_of(predictions: Sequence[Prediction], num_words: int | None = None) -> pa.Table:
    """Predictions as rows of `RECORD`.

    Args:
        predictions: each with a path.
        num_words: N, for a column `full_scores` of N fp32 as well; NaN for images that could not be read.

    Raises:
        ValueError: if the full scores are wanted and a prediction has none.

    Example:
        >>> table = table_of([Prediction("a.png", ("dog",), (0.5,), (3,)), Prediction("b.png", error="broken")])
        >>> [p.to_dict()["labels"] for p in predictions_from(table)]
        [[3], []]
    """
    columns = {name: [getattr(p, name) for p in predictions] for name in RECORD.names}
    table = pa.Table.from_pydict(columns, RECORD)
    if num_words is None:
        return table
    full = np.full((len(predictions), num_words), np.nan, np.float32)
    for row, prediction in enumerate(predictions):
        if prediction.error is None:
            if prediction.full_scores is None:
                raise ValueError(f"full_scores must be there for {prediction.path}, got none; predict with them")
            full[row] = prediction.full_scores
    return table.append_column("full_scores", pa.FixedSizeListArray.from_arrays(pa.array(full.ravel()), num_words))


def predictions_from(table: pa.Table) -> Iterator[Prediction]:
    """The inverse of `table_of`, without the full scores."""
    for row in table.select(RECORD.names).to_pylist():
        words, scores, labels = (tuple(row[name]) for name in ("words", "scores", "labels"))
        yield Prediction(row["path"], words, scores, labels, row["error"])


def rows_a_chunk(num_words: int | None) -> int:
    """How many rows are written at a time, so that memory stays flat; the groups of rows in Parquet files.

    Example:
        >>> rows_a_chunk(None), rows_a_chunk(1006)
        (4096, 4096)
    """
    return max(1, min(4096, _CHUNK_BYTES // (4 * (num_words or 1))))


def check_record_words(suffix: str, words: Iterable[str]) -> None:
    """Whether the words can be written to such a file.

    Raises:
        ValueError: if they cannot: CSV joins an image's words by `|`.
    """
    wrong = [word for word in words if "|" in word] if suffix == ".csv" else []
    if wrong:
        raise ValueError(f"words must not hold '|' in .csv, which joins them by it, got {wrong[:3]}; write .jsonl")


def write_records(path: Path, suffix: str, chunks: Iterable[pa.Table]) -> None:
    """Write records; equal chunks make equal files.

    Args:
        path: of the file.
        suffix: one of `RECORD_SUFFIXES`. `.csv` joins words, scores and labels by `|`, and its scores are the shortest
            decimals that stand for their fp32. Words and paths stand there as they are, also one that begins with =:
            import the columns as text into a spreadsheet, which would take it for a formula.
        chunks: rows of `RECORD`, further columns are left out.

    Example:
        >>> import tempfile
        >>> table = table_of([Prediction("a,b.png", ("dog", "cat"), (0.75, 0.5), (3, 1))])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_records(Path(folder, "tags.csv"), ".csv", [table])
        ...     print(Path(folder, "tags.csv").read_text().splitlines()[1])
        "a,b.png",dog|cat,0.75|0.5,3|1,
    """
    _WRITERS[suffix](path, chunks)


def _write_jsonl(path: Path, chunks: Iterable[pa.Table]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for chunk in chunks:
            for prediction in predictions_from(chunk):
                file.write(json.dumps(prediction.to_dict(), ensure_ascii=False) + "\n")


def _write_csv(path: Path, chunks: Iterable[pa.Table]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(RECORD.names)
        for chunk in chunks:
            for p in predictions_from(chunk):
                scores = "|".join(str(np.float32(score)) for score in p.scores)
                writer.writerow([p.path, "|".join(p.words), scores, "|".join(map(str, p.labels)), p.error or ""])


def _write_parquet(path: Path, chunks: Iterable[pa.Table]) -> None:
    with pq.ParquetWriter(path, RECORD) as writer:
        for chunk in chunks:
            writer.write_table(chunk.select(RECORD.names).combine_chunks())


_WRITERS: dict[str, Callable[[Path, Iterable[pa.Table]], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}


def write_scores(path: Path, suffix: str, chunks: Iterable[pa.Table], num_images: int, words: Sequence[str]) -> None:
    """Write the matrix of all scores, (M,N) fp32: row i is record i, NaN where the image could not be read.

    Args:
        path: of the file.
        suffix: `.npy`, the matrix alone; or `.parquet`, a column of paths and one a word, as `zsmld evaluate --scores`
            aligns them by name.
        chunks: with `full_scores`.
        num_images: M.
        words: N words.
    """
    if suffix == ".npy":
        # Written in order, not through memory that is mapped: on a full disk that is a signal and not an error.
        header = {"descr": "<f4", "fortran_order": False, "shape": (num_images, len(words))}
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for chunk in chunks:
                file.write(np.ascontiguousarray(full_scores_of(chunk), "<f4").data)
        return
    column = next((name for name in _ID_COLUMNS if name not in words), "")
    if not column:
        raise ValueError(f"words must leave one of {_ID_COLUMNS} for the column of paths, got all; write .npy")
    schema = pa.schema([(column, pa.string()), *((word, pa.float32()) for word in words)])
    with pq.ParquetWriter(path, schema) as writer:
        for chunk in chunks:
            by_word = np.ascontiguousarray(full_scores_of(chunk).T)
            columns = [chunk["path"].combine_chunks(), *map(pa.array, by_word)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def full_scores_of(table: pa.Table) -> np.ndarray:
    """(M,N) fp32 of a table that `table_of` made with them."""
    column = table["full_scores"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), column.type.list_size)
