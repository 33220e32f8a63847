"""Every figure of a protocol: against the loops, whatever the order of images, the number of threads and the kind."""

import json
import tracemalloc

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsmld.evaluator.figures import evaluate_scores
from zsmld.metrics import (
    average_precision,
    chance_average_precision,
    harmonic_mean,
    mean_average_precision,
    seen_unseen_curve,
)
from zsmld.protocols import Protocol
from zsmld.vocabulary import Vocabulary

law = settings(max_examples=12)
seeds = st.integers(0, 2**32 - 1)

ALWAYS = {
    "mean_average_precision",
    "chance_mean_average_precision",
    "per_class_precision",
    "per_class_recall",
    "per_class_f1",
    "overall_precision",
    "overall_recall",
    "overall_f1",
    "ranking_loss",
    "coverage_error",
    "one_error",
    "label_ranking_average_precision",
    "num_images",
    "num_words",
    "labels_per_image",
    "policies",
    "words",
}
AT_K = {f"{prefix}{name}_at_" for prefix in ("", "per_class_") for name in ("precision", "recall", "f1")}
GZSL = {"seen_mean_average_precision", "unseen_mean_average_precision", "harmonic_mean"}


def problem(seed, images=25, num_words=9, tied=False):
    """Logits (M,N), targets with unknown entries, an empty word and empty rows, and a vocabulary with its partition."""
    rng = np.random.default_rng(seed)
    words = [f"word {i}" for i in range(num_words)]
    seen = [words[i] for i in rng.permutation(num_words)[: num_words // 2]]
    targets = rng.choice(np.array([1, 0, -1], np.int8), (images, num_words), p=[0.2, 0.7, 0.1])
    targets[: images // 4] = np.minimum(targets[: images // 4], 0)
    targets[:, rng.integers(num_words)] = 0
    logits = rng.integers(-8, 8, targets.shape) / 4 if tied else rng.standard_normal(targets.shape)
    return logits, targets, Vocabulary(words, seen=seen)


def without(figures, *names):
    return {part: {k: v for k, v in values.items() if k not in names} for part, values in figures.items()}


# ------------------------------------------------------------------------------------------------ what is computed


@pytest.mark.parametrize("keep_unlabelled", [True, False])
@pytest.mark.parametrize("empty_words", ["zero", "skip"])
@pytest.mark.parametrize("task", ["zsl", "gzsl", "seen", "supervised"])
@law
@given(seed=seeds, tied=st.booleans(), threshold=st.sampled_from([0.3, 0.5, 0.9]))
def test_every_figure_equals_its_loop(task, empty_words, keep_unlabelled, seed, tied, threshold):
    logits, targets, vocabulary = problem(seed, tied=tied)
    protocol = Protocol.named(
        task, empty_words=empty_words, keep_unlabelled=keep_unlabelled, threshold=threshold, top_k=(2, 3)
    )
    parts = evaluate_scores(logits, targets, vocabulary, protocol)
    assert list(parts) == (["zsl", "gzsl"] if task == "gzsl" else [task])
    for part, figures in parts.items():
        columns = {"zsl": ~vocabulary.is_seen, "seen": vocabulary.is_seen}.get(part, np.ones(9, bool))
        s, t = logits[:, columns], targets[:, columns]
        if not keep_unlabelled:
            rows = [i for i in range(len(t)) if 1 in t[i]]
            s, t = s[rows], t[rows]
        aps = average_precision(s, t)
        chance = np.where(np.isnan(aps), np.nan, chance_average_precision(t))
        expected = {
            "mean_average_precision": mean_average_precision(aps, empty_words),
            "chance_mean_average_precision": mean_average_precision(chance, empty_words),
            **oracles.ranking_figures(s, t),
            "num_images": len(t),
            "num_words": columns.sum(),
            "labels_per_image": (t == 1).sum() / len(t),
        }
        probabilities = 1 / (1 + np.exp(-s))
        reached = [np.flatnonzero((p >= threshold) & (b != -1)).tolist() for p, b in zip(probabilities, t, strict=True)]
        names = ("precision", "recall", "f1")
        expected |= dict(zip((f"overall_{n}" for n in names), oracles.overall_figures(reached, t), strict=True))
        classes = oracles.per_class_figures(reached, t, empty_words)
        expected |= dict(zip((f"per_class_{n}" for n in names), classes, strict=True))
        for k in (2, 3):
            best = [oracles.best_words(a, b, k) for a, b in zip(s, t, strict=True)]
            overall = oracles.precision_recall_f1_at_k(s, t, k)
            classes = oracles.per_class_figures(best, t, empty_words)
            expected |= dict(zip((f"{n}_at_{k}" for n in names), overall, strict=True))
            expected |= dict(zip((f"per_class_{n}_at_{k}" for n in names), classes, strict=True))
            if part == "gzsl":
                sides = []
                for side in (vocabulary.is_seen, ~vocabulary.is_seen):
                    hits = sum(t[i, j] == 1 for i, row in enumerate(best) for j in row if side[j])
                    sides.append(hits / max((t[:, side] == 1).sum(), 1))
                expected |= {f"seen_recall_at_{k}": sides[0], f"unseen_recall_at_{k}": sides[1]}
                expected[f"harmonic_mean_recall_at_{k}"] = harmonic_mean(*sides)
        if part == "gzsl":
            seen, unseen = (
                mean_average_precision(aps[side], empty_words) for side in (vocabulary.is_seen, ~vocabulary.is_seen)
            )
            expected |= {
                "seen_mean_average_precision": seen,
                "unseen_mean_average_precision": unseen,
                "harmonic_mean": harmonic_mean(seen, unseen),
                "seen_unseen_curve_area_at_2": seen_unseen_curve(s, t, vocabulary.is_seen, 2).area,
            }
        for name, value in expected.items():
            assert figures[name] == pytest.approx(value, abs=1e-12), (part, name)
        assert set(figures) == set(expected) | {"policies", "words"}


def test_the_names_of_all_figures():
    logits, targets, vocabulary = problem(0)
    at = {f"{name}{k}" for name in AT_K for k in (3, 5)}
    parts = evaluate_scores(logits, targets, vocabulary, Protocol.named("gzsl"))
    assert set(parts["zsl"]) == ALWAYS | at  # five unseen words
    sides = {f"{side}_recall_at_" for side in ("seen", "unseen", "harmonic_mean")}
    of_sides = {f"{name}{k}" for name in sides for k in (3, 5)}
    assert set(parts["gzsl"]) == ALWAYS | GZSL | at | of_sides | {"seen_unseen_curve_area_at_3"}
    wide = evaluate_scores(logits, targets, vocabulary, Protocol.named("gzsl", top_k=(10, 3)))
    assert set(wide["gzsl"]) == ALWAYS | GZSL | {
        f"{name}3" for name in {*AT_K, *sides}
    }  # no curve at ten of nine words
    none = evaluate_scores(logits, targets, vocabulary, Protocol.named("gzsl", top_k=(10,)))
    assert set(none["zsl"]) == ALWAYS


@pytest.mark.parametrize("method", ["exact", "legacy", "integral", "11point"])
@pytest.mark.parametrize("keep_unlabelled", [True, False])
def test_words_have_the_average_precision_of_the_protocols_method(method, keep_unlabelled):
    logits, targets, vocabulary = problem(4, tied=True)
    protocol = Protocol.named("gzsl", average_precision=method, keep_unlabelled=keep_unlabelled)
    for part, figures in evaluate_scores(logits, targets, vocabulary, protocol).items():
        columns = ~vocabulary.is_seen if part == "zsl" else np.ones(9, bool)
        rows = (targets[:, columns] == 1).any(1) | keep_unlabelled
        expected = average_precision(logits[rows][:, columns], targets[rows][:, columns], method)
        found = [
            np.nan if w["average_precision"] is None else w["average_precision"] for w in figures["words"].values()
        ]
        np.testing.assert_array_equal(found, expected)


def test_single_label_protocols_have_top_k_accuracies():
    rng = np.random.default_rng(0)
    present = rng.integers(0, 9, 60)
    targets, vocabulary = np.eye(9, dtype=np.int8)[present], problem(0)[2]
    logits = rng.standard_normal((60, 9)) + 2 * targets
    figures = evaluate_scores(logits, targets, vocabulary, Protocol.named("single_label", top_k=(1, 5)))["single_label"]
    order = np.argsort(-logits, axis=1)
    for k in (1, 5):
        assert figures[f"top_{k}_accuracy"] == np.mean([present[i] in order[i, :k] for i in range(60)])
        assert figures[f"top_{k}_accuracy"] == pytest.approx(figures[f"recall_at_{k}"])
    assert figures["top_1_accuracy"] == pytest.approx(1 - figures["one_error"])
    assert set(figures) == ALWAYS | {f"{name}{k}" for name in AT_K for k in (1, 5)} | {
        "top_1_accuracy",
        "top_5_accuracy",
    }


def test_single_label_protocols_refuse_images_with_none_or_several_words():
    vocabulary = Vocabulary(["a", "b", "c"])
    logits, targets = np.zeros((3, 3)), np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1]])
    with pytest.raises(ValueError, match=r"targets must have exactly one present word an image .*, got 1 to 2; leave"):
        evaluate_scores(logits, targets, vocabulary, Protocol.named("single_label", top_k=(1,)))
    targets[1] = 0
    with pytest.raises(ValueError, match=r"exactly one present word an image .*, got 0 to 1"):
        evaluate_scores(logits, targets, vocabulary, Protocol.named("single_label", top_k=(1,)))
    dropped = Protocol.named("single_label", top_k=(1,), keep_unlabelled=False)
    assert evaluate_scores(logits, targets, vocabulary, dropped)["single_label"]["top_1_accuracy"] == 0.5


# -------------------------------------------------------------------------------------------------- logits or scores


@law
@given(seed=seeds, threshold=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_logits_and_their_sigmoids_have_the_same_figures_but_for_the_curve(seed, threshold):
    logits, targets, vocabulary = problem(seed)
    protocol = Protocol.named("gzsl", threshold=threshold, top_k=(3,))
    scores = 1 / (1 + np.exp(-logits))
    from_logits = evaluate_scores(logits, targets, vocabulary, protocol, kind="logits")
    from_scores = evaluate_scores(scores, targets, vocabulary, protocol, kind="scores")
    area = "seen_unseen_curve_area_at_3"
    assert without(from_scores, area) == without(from_logits, area)
    assert from_scores["gzsl"][area] == seen_unseen_curve(scores, targets, vocabulary.is_seen, 3).area


def test_the_threshold_is_a_probability_of_logits_and_a_score_of_scores():
    vocabulary, targets = Vocabulary(["a", "b"]), np.array([[1, 1]])
    values = np.array([[0.4, 0.6]])
    for kind, expected in (("logits", 1.0), ("scores", 0.5)):  # sigmoid(0.4) is above one half
        figures = evaluate_scores(values, targets, vocabulary, Protocol.named("supervised"), kind=kind)["supervised"]
        assert figures["overall_recall"] == expected
    figures = evaluate_scores(values, targets, vocabulary, Protocol.named("supervised", threshold=0.62))["supervised"]
    assert figures["overall_recall"] == 0.5  # sigmoid(0.6) = 0.646, sigmoid(0.4) = 0.599


def test_at_the_ends_of_the_threshold_every_word_or_none_is_given():
    logits, targets, vocabulary = problem(0)
    share = (targets == 1).sum() / (targets != -1).sum()
    everything, nothing = (
        evaluate_scores(logits, targets, vocabulary, Protocol.named("supervised", threshold=threshold))["supervised"]
        for threshold in (0, 1)
    )
    assert (everything["overall_recall"], everything["overall_precision"]) == (1, pytest.approx(share))
    assert (nothing["overall_recall"], nothing["overall_precision"], nothing["per_class_f1"]) == (0, 0, 0)


def test_scores_outside_the_unit_interval_are_refused_by_name_and_never_guessed_to_be_logits():
    logits, targets, vocabulary = problem(0)
    scores = np.full(logits.shape, 0.5)
    scores[3, 2], scores[9, 0] = 1.25, -3
    message = r"scores must lie in \[0, 1\] when kind='scores', got 1\.25 first at image 3, word 2; pass kind='logits'"
    with pytest.raises(ValueError, match=message):
        evaluate_scores(scores, targets, vocabulary, Protocol.named("gzsl"), kind="scores")
    scores[3, 2] = 1
    with pytest.raises(ValueError, match=r"got -3\.0 first at image 9, word 0"):
        evaluate_scores(scores, targets, vocabulary, Protocol.named("gzsl"), kind="scores")
    with pytest.raises(
        ValueError, match=r"kind must be 'logits' or 'scores', got 'probabilities'; it is never guessed"
    ):
        evaluate_scores(scores, targets, vocabulary, Protocol.named("gzsl"), kind="probabilities")


def test_scores_at_both_ends_of_the_unit_interval_are_scores():
    _, targets, vocabulary = problem(0)
    figures = evaluate_scores((targets == 1) * 1.0, targets, vocabulary, Protocol.named("supervised"), kind="scores")
    assert figures["supervised"]["overall_f1"] == 1


# -------------------------------------------------------------------------------------------------- bits and bytes


@pytest.mark.parametrize("keep_unlabelled", [True, False])
def test_threads_chunks_and_the_order_of_images_change_no_bit(keep_unlabelled, monkeypatch):
    logits, targets, vocabulary = problem(7, images=900, num_words=31)
    logits = logits.astype(np.float32)
    protocol = Protocol.named("gzsl", keep_unlabelled=keep_unlabelled)
    figures = evaluate_scores(logits, targets, vocabulary, protocol, num_threads=1)
    order = np.random.default_rng(0).permutation(900)
    assert evaluate_scores(logits[order], targets[order], vocabulary, protocol) == figures
    for chunk, block, threads in ((31 * 7, 1, 2), (1, 1, 3), (31 * 450, 2**20, 2)):
        monkeypatch.setattr("zsmld.metrics.arrays._CHUNK", chunk)
        monkeypatch.setattr("zsmld.metrics.words._BLOCK", block)
        assert evaluate_scores(logits, targets, vocabulary, protocol, num_threads=threads) == figures


@law
@given(seed=seeds)
def test_the_order_of_words_changes_no_bit_where_no_scores_are_tied(seed):
    logits, targets, vocabulary = problem(seed)
    protocol = Protocol.named("gzsl")
    order = np.random.default_rng(seed).permutation(9)
    moved = vocabulary.select([vocabulary.words[i] for i in order])
    assert evaluate_scores(logits[:, order], targets[:, order], moved, protocol) == evaluate_scores(
        logits, targets, vocabulary, protocol
    )


@law
@given(seed=seeds)
def test_the_precision_and_the_memory_order_of_equal_numbers_change_no_bit(seed):
    logits, targets, vocabulary = problem(seed, tied=True)  # quarters are exact in half precision, too
    protocol = Protocol.named("gzsl", keep_unlabelled=False)
    figures = evaluate_scores(logits, targets, vocabulary, protocol)
    for values in (logits.astype(np.float16), logits.astype(np.float32), np.asfortranarray(logits)):
        assert evaluate_scores(values, targets, vocabulary, protocol) == figures
    for truth in (targets.astype(np.int64), targets.astype(float), np.asfortranarray(targets)):
        assert evaluate_scores(logits, truth, vocabulary, protocol) == figures


@law
@given(seed=seeds, keep_unlabelled=st.booleans())
def test_figures_are_plain_finite_numbers_and_the_arrays_stay_as_they_are(seed, keep_unlabelled):
    logits, targets, vocabulary = problem(seed, images=8)
    targets[-1] = 1  # an image that has every word
    before = logits.copy(), targets.copy()
    for task in ("gzsl", "supervised", "seen"):
        figures = evaluate_scores(logits, targets, vocabulary, Protocol.named(task, keep_unlabelled=keep_unlabelled))
        assert json.loads(json.dumps(figures, allow_nan=False)).keys() == figures.keys()
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(targets, before[1])


def test_without_any_positive_every_figure_is_still_a_number():
    logits, targets, vocabulary = problem(0)
    for nothing in (np.zeros_like(targets), np.full_like(targets, -1)):
        for policy in ("zero", "skip"):
            figures = evaluate_scores(logits, nothing, vocabulary, Protocol.named("gzsl", empty_words=policy))
            json.dumps(figures, allow_nan=False)
            assert figures["gzsl"]["mean_average_precision"] == figures["gzsl"]["f1_at_3"] == 0


def test_infinite_logits_are_numbers():
    logits, targets, vocabulary = problem(2)
    huge = np.where(logits > 1, np.inf, np.where(logits < -1, -np.inf, logits))
    json.dumps(evaluate_scores(huge, targets, vocabulary, Protocol.named("gzsl")), allow_nan=False)


def test_all_figures_need_less_memory_than_the_scores_themselves():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((24_000, 500), dtype=np.float32)  # 48 MB
    targets = (rng.random(logits.shape, dtype=np.float32) < 0.01).astype(np.int8)
    words = [str(i) for i in range(500)]
    vocabulary = Vocabulary(words, seen=words[:400])
    for keep_unlabelled in (True, False):
        tracemalloc.start()
        evaluate_scores(logits, targets, vocabulary, Protocol.named("gzsl", keep_unlabelled=keep_unlabelled))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < logits.nbytes


# ------------------------------------------------------------------------------------------------- the real labels


@pytest.mark.parametrize("keep_unlabelled, labels_per_image", [(True, 1.876), (False, 2.412)])
def test_the_two_test_sets_of_the_literature(real, keep_unlabelled, labels_per_image):
    arrays = np.load(real / "nus_wide" / "ground_truth_81.npz")
    concepts = [str(concept) for concept in arrays["concepts"]]
    targets = np.unpackbits(arrays["test"], axis=1)[:, :81].astype(np.int8)
    scores = np.random.default_rng(0).random(targets.shape, dtype=np.float32)
    vocabulary, protocol = Vocabulary(concepts), Protocol.named("supervised", keep_unlabelled=keep_unlabelled)
    figures = evaluate_scores(scores, targets, vocabulary, protocol, kind="scores")["supervised"]
    assert round(figures["labels_per_image"], 3) == labels_per_image
    assert figures["num_images"] == (107_859 if keep_unlabelled else targets.any(1).sum())
    # Random scores: precision at K tends to the share of labels, recall to K over the words, LRAP stays far from one.
    assert figures["precision_at_3"] == pytest.approx(labels_per_image / 81, rel=0.05)
    assert figures["recall_at_3"] == pytest.approx(3 / 81, rel=0.05)
    assert figures["mean_average_precision"] == pytest.approx(figures["chance_mean_average_precision"], rel=0.05)


# ---------------------------------------------------------------------------------------------------------- errors


def test_what_does_not_fit_is_refused_by_name():
    logits, targets, vocabulary = problem(0)
    gzsl = Protocol.named("gzsl")
    broken = logits.copy()
    broken[20, 4] = np.nan
    with pytest.raises(ValueError, match=r"scores must be numbers, got NaN first at image 20, word 4; check the model"):
        evaluate_scores(broken, targets, vocabulary, gzsl)
    with pytest.raises(ValueError, match=r"scores and targets must be \(M, 9\), .*, got \(25, 8\) and \(25, 9\)"):
        evaluate_scores(logits[:, :8], targets, vocabulary, gzsl)
    with pytest.raises(ValueError, match=r"must both be \(M, N\) and not empty, got \(0, 9\) and \(0, 9\)"):
        evaluate_scores(logits[:0], targets[:0], vocabulary, gzsl)
    with pytest.raises(ValueError, match=r"targets must be 1, 0 or -1, got \[-1, 0, 1, 2\]; convert them"):
        evaluate_scores(logits, np.where(np.arange(25)[:, None] == 3, 2, targets), vocabulary, gzsl)
    with pytest.raises(TypeError, match=r"scores must be real numbers, got dtype <U3"):
        evaluate_scores(np.full(logits.shape, "0.5"), targets, vocabulary, gzsl)
    with pytest.raises(ValueError, match=r"protocol nus_wide_gzsl needs 925 seen and 81 unseen words, .* has 4 and 5"):
        evaluate_scores(logits, targets, vocabulary, Protocol.named("nus_wide_gzsl"))
    message = r"targets must have images with a ranked word when keep_unlabelled=False, none of 25 has in zsl; use keep"
    with pytest.raises(ValueError, match=message):
        evaluate_scores(
            logits, np.minimum(targets, vocabulary.is_seen), vocabulary, Protocol.named("gzsl", keep_unlabelled=False)
        )
