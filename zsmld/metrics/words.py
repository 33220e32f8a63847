"""Average precision of each word, in four methods, and its mean."""

import math
from typing import Literal, NamedTuple, get_args

import numpy as np

from zsmld.metrics.arrays import as_float, check_arrays, in_threads, row_chunks

AveragePrecision = Literal["exact", "legacy", "integral", "11point"]
EmptyWords = Literal["zero", "skip"]

_BLOCK = 2**23  # entries of a block of columns, 32 MB of fp32 a thread


class WordFigures(NamedTuple):
    """What the columns of N words hold.

    Attributes:
        average_precision: (N,) fp64, NaN for a word without a known positive.
        num_positives: (N,) int64.
        num_known: (N,) int64, positives and negatives.
    """

    average_precision: np.ndarray
    num_positives: np.ndarray
    num_known: np.ndarray


def average_precision(
    scores: np.ndarray, targets: np.ndarray, method: AveragePrecision = "exact", num_threads: int | None = None
) -> np.ndarray:
    """Average precision of each word.

    "exact" gives tied scores one shared threshold, as scikit-learn's `average_precision_score` does: the sum over
    distinct scores of the precision there times the recall gained there. The order of images is nothing to it, to the
    last bit. The other three rank images by a stable ascending sort, reversed: of tied images the later comes first.

    Args:
        scores: (M,N) real, infinite allowed.
        targets: (M,N) in {1, 0, −1}.
        method: "exact"; "legacy": the mean over positives of the precision at their ranks, with 1e-8 in the
            denominator; "integral": the sum over ranks of precision times the recall gained, gains of at most 1e-6 put
            together with the next (nothing else than the mean below a million positives); "11point": the mean over the
            recalls 0, 0.1, …, 1 of the best precision at that recall or a higher one.
        num_threads: None for all cores; the result is the same.

    Returns:
        (N,) fp64; NaN for a word without a known positive.

    Raises:
        TypeError: on scores that are no real numbers.
        ValueError: on NaN scores, different shapes, other target values, or an unknown method.

    Source: "legacy" is the function of the official ML-Decoder code; "integral" and "11point" are PaddleClas's
    MultiLabelMAP, whose own sort leaves the order of ties open and whose mean skips empty
    words; "11point" is also that of Pascal VOC 2007.

    Example:
        >>> scores, targets = np.array([[0.9], [0.8], [0.1]]), np.array([[1], [0], [1]])
        >>> average_precision(scores, targets).round(4).tolist()
        [0.8333]
        >>> average_precision(scores, targets, "11point").round(4).tolist()
        [0.8485]
    """
    scores, targets = check_arrays(scores, targets)
    if method not in get_args(AveragePrecision):
        raise ValueError(
            f"method must be 'exact', 'legacy', 'integral' or '11point', got {method!r}; published numbers mostly used "
            f"'legacy'"
        )
    return measure_words(scores, targets, np.arange(scores.shape[1]), None, method, num_threads).average_precision


def measure_words(
    scores: np.ndarray,
    targets: np.ndarray,
    labels: np.ndarray,
    kept: np.ndarray | None,
    method: AveragePrecision,
    num_threads: int | None = None,
) -> WordFigures:
    """Average precision and counts of some of the columns over some of the rows, of arrays that are checked already.

    Args:
        scores: (M,N).
        targets: (M,N).
        labels: columns to measure, ascending.
        kept: (M,) bool, rows to measure; None for all.
        method: as `average_precision`.
        num_threads: None for all cores.

    Example:
        >>> scores, targets = np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([[1, 0], [-1, 1]])
        >>> measure_words(scores, targets, np.array([1]), None, "exact").num_known.tolist()
        [2]
    """

    def measure(block: np.ndarray) -> WordFigures:
        # A transposed copy: each word's scores in one piece of memory, and free to be overwritten.
        columns = slice(block[0], block[-1] + 1) if block[-1] - block[0] == len(block) - 1 else block
        part, truth = scores[:, columns], targets[:, columns]
        if kept is not None:
            part, truth = part[kept], truth[kept]
        by_word, truth = np.array(as_float(part).T, order="C"), np.array(truth.T, order="C")  # (B,M)
        unknown = truth < 0
        if unknown.any():
            by_word[unknown] = np.nan  # sorts behind every number
        num_known = by_word.shape[1] - unknown.sum(1)
        figures = [_one_word(s, t, int(n), method) for s, t, n in zip(by_word, truth, num_known, strict=True)]
        aps, positives = zip(*figures, strict=True)
        return WordFigures(np.array(aps), np.array(positives, np.int64), num_known.astype(np.int64))

    # Blocks of at least 8 columns read whole cache lines of the rows.
    size = max(8, min(64, _BLOCK // len(scores)))
    blocks = in_threads(measure, [labels[i : i + size] for i in range(0, len(labels), size)], num_threads)
    return WordFigures(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def _one_word(scores: np.ndarray, targets: np.ndarray, num_known: int, method: AveragePrecision) -> tuple[float, int]:
    """Average precision and number of positives; unknown scores are NaN."""
    positives = np.flatnonzero(targets == 1)
    if not len(positives):
        return math.nan, 0
    if method == "exact":
        found = np.sort(scores[positives])
        known = np.sort(scores)[:num_known]
        retrieved = num_known - np.searchsorted(known, found)  # at the threshold of each positive, ties included
        correct = len(found) - np.searchsorted(found, found)
        return float((correct / retrieved).sum() / len(found)), len(found)
    ranks = np.sort(_ranks(scores, positives, num_known))
    count = len(ranks)
    precision = np.arange(1, count + 1) / ranks
    if method == "legacy":
        return float(precision.sum() / (count + 1e-8)), count
    if method == "11point":
        best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
        # Recall j/10 is reached by ceil(j·count/10) positives; whole numbers, so that no rounding shifts a point.
        return sum(float(best[max(1, -(-j * count // 10)) - 1]) for j in range(11)) / 11, count
    recall = np.arange(1, count + 1) / count
    if count >= 10**6:  # a single positive may gain no more than 1e-6: put together what does not
        steps, before = [], 0.0
        for i, value in enumerate(recall.tolist()):
            if value - before > 1e-6:
                steps.append(i)
                before = value
        precision, recall = precision[steps], recall[steps]
    return float((precision * np.diff(recall, prepend=0.0)).sum()), count


def _ranks(scores: np.ndarray, positives: np.ndarray, num_known: int) -> np.ndarray:
    """Ranks, from 1, of the positives in a stable ascending sort, reversed. Only what is tied is put in order."""
    values = scores[positives]
    known = np.sort(scores)[:num_known]
    above = num_known - np.searchsorted(known, values, "right")
    tied = np.flatnonzero(num_known - np.searchsorted(known, values) - above > 1)
    ranks = above + 1
    if len(tied):
        shared = np.unique(values[tied])
        nearest = shared[np.minimum(np.searchsorted(shared, scores), len(shared) - 1)]
        members = np.flatnonzero(nearest == scores)  # all images at one of the shared scores
        order = np.argsort(scores[members], kind="stable")
        ordered = scores[members][order]
        later = np.empty(len(members), np.int64)  # tied images that come later, and so rank before
        later[order] = np.searchsorted(ordered, ordered, "right") - 1 - np.arange(len(members))
        ranks[tied] += later[np.searchsorted(members, positives[tied])]
    return ranks


def mean_average_precision(average_precisions: np.ndarray, empty_words: EmptyWords = "zero") -> float:
    """Mean over words of `average_precision`'s result; a word without positives counts as zero, or is skipped.

    The sum is exact before it is rounded once, so the order of words is nothing to it.

    Raises:
        ValueError: for an unknown policy.

    Example:
        >>> aps = np.array([0.5, np.nan])
        >>> mean_average_precision(aps, "zero"), mean_average_precision(aps, "skip")
        (0.25, 0.5)
    """
    check_empty_words(empty_words)
    average_precisions = np.asarray(average_precisions, np.float64)
    known = average_precisions[~np.isnan(average_precisions)]
    count = len(known) if empty_words == "skip" else len(average_precisions)
    return math.fsum(known) / count if count else 0.0


def check_empty_words(empty_words: str) -> None:
    """Refuse a policy that does not exist.

    Raises:
        ValueError: unless it is "zero" or "skip".

    Example:
        >>> check_empty_words("zero")
    """
    if empty_words not in get_args(EmptyWords):
        raise ValueError(f"empty_words must be 'zero' or 'skip', got {empty_words!r}; most papers use 'zero'")


def chance_average_precision(targets: np.ndarray) -> np.ndarray:
    """Average precision that random scores tend to: the share of known images that have the word, (N,) fp64.

    Example:
        >>> chance_average_precision(np.array([[1, 0], [0, -1]])).tolist()
        [0.5, 0.0]
    """
    targets = np.asarray(targets)
    positives, known = np.zeros((2, targets.shape[1]), np.int64)
    for start, end in row_chunks(*targets.shape):
        positives += (targets[start:end] == 1).sum(0)
        # Not != -1: numpy 2.0 to 2.2.5 may crash on unsigned integers, which have none.
        known += (targets[start:end] >= 0).sum(0)
    return positives / np.maximum(known, 1)
