"""How an image's present words rank among its words: ranking loss, coverage, one-error, LRAP.

Each equals scikit-learn's function where there is one, unknown entries left out of their image; `one_error` has none
there. To compute several at once, `zsmld.evaluator.evaluate_scores` walks over the images once.
"""

import numpy as np

from zsmld.metrics.arrays import check_arrays
from zsmld.metrics.images import Ranking, count_images


def ranking_loss(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean over images of the share of (present, absent) pairs of words that are in the wrong order or tied.

    An image without present words, or without absent ones, counts as zero, as scikit-learn's `label_ranking_loss` has
    it.

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}; unknown entries take no part.

    Returns:
        A fraction; 0 is best.

    Raises:
        TypeError: on scores that are no real numbers.
        ValueError: on bad arrays.

    Example:
        >>> ranking_loss(np.array([[0.9, 0.8, 0.1]]), np.array([[1, 0, 1]]))
        0.5
    """
    return _measure(scores, targets).ranking_loss


def coverage_error(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean over images of the number of best-scored words it takes to hold every present one, ties all taken.

    An image without present words counts as zero, as scikit-learn's `coverage_error` has it. (The definition of
    Tsoumakas et al. is one less.)

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}; unknown entries take no part.

    Returns:
        A number of words; the labels per image is best.

    Raises:
        TypeError: on scores that are no real numbers.
        ValueError: on bad arrays.

    Example:
        >>> coverage_error(np.array([[0.9, 0.8, 0.1]]), np.array([[0, 1, 0]]))
        2.0
    """
    return _measure(scores, targets).coverage_error


def one_error(scores: np.ndarray, targets: np.ndarray) -> float:
    """Share of images whose best-scored word is not present: one minus precision@1.

    Ties are broken by label order. An image without present words is always an error.

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}; unknown entries are never the best.

    Returns:
        A fraction; 0 is best.

    Raises:
        TypeError: on scores that are no real numbers.
        ValueError: on bad arrays.

    Source: Schapire and Singer, BoosTexter, 2000.

    Example:
        >>> one_error(np.array([[0.9, 0.8], [0.1, 0.2]]), np.array([[1, 0], [1, 0]]))
        0.5
    """
    return _measure(scores, targets).one_error


def label_ranking_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean over images of the mean over present words of the precision at their rank (LRAP).

    Tied words share the worst of their ranks. An image without present words, or without absent ones, counts as one, as
    scikit-learn's `label_ranking_average_precision_score` has it.

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}; unknown entries take no part.

    Returns:
        A fraction; 1 is best.

    Raises:
        TypeError: on scores that are no real numbers.
        ValueError: on bad arrays.

    Example:
        >>> label_ranking_average_precision(np.array([[0.9, 0.8, 0.1]]), np.array([[0, 1, 0]]))
        0.5
    """
    return _measure(scores, targets).label_ranking_average_precision


def _measure(scores: np.ndarray, targets: np.ndarray) -> Ranking:
    ranking = count_images(*check_arrays(scores, targets), ranking=True).ranking
    assert ranking is not None  # asked for
    return ranking
