"""Several texts, one result: its score is that of the best of them, whatever happens to the words."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zsmld import Predictor, Vocabulary
from zsmld.calibration import Calibration
from zsmld.predictor.words import check_synonyms, fitting_synonyms

MakeModel = Callable[..., Any]
SYNONYMS = {"dog": ["zebra", "lamp"], "beach": ["kite"]}
OWNERS = {"zebra": "dog", "lamp": "dog", "kite": "beach"}


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Any:
    return make_model(output="sum")


def make(model: Any, words: Any = ("cat", "dog", "beach"), synonyms: Any = SYNONYMS, **options: Any) -> Predictor:
    return Predictor(model, words, device="cpu", synonyms=synonyms, **options)


@torch.no_grad()
def plain_logits(model: Any, images: list[Image.Image], texts: Any) -> np.ndarray:
    inputs = torch.stack([model.image_encoder.transform(image) for image in images])
    return model(inputs, model.encode_words(texts)).numpy()


def best_of(scores: dict[str, np.ndarray], word: str, synonyms: Any = SYNONYMS) -> np.ndarray:
    return np.max([scores[text] for text in (word, *synonyms.get(word, ()))], axis=0)


@pytest.fixture
def alone(model: Any, images: list[Image.Image]) -> dict[str, np.ndarray]:
    """Scores of each text as a word of its own."""
    texts = ["cat", "dog", "beach", "zebra", "lamp", "kite", "tree"]
    return dict(zip(texts, make(model, texts, None).score(images)[0].T, strict=True))


def test_a_result_has_the_score_of_the_best_of_its_texts(
    model: Any, images: list[Image.Image], alone: dict[str, np.ndarray]
) -> None:
    predictor = make(model)
    assert predictor.vocabulary.words == ("cat", "dog", "beach") and predictor.vocabulary.seen == (
        "cat",
        "dog",
        "beach",
    )
    assert predictor.synonyms == {"dog": ("zebra", "lamp"), "beach": ("kite",)}
    scores = predictor.score(images)[0]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.T, [best_of(alone, word) for word in predictor.vocabulary], atol=1e-5)
    assert (scores[:, 1] > alone["dog"] + 1e-4).any()  # a synonym was best somewhere
    for p, row in zip(predictor.predict(images), scores, strict=True):
        assert set(p.words) == {"cat", "dog", "beach"} and [row[label] for label in p.labels] == list(p.scores)


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["add", "remove", "set"]), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_changing_words_keeps_the_synonyms(model: Any, actions: list[str], random: Any) -> None:
    """Against a model of the state: words in order, and who is whose synonym."""
    everything = ["cat", "dog", "beach", "boat", "tree", "zebra", "lamp", "kite"]
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    alone = dict(zip(everything, make(model, everything, None).score(pixels)[0][0], strict=True))
    predictor, state = make(model), {"cat": [], "dog": ["zebra", "lamp"], "beach": ["kite"]}
    for action in actions:
        texts = {text for word, own in state.items() for text in (word, *own)}
        free = [text for text in everything if text not in texts]
        if action == "add" and len(free) >= 2:
            word, synonym = random.sample(free, 2)
            predictor.add_words([word], synonyms={word: [synonym]})
            state[word] = [synonym]
        elif action == "remove" and len(state) > 1:
            word = random.choice(list(state))
            predictor.remove_words([word])
            del state[word]
        elif action == "set":
            words = random.sample(everything, 4)
            predictor.set_words(words)
            state = {word: [text for text in state.get(word, []) if text not in words] for word in words}
        assert predictor.vocabulary.words == tuple(state)
        assert predictor.synonyms == {word: tuple(own) for word, own in state.items() if own}
        expected = [max(alone[text] for text in (word, *own)) for word, own in state.items()]
        np.testing.assert_allclose(predictor.score(pixels)[0][0], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "per_image", "per_word"])
def test_each_text_is_calibrated_as_what_it_is(make_model: MakeModel, images: list[Image.Image], kind: Any) -> None:
    """A trained word and its untrained synonym: the constant for untrained words is the synonym's alone."""
    model, texts = make_model(output="sum"), ["cat", "dog", "zebra", "lamp"]
    calibration = Calibration(
        kind,
        trained_words=("dog", "cat", "beach"),
        stacking=0.4,
        reference_words=("beach", "cat", "dog") if kind == "per_image" else (),
        word_statistics={"dog": (0.1, 0.5), "cat": (-0.2, 2.0)} if kind == "per_word" else {},
        thresholds={"dog": 0.3},
        default_threshold=0.5,
    )
    model.calibration = calibration.to_dict()
    reference = plain_logits(model, images, ("beach", "cat", "dog")) if kind == "per_image" else None
    calibrated = calibration.apply(plain_logits(model, images, texts), texts, reference)
    predictor = make(model, ["cat", "dog"], {"dog": ["zebra", "lamp"]}, batch_size=3)
    best = np.stack([calibrated[:, 0], calibrated[:, 1:].max(1)], 1)
    np.testing.assert_allclose(predictor.score(images)[0], calibration.scores(best), atol=1e-4)
    margins = calibrated - [0.5, 0.3, 0.5, 0.5]
    expected = np.stack(
        [margins[:, 0] >= 0, (margins[:, 1:] >= 0).any(1)], 1
    )  # any text that reaches its own threshold
    found = predictor.predict(images, top_k=None, threshold="calibrated")
    assert [set(p.labels) for p in found] == [set(np.flatnonzero(row)) for row in expected]
    predictor.set_thresholds({"cat": 0.5}, default_threshold="calibrated")
    for p, row, scores in zip(
        predictor.predict(images, None, "stored"), expected, predictor.score(images)[0], strict=True
    ):
        assert set(p.labels) == {label for label in (0, 1) if (scores[0] >= 0.5, row[1])[label]}


def test_with_softmax_synonyms_take_no_probability_from_their_word(make_model: MakeModel, images: list[Any]) -> None:
    model = make_model()
    model.scores = "softmax"
    scores = make(model, ["cat", "dog"], {"dog": ["zebra"]}).score(images)[0]
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)
    logits = plain_logits(model, images, ["cat", "dog", "zebra"])
    best = np.exp(np.stack([logits[:, 0], logits[:, 1:].max(1)], 1))
    np.testing.assert_allclose(scores, best / best.sum(1, keepdims=True), atol=1e-5)


def test_a_synonym_may_have_descriptions(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="text_encoder must be a sentence encoder to encode descriptions"):
        make(make_model(), ["dog"], {"dog": ["zebra"]}, descriptions={"zebra": ["a striped animal"]})


@pytest.mark.parametrize(
    ("synonyms", "message"),
    [
        ({"horse": ["zebra"]}, "synonyms must be of the words, got those of 'horse'"),
        ({"dog": ["cat"]}, "synonyms must not be words themselves, got 'cat' of 'dog'"),
        ({"dog": ["dog"]}, "synonyms must not be words themselves, got 'dog' of 'dog'"),
        ({"dog": ["zebra", "zebra "]}, r"synonyms of 'dog' must be distinct, got \['zebra'\] more than once"),
        ({"dog": ["zebra"], "cat": ["zebra"]}, "synonyms must be of one word each, got 'zebra' of 'dog' and of 'cat'"),
        ({"dog": "zebra"}, "synonyms of 'dog' must be a list of words, got the text 'zebra'"),
        ({"dog": [""]}, "synonyms of 'dog' must not be empty texts"),
        (["zebra"], "synonyms must map words to lists of texts, got list"),
    ],
)
def test_bad_synonyms_are_refused(model: Any, synonyms: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make(model, synonyms=synonyms)
    predictor = make(model, ["dog", "cat"], None)
    with pytest.raises((ValueError, TypeError), match=message):
        predictor.set_words(["dog", "cat"], synonyms=synonyms)
    assert predictor.synonyms == {}


def test_bad_additions_leave_the_predictor_as_it_was(model: Any, images: list[Image.Image]) -> None:
    predictor = make(model)
    before = predictor.score(images)[0]
    for words, synonyms, message in (
        (["kite"], None, r"words must be new, got \['kite'\], already among the words or synonyms"),
        (["tree"], {"tree": ["lamp"]}, "synonyms must be of one word each, got 'lamp' of 'dog' and of 'tree'"),
        (["tree"], {"tree": ["cat"]}, "synonyms must not be words themselves, got 'cat' of 'tree'"),
        (["tree"], {"cat": ["boat"]}, "synonyms must be of the words, got those of 'cat'"),
        (["tree"], {"tree": ["unheard-of"]}, "words must have a vector"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor.add_words(words, synonyms=synonyms)
        assert predictor.vocabulary.words == ("cat", "dog", "beach") and len(predictor.synonyms) == 2
    np.testing.assert_array_equal(predictor.score(images)[0], before)


def test_classes_have_none(make_model: MakeModel) -> None:
    model = make_model(num_classes=3)
    model.remember_words(Vocabulary(["dog", "cat", "tree"]), None)
    with pytest.raises(ValueError, match=r"synonyms must be none in class mode, got those of \['dog'\]"):
        make(model, None, {"dog": ["zebra"]})


def test_words_and_spaces_are_as_everywhere() -> None:
    assert check_synonyms({" sofa ": [" couch"], "car": []}, ["sofa", "car"]) == {"sofa": ("couch",)}
    assert fitting_synonyms({"sofa": ("couch",)}, ["couch"]) == {}
