"""Choosing a calibration from logits: stacking, standardisation, scale and bias, thresholds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from zsmld.calibration.stored import Calibration, Standardization, column_statistics, is_objective
from zsmld.metrics import average_precision, mean_average_precision, seen_unseen_curve
from zsmld.metrics.arrays import check_arrays, check_k, row_chunks
from zsmld.vocabulary import check_words

StackingFor = Literal["harmonic_mean", "f1"]


def choose_calibration(
    logits: np.ndarray,
    targets: np.ndarray,
    words: Iterable[str],
    heldout_words: Iterable[str],
    standardization: Standardization | Literal["auto"] = "auto",
    objective: str = "f1",
    stacking_for: StackingFor = "harmonic_mean",
    k: int = 3,
    min_positives: int = 5,
    max_reference_words: int = 256,
    transductive: bool = False,
    chosen_on: Mapping[str, Any] | None = None,
) -> Calibration:
    """Choose a calibration from logits of seen words, some of which were not trained and stand for unseen ones.

    `stacking` is the best of all constants: by the harmonic mean of the recalls of trained and of held-out labels in
    each image's joint best K, to which both sides are equal, or by the overall F1@K, to which all labels are. "auto"
    takes the standardisation with the highest sum of that figure and of the held-out words' mAP; of equals, the
    simplest. The default threshold has the highest mean F1 over the held-out words, or the highest recall of those at
    which they together reach the precision asked for. Without held-out words `stacking` is 0, and the default threshold
    is chosen in this way over all words.

    Args:
        logits: (M,N) finite.
        targets: (M,N) in {1, 0, −1}; a word without labels has −1 throughout.
        words: N seen words.
        heldout_words: those that were not trained.
        standardization, transductive: see `Calibration`.
        objective: of the thresholds, "f1", or "precision=0.9" for the highest recall at this precision.
        stacking_for: "harmonic_mean" or "f1".
        k: words given to each image when `stacking` is chosen.
        min_positives: a word with fewer takes the default threshold.
        max_reference_words: at most this many trained words, evenly spaced, give each image's mean and deviation.
        chosen_on: stored in the calibration, beside what came out.

    Raises:
        ValueError: if arrays, words and options do not fit, or held-out words have no positives.

    Example:
        >>> logits, targets = np.array([[3.0, 0.5], [2.0, 0.25], [1.0, 1.5]]), np.array([[1, 0], [1, 0], [0, 1]])
        >>> choose_calibration(logits, targets, ["dog", "cat"], ["cat"], "none", k=1).stacking
        0.625
    """
    words, heldout = check_words(words), check_words(heldout_words, "heldout_words", allow_empty=True)
    logits, targets = check_arrays(logits, targets)
    check_k(k, len(words))
    untrained = set(heldout)
    is_trained = np.array([word not in untrained for word in words])
    trained = tuple(word for word, one in zip(words, is_trained, strict=True) if one)
    problems = []
    if logits.shape[1] != len(words) or not np.isfinite(logits).all():
        problems.append(f"logits must be (M, {len(words)}) and finite, got {logits.shape}")
    if untrained - set(words) or not trained:
        problems.append(f"heldout_words must be some of the words and not all, got {sorted(heldout)[:5]}")
    if standardization not in ("auto", *get_args(Standardization)):
        problems.append(
            f"standardization must be 'auto' or one of {get_args(Standardization)}, got {standardization!r}"
        )
    if stacking_for not in get_args(StackingFor):
        problems.append(f"stacking_for must be one of {get_args(StackingFor)}, got {stacking_for!r}")
    if min_positives < 1 or max_reference_words < 2:
        problems.append(
            f"min_positives must be ≥ 1 and max_reference_words ≥ 2, got {min_positives}, {max_reference_words}"
        )
    if not is_objective(objective):
        problems.append(f"objective must be 'f1' or 'precision=P' with P in (0, 1], got {objective!r}")
    if not problems and heldout and not ((targets[:, ~is_trained] == 1).any() and (targets[:, is_trained] == 1).any()):
        problems.append("targets must have positives of trained and of held-out words")
    if problems:
        raise ValueError("calibration needs other arguments, got:\n  - " + "\n  - ".join(problems) + "\ncorrect them")
    kinds: tuple[Any, ...] = get_args(Standardization) if standardization == "auto" else (standardization,)
    if standardization == "auto" and transductive:
        kinds = ("per_word", "both")
    if standardization == "auto" and len(trained) < 2:
        kinds = tuple(kind for kind in kinds if kind not in ("per_image", "both"))
    mean, deviation = column_statistics(logits[:, is_trained])
    evenly = np.linspace(0, len(trained) - 1, min(len(trained), max_reference_words)).astype(int)
    candidates: dict[str, tuple[Calibration, dict[str, float]]] = {}
    for kind in kinds:
        by_word, by_image = kind in ("per_word", "both"), kind in ("per_image", "both")
        draft = Calibration(
            standardization=kind,
            trained_words=trained,
            reference_words=tuple(trained[i] for i in evenly) if by_image else (),
            word_statistics=dict(zip(trained, zip(mean.tolist(), deviation.tolist(), strict=True), strict=True))
            if by_word and not transductive
            else {},
            default_statistics=(float(mean.mean()), float(deviation.mean())) if by_word else (0.0, 1.0),
            transductive=transductive,
            objective=objective,
        )
        candidates[kind] = _stacked(draft, logits, targets, words, is_trained, k, stacking_for)
    best = max(candidates, key=lambda kind: sum(candidates[kind][1].values()))  # the first of equals
    calibration = candidates[best][0]
    calibrated = calibration.apply(logits, words)
    scale, bias = _sigmoid(calibrated, targets)
    positives = (targets == 1).sum(0)
    judges = ~is_trained if heldout else positives > 0
    came_out: dict[str, Any] = {
        "heldout_words": list(heldout),
        "stacking_for": stacking_for,
        "k": k,
        "min_positives": min_positives,
        "candidates": {kind: figures for kind, (_, figures) in candidates.items()},
    }
    return replace(
        calibration,
        scale=scale,
        bias=bias,
        thresholds={
            words[j]: _threshold(calibrated[:, [j]], targets[:, [j]], objective)
            for j in np.flatnonzero(positives >= min_positives)
        },
        default_threshold=_threshold(calibrated[:, judges], targets[:, judges], objective),
        chosen_on={**(chosen_on or {}), **came_out},
    )


def _stacked(
    draft: Calibration,
    logits: np.ndarray,
    targets: np.ndarray,
    words: Sequence[str],
    is_trained: np.ndarray,
    k: int,
    stacking_for: StackingFor,
) -> tuple[Calibration, dict[str, float]]:
    """A calibration with its best constant, and the figures by which it is compared with others."""
    calibrated = draft.apply(logits, words)
    aps = average_precision(calibrated, targets)
    if is_trained.all():
        return draft, {"mean_average_precision": mean_average_precision(aps, "skip")}
    curve = seen_unseen_curve(calibrated, targets, is_trained, k)
    constant, figure = curve.best()
    if stacking_for == "f1":
        num_trained, num_heldout = (int((targets[:, side] == 1).sum()) for side in (is_trained, ~is_trained))
        hits = curve.seen_recall * num_trained + curve.unseen_recall * num_heldout
        f1 = 2 * hits / (len(logits) * k + num_trained + num_heldout)
        constant, figure = float(curve.constants[np.argmax(f1)]), float(f1.max())
    heldout = mean_average_precision(aps[~is_trained], "skip")
    return replace(draft, stacking=constant), {"heldout_mean_average_precision": heldout, stacking_for: figure}


def _threshold(calibrated: np.ndarray, targets: np.ndarray, objective: str) -> float:
    """One threshold for (M,H) logits of H words: midway between two of them, or the lowest; ∞ if no one fits."""
    values, gains, hits = [], [], []
    for column, truth in zip(calibrated.T, targets.T, strict=True):
        known, num_positives = truth >= 0, int((truth == 1).sum())
        order = np.argsort(-column[known], kind="stable")
        present = (truth[known] == 1)[order]
        f1 = 2 * np.cumsum(present) / (np.arange(1, len(present) + 1) + num_positives)
        values.append(column[known][order])
        gains.append(np.diff(f1, prepend=0.0))  # of this word's F1 when one more image is given it
        hits.append(present)
    value, gain, hit = (np.concatenate(parts) for parts in (values, gains, hits))
    order = np.argsort(-value, kind="stable")
    value, gain, hit = value[order], gain[order], hit[order]
    last = np.append(value[1:] < value[:-1], True)  # equal logits are given together
    between = (value[1:] + value[:-1]) / 2  # in the logits' own precision, where it may round to the lower of two
    midway = np.append(np.where(between > value[1:], between, value[:-1]), value[-1:])[last]
    if objective == "f1":
        return float(midway[np.argmax(np.cumsum(gain)[last])])
    precision = (np.cumsum(hit) / np.arange(1, len(hit) + 1))[last]
    reached = np.flatnonzero(precision >= float(objective.removeprefix("precision=")))
    return float(midway[reached[-1]]) if len(reached) else math.inf


def _sigmoid(calibrated: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Scale and bias with the highest likelihood, by Platt's smoothed targets, which keep them finite."""
    num_positives, num_negatives = int((targets == 1).sum()), int((targets == 0).sum())
    high, low = (num_positives + 1) / (num_positives + 2), 1 / (num_negatives + 2)
    center, spread = float(calibrated.mean(dtype=np.float64)), float(calibrated.std(dtype=np.float64)) or 1.0

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        total, gradient = 0.0, np.zeros(2)
        for start, end in row_chunks(*calibrated.shape):
            known = targets[start:end] >= 0
            x = (calibrated[start:end][known].astype(np.float64) - center) / spread
            wanted = np.where(targets[start:end][known] == 1, high, low)
            z = parameters[0] * x + parameters[1]
            total -= float((log_expit(-z) + wanted * z).sum())
            difference = expit(z) - wanted
            gradient += (difference @ x, difference.sum())
        count = num_positives + num_negatives
        return total / count, gradient / count

    start = np.array([1.0, math.log((num_positives + 1) / (num_negatives + 1))])
    # The slope stays positive, so that scores rank as calibrated logits do, whatever the model.
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(1e-3, None), (None, None)])
    scale = float(found.x[0]) / spread
    return scale, float(found.x[1]) - scale * center
