"""Every figure of a protocol, from scores and targets that are already there."""

import math
from typing import Any, get_args

import numpy as np

from zsmld.metrics import harmonic_mean, mean_average_precision
from zsmld.metrics.arrays import check_arrays, row_chunks
from zsmld.metrics.classification import check_single_label, overall_figures, per_class_figures
from zsmld.metrics.images import ImageCounts, count_images
from zsmld.metrics.seen_unseen import curve_of
from zsmld.metrics.words import WordFigures, measure_words
from zsmld.protocols import Protocol
from zsmld.report import Kind
from zsmld.vocabulary import Vocabulary


def evaluate_scores(
    scores: np.ndarray,
    targets: np.ndarray,
    vocabulary: Vocabulary,
    protocol: Protocol,
    kind: Kind = "logits",
    num_threads: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Every figure of a protocol from scores that are already there.

    Figures of a part, all fractions, over its ranked words and its images (those without a ranked word left out when
    `keep_unlabelled` is False); an unknown entry (−1) takes no part and is never given:

    - `mean_average_precision`: mean over words of the protocol's average precision, words without positives by
      `empty_words`; `chance_mean_average_precision`: the same mean of the share of images that have the word.
    - "gzsl" also `seen_mean_average_precision` and `unseen_mean_average_precision`, means over those words of the joint
      ranking, their `harmonic_mean`, and `seen_unseen_curve_area_at_{k}` for the first K of `top_k`: the area under the
      recall of seen over that of unseen labels in the joint best K, over every constant added to unseen scores, in the
      units of the scores (see `zsmld.metrics.seen_unseen_curve`).
    - For each K of `top_k` that is at most the number of words, each image being given its K best words, ties by label
      order: `precision_at_{k}` (hits over images·K), `recall_at_{k}` (hits over positives) and their harmonic mean
      `f1_at_{k}`; `per_class_precision_at_{k}`, the mean over words of hits over the images given the word (zero if
      none), `per_class_recall_at_{k}`, that of hits over the word's positives, and `per_class_f1_at_{k}`, the harmonic
      mean of these two means; words without positives by `empty_words`. "gzsl" also `seen_recall_at_{k}` and
      `unseen_recall_at_{k}`, of the labels of either side in the joint best K, and `harmonic_mean_recall_at_{k}`.
    - Each image being given the words that reach the protocol's threshold: `per_class_precision`, `per_class_recall`,
      `per_class_f1` (CP, CR, CF1) and `overall_precision`, `overall_recall`, `overall_f1` (OP, OR, OF1), defined alike.
    - Means over images: `ranking_loss`, the share of (present, absent) pairs in the wrong order or tied;
      `coverage_error`, the best words it takes to hold all present ones (a number of words); `one_error`, the share of
      images whose best word is not present; `label_ranking_average_precision`, the mean over present words of the
      precision at their rank. An image without present words counts as 0, 0, 1 and 1; one without absent words as 0 and
      1 in the first and the last, as scikit-learn has it.
    - "single_label" also `top_{k}_accuracy`, the share of images whose one word is among their best K.
    - `num_images`, `num_words`, `labels_per_image` (positives over images), `policies`, and `words`: of each its
      `average_precision` (None without positives), `num_positives` and whether it is `seen`.

    Args:
        scores: (M,N) real, column j is `vocabulary.words[j]`; infinite logits are allowed.
        targets: (M,N) in {1, 0, −1}.
        vocabulary: N words with their partition.
        protocol: what to rank, and the policies.
        kind: "logits", any real numbers, which reach a threshold p from log(p/(1−p)) on; or "scores" in [0,1].
        num_threads: None for all cores; the figures are the same to the last bit, as they are in any order of images
            (but for ties in the average precisions that rank ties by image).

    Returns:
        One entry a part ("zsl", "gzsl", "seen", …), as it stands in `report.json`.

    Raises:
        TypeError: on scores that are no real numbers.
        ValueError: if arrays, vocabulary and protocol do not fit, on NaN, on scores outside [0,1] with kind="scores",
            on images with none or several words in a single-label protocol.

    Example:
        >>> vocabulary = Vocabulary(["dog", "cat", "zebra"], seen=["dog", "cat"])
        >>> scores, targets = np.array([[2.0, -1.0, 1.0], [-3.0, 0.0, 0.5]]), np.array([[1, 0, 1], [0, 1, 0]])
        >>> figures = evaluate_scores(scores, targets, vocabulary, Protocol.named("gzsl", top_k=(1,)))
        >>> figures["gzsl"]["mean_average_precision"], figures["gzsl"]["precision_at_1"]
        (1.0, 0.5)
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.shape[1:] != (len(vocabulary),) or targets.shape != scores.shape:
        raise ValueError(
            f"scores and targets must be (M, {len(vocabulary)}), one column a word, got {scores.shape} and "
            f"{targets.shape}; use the same images and vocabulary"
        )
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be 'logits' or 'scores', got {kind!r}; it is never guessed from the values")
    scores, targets = check_arrays(scores, targets, probabilities=kind == "scores")
    threshold = protocol.threshold if kind == "scores" else _logit(protocol.threshold)
    ranked = {part: protocol.ranked_labels(part, vocabulary) for part in protocol.parts}
    every = ranked[protocol.parts[-1]]  # the last part ranks whatever the others do
    # A word's average precision does not depend on the other words: once for all parts where the images are the same.
    shared = None
    if protocol.keep_unlabelled:
        shared = measure_words(scores, targets, every, None, protocol.average_precision, num_threads)
    parts = {}
    for part, labels in ranked.items():
        if shared is not None:
            kept, positions = None, np.searchsorted(every, labels)
            words = WordFigures(*(values[positions] for values in shared))
        else:
            kept = _labelled(targets, labels, part)
            words = measure_words(scores, targets, labels, kept, protocol.average_precision, num_threads)
        top_k = tuple(k for k in protocol.top_k if k <= len(labels))
        counts = count_images(
            scores,
            targets,
            labels=labels,
            kept=kept,
            top_k=top_k,
            threshold=threshold,
            ranking=True,
            is_seen=vocabulary.is_seen[labels] if part == "gzsl" and top_k[:1] == protocol.top_k[:1] else None,
            num_threads=num_threads,
        )
        parts[part] = _figures(part, words, counts, labels, vocabulary, protocol)
    return parts


def _logit(probability: float) -> float:
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))


def _labelled(targets: np.ndarray, labels: np.ndarray, part: str) -> np.ndarray:
    """(M,) bool, the images that have a ranked word."""
    chosen = slice(None) if len(labels) == targets.shape[1] else labels
    chunks = row_chunks(*targets.shape)
    labelled = np.concatenate([(targets[start:end][:, chosen] == 1).any(1) for start, end in chunks])
    if not labelled.any():
        raise ValueError(
            f"targets must have images with a ranked word when keep_unlabelled=False, none of {len(targets)} has "
            f"in {part}; use keep_unlabelled=True"
        )
    return labelled


def _figures(
    part: str, words: WordFigures, counts: ImageCounts, labels: np.ndarray, vocabulary: Vocabulary, protocol: Protocol
) -> dict[str, Any]:
    """The figures of one part, from what was counted."""
    aps, seen, positives = words.average_precision, vocabulary.is_seen[labels], counts.num_positives

    def mean(values: np.ndarray) -> float:
        return mean_average_precision(values, protocol.empty_words)

    chance = np.where(np.isnan(aps), np.nan, words.num_positives / np.maximum(words.num_known, 1))
    figures = {"mean_average_precision": mean(aps), "chance_mean_average_precision": mean(chance)}
    if part == "gzsl":
        figures["seen_mean_average_precision"] = mean(aps[seen])
        figures["unseen_mean_average_precision"] = mean(aps[~seen])
        figures["harmonic_mean"] = harmonic_mean(mean(aps[seen]), mean(aps[~seen]))
    if counts.exchanges is not None:
        curve = curve_of(counts.exchanges, positives, seen)
        figures[f"seen_unseen_curve_area_at_{protocol.top_k[0]}"] = curve.area
    names = ("precision", "recall", "f1")
    for k, given in counts.at_k.items():
        if part == "single_label":
            check_single_label(counts.positives_per_image)
            figures[f"top_{k}_accuracy"] = int(given.hits.sum()) / counts.num_images
        overall = overall_figures(given, positives, counts.num_images * k)
        if part == "gzsl":
            sides = {
                side: int(given.hits[labels].sum()) / max(int(positives[labels].sum()), 1)
                for side, labels in (("seen", seen), ("unseen", ~seen))
            }
            figures |= {f"{side}_recall_at_{k}": recall for side, recall in sides.items()}
            figures[f"harmonic_mean_recall_at_{k}"] = harmonic_mean(*sides.values())
        per_class = per_class_figures(given, positives, protocol.empty_words)
        figures |= {f"{name}_at_{k}": value for name, value in zip(names, overall, strict=True)}
        figures |= {f"per_class_{name}_at_{k}": value for name, value in zip(names, per_class, strict=True)}
    assert counts.at_threshold is not None and counts.ranking is not None  # both are always asked for
    per_class = per_class_figures(counts.at_threshold, positives, protocol.empty_words)
    overall = overall_figures(counts.at_threshold, positives, int(counts.at_threshold.given.sum()))
    figures |= {f"per_class_{name}": value for name, value in zip(names, per_class, strict=True)}
    figures |= {f"overall_{name}": value for name, value in zip(names, overall, strict=True)}
    figures |= counts.ranking._asdict()
    return figures | {
        "num_images": counts.num_images,
        "num_words": len(labels),
        "labels_per_image": int(positives.sum()) / counts.num_images,
        "policies": protocol.policies(),
        "words": {
            vocabulary.words[label]: {
                "average_precision": None if np.isnan(ap) else float(ap),
                "num_positives": int(count),
                "seen": bool(is_seen),
            }
            for label, ap, count, is_seen in zip(labels, aps, positives, seen, strict=True)
        },
    }
