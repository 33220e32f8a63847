"""Calibration: laws of calibrated logits, choices against brute force, what is stored, and what is never touched."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import csr_matrix
from sklearn.calibration import _sigmoid_calibration

from zsmld import Vocabulary, ZeroShotClassifier
from zsmld.calibration import Calibration, calibrate, choose_calibration
from zsmld.datasets import ids_digest
from zsmld.datasets.scenes import Scenes
from zsmld.metrics import average_precision
from zsmld.resources import resource_path

KINDS = ["none", "per_image", "per_word", "both"]
WORDS = tuple("abcdefghijkl")
HELDOUT = ("b", "f", "k")
TRAINED = tuple(word for word in WORDS if word not in HELDOUT)
IS_TRAINED = np.array([word in TRAINED for word in WORDS])


def problem(seed: int = 0, num_images: int = 60, unknown: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Logits and targets of `WORDS`: held-out words score lower, each image and each word in its own units."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_images, len(WORDS))) < 0.25).astype(np.int8)
    logits = 1.5 * targets + rng.standard_normal(targets.shape) - 1.2 * ~IS_TRAINED
    logits = logits * rng.uniform(0.5, 2, len(WORDS)) + rng.normal(0, 1, (num_images, 1))
    targets[rng.random(targets.shape) < unknown] = -1
    return logits.astype(np.float32), targets


def make(kind: str, **changes: Any) -> Calibration:
    """A calibration with statistics, constants and thresholds that are all different."""
    rng = np.random.default_rng(5)
    by_image = kind in ("per_image", "both")
    statistics = {word: (float(rng.normal()), float(rng.uniform(0.5, 2))) for word in TRAINED}
    options: dict[str, Any] = {
        "standardization": kind,
        "trained_words": TRAINED,
        "stacking": 0.7,
        "reference_words": ("d", "a", "h", "l") if by_image else (),
        "word_statistics": statistics if kind in ("per_word", "both") else {},
        "default_statistics": (0.3, 1.1),
        "scale": 1.7,
        "bias": -0.4,
        "thresholds": {"a": 0.5, "c": -1.25, "d": math.inf},
        "default_threshold": 0.25,
    }
    return Calibration(**(options | changes))


def by_hand(calibration: Calibration, logits: np.ndarray, words: tuple[str, ...], reference: np.ndarray) -> list:
    """Calibrated logits, one number after the other, in plain Python."""

    def mean_and_deviation(values: list[float]) -> tuple[float, float]:
        mean = math.fsum(values) / len(values)
        return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))

    def by_word(value: float, word: str, column: list[float]) -> float:
        if calibration.standardization not in ("per_word", "both"):
            return value
        mean, deviation = calibration.word_statistics.get(word, calibration.default_statistics)
        if calibration.transductive:
            mean, deviation = mean_and_deviation(column)
        return (value - mean) / deviation

    rows = []
    for i, row in enumerate(logits.tolist()):
        values = [
            by_word(value, word, logits[:, j].tolist()) for j, (value, word) in enumerate(zip(row, words, strict=True))
        ]
        if calibration.standardization in ("per_image", "both"):
            others = [
                by_word(value, word, reference[:, j].tolist())
                for j, (value, word) in enumerate(zip(reference[i].tolist(), calibration.reference_words, strict=True))
            ]
            mean, deviation = mean_and_deviation(others)
            values = [(value - mean) / deviation for value in values]
        constants = [0.0 if word in calibration.trained_words else calibration.stacking for word in words]
        rows.append([value + constant for value, constant in zip(values, constants, strict=True)])
    return rows


# ---------------------------------------------------------------------------------------- laws of calibrated logits


@pytest.mark.parametrize("transductive", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_calibrated_logits_against_a_loop(kind: str, transductive: bool) -> None:
    if transductive and kind in ("none", "per_image"):
        return
    calibration = make(kind, transductive=transductive)
    logits = problem()[0].astype(np.float64)
    reference = logits[:, [WORDS.index(word) for word in calibration.reference_words]]
    words = (*WORDS[:5], "new", *WORDS[6:])  # a word that has no statistics
    expected = by_hand(calibration, logits, words, reference)
    np.testing.assert_allclose(calibration.apply(logits, words, reference), expected, rtol=0, atol=1e-12)


@given(kind=st.sampled_from(KINDS), order=st.permutations(range(len(WORDS))), cut=st.integers(1, len(WORDS)))
def test_a_words_calibrated_logit_does_not_depend_on_the_others(kind: str, order: list[int], cut: int) -> None:
    calibration, (logits, _) = make(kind), problem(num_images=7)
    reference = logits[:, [WORDS.index(word) for word in calibration.reference_words]]
    calibrated = calibration.apply(logits, WORDS, reference)
    assert calibrated.dtype == np.float32 and calibrated.shape == logits.shape
    chosen = order[:cut]  # permuted, and with words left out
    words = [WORDS[j] for j in chosen]
    np.testing.assert_array_equal(calibration.apply(logits[:, chosen], words, reference), calibrated[:, chosen])
    np.testing.assert_array_equal(calibration.thresholds_of(words), calibration.thresholds_of(WORDS)[chosen])
    margins = calibration.margins(calibrated, WORDS)
    np.testing.assert_array_equal(calibration.margins(calibrated[:, chosen], words), margins[:, chosen])
    more = np.concatenate([logits, 9 - logits[:, ::-1]], 1)
    grown = calibration.apply(more, [*WORDS, *(f"new {word}" for word in WORDS)], reference)
    np.testing.assert_array_equal(grown[:, : len(WORDS)], calibrated)
    # Where all reference words are among the words, their columns are found by name.
    permuted = calibration.apply(logits[:, order], [WORDS[j] for j in order])
    np.testing.assert_array_equal(permuted, calibrated[:, order])


@given(kind=st.sampled_from(KINDS), rows=st.lists(st.integers(0, 29), min_size=1, max_size=30))
def test_an_image_does_not_depend_on_the_others(kind: str, rows: list[int]) -> None:
    calibration, (logits, _) = make(kind), problem(num_images=30)
    np.testing.assert_array_equal(calibration.apply(logits[rows], WORDS), calibration.apply(logits, WORDS)[rows])


@pytest.mark.parametrize("kind", ["per_word", "both"])
def test_only_a_transductive_calibration_lets_images_depend_on_each_other_and_says_so(kind: str) -> None:
    logits, _ = problem()
    open_about_it = make(kind, transductive=True)
    assert open_about_it.summary()["transductive"] is True and make(kind).summary()["transductive"] is False
    alone, together = open_about_it.apply(logits[:20], WORDS), open_about_it.apply(logits, WORDS)[:20]
    assert np.abs(alone - together).max() > 0.05
    shifted = logits + 3 * np.arange(len(WORDS), dtype=np.float32)  # each word's own units are nothing to it
    np.testing.assert_allclose(open_about_it.apply(shifted, WORDS)[:20], together, atol=1e-4)


def test_per_image_standardisation_removes_each_images_offset_and_scale() -> None:
    calibration, (logits, _) = make("per_image"), problem()
    rng = np.random.default_rng(2)
    moved = logits * rng.uniform(0.2, 5, (60, 1)) + rng.normal(0, 3, (60, 1))
    np.testing.assert_allclose(calibration.apply(moved, WORDS), calibration.apply(logits, WORDS), atol=1e-4)


def test_stacking_and_word_statistics_leave_every_words_average_precision_and_move_the_ranking() -> None:
    logits, targets = problem(num_images=200)
    plain = average_precision(logits, targets)
    for kind in ("none", "per_word"):
        calibrated = make(kind).apply(logits, WORDS)
        np.testing.assert_allclose(average_precision(calibrated, targets), plain, atol=1e-12)
        assert (calibrated.argsort(1) != logits.argsort(1)).any()


def test_scores_keep_the_order_and_lie_between_zero_and_one() -> None:
    calibration = make("none")
    values = np.array([-1e9, -3.0, -2.0, 0.0, 1.5, 1e9])
    scores = calibration.scores(values)
    assert scores.dtype == np.float32 and scores[0] == 0 and scores[-1] == 1 and (np.diff(scores) > 0).all()
    np.testing.assert_allclose(scores[1:5], [1 / (1 + math.exp(0.4 - 1.7 * x)) for x in (-3, -2, 0, 1.5)], rtol=1e-6)


def test_new_words_take_the_constant_and_the_default_threshold() -> None:
    calibration = make("none")
    logits = np.array([[0.0, 0.0, 0.0, 0.0]])
    calibrated = calibration.apply(logits, ["zebra", "a", "b", "d"])
    assert calibrated.tolist() == [[0.7, 0.0, 0.7, 0.0]]  # "b" was held out: the head never saw its labels
    assert calibration.thresholds_of(["zebra", "a", "b", "d"]).tolist() == [0.25, 0.5, 0.25, math.inf]
    np.testing.assert_allclose(calibration.margins(calibrated, ["zebra", "a", "b", "d"]), [[0.45, -0.5, 0.45, -np.inf]])


def test_constants_are_not_blown_up() -> None:
    logits = np.full((4, len(WORDS)), 2.0)
    assert not make("per_image").apply(logits, TRAINED + HELDOUT)[:, : len(TRAINED)].any()
    assert not make("per_word", transductive=True).apply(logits, WORDS)[:, IS_TRAINED].any()


def test_logits_that_do_not_fit_are_refused() -> None:
    logits = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"logits must be \(M, 3\), one column a word, got \(3, 2\)"):
        make("none").apply(logits, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"reference_logits must be given where words lack .* \['h', 'l'\] \(2 of 4\)"):
        make("per_image").apply(logits, ["a", "d"])
    with pytest.raises(ValueError, match=r"reference_logits must be \(3, 4\), one column for each .* got \(3, 5\)"):
        make("per_image").apply(logits, ["a", "b"], np.zeros((3, 5)))


# ------------------------------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stacking_for", ["harmonic_mean", "f1"])
def test_no_constant_of_a_grid_is_better(stacking_for: str, kind: str, seed: int) -> None:
    logits, targets = problem(seed, num_images=25)
    logits = logits.astype(np.float64)
    calibration = choose_calibration(logits, targets, WORDS, HELDOUT, kind, stacking_for=stacking_for, k=2)
    unstacked = replace(calibration, stacking=0.0).apply(logits, WORDS)
    positives = [int((targets[:, side] == 1).sum()) for side in (IS_TRAINED, ~IS_TRAINED)]

    def figure(constant: float) -> float:
        recalls = oracles.seen_unseen_recall_at_k(unstacked.tolist(), targets.tolist(), IS_TRAINED, 2, constant)
        if stacking_for == "harmonic_mean":
            return 2 * recalls[0] * recalls[1] / sum(recalls) if all(recalls) else 0.0
        hits = sum(recall * count for recall, count in zip(recalls, positives, strict=True))
        return 2 * hits / (len(logits) * 2 + sum(positives))

    chosen = figure(calibration.stacking)
    assert chosen >= max(figure(constant) for constant in np.linspace(-5, 5, 101)) - 1e-12
    assert chosen == pytest.approx(calibration.chosen_on["candidates"][kind][stacking_for], abs=1e-12)
    assert calibration.trained_words == TRAINED


def given_words(scores: np.ndarray, targets: np.ndarray, threshold: float) -> tuple[int, int, int]:
    """Hits, known entries given and positives at a threshold."""
    known = targets != -1
    return (
        int((scores >= threshold)[targets == 1].sum()),
        int((scores >= threshold)[known].sum()),
        int((targets == 1).sum()),
    )


def f1(scores: np.ndarray, targets: np.ndarray, threshold: float) -> float:
    hits, given, positives = given_words(scores, targets, threshold)
    return 2 * hits / (given + positives) if given + positives else 0.0


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), kind=st.sampled_from(KINDS), coarse=st.booleans())
def test_thresholds_have_the_best_f1_of_all(seed: int, kind: str, coarse: bool) -> None:
    logits, targets = problem(seed, num_images=40)
    logits = np.round(logits) if coarse else logits  # ties
    calibration = choose_calibration(logits, targets, WORDS, HELDOUT, kind, min_positives=6)
    calibrated = calibration.apply(logits, WORDS)
    candidates = [*np.unique(calibrated), np.inf]
    for j, word in enumerate(WORDS):
        if (targets[:, j] == 1).sum() < 6:
            assert word not in calibration.thresholds
            continue
        best = max(f1(calibrated[:, j], targets[:, j], t) for t in candidates)
        assert f1(calibrated[:, j], targets[:, j], calibration.thresholds[word]) == pytest.approx(best, abs=1e-12)

    def mean_f1(threshold: float) -> float:
        return float(np.mean([f1(calibrated[:, j], targets[:, j], threshold) for j in np.flatnonzero(~IS_TRAINED)]))

    assert mean_f1(calibration.default_threshold) == pytest.approx(max(map(mean_f1, candidates)), abs=1e-12)


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), target=st.sampled_from([0.3, 0.6, 0.9, 1.0]), coarse=st.booleans())
def test_thresholds_reach_the_precision_asked_for_with_the_highest_recall(
    seed: int, target: float, coarse: bool
) -> None:
    logits, targets = problem(seed, num_images=40)
    logits = np.round(logits) if coarse else logits
    calibration = choose_calibration(logits, targets, WORDS, HELDOUT, "none", f"precision={target}", min_positives=1)
    calibrated = calibration.apply(logits, WORDS)
    candidates = np.unique(calibrated)

    def check(scores: np.ndarray, truth: np.ndarray, threshold: float) -> None:
        reaching = [
            hits for hits, given, _ in (given_words(scores, truth, t) for t in candidates) if hits >= target * given > 0
        ]
        if not reaching:
            assert threshold == math.inf
            return
        hits, given, _ = given_words(scores, truth, threshold)
        assert hits / given >= target and hits == max(reaching)

    for word, threshold in calibration.thresholds.items():
        check(calibrated[:, WORDS.index(word)], targets[:, WORDS.index(word)], threshold)
    check(calibrated[:, ~IS_TRAINED], targets[:, ~IS_TRAINED], calibration.default_threshold)


def test_a_precision_out_of_reach_gives_the_word_to_no_image() -> None:
    logits, targets = problem()
    targets[:, 0] = (logits[:, 0] < np.median(logits[:, 0])).astype(np.int8)
    targets[logits[:, 0].argmax(), 0] = 0
    calibration = choose_calibration(logits, targets, WORDS, HELDOUT, "none", "precision=0.95")
    assert calibration.thresholds["a"] == math.inf and calibration.to_dict()["thresholds"]["a"] is None
    assert not (calibration.margins(calibration.apply(logits, WORDS), WORDS) >= 0)[:, 0].any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scale_and_bias_are_platts(seed: int) -> None:
    logits, targets = problem(seed, num_images=300)
    calibration = choose_calibration(logits, targets, WORDS, HELDOUT, "none")
    known = targets != -1
    calibrated = calibration.apply(logits, WORDS)[known].astype(np.float64)
    slope, offset = _sigmoid_calibration(calibrated, targets[known])
    assert calibration.scale == pytest.approx(-slope, rel=1e-3) and calibration.bias == pytest.approx(-offset, rel=1e-3)
    assert calibration.scores(calibrated).mean() == pytest.approx((targets[known] == 1).mean(), abs=0.002)


def test_scores_keep_their_order_even_for_a_model_that_is_worse_than_chance() -> None:
    logits, targets = problem()
    assert choose_calibration(-logits, targets, WORDS, HELDOUT, "none").scale > 0


def test_auto_takes_the_best_and_of_equals_the_simplest() -> None:
    logits, targets = problem(num_images=150)
    calibration = choose_calibration(logits, targets, WORDS, HELDOUT)
    sums = {kind: sum(figures.values()) for kind, figures in calibration.chosen_on["candidates"].items()}
    assert list(sums) == KINDS and sums[calibration.standardization] == max(sums.values()) > min(sums.values())
    alone = choose_calibration(logits, targets, WORDS, HELDOUT, calibration.standardization)
    assert replace(alone, chosen_on={}) == replace(calibration, chosen_on={})
    perfect = choose_calibration(10.0 * targets, targets, WORDS, HELDOUT, k=len(WORDS))
    assert perfect.standardization == "none"
    rng = np.random.default_rng(0)
    spoilt = logits * rng.uniform(0.1, 10, (150, 1)) + rng.normal(0, 20, (150, 1))
    assert choose_calibration(spoilt, targets, WORDS, HELDOUT).standardization in ("per_image", "both")
    transductive = choose_calibration(logits, targets, WORDS, HELDOUT, transductive=True)
    assert transductive.transductive and list(transductive.chosen_on["candidates"]) == ["per_word", "both"]
    assert transductive.word_statistics == {}


def test_statistics_are_those_of_trained_words_and_references_are_spread_evenly() -> None:
    logits, targets = problem()
    calibration = choose_calibration(logits, targets, WORDS, HELDOUT, "both", max_reference_words=3)
    assert calibration.reference_words == ("a", "g", "l") and set(calibration.word_statistics) == set(TRAINED)
    for word in TRAINED:
        column = logits[:, WORDS.index(word)].astype(np.float64)
        assert calibration.word_statistics[word] == pytest.approx((column.mean(), column.std()), rel=1e-5)
    pairs = np.array(list(calibration.word_statistics.values()))
    assert calibration.default_statistics == pytest.approx(tuple(pairs.mean(0)))


def test_the_order_of_words_is_nothing_to_the_choice() -> None:
    logits, targets = problem()
    order = np.random.default_rng(3).permutation(len(WORDS))
    calibration = choose_calibration(logits, targets, WORDS, HELDOUT, "per_word")
    other = choose_calibration(
        logits[:, order], targets[:, order], [WORDS[j] for j in order], HELDOUT[::-1], "per_word"
    )
    assert other.stacking == pytest.approx(calibration.stacking, abs=1e-6)
    assert other.thresholds == pytest.approx(calibration.thresholds)
    assert other.default_threshold == pytest.approx(calibration.default_threshold)
    assert dict(other.word_statistics) == dict(calibration.word_statistics)


def test_without_held_out_words_there_is_no_constant() -> None:
    logits, targets = problem()
    targets[:, 2] = -1  # a word without labels
    calibration = choose_calibration(logits, targets, WORDS, ())
    assert calibration.stacking == 0 and calibration.trained_words == WORDS and "c" not in calibration.thresholds
    calibrated = calibration.apply(logits, WORDS)
    rest = [j for j in range(len(WORDS)) if j != 2]

    def mean_f1(threshold: float) -> float:
        return float(np.mean([f1(calibrated[:, j], targets[:, j], threshold) for j in rest]))

    assert mean_f1(calibration.default_threshold) == pytest.approx(max(map(mean_f1, np.unique(calibrated))), abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heldout_words": ["zebra"]}, r"heldout_words must be some of the words and not all, got \['zebra'\]"),
        ({"heldout_words": WORDS}, "heldout_words must be some of the words and not all"),
        ({"standardization": "per_pixel"}, "standardization must be 'auto' or one of .* got 'per_pixel'"),
        (
            {"objective": "precision=90"},
            r"objective must be 'f1' or 'precision=P' with P in \(0, 1\], got 'precision=90'",
        ),
        ({"stacking_for": "luck"}, "stacking_for must be one of .* got 'luck'"),
        ({"min_positives": 0}, "min_positives must be ≥ 1 and max_reference_words ≥ 2, got 0, 256"),
        ({"k": 13}, "k must be between 1 and the 12 words, got 13"),
        ({"words": WORDS[:-1], "heldout_words": ["b"]}, r"logits must be \(M, 11\) and finite, got \(60, 12\)"),
        ({"standardization": "none", "transductive": True}, "transductive must be false for 'none'"),
    ],
)
def test_choices_that_make_no_sense_are_refused(changes: dict, message: str) -> None:
    logits, targets = problem()
    arguments = {"logits": logits, "targets": targets, "words": WORDS, "heldout_words": HELDOUT} | changes
    with pytest.raises(ValueError, match=message):
        choose_calibration(**arguments)


def test_everything_wrong_is_said_at_once() -> None:
    logits, targets = problem()
    logits[3, 4] = np.inf
    with pytest.raises(ValueError, match=r"(?s)finite.*heldout_words must.*objective must.*correct them"):
        choose_calibration(logits, targets, WORDS, ["zebra"], objective="f2")
    logits, targets = problem()
    targets[:, ~IS_TRAINED] = 0
    with pytest.raises(ValueError, match="targets must have positives of trained and of held-out words"):
        choose_calibration(logits, targets, WORDS, HELDOUT)


# ------------------------------------------------------------------------------------------------------------- stored


@pytest.mark.parametrize("kind", KINDS)
def test_json_and_back(kind: str) -> None:
    chosen = choose_calibration(*problem(), WORDS, HELDOUT, kind, "precision=0.8", chosen_on={"split": "val"})
    for calibration in (chosen, make(kind), Calibration(default_threshold=math.inf)):
        text = json.dumps(calibration.to_dict(), allow_nan=False)
        restored = Calibration.from_dict(json.loads(text))
        assert restored == calibration and json.dumps(restored.to_dict()) == text
        logits, _ = problem(9)
        np.testing.assert_array_equal(restored.apply(logits, WORDS), calibration.apply(logits, WORDS))
    assert chosen.chosen_on["split"] == "val" and chosen.chosen_on["heldout_words"] == list(HELDOUT)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("standardization", "sideways", r"standardization must be one of \['none', .*\], got 'sideways'"),
        ("standardization", ["none"], "standardization must be one of"),
        ("trained_words", "dog", "trained_words must be distinct words, got 'dog'"),
        ("trained_words", ["dog", "dog"], "trained_words must be distinct words"),
        ("trained_words", ["dog", ["cat"]], "trained_words must be distinct words"),
        ("stacking", None, "stacking must be a finite number, got None"),
        ("stacking", math.nan, "stacking must be a finite number, got nan"),
        ("stacking", True, "stacking must be a finite number, got True"),
        ("reference_words", ["a"], "reference_words must be at least 2 words for 'both'"),
        ("word_statistics", {"a": [0.0, 0.0]}, "word_statistics must be a finite mean and a positive deviation"),
        ("word_statistics", {"a": None}, "word_statistics must be a finite mean and a positive deviation"),
        ("word_statistics", [], "word_statistics must be a finite mean and a positive deviation"),
        ("default_statistics", [0.0], "default_statistics must be a finite mean and a positive deviation"),
        ("transductive", 1, "transductive must be true or false, got 1"),
        ("scale", -1.0, "scale must be a positive number, got -1.0"),
        ("bias", "low", "bias must be a finite number, got 'low'"),
        ("thresholds", {"a": "high"}, "thresholds must be a number for each word, or null for never"),
        ("thresholds", {"a": math.nan}, "thresholds must be a number for each word, or null for never"),
        ("default_threshold", -math.inf, "default_threshold must be a number, or null for never, got -inf"),
        ("objective", "recall=1", "objective must be 'f1' or 'precision=P'"),
        ("chosen_on", None, "chosen_on must be a mapping, got None"),
    ],
)
def test_damaged_json_is_refused_by_name(key: str, value: Any, message: str) -> None:
    state = json.loads(json.dumps(make("both").to_dict()))
    with pytest.raises(ValueError, match=f"(?s)calibration must be valid, got:\n  - {message}.*\ncalibrate again"):
        Calibration.from_dict(state | {key: value})


def test_missing_and_unknown_keys_are_refused_and_everything_wrong_is_said_at_once() -> None:
    state = make("both").to_dict()
    del state["scale"]
    with pytest.raises(ValueError, match=r"must have the keys .* \['scale'\] are missing and \['gamma'\] unknown"):
        Calibration.from_dict(state | {"gamma": 1})
    with pytest.raises(ValueError, match=r"(?s)stacking must.*scale must.*bias must"):
        Calibration(stacking=math.inf, scale=0.0, bias="x")  # type: ignore[arg-type]


def test_the_summary_is_short_and_plain() -> None:
    summary = choose_calibration(*problem(), WORDS, HELDOUT, "both").summary()
    assert len(json.dumps(summary, allow_nan=False)) < 2000
    assert summary["num_trained_words"] == 9 and summary["num_reference_words"] == 9
    assert not {"thresholds", "word_statistics", "trained_words"} & set(summary)


# ---------------------------------------------------------------------------------------------------- calibrate a model


class Pictures:
    """A dataset of random pictures, some of which cannot be read."""

    name = "pictures"

    def __init__(
        self, vocabulary: Vocabulary, split: str = "val", missing: int = 0, broken: tuple[int, ...] = (), seed: int = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.vocabulary, self.split, self.missing, self.broken = vocabulary, split, missing, broken
        dense = rng.choice([1, 0, -1], (30, len(vocabulary)), p=[0.4, 0.5, 0.1]).astype(np.int8)
        self.dense = dense if missing == 0 else np.where(dense == 0, -1, dense)
        self.targets = csr_matrix(dense)
        self.pixels = rng.integers(0, 256, (30, 40, 40, 3), dtype=np.uint8)
        self.ids = [f"picture {i}" for i in range(30)]

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.broken:
            raise OSError("cannot decode")
        image = Image.fromarray(self.pixels[index])
        return {"image": image, "targets": self.dense[index], "id": self.ids[index]}


SEEN = ("dog", "cat", "red car", "beach")
WITH_UNSEEN = Vocabulary([*SEEN, "boat", "tree"], seen=SEEN)  # what the tiny model remembers


@pytest.fixture
def model(make_model: Callable[..., ZeroShotClassifier]) -> ZeroShotClassifier:
    model = make_model(output="sum")
    model.heldout_words = ("cat",)
    return model


@torch.no_grad()
def logits_of(model: ZeroShotClassifier, dataset: Any, words: Any) -> np.ndarray:
    images = [dataset[i]["image"] for i in range(len(dataset)) if i not in getattr(dataset, "broken", ())]
    inputs = torch.stack([model.image_encoder.transform(image) for image in images])
    return model(inputs, None if words is None else model.encode_words(words)).numpy()


@pytest.mark.parametrize("missing", [0, -1])
def test_calibrate_chooses_from_the_models_logits_of_readable_images(model: ZeroShotClassifier, missing: int) -> None:
    order = ["tree", "cat", "boat", "beach", "red car", "dog"]  # the dataset's own
    dataset = Pictures(Vocabulary(order, seen=SEEN), missing=missing, broken=(4, 11))
    found = calibrate(model, dataset, standardization="per_image", k=2, device="cpu", batch_size=7)
    kept = [i for i in range(30) if i not in dataset.broken]
    targets = dataset.dense[kept][:, [order.index(word) for word in SEEN]]
    expected = choose_calibration(logits_of(model, dataset, SEEN), targets, SEEN, ["cat"], "per_image", k=2)
    assert found.stacking == pytest.approx(expected.stacking, abs=1e-4)
    assert found.thresholds == pytest.approx(dict(expected.thresholds), abs=1e-4)
    assert found.trained_words == found.reference_words == ("dog", "red car", "beach")
    assert found.chosen_on["image_ids_sha256"] == ids_digest([dataset.ids[i] for i in kept])
    assert (found.chosen_on["dataset"], found.chosen_on["split"], found.chosen_on["num_images"]) == (
        "pictures",
        "val",
        28,
    )


def test_labels_of_unseen_words_are_never_read(model: ZeroShotClassifier) -> None:
    dataset, other = Pictures(WITH_UNSEEN), Pictures(WITH_UNSEEN)
    flipped = other.dense.copy()
    flipped[:, 4:] = 1 - abs(flipped[:, 4:])
    other.dense, other.targets = flipped, csr_matrix(flipped)
    assert (dataset.targets != other.targets).nnz > 20
    assert calibrate(model, dataset, k=2, device="cpu") == calibrate(model, other, k=2, device="cpu")


def test_a_seen_word_without_labels_here_has_statistics_and_counts_as_unknown(model: ZeroShotClassifier) -> None:
    dataset = Pictures(Vocabulary(["dog", "cat", "red car", "tree"], seen=["dog", "cat", "red car"]))
    options: dict[str, Any] = {"standardization": "per_word", "k": 2, "min_positives": 1}
    calibration = calibrate(model, dataset, **options, device="cpu")
    assert "beach" in calibration.trained_words and "beach" in calibration.word_statistics
    assert set(calibration.thresholds) == {"dog", "cat", "red car"}
    targets = np.column_stack([dataset.dense[:, :3], np.full(30, -1)])
    expected = choose_calibration(logits_of(model, dataset, SEEN), targets, SEEN, ["cat"], **options)
    assert calibration.bias == pytest.approx(expected.bias, abs=1e-3)


def test_labels_of_words_that_the_dataset_counts_as_unseen_are_not_read(model: ZeroShotClassifier) -> None:
    dataset = Pictures(Vocabulary([*SEEN, "tree"], seen=SEEN[:3]))
    calibration = calibrate(model, dataset, k=2, min_positives=1, device="cpu")
    assert "beach" in calibration.trained_words and set(calibration.thresholds) == set(SEEN[:3])


def test_test_images_are_refused_unless_told(model: ZeroShotClassifier) -> None:
    dataset = Pictures(WITH_UNSEEN, split="test")
    with pytest.raises(
        ValueError, match=r"dataset must be the split 'val', got 'test', .* or pass use_test_images=True"
    ):
        calibrate(model, dataset, device="cpu")
    assert calibrate(model, dataset, k=2, use_test_images=True, device="cpu").chosen_on["split"] == "test"


@pytest.mark.parametrize(
    ("split", "option", "flag"),
    [
        ("test", "use_test_images", r"use_test_images=True \(--use-test-images\)"),
        ("all", "use_test_images", r"use_test_images=True \(--use-test-images\)"),
        ("minival", "use_test_images", r"use_test_images=True \(--use-test-images\)"),
        ("train", "use_training_images", r"use_training_images=True \(Python only\)"),
    ],
)
def test_every_split_but_val_is_refused_unless_its_own_flag_is_given(
    model: ZeroShotClassifier, split: str, option: str, flag: str
) -> None:
    dataset = Pictures(WITH_UNSEEN, split=split)
    other = {"use_test_images": "use_training_images", "use_training_images": "use_test_images"}[option]
    for flags in ({}, {other: True}):
        with pytest.raises(ValueError, match=rf"dataset must be the split 'val', got '{split}', .* pass {flag}"):
            calibrate(model, dataset, k=2, device="cpu", **flags)
    assert calibrate(model, dataset, k=2, device="cpu", **{option: True}).chosen_on["split"] == split


def test_which_words_were_held_out_must_be_known(model: ZeroShotClassifier) -> None:
    dataset = Pictures(WITH_UNSEEN)
    with pytest.raises(
        ValueError, match=r"heldout_words must be the seen words .* got \['cat', 'dog'\] amiss; .* \(1 stored"
    ):
        calibrate(model, dataset, ["dog"], device="cpu")
    assert calibrate(model, dataset, (), k=2, device="cpu").stacking == 0
    model.heldout_words = ()
    with pytest.raises(ValueError, match=r"heldout_words must be known, .* pass heldout_words=\(\) to calibrate"):
        calibrate(model, dataset, device="cpu")
    assert calibrate(model, dataset, ["dog"], k=2, device="cpu").trained_words == ("cat", "red car", "beach")
    assert calibrate(model, dataset, (), k=2, device="cpu").stacking == 0
    with pytest.raises(ValueError, match=r"heldout_words must be the seen words .* got \['boat'\] amiss"):
        calibrate(model, dataset, ["boat"], device="cpu")
    with pytest.raises(ValueError, match=r"dataset must have labels of the model's seen words, got none of \['dog', "):
        calibrate(model, Pictures(Vocabulary(["zebra", "lamp"])), ["dog"], device="cpu")
    without_labels = Pictures(Vocabulary(["dog", "red car"]))
    with pytest.raises(ValueError, match="targets must have positives of trained and of held-out words"):
        calibrate(model, without_labels, ["cat"], k=2, device="cpu")


def test_a_model_without_words_and_a_dataset_without_images(
    model: ZeroShotClassifier, make_model: Callable[..., ZeroShotClassifier]
) -> None:
    with pytest.raises(ValueError, match="model must know the words it was trained on to be calibrated"):
        calibrate(make_model(remember=False), Pictures(WITH_UNSEEN), device="cpu")
    with pytest.raises(ValueError, match="dataset must have readable images, none of 30 could be read"):
        calibrate(model, Pictures(WITH_UNSEEN, broken=tuple(range(30))), device="cpu")


def test_the_model_stays_as_it_was(model: ZeroShotClassifier) -> None:
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calibrate(model, Pictures(WITH_UNSEEN), k=2, device="cpu")
    assert model.training and model.calibration is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_class_queries_get_thresholds_and_no_constant(make_model: Callable[..., ZeroShotClassifier]) -> None:
    model = make_model(num_classes=3)
    vocabulary = Vocabulary(["dog", "cat", "tree"])
    model.remember_words(vocabulary, None)
    dataset = Pictures(vocabulary)
    calibration = calibrate(model, dataset, standardization="per_image", k=1, device="cpu")
    expected = choose_calibration(logits_of(model, dataset, None), dataset.dense, vocabulary, (), "per_image", k=1)
    assert calibration.stacking == 0 and set(calibration.thresholds) == {"dog", "cat", "tree"}
    assert calibration.thresholds == pytest.approx(dict(expected.thresholds), abs=1e-4)


def test_a_calibration_travels_with_the_model(model: ZeroShotClassifier, tmp_path: Any) -> None:
    calibration = calibrate(model, Pictures(WITH_UNSEEN), k=2, device="cpu")
    assert Calibration.of(model) is None
    model.calibration = calibration.to_dict()
    model.save_pretrained(tmp_path)
    assert Calibration.of(ZeroShotClassifier.from_pretrained(tmp_path)) == calibration


def test_the_shipped_model_on_scenes_it_has_not_seen() -> None:
    model = ZeroShotClassifier.from_pretrained(resource_path("data", "scenes", "model"))
    # A checkpoint from before they were stored: `Recipe.from_dict(model.recipe).build_trainer().heldout`.
    colours = {"red": "triangle ring crescent", "yellow": "ring diamond", "blue": "arrow", "purple": "arrow"}
    colours["brown"] = "arrow"
    known = [f"{colour} {shape}" for colour, shapes in colours.items() for shape in shapes.split()]
    heldout = model.heldout_words or known
    calibration = calibrate(model, Scenes("val", num_images=400), heldout, standardization="none", device="cpu")
    test = Scenes("test", num_images=250)
    logits, targets = logits_of(model, test, test.vocabulary), test.targets.toarray()
    unseen = ~test.vocabulary.is_seen

    def recall_at_3(values: np.ndarray, side: np.ndarray) -> float:
        best = np.argsort(-values, axis=1, kind="stable")[:, :3]
        return np.take_along_axis(targets * side, best, 1).sum() / targets[:, side].sum()

    calibrated = calibration.apply(logits, test.vocabulary)
    assert recall_at_3(calibrated, unseen) > recall_at_3(logits, unseen) + 0.1
    means = [
        2 / (1 / recall_at_3(values, unseen) + 1 / recall_at_3(values, ~unseen)) for values in (logits, calibrated)
    ]
    assert means[1] > means[0] + 0.02
    given = calibration.margins(calibrated, test.vocabulary) >= 0
    assert not set(test.vocabulary.unseen) & set(calibration.thresholds)  # they have the default

    def overall_f1(given: np.ndarray) -> float:
        return 2 * (given & (targets == 1)).sum() / (given.sum() + targets.sum())

    assert overall_f1(given) > overall_f1(logits >= 0) + 0.03
