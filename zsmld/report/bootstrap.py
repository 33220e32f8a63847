"""Bootstrap over images: figures of many resamples at once, from how often each image was drawn."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from zsmld.metrics import AveragePrecision, EmptyWords

_BLOCK = 32  # resamples measured together: the weights of all images in a block stay in cache


def draw_weights(num_images: int, num_resamples: int, seed: int) -> list[np.ndarray]:
    """How often each image is drawn in each resample of M out of M images with replacement.

    Resample r is `rng.integers(0, M, M)`, drawn one after the other from `numpy.random.default_rng(seed)`.

    Returns:
        Blocks (M, up to 32) int32; column 0 of the first is the sample itself, all ones.

    Example:
        >>> [block.shape for block in draw_weights(3, 100, seed=0)], draw_weights(3, 1, seed=0)[0].sum(0).tolist()
        ([(3, 32), (3, 32), (3, 32), (3, 5)], [3, 3])
    """
    rng = np.random.default_rng(seed)
    blocks = []
    for start in range(0, num_resamples + 1, _BLOCK):
        block = np.ones((num_images, min(_BLOCK, num_resamples + 1 - start)), np.int32)
        for column in range(1 if start == 0 else 0, block.shape[1]):
            block[:, column] = np.bincount(rng.integers(0, num_images, num_images), minlength=num_images)
        blocks.append(block)
    return blocks


def resampled_average_precision(
    scores: np.ndarray, targets: np.ndarray, weights: Sequence[np.ndarray], method: AveragePrecision
) -> np.ndarray:
    """Average precision of one word in every resample, as `zsmld.metrics.average_precision` would compute it there.

    The word's images are sorted once. "exact" needs, at each positive's score, the weight of the images down to it and
    of the positives among them. The other methods rank tied images by their order: a resample keeps the images in
    order, with copies side by side.

    Args:
        scores: (M,) real.
        targets: (M,) in {1, 0, −1}.
        weights: blocks (M,R) of `draw_weights`.
        method: as `zsmld.metrics.average_precision`.

    Returns:
        (sum of R,) fp64; NaN in a resample without a positive.

    Raises:
        ValueError: on "integral" with a million positives, whose rule for tiny gains of recall is not resampled.

    Example:
        >>> scores, targets = np.array([0.9, 0.8, 0.1]), np.array([1, 0, 1])
        >>> weights = [np.array([[1, 1], [1, 2], [1, 0]])]
        >>> resampled_average_precision(scores, targets, weights, "exact").round(4).tolist()
        [0.8333, 1.0]
    """
    rows = np.flatnonzero(targets >= 0)
    values, positive = scores[rows], targets[rows] == 1
    num_positives = int(positive.sum())
    if method == "integral" and num_positives >= 10**5:
        raise ValueError(
            f"average_precision must be exact, legacy or 11point for words of so many images, got 'integral' and "
            f"{num_positives} positives; evaluate both with another average_precision"
        )
    if not num_positives:
        return np.full(sum(block.shape[1] for block in weights), np.nan)
    if method == "exact":
        thresholds = np.unique(values[positive])  # ascending
        group = len(thresholds) - np.searchsorted(thresholds, values, "right")  # 0 at the highest positive or above
    else:
        order = np.argsort(values, kind="stable")[::-1]
        rows, positive = rows[order], positive[order]
        group = np.cumsum(positive) - positive  # each positive closes a group
    num_groups = len(thresholds) if method == "exact" else num_positives
    all_of = _sum_by(group, rows, num_groups, len(scores))
    positives_of = _sum_by(group[positive], rows[positive], num_groups, len(scores))
    results = []
    for block in weights:
        found = positives_of @ block  # (G,R) weight of the positives in each group
        hits, retrieved = np.cumsum(found, axis=0), np.cumsum(all_of @ block, axis=0)
        if method == "exact":
            precision = np.divide(hits, retrieved, out=np.zeros(hits.shape), where=retrieved > 0)
            with np.errstate(invalid="ignore"):
                results.append((found * precision).sum(0) / hits[-1])
        else:
            columns = zip(found.T, hits.T, retrieved.T, strict=True)
            results.append(np.array([_ranked(*column, method) for column in columns]))
    return np.concatenate(results)


def _sum_by(group: np.ndarray, rows: np.ndarray, num_groups: int, num_images: int) -> sparse.csr_array:
    """(G,M) matrix that sums images' weights by group; those behind the last group are left out."""
    kept = group < num_groups
    group, rows = group[kept], rows[kept]
    order = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=num_groups))])
    return sparse.csr_array((np.ones(len(rows), np.int32), rows[order], starts), shape=(num_groups, num_images))


def _ranked(found: np.ndarray, hits: np.ndarray, retrieved: np.ndarray, method: AveragePrecision) -> float:
    """Average precision of one resample from the weight of each positive and the hits and images down to it."""
    count = int(hits[-1])
    if not count:
        return np.nan
    number = np.arange(1, count + 1)  # of each copy of a positive; its group ends with the last copy
    precision = number / (np.repeat(retrieved - hits, found) + number)
    if method == "legacy":
        return float(precision.sum() / (count + 1e-8))
    if method == "11point":
        best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
        return sum(float(best[max(1, -(-j * count // 10)) - 1]) for j in range(11)) / 11
    return float(precision.sum() / count)


def mean_over_words(average_precisions: np.ndarray, empty_words: EmptyWords) -> np.ndarray:
    """Mean over words, (R,), of average precisions (N,R) whose first column is that of the sample itself.

    A word without positives in the sample counts as zero, or is skipped. A rare word whose few positives a resample
    happens not to draw is left out of that resample: as a zero it would pull every resample below the sample.

    Example:
        >>> mean_over_words(np.array([[0.5, 0.25], [0.75, np.nan], [np.nan, np.nan]]), "zero").round(4).tolist()
        [0.4167, 0.1667]
        >>> mean_over_words(np.array([[0.5, 0.25], [0.75, np.nan], [np.nan, np.nan]]), "skip").tolist()
        [0.625, 0.25]
    """
    known = ~np.isnan(average_precisions)
    means = np.where(known, average_precisions, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    if empty_words == "skip" or not len(known):
        return means
    return means * known[:, 0].sum() / len(known)


def weighted_sum(per_image: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """Sum over images of whole numbers (M,) in every resample, (R,) int64.

    Example:
        >>> weighted_sum(np.array([1, 2]), [np.array([[1, 0], [1, 2]], np.int32)]).tolist()
        [3, 4]
    """
    rows = np.flatnonzero(per_image)
    values = per_image[rows].astype(np.int64)
    return np.concatenate([values @ block[rows] for block in weights])


def harmonic_means(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Harmonic mean of fractions (R,); zero where either is.

    Example:
        >>> harmonic_means(np.array([0.5, 0.0]), np.array([1.0, 1.0])).round(4).tolist()
        [0.6667, 0.0]
    """
    return np.divide(2 * a * b, a + b, out=np.zeros(len(a)), where=(a > 0) & (b > 0))
