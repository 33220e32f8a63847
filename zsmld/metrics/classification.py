"""Precision, recall and F1 of the words given to images, overall and per class; accuracy; means of two figures."""

import numpy as np

from zsmld.metrics.arrays import check_arrays, check_k
from zsmld.metrics.images import Given, count_images
from zsmld.metrics.words import EmptyWords, check_empty_words, mean_average_precision


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
        TypeError: on scores that are no real numbers.
        ValueError: on K out of range or bad arrays.

    Source: the "overall" measures of Fast0Tag and LESA, arXiv 1605.09759.

    Example:
        >>> precision_recall_f1_at_k(np.array([[0.9, 0.8, 0.1]]), np.array([[1, 0, 1]]), k=2)
        (0.5, 0.5, 0.5)
    """
    scores, targets = check_arrays(scores, targets)
    check_k(k, scores.shape[1])
    counts = count_images(scores, targets, top_k=(k,))
    return overall_figures(counts.at_k[k], counts.num_positives, len(scores) * k)


def per_class_precision_recall_f1_at_k(
    scores: np.ndarray, targets: np.ndarray, k: int, empty_words: EmptyWords = "zero"
) -> tuple[float, float, float]:
    """Per-class (macro) precision, recall and F1 when each image is given its K best-scored words.

    A word's precision is its hits over the images it was given to, zero if to none; its recall the hits over its
    positives. Ties are broken by label order; unknown entries are never among the K.

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}.
        k: words given to each image, 1 ≤ K ≤ N.
        empty_words: a word without positives counts as "zero", or is left out of both means ("skip").

    Returns:
        Mean precision over words, mean recall over words, and the harmonic mean of these two, as the field has it
        (not the mean of the words' F1, which is scikit-learn's macro F1).

    Raises:
        TypeError: on scores that are no real numbers.
        ValueError: on K out of range, an unknown policy or bad arrays.

    Source: the per-class measures of Gong et al. 2014, arXiv 1312.4894.

    Example:
        >>> per_class_precision_recall_f1_at_k(np.array([[0.9, 0.8, 0.1]]), np.array([[1, 0, 0]]), k=2)
        (0.3333333333333333, 0.3333333333333333, 0.3333333333333333)
    """
    scores, targets = check_arrays(scores, targets)
    check_k(k, scores.shape[1])
    check_empty_words(empty_words)
    counts = count_images(scores, targets, top_k=(k,))
    return per_class_figures(counts.at_k[k], counts.num_positives, empty_words)


def precision_recall_f1(scores: np.ndarray, targets: np.ndarray, threshold: float) -> tuple[float, float, float]:
    """OP, OR and OF1: overall (micro) precision, recall and F1 when words are given from a threshold on.

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}; unknown entries are given nothing.
        threshold: a word is given if its score is at least this; in the units of the scores (0 for the logits of a
            probability of one half), rounded to their precision.

    Returns:
        Precision (hits over all words given, zero if none), recall (hits over positives), F1.

    Raises:
        TypeError: on scores that are no real numbers.
        ValueError: on a NaN threshold or bad arrays.

    Example:
        >>> precision_recall_f1(np.array([[0.9, 0.8, 0.1]]), np.array([[1, 0, 1]]), threshold=0.5)
        (0.5, 0.5, 0.5)
    """
    scores, targets = check_arrays(scores, targets)
    _check_threshold(threshold)
    counts = count_images(scores, targets, threshold=threshold)
    assert counts.at_threshold is not None  # asked for
    return overall_figures(counts.at_threshold, counts.num_positives, int(counts.at_threshold.given.sum()))


def per_class_precision_recall_f1(
    scores: np.ndarray, targets: np.ndarray, threshold: float, empty_words: EmptyWords = "zero"
) -> tuple[float, float, float]:
    """CP, CR and CF1: per-class (macro) precision, recall and F1 when words are given from a threshold on.

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}; unknown entries are given nothing.
        threshold: as `precision_recall_f1`.
        empty_words: a word without positives counts as "zero", or is left out of both means ("skip").

    Returns:
        Mean precision over words (zero for a word that is never given), mean recall over words, and the harmonic mean
        of these two, as the field has it (not the mean of the words' F1, which is scikit-learn's macro F1).

    Raises:
        TypeError: on scores that are no real numbers.
        ValueError: on a NaN threshold, an unknown policy or bad arrays.

    Source: the measures of CNN-RNN, arXiv 1604.04573, and of most multi-label papers since.

    Example:
        >>> per_class_precision_recall_f1(np.array([[0.9, 0.8], [0.1, 0.2]]), np.array([[1, 1], [1, 0]]), threshold=0.5)
        (1.0, 0.75, 0.8571428571428571)
    """
    scores, targets = check_arrays(scores, targets)
    _check_threshold(threshold)
    check_empty_words(empty_words)
    counts = count_images(scores, targets, threshold=threshold)
    assert counts.at_threshold is not None  # asked for
    return per_class_figures(counts.at_threshold, counts.num_positives, empty_words)


def top_k_accuracy(scores: np.ndarray, targets: np.ndarray, k: int) -> float:
    """Share of images whose one present word is among their K best-scored words.

    Ties are broken by label order; unknown entries are never among the K.

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}, one 1 in each row.
        k: 1 ≤ K ≤ N.

    Raises:
        TypeError: on scores that are no real numbers.
        ValueError: on K out of range, bad arrays, or an image with none or several present words.

    Example:
        >>> top_k_accuracy(np.array([[0.9, 0.8], [0.1, 0.2]]), np.array([[0, 1], [0, 1]]), k=1)
        0.5
    """
    scores, targets = check_arrays(scores, targets)
    check_k(k, scores.shape[1])
    counts = count_images(scores, targets, top_k=(k,))
    check_single_label(counts.positives_per_image)
    return int(counts.at_k[k].hits.sum()) / counts.num_images


def overall_figures(given: Given, num_positives: np.ndarray, num_given: int) -> tuple[float, float, float]:
    """Precision, recall and F1 of all words together.

    Example:
        >>> overall_figures(Given(np.array([2, 1]), np.array([1, 1])), np.array([4, 1]), num_given=4)
        (0.5, 0.4, 0.4444444444444445)
    """
    hits, positives = int(given.hits.sum()), int(num_positives.sum())
    precision, recall = hits / num_given if num_given else 0.0, hits / positives if positives else 0.0
    return precision, recall, harmonic_mean(precision, recall)


def per_class_figures(given: Given, num_positives: np.ndarray, empty_words: EmptyWords) -> tuple[float, float, float]:
    """Mean precision, mean recall and their harmonic mean over words.

    Example:
        >>> per_class_figures(Given(np.array([2, 0]), np.array([1, 0])), np.array([1, 0]), "skip")
        (0.5, 1.0, 0.6666666666666666)
    """
    empty = num_positives == 0
    precisions = np.where(empty, np.nan, given.hits / np.maximum(given.given, 1))
    recalls = np.where(empty, np.nan, given.hits / np.maximum(num_positives, 1))
    precision, recall = (mean_average_precision(values, empty_words) for values in (precisions, recalls))
    return precision, recall, harmonic_mean(precision, recall)


def check_single_label(positives_per_image: tuple[int, int]) -> None:
    """Refuse images with none or several present words.

    Raises:
        ValueError: unless the fewest and the most are one.

    Example:
        >>> check_single_label((1, 1))
    """
    if positives_per_image != (1, 1):
        fewest, most = positives_per_image
        raise ValueError(
            f"targets must have exactly one present word an image for top-K accuracy, got {fewest} to {most}; leave "
            f"out images without one, and use precision_recall_f1_at_k where there are several"
        )


def harmonic_mean(a: float, b: float) -> float:
    """Harmonic mean of two fractions; zero if either is.

    Example:
        >>> harmonic_mean(0.5, 1.0).__round__(4)
        0.6667
    """
    return 2 * a * b / (a + b) if a > 0 and b > 0 else 0.0


def _check_threshold(threshold: float) -> None:
    if np.isnan(threshold):
        raise ValueError("threshold must be a number, got NaN; use 0.5 for scores, 0 for logits")
