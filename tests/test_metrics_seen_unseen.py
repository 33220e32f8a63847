"""The seen/unseen curve: against adding every constant that matters to the unseen scores and ranking again."""

import numpy as np
import oracles
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zsmld.metrics import harmonic_mean, precision_recall_f1_at_k, seen_unseen_curve

law = settings(max_examples=60)


@st.composite
def problems(draw, infinite=False):
    """Scores in quarters, whose differences are exact, targets with unknown entries, a partition and a K."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(2, 6)))
    values = st.integers(-6, 6).map(lambda i: i / 4)
    if infinite:
        values = st.one_of(values, st.sampled_from([np.inf, -np.inf]))
    scores = draw(arrays(np.float64, shape, elements=values))
    targets = draw(arrays(np.int8, shape, elements=st.sampled_from([1, 0, -1])))
    is_seen = draw(arrays(bool, shape[1]))
    assume(is_seen.any() and not is_seen.all())
    return scores, targets, is_seen, draw(st.integers(1, shape[1]))


def check_against_the_loops(scores, targets, is_seen, k):
    curve = seen_unseen_curve(scores, targets, is_seen, k)
    points, area = oracles.seen_unseen_curve(scores.tolist(), targets.tolist(), is_seen.tolist(), k)
    assert curve.seen_recall == pytest.approx([seen for seen, _ in points], abs=1e-12)
    assert curve.unseen_recall == pytest.approx([unseen for _, unseen in points], abs=1e-12)
    assert curve.area == pytest.approx(area, abs=1e-12)
    for constant, seen, unseen in zip(curve.constants, curve.seen_recall, curve.unseen_recall, strict=True):
        again = oracles.seen_unseen_recall_at_k(scores, targets, is_seen, k, constant)
        assert (seen, unseen) == pytest.approx(again, abs=1e-12)


@law
@given(problems())
@example((np.array([[0.5, 0.25]]), np.array([[1, 1]]), np.array([True, False]), 1))
def test_the_curve_holds_every_point_that_a_constant_can_reach(problem):
    check_against_the_loops(*problem)


@law
@given(problems(infinite=True))
@example((np.array([[np.inf, np.inf]]), np.array([[1, 1]]), np.array([False, True]), 1))
@example((np.array([[-np.inf, -np.inf, 0.0]]), np.array([[1, 1, -1]]), np.array([False, True, True]), 1))
def test_infinite_scores_stay_where_they_are_and_ties_among_them_go_by_label(problem):
    check_against_the_loops(*problem)


@law
@given(problems())
def test_seen_recall_falls_while_unseen_recall_grows(problem):
    curve = seen_unseen_curve(*problem)
    assert (np.diff(curve.constants) > 0).all()
    assert (np.diff(curve.seen_recall) <= 0).all()
    assert (np.diff(curve.unseen_recall) >= 0).all()
    assert (np.abs(np.diff(curve.seen_recall)) + np.diff(curve.unseen_recall) > 0).all()  # something changes
    assert 0 <= curve.area <= 1


@law
@given(problems(), st.integers(-8, 8).map(lambda i: i / 4))
def test_a_constant_that_is_there_already_moves_along_the_curve_and_not_the_curve(problem, constant):
    scores, targets, is_seen, k = problem
    curve = seen_unseen_curve(scores, targets, is_seen, k)
    moved = seen_unseen_curve(scores + constant * ~is_seen, targets, is_seen, k)
    np.testing.assert_array_equal(moved.seen_recall, curve.seen_recall)
    np.testing.assert_array_equal(moved.unseen_recall, curve.unseen_recall)
    if len(curve.constants) > 1:
        np.testing.assert_allclose(moved.constants, curve.constants - constant, atol=1e-12)
    assert moved.area == curve.area


@law
@given(problems())
def test_swapping_seen_and_unseen_turns_the_curve_around(problem):
    scores, targets, is_seen, k = problem
    curve, swapped = seen_unseen_curve(scores, targets, is_seen, k), seen_unseen_curve(scores, targets, ~is_seen, k)
    np.testing.assert_array_equal(swapped.unseen_recall, curve.seen_recall[::-1])
    np.testing.assert_array_equal(swapped.seen_recall, curve.unseen_recall[::-1])
    if len(curve.constants) > 1:
        np.testing.assert_allclose(swapped.constants, -curve.constants[::-1], atol=1e-12)


def test_differences_of_fp32_scores_are_not_rounded_to_fp32():
    """Two images that change at constants a few billionths apart make two points."""
    scores, targets = np.array([[1, 1e-9], [1, 3e-9]], np.float32), np.array([[0, 1], [0, 1]])
    curve = seen_unseen_curve(scores, targets, np.array([True, False]), 1)
    assert curve.unseen_recall.tolist() == [0, 0.5, 1]


def test_the_order_of_images_and_the_chunks_are_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 40, (300, 12)) / 8
    targets = rng.choice([1, 0, -1], (300, 12), p=[0.2, 0.7, 0.1])
    is_seen = rng.random(12) < 0.6
    curve = seen_unseen_curve(scores, targets, is_seen, 3)
    order = rng.permutation(300)
    shuffled = seen_unseen_curve(scores[order], targets[order], is_seen, 3)
    monkeypatch.setattr("zsmld.metrics.arrays._CHUNK", 60)  # chunks of five images
    chunked = seen_unseen_curve(scores, targets, is_seen, 3)
    assert len(curve.constants) > 20
    for other in (shuffled, chunked):
        assert other.area == curve.area
        np.testing.assert_array_equal(other.constants, curve.constants)
        np.testing.assert_array_equal(other.seen_recall, curve.seen_recall)
        np.testing.assert_array_equal(other.unseen_recall, curve.unseen_recall)


def test_single_label_accuracies_of_seen_and_unseen_classes_at_a_grid_of_constants():
    """K=1 on single-label data: the accuracies of Chao et al., overall, lie on the curve."""
    rng = np.random.default_rng(3)
    present = rng.integers(0, 8, 200)
    is_seen = np.arange(8) < 5
    targets = np.eye(8, dtype=np.int8)[present]
    scores = rng.standard_normal((200, 8)) + 1.5 * targets + is_seen
    curve = seen_unseen_curve(scores, targets, is_seen, 1)
    reached = set(zip(curve.seen_recall, curve.unseen_recall, strict=True))
    for constant in np.linspace(-4, 4, 41):
        predicted = (scores + constant * ~is_seen).argmax(1)
        right, seen = predicted == present, is_seen[present]
        assert (right[seen].mean(), right[~seen].mean()) in reached
    ignorant = seen_unseen_curve(scores - 1.5 * targets, targets, is_seen, 1)
    assert curve.area > 2 * ignorant.area > 0


@law
@given(problems())
def test_the_best_constant_has_the_best_harmonic_mean(problem):
    scores, targets, is_seen, k = problem
    curve = seen_unseen_curve(scores, targets, is_seen, k)
    constant, mean = curve.best()
    assert mean == max(harmonic_mean(s, u) for s, u in zip(curve.seen_recall, curve.unseen_recall, strict=True))
    seen, unseen = oracles.seen_unseen_recall_at_k(scores, targets, is_seen, k, constant)
    assert harmonic_mean(seen, unseen) == pytest.approx(mean, abs=1e-12)


def test_the_whole_recall_at_a_constant_is_recall_at_k_of_the_moved_scores():
    rng = np.random.default_rng(1)
    scores, targets = rng.standard_normal((50, 9)), (rng.random((50, 9)) < 0.3).astype(int)
    is_seen = np.arange(9) % 2 == 0
    curve = seen_unseen_curve(scores, targets, is_seen, 3)
    positives = targets.sum(0)
    for i in range(0, len(curve.constants), 7):
        hits = curve.seen_recall[i] * positives[is_seen].sum() + curve.unseen_recall[i] * positives[~is_seen].sum()
        recall = precision_recall_f1_at_k(scores + curve.constants[i] * ~is_seen, targets, 3)[1]
        assert recall == pytest.approx(hits / positives.sum(), abs=1e-12)


def test_perfect_scores_with_room_for_both_sides_have_one_point_in_the_corner():
    targets = np.array([[1, 0, 1, 0], [0, 1, 0, 1]])
    curve = seen_unseen_curve(targets.astype(float), targets, np.array([True, True, False, False]), 4)
    assert (curve.constants.tolist(), curve.seen_recall.tolist(), curve.unseen_recall.tolist()) == ([0], [1], [1])
    assert curve.area == 0  # from one end to the other there is no way


@pytest.mark.parametrize("is_seen", [[True, True, True], [False] * 3, [True, False], [1, 0, 1]])
def test_a_partition_that_does_not_fit_is_refused(is_seen):
    message = r"is_seen must be \(3,\) bool with seen and unseen words, got .* seen; use vocabulary\.is_seen"
    with pytest.raises(ValueError, match=message):
        seen_unseen_curve(np.zeros((2, 3)), np.ones((2, 3), int), np.array(is_seen), 1)


@pytest.mark.parametrize("k", [0, 3])
def test_k_must_be_among_the_words(k):
    with pytest.raises(ValueError, match=rf"k must be between 1 and the 2 words, got {k}"):
        seen_unseen_curve(np.zeros((2, 2)), np.ones((2, 2), int), np.array([True, False]), k)


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match=r"scores must be numbers, got NaN first at image 0, word 1"):
        seen_unseen_curve(np.array([[0.0, np.nan]]), np.ones((1, 2), int), np.array([True, False]), 1)
