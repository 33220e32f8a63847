"""Evaluator: every figure is a metric of the right columns of the right images."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from zsmld.datasets import Scenes, dense_targets
from zsmld.evaluator import Evaluator, evaluate_scores
from zsmld.features import FeatureDataset, extract_features
from zsmld.images import ImageEncoder, load_image
from zsmld.metrics import (
    average_precision,
    chance_average_precision,
    harmonic_mean,
    mean_average_precision,
    precision_recall_f1_at_k,
)
from zsmld.model import ZeroShotClassifier, create_model
from zsmld.protocols import Protocol
from zsmld.text import TextEncoder
from zsmld.vocabulary import Vocabulary

NUS_WIDE = Path(__file__).resolve().parents[2] / "shared" / "real" / "nus_wide" / "ground_truth_81.npz"
law = settings(max_examples=25)


# ----------------------------------------------------------------------------------- figures from scores, no model


def problem(seed, num_seen=5, num_unseen=6, images=20):
    """Scores, targets with unknown entries and empty rows, and a vocabulary with its partition in any order."""
    rng = np.random.default_rng(seed)
    num_words = num_seen + num_unseen
    words = [f"word {i}" for i in range(num_words)]
    seen = [words[i] for i in rng.permutation(num_words)[:num_seen]]
    targets = rng.choice([1, 0, -1], (images, num_words), p=[0.15, 0.75, 0.1]).astype(np.int8)
    targets[: images // 4] = np.minimum(targets[: images // 4], 0)
    return rng.standard_normal((images, num_words)), targets, Vocabulary(words, seen=seen)


def figures_of(scores, targets, empty_words="zero", method="exact"):
    """The figures every part has, straight from the metrics."""
    aps = average_precision(scores, targets, method)
    figures = {"mean_average_precision": mean_average_precision(aps, empty_words), "num_images": len(targets)}
    for k in (3, 5):
        named = zip(("precision", "recall", "f1"), precision_recall_f1_at_k(scores, targets, k), strict=True)
        figures |= {f"{name}_at_{k}": value for name, value in named}
    return figures | {"labels_per_image": (targets == 1).sum() / len(targets)}


@law
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("keep_unlabelled", [True, False])
@pytest.mark.parametrize("empty_words", ["zero", "skip"])
@pytest.mark.parametrize("method", ["exact", "legacy"])
def test_each_part_is_the_metrics_of_its_own_columns_and_images(seed, keep_unlabelled, empty_words, method):
    scores, targets, vocabulary = problem(seed)
    protocol = Protocol.named(
        "gzsl", keep_unlabelled=keep_unlabelled, empty_words=empty_words, average_precision=method
    )
    parts = evaluate_scores(scores, targets, vocabulary, protocol)
    assert list(parts) == ["zsl", "gzsl"]
    for part, columns in (("zsl", ~vocabulary.is_seen), ("gzsl", np.ones(11, bool))):
        s, t = scores[:, columns], targets[:, columns]
        if not keep_unlabelled:
            rows = [i for i in range(len(t)) if 1 in t[i]]
            s, t = s[rows], t[rows]
        for name, value in figures_of(s, t, empty_words, method).items():
            assert parts[part][name] == pytest.approx(value, abs=1e-12), (part, name)
        assert parts[part]["num_words"] == columns.sum()


@law
@given(seed=st.integers(0, 2**32 - 1))
def test_zsl_figures_do_not_see_the_seen_columns(seed):
    scores, targets, vocabulary = problem(seed)
    moved_scores, moved_targets = scores.copy(), targets.copy()
    moved_scores[:, vocabulary.is_seen] = 1e3
    moved_targets[:, vocabulary.is_seen] = 1
    zsl = Protocol.named("zsl", keep_unlabelled=False)
    first = evaluate_scores(scores, targets, vocabulary, zsl)
    assert evaluate_scores(moved_scores, moved_targets, vocabulary, zsl) == first
    assert list(first["zsl"]["words"]) == list(vocabulary.unseen)


@law
@given(seed=st.integers(0, 2**32 - 1))
def test_a_gzsl_protocol_writes_the_zsl_figures_of_a_zsl_protocol(seed):
    scores, targets, vocabulary = problem(seed)
    zsl = evaluate_scores(scores, targets, vocabulary, Protocol.named("zsl"))["zsl"]
    both = evaluate_scores(scores, targets, vocabulary, Protocol.named("gzsl"))["zsl"]
    assert both.pop("policies") == zsl.pop("policies") | {"task": "gzsl"}
    assert both == zsl


@law
@given(seed=st.integers(0, 2**32 - 1), constant=st.sampled_from([-5.0, 0.5, 5.0]))
def test_gzsl_splits_its_mean_into_seen_and_unseen(seed, constant):
    scores, targets, vocabulary = problem(seed)
    gzsl = evaluate_scores(scores, targets, vocabulary, Protocol.named("gzsl"))["gzsl"]
    seen, unseen = gzsl["seen_mean_average_precision"], gzsl["unseen_mean_average_precision"]
    assert gzsl["mean_average_precision"] == pytest.approx((5 * seen + 6 * unseen) / 11, abs=1e-12)
    assert gzsl["harmonic_mean"] == harmonic_mean(seen, unseen)
    shifted = scores + constant * vocabulary.is_seen  # a constant between the partitions moves no word's AP
    again = evaluate_scores(shifted, targets, vocabulary, Protocol.named("gzsl"))["gzsl"]
    assert again["mean_average_precision"] == pytest.approx(gzsl["mean_average_precision"], abs=1e-12)


@law
@given(seed=st.integers(0, 2**32 - 1))
def test_perfect_scores_give_one_for_every_word_that_has_a_positive(seed):
    _, targets, vocabulary = problem(seed)
    for policy in ("zero", "skip"):
        parts = evaluate_scores(targets.astype(float), targets, vocabulary, Protocol.named("gzsl", empty_words=policy))
        for part, columns in (("zsl", ~vocabulary.is_seen), ("gzsl", np.ones(11, bool))):
            share = (targets[:, columns] == 1).any(0).mean()
            expected = share if policy == "zero" else float(share > 0)
            assert parts[part]["mean_average_precision"] == pytest.approx(expected, abs=1e-12)


@law
@given(seed=st.integers(0, 2**32 - 1))
def test_words_of_a_part_carry_their_own_figures(seed):
    scores, targets, vocabulary = problem(seed)
    aps = average_precision(scores, targets)
    words = evaluate_scores(scores, targets, vocabulary, Protocol.named("gzsl"))["gzsl"]["words"]
    assert list(words) == list(vocabulary.words)
    for label, word in enumerate(vocabulary.words):
        ap = words[word]["average_precision"]
        assert (ap is None) == bool(np.isnan(aps[label]))
        assert ap is None or ap == aps[label]
        assert words[word]["num_positives"] == (targets[:, label] == 1).sum()
        assert words[word]["seen"] == (word in vocabulary.seen)


def test_chance_is_the_share_of_positives_of_the_words_that_count():
    scores, targets, vocabulary = problem(0)
    targets[:, 0] = 0
    share = chance_average_precision(targets)
    for policy, expected in (("zero", share.mean()), ("skip", share[(targets == 1).any(0)].mean())):
        figures = evaluate_scores(scores, targets, vocabulary, Protocol.named("gzsl", empty_words=policy))["gzsl"]
        assert figures["chance_mean_average_precision"] == pytest.approx(expected)


def test_supervised_ranks_every_word_in_one_part():
    scores, targets, vocabulary = problem(0)
    vocabulary = Vocabulary(vocabulary.words)
    parts = evaluate_scores(scores, targets, vocabulary, Protocol.named("supervised"))
    assert list(parts) == ["supervised"]
    assert parts["supervised"]["num_words"] == 11


def test_a_k_above_the_number_of_words_is_left_out():
    scores, targets, vocabulary = problem(0, num_unseen=4)
    parts = evaluate_scores(scores, targets, vocabulary, Protocol.named("gzsl", top_k=(3, 5)))
    assert "f1_at_3" in parts["zsl"]
    assert "f1_at_5" not in parts["zsl"]
    assert "f1_at_5" in parts["gzsl"]


def test_keeping_unlabelled_images_changes_their_number_and_the_labels_per_image():
    scores, targets, vocabulary = problem(0)
    zsl = [
        evaluate_scores(scores, targets, vocabulary, Protocol.named("zsl", keep_unlabelled=keep))["zsl"]
        for keep in (True, False)
    ]
    assert zsl[0]["num_images"] > zsl[1]["num_images"]
    assert zsl[0]["labels_per_image"] < zsl[1]["labels_per_image"]
    positives = [figures["num_images"] * figures["labels_per_image"] for figures in zsl]
    assert positives[0] == pytest.approx(positives[1])  # no label was dropped
    assert [figures["policies"]["keep_unlabelled"] for figures in zsl] == [True, False]


@pytest.mark.skipif(not NUS_WIDE.is_file(), reason="the real NUS-WIDE ground truth is not here")
@pytest.mark.parametrize("keep_unlabelled, labels_per_image", [(True, 1.876), (False, 2.412)])
def test_the_two_test_sets_of_the_literature_on_the_real_ground_truth(keep_unlabelled, labels_per_image):
    arrays = np.load(NUS_WIDE)
    concepts = [str(concept) for concept in arrays["concepts"]]
    targets = np.unpackbits(arrays["test"], axis=1)[:, :81].astype(np.int8)
    targets = np.concatenate([targets, np.zeros((len(targets), 1), np.int8)], 1)
    vocabulary = Vocabulary([*concepts, "a seen word"], seen=["a seen word"])
    protocol = Protocol.named("zsl", keep_unlabelled=keep_unlabelled, top_k=(3,))
    zsl = evaluate_scores(targets.astype(np.float32), targets, vocabulary, protocol)["zsl"]
    assert zsl["num_images"] == (107_859 if keep_unlabelled else (targets == 1).any(1).sum())
    assert round(zsl["labels_per_image"], 3) == labels_per_image
    assert zsl["mean_average_precision"] == 1


def test_another_number_of_columns_is_refused():
    scores, targets, vocabulary = problem(0)
    message = r"scores and targets must be \(M, 11\), one column a word, got \(20, 10\) and \(20, 10\); use the same"
    with pytest.raises(ValueError, match=message):
        evaluate_scores(scores[:, :10], targets[:, :10], vocabulary, Protocol.named("zsl"))
    with pytest.raises(ValueError, match=r"must be \(M, 11\), .*, got \(20, 11\) and \(19, 11\)"):
        evaluate_scores(scores, targets[:19], vocabulary, Protocol.named("zsl"))


# ------------------------------------------------------------------------------------------------ with a real model


@pytest.fixture(scope="module")
def scenes():
    return Scenes(split="test", num_images=40)


@pytest.fixture(scope="module")
def text_encoder(scenes, tmp_path_factory):
    """Random vectors of every word of the scenes, as a word-vector file."""
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    words = np.array(scenes.vocabulary.words)
    np.savez(folder / "vectors.npz", words=words, embeddings=rng.standard_normal((len(words), 12), dtype=np.float32))
    return TextEncoder(f"vectors:{folder / 'vectors.npz'}", cache_dir=folder)


@pytest.fixture(scope="module")
def model(text_encoder):
    return small_model(text_encoder=text_encoder)


def small_model(**options):
    torch.manual_seed(0)
    encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=64)
    return create_model(encoder, decoder_dim=16, num_heads=2, feedforward_dim=16, **options)


def test_a_report_holds_the_logits_of_the_model_in_label_order(model, scenes, text_encoder):
    report = Evaluator("scenes_gzsl", device="cpu", batch_size=16).evaluate(model, scenes)
    with torch.no_grad():
        images = torch.stack([model.image_encoder.transform(scenes[i]["image"]) for i in range(len(scenes))])
        expected = model.eval()(images, text_encoder.encode_words(scenes.vocabulary))
    np.testing.assert_allclose(report.scores, expected.numpy(), atol=1e-4)
    assert report.scores.dtype == np.float32
    np.testing.assert_array_equal(report.targets, dense_targets(scenes))
    assert report.ids == [scenes[i]["id"] for i in range(len(scenes))]
    protocol = Protocol.named("scenes_gzsl")
    assert report.protocols == evaluate_scores(report.scores, report.targets, scenes.vocabulary, protocol)


def test_the_batch_size_is_nothing(model, scenes):
    reports = [Evaluator("scenes_zsl", device="cpu", batch_size=size).evaluate(model, scenes) for size in (7, 40)]
    np.testing.assert_allclose(reports[0].scores, reports[1].scores, atol=1e-4)


def test_spatial_embeddings_in_place_of_images_give_the_same_figures(model, scenes):
    features = extract_features(model.image_encoder, scenes, device="cpu", dtype=torch.float32)
    evaluator = Evaluator("scenes_gzsl", device="cpu", num_samples=1)
    from_images, from_features = evaluator.evaluate(model, scenes), evaluator.evaluate(model, features)
    np.testing.assert_allclose(from_features.scores, from_images.scores, atol=1e-4)
    assert from_features.samples[0].image is None
    assert from_features.samples[0].words


def test_the_report_says_what_was_evaluated(model, scenes):
    report = Evaluator("scenes_zsl", device="cpu").evaluate(model, scenes)
    assert report.protocol_name == "scenes_zsl"
    assert report.model["image_encoder"] == "timm:test_resnet"
    assert report.model["text_encoder"] == model.text_encoder
    assert report.model["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert any(model.text_encoder in source for source in report.to_dict()["external_knowledge"])
    assert report.dataset["name"] == "scenes"
    assert report.dataset["split"] == "test"
    assert report.dataset["num_images"] == 40
    assert report.dataset["num_unreadable"] == 0
    assert report.dataset["vocabulary_sha256"] == scenes.vocabulary.digest()
    assert report.versions["zsmld"] == version("zsmld")


def test_samples_show_the_best_words_and_the_true_ones(model, scenes):
    report = Evaluator("scenes_zsl", device="cpu", num_samples=3).evaluate(model, scenes)
    assert len(report.samples) == 3
    for sample in report.samples:
        row = report.ids.index(sample.id)
        best = np.argsort(-report.scores[row])[: len(sample.words)]
        assert sample.words == tuple(scenes.vocabulary.words[label] for label in best)
        assert list(sample.scores) == sorted(sample.scores, reverse=True)
        assert all(0 <= score <= 1 for score in sample.scores)
        assert set(sample.present) == {scenes.vocabulary.words[j] for j in np.flatnonzero(report.targets[row] == 1)}
        assert sample.image is not None
        assert sample.overlays
        assert all(picture.size == sample.image.size for picture in sample.overlays)


class Photos:
    """A dataset of image files, ours in nothing but the contract."""

    name, split, missing = "photos", "test", 0

    def __init__(self, paths, targets, vocabulary):
        self.paths, self.targets, self.vocabulary = paths, csr_matrix(targets), vocabulary
        self.ids = [path.name for path in paths]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        targets = self.targets[index].toarray()[0]
        return {"image": load_image(self.paths[index]), "targets": targets, "id": self.ids[index]}


@pytest.fixture
def photos(scenes, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):
        scenes[i]["image"].save(path)
    return Photos(paths, dense_targets(scenes)[:6], scenes.vocabulary)


def test_an_unreadable_image_is_listed_and_the_rest_is_evaluated(model, photos, scenes):
    whole = Evaluator("scenes_gzsl", device="cpu", batch_size=2).evaluate(model, photos)
    photos.paths[2].write_bytes(b"this is no image")
    photos.paths[5].unlink()
    report = Evaluator("scenes_gzsl", device="cpu", batch_size=2).evaluate(model, photos)
    assert report.ids == ["0.png", "1.png", "3.png", "4.png"]
    assert [entry["id"] for entry in report.dataset["unreadable"]] == ["2.png", "5.png"]
    assert "cannot decode" in report.dataset["unreadable"][0]["error"]
    assert "not found" in report.dataset["unreadable"][1]["error"]
    assert report.dataset["num_unreadable"] == 2
    assert report.dataset["num_images"] == 6
    assert report.protocols["zsl"]["num_images"] == 4
    kept = [0, 1, 3, 4]
    np.testing.assert_allclose(report.scores, whole.scores[kept], atol=1e-4)
    np.testing.assert_array_equal(report.targets, whole.targets[kept])
    expected = evaluate_scores(report.scores, report.targets, scenes.vocabulary, Protocol.named("scenes_gzsl"))
    assert report.protocols == expected


def test_no_readable_image_at_all_is_an_error(model, photos):
    for path in photos.paths:
        path.write_bytes(b"this is no image")
    message = r"dataset must have readable images, none of 6 could be read; first: .*cannot decode .*0\.png"
    with pytest.raises(ValueError, match=message):
        Evaluator("scenes_zsl", device="cpu").evaluate(model, photos)


def test_a_nan_logit_names_its_image(model, scenes):
    features = extract_features(model.image_encoder, scenes, device="cpu")
    features.spatial_embeddings[17, 0, 0] = float("nan")
    with pytest.raises(
        ValueError, match=r"logits must be numbers, got NaN first for image scenes/0/test/17; check the"
    ):
        Evaluator("scenes_zsl", device="cpu", batch_size=10).evaluate(model, features)


def test_another_partition_is_refused_before_the_model_is_touched(scenes):
    with pytest.raises(ValueError, match=r"nus_wide_zsl needs 925 seen and 81 unseen words, the dataset has 80 and 20"):
        Evaluator("nus_wide_zsl", device="cpu").evaluate(None, scenes)


def test_a_class_head_with_another_number_of_classes_is_refused(scenes):
    model = small_model(num_classes=7)
    with pytest.raises(ValueError, match=r"dataset must have the model's 7 classes, got 100 words; class queries"):
        Evaluator("supervised", device="cpu").evaluate(model, scenes)


def test_a_class_head_is_evaluated_without_words(scenes):
    model = small_model(num_classes=100, num_groups=10)
    report = Evaluator("supervised", device="cpu", num_samples=1).evaluate(model, scenes)
    assert report.scores.shape == (40, 100)
    assert report.model["text_encoder"] is None
    assert report.samples[0].overlays == ()


def test_unverified_entries_take_no_part(model, scenes):
    """With `missing` = −1 what is not stored is unknown: no known negative, so no mistake."""
    features = extract_features(model.image_encoder, scenes, device="cpu")
    unverified = FeatureDataset(
        features.spatial_embeddings, features.targets, features.ids, features.vocabulary, "open", "test", missing=-1
    )
    report = Evaluator("scenes_gzsl", device="cpu").evaluate(model, unverified)
    assert set(np.unique(report.targets)) == {-1, 1}
    known = [word["average_precision"] for word in report.protocols["gzsl"]["words"].values() if word["num_positives"]]
    assert known
    assert set(known) == {1.0}


def test_words_the_model_knows_need_no_text_encoder(model, scenes, text_encoder):
    embeddings = text_encoder.encode_words(scenes.vocabulary)
    knowing = ZeroShotClassifier(
        model.image_encoder, model.decoder, vocabulary=scenes.vocabulary, word_embeddings=embeddings
    )
    evaluator = Evaluator("scenes_zsl", device="cpu")
    np.testing.assert_allclose(
        evaluator.evaluate(knowing, scenes).scores, evaluator.evaluate(model, scenes).scores, atol=1e-4
    )


def test_unknown_names_are_refused(model, scenes):
    with pytest.raises(ValueError, match=r"protocol must be a known one, got 'scenes'; did you mean .*scenes_"):
        Evaluator("scenes")
    with pytest.raises(ValueError, match=r"device must be auto or one of \[.*'cpu'.*\] on this machine, got 'tpu'"):
        Evaluator("scenes_zsl", device="tpu").evaluate(model, scenes)
    with pytest.raises(ValueError, match=r"batch_size must be ≥ 1 and num_workers ≥ 0, got 0 and 0"):
        Evaluator("scenes_zsl", device="cpu", batch_size=0).evaluate(model, scenes)


def test_words_the_model_was_trained_on_are_no_unseen_words(scenes, text_encoder):
    model = small_model(text_encoder=text_encoder)
    unseen = scenes.vocabulary.unseen[0]
    trained = Vocabulary([scenes.vocabulary.words[0], unseen])
    model.remember_words(trained, torch.zeros(2, model.decoder.text_dim))
    with pytest.raises(ValueError, match=rf"the model was trained on \['{unseen}'\] \(1 of 20\)"):
        Evaluator("scenes_zsl", device="cpu").evaluate(model, scenes)


def test_the_models_mode_is_kept(model, scenes):
    model.train()
    Evaluator("scenes_zsl", device="cpu").evaluate(model, scenes)
    assert model.training
    model.eval()


def test_samples_are_made_in_eval_mode_and_words_are_encoded_once(model, scenes, monkeypatch):
    """A model in training mode keeps its batch-norm statistics, and samples ask no text encoder again."""
    encoded = []
    original = type(model).encode_words
    monkeypatch.setattr(type(model), "encode_words", lambda self, *a: encoded.append(1) or original(self, *a))
    expected = Evaluator("scenes_gzsl", device="cpu", num_samples=3).evaluate(model, scenes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    report = Evaluator("scenes_gzsl", device="cpu", num_samples=3).evaluate(model, scenes)
    model.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [s.overlays[0].tobytes() for s in report.samples] == [s.overlays[0].tobytes() for s in expected.samples]
    assert len(encoded) == 2


def test_the_name_of_a_model_is_no_model():
    with pytest.raises(TypeError, match=r"got str; pass ZeroShotClassifier\.from_pretrained\('scenes'\)"):
        Evaluator("gzsl", device="cpu").evaluate("scenes", Scenes("test", 3))
