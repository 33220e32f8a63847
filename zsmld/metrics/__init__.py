"""Multi-label metrics: pure functions on numpy arrays.

Everywhere: `scores` (M,N) real, infinite allowed, NaN refused; `targets` (M,N) with 1 present, 0 absent, −1 unknown,
where unknown entries take no part; M images, N words. Results are fractions in [0,1] (`coverage_error` alone is a
number of words). Only the order of scores matters, except to a threshold and to the seen/unseen curve. Every result has
the same bits with any number of threads and in any order of the images, unless a method's own rule for ties goes by it.
"""

from zsmld.metrics.classification import (
    harmonic_mean,
    per_class_precision_recall_f1,
    per_class_precision_recall_f1_at_k,
    precision_recall_f1,
    precision_recall_f1_at_k,
    top_k_accuracy,
)
from zsmld.metrics.ranking import coverage_error, label_ranking_average_precision, one_error, ranking_loss
from zsmld.metrics.seen_unseen import SeenUnseenCurve, seen_unseen_curve
from zsmld.metrics.words import (
    AveragePrecision,
    EmptyWords,
    average_precision,
    chance_average_precision,
    mean_average_precision,
)

__all__ = [
    "AveragePrecision",
    "EmptyWords",
    "SeenUnseenCurve",
    "average_precision",
    "chance_average_precision",
    "coverage_error",
    "harmonic_mean",
    "label_ranking_average_precision",
    "mean_average_precision",
    "one_error",
    "per_class_precision_recall_f1",
    "per_class_precision_recall_f1_at_k",
    "precision_recall_f1",
    "precision_recall_f1_at_k",
    "ranking_loss",
    "seen_unseen_curve",
    "top_k_accuracy",
]
