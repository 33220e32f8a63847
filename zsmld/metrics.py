"""Multi-label metrics: pure functions on numpy arrays.

Everywhere: `scores` (M,N) real, only their order matters; `targets` (M,N) int with 1 present, 0 absent, −1 unknown,
where unknown entries take no part; M images, N words. Results are fractions in [0,1].
"""

from typing import Literal

import numpy as np

AveragePrecision = Literal["exact", "legacy"]
EmptyWords = Literal["zero", "skip"]


def average_precision(scores: np.ndarray, targets: np.ndarray, method: AveragePrecision = "exact") -> np.ndarray:
    """Average precision of each word.

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}.
        method: "exact" gives tied scores one shared threshold, as scikit-learn's `average_precision_score`; "legacy" is
            the official ML-Decoder function: positives in the order of a stable ascending sort, reversed, and 1e-8 in
            the denominator.

    Returns:
        (N,) fp64; NaN for a word without a known positive.

    Raises:
        ValueError: on NaN scores, different shapes, or other target values.

    Example:
        >>> average_precision(np.array([[0.9], [0.8], [0.1]]), np.array([[1], [0], [1]])).round(4).tolist()
        [0.8333]
    """
    scores, targets = _check(scores, targets)
    if method not in ("exact", "legacy"):
        raise ValueError(f"method must be 'exact' or 'legacy', got {method!r}; published numbers mostly used 'legacy'")
    one_word = _exact_average_precision if method == "exact" else _legacy_average_precision
    result = np.full(scores.shape[1], np.nan)
    for label in range(scores.shape[1]):
        known = targets[:, label] != -1
        present = targets[known, label] == 1
        if present.any():
            result[label] = one_word(scores[known, label], present)
    return result


def _exact_average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_tie = np.append(
        np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1
    )  # thresholds: one for each distinct score
    true_positives = np.cumsum(present[order])[last_of_tie]
    precision = true_positives / (last_of_tie + 1)
    return float(np.sum(np.diff(true_positives, prepend=0) * precision) / true_positives[-1])


def _legacy_average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    ranked = present[np.argsort(scores, kind="stable")[::-1]]
    ranks_of_positives = np.flatnonzero(ranked) + 1
    precision = np.arange(1, len(ranks_of_positives) + 1) / ranks_of_positives
    return float(precision.sum() / (len(ranks_of_positives) + 1e-8))


def mean_average_precision(average_precisions: np.ndarray, empty_words: EmptyWords = "zero") -> float:
    """Mean over words of `average_precision`'s result; a word without positives counts as zero, or is skipped.

    Raises:
        ValueError: for an unknown policy.

    Example:
        >>> aps = np.array([0.5, np.nan])
        >>> mean_average_precision(aps, "zero"), mean_average_precision(aps, "skip")
        (0.25, 0.5)
    """
    if empty_words not in ("zero", "skip"):
        raise ValueError(f"empty_words must be 'zero' or 'skip', got {empty_words!r}; most papers use 'zero'")
    empty = np.isnan(average_precisions)
    if empty_words == "skip":
        return float(average_precisions[~empty].mean()) if not empty.all() else 0.0
    return float(np.where(empty, 0.0, average_precisions).mean())


def precision_recall_f1_at_k(scores: np.ndarray, targets: np.ndarray, k: int) -> tuple[float, float, float]:
    """Overall (micro) precision, recall and F1 when each image is given its K best-scored words.

    Ties are broken by label order; unknown entries are never among the K.

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}.
        k: words given to each image, 1 ≤ K ≤ N.

    Returns:
        Precision (hits over M·K), recall (hits over positives), F1.

    Raises:
        ValueError: on K out of range or bad arrays.

    Source: the "overall" measures of Fast0Tag and LESA, arXiv 1605.09759.

    Example:
        >>> precision_recall_f1_at_k(np.array([[0.9, 0.8, 0.1]]), np.array([[1, 0, 1]]), k=2)
        (0.5, 0.5, 0.5)
    """
    scores, targets = _check(scores, targets)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k must be between 1 and the {scores.shape[1]} words, got {k}; choose a smaller k")
    ranked = np.argsort(np.where(targets == -1, np.inf, -scores), axis=1, kind="stable")[:, :k]  # (M,K)
    hits = int((np.take_along_axis(targets, ranked, axis=1) == 1).sum())
    positives = int((targets == 1).sum())
    precision, recall = hits / (len(scores) * k), hits / positives if positives else 0.0
    return precision, recall, harmonic_mean(precision, recall)


def harmonic_mean(a: float, b: float) -> float:
    """Harmonic mean of two fractions; zero if either is.

    Example:
        >>> harmonic_mean(0.5, 1.0).__round__(4)
        0.6667
    """
    return 2 * a * b / (a + b) if a > 0 and b > 0 else 0.0


def chance_average_precision(targets: np.ndarray) -> np.ndarray:
    """Average precision that random scores tend to: the share of known images that have the word, (N,) fp64.

    Example:
        >>> chance_average_precision(np.array([[1, 0], [0, -1]])).tolist()
        [0.5, 0.0]
    """
    targets = np.asarray(targets)
    known = (targets != -1).sum(0)
    return (targets == 1).sum(0) / np.maximum(known, 1)


def _check(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, targets = np.asarray(scores), np.asarray(targets)
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)  # integers would wrap around when negated
    if scores.ndim != 2 or scores.shape != targets.shape or not scores.size:
        raise ValueError(
            f"scores and targets must both be (M, N) and not empty, got {scores.shape} and {targets.shape}; "
            f"give one row an image and one column a word"
        )
    if np.isnan(scores).any():
        row, column = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"scores must be numbers, got NaN first at image {row}, word {column}; check the model")
    if not np.isin(targets, (-1, 0, 1)).all():
        raise ValueError(f"targets must be 1, 0 or -1, got {np.unique(targets)[:5].tolist()}; convert them")
    return scores, targets
