"""One walk over the images: what each is given at its best K words and at a threshold, and how well its words rank.

Every metric that compares the words of one image is derived from these counts. Counts are whole numbers, and the two
sums of fractions are exact before they are rounded once: the order of images and the number of threads are nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zsmld.metrics.arrays import as_float, in_threads, row_chunks


class Given(NamedTuple):
    """How often each word was given to an image, and rightly so.

    Attributes:
        given: (N,) int64.
        hits: (N,) int64, given to an image that has the word.
    """

    given: np.ndarray
    hits: np.ndarray


class Ranking(NamedTuple):
    """How the positives of the images rank, as means over images.

    Attributes:
        ranking_loss: share of wrongly ordered pairs.
        coverage_error: words down to the last positive.
        one_error: share of images whose best word is wrong.
        label_ranking_average_precision: mean precision at the positives.
    """

    ranking_loss: float
    coverage_error: float
    one_error: float
    label_ranking_average_precision: float


class Exchanges(NamedTuple):
    """Where unseen words push seen ones out of the best K when a constant is added to the unseen words' scores.

    Attributes:
        constants: (E,) fp64, the constant above which it happens, −∞ where it always has.
        gains: (E,) int64, 1 if the unseen word is present.
        losses: (E,) int64, 1 if the seen word is present.
        seen_hits: present words among the best K seen words.
    """

    constants: np.ndarray
    gains: np.ndarray
    losses: np.ndarray
    seen_hits: int


@dataclass
class ImageCounts:
    """What `count_images` found.

    Attributes:
        num_images: M.
        num_positives: (N,) int64 of each word.
        positives_per_image: the fewest and the most an image has.
        at_k: `Given` for each K asked for.
        at_threshold: `Given` at the threshold, if one was asked for.
        ranking: `Ranking`, if asked for.
        exchanges: `Exchanges`, if asked for.
    """

    num_images: int
    num_positives: np.ndarray
    positives_per_image: tuple[int, int]
    at_k: dict[int, Given]
    at_threshold: Given | None
    ranking: Ranking | None
    exchanges: Exchanges | None


class _Chunk(NamedTuple):
    """Some images: `scores` (R,N) with NaN at unknown entries, `targets` (R,N), where the positives are."""

    scores: np.ndarray
    targets: np.ndarray
    rows: np.ndarray  # (P,)
    columns: np.ndarray  # (P,)


def count_images(
    scores: np.ndarray,
    targets: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    kept: np.ndarray | None = None,
    top_k: Sequence[int] = (),
    threshold: float | None = None,
    ranking: bool = False,
    is_seen: np.ndarray | None = None,
    num_threads: int | None = None,
) -> ImageCounts:
    """Count over the images whatever is asked for, of arrays that are checked already.

    Args:
        scores: (M,N).
        targets: (M,N).
        labels: columns to rank, ascending; None for all.
        kept: (M,) bool, rows to count; None for all.
        top_k: each at most the number of ranked columns.
        threshold: a word is given from this score on, in the units and the precision of the scores.
        ranking: measure `Ranking`.
        is_seen: (number of ranked columns,) bool: find the `Exchanges` between seen and unseen words at the first of
            `top_k`.
        num_threads: None for all cores.

    Example:
        >>> counts = count_images(np.array([[0.9, 0.8, 0.1]]), np.array([[1, 0, 1]]), top_k=(1, 2))
        >>> counts.at_k[2].hits.tolist(), counts.at_k[2].given.tolist()
        ([1, 0, 0], [1, 1, 0])
    """
    rows = None if kept is None else np.flatnonzero(kept)
    num_images, num_words = (
        len(scores) if rows is None else len(rows),
        scores.shape[1] if labels is None else len(labels),
    )
    # Rounded to the scores' own precision, as NumPy does: 0.7 reaches a threshold of 0.7 in fp32, too.
    limit = None if threshold is None else scores.dtype.type(threshold) if scores.dtype.kind == "f" else threshold

    def count(bounds: tuple[int, int]) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        chunk = _read(scores, targets, slice(*bounds) if rows is None else rows[slice(*bounds)], labels)
        shape = chunk.scores.shape
        ordered = np.sort(chunk.scores, axis=1)  # (R,N) ascending, NaN last
        num_known = shape[1] - np.isnan(ordered).sum(1) if np.isnan(ordered[:, -1]).any() else np.full(*shape)
        per_image = np.bincount(chunk.rows, minlength=shape[0])  # (R,)
        totals = [np.bincount(chunk.columns, minlength=num_words)]  # (N,) each
        per_row = [per_image]  # (R,) each
        if top_k or ranking:
            best = _best_labels(chunk.scores, ordered, num_known, max((*top_k, 1)))  # (R,K)
            hit = _hits(chunk.targets, best)  # (R,K)
            for k in top_k:
                given = best[:, :k]
                totals += [np.bincount(given[given >= 0], minlength=num_words)]
                totals += [np.bincount(given[hit[:, :k]], minlength=num_words)]
        if limit is not None:
            reached = chunk.scores[chunk.rows, chunk.columns] >= limit
            totals += [(chunk.scores >= limit).sum(0), np.bincount(chunk.columns[reached], minlength=num_words)]
        if ranking:
            per_row += [~hit[:, 0], *_rank_positives(chunk, ordered, num_known, per_image)]
        exchanges = [] if is_seen is None else _exchange(chunk, is_seen, top_k[0])
        return totals, per_row, exchanges

    totals, per_row, exchanges = zip(*in_threads(count, row_chunks(num_images, num_words), num_threads), strict=True)
    per_image, *ranked = (np.concatenate(parts) for parts in zip(*per_row, strict=True))
    positives, *pairs = (np.stack(parts).sum(0) for parts in zip(*totals, strict=True))
    given = [Given(*pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)]
    found = None
    if is_seen is not None:
        constants, gains, losses, seen_hits = (np.concatenate(parts) for parts in zip(*exchanges, strict=True))
        found = Exchanges(constants, gains, losses, int(seen_hits.sum()))
    means = None
    if ranking:
        wrong, loss, coverage, precision = ranked
        means = Ranking(
            math.fsum(loss) / num_images,
            int(coverage.sum()) / num_images,
            int(wrong.sum()) / num_images,
            math.fsum(precision) / num_images,
        )
    return ImageCounts(
        num_images=num_images,
        num_positives=positives,
        positives_per_image=(int(per_image.min()), int(per_image.max())),
        at_k=dict(zip(top_k, given, strict=False)),
        at_threshold=None if limit is None else given[-1],
        ranking=means,
        exchanges=found,
    )


def _read(scores: np.ndarray, targets: np.ndarray, rows: slice | np.ndarray, labels: np.ndarray | None) -> _Chunk:
    part, truth = scores[rows], targets[rows]
    if labels is not None and len(labels) < scores.shape[1]:
        part, truth = part[:, labels], truth[:, labels]
    part = as_float(part)
    unknown = truth < 0
    if unknown.any():
        part = np.where(unknown, part.dtype.type(np.nan), part)  # reaches no threshold and sorts behind every number
    positives = np.flatnonzero(truth == 1)
    return _Chunk(part, truth, positives // part.shape[1], positives % part.shape[1])


def _best_labels(scores: np.ndarray, ordered: np.ndarray, num_known: np.ndarray, k: int) -> np.ndarray:
    """Labels of each image's best K known words, best first, ties by label order: (R,K), −1 where there are fewer."""
    num_rows, num_words = scores.shape
    wanted = np.minimum(num_known, k)
    last = np.where(num_known >= k, ordered[np.arange(num_rows), np.maximum(num_known - k, 0)], -np.inf)  # K-th best
    given = scores >= last[:, None]  # (R,N), more than K where the K-th best is tied; NaN is never given
    positions = np.flatnonzero(given)
    if len(positions) > wanted.sum():
        tied_rows = np.flatnonzero(np.bincount(positions // num_words, minlength=num_rows) > wanted)
        above = scores[tied_rows] > last[tied_rows, None]
        tied = given[tied_rows] & ~above
        room = (wanted[tied_rows] - above.sum(1))[:, None]
        given[tied_rows] = above | (tied & (np.cumsum(tied, axis=1) <= room))
        positions = np.flatnonzero(given)
    rows, labels = positions // num_words, positions % num_words
    slots = np.arange(len(positions)) - np.repeat(np.cumsum(wanted) - wanted, wanted)
    best, values = np.full((num_rows, k), -1), np.full((num_rows, k), -np.inf, scores.dtype)
    best[rows, slots], values[rows, slots] = labels, scores[rows, labels]
    return np.take_along_axis(best, np.argsort(-values, axis=1, kind="stable"), axis=1)


def _hits(targets: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which of the given labels (R,K) are present, (R,K) bool; −1 never is."""
    return (np.take_along_axis(targets, np.maximum(labels, 0), axis=1) == 1) & (labels >= 0)


def _rank_positives(
    chunk: _Chunk, ordered: np.ndarray, num_known: np.ndarray, per_image: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each image's ranking loss, coverage and label-ranking average precision, (R,) each; ties count as scikit-learn's.

    A positive's rank is the number of known words that score at least as much, found by bisection in the sorted row.
    """
    num_rows, num_words = ordered.shape
    values, base, flat = chunk.scores[chunk.rows, chunk.columns], chunk.rows * num_words, ordered.ravel()
    below = np.zeros(len(values), np.int64)  # words of the same image that score less
    step = 1 << (num_words.bit_length() - 1)
    while step:
        # A probe past the end meets the row's last entry, which is no less than any of its values (or NaN).
        probe = np.minimum(below + step, num_words)
        below += step * (flat[base + probe - 1] < values)
        step //= 2
    # One sort brings the positives of each image together, worst first; equal keys are tied.
    keys = np.sort(chunk.rows * (num_words + 1) + below)
    rows, below = keys // (num_words + 1), keys % (num_words + 1)
    position = np.arange(len(keys))
    first_of_tie = np.maximum.accumulate(np.where(np.diff(keys, prepend=-1) > 0, position, 0))
    correct = np.cumsum(per_image)[rows] - first_of_tie  # positives that score at least as much
    retrieved = num_known[rows] - below
    negatives = num_known - per_image
    wrong_pairs = np.bincount(rows, retrieved - correct, minlength=num_rows)
    precision = np.bincount(rows, correct / retrieved, minlength=num_rows)
    coverage = np.zeros(num_rows, np.int64)
    np.maximum.at(coverage, rows, retrieved)
    both = (per_image > 0) & (negatives > 0)
    return (
        np.where(both, wrong_pairs / np.maximum(per_image * negatives, 1), 0.0),
        coverage,
        np.where(both, precision / np.maximum(per_image, 1), 1.0),
    )


def _exchange(chunk: _Chunk, is_seen: np.ndarray, k: int) -> list[np.ndarray]:
    """The chunk's exchanges: constants, gains, losses, and hits among each image's best K seen words.

    The j-th best unseen word enters an image's best K when the constant passes s − u, where u is its score and s that
    of the (K+1−j)-th best seen word, which it pushes out.
    """
    sides = []
    for columns in (np.flatnonzero(is_seen), np.flatnonzero(~is_seen)):
        scores, targets = chunk.scores[:, columns], chunk.targets[:, columns]
        ordered = np.sort(scores, axis=1)
        best = _best_labels(scores, ordered, (~np.isnan(ordered)).sum(1), min(k, len(columns)))
        missing = np.full((len(best), k - best.shape[1]), -1)
        best = np.concatenate([best, missing], axis=1)  # (R,K)
        values = np.take_along_axis(scores, np.maximum(best, 0), axis=1).astype(np.float64)
        sides.append((values, _hits(targets, best), np.where(best < 0, -1, columns[best])))
    (seen, seen_hit, seen_label), (unseen, unseen_hit, unseen_label) = sides
    seen, leaving_hit, seen_label = seen[:, ::-1], seen_hit[:, ::-1], seen_label[:, ::-1]
    with np.errstate(invalid="ignore"):
        constants = seen - unseen
    # Equal infinities stay tied whatever is added; then the order of labels decides.
    constants = np.where(np.isnan(constants), np.where(unseen_label < seen_label, -np.inf, np.inf), constants)
    constants[seen_label < 0] = -np.inf  # there is room
    constants[unseen_label < 0] = np.inf  # nothing to enter
    matters = (leaving_hit | unseen_hit) & (constants < np.inf)
    return [constants[matters], unseen_hit[matters] * 1, leaving_hit[matters] * 1, seen_hit.sum(1)]
