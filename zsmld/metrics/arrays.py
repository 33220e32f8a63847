"""What every metric asks of its arrays, and how large ones are walked: in pieces of a fixed size, by several threads.

The pieces depend on the shape alone and their results are combined in order, so a figure has the same bits with any
number of threads. No piece is larger than a few megabytes: a metric needs little memory beside its two arrays.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 2**18  # entries: 1 MB of fp32 and its sorted copy stay in a core's cache


def check_arrays(scores: np.ndarray, targets: np.ndarray, probabilities: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets as arrays, refused where they are not what a metric needs. Infinite scores are allowed.

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}.
        probabilities: scores must also lie in [0,1].

    Raises:
        TypeError: on scores that are no real numbers.
        ValueError: on NaN scores, scores outside [0,1] where they must lie in it, different shapes, or other targets.

    Example:
        >>> check_arrays([[0.5]], [[2]])
        Traceback (most recent call last):
        ValueError: targets must be 1, 0 or -1, got [2]; convert them
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.ndim != 2 or scores.shape != targets.shape or not scores.size:
        raise ValueError(
            f"scores and targets must both be (M, N) and not empty, got {scores.shape} and {targets.shape}; "
            f"give one row an image and one column a word"
        )
    if scores.dtype.kind not in "fiub":
        raise TypeError(f"scores must be real numbers, got dtype {scores.dtype}; convert them to float32")
    for start, end in row_chunks(*scores.shape):
        chunk = scores[start:end]
        if chunk.dtype.kind == "f" and np.isnan(chunk).any():
            row, column = np.argwhere(np.isnan(chunk))[0]
            raise ValueError(
                f"scores must be numbers, got NaN first at image {start + row}, word {column}; check the model"
            )
        if probabilities and (chunk.min() < 0 or chunk.max() > 1):
            row, column = np.argwhere((chunk < 0) | (chunk > 1))[0]
            raise ValueError(
                f"scores must lie in [0, 1] when kind='scores', got {chunk[row, column]} first at image {start + row}, "
                f"word {column}; pass kind='logits', or take their sigmoid"
            )
    for start, end in row_chunks(*targets.shape):
        part = targets[start:end]
        fits = part.min() >= -1 and part.max() <= 1 if part.dtype.kind in "iub" else np.isin(part, (-1, 0, 1)).all()
        if not fits:
            raise ValueError(f"targets must be 1, 0 or -1, got {np.unique(part)[:5].tolist()}; convert them")
    return scores, targets


def check_k(k: int, num_words: int) -> None:
    """Refuse a K that is no number of words.

    Raises:
        ValueError: unless 1 ≤ K ≤ N.

    Example:
        >>> check_k(3, 10)
    """
    if not 1 <= k <= num_words:
        raise ValueError(f"k must be between 1 and the {num_words} words, got {k}; choose a smaller k")


def row_chunks(num_rows: int, num_columns: int) -> list[tuple[int, int]]:
    """Starts and ends of row blocks that together are all rows.

    Example:
        >>> row_chunks(5, 2**17)
        [(0, 2), (2, 4), (4, 5)]
    """
    size = max(1, _CHUNK // num_columns)
    return [(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def as_float(values: np.ndarray) -> np.ndarray:
    """Values in a dtype that sorts fast and can hold NaN: half precision as fp32, integers as fp64, others as they are.

    Example:
        >>> as_float(np.zeros(1, np.float16)).dtype, as_float(np.zeros(1, np.uint8)).dtype
        (dtype('float32'), dtype('float64'))
    """
    if values.dtype == np.float16:
        return values.astype(np.float32)
    return values if values.dtype.kind == "f" else values.astype(np.float64)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int | None) -> list[Result]:
    """Results of a function in the order of the items; NumPy's sorts and searches run beside each other in threads.

    Args:
        function: called once for each item.
        items: any number.
        num_threads: None for the number of cores this process may use.

    Raises:
        ValueError: on a number of threads below 1.

    Example:
        >>> in_threads(abs, [-2, 1], num_threads=2)
        [2, 1]
    """
    if num_threads is None:
        num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_threads < 1:
        raise ValueError(f"num_threads must be ≥ 1, or None for every core, got {num_threads}; correct it")
    items = list(items)
    if min(num_threads, len(items)) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(num_threads, len(items))) as pool:
        return list(pool.map(function, items))
