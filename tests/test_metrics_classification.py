"""Precision, recall and F1 per class and overall, at K and at a threshold; top-K accuracy: against loops, scikit-learn
and torchmetrics."""

import numpy as np
import oracles
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_score, recall_score, top_k_accuracy_score
from test_metrics import problems

from zsmld.metrics import (
    harmonic_mean,
    per_class_precision_recall_f1,
    per_class_precision_recall_f1_at_k,
    precision_recall_f1,
    precision_recall_f1_at_k,
    top_k_accuracy,
)

law = settings(max_examples=30)
policies = pytest.mark.parametrize("empty_words", ["zero", "skip"])


def random_problem(seed, images=60, words=7):
    """fp32 scores in (0,1) without ties, and targets without unknown entries; the last word has no positive."""
    rng = np.random.default_rng(seed)
    scores = (rng.permutation(images * words).reshape(images, words) + 0.5).astype(np.float32) / (images * words)
    targets = (rng.random((images, words)) < 0.3).astype(np.int8)
    targets[:, -1] = 0
    return scores, targets


# ----------------------------------------------------------------------------------------------------------- at k


@policies
@law
@given(problem=problems(), k=st.integers(1, 5))
def test_per_class_figures_at_k_equal_the_loops(empty_words, problem, k):
    scores, targets = problem
    assume(k <= scores.shape[1])
    given_words = [oracles.best_words(s, t, k) for s, t in zip(scores, targets, strict=True)]
    expected = oracles.per_class_figures(given_words, targets, empty_words)
    assert per_class_precision_recall_f1_at_k(scores, targets, k, empty_words) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_figures_at_k_equal_scikit_learn_on_the_given_words(k):
    scores, targets = random_problem(k)
    given_words = np.zeros_like(targets)
    np.put_along_axis(given_words, np.argsort(-scores, axis=1)[:, :k], 1, axis=1)
    for average, ours in (
        ("macro", per_class_precision_recall_f1_at_k(scores, targets, k)),
        ("micro", precision_recall_f1_at_k(scores, targets, k)),
    ):
        precision = precision_score(targets, given_words, average=average, zero_division=0)
        recall = recall_score(targets, given_words, average=average, zero_division=0)
        assert ours == pytest.approx((precision, recall, harmonic_mean(precision, recall)), abs=1e-12)


def test_unknown_entries_are_not_given_before_an_infinitely_bad_word():
    scores, targets = np.array([[0.5, -np.inf]]), np.array([[-1, 1]])
    assert precision_recall_f1_at_k(scores, targets, 1) == (1, 1, 1)
    assert precision_recall_f1_at_k(np.full((1, 2), -np.inf), targets, 1) == (1, 1, 1)


def test_images_with_fewer_known_words_than_k_are_given_those():
    scores, targets = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]), np.array([[-1, 1, -1], [1, 0, 1]])
    assert precision_recall_f1_at_k(scores, targets, 2) == pytest.approx((2 / 4, 2 / 3, 4 / 7))
    assert per_class_precision_recall_f1_at_k(scores, targets, 2) == pytest.approx((0.5, 2 / 3, 4 / 7))


def test_ties_at_the_last_place_go_to_the_first_label_in_every_image():
    """Among images with and without ties, and with a tie that is partly above the last place."""
    scores = np.array([[3, 2, 2, 2], [1, 2, 3, 4], [0, 0, 0, 0], [1, 1, 2, 1]])
    targets = np.eye(4, dtype=int)[[1, 2, 1, 0]]
    assert precision_recall_f1_at_k(scores, targets, 2) == (0.5, 1, 2 / 3)
    assert precision_recall_f1_at_k(scores, targets[::-1], 2)[1] == 0.25


# --------------------------------------------------------------------------------------------------- at a threshold


@policies
@law
@given(problem=problems(), threshold=st.sampled_from([-1.0, 0.0, 0.5, 1.0, np.inf, -np.inf]))
def test_figures_at_a_threshold_equal_the_loops(empty_words, problem, threshold):
    scores, targets = problem
    pairs = list(zip(scores, targets, strict=True))
    given_words = [[j for j in range(len(s)) if s[j] >= threshold and t[j] != -1] for s, t in pairs]
    assert precision_recall_f1(scores, targets, threshold) == pytest.approx(
        oracles.overall_figures(given_words, targets), abs=1e-12
    )
    assert per_class_precision_recall_f1(scores, targets, threshold, empty_words) == pytest.approx(
        oracles.per_class_figures(given_words, targets, empty_words), abs=1e-12
    )


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_figures_at_a_threshold_equal_scikit_learn_and_torchmetrics(threshold):
    from torchmetrics.functional.classification import multilabel_precision, multilabel_recall

    scores, targets = random_problem(0)
    for average, ours in (
        ("macro", per_class_precision_recall_f1(scores, targets, threshold)),
        ("micro", precision_recall_f1(scores, targets, threshold)),
    ):
        precision = precision_score(targets, scores >= threshold, average=average, zero_division=0)
        recall = recall_score(targets, scores >= threshold, average=average, zero_division=0)
        assert ours == pytest.approx((precision, recall, harmonic_mean(precision, recall)), abs=1e-12)
        for function, value in ((multilabel_precision, ours[0]), (multilabel_recall, ours[1])):
            # torchmetrics leaves a word without positives or given images out of its macro mean: keep the others.
            kept = targets.any(0) if average == "macro" else np.ones(7, bool)
            theirs = function(
                torch.from_numpy(scores[:, kept]),
                torch.from_numpy(targets[:, kept]),
                int(kept.sum()),
                threshold,
                average,
            )
            mine = value * 7 / kept.sum() if average == "macro" else value
            assert mine == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_score_equal_to_the_threshold_reaches_it_in_its_own_precision(dtype):
    for threshold in (0.1, 0.3, 0.7):
        scores = np.array([[threshold]], dtype)
        assert precision_recall_f1(scores, np.array([[1]]), threshold) == (1, 1, 1)
        above = np.nextafter(scores, dtype(1))[0, 0]
        assert precision_recall_f1(scores, np.array([[1]]), float(above)) == (0, 0, 0)


def test_whole_numbers_are_compared_as_they_are():
    assert precision_recall_f1(np.array([[2, 3]]), np.array([[0, 1]]), 2.5) == (1, 1, 1)


# ------------------------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy_equals_scikit_learn(k):
    scores, _ = random_problem(k)
    present = np.random.default_rng(k).integers(0, 7, len(scores))
    expected = top_k_accuracy_score(present, scores, k=k, labels=range(7))
    assert top_k_accuracy(scores, np.eye(7, dtype=np.int8)[present], k) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected < 1


@pytest.mark.parametrize("row, found", [([0, 0, 0], "0 to 1"), ([1, 1, 0], "1 to 2"), ([-1, 0, 0], "0 to 1")])
def test_top_k_accuracy_refuses_images_without_exactly_one_word(row, found):
    targets = np.eye(3, dtype=int)
    targets[1] = row
    message = rf"exactly one present word an image for top-K accuracy, got {found}; leave out images without one"
    with pytest.raises(ValueError, match=message):
        top_k_accuracy(np.zeros((3, 3)), targets, 1)


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("metric", [per_class_precision_recall_f1_at_k, top_k_accuracy])
@pytest.mark.parametrize("k", [0, 4])
def test_k_must_be_among_the_words(metric, k):
    with pytest.raises(ValueError, match=rf"k must be between 1 and the 3 words, got {k}; choose a smaller k"):
        metric(np.zeros((3, 3)), np.eye(3, dtype=int), k)


@pytest.mark.parametrize("metric", [precision_recall_f1, per_class_precision_recall_f1])
def test_a_threshold_is_a_number(metric):
    with pytest.raises(ValueError, match=r"threshold must be a number, got NaN; use 0\.5 for scores, 0 for logits"):
        metric(np.zeros((3, 3)), np.eye(3, dtype=int), np.nan)


@pytest.mark.parametrize("metric", [per_class_precision_recall_f1, per_class_precision_recall_f1_at_k])
def test_unknown_policies_are_refused(metric):
    with pytest.raises(ValueError, match=r"empty_words must be 'zero' or 'skip', got 'drop'"):
        metric(np.zeros((3, 3)), np.eye(3, dtype=int), 1, "drop")


def test_wrong_arrays_are_refused():
    for metric in (
        precision_recall_f1,
        per_class_precision_recall_f1,
        per_class_precision_recall_f1_at_k,
        top_k_accuracy,
    ):
        with pytest.raises(ValueError, match=r"scores must be numbers, got NaN first at image 1, word 0"):
            metric(np.array([[0.0], [np.nan]]), np.ones((2, 1), int), 1)
        with pytest.raises(ValueError, match=r"scores and targets must both be \(M, N\) .*, got \(2, 1\) and \(1, 2\)"):
            metric(np.zeros((2, 1)), np.ones((1, 2), int), 1)
