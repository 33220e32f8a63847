"""Co-occurrence of errors: which absent word is among an image's best words where another word is present."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from zsmld.metrics.arrays import in_threads, row_chunks


@dataclass(frozen=True)
class Confusion:
    """An absent word given to images that have another word.

    Attributes:
        present: label of the word that is there.
        given: label of the word that is not there and is among the best K.
        count: images.
        share: count over the images with `present`.
        share_of_all: of all images, the share to which `given` is given wrongly: a word that is wrong everywhere is
            no confusion with this one.
    """

    present: int
    given: int
    count: int
    share: float
    share_of_all: float


def best_words(scores: np.ndarray, targets: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of each image's K best known words: ties go by label order, as everywhere.

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}; unknown entries are never given.
        k: at most N.

    Returns:
        Two int64 arrays of equal length, rows ascending.

    Example:
        >>> rows, columns = best_words(np.array([[0.5, 0.5, 0.1]]), np.array([[0, 1, -1]]), 1)
        >>> rows.tolist(), columns.tolist()
        ([0], [0])
    """

    def best(bounds: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        part, known = scores[slice(*bounds)], targets[slice(*bounds)] >= 0
        if not known.all():
            part = np.where(known, part, -np.inf)
        last = np.partition(part, part.shape[1] - k, axis=1)[:, part.shape[1] - k, None]  # (R,1) the K-th best
        given = (part >= last) & known
        for i in np.flatnonzero(given.sum(1) > k):  # the K-th best is tied
            tied = np.flatnonzero(given[i] & (part[i] == last[i]))
            given[i, tied[k - np.count_nonzero(part[i] > last[i]) :]] = False
        row, column = np.nonzero(given)
        return row + bounds[0], column

    rows, columns = zip(*in_threads(best, row_chunks(*scores.shape), None), strict=True)
    return np.concatenate(rows), np.concatenate(columns)


def confusion_counts(scores: np.ndarray, targets: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each absent word is among the best K of the images that have another.

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}.
        k: at most N.

    Returns:
        (N,N) int64, row the present word, column the absent one that was given; and (N,) int64, the images to which
        each word was given wrongly.

    Example:
        >>> counts, wrong = confusion_counts(np.array([[0.9, 0.8, 0.1]]), np.array([[0, 0, 1]]), 2)
        >>> counts.tolist(), wrong.tolist()
        ([[0, 0, 0], [0, 0, 0], [1, 1, 0]], [1, 1, 0])
    """
    rows, columns = best_words(scores, targets, k)
    absent = targets[rows, columns] == 0
    rows, columns = rows[absent], columns[absent]
    given = sparse.csr_array((np.ones(len(rows), np.int64), (rows, columns)), shape=scores.shape)
    present = sparse.csr_array(targets == 1).astype(np.int64)
    return (present.T @ given).toarray(), np.bincount(columns, minlength=scores.shape[1])


def confusions(
    counts: np.ndarray, wrong: np.ndarray, num_positives: np.ndarray, num_images: int, num_shown: int
) -> list[Confusion]:
    """The most frequent confusions, most frequent first; of equally frequent ones, the larger share first.

    Args:
        counts, wrong: of `confusion_counts`.
        num_positives: (N,) images that have each word.
        num_images: M.
        num_shown: at most.

    Example:
        >>> confusions(np.array([[0, 0], [1, 0]]), np.array([1, 0]), np.array([1, 1]), num_images=2, num_shown=3)
        [Confusion(present=1, given=0, count=1, share=1.0, share_of_all=0.5)]
    """
    present, given = np.nonzero(counts)
    values = counts[present, given]
    shares = values / num_positives[present]
    return [
        Confusion(int(present[i]), int(given[i]), int(values[i]), float(shares[i]), float(wrong[given[i]] / num_images))
        for i in np.lexsort((given, present, -shares, -values))[:num_shown]
    ]
