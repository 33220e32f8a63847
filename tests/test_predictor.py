"""Predictor: any source of images, any list of words, nothing lost on the way."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zsmld import Predictor, TextEncoder
from zsmld.calibration import Calibration
from zsmld.images import load_image
from zsmld.predictor import Prediction, list_images
from zsmld.predictor.prediction import best_labels

MakeModel = Callable[..., Any]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> Any:
    return make_model(output="sum")


def make(model: Any, words: list[str] | None = None, **options: Any) -> Predictor:
    return Predictor(model, words, device="cpu", **options)


@pytest.fixture
def folder(tmp_path: Path, images: list[Image.Image]) -> Path:
    """Five pictures, one of them deeper and one of them broken, and a text that is no image."""
    (tmp_path / "deep").mkdir()
    for name, image in zip(["a.png", "b.jpg", "deep/d.PNG", "e.webp"], images, strict=False):
        image.save(tmp_path / name)
    (tmp_path / "c.jpg").write_bytes(b"broken")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


# -------------------------------------------------------------------------------------------------------------- laws


@torch.no_grad()
def test_score_is_the_sigmoid_of_the_models_logits(model: Any, images: list[Image.Image]) -> None:
    words = ["zebra", "dog", "lamp"]
    scores, failed = make(model, words, batch_size=3).score(images)
    inputs = torch.stack([model.image_encoder.transform(image) for image in images])
    expected = torch.sigmoid(model(inputs, model.encode_words(words)))
    assert scores.dtype == np.float32 and failed == []
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["scenes", Path("scenes"), {"weights": 1}])
def test_what_is_no_model_is_refused_with_the_way_to_one(name: Any) -> None:
    load = "load it" if isinstance(name, dict) else r"pass ZeroShotClassifier\.from_pretrained\('scenes'\)"
    with pytest.raises(TypeError, match=rf"model must be a ZeroShotClassifier, got \w+; {load}"):
        Predictor(name, ["dog"])


@settings(max_examples=15)
@given(st.lists(st.sampled_from(["add", "remove", "set"]), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_changing_words_keeps_the_scores_of_the_others(model: Any, actions: list[str], random: Any) -> None:
    everything = ["dog", "cat", "red car", "beach", "boat", "tree", "snow", "bird", "zebra", "lamp"]
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    reference = dict(zip(everything, make(model, everything).score(pixels)[0][0], strict=True))
    predictor = make(model, everything[:4])
    for action in actions:
        current = list(predictor.vocabulary.words)
        if action == "add":
            new = random.sample(rest := [w for w in everything if w not in current], min(2, len(rest)))
            expected = current + new
            if new:
                predictor.add_words(new)
        elif action == "remove":
            gone = random.sample(current, min(2, len(current) - 1))
            expected = [word for word in current if word not in gone]
            if gone:
                predictor.remove_words(gone)
        else:
            expected = random.sample(everything, 5)
            predictor.set_words(expected)
        assert list(predictor.vocabulary.words) == expected
        scores = predictor.score(pixels)[0][0]
        np.testing.assert_allclose(scores, [reference[word] for word in expected], atol=1e-5)


def test_words_are_seen_where_the_model_saw_them(model: Any) -> None:
    assert make(model, ["zebra", "dog", "boat", "cat"]).vocabulary.seen == ("dog", "cat")


def test_added_words_are_seen_where_the_model_saw_them(model: Any) -> None:
    predictor = make(model, ["zebra", "dog"])
    predictor.add_words(["cat", "lamp"])
    assert predictor.vocabulary.seen == ("dog", "cat")


@pytest.mark.parametrize("batch_size", [1, 2, 5, 32])
def test_batches_change_nothing(batch_size: int, model: Any, folder: Path) -> None:
    found = list(make(model, batch_size=batch_size).predict(folder, top_k=None))
    reference = list(make(model, batch_size=4).predict(folder, top_k=None))
    assert [p.path for p in found] == [p.path for p in reference]
    for a, b in zip(found, reference, strict=True):
        assert a.error == b.error
        by_word = dict(zip(b.words, b.scores, strict=True))
        assert all(abs(score - by_word[word]) < 1e-5 for word, score in zip(a.words, a.scores, strict=True))


def test_workers_change_nothing(model: Any, folder: Path) -> None:
    assert list(make(model, num_workers=2).predict(folder)) == list(make(model).predict(folder))


# ------------------------------------------------------------------------------------------------------------ sources


def test_every_kind_of_source(model: Any, folder: Path, images: list[Image.Image]) -> None:
    predictor, path = make(model), folder / "a.png"
    (expected,) = predictor.predict(path)
    assert expected.path == str(path) and len(expected.words) == 5
    with path.open("rb") as file:
        sources = [
            str(path),
            images[0],
            np.asarray(images[0]),
            path.read_bytes(),
            file,
            model.image_encoder.transform(images[0]),
            [path],
            (image for image in [images[0]]),
        ]
        for source in sources:
            (found,) = predictor.predict(source)
            assert found.words == expected.words
            assert found.scores == pytest.approx(expected.scores, abs=1e-6)
            assert found.path in (None, str(path))


def test_folders_and_globs_are_sorted(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.png", "b.jpg", "c.jpg", "deep/d.PNG", "e.webp"]
    assert list_images(folder) == [folder / name for name in names]
    assert list_images(str(folder / "*.jpg")) == [folder / "b.jpg", folder / "c.jpg"]
    assert list_images(folder / "**" / "*.PNG") == [folder / "deep" / "d.PNG"]
    monkeypatch.chdir(folder)
    assert list_images("*.jpg") == [Path("b.jpg"), Path("c.jpg")]
    assert list_images(["a.png", "deep"]) == ["a.png", Path("deep/d.PNG")]
    assert [p.path for p in make(model).predict(".")] == names


def test_an_unreadable_image_is_reported_and_the_rest_comes_in_order(model: Any, folder: Path) -> None:
    paths = [folder / "a.png", folder / "c.jpg", folder / "b.jpg", folder / "missing.jpg", folder / "e.webp"]
    found = list(make(model, batch_size=2).predict(paths))
    assert [p.path for p in found] == [str(path) for path in paths]
    assert [p.error is None for p in found] == [True, False, True, False, True]
    assert "cannot decode" in found[1].error and "c.jpg" in found[1].error
    assert "not found" in found[3].error and "missing.jpg" in found[3].error
    assert found[1].words == found[1].scores == found[1].labels == ()
    alone = [next(make(model).predict(path)) for path in paths if path.name in ("a.png", "b.jpg", "e.webp")]
    for a, b in zip(alone, [found[0], found[2], found[4]], strict=True):
        assert a.words == b.words and a.scores == pytest.approx(b.scores, abs=1e-5)
    scores, failed = make(model, batch_size=2).score(paths)
    assert scores.shape == (3, 6) and [p.path for p in failed] == [str(paths[1]), str(paths[3])]


def test_two_equal_paths_are_two_images(model: Any, folder: Path) -> None:
    found = list(make(model).predict([folder / "a.png", folder / "c.jpg", folder / "a.png"]))
    assert [p.error is None for p in found] == [True, False, True] and found[0].words == found[2].words


def test_images_are_streamed(model: Any, images: list[Image.Image]) -> None:
    stream = make(model, batch_size=1).predict([images[0], "never/looked/at.jpg"])
    assert next(stream).error is None


def test_no_images_give_no_predictions(model: Any) -> None:
    assert list(make(model).predict([])) == []
    assert make(model).score([])[0].shape == (0, 6)


def test_sources_that_match_nothing(model: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (folder / "none.jpg", str(folder / "*.bmp"), tmp_path / "empty"):
        with pytest.raises(FileNotFoundError, match=r"images must be an existing file, a folder .* found none at"):
            make(model).predict(source)


# ------------------------------------------------------------------------------------------------------------ records


def test_top_k_and_threshold(model: Any, images: list[Image.Image]) -> None:
    predictor = make(model)
    scores = predictor.score(images)[0]
    for row, p in zip(scores, predictor.predict(images, top_k=None), strict=True):
        assert list(p.scores) == sorted(row.tolist(), reverse=True)
        assert [float(row[label]) for label in p.labels] == list(p.scores)
        assert [predictor.vocabulary.words[label] for label in p.labels] == list(p.words)
    for k in (1, 3, 99):
        for p, every in zip(predictor.predict(images, top_k=k), predictor.predict(images, top_k=None), strict=True):
            assert p.words == every.words[:k]
    middle = float(np.median(scores))
    above = list(predictor.predict(images, top_k=None, threshold=middle))
    assert sum(len(p.words) for p in above) == (scores >= middle).sum()
    assert all(score >= middle for p in above for score in p.scores)
    assert next(predictor.predict(images[0], threshold=1.0)).words == ()
    assert len(next(predictor.predict(images[0], top_k=None, threshold=0.0)).words) == 6


def test_each_word_has_its_own_threshold(model: Any, images: list[Image.Image]) -> None:
    predictor = make(model)
    scores = predictor.score(images)[0]
    middle = np.median(scores, axis=0)
    own = {word: float(value) for word, value in zip(predictor.vocabulary.words[1:], middle[1:], strict=True)}
    least = np.array([0.3, *middle[1:]], np.float32)  # the first word has the default
    expected = [set(np.flatnonzero(row >= least)) for row in scores]
    given = [set(p.labels) for p in predictor.predict(images, top_k=None, threshold=own, default_threshold=0.3)]
    assert given == expected and 0 < sum(map(len, given)) < scores.size
    predictor.set_thresholds(own, default_threshold=0.3)
    assert predictor.thresholds == own and predictor.default_threshold == 0.3
    assert [set(p.labels) for p in predictor.predict(images, top_k=None, threshold="stored")] == expected
    same = predictor.predict(images, top_k=None, threshold=dict.fromkeys(predictor.vocabulary, 0.5))
    assert list(same) == list(predictor.predict(images, top_k=None, threshold=0.5))


def test_stored_thresholds_stay_with_their_words(model: Any) -> None:
    predictor = make(model, ["dog", "cat"])
    assert predictor.thresholds is None and predictor.default_threshold is None
    predictor.set_thresholds({"dog": 0.25})
    predictor.add_words(["zebra"])
    assert predictor.thresholds == {"dog": 0.25} and predictor.default_threshold == 0.5
    with pytest.raises(ValueError, match="thresholds must be of words of the predictor"):
        predictor.set_thresholds({"lamp": 0.1})
    assert predictor.thresholds == {"dog": 0.25}
    predictor.set_words(["zebra", "dog"])
    assert predictor.thresholds == {"dog": 0.25}
    predictor.remove_words(["dog"])
    assert predictor.thresholds == {}


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.5000001, 1.0]), min_size=1, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.one_of(st.none(), st.integers(1, 13)),
)
def test_best_labels_are_those_of_a_stable_sort(values: list[float], kept: list[bool], top_k: int | None) -> None:
    scores, given_ = np.array(values, np.float32), np.array(kept[: len(values)])
    order = [label for label in np.argsort(-scores, kind="stable") if given_[label]]
    assert best_labels(scores, given_, top_k).tolist() == order[:top_k]


def test_full_scores_are_those_of_every_word(model: Any, folder: Path) -> None:
    predictor = make(model, batch_size=2)
    scores, _ = predictor.score(folder)
    found = list(predictor.predict(folder, top_k=1, threshold=1.0, full_scores=True))
    assert [p.full_scores is None for p in found] == [p.error is not None for p in found]
    rows = [p.full_scores for p in found if p.full_scores is not None]
    assert all(row.dtype == np.float32 for row in rows)
    np.testing.assert_array_equal(rows, scores)
    assert found == list(predictor.predict(folder, top_k=1, threshold=1.0))  # neither compared, shown nor recorded
    assert "full_scores" not in found[0].to_dict() and "full_scores=" not in repr(found[0])


def test_a_running_prediction_keeps_its_words_and_thresholds(model: Any, images: list[Image.Image]) -> None:
    predictor = make(model, ["dog", "cat"], batch_size=2)
    predictor.set_thresholds({}, default_threshold=0.0)
    expected = list(predictor.predict(images, threshold="stored"))
    stream = predictor.predict(iter(images), threshold="stored")
    found = [next(stream)]
    predictor.set_thresholds({}, default_threshold=1.0)
    predictor.add_words(["zebra"])
    found.append(next(stream))
    predictor.set_words(["beach"])
    assert found + list(stream) == expected
    assert next(predictor.predict(images[0])).words == ("beach",)


def test_record_has_the_fixed_shape(model: Any, folder: Path) -> None:
    good, bad = (p.to_dict() for p in make(model).predict([folder / "a.png", folder / "c.jpg"], top_k=2))
    assert list(good) == list(bad) == ["path", "words", "scores", "labels", "error"]
    assert good["path"] == str(folder / "a.png") and good["error"] is None
    assert [type(v) for v in (*good["words"], *good["scores"], *good["labels"])] == [str] * 2 + [float] * 2 + [int] * 2
    assert bad["words"] == bad["scores"] == bad["labels"] == [] and isinstance(bad["error"], str)
    assert Prediction(None).to_dict() == {"path": None, "words": [], "scores": [], "labels": [], "error": None}


# -------------------------------------------------------------------------------------------------------------- words


def test_default_words_are_the_models(model: Any) -> None:
    predictor = make(model)
    assert predictor.vocabulary == model.vocabulary
    assert "6 words" in repr(predictor)


def test_a_failed_change_leaves_the_predictor_as_it_was(model: Any, images: list[Image.Image]) -> None:
    predictor = make(model, ["dog", "cat"])
    before = predictor.score(images)[0]
    for change in (
        lambda: predictor.set_words(["dog", "unheard-of"]),
        lambda: predictor.add_words(["unheard-of"]),
        lambda: predictor.add_words(["dog"]),
        lambda: predictor.remove_words(["dog", "zebra"]),
        lambda: predictor.remove_words(["dog", "cat"]),
        lambda: predictor.set_words([]),
    ):
        with pytest.raises(ValueError, match="word"):
            change()
        assert predictor.vocabulary.words == ("dog", "cat")
        np.testing.assert_array_equal(predictor.score(images)[0], before)


def test_wrong_words(model: Any, make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="words must have at least one word, got none"):
        make(model, [])
    with pytest.raises(ValueError, match=r"words must be distinct, got \['dog'\] more than once"):
        make(model, ["dog", "cat", "dog"])
    with pytest.raises(TypeError, match="words must be a list of words, got the text 'dog'"):
        make(model, "dog")
    with pytest.raises(ValueError, match=r"words must have a vector in words\.npz, .*\['unheard-of'\]"):
        make(model, ["dog", "unheard-of"])
    with pytest.raises(ValueError, match=r"words must be new, got \['cat'\], already among the words"):
        make(model, ["dog", "cat"]).add_words(["zebra", "cat"])
    with pytest.raises(ValueError, match=r"among those of the predictor, got \['zebra'\] besides; leave them out"):
        make(model, ["dog", "cat"]).remove_words(["zebra"])
    with pytest.raises(ValueError, match="at least one left, all would be removed; use set_words"):
        make(model, ["dog", "cat"]).remove_words(["cat", "dog"])
    with pytest.raises(ValueError, match="words must be given, the model knows none of its own"):
        make(make_model(remember=False))


def test_known_words_do_not_build_a_text_encoder(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(model), "build_text_encoder", None)
    predictor = make(model, ["tree", "dog"])
    predictor.add_words(["cat"])
    with pytest.raises(TypeError):
        predictor.add_words(["zebra"])


def test_a_given_text_encoder_must_be_the_models(
    model: Any, make_vectors: Callable[..., Path], tmp_path: Path, vectors_path: Path
) -> None:
    other = TextEncoder(f"vectors:{make_vectors(tmp_path / 'o.npz', ('zebra',), seed=5)}")
    with pytest.raises(ValueError, match="text_encoder must be the one this model was trained with"):
        make(model, ["zebra"], text_encoder=other)
    assert make(model, ["zebra"], text_encoder=TextEncoder(f"vectors:{vectors_path}")).vocabulary.words == ("zebra",)


def test_only_new_words_are_encoded_and_compiled(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adding words costs what encoding them costs, however many there are."""
    encoded: list[str] = []
    compiled: list[int] = []
    encode, queries = TextEncoder.encode_words, type(model.decoder).word_queries

    def counting_encode(self: TextEncoder, words: Any) -> torch.Tensor:
        encoded.extend(words)
        return encode(self, words)

    def counting_queries(self: Any, word_embeddings: torch.Tensor, *rest: Any) -> Any:
        compiled.append(len(word_embeddings))
        return queries(self, word_embeddings, *rest)

    monkeypatch.setattr(TextEncoder, "encode_words", counting_encode)
    monkeypatch.setattr(type(model.decoder), "word_queries", counting_queries)
    predictor = make(model, ["zebra", "dog", "lamp"])  # the dog is the model's
    predictor.add_words(["kite", "cat"], synonyms={"kite": ["cup"]})
    predictor.remove_words(["dog"])
    assert encoded == ["zebra", "lamp", "kite", "cup"] and compiled == [3, 3]


# --------------------------------------------------------------------------------------------------------- calibration

CALIBRATIONS = {
    "none": Calibration(trained_words=("dog", "cat"), stacking=-0.5, scale=2.0, bias=1.0),
    "per_image": Calibration("per_image", ("dog", "cat", "beach"), 0.8, ("beach", "cat", "dog"), scale=3.0, bias=-0.2),
    "both": Calibration(
        "both",
        trained_words=("dog", "cat", "red car", "beach"),
        stacking=0.3,
        reference_words=("red car", "dog", "cat"),  # of two, each would be ±1 in every image
        word_statistics={"dog": (0.1, 0.5), "cat": (-0.2, 2.0)},
        default_statistics=(0.05, 0.8),
    ),
}


@pytest.fixture(params=list(CALIBRATIONS))
def calibrated_model(request: pytest.FixtureRequest, make_model: MakeModel, images: list[Image.Image]) -> Any:
    """A calibrated model; each word's threshold is such that about half of the images are given it."""
    model = make_model(output="sum")
    calibration = CALIBRATIONS[request.param]
    ranked = np.sort(calibration.apply(plain_logits(model, images, WORDS), WORDS), axis=0)[2:5]  # the middle of seven
    widest = np.diff(ranked, axis=0).argmax(0)  # no logit so near to its threshold that rounding decides
    columns = np.arange(len(WORDS))
    middle = dict(zip(WORDS, ((ranked[widest, columns] + ranked[widest + 1, columns]) / 2).tolist(), strict=True))
    default = middle.pop("zebra")
    model.calibration = replace(calibration, thresholds=middle, default_threshold=default).to_dict()
    return model


WORDS = ("zebra", "dog", "beach", "lamp", "red car", "cat")


@torch.no_grad()
def plain_logits(model: Any, images: Any, words: Any) -> np.ndarray:
    inputs = torch.stack([model.image_encoder.transform(load_image(image)) for image in images])
    return model(inputs, model.encode_words(words)).numpy()


def test_scores_are_calibrated_where_a_calibration_is_stored(calibrated_model: Any, images: list[Image.Image]) -> None:
    calibration = Calibration.from_dict(calibrated_model.calibration)
    calibrated = calibration.apply(plain_logits(calibrated_model, images, WORDS), WORDS)
    scores = make(calibrated_model, WORDS, batch_size=3).score(images)[0]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, calibration.scores(calibrated), atol=1e-4)
    plain = make(calibrated_model, WORDS, calibrated=False)
    assert plain.calibration is None
    sigmoids = torch.sigmoid(torch.from_numpy(plain_logits(calibrated_model, images, WORDS))).numpy()
    np.testing.assert_allclose(plain.score(images)[0], sigmoids, atol=1e-5)
    assert np.abs(scores - sigmoids).max() > 0.05


def test_calibrated_scores_do_not_depend_on_the_other_words(calibrated_model: Any, images: list[Image.Image]) -> None:
    reference = make(calibrated_model, WORDS).score(images)[0]
    predictor = make(calibrated_model, ["lamp"])  # none of the reference words is among the words
    np.testing.assert_allclose(predictor.score(images)[0], reference[:, [3]], atol=1e-4)
    predictor.add_words(["cat", "zebra"])
    np.testing.assert_allclose(predictor.score(images)[0], reference[:, [3, 5, 0]], atol=1e-4)
    predictor.remove_words(["cat"])
    np.testing.assert_allclose(predictor.score(images)[0], reference[:, [3, 0]], atol=1e-4)
    predictor.set_words(WORDS[::-1])
    np.testing.assert_allclose(predictor.score(images)[0], reference[:, ::-1], atol=1e-4)


def test_reference_words_are_compiled_once_and_need_no_text_encoder(
    calibrated_model: Any, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(calibrated_model), "build_text_encoder", None)
    predictor = make(calibrated_model, ["cat"], batch_size=2)
    monkeypatch.setattr(type(calibrated_model.decoder), "word_queries", None)  # whoever compiles again fails
    assert len(list(predictor.predict(images))) == 7


def test_calibrated_thresholds_and_their_default(calibrated_model: Any, images: list[Image.Image]) -> None:
    calibration = Calibration.from_dict(calibrated_model.calibration)
    predictor = make(calibrated_model, [*WORDS, "kite"], batch_size=3)
    logits = plain_logits(calibrated_model, images, [*WORDS, "kite"])
    thresholds = np.array([calibration.default_threshold, *map(calibration.thresholds.get, WORDS[1:])])
    thresholds = np.append(thresholds, calibration.default_threshold)  # "kite" is as new as "zebra"
    expected = calibration.apply(logits, [*WORDS, "kite"]) >= thresholds
    found = list(predictor.predict(images, top_k=None, threshold="calibrated"))
    assert [set(p.labels) for p in found] == [set(np.flatnonzero(row)) for row in expected]
    assert 0 < expected.sum() < expected.size
    every = predictor.predict(images, top_k=None)
    for p, whole in zip(found, every, strict=True):
        assert list(p.words) == [word for word in whole.words if word in p.words]  # still ranked by score
        assert p.scores == tuple(s for s, word in zip(whole.scores, whole.words, strict=True) if word in p.words)
    best = list(predictor.predict(images, top_k=1, threshold="calibrated"))
    assert [p.words for p in best] == [p.words[:1] for p in found]


def test_a_word_whose_threshold_is_out_of_reach_is_never_given(make_model: MakeModel, images: list[Any]) -> None:
    model = make_model()
    model.calibration = Calibration(
        scale=1e6, bias=1e9, thresholds={"dog": float("inf")}, default_threshold=-9.0
    ).to_dict()
    (found,) = make(model, ["dog", "cat"]).predict(images[0], threshold="calibrated")
    assert found.words == ("cat",)
    (found,) = make(model, ["dog", "cat"]).predict(images[0])
    assert set(found.words) == {"dog", "cat"} and min(found.scores) == 1.0


def test_class_queries_take_their_reference_from_their_own_classes(
    make_model: MakeModel, images: list[Image.Image]
) -> None:
    from zsmld import Vocabulary

    model, classes = make_model(num_classes=3), ("dog", "cat", "tree")
    model.remember_words(Vocabulary(classes), None)
    calibration = Calibration("per_image", classes, reference_words=("tree", "dog"))
    model.calibration = calibration.to_dict()
    with torch.no_grad():
        logits = model(torch.stack([model.image_encoder.transform(image) for image in images])).numpy()
    expected = calibration.scores(calibration.apply(logits, classes))
    np.testing.assert_allclose(make(model).score(images)[0], expected, atol=1e-4)


def test_calibrations_that_cannot_be_used(make_model: MakeModel) -> None:
    model = make_model()
    for predictor in (make(model), make(model, calibrated=False)):
        with pytest.raises(ValueError, match=r"threshold must be a number, .* got 'calibrated' with no calibration"):
            predictor.predict([], threshold="calibrated")
    model.calibration = Calibration("per_word", transductive=True).to_dict()
    with pytest.raises(ValueError, match="calibrated must be False for this model, its calibration is transductive"):
        make(model)
    assert make(model, calibrated=False).calibration is None
    model.calibration = {"stacking": 1.0}
    with pytest.raises(ValueError, match=r"calibration must have the keys .* are missing"):
        make(model)
    model.calibration = Calibration().to_dict()
    with pytest.raises(ValueError, match=r"threshold must be a number, .* got 'best'"):
        make(model).predict([], threshold="best")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- class mode, errors


def test_class_mode_scores_its_classes_and_no_other(make_model: MakeModel, images: list[Image.Image]) -> None:
    from zsmld import Vocabulary

    model = make_model(num_classes=3)
    model.remember_words(Vocabulary(["dog", "cat", "tree"]), None)
    predictor = make(model)
    assert predictor.score(images)[0].shape == (7, 3)
    assert set(next(predictor.predict(images[0])).words) == {"dog", "cat", "tree"}
    with pytest.raises(ValueError, match="words must be the 3 classes of the model in their order"):
        predictor.set_words(["cat", "dog", "tree"])
    with pytest.raises(ValueError, match="words cannot be added in class mode"):
        predictor.add_words(["zebra"])
    with pytest.raises(ValueError, match="words cannot be removed in class mode"):
        predictor.remove_words(["dog"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1 or None, got 0"),
        ({"threshold": 1.5}, r"threshold must be in \[0, 1\], got 1\.5"),
        ({"threshold": -0.1}, r"threshold must be in \[0, 1\], got -0\.1"),
        ({"threshold": True}, r"threshold must be in \[0, 1\], got True"),
        ({"threshold": {"dgo": 0.5}}, r"thresholds must be of words of the predictor, got \['dgo'\] besides"),
        ({"threshold": {"dog": 2}}, r"thresholds must be in \[0, 1\], got \{'dog': 2\}"),
        ({"threshold": {}, "default_threshold": -1}, r"default_threshold must be in \[0, 1\] or 'calibrated', got -1"),
        ({"threshold": {}, "default_threshold": "calibrated"}, "got 'calibrated' and no calibration"),
        ({"threshold": "calib"}, "threshold must be a number, .* got 'calib'; correct it"),
        ({"threshold": "stored"}, "threshold must be a number, .* got 'stored' .* no stored thresholds"),
    ],
)
def test_wrong_options_are_refused_at_the_call(options: dict, message: str, model: Any) -> None:
    with pytest.raises(ValueError, match=message):
        make(model).predict([], **options)


def test_nan_logits_name_the_image(make_model: MakeModel, folder: Path) -> None:
    model = make_model()
    torch.nn.init.constant_(model.decoder.shared_fc.bias, float("nan"))
    with pytest.raises(
        ValueError, match=r"logits must be numbers, got NaN for .*b\.jpg; check the checkpoint's weights"
    ):
        list(make(model).predict([folder / "c.jpg", folder / "b.jpg"]))


def test_batch_size_is_checked(model: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be ≥ 1, got 0"):
        make(model, batch_size=0)


def test_one_text_is_no_list_of_templates(model: Any) -> None:
    with pytest.raises(TypeError, match="templates must be a list, got the text"):
        make(model, templates="a {}")


def test_score_gives_an_array_no_path(model: Any) -> None:
    assert make(model).score([np.zeros((3, 3), np.float32)])[1][0].path is None


def test_unnamed_classes_take_any_names(make_model: MakeModel, images: list[Image.Image]) -> None:
    predictor = make(make_model(num_classes=3), ["a", "b", "c"])
    assert set(next(predictor.predict(images[0], top_k=3)).words) == {"a", "b", "c"}
    with pytest.raises(ValueError, match=r"words must be the 3 classes of the model .*, got 2 words"):
        make(make_model(num_classes=3), ["a", "b"])


def test_what_is_no_image_is_refused_and_a_wrong_tensor_set_aside(model: Any, images: list[Image.Image]) -> None:
    for wrong in (None, [None, images[0]], [3]):
        with pytest.raises(TypeError, match=r"(images|each image) must be a path, an image"):
            make(model).predict(wrong)
    mixed = [torch.zeros(3, 64, 64), torch.zeros(3, 32, 32), images[0]]
    errors = [p.error for p in make(model).predict(mixed)]
    assert errors[0] is None and errors[2] is None
    assert "an image tensor must be transformed, (3, 64, 64), got (3, 32, 32)" in errors[1]
