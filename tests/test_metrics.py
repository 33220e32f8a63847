"""Average precision and the overall figures at K: against loops, scikit-learn and torchmetrics, on random, tied,
all-positive and partly unknown data."""

import warnings

import numpy as np
import oracles
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score

from zsmld.metrics import (
    average_precision,
    chance_average_precision,
    harmonic_mean,
    mean_average_precision,
    precision_recall_f1_at_k,
)

law = settings(max_examples=30)

shapes = st.tuples(st.integers(1, 12), st.integers(1, 5))
kinds = st.sampled_from(["random", "tied", "constant"])
labels = st.sampled_from([(1, 0), (1, 0, -1), (1,), (1, -1), (0,), (0, -1), (-1,)])


@st.composite
def problems(draw, kind=kinds, labels=labels):
    """Scores (M,N) and targets (M,N)."""
    shape = draw(shapes)
    elements = {
        "random": st.floats(-1e6, 1e6),
        "tied": st.integers(-2, 2).map(float),
        "constant": st.just(0.5),
    }[draw(kind)]
    scores = draw(arrays(np.float64, shape, elements=elements))
    return scores, draw(arrays(np.int8, shape, elements=st.sampled_from(draw(labels))))


def distinct(seed, images=30, words=4):
    """Scores in (0,1) without ties, and targets with unknown entries."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(images * words).reshape(images, words) / (images * words + 1)
    return scores, rng.integers(-1, 2, (images, words))


# -------------------------------------------------------------------------------------------- average precision


@law
@given(problems())
@example((np.array([[1.0], [1.0], [0.0]]), np.array([[1], [0], [1]])))
def test_average_precision_equals_scikit_learn_and_the_loops_on_known_entries(problem):
    scores, targets = problem
    result = average_precision(scores, targets)
    for word in range(scores.shape[1]):
        known = targets[:, word] != -1
        present = targets[known, word] == 1
        if not present.any():
            assert np.isnan(result[word])
            continue
        assert result[word] == pytest.approx(average_precision_score(present, scores[known, word]), abs=1e-12)
        assert result[word] == pytest.approx(oracles.average_precision(scores[known, word], present), abs=1e-12)


RANKED = {
    "legacy": oracles.legacy_average_precision,
    "integral": oracles.integral_average_precision,
    "11point": oracles.eleven_point_average_precision,
}


@pytest.mark.parametrize("method", RANKED)
@law
@given(problems())
def test_methods_that_rank_tied_images_equal_their_loops(method, problem):
    scores, targets = problem
    result = average_precision(scores, targets, method)
    for word in range(scores.shape[1]):
        known = targets[:, word] != -1
        present = targets[known, word] == 1
        if present.any():
            expected = RANKED[method](scores[known, word], present)
            assert result[word] == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(result[word])


@pytest.mark.parametrize("method", RANKED)
@pytest.mark.parametrize("num_values", [3, 40, 100_000])
def test_ranks_among_ties_equal_the_loops_on_many_images(method, num_values):
    """From nearly everything tied to nearly nothing, in the precision in which random scores do tie."""
    rng = np.random.default_rng(num_values)
    scores = rng.integers(0, num_values, (3000, 2)).astype(np.float32)
    targets = (rng.random(scores.shape) < [0.3, 0.01]).astype(np.int8)
    expected = [RANKED[method](scores[:, word].tolist(), targets[:, word].tolist()) for word in range(2)]
    np.testing.assert_allclose(average_precision(scores, targets, method), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_positives", [1, 2, 7, 10, 20, 101])
def test_eleven_recalls_are_reached_by_whole_numbers_of_positives(num_positives):
    """0.3 of ten positives is three of them, whatever 0.3 is in binary."""
    rng = np.random.default_rng(num_positives)
    present = rng.permutation(np.arange(300) < num_positives)
    scores = rng.permutation(300).astype(float)
    expected = oracles.eleven_point_average_precision(scores, present)
    assert average_precision(scores[:, None], present[:, None], "11point")[0] == pytest.approx(expected, abs=1e-12)


def test_without_ties_integral_is_exact_and_eleven_points_are_no_less_than_a_coarser_view_of_it():
    scores, targets = distinct(0, images=200)
    exact = average_precision(scores, targets)
    np.testing.assert_allclose(average_precision(scores, targets, "integral"), exact, atol=1e-12)
    assert (np.abs(average_precision(scores, targets, "11point") - exact) < 0.1).all()
    assert (average_precision(scores, targets, "11point") != exact).all()


def test_integral_puts_gains_of_a_millionth_together():
    """Above a million positives one alone gains less than PaddleClas counts."""
    present = np.ones(1_100_000, np.int8)
    present[0] = present[5::1000] = 0
    scores = -np.arange(len(present), dtype=np.float64)
    expected = oracles.integral_average_precision(scores.tolist(), present.tolist())
    result = average_precision(scores[:, None], present[:, None], "integral")[0]
    assert result == pytest.approx(expected, abs=1e-12)
    assert abs(result - average_precision(scores[:, None], present[:, None])[0]) > 1e-9


@law
@given(st.integers(0, 2**32 - 1))
def test_without_ties_the_two_methods_differ_by_the_epsilon_alone(seed):
    scores, targets = distinct(seed)
    exact, legacy = average_precision(scores, targets), average_precision(scores, targets, "legacy")
    np.testing.assert_allclose(exact, legacy, atol=1e-7)


def test_with_ties_the_legacy_method_depends_on_the_order_of_images_and_the_exact_one_does_not():
    scores, targets = np.zeros((6, 1)), np.array([[1], [0], [0], [1], [0], [0]])
    order = [1, 2, 4, 5, 0, 3]
    assert average_precision(scores, targets) == average_precision(scores[order], targets[order])
    legacy = average_precision(scores, targets, "legacy"), average_precision(scores[order], targets[order], "legacy")
    assert legacy[0] < legacy[1]


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_torchmetrics_on_untied_data(seed):
    from torchmetrics.classification import MultilabelAveragePrecision

    scores, targets = distinct(seed)
    metric = MultilabelAveragePrecision(scores.shape[1], average=None, ignore_index=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = metric(torch.from_numpy(scores).float(), torch.from_numpy(targets))
    np.testing.assert_allclose(average_precision(scores, targets), theirs.numpy(), atol=1e-6)


STRICTLY_MONOTONE = {
    "affine": lambda x: 3 * x + 7,
    "exponential": lambda x: np.exp(x / 4),
    "cubic": lambda x: x**3,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x / 4)),
    "fp32": lambda x: x.astype(np.float32),
    "fp16": lambda x: x.astype(np.float16),
    "integers": lambda x: x.astype(np.int64),
}


@pytest.mark.parametrize("name", STRICTLY_MONOTONE)
@law
@given(
    scores=arrays(np.float64, (9, 3), elements=st.integers(-20, 20).map(float)),
    targets=arrays(np.int8, (9, 3), elements=st.sampled_from([1, 0, -1])),
    k=st.integers(1, 3),
)
def test_only_the_order_of_scores_matters(name, scores, targets, k):
    moved = STRICTLY_MONOTONE[name](scores)
    for method in ("exact", *RANKED):
        np.testing.assert_array_equal(
            average_precision(moved, targets, method), average_precision(scores, targets, method)
        )
    assert precision_recall_f1_at_k(moved, targets, k) == precision_recall_f1_at_k(scores, targets, k)


@law
@given(problems(labels=st.sampled_from([(1, 0), (1, 0, -1)])), st.randoms(use_true_random=False))
def test_the_order_of_images_is_nothing_and_the_order_of_words_is_the_order_of_results(problem, random):
    scores, targets = problem
    images, words = list(range(scores.shape[0])), list(range(scores.shape[1]))
    random.shuffle(images)
    random.shuffle(words)
    result = average_precision(scores, targets)
    np.testing.assert_array_equal(average_precision(scores[images], targets[images]), result)
    np.testing.assert_array_equal(average_precision(scores[:, words], targets[:, words]), result[words])
    if not np.isnan(result).all():
        assert mean_average_precision(result[words], "skip") == mean_average_precision(result, "skip")


@law
@given(problems(labels=st.sampled_from([(1, 0), (1, 0, -1), (1,)])))
def test_average_precision_is_between_the_worst_ranking_and_one(problem):
    scores, targets = problem
    result, share = average_precision(scores, targets), chance_average_precision(targets)
    for word in np.flatnonzero(~np.isnan(result)):
        assert 0 < result[word] <= 1
        if (
            len(set(scores[targets[:, word] != -1, word])) == 1
        ):  # one threshold: its precision is the share of positives
            assert result[word] == pytest.approx(share[word], abs=1e-12)


@law
@given(arrays(np.int8, (10, 4), elements=st.sampled_from([1, 0, -1])))
def test_a_perfect_ranking_has_average_precision_one(targets):
    result = average_precision(targets.astype(float), targets)
    assert (np.isnan(result) | (result == 1)).all()
    assert (np.isnan(result) == ~(targets == 1).any(0)).all()


@law
@given(problems(), st.floats(-1e3, 1e3))
def test_scores_of_unknown_entries_have_no_say(problem, value):
    scores, targets = problem
    moved = np.where(targets == -1, value, scores)
    np.testing.assert_array_equal(average_precision(moved, targets), average_precision(scores, targets))
    for k in range(1, scores.shape[1] + 1):
        assert precision_recall_f1_at_k(moved, targets, k) == precision_recall_f1_at_k(scores, targets, k)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("infinity", [np.inf, -np.inf])
def test_tied_infinite_scores_share_a_threshold(infinity):
    """fp16 logits overflow to infinity; the order of images must not decide then."""
    scores, targets = np.array([[infinity], [infinity], [0.0]]), np.array([[1], [0], [1]])
    order = [1, 0, 2]
    assert average_precision(scores, targets) == average_precision(scores[order], targets[order])


@pytest.mark.parametrize("method", ["exact", *RANKED])
def test_unknown_entries_do_not_tie_with_infinite_scores(method):
    scores, targets = np.array([[np.inf], [np.inf], [-np.inf]]), np.array([[1], [-1], [0]])
    for score in (np.inf, 0.0, -np.inf):
        scores[1] = score
        assert average_precision(scores, targets, method)[0] == pytest.approx(1, abs=1e-7)
    scores[0] = -np.inf  # tied with the negative alone, which is the later image
    assert average_precision(scores, targets, method)[0] == pytest.approx(0.5, abs=1e-7)


def test_unsigned_scores_rank_as_they_are():
    scores, targets = np.array([[2], [0], [1]], np.uint8), np.array([[1], [0], [0]])
    assert average_precision(scores, targets) == 1


@pytest.mark.parametrize("method", ["exact", *RANKED])
def test_threads_blocks_and_memory_order_change_no_bit(method, monkeypatch):
    rng = np.random.default_rng(5)
    scores = rng.integers(0, 500, (400, 37)).astype(np.float32)
    targets = rng.choice(np.array([1, 0, -1], np.int8), scores.shape, p=[0.1, 0.8, 0.1])
    before = scores.copy(), targets.copy()
    result = average_precision(scores, targets, method, num_threads=1)
    np.testing.assert_array_equal(average_precision(scores, targets, method, num_threads=2), result)
    fortran = np.asfortranarray(scores), np.asfortranarray(targets)
    np.testing.assert_array_equal(average_precision(*fortran, method), result)
    wide = np.repeat(scores, 2, axis=1)[:, ::2], np.repeat(targets, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(average_precision(*wide, method), result)
    monkeypatch.setattr("zsmld.metrics.words._BLOCK", 1)  # as few words a block as there may be
    monkeypatch.setattr("zsmld.metrics.arrays._CHUNK", 100)
    np.testing.assert_array_equal(average_precision(scores, targets, method, num_threads=2), result)
    np.testing.assert_array_equal((scores, targets), before)  # and the arrays stay as they are


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1)])
def test_arrays_that_need_no_copy_are_not_written_to(shape):
    scores, targets = np.full(shape, 0.5), np.full(shape, -1)
    targets[0, 0] = 1
    average_precision(scores, targets)
    precision_recall_f1_at_k(scores, targets, 1)
    assert (scores == 0.5).all()


def test_average_precision_of_a_constant_score_on_the_real_labels_is_their_share(real):
    arrays_on_file = np.load(real / "nus_wide" / "ground_truth_81.npz")
    targets = np.unpackbits(arrays_on_file["test"], axis=1)[:, :81]
    result = average_precision(np.zeros(targets.shape, np.float32), targets)
    np.testing.assert_allclose(result, chance_average_precision(targets), rtol=0, atol=1e-12)


def test_the_share_of_unsigned_targets_with_gaps_in_memory():
    """numpy 2.0 to 2.2.5 end the process when such an array is compared with −1, which it cannot hold."""
    packed = np.random.default_rng(0).integers(0, 256, (20_000, 11), np.uint8)
    targets = np.unpackbits(packed, axis=1)[:, :81]
    np.testing.assert_array_equal(chance_average_precision(targets), targets.mean(0))


# ------------------------------------------------------------------------------------------------------- policies


@law
@given(st.lists(st.one_of(st.floats(0, 1, allow_subnormal=False), st.just(float("nan"))), min_size=1, max_size=8))
def test_empty_words_count_as_zero_or_not_at_all(values):
    aps = np.array(values)
    known = [value for value in values if value == value]
    assert mean_average_precision(aps) == pytest.approx(sum(known) / len(values), abs=1e-12)
    assert mean_average_precision(aps, "skip") == pytest.approx(sum(known) / len(known) if known else 0.0, abs=1e-12)
    assume(known and len(known) < len(values) and sum(known) > 0)
    assert mean_average_precision(aps, "zero") < mean_average_precision(aps, "skip")


@law
@given(arrays(np.int8, shapes, elements=st.sampled_from([1, 0, -1])))
def test_chance_equals_the_loops(targets):
    np.testing.assert_allclose(chance_average_precision(targets), oracles.chance(targets.tolist()), atol=1e-12)


def test_random_scores_tend_to_chance():
    rng = np.random.default_rng(0)
    targets = np.where(rng.random((3000, 6)) < 0.1, -1, rng.random((3000, 6)) < [0.05, 0.1, 0.2, 0.5, 0.8, 1.0])
    drawn = np.mean([average_precision(rng.random(targets.shape), targets) for _ in range(5)], 0)
    np.testing.assert_allclose(drawn, chance_average_precision(targets), atol=0.02)


# ----------------------------------------------------------------------------------------------------------- at k


@law
@given(problems(), st.integers(1, 5))
def test_precision_recall_and_f1_at_k_equal_the_loops(problem, k):
    scores, targets = problem
    assume(k <= scores.shape[1])
    expected = oracles.precision_recall_f1_at_k(scores.tolist(), targets.tolist(), k)
    assert precision_recall_f1_at_k(scores, targets, k) == pytest.approx(expected, abs=1e-12)


@law
@given(problems(labels=st.sampled_from([(1, 0), (1, 0, -1)])))
def test_recall_grows_with_k_until_everything_is_given(problem):
    scores, targets = problem
    recalls = [precision_recall_f1_at_k(scores, targets, k)[1] for k in range(1, scores.shape[1] + 1)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == ((targets == 1).any())


def test_ties_go_to_the_first_label():
    targets = np.array([[0, 1, 0], [0, 1, 0]])
    assert precision_recall_f1_at_k(np.zeros((2, 3)), targets, 1) == (0, 0, 0)
    assert precision_recall_f1_at_k(np.zeros((2, 3)), targets, 2) == pytest.approx((0.5, 1, 2 / 3))


@law
@given(st.floats(0, 1), st.floats(0, 1))
def test_harmonic_mean_is_symmetric_and_between(a, b):
    mean = harmonic_mean(a, b)
    assert mean == harmonic_mean(b, a)
    if min(a, b) > 1e-6:
        assert min(a, b) * (1 - 1e-12) <= mean <= (a * b) ** 0.5 * (1 + 1e-12) <= max(a, b) * (1 + 1e-9)
        assert 1 / mean == pytest.approx((1 / a + 1 / b) / 2, rel=1e-9)
    assert harmonic_mean(a, 0.0) == 0.0


# --------------------------------------------------------------------------------------------------------- errors


def at_two(scores, targets):
    return precision_recall_f1_at_k(scores, targets, 2)


@pytest.mark.parametrize("metric", [average_precision, at_two])
def test_wrong_arrays_are_refused_by_every_metric(metric):
    scores, targets = np.zeros((4, 3)), np.ones((4, 3), int)
    broken = scores.copy()
    broken[2, 1] = broken[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"scores must be numbers, got NaN first at image 2, word 1; check the model"):
        metric(broken, targets)
    with pytest.raises(ValueError, match=r"scores and targets must both be \(M, N\) .*, got \(4, 3\) and \(4, 2\)"):
        metric(scores, targets[:, :2])
    with pytest.raises(
        ValueError, match=r"must both be \(M, N\) and not empty, got \(3,\) and \(3,\); give one row an"
    ):
        metric(scores[0], targets[0])
    with pytest.raises(ValueError, match=r"must both be \(M, N\) and not empty, got \(0, 3\) and \(0, 3\)"):
        metric(scores[:0], targets[:0])
    with pytest.raises(ValueError, match=r"targets must be 1, 0 or -1, got \[1, 2\]; convert them"):
        metric(scores, targets + (scores == 0) * np.eye(4, 3, dtype=int))
    with pytest.raises(ValueError, match=r"targets must be 1, 0 or -1"):
        metric(scores, np.full((4, 3), 0.5))
    with pytest.raises(ValueError, match=r"targets must be 1, 0 or -1, got \[3\]"):
        metric(scores, np.full((4, 3), 3, np.uint8))
    with pytest.raises(TypeError, match=r"scores must be real numbers, got dtype complex128; convert them to float32"):
        metric(scores + 0j, targets)


def test_the_first_wrong_score_of_many_images_is_named(monkeypatch):
    monkeypatch.setattr("zsmld.metrics.arrays._CHUNK", 6)  # chunks of two images
    scores = np.zeros((9, 3), np.float32)
    scores[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"got NaN first at image 7, word 2"):
        average_precision(scores, np.ones((9, 3), int))


@pytest.mark.parametrize("num_threads", [0, -1])
def test_a_number_of_threads_is_at_least_one(num_threads):
    with pytest.raises(ValueError, match=rf"num_threads must be ≥ 1, or None for every core, got {num_threads}"):
        average_precision(np.zeros((2, 1)), np.ones((2, 1), int), num_threads=num_threads)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_must_be_among_the_words(k):
    with pytest.raises(ValueError, match=rf"k must be between 1 and the 3 words, got {k}; choose a smaller k"):
        precision_recall_f1_at_k(np.zeros((4, 3)), np.ones((4, 3), int), k)


def test_unknown_policies_are_refused():
    with pytest.raises(
        ValueError, match=r"method must be 'exact', 'legacy', 'integral' or '11point', got 'area'; published"
    ):
        average_precision(np.zeros((2, 1)), np.ones((2, 1), int), "area")
    with pytest.raises(ValueError, match=r"empty_words must be 'zero' or 'skip', got 'drop'; most papers use 'zero'"):
        mean_average_precision(np.ones(2), "drop")
