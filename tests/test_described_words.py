"""Words with several descriptions through every door: checkpoint, Predictor, Evaluator, calibration, Trainer."""

from pathlib import Path

import numpy as np
import pytest
import torch

from zsmld import (
    Evaluator,
    ImageEncoder,
    MLDecoder,
    Predictor,
    TextEncoder,
    Trainer,
    Vocabulary,
    ZeroShotClassifier,
    build_dataset,
)
from zsmld.attention import attention_maps
from zsmld.calibration import Calibration

MINE = {
    "red star": ("a red star.", "a star with five red points.", "something red with points."),
    "blue ring": ("a blue ring.", "a ring."),
    "purple diamond": ("a purple rhombus.", "a gem.", "purple.", "a square on its corner."),
}


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    return TextEncoder("minilm", device="cpu")


@pytest.fixture(scope="module")
def scenes() -> object:
    scenes = build_dataset("scenes", split="val", num_images=12)
    known = scenes.vocabulary
    scenes.vocabulary = Vocabulary(known.words, known.seen, known.templates, MINE)
    return scenes


@pytest.fixture
def model(text: TextEncoder) -> ZeroShotClassifier:
    torch.manual_seed(0)
    encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=64)
    decoder = MLDecoder(
        encoder.encoder_dim, text_dim=384, decoder_dim=32, num_heads=2, output="cosine", descriptions="attention"
    )
    torch.nn.init.normal_(decoder.description_proj.weight)  # after training it is no longer the mean
    model = ZeroShotClassifier(encoder, decoder, text).eval()
    vocabulary = Vocabulary(["red star", "blue ring"], descriptions=MINE)
    model.remember_words(vocabulary, model.encode_words(vocabulary, text))
    return model


def test_known_words_have_all_their_descriptions(model: ZeroShotClassifier, text: TextEncoder, tmp_path: Path) -> None:
    assert model.word_embeddings is not None and model.word_embeddings.shape == (2, 3, 384)
    model.save_pretrained(tmp_path)
    loaded = ZeroShotClassifier.from_pretrained(tmp_path)
    loaded.text_encoder = None  # known words need none
    assert torch.equal(loaded.encode_words(["blue ring", "red star"]), model.word_embeddings[[1, 0]])
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(images, loaded.word_embeddings), model(images, model.word_embeddings))


def test_other_descriptions_make_another_word(model: ZeroShotClassifier, text: TextEncoder) -> None:
    assert model.unknown_words(model.prompted(["red star"])) == []
    other = model.prompted(["red star"], descriptions={"red star": ["a crimson star."]})
    assert model.unknown_words(other) == ["red star"]
    assert model.encode_words(other, text).shape == (1, 1, 384)


def test_a_predictor_scores_words_with_more_descriptions_than_it_knew(
    model: ZeroShotClassifier, text: TextEncoder, scenes: object
) -> None:
    images = [scenes[i]["image"] for i in range(3)]  # type: ignore[index]
    whole = Predictor(model, list(MINE), text_encoder=text, descriptions=MINE, device="cpu")
    grown = Predictor(model, ["red star"], text_encoder=text, descriptions=MINE, device="cpu")
    grown.add_words(["blue ring"])
    grown.add_words(["purple diamond"])
    found = [[dict(zip(p.words, p.scores, strict=True)) for p in q.predict(images)] for q in (whole, grown)]
    for a, b in zip(*found, strict=True):
        assert a.keys() == b.keys() == MINE.keys()
        assert all(a[word] == pytest.approx(b[word], abs=1e-6) for word in a)


def test_descriptions_of_no_word_are_an_error(model: ZeroShotClassifier, text: TextEncoder) -> None:
    with pytest.raises(ValueError, match=r"descriptions must be of some of the words, got those of \['zebra'\]"):
        Predictor(model, ["red star"], text_encoder=text, descriptions={"zebra": ["a striped animal"]}, device="cpu")


def test_an_evaluator_standardises_by_reference_words_with_fewer_descriptions(
    model: ZeroShotClassifier, scenes: object
) -> None:
    reference = ("red star", "blue ring")
    plain = Evaluator("gzsl", device="cpu", num_samples=1).evaluate(model, scenes)  # type: ignore[arg-type]
    model.calibration = Calibration(standardization="per_image", reference_words=reference).to_dict()
    report = Evaluator("gzsl", device="cpu").evaluate(model, scenes)  # type: ignore[arg-type]
    np.testing.assert_allclose(report.scores, plain.scores, atol=1e-5)
    assert "calibrated" in report.protocols["gzsl"]


def test_maps_are_of_each_word(model: ZeroShotClassifier) -> None:
    maps = attention_maps(model, torch.randn(2, 3, 64, 64), model.word_embeddings)
    assert maps.shape == (2, 2, *model.image_encoder.grid_size)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 2))


def test_a_head_that_weighs_descriptions_is_trained(
    model: ZeroShotClassifier, text: TextEncoder, scenes: object
) -> None:
    before = model.decoder.description_proj.weight.detach().clone()  # type: ignore[union-attr]
    options = {"epochs": 1, "batch_size": 4, "freeze_image_encoder": True, "device": "cpu", "ema_decay": 0.0}
    trained = Trainer(model, scenes, text_encoder=text, **options).fit()  # type: ignore[arg-type]
    assert not torch.equal(trained.decoder.description_proj.weight, before)  # type: ignore[union-attr]
    assert trained.word_embeddings is not None and trained.word_embeddings.ndim == 3
    with pytest.raises(ValueError, match="attention over descriptions needs query augmentation off"):
        from zsmld.augmentation import QueryAugmentation

        augmentation = QueryAugmentation(noise=0.1)
        Trainer(model, scenes, text_encoder=text, augmentation=augmentation, **options)  # type: ignore[arg-type]
