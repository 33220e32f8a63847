"""The seen/unseen curve: what unseen words gain and seen ones lose when a constant is added to the unseen scores."""

from dataclasses import dataclass

import numpy as np

from zsmld.metrics.arrays import check_arrays, check_k
from zsmld.metrics.classification import harmonic_mean
from zsmld.metrics.images import Exchanges, count_images


@dataclass(frozen=True)
class SeenUnseenCurve:
    """Recall@K of seen and of unseen words for every constant at which either changes.

    Attributes:
        constants: (P,) fp64 ascending. Adding constants[i] to every unseen score gives point i: they lie midway between
            the two changes around it, the first and last one unit beyond theirs; a single 0 where nothing ever changes.
        seen_recall: (P,) fp64, present seen words among the joint best K, over all present seen words.
        unseen_recall: (P,) fp64, likewise; grows from point to point while `seen_recall` falls.
        area: under seen recall over unseen recall between the two ends, by the trapezoid rule.
    """

    constants: np.ndarray
    seen_recall: np.ndarray
    unseen_recall: np.ndarray
    area: float

    def best(self) -> tuple[float, float]:
        """The constant with the highest harmonic mean of the two recalls, and that mean; the first of several.

        Choose it on held-out seen words, never on the unseen words or test images that are reported.

        Example:
            >>> scores, targets = np.array([[0.5, 0.25], [1.0, 0.25]]), np.array([[0, 1], [1, 0]])
            >>> seen_unseen_curve(scores, targets, is_seen=np.array([True, False]), k=1).best()
            (0.5, 1.0)
        """
        means = [harmonic_mean(s, u) for s, u in zip(self.seen_recall, self.unseen_recall, strict=True)]
        best = int(np.argmax(means))
        return float(self.constants[best]), float(means[best])


def seen_unseen_curve(scores: np.ndarray, targets: np.ndarray, is_seen: np.ndarray, k: int) -> SeenUnseenCurve:
    """The exact curve of seen against unseen recall in the joint best K, over every constant added to unseen scores.

    Nothing is sampled: in each image the j-th best unseen word enters the best K when the constant passes s − u, where
    u is its score and s that of the (K+1−j)-th best seen word, which leaves. Unknown entries are never among the best
    K. Infinite scores stay where they are; equal ones go by label order. Unlike average precision, the curve depends on
    the units of the scores: that of logits is not that of their sigmoids.

    Args:
        scores: (M,N) real.
        targets: (M,N) in {1, 0, −1}.
        is_seen: (N,) bool.
        k: words given to each image, 1 ≤ K ≤ N.

    Returns:
        A `SeenUnseenCurve`; a recall is zero where its words have no positives at all.

    Raises:
        TypeError: on scores that are no real numbers.
        ValueError: on K out of range, bad arrays, or an `is_seen` that does not fit or knows one side only.

    Source: K=1 on single-label data is the seen-unseen accuracy curve of Chao et al. 2016, arXiv 1605.04253, section 4,
    and `area` its AUSUC, with one difference: accuracies there are means over classes, recalls here are overall.

    Example:
        >>> scores, targets = np.array([[0.5, 0.25], [1.0, 0.25]]), np.array([[0, 1], [1, 0]])
        >>> curve = seen_unseen_curve(scores, targets, is_seen=np.array([True, False]), k=1)
        >>> curve.constants.tolist(), curve.seen_recall.tolist(), curve.unseen_recall.tolist(), curve.area
        ([-0.75, 0.5, 1.75], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0], 1.0)
    """
    scores, targets = check_arrays(scores, targets)
    check_k(k, scores.shape[1])
    is_seen = np.asarray(is_seen)
    if is_seen.shape != scores.shape[1:] or is_seen.dtype != bool or is_seen.all() or not is_seen.any():
        raise ValueError(
            f"is_seen must be ({scores.shape[1]},) bool with seen and unseen words, got {is_seen.shape} "
            f"{is_seen.dtype} with {np.count_nonzero(is_seen)} seen; use vocabulary.is_seen"
        )
    counts = count_images(scores, targets, top_k=(k,), is_seen=is_seen)
    assert counts.exchanges is not None  # asked for
    return curve_of(counts.exchanges, counts.num_positives, is_seen)


def curve_of(exchanges: Exchanges, num_positives: np.ndarray, is_seen: np.ndarray) -> SeenUnseenCurve:
    """The curve that a set of exchanges makes.

    Args:
        exchanges: of all images, in any order.
        num_positives: (N,) of each word.
        is_seen: (N,) bool.

    Example:
        >>> exchanges = Exchanges(np.array([0.5]), np.array([1]), np.array([0]), seen_hits=1)
        >>> curve_of(exchanges, np.array([2, 1]), np.array([True, False])).area
        0.5
    """
    order = np.argsort(exchanges.constants)
    changes = exchanges.constants[order]
    # Hits after each change, those that have always happened folded into the start; whole numbers until the end.
    unseen = np.concatenate([[0], np.cumsum(exchanges.gains[order])])
    seen = np.concatenate([[exchanges.seen_hits], exchanges.seen_hits - np.cumsum(exchanges.losses[order])])
    changes = np.concatenate([[-np.inf], changes])
    last_of_tie = np.append(changes[1:] > changes[:-1], True)
    changes, seen, unseen = changes[last_of_tie], seen[last_of_tie], unseen[last_of_tie]
    num_seen, num_unseen = max(1, int(num_positives[is_seen].sum())), max(1, int(num_positives[~is_seen].sum()))
    twice_area = int((np.diff(unseen) * (seen[1:] + seen[:-1])).sum())
    constants = np.zeros(1)
    if len(changes) > 1:
        constants = np.concatenate([[changes[1] - 1], (changes[1:-1] + changes[2:]) / 2, [changes[-1] + 1]])
    return SeenUnseenCurve(constants, seen / num_seen, unseen / num_unseen, twice_area / (2 * num_seen * num_unseen))
