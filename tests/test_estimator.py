"""MLDecoderClassifier: scikit-learn's own checks, words that were not trained, and the laws of the head behind it."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.special import expit, softmax
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from zsmld.augmentation import QueryAugmentation
from zsmld.estimator import MLDecoderClassifier

SMALL: dict[str, Any] = {"decoder_dim": 16, "num_heads": 2, "feedforward_dim": 32, "device": "cpu", "random_state": 0}


def small(*arguments: Any, **options: Any) -> MLDecoderClassifier:
    return MLDecoderClassifier(*arguments, **(SMALL | {"epochs": 2} | options))


@parametrize_with_checks([small(epochs=30, batch_size=300, lr=1e-2)])
def test_scikit_learn_accepts_it(estimator: Any, check: Any) -> None:
    """Every check, with no exception: without words, as class queries, for one class an image and for several."""
    check(estimator)


@pytest.fixture(scope="module")
def scenes() -> dict[str, Any]:
    """Images whose features are the sum of what their words look like; looks are a linear map of word embeddings.

    40 words, of which the last ten are never trained; an image has about four of all.
    """
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(40, 12)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    Y = (rng.random((400, 40)) < 0.1).astype(int)
    X = Y @ embeddings @ rng.normal(size=(12, 20)) + 0.1 * rng.normal(size=(400, 20))
    return {"X": X, "Y": Y, "embeddings": embeddings, "words": [f"word {number}" for number in range(40)]}


# --------------------------------------------------------------------------------------------------- untrained words


def test_words_that_were_never_trained_are_found(scenes: dict[str, Any]) -> None:
    X, Y, embeddings = scenes["X"], scenes["Y"], scenes["embeddings"]
    model = small(word_embeddings=embeddings[:30], decoder_dim=32, epochs=25, batch_size=50, lr=1e-2)
    model.fit(X[:300], Y[:300, :30]).set_words(word_embeddings=embeddings[30:])
    found = average_precision_score(Y[300:, 30:], model.predict_proba(X[300:]))
    assert found > 0.4, "chance is 0.1"
    # With the embeddings of other words in their place it is chance again: they, and nothing else, name the words.
    model.set_words(word_embeddings=np.roll(embeddings[30:], 1, axis=0))
    assert average_precision_score(Y[300:, 30:], model.predict_proba(X[300:])) < 0.2
    assert model.loss_curve_[-1] < 0.7 * model.loss_curve_[0]


def test_set_words_selects_columns(scenes: dict[str, Any]) -> None:
    X, words, embeddings = scenes["X"][:50], scenes["words"], scenes["embeddings"]
    model = small(words[:6], embeddings[:6]).fit(X, scenes["Y"][:50, :6])
    whole = model.set_words(words, embeddings).predict_proba(X)
    assert whole.shape == (50, 40) and model.words_ == tuple(words) and len(model.classes_) == 40
    chosen = [39, 2, 17]
    part = model.set_words([words[label] for label in chosen], embeddings[chosen]).predict_proba(X)
    np.testing.assert_allclose(part, whole[:, chosen], atol=1e-6)
    assert model.score(X, model.predict(X)) == 1


def test_words_are_encoded_by_the_text_encoder(vectors_path: Path) -> None:
    from zsmld import TextEncoder

    rng = np.random.default_rng(0)
    X, Y, spec = rng.normal(size=(20, 5)), rng.integers(0, 2, (20, 2)), f"vectors:{vectors_path}"
    model = small(["dog", "zebra"], text_encoder=spec).fit(X, Y)
    given = small(word_embeddings=TextEncoder(spec).encode_words(["dog", "zebra"])).fit(X, Y)
    np.testing.assert_array_equal(model.predict_proba(X), given.predict_proba(X))
    new = model.set_words(["red car"]).predict_proba(X)
    given.set_words(word_embeddings=TextEncoder(spec).encode_words(["red car"]))
    np.testing.assert_array_equal(new, given.predict_proba(X))
    assert new.shape == (20, 1)


def test_other_weights_of_the_text_encoder_are_refused(make_vectors: Any, tmp_path: Path) -> None:
    path = make_vectors(tmp_path / "words.npz", ("dog", "cat", "boat"))
    rng = np.random.default_rng(0)
    model = small(["dog", "cat"], text_encoder=f"vectors:{path}").fit(rng.normal(size=(9, 4)), np.eye(9, 2, dtype=int))
    before = model.predict_proba(np.ones((1, 4)))
    make_vectors(path, ("dog", "cat", "boat"), seed=1)
    with pytest.raises(ValueError, match="must have the weights that the head was fitted with"):
        model.set_words(["boat"])
    np.testing.assert_array_equal(model.predict_proba(np.ones((1, 4))), before)


# ---------------------------------------------------------------------------------------------------- the head behind


@pytest.mark.parametrize("output", ["shared", "cosine", "sum"])
@torch.no_grad()
def test_scores_are_the_sigmoids_of_the_heads_logits(scenes: dict[str, Any], output: str) -> None:
    X, embeddings = scenes["X"][:60].astype(np.float32), scenes["embeddings"][:7]
    model = small(word_embeddings=embeddings, num_positions=4, output=output).fit(X, scenes["Y"][:60, :7])
    maps = torch.from_numpy(X).reshape(60, 4, 5)
    logits = model.decoder_(maps, torch.from_numpy(embeddings)).numpy()
    np.testing.assert_allclose(model.decision_function(X), logits, atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(X), expit(logits), atol=1e-6)
    np.testing.assert_array_equal(model.predict(X), model.predict_proba(X) > 0.5)
    assert not model.decoder_.training


def test_prediction_in_parts_changes_nothing(scenes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    X = scenes["X"][:50]
    model = small(word_embeddings=scenes["embeddings"][:7]).fit(X, scenes["Y"][:50, :7])
    whole = model.decision_function(X)
    monkeypatch.setattr("zsmld.estimator._PAIRS_AT_ONCE", 21)  # three images
    np.testing.assert_allclose(model.decision_function(X), whole, atol=1e-5)


def test_positions_have_no_order(scenes: dict[str, Any]) -> None:
    """A row is S positions of C features: moving whole positions changes nothing, moving single features does."""
    X = scenes["X"][:60]
    model = small(word_embeddings=scenes["embeddings"][:7], num_positions=4).fit(X, scenes["Y"][:60, :7])
    logits = model.decision_function(X)
    moved = X.reshape(60, 4, 5)[:, ::-1].reshape(60, 20)
    np.testing.assert_allclose(model.decision_function(moved), logits, atol=1e-5)
    assert np.abs(model.decision_function(X[:, ::-1]) - logits).max() > 1e-3


def test_unknown_targets_teach_nothing(scenes: dict[str, Any]) -> None:
    """A word is as it would be had the unknown entries any other value: what is learnt from them is nothing."""
    X, Y, rng = scenes["X"][:60], scenes["Y"][:60, :5], np.random.default_rng(1)
    hidden = rng.random(Y.shape) < 0.3
    masked = small(word_embeddings=scenes["embeddings"][:5]).fit(X, np.where(hidden, -1, Y))
    full = small(word_embeddings=scenes["embeddings"][:5]).fit(X, Y)
    assert np.abs(masked.decision_function(X) - full.decision_function(X)).max() > 1e-4
    all_unknown = np.where(np.arange(60)[:, None] < 30, Y, -1)  # rows that are all unknown give no gradient
    other = X.copy()
    other[30:] = 7.0
    first = small(word_embeddings=scenes["embeddings"][:5], dropout=0.0).fit(X, all_unknown)
    second = small(word_embeddings=scenes["embeddings"][:5], dropout=0.0).fit(other, all_unknown)
    np.testing.assert_allclose(first.decision_function(X), second.decision_function(X), atol=1e-5)


def test_the_same_random_state_gives_the_same_head(scenes: dict[str, Any]) -> None:
    X, Y, embeddings = scenes["X"][:60], scenes["Y"][:60, :5], scenes["embeddings"][:5]
    augmentation = QueryAugmentation(noise=0.5, mixed=2)

    def fitted(**options: Any) -> np.ndarray:
        return small(word_embeddings=embeddings, **options).fit(X, Y).decision_function(X)

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = fitted(augmentation=augmentation)
    assert torch.rand(1) == expected, "the caller's random numbers must stay where they are"
    np.testing.assert_array_equal(first, fitted(augmentation=augmentation))
    assert np.abs(first - fitted(augmentation=augmentation, random_state=1)).max() > 1e-3
    assert np.abs(first - fitted()).max() > 1e-3


def test_a_matrix_may_be_sparse(scenes: dict[str, Any]) -> None:
    X, Y, embeddings = scenes["X"][:60], scenes["Y"][:60, :5].astype(np.int8), scenes["embeddings"][:5]
    dense, sparse = (small(word_embeddings=embeddings).fit(X, y).decision_function(X) for y in (Y, csr_array(Y)))
    np.testing.assert_array_equal(dense, sparse)


# --------------------------------------------------------------------------------------------------- one word an image


def test_one_word_an_image(scenes: dict[str, Any]) -> None:
    """Columns are sorted, whatever the order of words; y holds the words themselves, and so does predict."""
    rng = np.random.default_rng(0)
    words, embeddings = ["dog", "cat", "boat", "apple"], scenes["embeddings"][:4]
    label = rng.integers(0, 3, 200)  # no apple among them
    X = np.eye(4)[label] @ embeddings @ rng.normal(size=(12, 20)) + 0.05 * rng.normal(size=(200, 20))
    y = np.array(words)[label]
    model = small(words, embeddings, epochs=30, lr=1e-2).fit(X, y)
    assert model.classes_.tolist() == sorted(words) == list(model.words_)
    assert model.score(X, y) > 0.95
    proba = model.predict_proba(X)
    np.testing.assert_allclose(proba, softmax(model.decision_function(X), 1), atol=1e-6)
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(model.classes_[proba.argmax(1)], model.predict(X))
    model.set_words(["dog", "cat"], embeddings[:2])
    assert model.decision_function(X).shape == (200,) and model.classes_.tolist() == ["cat", "dog"]
    kept = np.isin(y, ["dog", "cat"])
    assert model.score(X[kept], y[kept]) > 0.95
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], expit(model.decision_function(X)), atol=1e-6)


def test_a_single_word_is_a_column(scenes: dict[str, Any]) -> None:
    X, Y = scenes["X"][:60], scenes["Y"][:60, :1]
    model = small(["dog"], scenes["embeddings"][:1]).fit(X, Y)
    assert model.predict_proba(X).shape == model.predict(X).shape == (60, 1)
    with pytest.warns(DataConversionWarning, match="column-vector"):  # without words it is a list of classes
        assert small().fit(X, Y).predict_proba(X).shape == (60, 2)


# -------------------------------------------------------------------------------------------------- inside scikit-learn


def test_search_in_a_pipeline(scenes: dict[str, Any]) -> None:
    X, Y = scenes["X"][:120], scenes["Y"][:120, :5]
    whole = make_pipeline(StandardScaler(), small(scenes["words"][:5], scenes["embeddings"][:5]))
    grid = {"mldecoderclassifier__lr": [1e-8, 1e-2], "mldecoderclassifier__epochs": [20]}
    search = GridSearchCV(whole, grid, scoring="average_precision", cv=2).fit(X, Y)
    assert search.best_params_["mldecoderclassifier__lr"] == 1e-2
    head = search.best_estimator_[-1]
    head.set_words(scenes["words"][30:], scenes["embeddings"][30:])
    assert search.best_estimator_.predict_proba(X).shape == (120, 10)


@pytest.mark.parametrize("scoring", ["average_precision", "roc_auc", "f1_macro", "accuracy"])
@pytest.mark.parametrize("num_words", [2, 3])
def test_metrics_of_scikit_learn_take_its_scores(scenes: dict[str, Any], scoring: str, num_words: int) -> None:
    """Two columns are no binary problem: with classes_ of two numbers scikit-learn would take one column of scores."""
    X, Y = scenes["X"][:80], scenes["Y"][:80, :num_words]
    model = small(word_embeddings=scenes["embeddings"][:num_words])
    assert np.isfinite(cross_val_score(model, X, Y, scoring=scoring, cv=2, error_score="raise")).all()


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
@pytest.mark.parametrize("num_words", [1, 2, 3])
def test_scores_across_folds(scenes: dict[str, Any], method: str, num_words: int) -> None:
    X, Y, embeddings = scenes["X"][:60], scenes["Y"][:60, :num_words], scenes["embeddings"][:num_words]
    model = small(word_embeddings=embeddings)
    found = cross_val_predict(model, X, Y, cv=KFold(2), method=method)
    wanted = [getattr(clone(model).fit(X[a], Y[a]), method)(X[b]) for a, b in KFold(2).split(X)]
    np.testing.assert_allclose(found, np.concatenate(wanted), atol=1e-6)


def test_numbers_of_numpy_from_a_search(scenes: dict[str, Any]) -> None:
    X, Y, embeddings = scenes["X"][:60], scenes["Y"][:60, :5], torch.tensor(scenes["embeddings"][:5])
    sizes = {"epochs": 2, "batch_size": 16, "num_positions": 4, "decoder_dim": 16, "num_heads": 2}
    plain = small(word_embeddings=embeddings, **sizes).fit(X, Y).decision_function(X)
    ours = small(word_embeddings=embeddings.requires_grad_(), **{name: np.int64(n) for name, n in sizes.items()})
    np.testing.assert_array_equal(ours.fit(X, Y).decision_function(X), plain)


def test_clone_and_pickle(scenes: dict[str, Any]) -> None:
    X, Y, words, embeddings = scenes["X"][:60], scenes["Y"][:60, :5], scenes["words"], scenes["embeddings"]
    augmentation = QueryAugmentation(noise=0.1)
    model = small(words[:5], embeddings[:5], augmentation=augmentation).fit(X, Y).set_words(words[5:8], embeddings[5:8])
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    assert again.words_ == tuple(words[5:8])
    fresh = clone(model)
    with pytest.raises(NotFittedError):
        fresh.predict(X)
    assert fresh.words == words[:5] and fresh.augmentation == augmentation
    model.set_words(words[:5], embeddings[:5])
    np.testing.assert_array_equal(fresh.fit(X, Y).predict_proba(X), model.predict_proba(X))


def test_a_fit_goes_back_to_the_words_of_the_constructor(scenes: dict[str, Any]) -> None:
    X, Y, words, embeddings = scenes["X"][:60], scenes["Y"][:60, :5], scenes["words"], scenes["embeddings"]
    model = small(words[:5], embeddings[:5]).fit(X, Y).set_words(words[5:8], embeddings[5:8])
    assert model.fit(X, Y).words_ == tuple(words[:5])


def test_feature_names_are_kept(scenes: dict[str, Any]) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(scenes["X"][:40], columns=[f"feature {number}" for number in range(20)])
    model = small(word_embeddings=scenes["embeddings"][:5]).fit(table, scenes["Y"][:40, :5])
    assert model.feature_names_in_[3] == "feature 3" and model.n_features_in_ == 20
    with pytest.raises(ValueError, match="feature names"):
        model.predict(table[table.columns[::-1]])


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "X", "y", "message"),
    [
        ({}, np.ones((6, 2, 4)), np.eye(6, 3, dtype=int), r"X must be \(M, F\), got dim 3 .* num_positions=S"),
        ({"num_positions": 3}, None, np.eye(6, 3, dtype=int), "num_positions must divide the 8 features of X, got 3"),
        (
            {"num_positions": 0},
            None,
            np.eye(6, 3, dtype=int),
            "num_positions must be a whole number of at least 1, got 0",
        ),
        ({"epochs": 0}, None, np.eye(6, 3, dtype=int), "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": 2.5}, None, np.eye(6, 3, dtype=int), "epochs must be a whole number of at least 1, got 2.5"),
        (
            {"batch_size": "8"},
            None,
            np.eye(6, 3, dtype=int),
            "batch_size must be a whole number of at least 1, got '8'",
        ),
        (
            {"augmentation": QueryAugmentation(mixed=2)},
            None,
            np.array(["a", "b"] * 3),
            "augmentation must be noise alone",
        ),
        ({"lr": float("nan")}, None, np.eye(6, 3, dtype=int), "lr must be positive .* got nan"),
        ({"lr": 1e30}, None, np.eye(6, 3, dtype=int), "lr must be small enough .* StandardScaler"),
        ({"loss": "hinge"}, None, np.eye(6, 3, dtype=int), "loss must be one of"),
        ({"num_heads": 3}, None, np.eye(6, 3, dtype=int), "num_heads must divide decoder_dim=16"),
        ({"word_embeddings": np.ones((4, 5))}, None, np.eye(6, 3, dtype=int), "y must have a column for each of the 4"),
        ({"word_embeddings": np.ones(5)}, None, np.eye(6, 3, dtype=int), r"word_embeddings must be \(N, T\).*\(5,\)"),
        (
            {"words": ["dog"], "word_embeddings": np.ones((3, 5))},
            None,
            np.eye(6, 3, dtype=int),
            r"word_embeddings must be \(1, T\)",
        ),
        ({"word_embeddings": np.full((3, 5), np.nan)}, None, np.eye(6, 3, dtype=int), "must be finite numbers"),
        ({}, None, np.eye(6, 3, dtype=int) * 2 - 1, "y must be 0 where a word is absent, got only -1"),
        ({}, None, np.arange(18).reshape(6, 3), r"y must be 1 \(present\), 0 \(absent\) or -1 \(unknown\)"),
        ({"word_embeddings": np.ones((3, 5))}, None, np.arange(6), r"y must be \(M, N\).*and no words"),
        (
            {"words": ["dog", "cat"], "word_embeddings": np.ones((2, 5))},
            None,
            np.array(["dog", "boat"] * 3),
            r"\(M,\) texts that are among words, got \(6,\) with \['boat'\]",
        ),
    ],
)
def test_errors_say_what_to_do(options: dict[str, Any], X: Any, y: Any, message: str) -> None:
    features = np.random.default_rng(0).normal(size=(6, 8)) if X is None else X
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small(**options).fit(features, y)


def test_words_that_do_not_fit_leave_the_head_as_it_was(scenes: dict[str, Any]) -> None:
    X, Y, words, embeddings = scenes["X"][:40], scenes["Y"][:40, :5], scenes["words"], scenes["embeddings"]
    model = small(words[:5], embeddings[:5]).fit(X, Y)
    before = model.predict_proba(X)
    for arguments, message in [
        ((), r"word_embeddings must be \(N, 12\) as in the fit, got None"),
        ((["new"], np.ones((1, 3))), r"word_embeddings must be \(N, 12\) as in the fit, got \(1, 3\)"),
        ((["a", "b"], embeddings[:3]), r"word_embeddings must be \(2, T\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.set_words(*arguments)
    with pytest.raises(ValueError, match="must be distinct"):
        model.set_words(["a", "a"], embeddings[:2])
    np.testing.assert_array_equal(model.predict_proba(X), before)
    assert model.words_ == tuple(words[:5])


def test_words_need_a_head_with_words(scenes: dict[str, Any]) -> None:
    with pytest.raises(NotFittedError):
        small().set_words(["dog"])
    model = small().fit(scenes["X"][:40], scenes["Y"][:40, :5])
    with pytest.raises(ValueError, match="words cannot be set for class queries"):
        model.set_words(["dog"])
    assert model.words_ is None and model.word_embeddings_ is None
