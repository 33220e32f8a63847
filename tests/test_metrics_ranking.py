"""Ranking loss, coverage, one-error and label-ranking average precision: against loops, scikit-learn, torchmetrics."""

import numpy as np
import oracles
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics import STRICTLY_MONOTONE, distinct, problems

from zsmld.metrics import (
    coverage_error,
    label_ranking_average_precision,
    one_error,
    precision_recall_f1_at_k,
    ranking_loss,
)

law = settings(max_examples=40)
METRICS = {
    "ranking_loss": ranking_loss,
    "coverage_error": coverage_error,
    "one_error": one_error,
    "label_ranking_average_precision": label_ranking_average_precision,
}
SCIKIT_LEARN = {
    "ranking_loss": sklearn.metrics.label_ranking_loss,
    "coverage_error": sklearn.metrics.coverage_error,
    "label_ranking_average_precision": sklearn.metrics.label_ranking_average_precision_score,
}


@law
@given(problems())
def test_each_equals_its_loop(problem):
    scores, targets = problem
    expected = oracles.ranking_figures(scores, targets)
    for name, metric in METRICS.items():
        assert metric(scores, targets) == pytest.approx(expected[name], abs=1e-12), name


@pytest.mark.parametrize("name", SCIKIT_LEARN)
@law
@given(problem=problems(labels=st.sampled_from([(1, 0), (1,), (0,)])))
def test_each_equals_scikit_learn(name, problem):
    scores, targets = problem
    if scores.shape[1] > 1:  # scikit-learn takes one column for a binary problem
        assert METRICS[name](scores, targets) == pytest.approx(SCIKIT_LEARN[name](targets, scores), abs=1e-12)


@pytest.mark.parametrize("num_words", [2, 3, 31, 32, 33, 257])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_each_equals_scikit_learn_whatever_the_number_of_words(num_words, share):
    rng = np.random.default_rng(num_words)
    scores = rng.integers(0, num_words, (50, num_words)).astype(np.float32)
    targets = (rng.random(scores.shape) < share).astype(np.int8)
    for name, theirs in SCIKIT_LEARN.items():
        expected = theirs(targets, scores.astype(np.float64))  # with SciPy 1.18 it counts in the type of the scores
        assert METRICS[name](scores, targets) == pytest.approx(expected, abs=1e-12), name


def test_each_equals_torchmetrics_on_untied_data():
    from torchmetrics.functional import classification

    scores, targets = distinct(0)
    targets = np.maximum(targets, 0)
    for name, theirs in {
        "ranking_loss": classification.multilabel_ranking_loss,
        "coverage_error": classification.multilabel_coverage_error,
        "label_ranking_average_precision": classification.multilabel_ranking_average_precision,
    }.items():
        expected = float(theirs(torch.from_numpy(scores).float(), torch.from_numpy(targets), targets.shape[1]))
        assert METRICS[name](scores, targets) == pytest.approx(expected, abs=1e-6), name


@law
@given(problems())
def test_one_error_is_what_precision_at_one_misses(problem):
    assert one_error(*problem) == pytest.approx(1 - precision_recall_f1_at_k(*problem, 1)[0], abs=1e-12)


@law
@given(problems(), st.floats(-1e3, 1e3))
def test_unknown_entries_have_no_say(problem, value):
    scores, targets = problem
    moved = np.where(targets == -1, value, scores)
    for metric in METRICS.values():
        assert metric(moved, targets) == metric(scores, targets)


@pytest.mark.parametrize("name", STRICTLY_MONOTONE)
def test_only_the_order_of_scores_matters(name):
    rng = np.random.default_rng(0)
    scores, targets = rng.integers(-20, 20, (40, 9)).astype(float), rng.integers(-1, 2, (40, 9))
    for metric in METRICS.values():
        assert metric(STRICTLY_MONOTONE[name](scores), targets) == metric(scores, targets)


@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_images_is_nothing_to_the_last_bit(name, monkeypatch):
    rng = np.random.default_rng(1)
    scores, targets = rng.standard_normal((500, 23)), rng.choice([1, 0, -1], (500, 23), p=[0.2, 0.7, 0.1])
    result = METRICS[name](scores, targets)
    order = rng.permutation(500)
    assert METRICS[name](scores[order], targets[order]) == result
    words = rng.permutation(23)
    assert METRICS[name](scores[:, words], targets[:, words]) == result
    monkeypatch.setattr("zsmld.metrics.arrays._CHUNK", 50)  # chunks of two images
    assert METRICS[name](scores, targets) == result


def test_infinite_scores_rank_as_they_are():
    scores = np.array([[np.inf, np.inf, 0.0, -np.inf]])
    finite = np.array([[2.0, 2.0, 0.0, -2.0]])
    for target in ([1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 1]):
        for metric in METRICS.values():
            assert metric(scores, np.array([target])) == metric(finite, np.array([target]))


@pytest.mark.parametrize(
    "row, expected",
    [([0, 0, 0], (0, 0, 1, 1)), ([1, 1, 1], (0, 3, 0, 1)), ([-1, -1, -1], (0, 0, 1, 1)), ([-1, 1, -1], (0, 1, 0, 1))],
)
def test_images_without_present_or_without_absent_words(row, expected):
    scores, targets = np.array([[0.1, 0.2, 0.3]]), np.array([row])
    assert tuple(metric(scores, targets) for metric in METRICS.values()) == expected


@pytest.mark.parametrize("name", METRICS)
def test_wrong_arrays_are_refused(name):
    with pytest.raises(ValueError, match=r"scores must be numbers, got NaN first at image 0, word 1"):
        METRICS[name](np.array([[0.0, np.nan]]), np.ones((1, 2), int))
    with pytest.raises(ValueError, match=r"targets must be 1, 0 or -1, got \[2\]"):
        METRICS[name](np.zeros((1, 2)), np.full((1, 2), 2))
    with pytest.raises(ValueError, match=r"must both be \(M, N\) and not empty, got \(2,\) and \(2,\)"):
        METRICS[name](np.zeros(2), np.ones(2, int))
